//! Handing requests out for one attempt each.
//!
//! Owns the order: by priority, then the sources in turn, then by sequence. Never reads a body file: the
//! handle does that, off the writer thread.

use rusqlite::{OptionalExtension, params};

use super::accept::has_answer_room;
use super::codes::{self, num, sql};
use super::record::Leased;
use super::store::{Standing, Store};
use super::{SpoolError, sources, sum};
use crate::control::types::State;

/// Leases per call; the drain's window is far smaller.
const LEASE_MAX: u32 = 256;
/// Overdue or damaged requests one lease may meet and end on its way, so that its time stays bounded.
const OVERDUE_MAX: u32 = 256;

/// The oldest ready request of a lane.
pub(super) const NEXT_IN_LANE: &str = "SELECT seq FROM request INDEXED BY request_ready
    WHERE state = 0 AND deferred = 0 AND priority = ?1 AND source_id = ?2 ORDER BY seq LIMIT 1";

/// The oldest ready request of a lane whose model and number are none of the lists, from a number on, and that may not
/// have been billed where that matters. It reads past the others: as many as may wait.
const NEXT_AROUND: &str = "SELECT seq FROM request INDEXED BY request_ready
    WHERE state = 0 AND deferred = 0 AND priority = ?1 AND source_id = ?2
    AND seq >= ?5 AND model NOT IN (SELECT value FROM json_each(?3))
    AND seq NOT IN (SELECT value FROM json_each(?4)) AND seq NOT IN (SELECT value FROM json_each(?7))
    AND maybe_billed <= ?6 ORDER BY seq LIMIT 1";

/// A lease as the writer gives it to the handle.
#[derive(Debug)]
pub(super) struct Drawn {
    /// Complete but for the body where that is a file.
    pub(super) leased: Leased,
    pub(super) body_hash: [u8; 32],
    pub(super) file: Option<String>,
}

/// Marks up to `max` requests `sending`, in order; those of the models in the JSON list `except` are left out, and
/// beyond `labelled` of them those that may have been billed.
pub(super) fn lease(
    store: &mut Store,
    max: u32,
    except: Option<&str>,
    labelled: Option<u32>,
) -> Result<Vec<Drawn>, SpoolError> {
    let mut labelled_left = labelled.unwrap_or(LEASE_MAX);
    let max = max.min(LEASE_MAX) as usize;
    let mut drawn = Vec::new();
    let mut overdue = 0;
    while drawn.len() < max && overdue < OVERDUE_MAX {
        if store.counts.ready > 0 && !has_answer_room(store)? {
            // What was drawn already goes out; the next call says what is missing.
            if drawn.is_empty() {
                return Err(SpoolError::DiskFull);
            }
            break;
        }
        let Some(row) = next_but(store, except, labelled_left > 0)? else { break };
        if !sum::holds(&store.conn, row.seq)? {
            store.set_aside(&row)?;
            overdue += 1;
            continue;
        }
        if !sources::holds(&store.conn, row.source_id)? {
            store.mend_sources()?;
        }
        if row.expires_at <= store.powered.now_ms() {
            store.end_untold(&row, State::Expired, "ttl")?;
            overdue += 1;
            continue;
        }
        store.shift(&row, State::Sending, false)?;
        store.effects.held.push(row.seq);
        labelled_left = labelled_left.saturating_sub(u32::from(row.maybe_billed));
        drawn.push(draw(store, &row)?);
    }
    Ok(drawn)
}

fn next_but(store: &mut Store, except: Option<&str>, labelled: bool) -> Result<Option<Standing>, SpoolError> {
    if except.is_none() && labelled && store.rescue.behind.is_empty() && store.unheard.is_empty() {
        return next(store);
    }
    let unheard = serde_json::json!(store.unheard).to_string();
    for (priority, source_id) in store.lanes.in_turn() {
        let (behind, from) = store.rescue.behind.bounds();
        let bounds = params![priority, source_id, except.unwrap_or("[]"), behind, from, labelled, unheard];
        let mut statement = store.conn.prepare_cached(NEXT_AROUND)?;
        let seq: Option<i64> = statement.query_row(bounds, |r| r.get(0)).optional()?;
        drop(statement);
        if let Some(seq) = seq {
            store.lanes.served((priority, source_id));
            return listed(store, seq).map(Some);
        }
    }
    Ok(None)
}

/// The row that an index names.
fn listed(store: &Store, seq: i64) -> Result<Standing, SpoolError> {
    let row = store.by_seq(num(seq))?.filter(|row| row.state == State::Queued && !row.deferred);
    row.ok_or_else(|| SpoolError::Damaged("an index names a waiting request that its table does not have".into()))
}

fn next(store: &mut Store) -> Result<Option<Standing>, SpoolError> {
    let Some(lane) = store.lanes.next() else { return Ok(None) };
    let seq: Option<i64> = store.conn.prepare_cached(NEXT_IN_LANE)?.query_row(lane, |r| r.get(0)).optional()?;
    // What was counted through the index and is not found by it stands in the wrong place of it.
    let gone = || SpoolError::Damaged("the index of ready requests has one that it does not find".into());
    let seq = seq.ok_or_else(gone)?;
    store.lanes.served(lane);
    listed(store, seq).map(Some)
}

const DRAW: &str = "SELECT r.id, s.name, r.endpoint, r.model, r.priority, r.attempts, r.maybe_billed,
    r.idempotency_key, r.body_hash, r.body_file, b.bytes, r.content IS NOT NULL, r.task
    FROM request r JOIN source s USING (source_id) LEFT JOIN body b USING (seq) WHERE r.seq = ?1";

fn draw(store: &Store, row: &Standing) -> Result<Drawn, SpoolError> {
    let priority = codes::priority(row.priority)?;
    let mut statement = store.conn.prepare_cached(DRAW)?;
    Ok(statement.query_row(params![sql(row.seq)], |r| {
        let id: String = r.get(0)?;
        let key: Option<String> = r.get(7)?;
        let is_devices: bool = r.get(11)?;
        Ok(Drawn {
            leased: Leased {
                seq: row.seq,
                source: r.get(1)?,
                endpoint: r.get(2)?,
                model: r.get(3)?,
                priority,
                attempts: r.get(5)?,
                maybe_billed: r.get(6)?,
                // A device's key is ours to tell its repeats by; who it is concerns no uplink.
                idempotency_key: key.filter(|_| !is_devices).unwrap_or_else(|| id.clone()),
                // What no task has for a number is none.
                task: r.get::<_, Option<i64>>(12)?.and_then(|task| u16::try_from(task).ok()),
                body: r.get::<_, Option<Vec<u8>>>(10)?.unwrap_or_default().into(),
                id,
            },
            // A hash of another length is damage; no body has this one.
            body_hash: r.get::<_, Vec<u8>>(8)?.try_into().unwrap_or_default(),
            file: r.get(9)?,
        })
    })?)
}

/// Gives leases back that were handed to nobody; rows that stand elsewhere are left alone.
pub(super) fn give_back(store: &mut Store, seqs: &[u64]) -> Result<(), SpoolError> {
    for seq in seqs {
        if let Some(row) = store.by_seq(*seq)?.filter(|row| row.state == State::Sending) {
            store.shift(&row, State::Queued, false)?;
        }
    }
    Ok(())
}

/// Sets a leased request aside whose body is not what was accepted.
pub(super) fn damaged(store: &mut Store, seqs: &[u64]) -> Result<(), SpoolError> {
    for seq in seqs {
        if let Some(row) = store.by_seq(*seq)?.filter(|row| row.state == State::Sending) {
            store.set_aside(&row)?;
        }
    }
    Ok(())
}
