//! Starting: the lock, the database, what an earlier process left half done.
//!
//! Owns the rule for requests found in `sending`; its cost never grows with the backlog.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;

use rusqlite::{Connection, params};
use tokio::sync::{mpsc, watch};

use super::codes::{num, sql};
use super::handle::Spool;
use super::powered::Powered;
use super::record::Tally;
use super::store::{Counts, Standing, Store};
use super::writer::{Abandoned, COMMANDS_MAX, Writer};
use super::{Options, SpoolError, change, files, read, schema, store, sweep};
use crate::control::types::State;

/// Rows handled per look-up; there are as many as were being sent, so this is one step in practice.
const STEP: u32 = 1_000;

/// Opens the spool, making it where there is none, and starts its thread. Blocks while it does.
pub fn open(options: Options) -> Result<Spool, SpoolError> {
    let lock = files::take(&options.data_dir)?;
    let options = Arc::new(options);
    let mut store = attach(&options)?;
    adopt(&mut store)?;
    start(store, lock)
}

fn attach(options: &Arc<Options>) -> Result<Store, SpoolError> {
    let conn = schema::connect(&files::database(&options.data_dir), options)?;
    let (mark, counts) = store::load(&conn)?;
    Ok(Store {
        conn,
        options: options.clone(),
        powered: Powered::resume_now(&mark),
        counts,
        effects: store::Effects::default(),
        held: HashSet::new(),
        told: Vec::new(),
        free: super::accept::FreeSpace::default(),
        orphans: sweep::Orphans::default(),
    })
}

/// Takes over from the process before, in one transaction.
fn adopt(store: &mut Store) -> Result<(), SpoolError> {
    store.conn.execute_batch("BEGIN IMMEDIATE")?;
    store.counts.starts += 1;
    loop {
        let sending = change::seqs_in(store, State::Sending, STEP)?;
        if sending.is_empty() {
            break;
        }
        for seq in sending {
            if let Some(row) = store.by_seq(seq)? {
                settle_orphan(store, &row)?;
            }
        }
    }
    sweep::undo_stale(store)?;
    store.save()?;
    store.conn.execute_batch("COMMIT")?;
    store.effects.freed.clear();
    store.told.append(&mut store.effects.notices);
    Ok(())
}

/// It was handed out and its process died: the send may have left. Once more is allowed, and says so first.
fn settle_orphan(store: &mut Store, row: &Standing) -> Result<(), SpoolError> {
    if row.maybe_billed || store.options.hold_unknown {
        store.end_untold(row, State::Dead, "unknown")?;
    } else {
        store.shift(row, State::Queued, false)?;
    }
    let message = "holdfast stopped while this request was being sent";
    store
        .conn
        .prepare_cached(
            "UPDATE request SET maybe_billed = 1, error_kind = 'unknown', error_message = ?2 WHERE seq = ?1",
        )?
        .execute(params![sql(row.seq), message])?;
    Ok(())
}

fn start(store: Store, lock: File) -> Result<Spool, SpoolError> {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let (tally, seen) = watch::channel(Tally::default());
    tally.send_replace(read::tally(&store, 0)?);
    let abandoned = Abandoned::default();
    let (options, powered, starts) = (store.options.clone(), store.powered.clone(), store.counts.starts);
    let writer = Writer { store, commands, tally, abandoned: abandoned.clone(), commits: 0, _lock: lock, broken: None };
    let thread = std::thread::Builder::new().name("spool".into()).spawn(move || writer.run())?;
    Ok(Spool::new(sender, thread, seen, abandoned, options, powered, starts))
}

/// Opens the database anew after a failed commit. Its rows may or may not have reached the disk; nobody was
/// told that they did, so requests accepted in it are removed and leases of it given back.
pub(super) fn reopen(store: &mut Store, good: Counts) -> Result<(), SpoolError> {
    // The old connection must not sync once more on its way out, and must be gone before the next locks the file.
    let dont = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    store.conn.set_db_config(dont, true)?;
    store.conn = Connection::open_in_memory()?;
    store.conn = schema::connect(&files::database(&store.options.data_dir), &store.options)?;
    // Frames whose sync failed may exist in memory only; nothing may ever be appended behind them.
    checkpoint(&store.conn)?;
    store.counts = store::load(&store.conn)?.1;
    store.effects = store::Effects::default();
    store.conn.execute_batch("BEGIN IMMEDIATE")?;
    for seq in unacknowledged(store, good.next_seq)? {
        if let Some(row) = store.by_seq(seq)? {
            store.remove(&row)?;
        }
    }
    for seq in change::seqs_in(store, State::Sending, STEP)? {
        if !store.held.contains(&seq) {
            super::lease::give_back(store, &[seq])?;
        }
    }
    store.save()?;
    store.conn.execute_batch("COMMIT")?;
    Ok(())
}

fn unacknowledged(store: &Store, from: u64) -> Result<Vec<u64>, SpoolError> {
    let mut statement = store.conn.prepare("SELECT seq FROM request WHERE seq >= ?1")?;
    let rows = statement.query_map([sql(from)], |r| r.get(0).map(num))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Folds the whole WAL into the database; says so where it could not.
pub(super) fn checkpoint(conn: &Connection) -> Result<(), SpoolError> {
    let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0))?;
    if busy == 0 { Ok(()) } else { Err(SpoolError::Storage("the write-ahead log could not be folded in".into())) }
}
