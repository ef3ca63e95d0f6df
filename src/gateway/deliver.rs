//! Sends one stored request to one uplink and says what came of it.
//!
//! The lease is already on disk as `sending`. Touches neither control nor the spool.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;

use super::{Shared, pay};
use crate::body::Body;
use crate::clock;
use crate::control::event::{Fault, KeyIndex, Outcome};
use crate::money::Reservation;
use crate::spool::record::{LastError, Leased, UplinkAnswer};
use crate::task::{Book, WHOLE_BYTES_MAX, said};
use crate::uplink::cloud::{ANSWER_BYTES_MAX, Call, Cloud, Whole};
use crate::uplink::{body, classify, usage};

/// What came of sending a stored request.
pub(super) struct Delivery {
    pub(super) outcome: Outcome,
    pub(super) answer: Option<UplinkAnswer>,
    pub(super) error: Option<LastError>,
    pub(super) latency_ms: u64,
}

/// Longest part of an uplink's refusal that is quoted as the reason.
const WORDS_MAX: usize = 300;
/// As much of an answer as its status is judged with: an error's words, the first bytes of a page.
const START_BYTES: usize = 64 * 1024;

/// An answer as far as it was received.
#[derive(Clone)]
pub struct Received {
    /// With the body's first bytes.
    pub head: Whole,
    /// The body.
    pub body: Body,
    /// Why it is not all of it.
    pub failed: Option<Outcome>,
}

impl Delivery {
    /// Nobody knows how far it came.
    pub(super) fn broken_off(cloud: &Cloud) -> Delivery {
        Delivery::without(cloud, Outcome::Unknown(Fault::Internal), 0)
    }

    /// There is no answer.
    pub(super) fn without(cloud: &Cloud, outcome: Outcome, latency_ms: u64) -> Delivery {
        Delivery { outcome, answer: None, error: Some(failure(cloud, outcome, None)), latency_ms }
    }
}

/// Sends it, once.
pub(super) async fn deliver(
    (cloud, key): (Arc<Cloud>, KeyIndex),
    shared: &Arc<Shared>,
    leased: &Leased,
    on_out: oneshot::Sender<()>,
    mut stop: watch::Receiver<bool>,
) -> Delivery {
    let started = clock::now();
    let mut reserved = None;
    let result = send((&cloud, key), shared, leased, on_out, &mut stop, &mut reserved).await;
    let latency_ms = clock::now().duration_since(started).as_millis() as u64;
    end(&cloud, shared, leased, result, latency_ms, reserved).await
}

/// What came of an attempt as the stored request's end, and what it cost.
pub(super) async fn end(
    cloud: &Arc<Cloud>,
    shared: &Shared,
    leased: &Leased,
    result: Result<Received, Outcome>,
    latency_ms: u64,
    reserved: Option<Reservation>,
) -> Delivery {
    let delivery = match result {
        Ok(came) => {
            let (named, asked, book) = (cloud.clone(), leased.clone(), shared.tasks.clone());
            let judged = spawn_blocking(move || judge(&named, &asked, &book, &came, latency_ms));
            judged.await.unwrap_or_else(|_| Delivery::without(cloud, Outcome::Unknown(Fault::Truncated), latency_ms))
        }
        Err(outcome) => Delivery::without(cloud, outcome, latency_ms),
    };
    if let Some(reserved) = reserved {
        let said = delivery.answer.as_ref().and_then(|answer| Some((Some(answer.model.clone()), answer.usage?)));
        reserved.settle(&pay::end(delivery.outcome, said));
    }
    delivery
}

async fn send(
    (cloud, key): (&Cloud, KeyIndex),
    shared: &Shared,
    leased: &Leased,
    on_out: oneshot::Sender<()>,
    stop: &mut watch::Receiver<bool>,
    reserved: &mut Option<Reservation>,
) -> Result<Received, Outcome> {
    let mut head = body::read(&leased.endpoint, &leased.body).map_err(|_| Outcome::Permanent(Fault::Refused))?;
    // What `auto` stands for was decided when it was stored.
    head.model.clone_from(&leased.model);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let once = HeaderValue::from_str(&leased.idempotency_key);
    headers.insert(HeaderName::from_static("idempotency-key"), once.map_err(|_| Outcome::Permanent(Fault::Refused))?);
    let call = Call {
        method: Method::POST,
        path: leased.endpoint.clone(),
        headers,
        body: body::for_uplink(&leased.body, &head, cloud.alias(&leased.model), false),
        on_out: Some(on_out),
    };
    *reserved = tokio::select! {
        biased;
        reserved = pay::reserve(shared, cloud, &call, &leased.source, None) => reserved?,
        _ = stop.wait_for(|stop| *stop) => return Err(Outcome::GivenUp),
    };
    let mut reply = cloud.send_unless(call, key, stop.wait_for(|stop| *stop)).await.map_err(|e| e.outcome)?;
    let (body, failed) = tokio::select! {
        biased;
        received = reply.receive(Bytes::new(), shared.spool.bodies(), ANSWER_BYTES_MAX) => received,
        // The process ends now, and the answer had begun.
        _ = stop.wait_for(|stop| *stop) => return Err(Outcome::Unknown(Fault::Outage)),
    };
    let start = body.start_off_thread(START_BYTES).await.unwrap_or_default();
    Ok(Received { head: reply.with_body(start), body, failed })
}

