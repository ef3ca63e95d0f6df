//! How a lease ends, and the answers kept beside a request.
//!
//! Owns "exactly one outcome": only a row in `sending` can be settled, and a second settle changes nothing.

use rusqlite::params;

use super::SpoolError;
use super::codes::sql;
use super::files::Staged;
use super::record::{LastError, LocalAnswer, Settlement, UplinkAnswer};
use super::store::Store;
use crate::body::Body;
use crate::clock;
use crate::control::types::State;

/// Of a refusal the uplink's own words are kept up to here: enough to read, not a second spool.
pub(super) const REFUSAL_MAX: usize = 64 * 1024;

/// Ends the lease of `seq`; `file` holds the answer's body where it is large.
pub(super) fn settle(store: &mut Store, seq: u64, how: &Settlement, file: Option<Staged>) -> Result<(), SpoolError> {
    let row = store.by_seq(seq)?;
    if row.is_none() && store.rescue.is_under_way() && store.held.contains(&seq) {
        // Its row is on its way back: the outcome waits for it, at the caller's.
        return Err(SpoolError::Salvaging);
    }
    let Some(row) = row.as_ref().filter(|row| row.state == State::Sending) else {
        if store.held.contains(&seq) {
            store.effects.freed.push(seq);
            // Should this commit land and be told as an error, it is told again, and must end no newer lease.
            store.effects.settled.push(seq);
            row.filter(|row| row.state.is_final()).iter().for_each(|row| store.end_stands(row));
        }
        return Ok(());
    };
    store.effects.settled.push(seq);
    match how {
        Settlement::Answered(answer) => {
            put(store, seq, &Kept::uplink(answer), file)?;
            store.end(row, State::Answered, None)?;
            store.drop_body(row)
        }
        Settlement::Requeue { counted, deferred, maybe_billed, error, came } => {
            if let Some(came) = came {
                put_unless_paid(store, seq, came, file)?;
            }
            store.shift(row, State::Queued, *deferred)?;
            remember(store, seq, *counted, *maybe_billed, error.as_ref())
        }
        Settlement::Dead { reason, error, answer } => {
            if let Some(answer) = answer {
                put_unless_paid(store, seq, answer, file)?;
            }
            store.end(row, State::Dead, Some(reason))?;
            remember(store, seq, false, reason == UNKNOWN, Some(error))
        }
    }
}

/// Keeps what came of a send that is not the request's answer. The words of a refusal take no place of bytes that an
/// earlier send was paid for.
fn put_unless_paid(store: &mut Store, seq: u64, came: &UplinkAnswer, file: Option<Staged>) -> Result<(), SpoolError> {
    let text = "SELECT 1 FROM answer WHERE seq = ?1 AND local = 0 AND status BETWEEN 200 AND 299";
    if !(200..300).contains(&came.status) && store.conn.prepare_cached(text)?.exists([sql(seq)])? {
        return Ok(());
    }
    put(store, seq, &Kept::uplink(came), file)
}

/// Keeps the local model's answer; a request that is gone has nowhere to keep it.
pub(super) fn record_local(
    store: &mut Store,
    seq: u64,
    answer: &LocalAnswer,
    file: Option<Staged>,
) -> Result<(), SpoolError> {
    match store.by_seq(seq)? {
        Some(_) => put(store, seq, &Kept::local(answer), file),
        None => Ok(()),
    }
}

const REMEMBER: &str = "UPDATE request SET attempts = attempts + ?2, maybe_billed = max(maybe_billed, ?3),
    error_kind = coalesce(?4, error_kind), error_message = coalesce(?5, error_message) WHERE seq = ?1";

/// Why a request is dead whose send had no answer: it may have been billed, whoever sends it anew.
const UNKNOWN: &str = "unknown";

