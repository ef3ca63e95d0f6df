//! Taking a request in: idempotency, limits, making room, the rows.
//!
//! Owns the answer to "does it fit"; never looks into a body.

use std::path::Path;
use std::sync::LazyLock;

use rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, params, params_from_iter};

use super::codes::{num, policy_code, sql, state_code};
use super::device::Use;
use super::files::{self, Staged};
use super::record::{Accepted, NewRequest};
use super::store::{FOR_EVER, Place, Standing, Store};
use super::{SpoolError, device, sources, store, sum, sweep};
use crate::clock;
use crate::control::types::{Policy, State};
use crate::plant::{self, Fault};

/// How long a reading of the free space is believed; what is accepted meanwhile is subtracted.
const FREE_VALID_MS: u128 = 1_000;
/// Finished requests pruned for one acceptance: enough for a large body, bounded for the others in the batch.
const PRUNE_MAX: u32 = 64;

/// The latest reading of the file system's free bytes.
#[derive(Debug, Default)]
pub(super) struct FreeSpace {
    read_at_ms: Option<u128>,
    bytes: u64,
}

impl FreeSpace {
    /// Whether the file system has its reserve, read anew.
    pub(super) fn is_fine(dir: &Path, floor: u64) -> bool {
        files::free_bytes(dir).is_ok_and(|free| free >= floor)
    }

    fn take(&mut self, dir: &Path, size: u64, floor: u64) -> Result<(), SpoolError> {
        let now = clock::since_boot().as_millis();
        let too_little = self.bytes.saturating_sub(size) < floor;
        // Nobody is refused by an old reading: there may be room again.
        if too_little || self.read_at_ms.is_none_or(|at| now.saturating_sub(at) >= FREE_VALID_MS) {
            self.bytes = files::free_bytes(dir)?;
            self.read_at_ms = Some(now);
        }
        let left = self.bytes.saturating_sub(size);
        if left < floor {
            return Err(SpoolError::DiskFull);
        }
        self.bytes = left;
        Ok(())
    }
}

/// Stores a request, or finds the one its idempotency key names. Most are new, of a known source, and fit: these need no
/// savepoint, because they write only once that is certain.
pub(super) fn accept(store: &mut Store, new: &NewRequest, file: Option<Staged>) -> Result<Accepted, SpoolError> {
    if plant::is(Fault::SpoolHangs) {
        plant::hang();
    }
    let is_plain = new.device.is_none() && new.idempotency_key.is_none() && !is_full(store, new.body.len());
    match known_source(store, &new.source)? {
        Some(source_id) if is_plain => add(store, source_id, new, None, file),
        known => store.guarded(|store| find_or_add(store, known, new, file)),
    }
}

fn find_or_add(
    store: &mut Store,
    source_id: Option<i64>,
    new: &NewRequest,
    file: Option<Staged>,
) -> Result<Accepted, SpoolError> {
    let source_id = source_id.map_or_else(|| sources::number(store, &new.source), Ok)?;
    let key = match &new.device {
        None => match known(store, source_id, new)? {
            Some(known) => return Ok(known),
            None => new.idempotency_key.clone(),
        },
        Some(device) => match device::look_up(store, source_id, device)? {
            Use::Known(known) => return Ok(known),
            Use::New(key) => Some(key),
        },
    };
    add(store, source_id, new, key.as_deref(), file)
}

fn add(
    store: &mut Store,
    source_id: i64,
    new: &NewRequest,
    key: Option<&str>,
    file: Option<Staged>,
) -> Result<Accepted, SpoolError> {
    if new.leased && !has_answer_room(store)? {
        return Err(SpoolError::DiskFull);
    }
    make_room(store, source_id, new)?;
    let seq = insert(store, source_id, new, key, file.as_ref())?;
    let mailbox = match (&new.device, key) {
        (Some(device), Some(key)) => device::note(store, source_id, device, key, seq)?,
        _ => None,
    };
    store.effects.accepted.push(store::Accepted { seq, mailbox });
    if let Some(file) = file {
        file.keep();
    }
    Ok(Accepted { id: new.id.clone(), seq, existing: false, finished: false })
}

