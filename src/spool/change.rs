//! What people do to a request: release, cancel, retry, purge.
//!
//! Owns which state may follow which by hand; never touches a request that is being sent.

use rusqlite::params;

use super::accept::{check_source, is_full};
use super::codes::{num, sql, state_code};
use super::store::{DAMAGED, Store};
use super::{SpoolError, device, sum};
use crate::control::types::State;

/// Rows purged in one transaction: some tens of milliseconds, so that nobody waits long behind it.
pub(super) const PURGE_MAX: u32 = 256;

/// Deferred rows become offerable again.
pub(super) fn release(store: &mut Store, seqs: &[u64]) -> Result<(), SpoolError> {
    for seq in seqs {
        let row = store.by_seq(*seq)?;
        // What is behind is released with whatever the salvage makes of it.
        let held = store.rescue.behind.has(*seq);
        if let Some(row) = row.filter(|row| row.state == State::Queued && row.deferred && !held) {
            store.shift(&row, State::Queued, false)?;
        }
    }
    Ok(())
}

/// `queued` and `unknown` become `cancelled`; returns where the request stands then, and whether this changed it.
pub(super) fn cancel(store: &mut Store, id: &str) -> Result<Option<(State, bool)>, SpoolError> {
    let Some(row) = store.by_id(id)? else { return Ok(None) };
    store.rescue.behind.check(row.seq)?;
    if matches!(row.state, State::Queued | State::Unknown) {
        store.end(&row, State::Cancelled, Some("cancelled"))?;
        return Ok(Some((State::Cancelled, true)));
    }
    Ok(Some((row.state, false)))
}

/// What failed is queued once more, as if new, while its body is kept. That a send may have been billed stays
/// on record. Returns where the request stands then, and whether this changed it.
pub(super) fn retry(store: &mut Store, id: &str) -> Result<Option<(State, bool)>, SpoolError> {
    let Some(row) = store.by_id(id)? else { return Ok(None) };
    store.rescue.behind.check(row.seq)?;
    if !row.state.is_final() || row.state == State::Answered || !row.body_kept {
        return Ok(Some((row.state, false)));
    }
    if is_damaged(store, row.seq)? {
        return Ok(Some((row.state, false)));
    }
    check_source(store, row.source_id)?;
    // Its bytes are counted already.
    if is_full(store, 0) {
        return Err(SpoolError::QueueFull);
    }
    store.shift(&row, State::Queued, false)?;
    let expires_at = store.powered.now_ms().saturating_add(row.ttl_ms);
    store
        .conn
        .prepare_cached("UPDATE request SET attempts = 0, reason = NULL, expires_at = ?2 WHERE seq = ?1")?
        .execute([sql(row.seq), sql(expires_at)])?;
    Ok(Some((State::Queued, true)))
}

/// What was once found damaged is not sent, whoever asks.
fn is_damaged(store: &Store, seq: u64) -> Result<bool, SpoolError> {
    let text = "SELECT reason IS ?2 FROM request WHERE seq = ?1";
    let marked: bool = store.conn.prepare_cached(text)?.query_row(params![sql(seq), DAMAGED], |r| r.get(0))?;
    Ok(marked || !sum::holds(&store.conn, seq)?)
}

pub(super) const IN_STATE: &str = "SELECT seq FROM request INDEXED BY request_state WHERE state = ?1 AND state > 0
    AND seq >= ?3 AND seq NOT IN (SELECT value FROM json_each(?4)) ORDER BY seq LIMIT ?2";

/// Deletes up to `max` records of one final state; returns how many.
pub(super) fn purge(store: &mut Store, state: State, max: u32) -> Result<u64, SpoolError> {
    if !state.is_final() {
        return Ok(0);
    }
    let seqs = seqs_in(store, state, max)?;
    if seqs.is_empty() && store.counts.requests[state as usize] > 0 && !store.rescue.behind.is_empty() {
        return Err(SpoolError::Salvaging);
    }
    for seq in &seqs {
        if let Some(row) = store.by_seq(*seq)? {
            device::remember(store, row.seq)?;
            store.remove(&row)?;
        }
    }
    Ok(seqs.len() as u64)
}

/// Deletes the record of one request that is over; false where there is none, or it is not over.
pub(super) fn forget(store: &mut Store, id: &str) -> Result<bool, SpoolError> {
    let Some(row) = store.by_id(id)?.filter(|row| row.state.is_final()) else { return Ok(false) };
    store.rescue.behind.check(row.seq)?;
    device::remember(store, row.seq)?;
    store.remove(&row)?;
    Ok(true)
}

/// The first `limit` sequence numbers in a state that nothing holds back; of what waits, none.
pub(super) fn seqs_in(store: &Store, state: State, limit: u32) -> Result<Vec<u64>, SpoolError> {
    let (behind, from) = store.rescue.behind.bounds();
    let mut statement = store.conn.prepare_cached(IN_STATE)?;
    let rows = statement.query_map(params![state_code(state), limit, from, behind], |r| r.get(0).map(num))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
