//! The lines of a batch's input: what each one asks for, and what is wrong with a file that is no batch.
//!
//! Owns the reading of one line at a time within a bound. Sends and stores nothing, and quotes nothing.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::manifest::{FAULTS_MAX, LINES_MAX, LineFault};

/// Longest line: one is in memory whole while it is read, and all of the program stays below 64 MiB.
pub const LINE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Longest `custom_id`.
pub const CUSTOM_ID_BYTES_MAX: usize = 512;

/// What Windows' editors put before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// One line as its caller wrote it.
#[derive(Debug, Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    custom_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// One line that asks for something.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) custom_id: Cow<'a, str>,
    pub(super) body: &'a str,
}

/// Reads one line of a batch for `endpoint`; `Err` is its fault, without its number.
pub(super) fn read<'a>(text: &'a [u8], endpoint: &str) -> Result<Line<'a>, LineFault> {
    let raw: Raw<'a> = serde_json::from_slice(text)
        .map_err(|_| fault("invalid_json_line", None, "This line is not parseable as valid JSON."))?;
    let missing =
        |param| fault("missing_required_parameter", Some(param), &format!("Missing required parameter: '{param}'."));
    let custom_id = raw.custom_id.ok_or_else(|| missing("custom_id"))?;
    if custom_id.len() > CUSTOM_ID_BYTES_MAX {
        let message = format!("custom_id must have at most {CUSTOM_ID_BYTES_MAX} bytes.");
        return Err(fault("invalid_value", Some("custom_id"), &message));
    }
    if raw.method.ok_or_else(|| missing("method"))? != "POST" {
        return Err(fault("invalid_method", Some("method"), "method must be POST."));
    }
    if raw.url.ok_or_else(|| missing("url"))? != endpoint {
        let message = format!("The url of each line must be the batch's endpoint, {endpoint}.");
        return Err(fault("url_mismatch", Some("url"), &message));
    }
    let body = raw.body.ok_or_else(|| missing("body"))?.get();
    if !body.starts_with('{') {
        return Err(fault("invalid_value", Some("body"), "body must be a JSON object."));
    }
    Ok(Line { custom_id, body })
}

fn fault(code: &str, param: Option<&str>, message: &str) -> LineFault {
    LineFault { code: code.to_owned(), message: message.to_owned(), param: param.map(str::to_owned), line: None }
}

/// One line of a file.
#[derive(Debug)]
pub(super) struct Found<'a> {
    /// Its number, from 0.
    pub(super) number: u32,
    /// Its place in the file, from 1.
    pub(super) place: u32,
    /// Its bytes; `None` where they are too many.
    pub(super) text: Option<&'a [u8]>,
}

/// The lines of a file, one after the other; empty ones are none.
#[derive(Debug)]
pub(super) struct Lines {
    file: BufReader<File>,
    text: Vec<u8>,
    /// Lines of the file so far, empty ones too: what its caller's editor counts.
    place: u32,
    /// Lines that ask for something so far.
    number: u32,
}

impl Lines {
    pub(super) fn open(path: &Path) -> io::Result<Lines> {
        Ok(Lines { file: BufReader::new(File::open(path)?), text: Vec::new(), place: 0, number: 0 })
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Found<'_>>> {
        loop {
            self.text.clear();
            // What a long line took is given back with the next one.
            self.text.shrink_to(crate::body::PIECE_BYTES);
            let read = (&mut self.file).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut self.text)?;
            if read == 0 {
                return Ok(None);
            }
            self.place += 1;
            if self.place == 1 && self.text.starts_with(BYTE_ORDER_MARK) {
                self.text.drain(..BYTE_ORDER_MARK.len());
            }
            let is_long = self.text.last() != Some(&b'\n') && read as u64 > LINE_BYTES_MAX;
            if is_long {
                self.skip()?;
            }
            if !is_long && self.text.trim_ascii().is_empty() {
                continue;
            }
            self.number += 1;
            let text = (!is_long).then(|| self.text.trim_ascii());
            return Ok(Some(Found { number: self.number - 1, place: self.place, text }));
        }
    }

    fn skip(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.file.fill_buf()?;
            let (used, ended) = match buffer.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.file.consume(used);
            if ended {
                return Ok(());
            }
        }
    }
}