/// Names of sources that are remembered; most gateways have fewer.
const SOURCES_MAX: usize = 1_024;

/// The number of a source that needs no making and no mending. Callers are mostly the same few.
fn known_source(store: &mut Store, name: &str) -> Result<Option<i64>, SpoolError> {
    if let Some(id) = store.asked.sources.get(name) {
        return Ok(Some(*id));
    }
    let known = sources::known(&store.conn, name)?;
    if let Some(id) = known {
        if store.asked.sources.len() >= SOURCES_MAX {
            store.asked.sources.clear();
        }
        store.asked.sources.insert(name.to_owned(), id);
    }
    Ok(known)
}

/// The request that a key stands for: of this source, and with this body.
pub(super) fn find_keyed(store: &mut Store, new: &NewRequest) -> Result<Option<Accepted>, SpoolError> {
    match known_source(store, &new.source)? {
        Some(source_id) => known(store, source_id, new),
        None => Ok(None),
    }
}

fn known(store: &Store, source_id: i64, new: &NewRequest) -> Result<Option<Accepted>, SpoolError> {
    let Some(key) = &new.idempotency_key else { return Ok(None) };
    let text = "SELECT seq, id, body_hash FROM request WHERE source_id = ?1 AND idempotency_key = ?2";
    let found = store
        .conn
        .prepare_cached(text)?
        .query_row(params![source_id, key], |r| Ok((num(r.get(0)?), r.get(1)?, r.get::<_, Vec<u8>>(2)?)))
        .optional()?;
    match found {
        None => {
            let same = sources::keyed_by_nobody(&store.conn, key, &new.body.hash())?;
            Ok(same.map(|(seq, id)| Accepted { id, seq, existing: true, finished: false }))
        }
        Some((seq, id, hash)) if hash == new.body.hash() => {
            Ok(Some(Accepted { id, seq, existing: true, finished: false }))
        }
        Some(_) => Err(SpoolError::KeyReused),
    }
}

/// Finished requests go first, then less urgent ones where that is wanted; else the request is refused.
fn make_room(store: &mut Store, source_id: i64, new: &NewRequest) -> Result<(), SpoolError> {
    let size = new.body.len();
    check_source(store, source_id)?;
    let options = store.options.clone();
    store.free.take(&options.data_dir, size, options.min_disk_free)?;
    if !has_room(store, size)? {
        return Err(SpoolError::DiskFull);
    }
    if size > options.max_bytes {
        return Err(SpoolError::QueueFull);
    }
    sweep::prune_to(store, options.max_bytes - size, PRUNE_MAX)?;
    while is_full(store, size) {
        let victim = if options.evict_when_full { victim(store, i64::from(new.priority.rank()))? } else { None };
        let row = victim.ok_or(SpoolError::QueueFull)?;
        store.end_untold(&row, State::Evicted, "queue_full")?;
        store.drop_body(&row)?;
    }
    Ok(())
}

/// Bytes below the page cap that new requests leave to outcomes: a window of 16 answers of up to 64 KiB each, which is
/// where an answer becomes a file.
const BYTES_KEPT: u64 = 1 << 20;
/// Beside its body a request takes so much in rows and in entries of indexes, a split page here and there included.
const BESIDE_BYTES: u64 = 4096;

