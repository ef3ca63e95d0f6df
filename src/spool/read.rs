//! Looking at requests: one record, its bytes, listings, the tally.
//!
//! Owns the way from rows to records; never changes anything.

use rusqlite::{OptionalExtension, Row, params, params_from_iter};

use super::codes::{self, num, sql, state_code};
use super::record::{Filter, LastError, LocalAnswer, Record, Tally, UplinkAnswer, Usage};
use super::scrub::Wrong;
use super::store::Store;
use super::{SpoolError, sources, sum};
use crate::control::types::{Priority, State};

/// A position is counted up to here; beyond it the number helps nobody and costs time.
const POSITION_MAX: u32 = 10_000;
/// Records per listing: a page of 1,000, and the one that tells that there are more.
const LIST_MAX: u32 = 1_001;
/// Lines that requests wait in.
const PRIORITIES: usize = Priority::Low as usize + 1;
/// Rows looked at for [`attachable`].
const ATTACH_SCAN_MAX: u32 = 10_000;

/// Bytes that are in the database, or the file that holds them, with their checksum.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) inline: Option<Vec<u8>>,
    pub(super) file: Option<String>,
    pub(super) hash: Vec<u8>,
}

/// A record with its answers' bytes still apart.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) record: Record,
    /// Whether its rows are as they were written.
    whole: bool,
    /// Whether its source's row is.
    named: bool,
    pub(super) local: Option<Stored>,
    pub(super) uplink: Option<Stored>,
}

impl Found {
    /// What of it does not hold.
    pub(super) fn wrong(&self) -> Option<Wrong> {
        let seqs = if self.whole { Vec::new() } else { vec![self.record.seq] };
        (!self.whole || !self.named).then_some(Wrong { seqs, sources: !self.named })
    }
}

const RECORD: &str =
    "SELECT seq, id, state, reason, coalesce(name, 'lost:' || source_id), label, endpoint, model, priority, policy,
    created_unix_ms, expires_at, attempts, maybe_billed, body_bytes, body_hash, error_kind, error_message,
    source_id, task FROM request LEFT JOIN source USING (source_id)";

/// One request with everything that is kept of it.
pub(super) fn get(store: &Store, id: &str) -> Result<Option<Found>, SpoolError> {
    let mut statement = store.conn.prepare_cached(&format!("{RECORD} WHERE id = ?1"))?;
    let now = store.powered.now_ms();
    let read = |r: &Row<'_>| Ok((record(r, now), r.get::<_, i64>(18)?));
    let Some((record, source)) = statement.query_row([id], read).optional()? else { return Ok(None) };
    let record = record?;
    let whole = sum::holds(&store.conn, record.seq)? && sum::answers_hold(&store.conn, record.seq)?;
    // A damaged row may name a source that never was.
    let named = !whole || sources::holds(&store.conn, source)?;
    let mut found = Found { record, whole, named, local: None, uplink: None };
    found.record.position = position(store, &found.record)?;
    let record = &mut found.record;
    (record.local, found.local) = local(store, record.seq, true)?.unzip();
    (record.uplink, found.uplink) = uplink(store, record.seq, true)?.unzip();
    Ok(Some(found))
}

/// The same after it was set right; what is behind is shown when the salvage has spoken.
pub(super) fn get_mended(store: &Store, id: &str) -> Result<Option<Found>, SpoolError> {
    let found = get(store, id)?;
    if let Some(found) = found.as_ref().filter(|found| !found.whole) {
        store.rescue.behind.check(found.record.seq)?;
    }
    Ok(found)
}

pub(super) const BEFORE: &str = "SELECT count(*) FROM (SELECT deferred FROM request INDEXED BY request_queued
    WHERE state = 0 AND (priority, seq) < (?1, ?2) LIMIT ?3) WHERE deferred = 0";

/// As many rows behind a request as make it cheaper to count those than the ones before it.
const BEHIND_MAX: u32 = 256;

pub(super) const BEHIND: &str = "SELECT count(*), coalesce(sum(deferred = 0), 0) FROM (SELECT deferred FROM request
    INDEXED BY request_queued WHERE state = 0 AND priority = ?1 AND seq >= ?2 LIMIT ?3)";

