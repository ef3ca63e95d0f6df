//! The database's shape: pragmas, versions, migrations.
//!
//! Owns the SQL text that old devices have on disk; a released version is never edited, only followed by
//! another. Never reads or writes a request.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::codes::sql;
use super::{Options, SpoolError, migrate, sum};
use crate::plant::{self, Fault};

/// "hfst" in the database's header: what tells a spool from somebody else's file.
pub(super) const APPLICATION_ID: u32 = 0x6866_7374;
/// What every SQLite database begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Bytes of a page: of a new file, and of one that an earlier version made, which keeps its own. A commit writes each page that
/// it touches whole, and most of them for one entry of an index: small ones are half the wear (docs/benchmarks.md).
pub(super) const PAGE_SIZES: [u64; 2] = [1024, 4096];
/// How long the log grows before it is folded in, as SQLite has it for pages of 4 KiB.
const LOG_BYTES: u64 = 4_096_000;
/// What the rows and index entries of one request take, rounded up: 7 index entries and 3 rows.
const ROW_BYTES: u64 = 2048;
/// Slack of the page cap, so that it stops a runaway and never ordinary work.
const HEADROOM_BYTES: u64 = 64 << 20;
/// Versions in order; those that are due run in one transaction. Each changes a table, by which a version is told from a flipped
/// bit ([`IS_NEWEST`] says it of the last). The copy that is kept of each (`migrate::keep`) is among what
/// `supervisor/reset.rs` removes.
pub(super) const MIGRATIONS: [&str; 3] = [V1, V2, V3];
/// The newest version this program knows.
pub(super) const KNOWN: u32 = MIGRATIONS.len() as u32;

/// The version whose rows have sums first.
pub(super) const FIRST_WITH_SUMS: u32 = 2;

