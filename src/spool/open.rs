//! Starting: the lock, the database, what an earlier process left half done.
//!
//! Owns the rule for requests found in `sending`; of the backlog it reads indexes, to count it.

use std::collections::HashSet;
use std::fs::File;
use std::mem::take;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, params};
use tokio::sync::{mpsc, watch};

use super::accept::FreeSpace;
use super::ballast::Ballast;
use super::codes::sql;
use super::handle::{Seen, Spool};
use super::lanes::Lanes;
use super::outcomes::{self, Outcomes};
use super::powered::{Mark, Powered};
use super::record::Tally;
use super::rescue::{self, Rescue};
use super::scrub::Scrub;
use super::store::{Asked, Counts, Standing, Store};
use super::writer::{Abandoned, COMMANDS_MAX, Latest, Writer};
use super::{
    Condition, Options, SpoolError, change, device, files, mounts, quarantine, read, salvage, schema, sources, store,
    sweep,
};
use crate::clock;
use crate::control::types::State;
use crate::plant::{self, Fault};

/// Rows handled per look-up; there are as many as were being sent, so this is one step in practice.
const STEP: u32 = 1_000;

/// How long a start after an unclean stop may look at the whole file; the slow look goes on in the background.
const CHECK_MAX: Duration = Duration::from_secs(2);
/// The same after a clean stop, when only the storage itself can have spoilt it.
const CLEAN_CHECK_MAX: Duration = Duration::from_millis(100);
/// SQLite's steps between two looks at the clock while it checks: some tenths of a millisecond.
const CHECK_STEPS: i32 = 10_000;
/// Sequence numbers skipped at least after a file was set aside: far more than requests can be unfinished, so that
/// none that comes back meets a new one.
const LEAP: u64 = 1 << 20;

/// Opens the spool, making it where there is none, and starts its thread. Blocks while it does.
pub fn open(options: Options) -> Result<Spool, SpoolError> {
    begin(options, whole_or_new)
}

/// The same, but sets the database aside whatever it looks like and brings back what it holds, row by row.
pub(super) fn open_anew(options: Options) -> Result<Spool, SpoolError> {
    begin(options, anew)
}

/// The database to be used, and what its numbers must stay above.
type Base = fn(&Options) -> Result<(Connection, Floors), SpoolError>;

fn begin(options: Options, base: Base) -> Result<Spool, SpoolError> {
    let lock = files::take(&options.data_dir)?;
    let options = Arc::new(options);
    mounts::warn(&options.data_dir);
    if !FreeSpace::is_fine(&options.data_dir, options.min_disk_free) {
        tracing::warn!("the data folder has less than queue.min_disk_free left: new requests are refused");
    }
    let mut store = attach(&options, base)?;
    let tally = match adopt_on_full_disk_too(&mut store) {
        Err(SpoolError::Damaged(what)) => {
            tracing::error!(what, "the spool's database is damaged: it is set aside and what can be read is salvaged");
            start_over(&mut store)?;
            adopt(&mut store)?
        }
        done => done?,
    };
    store.ballast.make(options.min_disk_free);
    start(store, tally, lock)
}

/// As if the time for looking at the file had been up before anything was found.
#[cfg(test)]
pub(super) fn open_unchecked(options: Options) -> Result<Spool, SpoolError> {
    begin(options, |options| Ok((schema::connect(&files::database(&options.data_dir), options)?, Floors::default())))
}

fn attach(options: &Arc<Options>, base: Base) -> Result<Store, SpoolError> {
    let (conn, floors) = base(options)?;
    let (mut mark, mut counts) = store::load(&conn)?;
    floors.raise(&mut counts, &mut mark);
    let rescue = Rescue::before(&options.data_dir, counts.next_seq);
    if plant::is(Fault::ReaderLeftOpen) {
        let reader = Connection::open(files::database(&options.data_dir))?;
        reader.execute_batch("BEGIN; SELECT * FROM service")?;
        Box::leak(Box::new(reader));
    }
    Ok(Store {
        device_keys: 0,
        conn,
        options: options.clone(),
        powered: Powered::resume_now(&mark),
        counts,
        effects: store::Effects::default(),
        held: HashSet::new(),
        unheard: HashSet::new(),
        told: Vec::new(),
        free: FreeSpace::default(),
        asked: Asked::default(),
        lanes: Lanes::default(),
        is_half_written: false,
        has_written: false,
        orphans: sweep::Orphans::default(),
        outcomes: Outcomes::open(options)?,
        ballast: Ballast::find(&options.data_dir),
        scrub: Scrub::default(),
        rescue,
        hurt: false,
        condition: Condition::Fine,
        #[cfg(test)]
        faults: store::Faults::default(),
    })
}