/// A new request is told its place at once, so that one must not cost a walk along the whole backlog: where few
/// stand behind, the lanes say how many stand before.
fn position(store: &Store, record: &Record) -> Result<u64, SpoolError> {
    if record.state != State::Queued {
        return Ok(0);
    }
    let (rank, seq) = (i64::from(record.priority.rank()), sql(record.seq));
    let both = |r: &Row<'_>| Ok((r.get::<_, u32>(0)?, num(r.get(1)?)));
    let (seen, behind) = store.conn.prepare_cached(BEHIND)?.query_row(params![rank, seq, BEHIND_MAX], both)?;
    if seen == BEHIND_MAX {
        let place = params![rank, seq, POSITION_MAX];
        return Ok(num(store.conn.prepare_cached(BEFORE)?.query_row(place, |r| r.get(0))?));
    }
    let ready = store.lanes.ready_through(rank);
    Ok(ready.saturating_sub(behind).min(u64::from(POSITION_MAX)))
}

pub(super) const BETWEEN: &str = "SELECT count(*), coalesce(sum(deferred = 0), 0) FROM (SELECT deferred FROM request
    INDEXED BY request_queued WHERE state = 0 AND priority = ?1 AND seq >= ?2 AND seq < ?3 LIMIT ?4)";

/// The places of a listing's requests, which ascend by number: the first of each priority is looked for, from there on
/// only what stands between two of them is counted, so that a page costs about as much as a few single looks.
fn place(store: &Store, records: &mut [Record]) -> Result<(), SpoolError> {
    let mut lines: [Option<(u64, u64)>; PRIORITIES] = [None; PRIORITIES];
    let mut rows_left = u64::from(POSITION_MAX);
    for record in records.iter_mut().filter(|record| record.state == State::Queued) {
        let line = &mut lines[usize::from(record.priority.rank())];
        record.position = match *line {
            None => position(store, record)?,
            Some((seq, position)) => {
                let most = u64::from(POSITION_MAX).saturating_sub(position).min(rows_left);
                let gap = params![record.priority.rank(), sql(seq), sql(record.seq), sql(most)];
                let both = |r: &Row<'_>| Ok((num(r.get(0)?), num(r.get(1)?)));
                let (seen, ready) = store.conn.prepare_cached(BETWEEN)?.query_row(gap, both)?;
                rows_left -= seen;
                position + ready
            }
        };
        *line = Some((record.seq, record.position));
    }
    Ok(())
}

/// Where a request's own body is, while it is kept.
pub(super) fn body(store: &Store, id: &str) -> Result<Option<Stored>, SpoolError> {
    let text = "SELECT bytes, body_file, body_hash FROM request LEFT JOIN body USING (seq)
        WHERE id = ?1 AND body_kept = 1";
    let stored = |r: &Row<'_>| Ok(Stored { inline: r.get(0)?, file: r.get(1)?, hash: r.get(2)? });
    Ok(store.conn.prepare_cached(text)?.query_row([id], stored).optional()?)
}

/// Records in ascending order, answers without their bytes.
pub(super) fn list(store: &Store, filter: &Filter) -> Result<Vec<Record>, SpoolError> {
    let limit = filter.limit.min(LIST_MAX);
    let mut all = vec![sql(filter.after), i64::from(limit)];
    let text = match &filter.source {
        None => plain_list(filter.state),
        Some(name) => {
            let Some(id) = source_id(store, name)? else { return Ok(Vec::new()) };
            all.push(id);
            source_list(filter.state)
        }
    };
    let now = store.powered.now_ms();
    let mut statement = store.conn.prepare_cached(&text)?;
    let rows = statement.query_map(params_from_iter(all), |r| Ok(record(r, now)))?;
    let mut records = rows.map(|row| row?).collect::<Result<Vec<_>, SpoolError>>()?;
    place(store, &mut records)?;
    for record in &mut records {
        record.local = local(store, record.seq, false)?.map(|(a, _)| a);
        record.uplink = uplink(store, record.seq, false)?.map(|(a, _)| a);
    }
    Ok(records)
}

pub(super) fn plain_list(state: Option<State>) -> String {
    match state {
        None => format!("{RECORD} WHERE seq > ?1 ORDER BY seq LIMIT ?2"),
        Some(State::Queued) => merged(&by_priority("request_queued", "state = 0")),
        Some(state) => {
            let code = state_code(state);
            format!("{RECORD} WHERE state = {code} AND state > 0 AND seq > ?1 ORDER BY seq LIMIT ?2")
        }
    }
}

