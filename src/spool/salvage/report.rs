//! What salvage found and what it did not: counts, and one line for each loss.
//!
//! Owns the report's form as JSON lines; never holds a prompt, a body, an answer or a source's name.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::super::SpoolError;

/// Losses named one by one; a spool holds 100,000 requests by default, and as many finished ones.
const LOST_MAX: usize = 262_144;
/// Runs of sequence numbers without a trace, named one by one.
const GAPS_MAX: usize = 10_000;
/// The report's name in its folder.
const NAME: &str = "report.jsonl";

/// A request, or a part of one, that could not be saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::spool) struct Lost {
    /// Its sequence number, where a trace of it is left.
    pub(in crate::spool) seq: Option<u64>,
    /// Its id, where a trace of it is left.
    pub(in crate::spool) id: Option<String>,
    /// Its latest readable state's code.
    pub(in crate::spool) state: Option<i64>,
    /// `request`, `body`, `answer`, `source`, or `state` where only a change may be missing.
    pub(in crate::spool) what: &'static str,
    /// What is wrong, in words that stay the same.
    pub(in crate::spool) why: &'static str,
    /// Only a torn frame names it: its bytes may be those of a page of long ago.
    pub(in crate::spool) is_doubtful: bool,
}

/// Everything worth saying about one salvage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::spool) struct Report {
    /// Requests given whole, their sum proven.
    pub(in crate::spool) proven: u64,
    /// Requests given whole from before there were sums.
    pub(in crate::spool) plausible: u64,
    /// Requests given in an older image, because the newest is damaged.
    pub(in crate::spool) superseded: u64,
    /// Pages looked at, those of the log included.
    pub(in crate::spool) pages: u64,
    /// Pages the disk would not give.
    pub(in crate::spool) pages_unreadable: u64,
    /// Pages that no spool writes so: of no known kind, or with a broken list of rows.
    pub(in crate::spool) pages_damaged: u64,
    /// Frames in the log.
    pub(in crate::spool) frames: u64,
    /// Frames that SQLite drops although they were committed.
    pub(in crate::spool) frames_dropped: u64,
    /// Rows of no request that are damaged: sources.
    pub(in crate::spool) sources_damaged: u64,
    /// The list of answers is damaged: answers may be gone that nobody can name.
    pub(in crate::spool) answers_unsure: bool,
    /// What could not be saved.
    pub(in crate::spool) lost: Vec<Lost>,
    /// More losses than are named.
    pub(in crate::spool) lost_unnamed: u64,
    /// First and last sequence number of each run without a trace: deleted earlier, or lost.
    pub(in crate::spool) gaps: Vec<(u64, u64)>,
    /// More such runs than are named.
    pub(in crate::spool) gaps_unnamed: u64,
}

impl Report {
    /// Names a loss.
    pub(super) fn lose(&mut self, lost: Lost) {
        if self.lost.len() < LOST_MAX {
            self.lost.push(lost);
        } else {
            self.lost_unnamed += 1;
        }
    }

    /// Names a run without a trace.
    pub(super) fn gap(&mut self, first: u64, last: u64) {
        if self.gaps.len() < GAPS_MAX {
            self.gaps.push((first, last));
        } else {
            self.gaps_unnamed += 1;
        }
    }

    /// Requests, bodies and answers lost, by kind.
    pub(in crate::spool) fn lost_by_kind(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for lost in &self.lost {
            *counts.entry(lost.what).or_insert(0) += 1;
        }
        counts
    }

    /// The lines of the report: losses, runs without a trace, and a summary last.
    pub(in crate::spool) fn lines(&self) -> impl Iterator<Item = Value> + '_ {
        let lost = self.lost.iter().map(|lost| {
            json!({ "lost": lost.what, "seq": lost.seq, "id": lost.id, "state": state(lost.state), "why": lost.why })
        });
        let gaps = self
            .gaps
            .iter()
            .map(|(first, last)| json!({ "no_trace_from": first, "to": last, "why": "deleted earlier, or lost" }));
        lost.chain(gaps).chain(std::iter::once_with(|| self.summary()))
    }

    fn summary(&self) -> Value {
        json!({
            "summary": true, "requests_whole": self.proven, "requests_unverified": self.plausible,
            "requests_from_older_image": self.superseded, "lost": self.lost_by_kind(),
            "lost_unnamed": self.lost_unnamed, "gaps_unnamed": self.gaps_unnamed,
            "pages": self.pages, "pages_unreadable": self.pages_unreadable, "pages_damaged": self.pages_damaged,
            "frames": self.frames, "frames_dropped": self.frames_dropped, "sources_damaged": self.sources_damaged,
            "answers_unsure": self.answers_unsure,
        })
    }

    /// Writes `report.jsonl` into a folder, private and synced.
    pub(in crate::spool) fn write(&self, folder: &Path) -> Result<(), SpoolError> {
        let path = folder.join(NAME);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut out = BufWriter::new(file);
        for line in self.lines() {
            writeln!(out, "{line}")?;
        }
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        Ok(File::open(folder)?.sync_all()?)
    }
}

fn state(code: Option<i64>) -> Option<&'static str> {
    super::super::codes::state(code?).ok().map(crate::control::types::State::as_str)
}
