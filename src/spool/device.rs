//! What devices need of the spool: keys that outlive their requests, results that wait to be handed over, mailboxes.
//!
//! Owns the answer to "was this key used already" and to "what is this device still to be told". Never builds an
//! answer and speaks no protocol.

use rusqlite::{OptionalExtension, Row, params};

use super::SpoolError;
use super::codes::{self, num, sql};
use super::record::{Accepted, Ask, Asked, DeviceKey, DeviceRequest, Mailbox, NewDevice};
use super::store::Store;
use crate::plant::{self, Fault};

/// Keys of pruned requests remembered one by one, of all devices together: some 100 bytes each. Older ones live on as
/// the highest of their epoch.
pub(super) const KEYS_MAX: u64 = 65_536;
/// Epochs remembered, of all devices together: a device begins one at most with each of its starts.
pub(super) const EPOCHS_MAX: u64 = 4_096;
/// Mailboxes remembered, of all lines together: four of each device.
const MAILBOXES_MAX: u64 = 4_096;
/// How long a key is remembered by itself after its request is gone, at least.
const KEEP_MS: u64 = 7 * 24 * 3_600_000;
/// Keys folded per sweep: a few milliseconds.
const STEP: u32 = 256;
/// Results and mailboxes given out at once.
const LIST_MAX: u32 = 1_000;

/// The text under which a key is unique within its source.
fn text(uid: &str, key: &DeviceKey, turn: u64) -> String {
    match key {
        DeviceKey::Number(key) => format!("{uid}:{key:016x}"),
        DeviceKey::Text(key) => format!("{uid}:={key}"),
        DeviceKey::Mailbox { slot, seq } => mailbox_key(uid, *slot, sql(turn), *seq),
    }
}

/// The same of one writing of a mailbox.
pub(super) fn mailbox_key(uid: &str, slot: u8, turn: i64, seq: u16) -> String {
    format!("{uid}:m{slot}-{turn}-{seq}")
}

/// What a submission's key means here.
pub(super) enum Use {
    /// It is new, and stored under this text.
    New(String),
    /// It names this request.
    Known(Accepted),
}

/// Looks a device's key up: among the requests, then in what is left of those that are gone.
pub(super) fn look_up(store: &Store, source_id: i64, new: &NewDevice) -> Result<Use, SpoolError> {
    if let DeviceKey::Mailbox { slot, seq } = new.key {
        return mailbox(store, source_id, &new.uid, slot, seq);
    }
    let key = text(&new.uid, &new.key, 0);
    if plant::is(Fault::LinkNoUniqueKey) {
        return Ok(Use::New(format!("{key}+{:016x}", crate::clock::random_u64())));
    }
    let ask = "SELECT seq, id, content, state >= 3 AND handover <> 1 FROM request
        WHERE source_id = ?1 AND idempotency_key = ?2";
    let found = store.conn.prepare_cached(ask)?.query_row(params![source_id, key], |r| {
        let accepted = Accepted { seq: num(r.get(0)?), id: r.get(1)?, existing: true, finished: r.get(3)? };
        Ok((accepted, r.get::<_, Option<Vec<u8>>>(2)?))
    });
    match found.optional()? {
        Some((accepted, content)) if content.as_deref() == Some(&new.content[..]) => Ok(Use::Known(accepted)),
        Some(_) => Err(SpoolError::KeyReused),
        None if is_spent(store, source_id, &new.uid, &new.key, &key)? => Ok(Use::Known(gone(0))),
        None => Ok(Use::New(key)),
    }
}

fn gone(seq: u64) -> Accepted {
    Accepted { id: String::new(), seq, existing: true, finished: true }
}

/// Whether a request of this key is over and pruned.
fn is_spent(store: &Store, source_id: i64, uid: &str, key: &DeviceKey, text: &str) -> Result<bool, SpoolError> {
    let exact = "SELECT 1 FROM device_key WHERE source_id = ?1 AND key = ?2";
    if store.conn.prepare_cached(exact)?.exists(params![source_id, text])? {
        return Ok(true);
    }
    let DeviceKey::Number(key) = *key else { return Ok(false) };
    let epoch = "SELECT 1 FROM device_epoch WHERE source_id = ?1 AND uid = ?2 AND epoch = ?3 AND highest >= ?4";
    let place = params![source_id, uid, sql(key >> 32), sql(key & 0xffff_ffff)];
    Ok(store.conn.prepare_cached(epoch)?.exists(place)?)
}

