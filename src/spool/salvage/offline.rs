//! A stopped spool looked at from outside: is it in order, and what does it hold.
//!
//! Owns the lock while it looks, so that no daemon starts meanwhile. Never changes a byte, of a damaged spool
//! least of all: rows are read by salvage, and SQLite is only asked for its opinion.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rustix::fs::FlockOperation;
use tokio::sync::oneshot;

use super::convert;
use super::report::Lost;
use super::{Body, Found, Salvage};
use crate::spool::outcomes::{self, Known};
use crate::spool::record::Record;
use crate::spool::{self, Options, SpoolError, codes, files, schema, sweep};

/// Rows held in memory at a time.
const BATCH: usize = 64;
/// Complaints of SQLite that are shown; the first says what is wrong.
const COMPLAINTS_MAX: u32 = 20;

/// Something that is not in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The request's id, where it is about one and its id is readable.
    pub id: Option<String>,
    /// The request's sequence number, likewise.
    pub seq: Option<u64>,
    /// What it is about: `request`, `state`, `body`, `answer`, `source`, `structure`, `log`, `outcome`, `counter`,
    /// `file`.
    pub what: &'static str,
    /// What is wrong.
    pub why: String,
}

impl Fault {
    fn of(what: &'static str, why: impl Into<String>) -> Fault {
        Fault { id: None, seq: None, what, why: why.into() }
    }

    fn lost(lost: &Lost) -> Fault {
        Fault { id: lost.id.clone(), seq: lost.seq, what: lost.what, why: lost.why.to_owned() }
    }
}

/// A data folder whose daemon is stopped, kept so while this lives.
#[derive(Debug)]
pub struct Offline {
    data_dir: PathBuf,
    _lock: Option<File>,
}

/// A request as it is shown, its body apart.
#[derive(Debug)]
pub struct Shown {
    /// The record with its answers' bytes.
    pub record: Record,
    /// The request's own body, where it is kept and whole.
    pub body: Option<Bytes>,
}

