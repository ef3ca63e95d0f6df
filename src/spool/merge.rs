//! What a salvaged copy of a row lacks and the row that stands still has: its body, its answers.
//!
//! Owns the rule that bytes are never given up for a newer state of their row; only proven ones are taken over. Never
//! decides which copy is newer.

use rusqlite::types::Value;
use rusqlite::{OptionalExtension, params};

use super::adopt::{SalvagedBody, SalvagedRow};
use super::codes::sql;
use super::store::{Standing, Store};
use super::{SpoolError, files, sum};

/// The copy with what it lacks: a log holds a request's newest state, and its body only where that is as new.
pub(super) fn with_standing(store: &Store, row: &SalvagedRow, old: &Standing) -> Result<SalvagedRow, SpoolError> {
    let mut row = row.clone();
    if matches!(row.body, SalvagedBody::Lost) && row.body_file().is_none() {
        let text = "SELECT bytes FROM body WHERE seq = ?1";
        let mut find = store.conn.prepare_cached(text)?;
        let bytes: Option<Vec<u8>> = find.query_row([sql(old.seq)], |r| r.get(0)).optional()?;
        if let Some(bytes) = bytes.filter(|bytes| row.body_hash() == Some(&files::hash(bytes)[..])) {
            row.body = SalvagedBody::Inline(bytes);
        }
    }
    for local in [false, true] {
        // What an earlier send brought is not what the request ended with.
        let is_earlier = !local && row.ended_with_an_answer() && !row.is_in(old.state);
        if !row.has_answer(local) && !is_earlier {
            row.answers.extend(answer(store, old.seq, local)?);
        }
    }
    Ok(row)
}

/// An answer that stands and is whole, as its columns before `sum`.
fn answer(store: &Store, seq: u64, local: bool) -> Result<Option<Vec<Value>>, SpoolError> {
    let columns = sum::ANSWER_VALUES.join(", ");
    let text =
        format!("SELECT {columns} FROM answer WHERE seq = ?1 AND local = ?2 AND sum = {}", sum::call("", &sum::ANSWER));
    let values = |r: &rusqlite::Row<'_>| (0..sum::ANSWER_VALUES.len()).map(|at| r.get(at)).collect();
    let mut find = store.conn.prepare_cached(&text)?;
    Ok(find.query_row(params![sql(seq), local], values).optional()?)
}
