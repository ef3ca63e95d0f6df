//! What a batch changes of the counters of sources and lanes: gathered in memory, written once for all of it.
//!
//! Owns the changes that are not in their tables yet. Whoever reads those counters writes them first (`lease`) or adds
//! what is still in memory (`accept`); every commit writes them.

use std::collections::BTreeMap;

use rusqlite::ErrorCode;

use super::SpoolError;
use super::store::Store;

/// Changes by source, and by priority and source; a batch touches few of them.
#[derive(Debug, Default, Clone)]
pub(super) struct Deltas {
    unfinished: BTreeMap<i64, i64>,
    ready: BTreeMap<(i64, i64), i64>,
}

impl Deltas {
    pub(super) fn add_unfinished(&mut self, source_id: i64, by: i64) {
        *self.unfinished.entry(source_id).or_default() += by;
    }

    pub(super) fn add_ready(&mut self, priority: i64, source_id: i64, by: i64) {
        *self.ready.entry((priority, source_id)).or_default() += by;
    }

    /// By how much the unfinished requests of a source are more than its table says.
    pub(super) fn unfinished_of(&self, source_id: i64) -> i64 {
        self.unfinished.get(&source_id).copied().unwrap_or(0)
    }
}

impl Store {
    /// Writes the changes. A counter never goes below zero, whatever a damaged row claims.
    pub(super) fn write_deltas(&mut self) -> Result<(), SpoolError> {
        let Deltas { unfinished, ready } = std::mem::take(&mut self.deltas);
        self.asked.unfinished.clear();
        for (source_id, by) in unfinished.into_iter().filter(|(_, by)| *by != 0) {
            let text = "UPDATE source SET unfinished = max(0, unfinished + ?2) WHERE source_id = ?1";
            self.conn.prepare_cached(text)?.execute([source_id, by])?;
        }
        for ((priority, source_id), by) in ready.into_iter().filter(|(_, by)| *by != 0) {
            let text = "INSERT INTO lane VALUES (?1, ?2, max(0, ?3), 0)
                ON CONFLICT DO UPDATE SET ready = max(0, ready + ?3)";
            match self.conn.prepare_cached(text)?.execute([priority, source_id, by]) {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    let what = "a request names a source that is not in its table";
                    return Err(SpoolError::Damaged(what.to_owned()));
                }
                done => done?,
            };
        }
        Ok(())
    }
}