/// Reads a whole input through: how many lines ask for something, or why it is no batch. Blocks.
pub(super) fn validate(path: &Path, endpoint: &str) -> io::Result<Result<u32, Vec<LineFault>>> {
    let (mut lines, mut faults, mut total) = (Lines::open(path)?, Vec::new(), 0);
    // Eight bytes for each name: whether one stands there twice is asked of its hash.
    let (hasher, mut names) = (RandomState::new(), HashSet::new());
    while let Some(Found { number, place, text }) = lines.next()? {
        total = number + 1;
        if total > LINES_MAX {
            faults = vec![fault("too_many_tasks", None, &format!("A batch may have at most {LINES_MAX} lines."))];
            break;
        }
        let long = || fault("invalid_value", None, &format!("A line may have at most {LINE_BYTES_MAX} bytes."));
        let wrong = match text.ok_or_else(long).and_then(|text| read(text, endpoint)) {
            Err(wrong) => wrong,
            Ok(line) if names.insert(hasher.hash_one(&line.custom_id)) => continue,
            Ok(_) => fault("duplicate_custom_id", Some("custom_id"), "This custom_id was used by an earlier line."),
        };
        faults.push(LineFault { line: Some(place), ..wrong });
        if faults.len() == FAULTS_MAX {
            break;
        }
    }
    if total == 0 {
        faults.push(fault("empty_file", None, "The input file has no lines."));
    }
    Ok(if faults.is_empty() { Ok(total) } else { Err(faults) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    fn checked(text: &str) -> Result<u32, Vec<LineFault>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        std::fs::write(&path, text).unwrap();
        validate(&path, CHAT).unwrap()
    }

    fn good(id: &str) -> String {
        format!(r#"{{"custom_id":"{id}","method":"POST","url":"{CHAT}","body":{{"model":"m","messages":[1]}}}}"#)
    }

    #[test]
    fn a_line_gives_its_name_and_its_body_byte_for_byte() {
        let text = r#"{"custom_id":"\u00e4 1","method":"POST","url":"/v1/chat/completions","body":{ "a" : 1.50 }}"#;
        assert_eq!(read(text.as_bytes(), CHAT).unwrap(), Line { custom_id: "ä 1".into(), body: r#"{ "a" : 1.50 }"# });
    }

    #[test]
    fn a_text_of_windows_is_a_text() {
        let (first, second) = (good("a"), good("b"));
        assert_eq!(checked(&format!("\u{feff}{first}\r\n{second}\r\n")), Ok(2));
        assert_eq!(checked(&format!("\u{feff}\r\n{first}")), Ok(1));
        assert_eq!(checked(&format!("{first}\n\u{feff}{second}")).unwrap_err()[0].line, Some(2));
    }

    #[test]
    fn each_fault_has_its_word_and_its_line() {
        let empty = || "\n \r\n".to_owned();
        assert_eq!(checked(&format!("{}\n\n{}", good("a"), good("b"))), Ok(2));
        for (text, code, line) in [
            (empty(), "empty_file", None),
            (format!("{}\nno", good("a")), "invalid_json_line", Some(2)),
            (format!("{}\n\n{}", good("a"), good("a")), "duplicate_custom_id", Some(3)),
            (good("a").replace("POST", "GET"), "invalid_method", Some(1)),
            (good("a").replace(CHAT, "/v1/embeddings"), "url_mismatch", Some(1)),
            (good("a").replace("\"body\"", "\"bodi\""), "missing_required_parameter", Some(1)),
            (good("a").replace("{\"model\"", "[{\"model\"").replace("]}}", "]}]}"), "invalid_value", Some(1)),
            (good(&"x".repeat(CUSTOM_ID_BYTES_MAX + 1)), "invalid_value", Some(1)),
            (good(&"x".repeat(LINE_BYTES_MAX as usize)), "invalid_value", Some(1)),
        ] {
            let faults = checked(&text).unwrap_err();
            assert_eq!((faults[0].code.as_str(), faults[0].line), (code, line), "{faults:?}");
        }
    }

    #[test]
    fn too_many_lines_and_too_many_faults_are_bounded() {
        let many: String = (0..=LINES_MAX).map(|n| good(&n.to_string()) + "\n").collect();
        assert_eq!(checked(&many).unwrap_err()[0].code, "too_many_tasks");
        assert_eq!(checked(&"no\n".repeat(FAULTS_MAX * 2)).unwrap_err().len(), FAULTS_MAX);
    }
}
