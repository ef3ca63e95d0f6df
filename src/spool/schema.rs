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
/// SQLite's own default; fixed here because the page cap counts in it.
const PAGE_SIZE: u64 = 4096;
/// What the rows and index entries of one request take, rounded up: 8 index entries and 3 rows.
const ROW_BYTES: u64 = 2048;
/// Slack of the page cap, so that it stops a runaway and never ordinary work.
const HEADROOM_BYTES: u64 = 64 << 20;
/// Versions in order; each runs in one transaction.
pub(super) const MIGRATIONS: [&str; 2] = [V1, V2];
/// The newest version this program knows.
pub(super) const KNOWN: u32 = MIGRATIONS.len() as u32;

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

/// Version 2: versions and sums of rows, pauses that outlive a restart, the latest believable wall time.
/// `version` grows with every change of a row, so that of two copies the newer is known; `sum` is that of `sum.rs`.
pub(super) const V2: &str = "
ALTER TABLE request ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE request ADD COLUMN sum BLOB NOT NULL DEFAULT x'';
ALTER TABLE answer ADD COLUMN sum BLOB NOT NULL DEFAULT x'';
ALTER TABLE source ADD COLUMN sum BLOB NOT NULL DEFAULT x'';
ALTER TABLE service ADD COLUMN unix_floor INTEGER NOT NULL DEFAULT 0;
CREATE TABLE pause (
  uplink TEXT NOT NULL, model TEXT NOT NULL, block TEXT NOT NULL, step INTEGER NOT NULL,
  until_ms INTEGER NOT NULL, PRIMARY KEY (uplink, model)
) STRICT, WITHOUT ROWID;
";

/// Opens the database and brings it to the newest version; refuses what is foreign or newer, untouched.
pub(super) fn connect(path: &Path, options: &Options) -> Result<Connection, SpoolError> {
    refuse_by_header(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags)?;
    // Exclusive before anything is read: no -shm file, and a start needs no free byte on the disk.
    ask(&conn, "locking_mode=EXCLUSIVE")?;
    refuse_by_pragma(&conn)?;
    prepare(&conn, options)?;
    sum::register(&conn)?;
    migrate::run(&mut conn, path)?;
    sum::watch(&conn)?;
    Ok(conn)
}

/// Reads the version from the file itself, before SQLite could change anything.
fn refuse_by_header(path: &Path) -> Result<(), SpoolError> {
    let mut header = [0u8; 100];
    let Ok(mut file) = std::fs::File::open(path) else { return Ok(()) };
    if std::io::Read::read_exact(&mut file, &mut header).is_err() {
        return Ok(());
    }
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    refuse(word(68), word(60))
}

/// The same once more through SQLite: the newer version may stand in the WAL only.
fn refuse_by_pragma(conn: &Connection) -> Result<(), SpoolError> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let application: i64 = conn.query_row("PRAGMA application_id", [], |r| r.get(0))?;
    let version: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    refuse(application as u32, version as u32)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    Ok(())
}

fn refuse(application: u32, version: u32) -> Result<(), SpoolError> {
    if application != APPLICATION_ID && (application != 0 || version != 0) {
        return Err(SpoolError::Storage("spool.db belongs to another program; it was left untouched".into()));
    }
    if version > KNOWN {
        return Err(SpoolError::Newer { found: version, known: KNOWN });
    }
    Ok(())
}

fn prepare(conn: &Connection, options: &Options) -> Result<(), SpoolError> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    ask(conn, &format!("page_size={PAGE_SIZE}"))?;
    expect(conn, "journal_mode=WAL", "wal")?;
    ask(conn, "synchronous=FULL")?;
    expect(conn, "synchronous", "2")?;
    if plant::is(Fault::SynchronousNormal) {
        ask(conn, "synchronous=NORMAL")?;
    }
    ask(conn, "wal_autocheckpoint=1000")?;
    ask(conn, "journal_size_limit=4194304")?;
    ask(conn, "secure_delete=ON")?;
    ask(conn, "cell_size_check=ON")?;
    ask(conn, "trusted_schema=OFF")?;
    ask(conn, "foreign_keys=ON")?;
    ask(conn, "mmap_size=0")?;
    ask(conn, "temp_store=MEMORY")?;
    ask(conn, &format!("max_page_count={}", page_cap(options)))?;
    conn.set_prepared_statement_cache_capacity(96);
    Ok(())
}

/// Bytes of bodies, plus a quarter for page slack, plus the rows of finished and unfinished requests.
fn page_cap(options: &Options) -> i64 {
    let rows = options.max_requests.saturating_mul(2 * ROW_BYTES);
    let bytes = options.max_bytes.saturating_add(options.max_bytes / 4).saturating_add(rows);
    // SQLite's own ceiling is 2^32 - 2 pages.
    sql(bytes.saturating_add(HEADROOM_BYTES) / PAGE_SIZE).min(0xffff_fffe)
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

fn expect(conn: &Connection, pragma: &str, wanted: &str) -> Result<(), SpoolError> {
    match ask(conn, pragma)? {
        Some(answer) if answer == wanted => Ok(()),
        answer => {
            let got = answer.unwrap_or_default();
            Err(SpoolError::Storage(format!("PRAGMA {pragma} answered '{got}' and not '{wanted}'")))
        }
    }
}
