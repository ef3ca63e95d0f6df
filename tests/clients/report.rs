//! The table of a run, for the terminal and as Markdown.

use std::fmt::Write as _;

use crate::cell::Cell;
use crate::install::Missing;
use crate::rows::{Client, Kind, Side};
use crate::steps;
use crate::suite::Suite;

/// One client's results.
pub struct Row {
    pub client: &'static Client,
    /// Name and version of each package.
    pub versions: Vec<(String, String)>,
    /// In the order of the columns; empty where the client could not be had.
    pub cells: Vec<Cell>,
}

impl Row {
    /// A client that could not be fetched here.
    pub fn missing(client: &'static Client, why: String) -> Row {
        eprintln!("{}: {why}", client.name);
        Row { client, versions: vec![("missing here".to_owned(), why)], cells: Vec::new() }
    }

    /// Whether every cell that should work does.
    pub fn is_fine(&self, allow_missing: bool) -> bool {
        if self.cells.is_empty() { allow_missing } else { !self.cells.iter().any(|cell| matches!(cell, Cell::No(_))) }
    }

    fn version(&self) -> &str {
        self.versions.first().map_or("?", |(_, version)| version)
    }
}

/// Everything a run found.
pub struct Run {
    pub rows: Vec<Row>,
    /// `None` where it was not asked for.
    pub suite: Option<Result<Suite, Missing>>,
}

impl Run {
    /// Whether every cell that should work does, and the suite ends alike on both ways.
    pub fn is_fine(&self, allow_missing: bool) -> bool {
        let suite = match &self.suite {
            None => true,
            Some(Ok(suite)) => suite.differences().is_empty() && !suite.names("passed").is_empty(),
            Some(Err(_)) => allow_missing,
        };
        suite && self.rows.iter().all(|row| row.is_fine(allow_missing))
    }
}

/// The suite's result in words.
fn compared(suite: &Result<Suite, Missing>) -> String {
    let suite = match suite {
        Ok(suite) => suite,
        Err(missing) => return format!("not run: {missing}"),
    };
    let counts = ["passed", "failed", "skipped"].map(|end| format!("{} {end}", suite.names(end).len())).join(", ");
    let differences = suite.differences();
    if differences.is_empty() {
        format!("the same directly and through holdfast: {counts}")
    } else {
        format!(
            "**{} tests end differently**, {counts} through holdfast: {}",
            differences.len(),
            differences.join("; ")
        )
    }
}

/// Footnotes, each text once.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn number(&mut self, note: &str) -> usize {
        let place = self.0.iter().position(|known| known == note);
        place.unwrap_or_else(|| {
            self.0.push(note.to_owned());
            self.0.len() - 1
        }) + 1
    }
}

/// The table for a terminal.
pub fn terminal(run: &Run) -> String {
    let rows = &run.rows;
    let mut out = format!("{:28}", "");
    for step in &steps::ALL {
        let _ = write!(out, "{:9}", step.name);
    }
    out.push('\n');
    for row in rows {
        let _ = write!(out, "{:28}", format!("{} ({})", row.client.name, row.version()));
        if row.cells.is_empty() {
            out.push_str("not run");
        }
        for cell in &row.cells {
            let _ = write!(out, "{:9}", cell.word());
        }
        out.push('\n');
    }
    let cells = || rows.iter().flat_map(|row| &row.cells);
    let count = |word| cells().filter(|cell| cell.word() == word).count();
    let _ = writeln!(out, "{} cells: {} yes, {} n/a, {} NO", cells().count(), count("yes"), count("n/a"), count("NO"));
    if let Some(suite) = &run.suite {
        let _ = writeln!(out, "langchain-tests: {}", compared(suite));
    }
    out
}

/// Days since 1970 as a date of the Gregorian calendar.
fn date() -> String {
    let secs = i64::try_from(holdfast::clock::unix_ms() / 1_000).unwrap_or(0);
    let days = secs / 86_400 + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + i64::from(month <= 2))
}

const INTRODUCTION: &str = "\
# Clients, as they are

Each cell is a check of an unmodified client against the real daemon, with simulators as the cloud and as Ollama. This page is
written by the run that made the checks:

```sh
cargo test --test clients -- --report docs/clients.md     # fetches the clients from PyPI, npm and crates.io; some ten minutes
cargo test --test clients -- --only openai-node,llm       # some rows
```

`yes`: the client was given the right thing, and the server saw the request as often as it should have. `n/a`: the client has no such
thing. **NO**: it should work and does not.
";

/// The table as a page of documentation.
pub fn markdown(run: &Run) -> String {
    let rows = &run.rows;
    let mut out = INTRODUCTION.to_owned();
    let _ = writeln!(out, "\nholdfast {}, {}.\n", env!("CARGO_PKG_VERSION"), date());
    let titles: Vec<_> = steps::ALL.iter().map(|step| step.title).collect();
    let _ =
        writeln!(out, "| client | version | {} |\n| --- | --- |{}", titles.join(" | "), " --- |".repeat(titles.len()));
    let mut notes = Notes::default();
    for row in rows {
        let _ =
            write!(out, "| {} | {} |", row.client.name, if row.cells.is_empty() { "not run" } else { row.version() });
        for cell in &row.cells {
            let word = if matches!(cell, Cell::No(_)) { "**NO**" } else { cell.word() };
            let mark = if cell.note().is_empty() { String::new() } else { format!(" [{}]", notes.number(cell.note())) };
            let _ = write!(out, " {word}{mark} |");
        }
        out.push('\n');
    }
    out.push('\n');
    for (at, note) in notes.0.iter().enumerate() {
        let _ = writeln!(out, "- [{}] {}", at + 1, note.replace('|', "\\|"));
    }
    out.push_str("\n## What a `yes` says\n\n| column | |\n| --- | --- |\n");
    for step in &steps::ALL {
        let _ = writeln!(out, "| {} | {} |", step.title, step.meaning);
    }
    if let Some(suite) = &run.suite {
        out.push_str(&suite_section(suite));
    }
    out.push_str("\n## What was run\n\n| client | packages | reaches holdfast by |\n| --- | --- | --- |\n");
    for row in rows {
        let packages: Vec<_> = row.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let _ = writeln!(out, "| {} | {} | {} |", row.client.name, packages.join(", "), way(row.client));
    }
    out
}

/// The suite's part of the page.
fn suite_section(suite: &Result<Suite, Missing>) -> String {
    let mut out = "\n## langchain-tests\n\nThe suite that LangChain has for chat models, run with ChatOpenAI against the simulated \
                   uplink directly, and against the same through holdfast: "
        .to_owned();
    let _ = writeln!(out, "{}.", compared(suite));
    if let Ok(suite) = suite {
        let versions: Vec<_> = suite.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let _ = writeln!(
            out,
            "\nWith {}. What the simulator's model is not clever enough for fails on both ways:\n",
            versions.join(", ")
        );
        for name in suite.names("failed") {
            let _ = writeln!(out, "- {name}");
        }
    }
    out
}

fn way(client: &Client) -> String {
    let way = if client.by_socket { "its UNIX socket" } else { "TCP on loopback" };
    let side = if client.side == Side::Ollama { ", `/api`" } else { ", `/v1`" };
    let from = match client.kind {
        Kind::Python { .. } => "PyPI",
        Kind::Node { .. } => "npm",
        Kind::Rust { .. } => "crates.io",
    };
    format!("{way}{side} (from {from})")
}