/// A mailbox tells its writings apart by one small number that comes round again: only the latest counts.
fn mailbox(store: &Store, source_id: i64, uid: &str, slot: u8, seq: u16) -> Result<Use, SpoolError> {
    let ask = "SELECT last, turn, request FROM mailbox WHERE source_id = ?1 AND uid = ?2 AND slot = ?3";
    let latest = store
        .conn
        .prepare_cached(ask)?
        .query_row(params![source_id, uid, slot], |r| Ok((r.get::<_, i64>(0)?, num(r.get(1)?), num(r.get(2)?))))
        .optional()?;
    // Above every earlier turn, also of those that a damaged file may still bring back: numbers of requests ascend over
    // a damage too, and a mailbox had fewer turns than there were requests.
    let turn = latest.map_or(0, |(_, turn, _)| turn + 1).max(store.counts.next_seq);
    match latest {
        Some((last, _, request)) if last == i64::from(seq) && !plant::is(Fault::LinkNoUniqueKey) => {
            let found = "SELECT id, state >= 3 AND handover <> 1 FROM request WHERE seq = ?1";
            let known = store.conn.prepare_cached(found)?.query_row([sql(request)], |r| {
                Ok(Accepted { seq: request, id: r.get(0)?, existing: true, finished: r.get(1)? })
            });
            Ok(Use::Known(known.optional()?.unwrap_or_else(|| gone(request))))
        }
        _ => Ok(Use::New(text(uid, &DeviceKey::Mailbox { slot, seq }, turn))),
    }
}

/// Whether a mailbox' order that comes back was written again meanwhile: the same number and content, under a later turn.
pub(super) fn is_written_again(
    store: &Store,
    source_id: i64,
    key: &str,
    content: Option<&[u8]>,
) -> Result<bool, SpoolError> {
    let place = key.rsplit_once(":m").and_then(|(uid, rest)| {
        let mut parts = rest.split('-');
        let (slot, _turn, seq) = (parts.next()?, parts.next()?, parts.next()?);
        Some((uid, slot.parse::<u8>().ok()?, seq.parse::<u16>().ok()?))
    });
    let (Some((uid, slot, seq)), Some(content)) = (place, content) else { return Ok(false) };
    let text = "SELECT 1 FROM mailbox m JOIN request r ON r.seq = m.request
        WHERE m.source_id = ?1 AND m.uid = ?2 AND m.slot = ?3 AND m.last = ?4 AND r.content = ?5";
    Ok(store.conn.prepare_cached(text)?.exists(params![source_id, uid, slot, seq, content])?)
}

/// What a mailbox held before it was written: number, turn and request; nothing where it was new.
#[derive(Debug, Clone)]
pub(super) struct Before {
    source_id: i64,
    uid: String,
    slot: u8,
    held: Option<(i64, i64, i64)>,
}

