//! A stored request as JSON: the record that `GET /holdfast/v1/requests/{id}` shows.

use std::io::BufReader;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::body::Body;
use crate::control::price::{Prices, Usage};
use crate::control::types::State;
use crate::gateway::agreement;
use crate::spool::record::Record;
use crate::task::{Book, Rule, WHOLE_BYTES_MAX, said};
use crate::uplink::body::Spliced;

/// Most of an answer that is no JSON that is shown.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// The whole object, in the order of its names: the uplink's answer is the last of all. Answers are there where the record brought
/// their bytes.
#[derive(Serialize)]
pub struct RecordJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    agreement: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agreement_rule: Option<Value>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<Value>,
    /// Shown in wall time, decided in powered-on time: a board without a clock shows nonsense and expires right.
    created_at: u64,
    endpoint: &'a str,
    expires_at: Option<u64>,
    id: &'a str,
    label: Option<&'a str>,
    last_error: Option<ErrorJson<'a>>,
    local: Value,
    maybe_billed: bool,
    model: &'a str,
    /// None where it leaves in its turn, or when an uplink is back.
    next_attempt_at: Option<u64>,
    object: &'static str,
    policy: &'static str,
    position: Option<u64>,
    priority: &'static str,
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    seq: u64,
    source: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<u16>,
    uplink: Option<UplinkJson<'a>>,
}

#[derive(Serialize)]
struct ErrorJson<'a> {
    kind: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct UplinkJson<'a> {
    at: u64,
    cost_usd: Option<f64>,
    latency_ms: u64,
    model: &'a str,
    name: &'a str,
    status: u16,
    usage: Option<Value>,
    /// Last, so that it can follow as it came.
    response: Value,
}

/// Why one is dead without another attempt: the disk lost it, or it is another's copy.
const UNTRIED: [&str; 2] = ["damaged", "duplicate"];
/// What a record's text ends with where the uplink's answer is left out.
const NO_RESPONSE: &str = "null}}";

/// The text of a record, `next` being when it is sent at the earliest, in Unix seconds. An uplink's answer that the scanner takes, so a JSON object, stands in it as it came, and leaves in slices:
/// it may be megabytes. Blocks where an answer is a file.
pub fn spliced(record: &Record, tasks: &Book, prices: &Prices, next: Option<u64>) -> Spliced {
    let around = |answer: &Body| {
        let mut text = RecordJson::around(record, tasks, prices, Value::Null).sent_after(next).text();
        text.truncate(text.strip_suffix(NO_RESPONSE)?.len());
        let (before, end) = (Bytes::from(text), answer.len());
        let edits = vec![(0..0, before), (end..end, Bytes::from_static(b"}}"))];
        Some(Spliced { body: answer.clone(), edits })
    };
    let as_it_is = || Body::from(RecordJson::of(record, tasks, prices).sent_after(next).text().into_bytes()).into();
    as_it_came(record).and_then(around).unwrap_or_else(as_it_is)
}

/// Bytes of answers that [`spliced`] makes a tree of.
pub fn reshaped_bytes(record: &Record) -> u64 {
    let uplink = record.uplink.as_ref().filter(|_| as_it_came(record).is_none());
    let local = record.local.as_ref().map_or(0, |(answer, _)| answer.body.len() as u64);
    uplink.map_or(0, |(answer, _)| answer.body.len()) + local
}

fn as_it_came(record: &Record) -> Option<&Body> {
    record.uplink.as_ref().map(|(answer, _)| &answer.body).filter(|body| body.layout().is_ok())
}

impl<'a> RecordJson<'a> {
    /// With the uplink's answer as a tree. Blocks where an answer is a file.
    pub fn of(record: &'a Record, tasks: &Book, prices: &Prices) -> RecordJson<'a> {
        let response = record.uplink.as_ref().map_or(Value::Null, |(answer, _)| response(&answer.body));
        RecordJson::around(record, tasks, prices, response)
    }

    fn around(record: &'a Record, tasks: &Book, prices: &Prices, response: Value) -> RecordJson<'a> {
        let is_final = record.state.is_final();
        let agreement = agreement(record, tasks);
        let last_error = record.last_error.as_ref().map(|e| ErrorJson { kind: &e.kind, message: &e.message });
        RecordJson {
            agreement: agreement.map(|(agreement, _)| agreement.as_str()),
            agreement_rule: agreement.map(|(_, rule)| rule.map(Rule::as_str).into()),
            // The record counts the failed ones that were followed by another.
            attempts: record.attempts + u32::from(ended_by_an_attempt(record)),
            body_base64: None,
            created_at: record.created_unix_ms / 1000,
            endpoint: &record.endpoint,
            expires_at: (!is_final).then(|| (crate::clock::unix_ms() + record.ttl_left_ms) / 1000),
            id: &record.id,
            label: record.label.as_deref(),
            // What failed before the answer came is history, and would read like a failure.
            last_error: last_error.filter(|_| record.state != State::Answered),
            local: local(record),
            maybe_billed: record.maybe_billed,
            model: &record.model,
            next_attempt_at: None,
            object: "holdfast.request",
            policy: record.policy.as_str(),
            position: (!is_final).then_some(record.position),
            priority: record.priority.as_str(),
            reason: record.reason.as_deref(),
            result: record.task.map(|_| result(record, tasks)),
            seq: record.seq,
            source: &record.source,
            state: record.state.as_str(),
            task: record.task,
            uplink: uplink(record, prices, response),
        }
    }

    /// The same where nobody runs who knows its place in line.
    #[must_use]
    pub fn out_of_line(self) -> RecordJson<'a> {
        RecordJson { position: None, ..self }
    }

    fn sent_after(self, next_attempt_at: Option<u64>) -> RecordJson<'a> {
        RecordJson { next_attempt_at, ..self }
    }