/// Version 1. `state`: see `codes.rs`; final is `state >= 3`. `deferred` holds the start (`service.starts`)
/// in which a row was deferred, 0 where it is not. Bytes live apart from `request`, because SQLite rewrites a
/// whole row whenever a part of it changes.
pub(super) const V1: &str = "
CREATE TABLE service (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  boot_id TEXT NOT NULL, boot_ms INTEGER NOT NULL, powered_ms INTEGER NOT NULL,
  starts INTEGER NOT NULL, next_seq INTEGER NOT NULL, turn INTEGER NOT NULL,
  queued INTEGER NOT NULL, sending INTEGER NOT NULL, unknown INTEGER NOT NULL, answered INTEGER NOT NULL,
  expired INTEGER NOT NULL, cancelled INTEGER NOT NULL, evicted INTEGER NOT NULL, dead INTEGER NOT NULL,
  ready INTEGER NOT NULL, backlog_bytes INTEGER NOT NULL, kept_bytes INTEGER NOT NULL,
  answer_bytes INTEGER NOT NULL
) STRICT;
INSERT INTO service VALUES (1, '', 0, 0, 0, 1, 0, 0,0,0,0, 0,0,0,0, 0,0,0, 0);
CREATE TABLE source (
  source_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, unfinished INTEGER NOT NULL
) STRICT;
CREATE TABLE lane (
  priority INTEGER NOT NULL, source_id INTEGER NOT NULL REFERENCES source,
  ready INTEGER NOT NULL, served INTEGER NOT NULL, PRIMARY KEY (priority, source_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX lane_turn ON lane (priority, served, source_id) WHERE ready > 0;
CREATE TABLE request (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, source_id INTEGER NOT NULL REFERENCES source,
  state INTEGER NOT NULL, priority INTEGER NOT NULL, deferred INTEGER NOT NULL,
  attempts INTEGER NOT NULL, maybe_billed INTEGER NOT NULL,
  accepted_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, ended_at INTEGER NOT NULL,
  created_unix_ms INTEGER NOT NULL, ttl_ms INTEGER NOT NULL,
  policy INTEGER NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL, label TEXT,
  idempotency_key TEXT, body_bytes INTEGER NOT NULL, body_hash BLOB NOT NULL,
  body_kept INTEGER NOT NULL, body_file TEXT,
  reason TEXT, error_kind TEXT, error_message TEXT
) STRICT;
CREATE UNIQUE INDEX request_key ON request (source_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX request_file ON request (body_file) WHERE body_file IS NOT NULL;
CREATE INDEX request_state ON request (state, seq);
CREATE INDEX request_source ON request (source_id, state, seq);
CREATE INDEX request_ready ON request (priority, source_id, seq) WHERE state = 0 AND deferred = 0;
CREATE INDEX request_queued ON request (priority, seq, deferred) WHERE state = 0;
CREATE INDEX request_deferred ON request (deferred) WHERE state = 0 AND deferred > 0;
CREATE INDEX request_expiry ON request (expires_at) WHERE state = 0;
CREATE INDEX request_ended ON request (ended_at) WHERE state >= 3;
CREATE TABLE body (seq INTEGER PRIMARY KEY REFERENCES request, bytes BLOB NOT NULL) STRICT;
CREATE TABLE answer (
  seq INTEGER NOT NULL REFERENCES request, local INTEGER NOT NULL,
  uplink TEXT NOT NULL, model TEXT NOT NULL, status INTEGER NOT NULL, content_type TEXT NOT NULL,
  latency_ms INTEGER NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER,
  at_unix_ms INTEGER NOT NULL, size INTEGER NOT NULL, hash BLOB NOT NULL, bytes BLOB, file TEXT,
  PRIMARY KEY (seq, local)
) STRICT;
CREATE UNIQUE INDEX answer_file ON answer (file) WHERE file IS NOT NULL;
";

/// Version 2: what a device's request carries, versions and sums of rows, pauses that outlive a restart, the latest
/// believable wall time. `content` is the hash of what a device sent, null for all others; `handover`: 0 nobody waits
/// for the result, 1 a device does, 2 it has it. A finished request that a device waits for is in another index than
/// the others, because it goes by time only. `device_key` and `device_epoch` are what is left of pruned requests.
/// `version` grows with every change of a row, so that of two copies the newer is known; `sum` is that of `sum.rs`.
pub(super) const V2: &str = "
ALTER TABLE request ADD COLUMN content BLOB;
ALTER TABLE request ADD COLUMN handover INTEGER NOT NULL DEFAULT 0;
ALTER TABLE request ADD COLUMN task INTEGER;
ALTER TABLE request ADD COLUMN max_reply INTEGER NOT NULL DEFAULT 0;
ALTER TABLE request ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE request ADD COLUMN sum BLOB NOT NULL DEFAULT x'';
ALTER TABLE answer ADD COLUMN sum BLOB NOT NULL DEFAULT x'';
ALTER TABLE source ADD COLUMN sum BLOB NOT NULL DEFAULT x'';
ALTER TABLE service ADD COLUMN unix_floor INTEGER NOT NULL DEFAULT 0;
CREATE TABLE pause (
  uplink TEXT NOT NULL, model TEXT NOT NULL, block TEXT NOT NULL, step INTEGER NOT NULL,
  until_ms INTEGER NOT NULL, PRIMARY KEY (uplink, model)
) STRICT, WITHOUT ROWID;
DROP INDEX request_ended;
CREATE INDEX request_ended ON request (ended_at) WHERE state >= 3 AND handover <> 1;
CREATE INDEX request_undelivered ON request (ended_at) WHERE state >= 3 AND handover = 1;
CREATE INDEX request_owed ON request (source_id, label, seq) WHERE handover = 1;
CREATE TABLE device_key (
  source_id INTEGER NOT NULL REFERENCES source, key TEXT NOT NULL, until_ms INTEGER NOT NULL,
  PRIMARY KEY (source_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_key_until ON device_key (until_ms);
CREATE TABLE device_epoch (
  source_id INTEGER NOT NULL REFERENCES source, uid TEXT NOT NULL, epoch INTEGER NOT NULL,
  highest INTEGER NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (source_id, uid, epoch)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_epoch_at ON device_epoch (at_ms);
CREATE TABLE mailbox (
  source_id INTEGER NOT NULL REFERENCES source, uid TEXT NOT NULL, slot INTEGER NOT NULL,
  last INTEGER NOT NULL, turn INTEGER NOT NULL, request INTEGER NOT NULL, PRIMARY KEY (source_id, uid, slot)
) STRICT, WITHOUT ROWID;
";

/// Version 3: less to write for each commit. What can be counted when the file is opened is counted then (`lanes.rs`) and
/// kept in no table; a waiting request stands in the indexes of waiting ones and in no other.
pub(super) const V3: &str = "
DROP TABLE lane;
ALTER TABLE source DROP COLUMN unfinished;
DROP INDEX request_state;
CREATE INDEX request_state ON request (state, seq) WHERE state > 0;
DROP INDEX request_source;
CREATE INDEX request_source ON request (source_id, state, seq) WHERE state > 0;
CREATE INDEX request_aside ON request (source_id, seq, deferred) WHERE state = 0 AND deferred > 0;
";

/// Whether what the newest version took away is gone and what it brought is there.
const IS_NEWEST: &str = "SELECT group_concat(name) IS 'request_aside' FROM sqlite_schema
    WHERE name IN ('request_aside', 'lane')";

/// Opens the database and brings it to the newest version; refuses what is foreign or newer, untouched.
pub(super) fn connect(path: &Path, options: &Options) -> Result<Connection, SpoolError> {
    refuse_by_header(path)?;
    let had_log = path.with_extension("db-wal").metadata().is_ok_and(|log| log.len() > 0);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags)?;
    // Exclusive before anything is read: no -shm file, and a start needs no free byte on the disk.
    if !plant::is(Fault::ReaderLeftOpen) {
        set(&conn, "locking_mode", "EXCLUSIVE", "exclusive")?;
    }
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    if let Err(refused) = refuse(&conn) {
        // Looking alone leaves an empty log; with nothing to fold in, closing removes it and touches nothing else.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, had_log)?;
        return Err(refused);
    }
    prepare(&conn, options)?;
    sum::register(&conn)?;
    migrate::run(&mut conn, path)?;
    sum::watch(&conn)?;
    // Only a connection that is fit to be used may fold its log in when it closes.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    Ok(conn)
}

/// Reads the header from the file itself, before SQLite could change anything or be misled by it.
pub(super) fn refuse_by_header(path: &Path) -> Result<(), SpoolError> {
    let mut header = [0u8; 100];
    let Ok(mut file) = std::fs::File::open(path) else { return Ok(()) };
    if std::io::Read::read_exact(&mut file, &mut header).is_err() {
        return Ok(());
    }
    if &header[..16] != MAGIC {
        // Power that went while the log was folded in may have torn this page; the log still holds it whole.
        if path.with_extension("db-wal").metadata().is_ok_and(|log| log.len() > 0) {
            return Ok(());
        }
        return Err(SpoolError::Damaged("spool.db has no SQLite header".into()));
    }
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    judge(word(68), word(60))?;
    let page_size = u64::from(word(16) >> 16);
    let ours = [(20, &[0, 64, 32, 32][..]), (52, &[0; 4]), (64, &[0; 4]), (72, &[0; 20])];
    let fixed = ours.iter().all(|(at, bytes)| header[*at..].starts_with(bytes)) && PAGE_SIZES.contains(&page_size);
    // Before its first table a database says 0 where it says 4 (the schema's format) and 1 (UTF-8) afterwards.
    let fixed = fixed && matches!(header[18..20], [1, 1] | [2, 2]) && matches!(word(44), 0 | 4) && word(56) <= 1;
    if fixed { Ok(()) } else { Err(SpoolError::Damaged("the header of spool.db has flipped bits".into())) }
}

/// With one bit wrong, versions beyond this are damage and no program of the future.
const VERSION_MAX: u32 = 255;
/// So many bits of the application's mark may be wrong before the file is somebody else's.
const MARK_BITS: u32 = 4;

/// What the two numbers say by themselves.
fn judge(application: u32, version: u32) -> Result<(), SpoolError> {
    let wrong_bits = (application ^ APPLICATION_ID).count_ones();
    // One flipped bit makes a version of another; a number further away was written by a program that is newer than this one.
    let is_flip = (version ^ KNOWN).is_power_of_two();
    if version > KNOWN && !is_flip && application == APPLICATION_ID {
        return Err(SpoolError::Newer { found: version, known: KNOWN });
    }
    if version > VERSION_MAX || (1..=MARK_BITS).contains(&wrong_bits) || (version == 0 && wrong_bits == 0) {
        return Err(SpoolError::Damaged("the header of spool.db has flipped bits".into()));
    }
    if application != APPLICATION_ID && (application != 0 || version != 0) {
        return Err(foreign());
    }
    Ok(())
}

fn foreign() -> SpoolError {
    SpoolError::Storage("spool.db belongs to another program; it was left untouched".into())
}

/// Refuses what is foreign or newer. The newer version may stand in the log only, so SQLite is asked; it is believed
/// only where the tables are not those of a version known here, else the number is what is damaged.
pub(super) fn refuse(conn: &Connection) -> Result<(), SpoolError> {
    let number = |pragma: &str| conn.query_row(&format!("PRAGMA {pragma}"), [], |r| r.get::<_, i64>(0));
    let version = number("user_version")? as u32;
    judge(number("application_id")? as u32, version)?;
    if version == KNOWN {
        let is_so = conn.query_row(IS_NEWEST, [], |r| r.get(0))?;
        return if is_so { Ok(()) } else { Err(misnamed()) };
    }
    let found = tables(conn)?;
    let known = (0..=KNOWN).find(|version| tables_of(*version).is_ok_and(|tables| tables == found));
    match known {
        Some(known) if known == version => Ok(()),
        None if version > KNOWN => Err(SpoolError::Newer { found: version, known: KNOWN }),
        None if version == 0 => Err(foreign()),
        _ => Err(misnamed()),
    }
}

fn misnamed() -> SpoolError {
    SpoolError::Damaged("the version of spool.db is not that of its tables".into())
}

/// Tables and columns, in an order of their own.
fn tables(conn: &Connection) -> Result<Vec<(String, String)>, SpoolError> {
    let text = "SELECT m.name, c.name FROM sqlite_schema m, pragma_table_info(m.name) c
        WHERE m.type = 'table' ORDER BY m.name, c.cid";
    let mut statement = conn.prepare(text)?;
    let columns = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(columns.collect::<Result<_, _>>()?)
}

fn tables_of(version: u32) -> Result<Vec<(String, String)>, SpoolError> {
    let conn = Connection::open_in_memory()?;
    for text in &MIGRATIONS[..version as usize] {
        conn.execute_batch(text)?;
    }
    tables(&conn)
}

fn prepare(conn: &Connection, options: &Options) -> Result<(), SpoolError> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // Else a statement is compiled anew whenever a parameter could make another plan the better one.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    let page_size = page_size(conn)?;
    let (cap, log) = (page_cap(options, page_size).to_string(), (LOG_BYTES / page_size).to_string());
    set(conn, "journal_mode", "WAL", "wal")?;
    set(conn, "wal_autocheckpoint", &log, &log)?;
    for (pragma, value, answer) in PRAGMAS {
        set(conn, pragma, value, answer)?;
    }
    if plant::is(Fault::SynchronousNormal) {
        set(conn, "synchronous", "NORMAL", "1")?;
    }
    // A file that is larger already answers with its own size; growing is what the cap forbids.
    ask(conn, &format!("max_page_count={cap}"))?;
    conn.set_prepared_statement_cache_capacity(96);
    Ok(())
}

/// Asks for small pages, which a file that is there already does not take, and says what it has.
fn page_size(conn: &Connection) -> Result<u64, SpoolError> {
    ask(conn, &format!("page_size={}", PAGE_SIZES[0]))?;
    let has = ask(conn, "page_size")?.unwrap_or_default();
    let known = PAGE_SIZES.into_iter().find(|size| size.to_string() == has);
    known.ok_or_else(|| {
        SpoolError::Storage(format!("spool.db has pages of {has} bytes, which no version of this program made"))
    })
}

/// What each connection is set to, and the answer that proves it.
const PRAGMAS: [(&str, &str, &str); 8] = [
    ("synchronous", "FULL", "2"),
    ("journal_size_limit", "4194304", "4194304"),
    ("secure_delete", "ON", "1"),
    ("cell_size_check", "ON", "1"),
    ("trusted_schema", "OFF", "0"),
    ("foreign_keys", "ON", "1"),
    ("mmap_size", "0", "0"),
    ("temp_store", "MEMORY", "2"),
];

/// Bytes of bodies, plus a quarter for page slack, plus the rows of finished and unfinished requests.
fn page_cap(options: &Options, page_size: u64) -> i64 {
    let rows = options.max_requests.saturating_mul(2 * ROW_BYTES);
    let bytes = options.max_bytes.saturating_add(options.max_bytes / 4).saturating_add(rows);
    // SQLite's own ceiling is 2^32 - 2 pages.
    sql(bytes.saturating_add(HEADROOM_BYTES) / page_size).min(0xffff_fffe)
}

/// Runs one pragma and returns its answer, if it has one.
fn ask(conn: &Connection, pragma: &str) -> Result<Option<String>, SpoolError> {
    let mut statement = conn.prepare(&format!("PRAGMA {pragma}"))?;
    let mut rows = statement.query([])?;
    Ok(rows.next()?.map(|row| row.get_ref(0).map(text)).transpose()?)
}

fn text(value: rusqlite::types::ValueRef<'_>) -> String {
    match value {
        rusqlite::types::ValueRef::Integer(n) => n.to_string(),
        other => other.as_str().unwrap_or_default().to_owned(),
    }
}

/// Sets one pragma and believes nothing but what it answers when asked again.
fn set(conn: &Connection, pragma: &str, value: &str, answer: &str) -> Result<(), SpoolError> {
    ask(conn, &format!("{pragma}={value}"))?;
    let got = ask(conn, pragma)?.unwrap_or_default();
    if got == answer {
        return Ok(());
    }
    Err(SpoolError::Storage(format!("PRAGMA {pragma}={value} has no effect here: it answers '{got}'")))
}
