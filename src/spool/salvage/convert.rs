//! A salvaged row as the record that everybody else knows.
//!
//! Owns the way from columns to fields; never judges them, that has been done.

use bytes::Bytes;
use rusqlite::types::Value;

use super::rows::{blob, integer, text};
use super::{Answer, Found};
use crate::spool::codes::{self, num};
use crate::spool::record::{LastError, LocalAnswer, Record, UplinkAnswer, Usage};
use crate::spool::{SpoolError, sources};

/// Reads a file of the folder of bodies.
type ReadFile<'a> = &'a dyn Fn(&str) -> Result<Option<Bytes>, SpoolError>;

/// The record with its answers' bytes; `powered_ms` is the service clock's latest reading.
pub(super) fn record(found: &Found, powered_ms: u64, file: ReadFile<'_>) -> Result<Record, SpoolError> {
    let values = &found.values[..];
    let number = |at: usize| num(integer(values, at).unwrap_or(0));
    let word = |at: usize| text(values, at).map(str::to_owned);
    let state = codes::state(found.state_code())?;
    let left = number(9).saturating_sub(powered_ms);
    let mut record = Record {
        seq: found.seq(),
        id: found.id().to_owned(),
        state,
        reason: word(22),
        source: found.source.clone().unwrap_or_else(|| sources::lost_name(found.source_id())),
        label: word(16),
        endpoint: word(14).unwrap_or_default(),
        model: word(15).unwrap_or_default(),
        priority: codes::priority(integer(values, 4).unwrap_or(-1))?,
        policy: codes::policy(integer(values, 13).unwrap_or(-1))?,
        created_unix_ms: number(11),
        ttl_left_ms: if state.is_final() { 0 } else { left },
        attempts: u32::try_from(number(6)).unwrap_or(u32::MAX),
        maybe_billed: number(7) != 0,
        body_bytes: number(18),
        body_hash: blob(values, 19).and_then(|hash| hash.try_into().ok()).unwrap_or_default(),
        task: integer(values, 27).and_then(|task| u16::try_from(task).ok()),
        position: 0,
        last_error: word(23).map(|kind| LastError { kind, message: word(24).unwrap_or_default() }),
        local: None,
        uplink: None,
    };
    for answer in &found.answers {
        let body = bytes(answer, file)?;
        let at = num(integer(&answer.values, 9).unwrap_or(0));
        if answer.is_local() {
            record.local = Some((local(&answer.values, body), at));
        } else {
            record.uplink = Some((uplink(&answer.values, body), at));
        }
    }
    Ok(record)
}

fn bytes(answer: &Answer, file: ReadFile<'_>) -> Result<Bytes, SpoolError> {
    match text(&answer.values, 13) {
        Some(name) => Ok(file(name)?.unwrap_or_default()),
        None => Ok(Bytes::copy_from_slice(blob(&answer.values, 12).unwrap_or_default())),
    }
}

fn local(values: &[Value], body: Bytes) -> LocalAnswer {
    LocalAnswer { model: text(values, 3).unwrap_or_default().to_owned(), latency_ms: latency(values), body }
}

fn uplink(values: &[Value], body: Bytes) -> UplinkAnswer {
    let word = |at: usize| text(values, at).unwrap_or_default().to_owned();
    let tokens = integer(values, 7).zip(integer(values, 8));
    UplinkAnswer {
        uplink: word(2),
        model: word(3),
        status: integer(values, 4).and_then(|n| u16::try_from(n).ok()).unwrap_or(0),
        content_type: word(5),
        latency_ms: latency(values),
        usage: tokens.map(|(p, c)| Usage { prompt_tokens: num(p), completion_tokens: num(c) }),
        body: body.into(),
    }
}

fn latency(values: &[Value]) -> u64 {
    num(integer(values, 6).unwrap_or(0))
}