    /// The same with what was asked; nothing where it is gone.
    #[must_use]
    pub fn with_body(self, body: Option<&[u8]>) -> RecordJson<'a> {
        RecordJson { body_base64: Some(body.map(|body| STANDARD.encode(body)).into()), ..self }
    }

    /// As JSON.
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
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

fn uplink<'a>(record: &'a Record, prices: &Prices, response: Value) -> Option<UplinkJson<'a>> {
    let (answer, at) = record.uplink.as_ref()?;
    let usage = |usage: Usage| {
        json!({
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        })
    };
    Some(UplinkJson {
        at: at / 1000,
        cost_usd: answer.usage.and_then(|usage| prices.cost_usd(&answer.uplink, &answer.model, usage)),
        latency_ms: answer.latency_ms,
        model: &answer.model,
        name: &answer.uplink,
        status: answer.status,
        usage: answer.usage.map(usage),
        response,
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

/// Whether it has its end from an attempt, and not from its owner, its age or the disk.
fn ended_by_an_attempt(record: &Record) -> bool {
    match record.state {
        State::Answered => record.uplink.is_some(),
        State::Dead if record.reason.as_deref().is_some_and(|reason| UNTRIED.contains(&reason)) => false,
        State::Dead => record.uplink.is_some() || record.last_error.is_some(),
        _ => false,
    }
}

/// An uplink's word that ended the request; what came of a cut answer is kept with one that still waits.
fn brought_the_end(state: State) -> bool {
    matches!(state, State::Answered | State::Dead)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::control::types::{Policy, Priority};
    use crate::spool::record::{LocalAnswer, UplinkAnswer};
    use crate::uplink::outgoing::Outgoing;

    fn answered(state: State, by_uplink: &str, by_local: Option<&str>) -> Record {
        let uplink = UplinkAnswer {
            uplink: "cloud".to_owned(),
            model: "m".to_owned(),
            status: 200,
            content_type: "application/json".to_owned(),
            latency_ms: 1,
            usage: Some(Usage { prompt_tokens: 1, completion_tokens: 2 }),
            body: by_uplink.as_bytes().to_vec().into(),
        };
        let local = |text: &str| LocalAnswer { model: "l".to_owned(), latency_ms: 1, body: text.to_owned().into() };
        Record {
            seq: 1,
            id: "req_1".to_owned(),
            state,
            reason: None,
            source: "uid:1000".to_owned(),
            label: None,
            endpoint: "/v1/chat/completions".to_owned(),
            model: "m".to_owned(),
            priority: Priority::Normal,
            policy: Policy::Both,
            created_unix_ms: 1000,
            ttl_left_ms: 0,
            attempts: 0,
            maybe_billed: false,
            body_bytes: 2,
            body_hash: [0; 32],
            task: Some(7),
            position: 0,
            last_error: None,
            local: by_local.map(|text| (local(text), 1)),
            uplink: Some((uplink, 1)),
        }
    }

    #[tokio::test]
    async fn an_answer_put_in_as_it_came_says_the_same_as_its_tree() {
        let (tasks, prices) = (Book::default(), Prices::default());
        for (came, is_put_in) in [
            (r#"{"choices":[{"message":{"content":"a\u00e4"}}]}"#, true),
            (" {\n\"a\" : 1.50 }\n ", true),
            (r#"{"model":1,"model":2}"#, false),
            (r#"{"choices":[{"mess"#, false),
            ("[1]", false),
            ("<html>", false),
            ("", false),
        ] {
            for local in [None, Some(r#"{"b":1}"#)] {
                let record = answered(State::Answered, came, local);
                let spliced = spliced(&record, &tasks, &prices, None);
                assert_eq!(spliced.edits.is_empty(), !is_put_in, "{came}");
                let sent = Outgoing::new(spliced, None).0.collect().await.unwrap().to_bytes();
                let shown: Value = serde_json::from_slice(&sent).unwrap_or_else(|error| panic!("{came}: {error}"));
                let tree: Value = serde_json::from_str(&RecordJson::of(&record, &tasks, &prices).text()).unwrap();
                assert_eq!(shown, tree, "{came}");
                let reshaped = if is_put_in { 0 } else { came.len() as u64 };
                assert_eq!(reshaped_bytes(&record), reshaped + local.map_or(0, |text| text.len() as u64));
            }
        }
    }
}
