//! The numbers that stand for words on disk.
//!
//! Owns the on-disk code of every enum; never changes one, whatever the in-memory types do.

use crate::control::types::{Policy, Priority, State};

use super::SpoolError;

/// `state` on disk; `queued`, `sending` and `unknown` stay below [`FIRST_FINAL`].
const STATES: [(State, i64); 8] = [
    (State::Queued, 0),
    (State::Sending, 1),
    (State::Unknown, 2),
    (State::Answered, 3),
    (State::Expired, 4),
    (State::Cancelled, 5),
    (State::Evicted, 6),
    (State::Dead, 7),
];

const POLICIES: [(Policy, i64); 4] = [(Policy::Both, 0), (Policy::Local, 1), (Policy::Queue, 2), (Policy::Fail, 3)];

/// The final states are `state >= 3`; the schema's partial indexes say the same number.
#[cfg(test)]
pub(super) const FIRST_FINAL: i64 = 3;

pub(super) fn state_code(state: State) -> i64 {
    STATES.iter().find(|(s, _)| *s == state).map_or(0, |(_, code)| *code)
}

pub(super) fn state(code: i64) -> Result<State, SpoolError> {
    find(&STATES, code, "state")
}

pub(super) fn policy_code(policy: Policy) -> i64 {
    POLICIES.iter().find(|(p, _)| *p == policy).map_or(0, |(_, code)| *code)
}

pub(super) fn policy(code: i64) -> Result<Policy, SpoolError> {
    find(&POLICIES, code, "policy")
}

pub(super) fn priority(code: i64) -> Result<Priority, SpoolError> {
    u8::try_from(code).ok().and_then(Priority::from_rank).ok_or_else(|| unknown("priority", code))
}

fn find<T: Copy>(table: &[(T, i64)], code: i64, what: &str) -> Result<T, SpoolError> {
    table.iter().find(|(_, c)| *c == code).map(|(t, _)| *t).ok_or_else(|| unknown(what, code))
}

fn unknown(what: &str, code: i64) -> SpoolError {
    SpoolError::Damaged(format!("{what} {code} on disk has no meaning"))
}

/// SQLite's integers are signed; what does not fit is as good as the largest.
pub(super) fn sql(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The inverse of [`sql`]; a negative number can only be damage and reads as nothing.
pub(super) fn num(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
