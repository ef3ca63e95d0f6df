//! Whose row a record is, and whether it can be believed.
//!
//! Owns the column patterns of every version on disk; never guesses at a row that fits none.

use rusqlite::types::{Value, ValueRef};

use crate::control::types::State;
use crate::plant::{self, Fault};
use crate::spool::{codes, files, sum};

/// Columns of `request` that version 1 has already.
const REQUEST_COLUMNS_V1: usize = 25;
/// Columns of `request` before `version`.
pub(super) const REQUEST_COLUMNS: usize = 29;
/// Columns of `answer` that version 1 has already.
pub(super) const ANSWER_COLUMNS: usize = 14;
/// Places of columns that are looked at here.
pub(super) const ID: usize = 1;
pub(super) const SOURCE_ID: usize = 2;
pub(super) const STATE: usize = 3;
pub(super) const BODY_HASH: usize = 19;
pub(super) const BODY_KEPT: usize = 20;
pub(super) const BODY_FILE: usize = 21;
pub(super) const REASON: usize = 22;
pub(super) const MAYBE_BILLED: usize = 7;
pub(super) const ERROR_KIND: usize = 23;
const VERSION: usize = 29;
const REQUEST_SUM: usize = 30;
pub(super) const ANSWER_LOCAL: usize = 1;
pub(super) const ANSWER_HASH: usize = 11;
pub(super) const ANSWER_BYTES: usize = 12;
pub(super) const ANSWER_FILE: usize = 13;
const ANSWER_SUM: usize = 14;
const POWERED_MS: usize = 3;
const NEXT_SEQ: usize = 5;
/// What every id begins with.
const ID_PREFIX: &str = "req_";
/// Digits behind it.
const ID_DIGITS: usize = 32;

/// The tables whose rows are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Body,
    Answer,
    Source,
    Service,
    Schema,
}

/// A column a letter: n null, i integer, t tet, b blob; capital: that or null. One line a version.
const PATTERNS: [(Kind, &str); 11] = [
    (Kind::Request, "ntiiiiiiiiiiiittTTibiTTTT"),
    (Kind::Request, "ntiiiiiiiiiiiittTTibiTTTTBiIiib"),
    (Kind::Body, "nb"),
    (Kind::Answer, "iittitiIIiibBT"),
    (Kind::Answer, "iittitiIIiibBTb"),
    (Kind::Source, "nti"),
    (Kind::Source, "ntib"),
    (Kind::Source, "ntb"),
    (Kind::Service, "ntiiiiiiiiiiiiiiiii"),
    (Kind::Service, "ntiiiiiiiiiiiiiiiiii"),
    (Kind::Schema, "tttiT"),
];

/// The table whose row has these serial types.
pub(super) fn kind(types: &[u64]) -> Option<Kind> {
    let fits = |pattern: &str| pattern.len() == types.len() && pattern.bytes().zip(types).all(|(p, t)| matches(p, *t));
    PATTERNS.iter().find(|(_, pattern)| fits(pattern)).map(|(kind, _)| *kind)
}

fn matches(letter: u8, kind: u64) -> bool {
    match letter {
        b'n' => kind == 0,
        b'i' => matches!(kind, 1..=6 | 8 | 9),
        b't' => kind >= 13 && kind % 2 == 1,
        b'b' => kind >= 12 && kind.is_multiple_of(2),
        capital => kind == 0 || matches(capital.to_ascii_lowercase(), kind),
    }
}

/// How much a row's content is to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Worth {
    /// Its sum does not hold, or it says what cannot be.
    Damaged,
    /// Written before there were sums, and makes sense.
    Plausible,
    /// Its sum holds.
    Proven,
}

/// A row of `request`, its key filled in.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    /// The columns before `version`.
    pub(super) values: Vec<Value>,
    pub(super) version: i64,
    pub(super) worth: Worth,
}

/// Judges a decoded row of `request`.
pub(super) fn request(mut values: Vec<Value>, rowid: i64) -> Request {
    values[0] = Value::Integer(rowid);
    let worth = worth(&values, 0..=VERSION, REQUEST_SUM);
    let worth = if worth == Worth::Plausible && !makes_sense(&values) { Worth::Damaged } else { worth };
    let version = integer(&values, VERSION).unwrap_or(0);
    if values.len() == REQUEST_COLUMNS_V1 {
        // No device had a request then.
        values.extend([Value::Null, Value::Integer(0), Value::Null, Value::Integer(0)]);
    }
    values.truncate(REQUEST_COLUMNS);
    Request { values, version, worth }
}

/// Judges a decoded row of `answer`; its bytes have a hash of their own.
pub(super) fn answer(values: &[Value]) -> Worth {
    let summed = values.iter().take(ANSWER_COLUMNS).enumerate().filter(|(at, _)| *at != ANSWER_BYTES);
    by_sum(summed.map(|(_, v)| ValueRef::from(v)), values.get(ANSWER_SUM))
}

/// Judges a decoded row of `source` and gives its name.
pub(super) fn source(values: &mut [Value], rowid: i64) -> (Option<String>, Worth) {
    values[0] = Value::Integer(rowid);
    let worth = by_sum(values.iter().take(2).map(ValueRef::from), source_sum(values));
    (text(values, 1).map(str::to_owned), worth)
}