/// The same of one source (`?3`). What waits stands in other indexes than what does not, so a listing of all states merges a
/// run of each.
pub(super) fn source_list(state: Option<State>) -> String {
    let states = state.map_or(State::ALL.to_vec(), |state| vec![state]);
    let runs = states.into_iter().flat_map(|state| match state {
        State::Queued => {
            let mut runs = by_priority("request_ready", "state = 0 AND deferred = 0 AND source_id = ?3");
            runs.push(run("request_aside", "state = 0 AND deferred > 0 AND source_id = ?3"));
            runs
        }
        state => {
            vec![run("request_source", &format!("state = {} AND state > 0 AND source_id = ?3", state_code(state)))]
        }
    });
    merged(&runs.collect::<Vec<_>>())
}

fn by_priority(index: &str, of: &str) -> Vec<String> {
    let ranks = 0..=Priority::Low.rank();
    ranks.map(|rank| run(index, &format!("{of} AND priority = {rank}"))).collect()
}

/// One walk along an index, in ascending order.
fn run(index: &str, of: &str) -> String {
    format!(
        "SELECT seq FROM (SELECT seq FROM request INDEXED BY {index} WHERE {of} AND seq > ?1 ORDER BY seq LIMIT ?2)"
    )
}

/// The records that several runs name, in ascending order.
fn merged(runs: &[String]) -> String {
    let union = runs.join(" UNION ALL ");
    format!("{RECORD} WHERE seq IN (SELECT seq FROM ({union}) ORDER BY seq LIMIT ?2) ORDER BY seq")
}

fn source_id(store: &Store, name: &str) -> Result<Option<i64>, SpoolError> {
    let mut find = store.conn.prepare_cached("SELECT source_id FROM source WHERE name = ?1")?;
    Ok(find.query_row([name], |r| r.get(0)).optional()?)
}

fn record(r: &Row<'_>, now: u64) -> Result<Record, SpoolError> {
    let state = codes::state(r.get(2)?)?;
    let error: Option<String> = r.get(16)?;
    let left = num(r.get(11)?).saturating_sub(now);
    Ok(Record {
        seq: num(r.get(0)?),
        id: r.get(1)?,
        state,
        reason: r.get(3)?,
        source: r.get(4)?,
        label: r.get(5)?,
        endpoint: r.get(6)?,
        model: r.get(7)?,
        priority: codes::priority(r.get(8)?)?,
        policy: codes::policy(r.get(9)?)?,
        created_unix_ms: num(r.get(10)?),
        ttl_left_ms: if state.is_final() { 0 } else { left },
        attempts: r.get(12)?,
        maybe_billed: r.get(13)?,
        body_bytes: num(r.get(14)?),
        body_hash: r.get::<_, Vec<u8>>(15)?.try_into().unwrap_or_default(),
        // What no task has for a number is a device's own kind of request.
        task: r.get::<_, Option<i64>>(19)?.and_then(|task| u16::try_from(task).ok()),
        position: 0,
        last_error: match error {
            Some(kind) => Some(LastError { kind, message: r.get::<_, Option<String>>(17)?.unwrap_or_default() }),
            None => None,
        },
        local: None,
        uplink: None,
    })
}

const ANSWER: &str = "SELECT uplink, model, status, content_type, latency_ms, prompt_tokens, completion_tokens,
    at_unix_ms, hash, file, iif(?3, bytes, NULL) FROM answer WHERE seq = ?1 AND local = ?2";

type Kept<T> = Option<((T, u64), Stored)>;