/// What a database that starts empty must stay above, because an earlier one may come back to it.
#[derive(Debug, Default)]
struct Floors {
    next_seq: u64,
    starts: u64,
    powered_ms: u64,
}

impl Floors {
    /// From what stands outside the database: the outcome log and the names of bodies. Above the highest that ended
    /// there are at most as many as may be unfinished; each set that was made since may stand for one more leap.
    fn find(options: &Options) -> Floors {
        let known = outcomes::read(&options.data_dir);
        let leap = options.max_requests.max(LEAP).saturating_mul(quarantine::newest(&options.data_dir).max(1));
        Floors {
            next_seq: known.highest_seq.saturating_add(leap),
            starts: files::latest_start(&options.data_dir),
            powered_ms: known.powered_ms,
        }
    }

    /// The same for a database of whose log a part is dropped: what was accepted in that part is known to devices by
    /// its number. On disk before the log is folded in, because a start that dies in between finds no damage any more.
    fn above(conn: &Connection, options: &Options) -> Result<Floors, SpoolError> {
        let mut floors = Floors::find(options);
        let (mut mark, mut counts) = store::load(conn)?;
        let leap = options.max_requests.max(LEAP);
        floors.next_seq = floors.next_seq.max(counts.next_seq.saturating_add(leap));
        floors.raise(&mut counts, &mut mark);
        let text = "UPDATE service SET next_seq = ?1, starts = ?2, powered_ms = ?3";
        match conn.execute(text, params![sql(counts.next_seq), sql(counts.starts), sql(mark.powered_ms)]) {
            // The start's own transaction writes it, or there is none.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {}
            done => drop(done?),
        }
        Ok(floors)
    }

    fn raise(&self, counts: &mut Counts, mark: &mut Mark) {
        counts.next_seq = counts.next_seq.max(self.next_seq);
        counts.starts = counts.starts.max(self.starts);
        mark.powered_ms = mark.powered_ms.max(self.powered_ms);
    }
}

/// The database as it is, or a new one in place of a damaged one.
fn whole_or_new(options: &Options) -> Result<(Connection, Floors), SpoolError> {
    let dir = &options.data_dir;
    let log = std::fs::metadata(files::wal(dir)).map_or(0, |m| m.len());
    let empty = std::fs::metadata(files::database(dir)).map_or(0, |m| m.len()) == 0;
    if empty && log > 0 {
        // A log must never be laid over a database that is not its own.
        return anew(options);
    }
    if empty && !quarantine::due(dir).is_empty() {
        // A start died between setting the damaged one aside and filling the new one.
        return self::empty(options);
    }
    if empty && outcomes::tell_of_some(dir) {
        tracing::error!(
            "the spool's database is gone or empty although this folder was in use: what waited in it is lost; a copy may be put \
             back while holdfast is stopped"
        );
    }
    // A clean stop folds the log in and removes it: where there is one, the last stop was none.
    let dropped = log > 0 && salvage::dropped_frames(&files::wal(dir))? > 0;
    if dropped && !is_log_kept(dir) {
        return anew(options);
    }
    let mut connected = schema::connect(&files::database(dir), options);
    if matches!(connected, Err(SpoolError::DiskFull)) && Ballast::find(dir).give_up() {
        // A step to a newer version writes; what waits must not wait for somebody to make room.
        connected = schema::connect(&files::database(dir), options);
    }
    let connected = connected.and_then(|conn| {
        let floors = if dropped { Floors::above(&conn, options) } else { Ok(Floors::default()) };
        if floors.is_err() {
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        }
        let floors = floors?;
        Ok((checked(conn, log > 0)?, floors))
    });
    match connected {
        Ok((conn, floors)) => {
            if dropped && let Err(error) = checkpoint(&conn) {
                // The log keeps what is dropped of it; the next start will know that from the set.
                tracing::warn!(%error, "the damaged log could not be folded in yet");
            }
            Ok((conn, floors))
        }
        Err(SpoolError::Damaged(what)) => {
            tracing::error!(what, "the spool's database is damaged: it is set aside and what can be read is salvaged");
            anew(options)
        }
        Err(error) => Err(error),
    }
}

/// Whether what SQLite will drop of a damaged log is kept beside. Where there is no room even for that, the whole
/// database goes, which takes none: nothing of it is lost, and all of it comes back as room is made.
fn is_log_kept(dir: &Path) -> bool {
    tracing::warn!("the write-ahead log is damaged: it is kept, and what SQLite drops of it is salvaged");
    let mut kept = quarantine::keep_log(dir);
    if kept == Err(SpoolError::DiskFull) {
        quarantine::make_room(dir);
        kept = quarantine::keep_log(dir);
    }
    if kept == Err(SpoolError::DiskFull) && Ballast::find(dir).give_up() {
        kept = quarantine::keep_log(dir);
    }
    if let Err(error) = &kept {
        tracing::error!(%error, "the damaged log cannot be kept apart: the database is set aside with it");
    }
    kept.is_ok()
}

