//! Taking a request in: idempotency, limits, making room, the rows.
//!
//! Owns the answer to "does it fit"; never looks into a body.

use std::path::Path;

use rusqlite::{OptionalExtension, params};

use super::codes::{num, policy_code, sql, state_code};
use super::device::Use;
use super::files::{self, Staged};
use super::record::{Accepted, NewRequest};
use super::store::{FOR_EVER, Place, Standing, Store};
use super::{SpoolError, device, sources, store, sweep};
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

/// Stores a request, or finds the one its idempotency key names.
pub(super) fn accept(store: &mut Store, new: &NewRequest, file: Option<Staged>) -> Result<Accepted, SpoolError> {
    if plant::is(Fault::SpoolHangs) {
        plant::hang();
    }
    let source_id = sources::number(&store.conn, &new.source)?;
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
    if new.leased && !has_answer_room(store)? {
        return Err(SpoolError::DiskFull);
    }
    make_room(store, source_id, new)?;
    let seq = insert(store, source_id, new, key.as_deref(), file.as_ref())?;
    let mailbox = match (&new.device, &key) {
        (Some(device), Some(key)) => device::note(store, source_id, device, key, seq)?,
        _ => None,
    };
    store.effects.accepted.push(store::Accepted { seq, mailbox });
    if let Some(file) = file {
        file.keep();
    }
    Ok(Accepted { id: new.id.clone(), seq, existing: false, finished: false })
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
            let same = sources::keyed_by_nobody(&store.conn, key, &new.body_hash)?;
            Ok(same.map(|(seq, id)| Accepted { id, seq, existing: true, finished: false }))
        }
        Some((seq, id, hash)) if hash == new.body_hash => {
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
    if !has_pages(store, size)? {
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

/// Pages of the cap that new requests leave to outcomes: a window of 16 answers of up to 64 KiB each, which is
/// where an answer becomes a file.
const PAGES_KEPT: u64 = 256;

/// Whether the page cap has room for a body and for the outcomes of those accepted before.
fn has_pages(store: &Store, size: u64) -> Result<bool, SpoolError> {
    let ask = |text: &str| store.conn.prepare_cached(text)?.query_row([], |r| r.get(0).map(num));
    let (cap, used) = (ask("PRAGMA max_page_count")?, ask("PRAGMA page_count")?);
    let wanted = (size.min(files::INLINE_MAX as u64) / 4096).saturating_add(PAGES_KEPT);
    // The list of free pages is asked only where it matters.
    Ok(used.saturating_add(wanted) <= cap || used.saturating_add(wanted) <= cap + ask("PRAGMA freelist_count")?)
}

/// The most an answer takes beside its request, and a reserve for the log; as a file it is at most this large too
/// in nearly every case, and where it is not, the ballast is there.
const ANSWER_ROOM: u64 = 256 << 10;

/// Whether an outcome of one more attempt finds room, the ballast's included.
pub(super) fn has_answer_room(store: &Store) -> Result<bool, SpoolError> {
    let attempts = store.held.len() as u64 + store.effects.held.len() as u64 + 1;
    let free = files::free_bytes(&store.options.data_dir)?;
    Ok(free.saturating_add(store.ballast.bytes()) >= attempts.saturating_mul(ANSWER_ROOM))
}

pub(super) fn is_full(store: &Store, size: u64) -> bool {
    store.counts.unfinished() >= store.options.max_requests
        || store.counts.kept_bytes.saturating_add(size) > store.options.max_bytes
}

pub(super) fn check_source(store: &Store, source_id: i64) -> Result<(), SpoolError> {
    let mut find = store.conn.prepare_cached("SELECT unfinished FROM source WHERE source_id = ?1")?;
    let unfinished = num(find.query_row([source_id], |r| r.get(0))?);
    if unfinished >= store.options.per_source_backlog { Err(SpoolError::SourceFull) } else { Ok(()) }
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

const INSERT: &str = "INSERT INTO request (seq, id, source_id, state, priority, attempts, maybe_billed,
    accepted_at, expires_at, ended_at, created_unix_ms, ttl_ms, policy, endpoint, model, label, idempotency_key,
    body_bytes, body_hash, body_kept, body_file, deferred, content, handover, task, max_reply)
    VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8, 0, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, 1, ?18, ?19, ?20, ?21, ?22, ?23)";

fn insert(
    store: &mut Store,
    source_id: i64,
    new: &NewRequest,
    key: Option<&str>,
    file: Option<&Staged>,
) -> Result<u64, SpoolError> {
    let seq = store.counts.next_seq;
    let state = if new.leased { State::Sending } else { State::Queued };
    let now = store.powered.now_ms();
    let size = new.body.len();
    let mark = new.device.as_ref();
    let local_only = mark.is_some() && new.policy == Policy::Local;
    let (seq_sql, rank) = (sql(seq), i64::from(new.priority.rank()));
    store.conn.prepare_cached(INSERT)?.execute(params![
        seq_sql,
        new.id,
        source_id,
        state_code(state),
        rank,
        new.maybe_billed,
        sql(now),
        sql(now.saturating_add(new.ttl_ms)),
        sql(clock::unix_ms()),
        sql(new.ttl_ms),
        policy_code(new.policy),
        new.endpoint,
        new.model,
        new.label,
        key,
        sql(size),
        new.body_hash.as_slice(),
        file.map(Staged::name),
        if local_only { FOR_EVER } else { 0 },
        mark.map(|d| d.content.as_slice()),
        i64::from(mark.is_some_and(|d| d.wants_result)),
        mark.and_then(|d| device::code_of(d.ask)).or(new.task.map(i64::from)),
        mark.map_or(0, |d| d.max_reply),
    ])?;
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
    store.enter(&Place { source_id, priority: rank, body_bytes: size }, state, !new.leased && !local_only)?;
    Ok(seq)
}
