//! What time takes away: expired requests, old results, orphaned files, deferrals of earlier starts.
//!
//! Owns the bounds of each step; never decides by wall time and never takes long.

use std::fs::ReadDir;

use rusqlite::{OptionalExtension, params};

use super::codes::{num, sql};
use super::device;
use super::files;
use super::store::Store;
use super::{Condition, SpoolError};
use crate::control::types::State;

/// Requests expired, and results pruned, per sweep: a few tens of milliseconds on slow flash.
const STEP: u32 = 256;
/// File names looked at per sweep.
const NAMES: usize = 256;
/// Deferrals of earlier starts undone per step.
pub(super) const STALE: u32 = 1_000;
/// With a backlog, the service clock is stored at least this often, or a power cut would lose more of it.
const CLOCK_MS: u64 = 600_000;
/// Finished records kept at least, however small the queue.
pub(super) const FINISHED_MIN: u64 = 1_000;

pub(super) const DUE: &str = "SELECT seq FROM request INDEXED BY request_expiry
    WHERE state = 0 AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2";
pub(super) const OLDEST_ENDED: &str = "SELECT seq, ended_at FROM request INDEXED BY request_ended
    WHERE state >= 3 AND handover <> 1 ORDER BY ended_at LIMIT 1";
/// The same of those whose result a device has not taken yet.
pub(super) const OLDEST_UNDELIVERED: &str = "SELECT seq, ended_at FROM request INDEXED BY request_undelivered
    WHERE state >= 3 AND handover = 1 ORDER BY ended_at LIMIT 1";
pub(super) const STALE_DEFERRED: &str = "SELECT seq FROM request INDEXED BY request_deferred
    WHERE state = 0 AND deferred > 0 AND deferred < ?1 LIMIT ?2";

/// Whether [`sweep`] has anything to do: an idle spool must not wear the flash once a second.
pub(super) fn is_due(store: &Store) -> Result<bool, SpoolError> {
    let now = store.powered.now_ms();
    let stored = super::store::load(&store.conn)?.0.powered_ms;
    Ok(!seqs(store, DUE, now, 1)?.is_empty()
        || !seqs(store, STALE_DEFERRED, store.counts.starts, 1)?.is_empty()
        || due_to_prune(store)?.is_some()
        || device::is_due(store, now)?
        || (store.counts.unfinished() > 0 && now.saturating_sub(stored) > CLOCK_MS))
}

/// One real write while the storage is in trouble: the transaction it runs in proves the disk. Of a full disk the
/// reserve must be back too.
pub(super) fn probe(store: &mut Store) -> Result<(), SpoolError> {
    let options = &store.options;
    if store.condition == Condition::Full {
        if !super::accept::FreeSpace::is_fine(&options.data_dir, options.min_disk_free) {
            return Err(SpoolError::DiskFull);
        }
        // Nothing else lifts this one; should the commit fail, it is set again.
        store.condition = Condition::Failing;
    }
    Ok(())
}

/// One bounded step of everything.
pub(super) fn sweep(store: &mut Store) -> Result<(), SpoolError> {
    expire(store)?;
    prune(store)?;
    device::sweep(store)?;
    undo_stale(store)
}

fn expire(store: &mut Store) -> Result<(), SpoolError> {
    for seq in seqs(store, DUE, store.powered.now_ms(), STEP)? {
        if let Some(row) = store.by_seq(seq)? {
            store.end_untold(&row, State::Expired, "ttl")?;
        }
    }
    Ok(())
}

fn prune(store: &mut Store) -> Result<(), SpoolError> {
    for _ in 0..STEP {
        let Some(seq) = due_to_prune(store)? else { break };
        remove(store, seq)?;
    }
    Ok(())
}

/// The next finished request that goes. A result that a device still waits for goes by time only.
fn due_to_prune(store: &Store) -> Result<Option<u64>, SpoolError> {
    let spent = oldest(store, OLDEST_ENDED)?.filter(|(_, ended_at)| to_prune(store, *ended_at));
    if let Some((seq, _)) = spent {
        return Ok(Some(seq));
    }
    let owed = oldest(store, OLDEST_UNDELIVERED)?.filter(|(_, ended_at)| had_its_time(store, *ended_at));
    Ok(owed.map(|(seq, _)| seq))
}