fn anew(options: &Options) -> Result<(Connection, Floors), SpoolError> {
    quarantine::set_aside(&options.data_dir)?;
    empty(options)
}

fn empty(options: &Options) -> Result<(Connection, Floors), SpoolError> {
    files::make_database(&options.data_dir)?;
    let conn = schema::connect(&files::database(&options.data_dir), options)?;
    Ok((conn, Floors::find(options)))
}

/// The tree is looked at as far as time allows, then the indexes. Connections that are given up must not fold a log
/// into a file that is going to be set aside.
fn checked(mut conn: Connection, unclean: bool) -> Result<Connection, SpoolError> {
    let (begun, most) = (clock::now(), if unclean { CHECK_MAX } else { CLEAN_CHECK_MAX });
    let mut done = store::load(&conn).map(drop);
    done = done.and_then(|()| check_until(&mut conn, "quick_check(1)", begun, most));
    // Before indexes are held against tables: a damaged name costs nothing but itself.
    done = done.and_then(|()| match sources::mend(&conn) {
        // Without room it is mended by whoever meets it.
        Err(SpoolError::DiskFull) => Ok(()),
        done => done,
    });
    done = done.and_then(|()| check_until(&mut conn, "integrity_check(1)", begun, most));
    if done.is_err() {
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    }
    done.map(|()| conn)
}

