//! Printing: data on standard output, words for people on standard error.
//!
//! Nothing from elsewhere reaches a terminal with its control characters: an answer must not move the cursor.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use clap::ColorChoice;
use serde_json::Value;

use super::Global;

/// How this run prints.
#[derive(Debug)]
pub struct Out {
    /// JSON was asked for.
    pub json: bool,
    /// Standard output is a terminal.
    pub terminal: bool,
    quiet: bool,
    colour: bool,
}

/// What a colour means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As it should be.
    Good,
    /// Worth a look.
    Doubtful,
    /// Not as it should be.
    Bad,
    /// Less important.
    Faint,
}

impl Out {
    /// Reads the flags, the environment and what standard output is.
    pub fn new(global: &Global) -> Out {
        let terminal = io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let wanted = match global.color {
            ColorChoice::Always => true,
            ColorChoice::Auto => terminal,
            ColorChoice::Never => false,
        };
        let (json, quiet) = (global.json, global.quiet);
        Out { json, terminal, quiet, colour: wanted && !no_colour }
    }

    /// Data, with a line's end.
    pub fn line(&self, text: &str) -> io::Result<()> {
        self.raw(&format!("{}\n", self.safe(text)))
    }

    /// Data as it is, cleaned for a terminal, and flushed: somebody watches it grow.
    pub fn piece(&self, text: &str) -> io::Result<()> {
        self.raw(&self.safe(text))
    }

    /// Text that was built here from clean parts and colours.
    pub fn raw(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// One value per line.
    pub fn json(&self, value: &Value) -> io::Result<()> {
        self.line(&value.to_string())
    }

    /// Words for people.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// Why the command failed; said even when quiet.
    pub fn fail(&self, text: &str) {
        say(&format!("holdfast: {text}"));
    }

    /// One fault in the form editors and build logs know: file, line, words.
    pub fn fault(&self, text: &str) {
        say(text);
    }

    /// `text`, cleaned and, where wanted, coloured.
    pub fn paint(&self, mood: Mood, text: &str) -> String {
        let text = clean(text);
        if !self.colour {
            return text.into_owned();
        }
        let code = match mood {
            Mood::Good => 32,
            Mood::Doubtful => 33,
            Mood::Bad => 31,
            Mood::Faint => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    fn safe<'t>(&self, text: &'t str) -> Cow<'t, str> {
        // A pipe or file gets every byte; only a terminal acts on them.
        if self.terminal { clean(text) } else { Cow::Borrowed(text) }
    }

    /// For tests of what is rendered.
    #[cfg(test)]
    pub fn plain() -> Out {
        Out { json: false, terminal: false, quiet: true, colour: false }
    }
}

fn say(text: &str) {
    // Nowhere is left to report a closed standard error.
    let _ = writeln!(io::stderr(), "{}", clean(text));
}

/// Without control characters, and without those that turn the direction of text round.
pub fn clean(text: &str) -> Cow<'_, str> {
    let bad = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(bad) { Cow::Owned(text.replace(bad, "")) } else { Cow::Borrowed(text) }
}

/// The text at `pointer`, cleaned and on one line; empty where there is none.
pub fn text_at(value: &Value, pointer: &str) -> String {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .map(|text| clean(text).replace(['\n', '\t'], " "))
        .unwrap_or_default()
}

/// The number at `pointer`.
pub fn number_at(value: &Value, pointer: &str) -> Option<f64> {
    value.pointer(pointer).and_then(Value::as_f64)
}

/// The count at `pointer`; 0 where there is none.
pub fn count_at(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

/// Seconds as people say them.
pub fn age(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0 if seconds > 0.0 => format!("{}ms", (seconds * 1000.0) as u64),
        0..=119 => format!("{whole}s"),
        120..=7199 => format!("{}m", whole / 60),
        7200..=172_799 => format!("{}h", whole / 3600),
        _ => format!("{}d", whole / 86_400),
    }
}

/// Bytes as people say them.
pub fn size(bytes: f64) -> String {
    let mut amount = bytes;
    for unit in ["B", "KiB", "MiB"] {
        if amount < 1024.0 {
            return if unit == "B" { format!("{amount:.0} B") } else { format!("{amount:.1} {unit}") };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} GiB")
}

/// Lines up columns; the last one is left as long as it is.
pub fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let width = |index: usize| rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count()).max();
    let line = |row: &Vec<String>| {
        let cells =
            row.iter().enumerate().map(|(index, cell)| format!("{cell:<width$}", width = width(index).unwrap_or(0)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\u{7}\u{9b}c\r\n\td\u{202e}"), "a[2Jbc\n\td");
        assert_eq!(Out { colour: true, ..Out::plain() }.paint(Mood::Bad, "x\u{1b}"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(Out::plain().paint(Mood::Bad, "x"), "x");
    }

    #[test]
    fn ages_and_sizes_read_well() {
        let ages = [(0.0, "0s"), (0.25, "250ms"), (59.0, "59s"), (300.0, "5m"), (7300.0, "2h"), (1e6, "11d")];
        for (seconds, words) in ages {
            assert_eq!(age(seconds), words);
        }
        for (bytes, words) in [(5.0, "5 B"), (2048.0, "2.0 KiB"), (3_565_158.0, "3.4 MiB"), (2e9, "1.9 GiB")] {
            assert_eq!(size(bytes), words);
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(columns(&rows), ["a     b", "long"]);
    }
}