impl Offline {
    /// Takes the folder's lock; refuses where a daemon has it, or where there is no spool.
    pub fn take(data_dir: &Path) -> Result<Offline, SpoolError> {
        if !files::database(data_dir).try_exists()? {
            let folder = data_dir.display();
            return Err(SpoolError::Storage(format!(
                "there is no spool in {folder}; name the configuration whose gateway.data_dir it is with -c"
            )));
        }
        let lock = match File::open(data_dir.join("holdfast.lock")) {
            Ok(file) => Some(file),
            // Without it no daemon runs: each makes it first. Making it here would change the folder.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e.into()),
        };
        match lock.as_ref().map(|file| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)) {
            None | Some(Ok(())) => Ok(Offline { data_dir: data_dir.to_owned(), _lock: lock }),
            Some(Err(rustix::io::Errno::WOULDBLOCK)) => Err(SpoolError::Busy),
            Some(Err(e)) => Err(std::io::Error::from(e).into()),
        }
    }

    /// Tells every request that is left, by ascending sequence number; gives what is lost. A `tell` that says no
    /// ends it.
    pub fn export(&self, tell: &mut dyn FnMut(Shown) -> bool) -> Result<Vec<Fault>, SpoolError> {
        let mut salvage = self.salvage()?;
        let now = salvage.powered_ms();
        loop {
            let batch = salvage.next_batch(BATCH);
            if batch.is_empty() {
                return Ok(salvage.report().lost.iter().map(Fault::lost).collect());
            }
            for found in batch {
                let shown = self.shown(&found, now)?;
                if !tell(shown) {
                    return Ok(Vec::new());
                }
            }
        }
    }

    /// Everything that is not in order, and how many requests were looked at.
    pub fn check(&self) -> Result<(Vec<Fault>, u64), SpoolError> {
        let mut faults = self.structure()?;
        let mut salvage = self.salvage()?;
        let known = outcomes::read(&self.data_dir);
        let (mut rows, mut named) = (0, HashSet::new());
        loop {
            let batch = salvage.next_batch(BATCH);
            if batch.is_empty() {
                break;
            }
            rows += batch.len() as u64;
            named.extend(batch.iter().flat_map(Found::files));
            faults.extend(batch.iter().filter(|found| found.is_dropped).map(|found| {
                Fault::lost(
                    &found.loss("log", "its newest state stands only in frames of the log that would be dropped"),
                )
            }));
            faults.extend(batch.iter().filter_map(|found| disagreement(found, &known)));
        }
        let report = salvage.report();
        faults.extend(report.lost.iter().map(Fault::lost));
        for (count, what, why) in [
            (report.pages_damaged, "structure", "pages are not as the spool writes them"),
            (report.pages_unreadable, "structure", "pages cannot be read from the disk"),
            (report.frames_dropped, "log", "committed frames of the write-ahead log would be dropped"),
            (report.sources_damaged, "source", "rows of sources are damaged"),
            (known.damaged, "outcome", "lines of the log of outcomes are damaged"),
        ] {
            if count > 0 {
                faults.push(Fault::of(what, format!("{count} {why}")));
            }
        }
        faults.extend(self.orphans(&named)?);
        Ok((faults, rows))
    }

    fn salvage(&self) -> Result<Salvage, SpoolError> {
        let db = files::database(&self.data_dir);
        Salvage::open(&db, &db.with_file_name("spool.db-wal"), &self.data_dir)
    }

    fn shown(&self, found: &Found, powered_ms: u64) -> Result<Shown, SpoolError> {
        let file = |name: &str| files::read(&self.data_dir, name);
        let body = match &found.body {
            Body::Inline(bytes) => Some(Bytes::copy_from_slice(bytes)),
            Body::File(name) => file(name)?,
            Body::NotKept | Body::Lost(_) => None,
        };
        Ok(Shown { record: convert::record(found, powered_ms, &file)?, body })
    }

    /// What SQLite has to say about the whole, and whether the counters agree with the rows.
    fn structure(&self) -> Result<Vec<Fault>, SpoolError> {
        match schema::refuse_by_header(&files::database(&self.data_dir)) {
            Err(error @ SpoolError::Damaged(_)) => return Ok(vec![Fault::of("structure", error.to_string())]),
            other => other?,
        }
        let conn = self.connect()?;
        // A newer spool is refused and not called damaged.
        match schema::refuse(&conn) {
            Err(error @ SpoolError::Newer { .. }) => return Err(error),
            Err(error) => return Ok(vec![Fault::of("structure", error.to_string())]),
            Ok(()) => {}
        }
        let mut faults = complaints(&conn).unwrap_or_else(|error| vec![Fault::of("structure", error.to_string())]);
        if faults.is_empty() {
            match wrong_counters(&conn) {
                Ok(wrong) => faults.extend(
                    wrong.into_iter().map(|name| Fault::of("counter", format!("{name} does not agree with the rows"))),
                ),
                Err(error) => faults.push(Fault::of("structure", error.to_string())),
            }
        }
        Ok(faults)
    }

    /// A connection that writes nothing: not at opening, because the log's index is kept in memory, and not at
    /// closing, because the log is not folded in.
    fn connect(&self) -> Result<Connection, SpoolError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(files::database(&self.data_dir), flags)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.execute_batch("PRAGMA query_only=ON; PRAGMA trusted_schema=OFF; PRAGMA mmap_size=0")?;
        let _: String = conn.query_row("PRAGMA locking_mode=EXCLUSIVE", [], |r| r.get(0))?;
        Ok(conn)
    }

    fn orphans(&self, named: &HashSet<String>) -> Result<Vec<Fault>, SpoolError> {
        let mut faults = Vec::new();
        let entries = match std::fs::read_dir(files::bodies(&self.data_dir)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(faults),
            Err(e) => return Err(e.into()),
        };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !named.contains(&name) {
                faults.push(Fault::of("file", format!("no request names bodies/{name}")));
            }
        }
        Ok(faults)
    }
}

