//! Taking a salvaged row back in: by id, version and the outcome log.
//!
//! Owns the rule that nothing salvaged is sent that ended already, or that may be on its way; never reads bytes
//! of a damaged file.

use std::borrow::Cow;

use rusqlite::types::Value;
use rusqlite::{OptionalExtension, params_from_iter};

use super::codes::{self, num, sql, state_code};
use super::store::{DAMAGED, FOR_EVER, Place, Standing, Store};
use super::{SpoolError, device, merge, sources, sum};
use crate::control::types::{Policy, Priority, State};

/// Places in [`SalvagedRow::values`], which are the columns of `request` before `version`.
const SEQ: usize = 0;
const ID: usize = 1;
const SOURCE_ID: usize = 2;
const STATE: usize = 3;
const PRIORITY: usize = 4;
const DEFERRED: usize = 5;
const MAYBE_BILLED: usize = 7;
const ACCEPTED_AT: usize = 8;
const ENDED_AT: usize = 10;
const POLICY: usize = 13;
const KEY: usize = 17;
const BODY_BYTES: usize = 18;
const BODY_HASH: usize = 19;
const BODY_KEPT: usize = 20;
const BODY_FILE: usize = 21;
const REASON: usize = 22;
/// Endpoint and model, which are never null, and the columns that may be.
const TEXTS: [usize; 2] = [14, 15];
const NULLS: [usize; 8] = [16, KEY, BODY_FILE, REASON, 23, 24, CONTENT, 27];
/// The hash of what a device sent; null where nobody's device did.
const CONTENT: usize = 25;
/// Places in an answer's values.
const ANSWER_LOCAL: usize = 1;
const ANSWER_SIZE: usize = 10;
const ANSWER_FILE: usize = 13;

/// A row as it was found, with what belongs to it.
#[derive(Debug, Clone)]
pub(super) struct SalvagedRow {
    /// The 29 columns of `request` before `version`, in the table's order.
    pub(super) values: Vec<Value>,
    pub(super) version: u64,
    /// A newer image of the row could not be read: its state may be behind.
    pub(super) superseded: bool,
    /// Only a torn frame of the log has it: its page may be one of long ago.
    pub(super) is_doubtful: bool,
    /// The name of its source, where that was found.
    pub(super) source: Option<String>,
    pub(super) body: SalvagedBody,
    /// The 14 columns of `answer` before `sum`, each.
    pub(super) answers: Vec<Vec<Value>>,
}

/// Where a salvaged row's body is.
#[derive(Debug, Clone)]
pub(super) enum SalvagedBody {
    /// The row needs none.
    NotKept,
    /// Here, its hash checked.
    Inline(Vec<u8>),
    /// In the file the row names, its hash checked.
    File,
    /// Gone or damaged.
    Lost,
}

/// What became of a salvaged row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Adopted {
    /// It was missing and is back.
    Inserted,
    /// An older copy stood in its place.
    Updated,
    /// The database has this copy or a newer one.
    Known,
    /// The outcome log says that it ended: it is not queued again.
    Ended,
}

impl SalvagedRow {
    /// Its sequence number.
    pub(super) fn seq(&self) -> u64 {
        num(self.int(SEQ))
    }

    fn int(&self, at: usize) -> i64 {
        match self.values.get(at) {
            Some(Value::Integer(n)) => *n,
            _ => 0,
        }
    }

    /// Whether this answer is there: the local model's, or the uplink's.
    pub(super) fn has_answer(&self, local: bool) -> bool {
        self.answers.iter().any(|a| a.get(ANSWER_LOCAL) == Some(&Value::Integer(i64::from(local))))
    }

    /// Whether an answer is what it ended with; other ends only keep what an earlier send brought.
    pub(super) fn ended_with_an_answer(&self) -> bool {
        self.is_in(State::Answered) || (self.is_in(State::Dead) && self.text(REASON).is_some_and(is_about_an_answer))
    }

    pub(super) fn is_in(&self, state: State) -> bool {
        self.int(STATE) == state_code(state)
    }

    pub(super) fn body_file(&self) -> Option<&str> {
        self.text(BODY_FILE)
    }

