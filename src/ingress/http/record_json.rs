//! A stored request as JSON: the record that `GET /holdfast/v1/requests/{id}` shows.

use std::io::BufReader;

use serde_json::{Value, json};

use crate::body::Body;
use crate::control::price::Prices;
use crate::control::types::State;
use crate::gateway::agreement;
use crate::spool::record::Record;
use crate::task::{Book, Rule, WHOLE_BYTES_MAX, said};

/// Most of an answer that is no JSON that is shown.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// The whole object; answers are there where the record brought their bytes. Blocks where one is a file.
pub fn record_json(record: &Record, tasks: &Book, prices: &Prices) -> Value {
    let created_s = record.created_unix_ms / 1000;
    // Shown in wall time, decided in powered-on time: a board without a clock shows nonsense and expires right.
    let expires = (!record.state.is_final()).then(|| (crate::clock::unix_ms() + record.ttl_left_ms) / 1000);
    let mut value = json!({
        "id": record.id,
        "object": "holdfast.request",
        "seq": record.seq,
        "state": record.state.as_str(),
        "reason": record.reason,
        "source": record.source,
        "label": record.label,
        "endpoint": record.endpoint,
        "model": record.model,
        "priority": record.priority.as_str(),
        "policy": record.policy.as_str(),
        "created_at": created_s,
        "expires_at": expires,
        // The record counts failed ones; the one that brought the uplink's word is an attempt too.
        "attempts": record.attempts + u32::from(record.uplink.is_some() && brought_the_end(record.state)),
        "maybe_billed": record.maybe_billed,
        "next_attempt_at": Value::Null,
        "position": if record.state.is_final() { Value::Null } else { json!(record.position) },
        "local": Value::Null,
        "uplink": Value::Null,
        // What failed before the answer came is history, and would read like a failure.
        "last_error": record.last_error.as_ref().filter(|_| record.state != State::Answered).map(|e| json!({"kind": e.kind, "message": e.message})),
    });
    // Moved into its place, as the answers in them: the macro would copy them, and they may be megabytes.
    value["local"] = local(record);
    value["uplink"] = uplink(record, prices);
    if let Some(task) = record.task {
        value["task"] = json!(task);
        value["result"] = result(record, tasks);
    }
    if let Some((agreement, rule)) = agreement(record, tasks) {
        value["agreement"] = json!(agreement.as_str());
        value["agreement_rule"] = json!(rule.map(Rule::as_str));
    }
    value
}

/// What a task's answer came to, the uplink's before the local model's; null while there is none, or no such task any
/// more.
fn result(record: &Record, tasks: &Book) -> Value {
    let read = |source: String, words: Option<String>| {
        let reading = record.task.and_then(|task| tasks.get(task))?.read(&words?);
        Some(json!({
            "status": if reading.fits { "ok" } else { "failed" },
            "code": reading.code,
            "value": reading.value,
            "text": reading.text,
            "source": source,
        }))
    };
    let uplink = record.uplink.as_ref().filter(|_| brought_the_end(record.state)).and_then(|(answer, _)| {
        let is_short = answer.body.len() <= WHOLE_BYTES_MAX;
        // What only the local model may answer stands where an uplink's would, without an uplink's name.
        let place = if answer.uplink.is_empty() { ("local", &answer.model) } else { ("uplink", &answer.uplink) };
        read(format!("{}:{}", place.0, place.1), is_short.then(|| said(answer.body.reader())).flatten())
    });
    let local = || {
        let (answer, _) = record.local.as_ref()?;
        read(format!("local:{}", answer.model), said(&*answer.body))
    };
    json!(uplink.or_else(local))
}

fn local(record: &Record) -> Value {
    record.local.as_ref().map_or(Value::Null, |(answer, at)| {
        let mut value = json!({
            "model": answer.model,
            "at": at / 1000,
            "latency_ms": answer.latency_ms,
        });
        value["response"] = response(&answer.body.clone().into());
        value
    })
}

fn uplink(record: &Record, prices: &Prices) -> Value {
    record.uplink.as_ref().map_or(Value::Null, |(answer, at)| {
        let usage = answer.usage.map(|u| {
            json!({
                "prompt_tokens": u.prompt_tokens,
                "completion_tokens": u.completion_tokens,
                "total_tokens": u.prompt_tokens + u.completion_tokens,
            })
        });
        let mut value = json!({
            "name": answer.uplink,
            "model": answer.model,
            "status": answer.status,
            "at": at / 1000,
            "latency_ms": answer.latency_ms,
            "usage": usage,
            "cost_usd": answer.usage.and_then(|usage| prices.cost_usd(&answer.model, usage)),
        });
        value["response"] = response(&answer.body);
        value
    })
}

/// JSON as JSON, anything else as text; nothing where the listing left it out.
fn response(body: &Body) -> Value {
    if body.is_empty() {
        return Value::Null;
    }
    serde_json::from_reader(BufReader::new(body.reader())).unwrap_or_else(|_| {
        let text = body.start(TEXT_BYTES_MAX).unwrap_or_default();
        Value::String(String::from_utf8_lossy(&text).into_owned())
    })
}

/// An uplink's word that ended the request; what came of a cut answer is kept with one that still waits.
fn brought_the_end(state: State) -> bool {
    matches!(state, State::Answered | State::Dead)
}
