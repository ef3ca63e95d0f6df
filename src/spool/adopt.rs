//! Taking a salvaged row back in: by id, version and the outcome log.
//!
//! Owns the rule that nothing salvaged is sent that ended already, or that may be on its way; never reads bytes
//! of a damaged file.

use rusqlite::types::Value;
use rusqlite::{OptionalExtension, params_from_iter};

use super::codes::{self, num, sql, state_code};
use super::store::{DAMAGED, Place, Store};
use super::{SpoolError, accept, sum};
use crate::control::types::State;

/// Places in [`SalvagedRow::values`], which are the columns of `request` before `version`.
const SEQ: usize = 0;
const ID: usize = 1;
const SOURCE_ID: usize = 2;
const STATE: usize = 3;
const PRIORITY: usize = 4;
const DEFERRED: usize = 5;
const MAYBE_BILLED: usize = 7;
const ENDED_AT: usize = 10;
const KEY: usize = 17;
const BODY_BYTES: usize = 18;
const BODY_KEPT: usize = 20;
const BODY_FILE: usize = 21;
const REASON: usize = 22;
/// Places in an answer's values.
const ANSWER_SIZE: usize = 10;
const ANSWER_FILE: usize = 13;

/// A row as it was found, with what belongs to it.
#[derive(Debug, Clone)]
pub(super) struct SalvagedRow {
    /// The 25 columns of `request` before `version`, in the table's order.
    pub(super) values: Vec<Value>,
    pub(super) version: u64,
    /// A newer image of the row could not be read: its state may be behind.
    pub(super) superseded: bool,
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

    fn text(&self, at: usize) -> Option<&str> {
        match self.values.get(at) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// Takes a row back where it is missing or older than this copy.
pub(super) fn adopt_row(store: &mut Store, row: &SalvagedRow) -> Result<Adopted, SpoolError> {
    let id = row.text(ID).filter(|_| row.values.len() == sum::REQUEST.len() - 1);
    let id = id.ok_or_else(|| SpoolError::Storage("a salvaged row has another shape".into()))?.to_owned();
    let state = codes::state(row.int(STATE))?;
    if !state.is_final() && has_ended(store, &id, row.version) {
        return Ok(Adopted::Ended);
    }
    let standing = store.by_id(&id)?;
    let verdict = match &standing {
        Some(old) if old.version >= row.version => return Ok(Adopted::Known),
        Some(_) => Adopted::Updated,
        None => Adopted::Inserted,
    };
    let held = store.held.contains(&row.seq());
    if let Some(old) = standing {
        // It comes back at once, with its files.
        let before = (store.effects.unlink.len(), store.effects.outcomes.len());
        store.remove(&old)?;
        let names = names(row);
        let mut at = 0;
        store.effects.unlink.retain(|name| {
            at += 1;
            at <= before.0 || !names.iter().any(|kept| kept == name)
        });
        store.effects.outcomes.truncate(before.1);
    }
    insert(store, row, &id, state, held)?;
    Ok(verdict)
}

/// A copy with a higher version than the one that ended was queued again by hand since.
fn has_ended(store: &mut Store, id: &str, version: u64) -> bool {
    let data_dir = store.options.data_dir.clone();
    store.rescue.known(&data_dir).ended(id).is_some_and(|(_, ended)| ended >= version)
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
    let name = row.source.clone().unwrap_or_else(|| format!("lost:{}", row.int(SOURCE_ID)));
    let source_id = accept::source(store, &name)?;
    let mut turn = turn(store, row, state, held);
    let mut values = row.values.clone();
    if is_taken(store, source_id, row.text(KEY))? {
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
    values[DEFERRED] = Value::Integer(0);
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
    attach(store, row, seq)?;
    count(store, row, source_id, turn.state, kept)?;
    if turn.state.is_final() && !state.is_final() {
        store.effects.notices.push((seq, id.to_owned(), turn.state));
        let line = super::outcomes::Line { seq, id: id.to_owned(), state: Some(turn.state), version: row.version + 1 };
        store.effects.outcomes.push(line);
    }
    Ok(())
}

fn is_taken(store: &Store, source_id: i64, key: Option<&str>) -> Result<bool, SpoolError> {
    let Some(key) = key else { return Ok(false) };
    let text = "SELECT 1 FROM request WHERE source_id = ?1 AND idempotency_key = ?2";
    Ok(store.conn.prepare_cached(text)?.exists(rusqlite::params![source_id, key])?)
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
    let columns: Vec<&str> = sum::ANSWER[..12].iter().copied().chain(["bytes", "file"]).collect();
    for answer in row.answers.iter().filter(|a| a.len() == columns.len()) {
        let mut values = answer.clone();
        values[SEQ] = Value::Integer(sql(seq));
        write(store, "answer", &columns, &values)?;
        if let Value::Integer(size) = values[ANSWER_SIZE] {
            store.counts.kept_bytes += num(size);
            store.counts.answer_bytes += num(size);
        }
    }
    Ok(())
}

fn count(store: &mut Store, row: &SalvagedRow, source_id: i64, state: State, kept: bool) -> Result<(), SpoolError> {
    let place = Place { source_id, priority: row.int(PRIORITY), body_bytes: num(row.int(BODY_BYTES)) };
    if kept {
        store.counts.kept_bytes += place.body_bytes;
    }
    store.enter(&place, state, state == State::Queued)
}