    pub(super) fn body_hash(&self) -> Option<&[u8]> {
        match self.values.get(BODY_HASH) {
            Some(Value::Blob(hash)) => Some(hash),
            _ => None,
        }
    }

    fn is_of_device(&self) -> bool {
        self.content().is_some()
    }

    fn content(&self) -> Option<&[u8]> {
        match self.values.get(CONTENT) {
            Some(Value::Blob(content)) => Some(content),
            _ => None,
        }
    }

    /// No uplink is ever to have it.
    fn is_local_only(&self) -> bool {
        self.is_of_device() && self.int(POLICY) == codes::policy_code(Policy::Local)
    }

    fn text(&self, at: usize) -> Option<&str> {
        match self.values.get(at) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// A request that is dead for this reason has the answer that it is dead for.
pub(super) fn is_about_an_answer(reason: &str) -> bool {
    matches!(reason, "misfit" | "no_answer")
}

/// Takes a row back where it is missing or older than this copy.
pub(super) fn adopt_row(store: &mut Store, row: &SalvagedRow) -> Result<Adopted, SpoolError> {
    let id = row.text(ID).filter(|_| row.values.len() == sum::REQUEST.len() - 1);
    let id = id.ok_or_else(|| SpoolError::Storage("a salvaged row has another shape".into()))?.to_owned();
    let state = codes::state(row.int(STATE))?;
    let standing = store.by_id(&id)?;
    if !state.is_final()
        && let Some((end, version)) = ended(store, &id).filter(|(_, version)| *version >= row.version)
    {
        if let Some(old) = standing.filter(|old| old.version <= version) {
            end_again(store, &old, end)?;
        }
        return Ok(Adopted::Ended);
    }
    // An end without its answer that nobody was told: the power went in the middle of it.
    let answerless = state == State::Answered && !row.has_answer(false);
    if answerless && standing.as_ref().is_some_and(|old| old.state == State::Answered) {
        // The newer copy is of a pruning that the power cut short: what stands has its answer still.
        return Ok(Adopted::Known);
    }
    let has_ended = answerless && ended(store, &id).is_some();
    if has_ended && row.is_doubtful && standing.is_none() {
        // It ended, was told and was pruned, its answer with it.
        return Ok(Adopted::Ended);
    }
    let torn = answerless && !has_ended;
    if let Some(old) = standing.as_ref().filter(|old| torn && !old.state.is_final()) {
        if !old.maybe_billed {
            doubt(store, old)?;
        }
        return Ok(Adopted::Known);
    }
    let held = store.held.contains(&row.seq());
    // What this process has handed out is on its way, however old the copy is.
    let state = if torn || (held && !state.is_final()) { State::Sending } else { state };
    let verdict = match &standing {
        Some(old) if old.version >= row.version => {
            if old.version == row.version {
                bring_local_answer(store, old, row)?;
                if row.superseded {
                    doubt(store, old)?;
                }
            }
            return Ok(Adopted::Known);
        }
        Some(_) => Adopted::Updated,
        None => Adopted::Inserted,
    };
    let row = match standing {
        Some(old) => Cow::Owned(take_out(store, row, &old)?),
        None => Cow::Borrowed(row),
    };
    insert(store, &row, &id, state, held)?;
    Ok(verdict)
}

/// Removes what stands in the place of a newer copy, and gives that copy with what it lacks of it. It comes back at once, so
/// its files stay and nothing is said of an end.
fn take_out(store: &mut Store, row: &SalvagedRow, old: &Standing) -> Result<SalvagedRow, SpoolError> {
    let row = merge::with_standing(store, row, old)?;
    let before = (store.effects.unlink.len(), store.effects.outcomes.len());
    store.remove(old)?;
    let names = names(&row);
    let mut at = 0;
    store.effects.unlink.retain(|name| {
        at += 1;
        at <= before.0 || !names.iter().any(|kept| kept == name)
    });
    store.effects.outcomes.truncate(before.1);
    Ok(row)
}

/// The local model's answer may be newer than the row it belongs to: keeping one does not change the row.
fn bring_local_answer(store: &mut Store, old: &Standing, row: &SalvagedRow) -> Result<(), SpoolError> {
    let text = "SELECT 1 FROM answer WHERE seq = ?1 AND local = 1";
    if old.state.is_final() || store.conn.prepare_cached(text)?.exists([sql(old.seq)])? {
        return Ok(());
    }
    let local = row.answers.iter().find(|answer| answer.get(ANSWER_LOCAL) == Some(&Value::Integer(1)));
    local.map_or(Ok(()), |answer| attach_answer(store, answer, old.seq))
}

/// The end that the outcome log knows, and the row's version then: a copy with a higher one was queued again by
/// hand since.
fn ended(store: &mut Store, id: &str) -> Option<(Option<State>, u64)> {
    let data_dir = store.options.data_dir.clone();
    store.rescue.known(&data_dir).ended(id)
}

fn has_ended(store: &mut Store, seq: u64) -> bool {
    let data_dir = store.options.data_dir.clone();
    store.rescue.known(&data_dir).has_ended(seq)
}

/// The database went back to a row's state before its end: what the log of ends says stands. Its answer is lost.
fn end_again(store: &mut Store, old: &Standing, end: Option<State>) -> Result<(), SpoolError> {
    if old.state.is_final() || store.held.contains(&old.seq) {
        return Ok(());
    }
    match end {
        Some(state) => store.end_untold(old, state, DAMAGED),
        // Taken back before anybody was told of it.
        None => store.remove(old),
    }
}

/// A newer image of a waiting row is damaged: it may have been on its way.
fn doubt(store: &mut Store, old: &Standing) -> Result<(), SpoolError> {
    if old.state.is_final() || store.held.contains(&old.seq) {
        return Ok(());
    }
    if old.maybe_billed || store.options.hold_unknown {
        return store.end_untold(old, State::Dead, "unknown");
    }
    let text = "UPDATE request SET maybe_billed = 1 WHERE seq = ?1";
    store.conn.prepare_cached(text)?.execute([sql(old.seq)])?;
    Ok(())
}

/// The number of a request of whose newer image nothing is left but an entry of an index.
#[derive(Debug, Clone)]
pub(super) struct InDoubt(pub(super) u64);

/// Labels it, where it waits still.
pub(super) fn adopt_doubt(store: &mut Store, seq: &InDoubt) -> Result<Adopted, SpoolError> {
    if let Some(old) = store.by_seq(seq.0)?.filter(|old| old.state == State::Queued && !old.maybe_billed) {
        doubt(store, &old)?;
    }
    Ok(Adopted::Known)
}

/// Labels some of what waits and is held back for its age, where nothing of the log is left that could speak for it;
/// says how many.
pub(super) fn doubt_older(store: &mut Store, most: u32) -> Result<usize, SpoolError> {
    let text = "SELECT seq FROM request INDEXED BY request_queued
        WHERE state = 0 AND maybe_billed = 0 AND seq < ?1 LIMIT ?2";
    let seqs: Vec<u64> = {
        let mut statement = store.conn.prepare_cached(text)?;
        let below = sql(store.rescue.behind.below());
        statement.query_map(rusqlite::params![below, most], |r| r.get(0).map(num))?.collect::<Result<_, _>>()?
    };
    for seq in &seqs {
        adopt_doubt(store, &InDoubt(*seq))?;
    }
    Ok(seqs.len())
}

/// A request of which only its name is left.
#[derive(Debug, Clone)]
pub(super) struct LostRow {
    pub(super) seq: u64,
    pub(super) id: String,
    /// The code of its latest readable state.
    pub(super) state: Option<i64>,
    /// Only a torn frame of the log names it.
    pub(super) is_doubtful: bool,
}

/// Version of a row of which nothing is left: above every copy that another file may hold, since nothing says
/// what was done with it.
const LOST_VERSION: u64 = 1 << 30;

/// Records what became of a request that cannot be read any more, so that whoever asks is told.
pub(super) fn adopt_lost(store: &mut Store, lost: &LostRow) -> Result<Adopted, SpoolError> {
    if store.by_id(&lost.id)?.is_some() {
        return Ok(Adopted::Known);
    }
    let end = match ended(store, &lost.id) {
        Some((None, _)) => return Ok(Adopted::Ended),
        // It ended, was told and was pruned: what names it are bytes of long ago.
        Some(_) if lost.is_doubtful => return Ok(Adopted::Ended),
        Some((Some(state), _)) => Some(state),
        // The number ended under another id: this one was read from a page that is half noise.
        None if has_ended(store, lost.seq) => return Ok(Adopted::Ended),
        None => None,
    };
    let number = Value::Integer;
    let now = sql(store.powered.now_ms());
    let mut values = vec![number(0); sum::REQUEST.len() - 1];
    for at in TEXTS {
        values[at] = Value::Text(String::new());
    }
    for at in NULLS {
        values[at] = Value::Null;
    }
    values[SEQ] = number(sql(lost.seq));
    values[ID] = Value::Text(lost.id.clone());
    values[STATE] = number(state_code(end.unwrap_or(State::Queued)));
    values[PRIORITY] = number(i64::from(Priority::Normal.rank()));
    values[POLICY] = number(codes::policy_code(Policy::Queue));
    values[BODY_HASH] = Value::Blob(vec![0; 32]);
    (values[ACCEPTED_AT], values[ENDED_AT]) = (number(now), number(now));
    if end.is_some() {
        values[REASON] = Value::Text(DAMAGED.to_owned());
    }
    // Nothing says that it was never sent, unless it was seen waiting.
    let superseded = lost.state != Some(state_code(State::Queued));
    let (source, body, answers) = (None, SalvagedBody::Lost, Vec::new());
    let is_doubtful = lost.is_doubtful;
    let row = SalvagedRow { values, version: LOST_VERSION, superseded, is_doubtful, source, body, answers };
    insert(store, &row, &lost.id, end.unwrap_or(State::Queued), false)?;
    Ok(Adopted::Inserted)
}

fn names(row: &SalvagedRow) -> Vec<String> {
    let answers = row.answers.iter().filter_map(|a| match a.get(ANSWER_FILE) {
        Some(Value::Text(name)) => Some(name.clone()),
        _ => None,
    });
    row.text(BODY_FILE).map(str::to_owned).into_iter().chain(answers).collect()
}

/// Where a row stands from now on, and why.
struct Turn {
    state: State,
    maybe_billed: bool,
    reason: Option<&'static str>,
}

/// What was being sent, or may have been, follows the rule of a start: once more at most, and labelled.
fn turn(store: &Store, row: &SalvagedRow, state: State, held: bool) -> Turn {
    let billed = row.int(MAYBE_BILLED) != 0;
    let stays = |state| Turn { state, maybe_billed: billed, reason: None };
    if state == State::Answered && !row.has_answer(false) {
        return Turn { reason: Some(DAMAGED), ..stays(state) };
    }
    if state.is_final() || (state == State::Sending && held) {
        return stays(state);
    }
    let doubtful = state == State::Sending || row.superseded;
    if matches!(row.body, SalvagedBody::Lost | SalvagedBody::NotKept) {
        return Turn { state: State::Dead, maybe_billed: billed || doubtful, reason: Some(DAMAGED) };
    }
    match (doubtful, billed || store.options.hold_unknown) {
        (false, _) => stays(state),
        (true, false) => Turn { state: State::Queued, maybe_billed: true, reason: None },
        (true, true) => Turn { state: State::Dead, maybe_billed: true, reason: Some("unknown") },
    }
}

fn insert(store: &mut Store, row: &SalvagedRow, id: &str, state: State, held: bool) -> Result<(), SpoolError> {
    let name = row.source.clone().unwrap_or_else(|| sources::lost_name(row.int(SOURCE_ID)));
    let source_id = sources::number(store, &name)?;
    let mut turn = turn(store, row, state, held);
    let mut values = row.values.clone();
    if is_taken(store, source_id, row)? {
        // Whoever asked has asked again with the same key: one of both is enough.
        values[KEY] = Value::Null;
        if !turn.state.is_final() {
            turn = Turn { state: State::Dead, reason: Some("duplicate"), ..turn };
        }
    }
    let seq = free_seq(store, row.seq())?;
    let kept = matches!(row.body, SalvagedBody::Inline(_) | SalvagedBody::File);
    values[SEQ] = Value::Integer(sql(seq));
    values[SOURCE_ID] = Value::Integer(source_id);
    values[STATE] = Value::Integer(state_code(turn.state));
    let local_only = row.is_local_only();
    values[DEFERRED] = Value::Integer(if local_only && turn.state == State::Queued { FOR_EVER } else { 0 });
    values[MAYBE_BILLED] = Value::Integer(i64::from(turn.maybe_billed));
    values[BODY_KEPT] = Value::Integer(i64::from(kept));
    if !matches!(row.body, SalvagedBody::File) {
        values[BODY_FILE] = Value::Null;
    }
    if turn.state.is_final() && !state.is_final() {
        values[ENDED_AT] = Value::Integer(sql(store.powered.now_ms()));
    }
    if let Some(reason) = turn.reason {
        values[REASON] = Value::Text(reason.to_owned());
    }
    values.push(Value::Integer(sql(row.version + 1)));
    write(store, "request", &sum::REQUEST, &values)?;
    // No trigger sums a new request, see `sum::watch`.
    sum::renew(&store.conn, seq)?;
    attach(store, row, seq)?;
    device::restore(store, source_id, row.text(KEY).filter(|_| row.is_of_device()), seq)?;
    count(store, row, source_id, turn.state, kept);
    if turn.state.is_final() && !state.is_final() {
        store.effects.notices.push((seq, id.to_owned(), turn.state));
        let line = super::outcomes::Line { seq, id: id.to_owned(), state: Some(turn.state), version: row.version + 1 };
        store.effects.outcomes.push(line);
    }
    Ok(())
}

fn is_taken(store: &Store, source_id: i64, row: &SalvagedRow) -> Result<bool, SpoolError> {
    let Some(key) = row.text(KEY) else { return Ok(false) };
    if let (None, Some(hash)) = (&row.source, row.body_hash()) {
        return sources::keyed_by_anybody(&store.conn, key, hash);
    }
    let text = "SELECT 1 FROM request WHERE source_id = ?1 AND idempotency_key = ?2";
    let there = store.conn.prepare_cached(text)?.exists(rusqlite::params![source_id, key])?;
    Ok(there || device::is_written_again(store, source_id, key, row.content())?)
}

/// Its own number where that is free, else the next.
fn free_seq(store: &mut Store, wanted: u64) -> Result<u64, SpoolError> {
    let mut find = store.conn.prepare_cached("SELECT seq FROM request WHERE seq = ?1")?;
    let taken: Option<i64> = find.query_row([sql(wanted)], |r| r.get(0)).optional()?;
    let seq = if taken.is_some() || wanted == 0 { store.counts.next_seq } else { wanted };
    store.counts.next_seq = store.counts.next_seq.max(seq + 1);
    Ok(seq)
}

fn write(store: &Store, table: &str, columns: &[&str], values: &[Value]) -> Result<(), SpoolError> {
    let marks = vec!["?"; columns.len()].join(", ");
    let text = format!("INSERT INTO {table} ({}) VALUES ({marks})", columns.join(", "));
    store.conn.prepare_cached(&text)?.execute(params_from_iter(values))?;
    Ok(())
}

fn attach(store: &mut Store, row: &SalvagedRow, seq: u64) -> Result<(), SpoolError> {
    if let SalvagedBody::Inline(bytes) = &row.body {
        store.conn.prepare_cached("INSERT INTO body VALUES (?1, ?2)")?.execute(rusqlite::params![sql(seq), bytes])?;
    }
    row.answers.iter().try_for_each(|answer| attach_answer(store, answer, seq))
}

fn attach_answer(store: &mut Store, answer: &[Value], seq: u64) -> Result<(), SpoolError> {
    if answer.len() != sum::ANSWER_VALUES.len() {
        return Ok(());
    }
    let mut values = answer.to_vec();
    values[SEQ] = Value::Integer(sql(seq));
    write(store, "answer", &sum::ANSWER_VALUES, &values)?;
    if let Value::Integer(size) = values[ANSWER_SIZE] {
        store.counts.kept_bytes += num(size);
        store.counts.answer_bytes += num(size);
    }
    Ok(())
}

fn count(store: &mut Store, row: &SalvagedRow, source_id: i64, state: State, kept: bool) {
    let place = Place { source_id, priority: row.int(PRIORITY), body_bytes: num(row.int(BODY_BYTES)) };
    if kept {
        store.counts.kept_bytes += place.body_bytes;
    }
    store.enter(&place, state, state == State::Queued && !row.is_local_only());
}