fn had_its_time(store: &Store, ended_at: u64) -> bool {
    ended_at.saturating_add(store.options.keep_results_ms) <= store.powered.now_ms()
}

/// Whether the oldest finished request has had its time, or room is wanted.
fn to_prune(store: &Store, ended_at: u64) -> bool {
    let (options, counts) = (&store.options, &store.counts);
    had_its_time(store, ended_at)
        || counts.answer_bytes > options.keep_results_bytes
        || counts.kept_bytes > options.max_bytes
        || counts.finished() > options.max_requests.max(FINISHED_MIN)
}

/// Removes the oldest finished requests, at most `limit`, until no more than `bytes` are kept.
pub(super) fn prune_to(store: &mut Store, bytes: u64, limit: u32) -> Result<(), SpoolError> {
    for _ in 0..limit {
        if store.counts.kept_bytes <= bytes {
            break;
        }
        let Some((seq, _)) = oldest(store, OLDEST_ENDED)? else { break };
        remove(store, seq)?;
    }
    Ok(())
}

/// Deferrals end with the process that made them.
pub(super) fn undo_stale(store: &mut Store) -> Result<(), SpoolError> {
    let stale = seqs(store, STALE_DEFERRED, store.counts.starts, STALE)?;
    super::change::release(store, &stale)
}

fn remove(store: &mut Store, seq: u64) -> Result<(), SpoolError> {
    match store.by_seq(seq)? {
        Some(row) => {
            device::remember(store, row.seq)?;
            store.remove(&row)
        }
        None => Ok(()),
    }
}

fn oldest(store: &Store, text: &str) -> Result<Option<(u64, u64)>, SpoolError> {
    let mut statement = store.conn.prepare_cached(text)?;
    Ok(statement.query_row([], |r| Ok((num(r.get(0)?), num(r.get(1)?)))).optional()?)
}

fn seqs(store: &Store, text: &str, bound: u64, limit: u32) -> Result<Vec<u64>, SpoolError> {
    let mut statement = store.conn.prepare_cached(text)?;
    let rows = statement.query_map(params![sql(bound), limit], |r| r.get(0).map(num))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How far the search for files without a row has come.
#[derive(Debug, Default)]
pub(super) enum Orphans {
    /// Not begun.
    #[default]
    Waiting,
    /// In the middle of the folder.
    Reading(ReadDir),
    /// Once per start is enough: a running process removes what it drops.
    Done,
}

/// Whether the search is over.
pub(super) fn has_no_orphans(store: &Store) -> bool {
    store.rescue.is_under_way() || matches!(store.orphans, Orphans::Done)
}

pub(super) const NAMED: &str = "SELECT 1 FROM request WHERE body_file = ?1
    UNION ALL SELECT 1 FROM answer WHERE file = ?1 LIMIT 1";

/// Looks at the next few files and removes those of earlier starts that no row names.
pub(super) fn orphans(store: &mut Store) -> Result<(), SpoolError> {
    if store.rescue.is_under_way() {
        return Ok(());
    }
    if matches!(store.orphans, Orphans::Waiting) {
        store.orphans = Orphans::Reading(std::fs::read_dir(files::bodies(&store.options.data_dir))?);
    }
    let Orphans::Reading(dir) = &mut store.orphans else { return Ok(()) };
    let names: Vec<_> = dir.by_ref().take(NAMES).collect();
    if names.len() < NAMES {
        store.orphans = Orphans::Done;
    }
    for entry in names.into_iter().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let earlier = files::start_of(&name).is_some_and(|start| start < store.counts.starts);
        if earlier && !store.conn.prepare_cached(NAMED)?.exists([&name])? {
            files::remove(&store.options.data_dir, &name);
        }
    }
    Ok(())
}