/// Whether the page cap has room for a body and for the outcomes of those accepted before. SQLite compiles such a
/// question each time, so a batch asks once and counts what it takes.
fn has_room(store: &mut Store, size: u64) -> Result<bool, SpoolError> {
    let wanted = size.min(files::INLINE_MAX as u64) + BESIDE_BYTES;
    if let Some(left) = store.asked.room.and_then(|room| room.checked_sub(wanted)) {
        store.asked.room = Some(left);
        return Ok(true);
    }
    let ask = |text: &str| store.conn.prepare_cached(text)?.query_row([], |r| r.get(0).map(num));
    let (cap, page_size) = match store.asked.page_cap {
        Some(known) => known,
        None => (ask("PRAGMA max_page_count")?, ask("PRAGMA page_size")?),
    };
    let mut free = cap.saturating_sub(ask("PRAGMA page_count")?) * page_size;
    if free < wanted.saturating_add(BYTES_KEPT) {
        // The list of free pages is asked only where it matters.
        free = free.saturating_add(ask("PRAGMA freelist_count")? * page_size);
    }
    store.asked.page_cap = Some((cap, page_size));
    store.asked.room = free.checked_sub(wanted.saturating_add(BYTES_KEPT));
    Ok(store.asked.room.is_some())
}

/// The most an answer takes beside its request, and a reserve for the log; as a file it is at most this large too
/// in nearly every case, and where it is not, the ballast is there.
const ANSWER_ROOM: u64 = 256 << 10;

/// Whether an outcome of one more attempt finds room, most of the ballast's included.
pub(super) fn has_answer_room(store: &Store) -> Result<bool, SpoolError> {
    let attempts = store.held.len() as u64 + store.effects.held.len() as u64 + 1;
    let space = files::space(&store.options.data_dir)?;
    let log_bytes = files::wal(&store.options.data_dir).metadata().map_or(0, |log| log.len());
    Ok(store.ballast.for_answers(&space, log_bytes) >= attempts.saturating_mul(ANSWER_ROOM))
}

pub(super) fn is_full(store: &Store, size: u64) -> bool {
    store.counts.unfinished() >= store.options.max_requests
        || store.counts.kept_bytes.saturating_add(size) > store.options.max_bytes
}

pub(super) fn check_source(store: &Store, source_id: i64) -> Result<(), SpoolError> {
    let is_full = store.lanes.unfinished_of(source_id) >= store.options.per_source_backlog;
    if is_full { Err(SpoolError::SourceFull) } else { Ok(()) }
}

/// The oldest waiting request of the lowest priority below `above`; at most three look-ups.
fn victim(store: &Store, above: i64) -> Result<Option<Standing>, SpoolError> {
    for priority in ((above + 1)..=3).rev() {
        let (behind, from) = store.rescue.behind.bounds();
        let mut find = store.conn.prepare_cached(VICTIM)?;
        let seq: Option<i64> = find.query_row(params![priority, from, behind], |r| r.get(0)).optional()?;
        if let Some(seq) = seq {
            return store.by_seq(num(seq));
        }
    }
    Ok(None)
}

pub(super) const VICTIM: &str = "SELECT seq FROM request INDEXED BY request_queued
    WHERE state = 0 AND priority = ?1 AND seq >= ?2 AND seq NOT IN (SELECT value FROM json_each(?3))
    ORDER BY seq LIMIT 1";

/// Its columns are those that are summed, in their order, and the sum.
static INSERT: LazyLock<String> = LazyLock::new(|| {
    let places = vec!["?"; sum::REQUEST.len()].join(", ");
    format!("INSERT INTO request ({}, sum) VALUES ({places}, ?)", sum::REQUEST.join(", "))
});

/// What a new row has beside the request itself.
struct Entry<'a> {
    seq: u64,
    body_hash: &'a [u8],
    source_id: i64,
    state: State,
    key: Option<&'a str>,
    file: Option<&'a str>,
    local_only: bool,
    /// Powered-on milliseconds.
    now: u64,
}