/// What came of it. An error whose words broke off is told by its status. Blocks where the body is a file.
fn judge(cloud: &Cloud, asked: &Leased, tasks: &Book, came: &Received, latency_ms: u64) -> Delivery {
    let outcome = match classify::attempt(&came.head) {
        Outcome::Delivered => came.failed.unwrap_or_else(|| classify::stored_answer(&came.body)),
        other => other,
    };
    let outcome =
        if outcome == Outcome::Delivered && !fits(asked, tasks, &came.body) { Outcome::Misfit } else { outcome };
    let error = (outcome != Outcome::Delivered).then(|| failure(cloud, outcome, Some(&came.head)));
    let answer = matches!(
        outcome,
        Outcome::Delivered | Outcome::Misfit | Outcome::NoAnswer | Outcome::Permanent(_) | Outcome::Unknown(_)
    )
    .then(|| answer(cloud, &asked.model, came, latency_ms))
    .filter(|answer| !matches!(outcome, Outcome::Unknown(_)) || !answer.body.is_empty());
    Delivery { outcome, answer, error, latency_ms }
}

/// Whether the answer is what the request's task asks for. Without a task, or where it is gone, any answer is.
fn fits(asked: &Leased, tasks: &Book, body: &Body) -> bool {
    let Some(task) = asked.task.and_then(|task| tasks.get(task)) else { return true };
    let words = (body.len() <= WHOLE_BYTES_MAX).then(|| said(body.reader())).flatten();
    words.is_some_and(|words| task.read(&words).fits)
}

fn answer(cloud: &Cloud, asked: &str, came: &Received, latency_ms: u64) -> UplinkAnswer {
    let whole = &came.head;
    let summary = usage::read_from(came.body.reader());
    let content_type = whole.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    UplinkAnswer {
        uplink: cloud.name().to_owned(),
        model: summary.model.unwrap_or_else(|| asked.to_owned()),
        status: whole.status.as_u16(),
        content_type: content_type.to_owned(),
        latency_ms,
        usage: summary.usage,
        body: came.body.clone(),
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorWords,
}

#[derive(Deserialize)]
struct ErrorWords {
    code: Option<String>,
}

/// Quotes the uplink's error code, never its message: services repeat the prompt in messages.
fn failure(cloud: &Cloud, outcome: Outcome, whole: Option<&Whole>) -> LastError {
    let code = whole.and_then(|w| serde_json::from_slice::<ErrorBody>(&w.body).ok()).and_then(|b| b.error.code);
    let mut message = format!("uplink {}: {}", cloud.name(), sentence(outcome));
    if let Some(whole) = whole {
        message += &format!(" (HTTP {})", whole.status.as_u16());
    }
    if let Some(code) = code.filter(|c| c.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))) {
        message += &format!(", code {code}");
    }
    message.truncate(WORDS_MAX);
    LastError { kind: outcome.kind().to_owned(), message }
}

/// One plain sentence per outcome, for the record and the journal.
fn sentence(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Delivered => "answered",
        Outcome::Unreachable(Fault::Dns) => "its name could not be resolved; nothing was sent",
        Outcome::Unreachable(Fault::Tls) => "TLS failed: check certificate, ca_file and clock; nothing was sent",
        Outcome::Unreachable(Fault::Clock | Fault::WaitingForTime) => {
            "the clock is behind, so no certificate can be checked; nothing was sent"
        }
        Outcome::Unreachable(Fault::Redirect) => "it redirects, and keys are never carried along; nothing was billed",
        Outcome::Unreachable(Fault::Portal) => {
            "a web page answered in its place: is this network behind a log-in page?"
        }
        Outcome::Unreachable(Fault::NoKey) => "its key could not be read; nothing was sent",
        Outcome::Unreachable(_) => "it could not be reached; nothing was sent",
        Outcome::Transient(_) | Outcome::Later { .. } => "it failed for the moment",
        Outcome::RateLimited { .. } => "it asked to slow down",
        Outcome::Blocked(_) => "it refused the key, the quota or the model",
        Outcome::Permanent(_) => "it refused this request",
        Outcome::Unknown(Fault::Internal) => {
            "the gateway broke off in the middle of the attempt; it may have been billed"
        }
        Outcome::Unknown(_) => "the request was sent but not answered; it may have been billed",
        Outcome::NoAnswer => "it answered with something that is no answer",
        Outcome::Misfit => "its answer is not what the task asks for",
        Outcome::GivenUp => "the attempt was taken back",
        Outcome::Unaffordable => "it may cost more than is left of [budget] usd_per_day; nothing was sent",
    }
}
