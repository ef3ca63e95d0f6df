//! One cell of the table: what a client's check came to.
//!
//! Owns the words between a client's program and this one.

/// How one step of one client ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// The check passed; with what a reader should know of it.
    Yes(String),
    /// This client has no such thing.
    NotApplicable(String),
    /// It should work and did not.
    No(String),
}

impl Cell {
    /// Reads `ok NOTE`, `n/a REASON` or `failed REASON`.
    pub fn read(line: &str) -> Cell {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim().to_owned();
        match word {
            "ok" => Cell::Yes(rest),
            "n/a" => Cell::NotApplicable(rest),
            _ => Cell::No(rest),
        }
    }

    /// The same unless what the servers saw is wrong.
    pub fn and(self, seen: Result<(), String>) -> Cell {
        match (self, seen) {
            (Cell::Yes(_), Err(wrong)) => Cell::No(wrong),
            (cell, _) => cell,
        }
    }

    /// The word in the table.
    pub fn word(&self) -> &'static str {
        match self {
            Cell::Yes(_) => "yes",
            Cell::NotApplicable(_) => "n/a",
            Cell::No(_) => "NO",
        }
    }

    /// What the footnote says; empty for none.
    pub fn note(&self) -> &str {
        match self {
            Cell::Yes(note) | Cell::NotApplicable(note) | Cell::No(note) => note,
        }
    }
}