/// The sum of a source: the last of its columns, where it is a version with sums.
pub(super) fn source_sum(values: &[Value]) -> Option<&Value> {
    values.last().filter(|last| matches!(last, Value::Blob(_)))
}

/// The next sequence number and the powered-on milliseconds that a row of `service` names.
pub(super) fn service(values: &[Value]) -> Option<(i64, i64)> {
    Some((integer(values, NEXT_SEQ)?, integer(values, POWERED_MS)?))
}

fn worth(values: &[Value], summed: std::ops::RangeInclusive<usize>, at: usize) -> Worth {
    by_sum(values.get(summed).unwrap_or_default().iter().map(ValueRef::from), values.get(at))
}

fn by_sum<'a>(values: impl Iterator<Item = ValueRef<'a>>, stored: Option<&Value>) -> Worth {
    match stored {
        Some(_) if plant::is(Fault::TrustIntegrityCheck) => Worth::Proven,
        None => Worth::Plausible,
        Some(Value::Blob(stored)) if stored[..] == sum::of(values)[..] => Worth::Proven,
        Some(_) => Worth::Damaged,
    }
}

/// Whether a row without a sum can have been written by the spool.
fn makes_sense(values: &[Value]) -> bool {
    let code = |at: usize| integer(values, at).unwrap_or(-1);
    let counts = values.iter().all(|v| !matches!(v, Value::Integer(n) if *n < 0));
    counts
        && integer(values, 0).is_some_and(|seq| seq > 0)
        && text(values, ID).is_some_and(is_id)
        && codes::state(code(STATE)).is_ok()
        && codes::priority(code(4)).is_ok()
        && codes::policy(code(13)).is_ok()
        && matches!(values.get(BODY_HASH), Some(Value::Blob(hash)) if hash.len() == 32)
        && (0..=1).contains(&code(BODY_KEPT))
}

/// Whether a text is an id as the spool's callers make them: anything else is half noise.
pub(super) fn is_id(text: &str) -> bool {
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    text.strip_prefix(ID_PREFIX).is_some_and(|digits| digits.len() == ID_DIGITS && digits.bytes().all(is_digit))
}

/// An entry of the index of ids: the id and its row's number.
pub(super) fn id_entry(values: &[Value]) -> Option<(&str, i64)> {
    match values {
        [Value::Text(id), Value::Integer(seq)] if is_id(id) && *seq > 0 => Some((id, *seq)),
        _ => None,
    }
}

/// An entry of the index of states that says "being sent". SQLite puts the row's number behind every entry, here a second
/// time. No other index has three numbers but that of answers, whose second is 0 or 1, and that of turns in a file of version 2: an entry
/// of it that looks the same puts a waiting request in doubt, which costs a label.
pub(super) fn sending_entry(values: &[Value]) -> Option<u64> {
    match values {
        [Value::Integer(state), Value::Integer(seq), Value::Integer(row)]
            if *state == codes::state_code(State::Sending) && seq == row =>
        {
            u64::try_from(*seq).ok()
        }
        _ => None,
    }
}

/// Where the index of answers begins, if that is what a row of the schema is about.
pub(super) fn answers_index(values: &[Value]) -> Option<u32> {
    let ours = text(values, 1) == Some("sqlite_autoindex_answer_1");
    integer(values, 3).filter(|_| ours).and_then(|page| u32::try_from(page).ok())
}

/// Where a tree of the table of sources begins, if that is what a row of the schema is about: the table's or its index's.
pub(super) fn sources_tree(values: &[Value]) -> Option<u32> {
    let ours = text(values, 2) == Some("source");
    integer(values, 3).filter(|_| ours).and_then(|page| u32::try_from(page).ok())
}

/// An entry of the index of answers: the request's number, and whether it is the local model's.
pub(super) fn answer_entry(values: &[Value]) -> Option<(i64, bool)> {
    match values {
        [Value::Integer(seq), Value::Integer(local @ (0 | 1)), Value::Integer(_)] if *seq > 0 => {
            Some((*seq, *local == 1))
        }
        _ => None,
    }
}

/// An entry of the index of sources: the name and its row's number. Other indexes of a text and a number hold ids
/// and names of files.
pub(super) fn source_entry(values: &[Value]) -> Option<(&str, i64)> {
    match values {
        [Value::Text(name), Value::Integer(id)]
            if !name.starts_with(ID_PREFIX) && files::start_of(name).is_none() && *id > 0 =>
        {
            Some((name, *id))
        }
        _ => None,
    }
}

/// The integer in a column.
pub(super) fn integer(values: &[Value], at: usize) -> Option<i64> {
    match values.get(at) {
        Some(Value::Integer(n)) => Some(*n),
        _ => None,
    }
}

/// The text in a column.
pub(super) fn text(values: &[Value], at: usize) -> Option<&str> {
    match values.get(at) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

/// The bytes in a column.
pub(super) fn blob(values: &[Value], at: usize) -> Option<&[u8]> {
    match values.get(at) {
        Some(Value::Blob(bytes)) => Some(bytes),
        _ => None,
    }
}