/// Remembers what a mailbox holds now; part of the request's own transaction. Gives what it held before.
pub(super) fn note(
    store: &Store,
    source_id: i64,
    new: &NewDevice,
    key: &str,
    seq: u64,
) -> Result<Option<Before>, SpoolError> {
    let DeviceKey::Mailbox { slot, .. } = new.key else { return Ok(None) };
    let ask = "SELECT last, turn, request FROM mailbox WHERE source_id = ?1 AND uid = ?2 AND slot = ?3";
    let held = store
        .conn
        .prepare_cached(ask)?
        .query_row(params![source_id, new.uid, slot], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .optional()?;
    let count: u64 = store.conn.prepare_cached("SELECT count(*) FROM mailbox")?.query_row([], |r| r.get(0).map(num))?;
    if count >= MAILBOXES_MAX {
        store
            .conn
            .prepare_cached("DELETE FROM mailbox WHERE request = (SELECT min(request) FROM mailbox)")?
            .execute([])?;
    }
    put_mailbox(store, source_id, &new.uid, slot, key, seq)?;
    Ok(Some(Before { source_id, uid: new.uid.clone(), slot, held }))
}

fn put_mailbox(store: &Store, source_id: i64, uid: &str, slot: u8, key: &str, request: u64) -> Result<(), SpoolError> {
    let Some((turn, last)) = key.rsplit_once(":m").and_then(|(_, rest)| of_mailbox(rest)).map(|(_, t, l)| (t, l))
    else {
        return Ok(());
    };
    let put = "INSERT INTO mailbox VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE
        SET last = excluded.last, turn = excluded.turn, request = excluded.request WHERE excluded.turn >= turn";
    store.conn.prepare_cached(put)?.execute(params![source_id, uid, slot, last, sql(turn), sql(request)])?;
    Ok(())
}

/// Slot, turn and number of a mailbox' key.
fn of_mailbox(rest: &str) -> Option<(u8, u64, u16)> {
    let mut parts = rest.splitn(3, '-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A row came back from a damaged file: its mailbox knows it again.
pub(super) fn restore(store: &Store, source_id: i64, key: Option<&str>, request: u64) -> Result<(), SpoolError> {
    let Some((uid, rest)) = key.and_then(|key| key.split_once(":m")) else { return Ok(()) };
    match of_mailbox(rest) {
        Some((slot, ..)) => put_mailbox(store, source_id, uid, slot, key.unwrap_or_default(), request),
        None => Ok(()),
    }
}

/// What nobody was told must not be remembered either: the mailbox holds again what it held before this request.
pub(super) fn forget(store: &Store, request: u64, before: Option<&Before>) -> Result<(), SpoolError> {
    let Some(Before { source_id, uid, slot, held }) = before else { return Ok(()) };
    let gone = "DELETE FROM mailbox WHERE source_id = ?1 AND uid = ?2 AND slot = ?3 AND request = ?4";
    let gone = store.conn.prepare_cached(gone)?.execute(params![source_id, uid, slot, sql(request)])?;
    if let Some((last, turn, request)) = held.filter(|_| gone > 0) {
        let put = "INSERT INTO mailbox VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        store.conn.prepare_cached(put)?.execute(params![source_id, uid, slot, last, turn, request])?;
    }
    Ok(())
}

/// A finished request is about to be pruned: its key stays spent.
pub(super) fn remember(store: &mut Store, seq: u64) -> Result<(), SpoolError> {
    let now = store.powered.now_ms();
    let put = "INSERT OR IGNORE INTO device_key SELECT source_id, idempotency_key, ?2 + max(ttl_ms, ?3) FROM request
        WHERE seq = ?1 AND state >= 3 AND content IS NOT NULL AND idempotency_key IS NOT NULL
        AND idempotency_key NOT GLOB '*:m*'";
    let put = store.conn.prepare_cached(put)?.execute(params![sql(seq), sql(now), sql(KEEP_MS)])?;
    store.device_keys += put as u64;
    Ok(())
}

pub(super) const OLDEST_KEYS: &str =
    "SELECT source_id, key, until_ms FROM device_key INDEXED BY device_key_until ORDER BY until_ms LIMIT ?1";

/// Whether [`sweep`] has anything to do.
pub(super) fn is_due(store: &Store, now: u64) -> Result<bool, SpoolError> {
    let oldest = store.conn.prepare_cached(OLDEST_KEYS)?.query_row([1], |r| r.get(2).map(num)).optional()?;
    Ok(oldest.is_some_and(|until| until <= now) || are_too_many(store))
}

/// Seen a step late and then brought down by a whole one: finding the greediest walks along all of them.
fn are_too_many(store: &Store) -> bool {
    store.device_keys >= KEYS_MAX + u64::from(STEP)
}

/// How many keys are remembered.
pub(super) fn keys(conn: &rusqlite::Connection) -> Result<u64, SpoolError> {
    let count = "SELECT count(*) FROM device_key INDEXED BY device_key_until WHERE until_ms >= 0";
    Ok(conn.query_row(count, [], |r| r.get(0).map(num))?)
}

/// Folds keys that had their time, or are too many, into the highest of their epoch.
pub(super) fn sweep(store: &mut Store) -> Result<(), SpoolError> {
    let now = store.powered.now_ms();
    let mut spent = Vec::new();
    if are_too_many(store) {
        spent = of_the_greediest(store, STEP.into())?;
    } else {
        let mut oldest = store.conn.prepare_cached(OLDEST_KEYS)?;
        let rows = oldest.query_map([STEP], |r| Ok((r.get(0)?, r.get(1)?, num(r.get(2)?))))?;
        for row in rows {
            let (source_id, key, until): (i64, String, u64) = row?;
            if until > now {
                break;
            }
            spent.push((source_id, key));
        }
    }
    for (source_id, key) in &spent {
        fold(store, *source_id, key, now)?;
        let text = "DELETE FROM device_key WHERE source_id = ?1 AND key = ?2";
        store.conn.prepare_cached(text)?.execute(params![source_id, key])?;
    }
    store.device_keys = store.device_keys.saturating_sub(spent.len() as u64);
    shed_epochs(store)
}

/// The oldest keys of the device that has the most, on the link that has the most: whoever makes too many loses its own,
/// and not those of others. Walks along all of them, and only where they are too many.
fn of_the_greediest(store: &Store, over: u64) -> Result<Vec<(i64, String)>, SpoolError> {
    let most = "WITH per AS (SELECT source_id, substr(key, 1, instr(key, ':')) AS whose, count(*) AS n
            FROM device_key GROUP BY 1, 2)
        SELECT source_id, whose FROM per ORDER BY sum(n) OVER (PARTITION BY source_id) DESC, source_id, n DESC LIMIT 1";
    let whose = |r: &Row<'_>| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?));
    let Some((source_id, whose)) = store.conn.prepare_cached(most)?.query_row([], whose).optional()? else {
        return Ok(Vec::new());
    };
    // All that begin so: ';' is the character behind ':'.
    let end = format!("{};", whose.trim_end_matches(':'));
    let oldest = "SELECT source_id, key FROM device_key WHERE source_id = ?1 AND key >= ?2 AND key < ?3
        ORDER BY until_ms LIMIT ?4";
    let mut oldest = store.conn.prepare_cached(oldest)?;
    let rows = oldest.query_map(params![source_id, whose, end, sql(over)], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets the oldest epochs of the device that has the most, where there are too many.
fn shed_epochs(store: &Store) -> Result<(), SpoolError> {
    let count = "SELECT count(*) FROM device_epoch";
    let over = store.conn.prepare_cached(count)?.query_row([], |r| r.get(0).map(num))?.saturating_sub(EPOCHS_MAX);
    if over == 0 {
        return Ok(());
    }
    let excess = "DELETE FROM device_epoch WHERE (source_id, uid, epoch) IN (
        WITH per AS (SELECT source_id, uid, count(*) AS n FROM device_epoch GROUP BY 1, 2),
        most AS (SELECT source_id, uid FROM per
            ORDER BY sum(n) OVER (PARTITION BY source_id) DESC, source_id, n DESC LIMIT 1)
        SELECT source_id, uid, epoch FROM device_epoch JOIN most USING (source_id, uid) ORDER BY at_ms LIMIT ?1)";
    store.conn.prepare_cached(excess)?.execute([sql(over)])?;
    Ok(())
}

/// Only numbers ascend; of another key nothing stays.
fn fold(store: &Store, source_id: i64, key: &str, now: u64) -> Result<(), SpoolError> {
    let number = key.rsplit_once(':').filter(|(_, digits)| digits.len() == 16);
    let Some((uid, number)) = number.and_then(|(uid, hex)| Some((uid, u64::from_str_radix(hex, 16).ok()?))) else {
        return Ok(());
    };
    let put = "INSERT INTO device_epoch VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE
        SET highest = max(highest, excluded.highest), at_ms = excluded.at_ms";
    let (epoch, low) = (sql(number >> 32), sql(number & 0xffff_ffff));
    store.conn.prepare_cached(put)?.execute(params![source_id, uid, epoch, low, sql(now)])?;
    Ok(())
}

const REQUEST: &str = "SELECT r.seq, r.id, r.label, r.idempotency_key, r.state, r.handover, r.task, r.max_reply,
    r.reason, EXISTS (SELECT 1 FROM answer a WHERE a.seq = r.seq AND a.local = 1), r.policy, r.content
    FROM request r";

fn request(r: &Row<'_>) -> rusqlite::Result<Result<DeviceRequest, SpoolError>> {
    let state = match (codes::state(r.get(4)?), codes::policy(r.get(10)?)) {
        (Ok(state), Ok(policy)) => (state, policy),
        (Err(error), _) | (_, Err(error)) => return Ok(Err(error)),
    };
    let uid: String = r.get::<_, Option<String>>(2)?.unwrap_or_default();
    let key: String = r.get::<_, Option<String>>(3)?.unwrap_or_default();
    let handover: i64 = r.get(5)?;
    Ok(Ok(DeviceRequest {
        seq: num(r.get(0)?),
        id: r.get(1)?,
        key: key.strip_prefix(&format!("{uid}:")).and_then(key_of),
        uid,
        state: state.0,
        wants_result: handover == 1,
        handed_over: handover == 2,
        ask: ask_of(r.get(6)?),
        content: r.get::<_, Option<Vec<u8>>>(11)?.and_then(|c| c.try_into().ok()).unwrap_or_default(),
        max_reply: r.get(7)?,
        reason: r.get(8)?,
        has_local: r.get(9)?,
        policy: state.1,
    }))
}

/// What is asked, on disk: a task's number, null for a question, -1 for a request of the device's own.
pub(super) fn code_of(ask: Ask) -> Option<i64> {
    match ask {
        Ask::Chat => None,
        Ask::Raw => Some(-1),
        Ask::Task(id) => Some(id.into()),
    }
}

fn ask_of(code: Option<i64>) -> Ask {
    match code {
        None => Ask::Chat,
        Some(code) => u16::try_from(code).map_or(Ask::Raw, Ask::Task),
    }
}

/// The inverse of [`text`].
fn key_of(rest: &str) -> Option<DeviceKey> {
    if let Some(text) = rest.strip_prefix('=') {
        return Some(DeviceKey::Text(text.to_owned()));
    }
    if let Some((slot, _, seq)) = rest.strip_prefix('m').and_then(of_mailbox) {
        return Some(DeviceKey::Mailbox { slot, seq });
    }
    let digits = rest.split('+').next().unwrap_or(rest);
    u64::from_str_radix(digits, 16).ok().map(DeviceKey::Number)
}

fn source_id(store: &Store, source: &str) -> Result<Option<i64>, SpoolError> {
    let mut find = store.conn.prepare_cached("SELECT source_id FROM source WHERE name = ?1")?;
    Ok(find.query_row([source], |r| r.get(0)).optional()?)
}

fn list(store: &Store, text: &str, values: impl rusqlite::Params) -> Result<Vec<DeviceRequest>, SpoolError> {
    let mut statement = store.conn.prepare_cached(text)?;
    let rows = statement.query_map(values, request)?;
    rows.map(|row| row?).collect()
}

/// Requests whose result a device is to be told, oldest first: finished ones, and those with a local answer.
pub(super) fn undelivered(
    store: &Store,
    source: &str,
    uid: &str,
    limit: u32,
) -> Result<Vec<DeviceRequest>, SpoolError> {
    let Some(source_id) = source_id(store, source)? else { return Ok(Vec::new()) };
    let text = format!(
        "{REQUEST} INDEXED BY request_owed WHERE r.source_id = ?1 AND r.label = ?2 AND r.handover = 1
        AND (r.state >= 3 OR EXISTS (SELECT 1 FROM answer a WHERE a.seq = r.seq AND a.local = 1))
        ORDER BY r.seq LIMIT ?3"
    );
    list(store, &text, params![source_id, uid, limit.min(LIST_MAX)])
}

/// Requests that a device waits for and that are not over, oldest first.
pub(super) fn unfinished(store: &Store, source: &str, uid: &str, limit: u32) -> Result<Vec<DeviceRequest>, SpoolError> {
    let Some(source_id) = source_id(store, source)? else { return Ok(Vec::new()) };
    let text = format!(
        "{REQUEST} INDEXED BY request_owed WHERE r.source_id = ?1 AND r.label = ?2 AND r.handover = 1 AND r.state < 3
        ORDER BY r.seq LIMIT ?3"
    );
    list(store, &text, params![source_id, uid, limit.min(LIST_MAX)])
}

/// How many requests of a device wait for their result to be handed over, finished or not.
pub(super) fn open(store: &Store, source: &str, uid: &str) -> Result<u64, SpoolError> {
    let Some(source_id) = source_id(store, source)? else { return Ok(0) };
    let text = "SELECT count(*) FROM request INDEXED BY request_owed
        WHERE source_id = ?1 AND label = ?2 AND handover = 1";
    Ok(store.conn.prepare_cached(text)?.query_row(params![source_id, uid], |r| r.get(0).map(num))?)
}

/// The next request after `after` (device and number) that the local model may answer and has not. What is behind is
/// not begun: its answer would have to wait.
pub(super) fn local_work(
    store: &Store,
    source: &str,
    after: &(String, u64),
    only_local: bool,
) -> Result<Option<DeviceRequest>, SpoolError> {
    let Some(source_id) = source_id(store, source)? else { return Ok(None) };
    let text = format!(
        "{REQUEST} INDEXED BY request_owed WHERE r.source_id = ?1 AND r.handover = 1 AND r.state < 3
        AND r.policy <= ?4 AND (r.policy = 1 OR ?5) AND (r.label, r.seq) > (?2, ?3)
        AND r.seq >= ?6 AND r.seq NOT IN (SELECT value FROM json_each(?7))
        AND NOT EXISTS (SELECT 1 FROM answer a WHERE a.seq = r.seq AND a.local = 1)
        ORDER BY r.label, r.seq LIMIT 1"
    );
    // Both (0) and local (1) are what the local model may answer.
    let (behind, from) = store.rescue.behind.bounds();
    Ok(list(store, &text, params![source_id, after.0, sql(after.1), 1, !only_local, from, behind])?.pop())
}

/// What a key of a device names.
pub(super) fn by_key(store: &Store, source: &str, uid: &str, key: &DeviceKey) -> Result<Asked, SpoolError> {
    let Some(source_id) = source_id(store, source)? else { return Ok(Asked::Unknown) };
    if let DeviceKey::Mailbox { slot, seq } = *key {
        let ask = "SELECT request FROM mailbox WHERE source_id = ?1 AND uid = ?2 AND slot = ?3 AND last = ?4";
        let place = params![source_id, uid, slot, seq];
        let latest = store.conn.prepare_cached(ask)?.query_row(place, |r| r.get(0).map(num)).optional()?;
        let Some(latest) = latest else { return Ok(Asked::Unknown) };
        // After a damage the number may stand for another request.
        let found = by_seq(store, source, uid, latest)?.filter(|found| found.key.as_ref() == Some(key));
        return Ok(found.map_or(Asked::Finished, |found| Asked::Found(Box::new(found))));
    }
    let text = text(uid, key, 0);
    let found = format!("{REQUEST} WHERE r.source_id = ?1 AND r.idempotency_key = ?2");
    match list(store, &found, params![source_id, text])?.pop() {
        Some(found) => Ok(Asked::Found(Box::new(found))),
        None if is_spent(store, source_id, uid, key, &text)? => Ok(Asked::Finished),
        None => Ok(Asked::Unknown),
    }
}

/// One request of a device by its number; nobody else's.
pub(super) fn by_seq(store: &Store, source: &str, uid: &str, seq: u64) -> Result<Option<DeviceRequest>, SpoolError> {
    let Some(source_id) = source_id(store, source)? else { return Ok(None) };
    let text = format!("{REQUEST} WHERE r.seq = ?1 AND r.source_id = ?2 AND r.label = ?3 AND r.content IS NOT NULL");
    Ok(list(store, &text, params![sql(seq), source_id, uid])?.pop())
}

/// The mailboxes of a source: which number each holds, and the request it became.
pub(super) fn mailboxes(store: &Store, source: &str) -> Result<Vec<Mailbox>, SpoolError> {
    let Some(source_id) = source_id(store, source)? else { return Ok(Vec::new()) };
    let text = "SELECT uid, slot, last, request FROM mailbox WHERE source_id = ?1 ORDER BY uid, slot LIMIT ?2";
    let mut statement = store.conn.prepare_cached(text)?;
    let rows = statement.query_map(params![source_id, LIST_MAX], |r| {
        Ok(Mailbox { uid: r.get(0)?, slot: r.get(1)?, seq: r.get(2)?, request: num(r.get(3)?) })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The device has the whole result. What is not its own it says nothing about.
pub(super) fn handed_over(store: &Store, source: &str, uid: &str, seq: u64) -> Result<(), SpoolError> {
    store.rescue.behind.check(seq)?;
    let text = "UPDATE request SET handover = 2 WHERE seq = ?1 AND handover = 1 AND label = ?2
        AND source_id = (SELECT source_id FROM source WHERE name = ?3)";
    store.conn.prepare_cached(text)?.execute(params![sql(seq), uid, source])?;
    Ok(())
}