fn remember(
    store: &Store,
    seq: u64,
    counted: bool,
    maybe_billed: bool,
    error: Option<&LastError>,
) -> Result<(), SpoolError> {
    let (kind, message) = (error.map(|e| &e.kind), error.map(|e| &e.message));
    store.conn.prepare_cached(REMEMBER)?.execute(params![sql(seq), counted, maybe_billed, kind, message])?;
    Ok(())
}

/// Keeps the local model's answer as a device's one result, unless the request ended before; says whether it did.
pub(super) fn record_local_first(
    store: &mut Store,
    seq: u64,
    answer: &LocalAnswer,
    file: Option<Staged>,
) -> Result<bool, SpoolError> {
    store.rescue.behind.check(seq)?;
    let waits = store.by_seq(seq)?.is_some_and(|row| !row.state.is_final());
    if waits {
        put(store, seq, &Kept::local(answer), file)?;
    }
    Ok(waits)
}

/// Ends a request that only the local model may answer; says whether it was waiting. Its answer stands where an
/// uplink's would, with no uplink's name.
pub(super) fn settle_here(
    store: &mut Store,
    seq: u64,
    how: &Settlement,
    file: Option<Staged>,
) -> Result<bool, SpoolError> {
    store.rescue.behind.check(seq)?;
    let Some(row) = store.by_seq(seq)?.filter(|row| row.state == State::Queued && row.local_only) else {
        return Ok(false);
    };
    match how {
        Settlement::Answered(answer) => {
            put(store, seq, &Kept::uplink(answer), file)?;
            store.end(&row, State::Answered, None)?;
            store.drop_body(&row)?;
        }
        Settlement::Dead { reason, error, .. } => {
            store.end(&row, State::Dead, Some(reason))?;
            remember(store, seq, false, false, Some(error))?;
        }
        Settlement::Requeue { .. } => return Ok(false),
    }
    Ok(true)
}

/// An answer of either kind, as its row wants it.
struct Kept<'a> {
    local: bool,
    uplink: &'a str,
    model: &'a str,
    status: u16,
    content_type: &'a str,
    latency_ms: u64,
    tokens: Option<(u64, u64)>,
    body: Body,
}

impl<'a> Kept<'a> {
    fn uplink(a: &'a UplinkAnswer) -> Kept<'a> {
        Kept {
            local: false,
            uplink: &a.uplink,
            model: &a.model,
            status: a.status,
            content_type: &a.content_type,
            latency_ms: a.latency_ms,
            tokens: a.usage.map(|u| (u.prompt_tokens, u.completion_tokens)),
            body: a.body.clone(),
        }
    }

    fn local(a: &'a LocalAnswer) -> Kept<'a> {
        Kept {
            local: true,
            uplink: "",
            model: &a.model,
            status: 200,
            content_type: "application/json",
            latency_ms: a.latency_ms,
            tokens: None,
            body: a.body.clone().into(),
        }
    }
}

const PUT: &str = "INSERT INTO answer (seq, local, uplink, model, status, content_type, latency_ms, prompt_tokens,
    completion_tokens, at_unix_ms, size, hash, bytes, file)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";

fn put(store: &mut Store, seq: u64, kept: &Kept<'_>, file: Option<Staged>) -> Result<(), SpoolError> {
    store.drop_answer(seq, kept.local)?;
    let size = kept.body.len();
    // What is no file is small, and so one piece.
    let inline = if file.is_none() { Some(kept.body.in_one_piece().unwrap_or_default()) } else { None };
    store.conn.prepare_cached(PUT)?.execute(params![
        sql(seq),
        kept.local,
        kept.uplink,
        kept.model,
        kept.status,
        kept.content_type,
        sql(kept.latency_ms),
        kept.tokens.map(|t| sql(t.0)),
        kept.tokens.map(|t| sql(t.1)),
        sql(clock::unix_ms()),
        sql(size),
        kept.body.hash().as_slice(),
        inline.as_deref(),
        file.as_ref().map(Staged::name),
    ])?;
    store.counts.kept_bytes += size;
    store.counts.answer_bytes += size;
    if let Some(file) = file {
        file.keep();
    }
    Ok(())
}