fn answer<T>(
    store: &Store,
    seq: u64,
    local: bool,
    bytes: bool,
    of: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Kept<T>, SpoolError> {
    let mut statement = store.conn.prepare_cached(ANSWER)?;
    let kept = statement.query_row(params![sql(seq), local, bytes], |r| {
        let stored = Stored { inline: r.get(10)?, file: r.get(9)?, hash: r.get(8)? };
        Ok(((of(r)?, num(r.get(7)?)), stored))
    });
    Ok(kept.optional()?)
}

fn uplink(store: &Store, seq: u64, bytes: bool) -> Result<Kept<UplinkAnswer>, SpoolError> {
    answer(store, seq, false, bytes, |r| {
        let tokens: (Option<i64>, Option<i64>) = (r.get(5)?, r.get(6)?);
        Ok(UplinkAnswer {
            uplink: r.get(0)?,
            model: r.get(1)?,
            status: r.get(2)?,
            content_type: r.get(3)?,
            latency_ms: num(r.get(4)?),
            usage: tokens.0.zip(tokens.1).map(|(p, c)| Usage { prompt_tokens: num(p), completion_tokens: num(c) }),
            body: crate::body::Body::default(),
        })
    })
}

fn local(store: &Store, seq: u64, bytes: bool) -> Result<Kept<LocalAnswer>, SpoolError> {
    answer(store, seq, true, bytes, |r| {
        Ok(LocalAnswer { model: r.get(1)?, latency_ms: num(r.get(4)?), body: bytes::Bytes::new() })
    })
}

/// Newest first; stops at the first row that is too old, because acceptance times ascend with `seq`. Nothing on disk says who got
/// his answer, so only what still waits is offered: an old answer to a new question would be worse than a second send. A key finds
/// its own.
pub(super) const NEWEST: &str =
    "SELECT name, body_hash, id, accepted_at, state <= 1 AND idempotency_key IS NULL AND NOT EXISTS
    (SELECT 1 FROM answer a WHERE a.seq = r.seq AND a.local = 1) FROM request r JOIN source USING (source_id)
    WHERE r.seq > 0 ORDER BY r.seq DESC LIMIT ?1";

/// Requests whose caller may come back for an answer it never got: source, body hash and id, newest first.
pub(super) fn attachable(
    store: &Store,
    newer_than_ms: u64,
    limit: u32,
) -> Result<Vec<(String, [u8; 32], String)>, SpoolError> {
    let since = store.powered.now_ms().saturating_sub(newer_than_ms);
    let mut statement = store.conn.prepare_cached(NEWEST)?;
    let mut rows = statement.query([ATTACH_SCAN_MAX])?;
    let mut found = Vec::new();
    while let Some(r) = rows.next()? {
        if found.len() >= limit as usize || num(r.get(3)?) < since {
            break;
        }
        if r.get(4)? {
            found.push((r.get(0)?, r.get::<_, Vec<u8>>(1)?.try_into().unwrap_or_default(), r.get(2)?));
        }
    }
    Ok(found)
}

pub(super) const OLDEST_IN_STATE: &str = "SELECT accepted_at FROM request INDEXED BY request_state
    WHERE state = ?1 AND state > 0 ORDER BY seq LIMIT 1";
/// The same of what waits, where each priority has a line of its own.
pub(super) const OLDEST_QUEUED: &str = "SELECT min((SELECT accepted_at FROM request INDEXED BY request_queued
    WHERE state = 0 AND priority = p.column1 ORDER BY seq LIMIT 1)) FROM (VALUES (0), (1), (2), (3)) p";

/// When the oldest request in a state was accepted.
fn oldest_in(store: &Store, state: State) -> Result<Option<u64>, SpoolError> {
    let at: Option<Option<i64>> = match state {
        State::Queued => store.conn.prepare_cached(OLDEST_QUEUED)?.query_row([], |r| r.get(0)).optional()?,
        _ => store.conn.prepare_cached(OLDEST_IN_STATE)?.query_row([state_code(state)], |r| r.get(0)).optional()?,
    };
    Ok(at.flatten().map(num))
}

/// What the handle shows without asking the thread.
pub(super) fn tally(store: &Store, commits: u64) -> Result<Tally, SpoolError> {
    let mut oldest = None;
    for state in State::ALL.into_iter().filter(|s| !s.is_final() && store.counts.requests[*s as usize] > 0) {
        oldest = [oldest, oldest_in(store, state)?].into_iter().flatten().min();
    }
    let c = &store.counts;
    Ok(Tally {
        requests: c.requests,
        backlog_bytes: c.backlog_bytes,
        kept_bytes: c.kept_bytes,
        ready: c.ready,
        oldest_powered_ms: oldest,
        commits,
    })
}

// `Priority` is named so that a change of its ranks is seen here, where the index order depends on it.
const _: () = assert!(Priority::Critical as u8 == 0 && Priority::Low as u8 == 3);