/// Does what a start does about a damaged database, whatever this one looks like, and waits for its end: it is set
/// aside whole, an empty one takes its place, and each row comes back that can be read. So counters and sums are
/// made anew, and what cannot be read is on record as damaged. A newer spool is refused. Where the salvage stops, what
/// was set aside stays due for the next start.
pub async fn repair(options: Options) -> Result<(), SpoolError> {
    let newer = Offline::take(&options.data_dir)?.structure();
    if let Err(error @ SpoolError::Newer { .. }) = newer {
        return Err(error);
    }
    outcomes::mend(&options.data_dir)?;
    let (sender, opened) = oneshot::channel();
    std::thread::spawn(move || sender.send(spool::open::open_anew(options)));
    let spool = opened.await.map_err(|_| SpoolError::Closed)??;
    let whole = spool.salvaged().await?;
    while !spool.read(|store| Ok(sweep::has_no_orphans(store))).await? {
        spool.read(sweep::orphans).await?;
    }
    spool.close().await;
    if whole { Ok(()) } else { Err(SpoolError::Storage("the salvage stopped; the log says why".into())) }
}

/// Where a row and the log of outcomes say different things.
fn disagreement(found: &Found, known: &Known) -> Option<Fault> {
    let (end, version) = known.ended(found.id())?;
    let ended_since = i64::try_from(version).is_ok_and(|version| version >= found.version);
    let state = codes::state(found.state_code()).ok()?;
    let lost = || Fault::lost(&found.loss("outcome", "the log of outcomes says that it ended, its row does not"));
    (ended_since && !state.is_final() && end.is_some()).then(lost)
}

fn complaints(conn: &Connection) -> Result<Vec<Fault>, SpoolError> {
    let mut statement = conn.prepare(&format!("PRAGMA quick_check({COMPLAINTS_MAX})"))?;
    let lines = statement.query_map([], |r| r.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").map(|line| Fault::of("structure", line)).collect())
}

/// Each counter with the count that it repeats.
const COUNTERS: &str = "
    SELECT 'queued', queued = (SELECT count(*) FROM request WHERE state = 0) FROM service UNION ALL
    SELECT 'sending', sending = (SELECT count(*) FROM request WHERE state = 1 AND state > 0) FROM service UNION ALL
    SELECT 'unknown', unknown = (SELECT count(*) FROM request WHERE state = 2 AND state > 0) FROM service UNION ALL
    SELECT 'answered', answered = (SELECT count(*) FROM request WHERE state = 3 AND state > 0) FROM service UNION ALL
    SELECT 'expired', expired = (SELECT count(*) FROM request WHERE state = 4 AND state > 0) FROM service UNION ALL
    SELECT 'cancelled', cancelled = (SELECT count(*) FROM request WHERE state = 5 AND state > 0) FROM service UNION ALL
    SELECT 'evicted', evicted = (SELECT count(*) FROM request WHERE state = 6 AND state > 0) FROM service UNION ALL
    SELECT 'dead', dead = (SELECT count(*) FROM request WHERE state = 7 AND state > 0) FROM service UNION ALL
    SELECT 'ready', ready = (SELECT count(*) FROM request WHERE state = 0 AND deferred = 0) FROM service UNION ALL
    SELECT 'next_seq', next_seq > (SELECT coalesce(max(seq), 0) FROM request) FROM service UNION ALL
    SELECT 'backlog_bytes', backlog_bytes = (SELECT coalesce(sum(body_bytes), 0) FROM request WHERE state < 3)
        FROM service UNION ALL
    SELECT 'answer_bytes', answer_bytes = (SELECT coalesce(sum(size), 0) FROM answer) FROM service UNION ALL
    SELECT 'kept_bytes', kept_bytes = (SELECT coalesce(sum(body_bytes), 0) FROM request WHERE body_kept = 1)
        + (SELECT coalesce(sum(size), 0) FROM answer) FROM service";

fn wrong_counters(conn: &Connection) -> Result<Vec<String>, SpoolError> {
    let mut statement = conn.prepare(COUNTERS)?;
    let rows = statement.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, bool>(1)?)))?;
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    Ok(rows.into_iter().filter(|(_, right)| !right).map(|(name, _)| name).collect())
}
