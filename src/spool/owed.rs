//! What a batch changes of the counters of sources and lanes: gathered in memory, written once for all of it.
//!
//! Owns the amounts that are not in their tables yet. Whoever reads those tables pays first, and so does every commit.

use std::collections::BTreeMap;

use rusqlite::ErrorCode;

use super::SpoolError;
use super::store::Store;

/// Amounts by source, and by priority and source; a batch touches few of them.
#[derive(Debug, Default, Clone)]
pub(super) struct Owed {
    unfinished: BTreeMap<i64, i64>,
    ready: BTreeMap<(i64, i64), i64>,
}

impl Owed {
    pub(super) fn unfinished(&mut self, source_id: i64, by: i64) {
        *self.unfinished.entry(source_id).or_default() += by;
    }

    pub(super) fn ready(&mut self, priority: i64, source_id: i64, by: i64) {
        *self.ready.entry((priority, source_id)).or_default() += by;
    }

    /// What is owed to one source.
    pub(super) fn of_source(&self, source_id: i64) -> i64 {
        self.unfinished.get(&source_id).copied().unwrap_or(0)
    }
}

impl Store {
    /// Writes what is owed. A counter never goes below zero, whatever a damaged row claims.
    pub(super) fn pay(&mut self) -> Result<(), SpoolError> {
        let Owed { unfinished, ready } = std::mem::take(&mut self.owed);
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