/// A new row, column by column, as it is summed.
fn row<'a>(new: &'a NewRequest, entry: &Entry<'a>) -> [(&'static str, ValueRef<'a>); sum::REQUEST.len()] {
    let int = ValueRef::Integer;
    let text = |text: Option<&'a str>| text.map_or(ValueRef::Null, ValueRef::from);
    let mark = new.device.as_ref();
    let task = mark.and_then(|d| device::code_of(d.ask)).or(new.task.map(i64::from));
    [
        ("seq", int(sql(entry.seq))),
        ("id", text(Some(&new.id))),
        ("source_id", int(entry.source_id)),
        ("state", int(state_code(entry.state))),
        ("priority", int(new.priority.rank().into())),
        ("deferred", int(if entry.local_only { FOR_EVER } else { 0 })),
        ("attempts", int(0)),
        ("maybe_billed", int(new.maybe_billed.into())),
        ("accepted_at", int(sql(entry.now))),
        ("expires_at", int(sql(entry.now.saturating_add(new.ttl_ms)))),
        ("ended_at", int(0)),
        ("created_unix_ms", int(sql(clock::unix_ms()))),
        ("ttl_ms", int(sql(new.ttl_ms))),
        ("policy", int(policy_code(new.policy))),
        ("endpoint", text(Some(&new.endpoint))),
        ("model", text(Some(&new.model))),
        ("label", text(new.label.as_deref())),
        ("idempotency_key", text(entry.key)),
        ("body_bytes", int(sql(new.body.len()))),
        ("body_hash", ValueRef::Blob(entry.body_hash)),
        ("body_kept", int(1)),
        ("body_file", text(entry.file)),
        ("reason", ValueRef::Null),
        ("error_kind", ValueRef::Null),
        ("error_message", ValueRef::Null),
        ("content", mark.map_or(ValueRef::Null, |d| ValueRef::Blob(&d.content))),
        ("handover", int(mark.is_some_and(|d| d.wants_result).into())),
        ("task", task.map_or(ValueRef::Null, int)),
        ("max_reply", int(mark.map_or(0, |d| d.max_reply.into()))),
        ("version", int(0)),
    ]
}

fn insert(
    store: &mut Store,
    source_id: i64,
    new: &NewRequest,
    key: Option<&str>,
    file: Option<&Staged>,
) -> Result<u64, SpoolError> {
    let seq = store.counts.next_seq;
    let state = if new.leased { State::Sending } else { State::Queued };
    let size = new.body.len();
    let local_only = new.device.is_some() && new.policy == Policy::Local;
    let (seq_sql, rank) = (sql(seq), i64::from(new.priority.rank()));
    let (now, name) = (store.powered.now_ms(), file.map(Staged::name));
    let body_hash = new.body.hash();
    let row = row(new, &Entry { seq, body_hash: &body_hash, source_id, state, key, file: name, local_only, now });
    debug_assert!(row.iter().map(|(name, _)| *name).eq(sum::REQUEST), "a row is summed in the table's order");
    let sum = sum::of(row.iter().map(|(_, value)| *value));
    let values = row.iter().map(|(_, value)| *value).chain([ValueRef::Blob(&sum)]);
    let inserted = store.conn.prepare_cached(&INSERT)?.execute(params_from_iter(values.map(ToSqlOutput::Borrowed)));
    inserted.map_err(|error| match error.sqlite_error().map(|known| known.extended_code) {
        Some(SQLITE_CONSTRAINT_FOREIGNKEY) => sources::gone(),
        _ => error.into(),
    })?;
    // SQLite takes a refused row back by itself; a failure from here on would leave half a request.
    store.wrote();
    if file.is_none() {
        // Whatever is no file is small, and small bodies are one piece.
        let bytes = new.body.in_one_piece().unwrap_or_default();
        store.conn.prepare_cached("INSERT INTO body VALUES (?1, ?2)")?.execute(params![seq_sql, &bytes[..]])?;
    }
    store.counts.next_seq += 1;
    store.counts.kept_bytes += size;
    if new.leased {
        store.effects.held.push(seq);
    }
    store.enter(&Place { source_id, priority: rank, body_bytes: size }, state, !new.leased && !local_only);
    Ok(seq)
}
