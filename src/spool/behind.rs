//! Requests whose latest state may stand only in a damaged log: SQLite shows them as they were before.
//!
//! Owns which these are. Whoever changes a request asks here first: a change would give the older state a higher
//! version than the newer one has, and the salvage could not tell any more.

use std::collections::HashSet;
use std::path::PathBuf;

use super::{SpoolError, quarantine, salvage};

/// What is held back until the salvage has read the logs of all sets that are due.
#[derive(Debug, Default)]
pub(super) struct Behind {
    seqs: HashSet<u64>,
    /// The same as a JSON list, for statements.
    list: String,
    /// Everything below this is held back, because part of a log cannot be read and may name any of them.
    below: u64,
}

impl Behind {
    /// From the logs of these sets, beside a database whose next sequence number is `next_seq`.
    pub(super) fn find(sets: &[PathBuf], next_seq: u64) -> Behind {
        let mut behind = Behind::default();
        for set in sets {
            match salvage::behind(&quarantine::database(set), &quarantine::log(set)) {
                Ok(rows) => {
                    behind.seqs.extend(rows.seqs);
                    behind.below = if rows.is_all { next_seq } else { behind.below };
                }
                Err(error) => {
                    tracing::error!(%error, set = %set.display(), "a set's log cannot be read: what was accepted \
                        before is held back while it is tried again");
                    behind.below = next_seq;
                }
            }
        }
        behind.list = serde_json::json!(behind.seqs).to_string();
        behind
    }

    #[cfg(test)]
    pub(super) fn of(seqs: &[u64]) -> Behind {
        let seqs: HashSet<u64> = seqs.iter().copied().collect();
        Behind { list: serde_json::json!(seqs).to_string(), seqs, below: 0 }
    }

    /// Whether nothing is held back.
    pub(super) fn is_empty(&self) -> bool {
        self.below == 0 && self.seqs.is_empty()
    }

    /// Whether this request is held back.
    pub(super) fn has(&self, seq: u64) -> bool {
        seq < self.below || self.seqs.contains(&seq)
    }

    /// The number from which on nothing is held back for its age.
    pub(super) fn below(&self) -> u64 {
        self.below
    }

    /// Refuses a change of a request that is held back.
    pub(super) fn check(&self, seq: u64) -> Result<(), SpoolError> {
        if self.has(seq) { Err(SpoolError::Salvaging) } else { Ok(()) }
    }

    /// Two bounds for statements: numbers that are held back as a JSON list, and the lowest that is not for its age.
    pub(super) fn bounds(&self) -> (&str, i64) {
        (if self.list.is_empty() { "[]" } else { &self.list }, super::codes::sql(self.below))
    }
}