fn check_until(conn: &mut Connection, check: &str, begun: Instant, most: Duration) -> Result<(), SpoolError> {
    conn.progress_handler(CHECK_STEPS, Some(move || begun.elapsed() > most))?;
    let said: Result<String, _> = conn.query_row(&format!("PRAGMA {check}"), [], |r| r.get(0));
    conn.progress_handler(0, None::<fn() -> bool>)?;
    match said {
        Ok(answer) if answer == "ok" => Ok(()),
        Ok(answer) => Err(SpoolError::Damaged(answer)),
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Puts an empty database in place of a damaged one while the service runs. What is handed out stays so: the
/// rows of those come back with the salvage.
pub(super) fn start_over(store: &mut Store) -> Result<(), SpoolError> {
    store.forget_batch();
    store.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    store.conn = Connection::open_in_memory()?;
    if store.rescue.is_unused {
        quarantine::drop_unused(&store.options.data_dir)?;
    } else {
        quarantine::set_aside(&store.options.data_dir)?;
        store.rescue.is_unused = true;
    }
    let (conn, mut floors) = empty(&store.options)?;
    floors.next_seq = floors.next_seq.max(store.counts.next_seq);
    floors.starts = floors.starts.max(store.counts.starts);
    let (mut mark, mut counts) = store::load(&conn)?;
    floors.raise(&mut counts, &mut mark);
    (store.conn, store.counts) = (conn, counts);
    (store.effects, store.scrub) = (store::Effects::default(), Scrub::default());
    (store.device_keys, store.lanes) = (0, Lanes::default());
    store.save()?;
    store.rescue.is_unused = false;
    Ok(())
}

/// What an earlier process left on its way is an outcome too: the reserve is for it.
fn adopt_on_full_disk_too(store: &mut Store) -> Result<Tally, SpoolError> {
    let good = store.counts;
    let done = adopt(store);
    if done != Err(SpoolError::DiskFull) || !store.ballast.give_up() {
        return done;
    }
    if !store.conn.is_autocommit() {
        store.conn.execute_batch("ROLLBACK")?;
    }
    (store.counts, store.effects) = (good, store::Effects::default());
    adopt(store)
}

/// Takes over from the process before, in one transaction. All that a start reads is read in here, because the look at
/// the file may have ended before its damage was found: who calls this sets a damaged one aside.
fn adopt(store: &mut Store) -> Result<Tally, SpoolError> {
    store.forget_batch();
    store.conn.execute_batch("BEGIN IMMEDIATE")?;
    store.counts.starts += 1;
    settle_orphans(store)?;
    sweep::undo_stale(store)?;
    store.device_keys = device::keys(&store.conn)?;
    store.lanes = Lanes::count(&store.conn)?;
    store.lanes.begin(store.counts.starts);
    let tally = read::tally(store, 0)?;
    store.save()?;
    store.conn.execute_batch("COMMIT")?;
    store.effects.freed.clear();
    store.told.append(&mut store.effects.notices);
    let ends = std::mem::take(&mut store.effects.outcomes);
    if let Err(error) = store.outcomes.append(&ends, store.powered.now_ms()) {
        tracing::warn!(%error, "the outcome log could not be written; it is tried again");
    }
    Ok(tally)
}

/// Ends or repeats what an earlier process was sending; what is behind waits for the salvage.
pub(super) fn settle_orphans(store: &mut Store) -> Result<(), SpoolError> {
    loop {
        let held = |store: &Store, seq: &u64| store.held.contains(seq) || store.effects.held.contains(seq);
        let most = STEP + (store.held.len() + store.effects.held.len()) as u32;
        let mut sending = change::seqs_in(store, State::Sending, most)?;
        sending.retain(|seq| !held(store, seq));
        if sending.is_empty() {
            return Ok(());
        }
        for seq in sending {
            let row = store.by_seq(seq)?.filter(|row| row.state == State::Sending);
            // An index that names what the table does not have would be asked for ever.
            let row = row.ok_or_else(|| SpoolError::Damaged("an index and its table differ".into()))?;
            settle_orphan(store, &row)?;
        }
    }
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

fn start(store: Store, tally: Tally, lock: File) -> Result<Spool, SpoolError> {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let mut store = store;
    let (tally, tally_seen) = watch::channel(tally);
    let (condition, condition_seen) = watch::channel(store.condition);
    let seen = Seen { tally: tally_seen, condition: condition_seen };
    rescue::start(&mut store, sender.downgrade());
    let abandoned = Abandoned::default();
    let (options, powered, starts) = (store.options.clone(), store.powered.clone(), store.counts.starts);
    let writer = Writer {
        store,
        commands,
        tally,
        condition,
        sender: sender.downgrade(),
        abandoned: abandoned.clone(),
        commits: 0,
        _lock: lock,
        broken: None,
        latest: Latest::default(),
    };
    let thread = std::thread::Builder::new().name("spool".into()).spawn(move || writer.run())?;
    Ok(Spool::new(sender, thread, seen, abandoned, options, powered, starts))
}

/// A commit that reported an error: until the file is open again nobody knows whether it landed.
#[derive(Debug, Clone)]
pub(super) struct Doubtful {
    /// The counters of the commit before.
    pub(super) good: Counts,
    /// The turn that it would have left on disk.
    pub(super) turn: u64,
    /// What was to be done after it.
    pub(super) effects: store::Effects,
    /// Its callers heard of the error already.
    pub(super) is_told: bool,
}

/// Opens the database anew after a failed commit and says whether that commit landed. A landed one whose callers wait
/// still is as good as any: the log is folded in and synced. Where they heard of an error, requests accepted in it are
/// removed and leases of it given back, since nobody was told of them; ends stand, and get their line, and whoever tells
/// one again is heard before the request is handed out anew. What the salvage brought back stands too.
pub(super) fn reopen(store: &mut Store, doubtful: &Doubtful) -> Result<bool, SpoolError> {
    #[cfg(test)]
    if std::mem::take(&mut store.faults.stays_shut) {
        return Err(SpoolError::Storage("a planted fault".into()));
    }
    store.forget_batch();
    // The old connection must not sync once more on its way out, and must be gone before the next locks the file.
    store.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    store.conn = Connection::open_in_memory()?;
    store.conn = schema::connect(&files::database(&store.options.data_dir), &store.options)?;
    // Frames whose sync failed may exist in memory only; nothing may ever be appended behind them.
    checkpoint(&store.conn)?;
    (store.counts, store.lanes) = (store::load(&store.conn)?.1, Lanes::count(&store.conn)?);
    let landed = store.counts.turn == doubtful.turn && doubtful.turn != doubtful.good.turn;
    store.effects = if landed { doubtful.effects.clone() } else { store::Effects::default() };
    if landed && !doubtful.is_told {
        return Ok(true);
    }
    store.effects.held.clear();
    let (accepted, settled) = (take(&mut store.effects.accepted), take(&mut store.effects.settled));
    store.effects.freed.retain(|seq| !settled.contains(seq));
    store.unheard.extend(settled);
    store.conn.execute_batch("BEGIN IMMEDIATE")?;
    // Of two writings of one mailbox the later goes first.
    for new in accepted.iter().rev() {
        if let Some(row) = store.by_seq(new.seq)? {
            store.remove(&row)?;
        }
        device::forget(store, new.seq, new.mailbox.as_ref())?;
    }
    for seq in change::seqs_in(store, State::Sending, STEP)? {
        if !store.held.contains(&seq) {
            super::lease::give_back(store, &[seq])?;
        }
    }
    store.save()?;
    store.conn.execute_batch("COMMIT")?;
    store.lanes.stand();
    Ok(false)
}

/// Folds the whole WAL into the database; says so where it could not.
pub(super) fn checkpoint(conn: &Connection) -> Result<(), SpoolError> {
    let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0))?;
    if busy == 0 { Ok(()) } else { Err(SpoolError::Storage("the write-ahead log could not be folded in".into())) }
}
