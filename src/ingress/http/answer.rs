//! Answers to callers: an uplink's bytes, a stored record's answer, and the headers that say where they come from.
//!
//! Owns which response headers pass and which are ours. Decides nothing.

use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use hyper::header::{AGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{StatusCode, Version};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::call::is_for_this_hop;
use super::refusal::Refusal;
use crate::body::Body as Stored;
use crate::clock;
use crate::control::types::State;
use crate::spool::record::Record;
use crate::uplink::body::Spliced;
use crate::uplink::classify;
use crate::uplink::cloud::Whole;
use crate::uplink::outgoing::Outgoing;

/// Response headers of an uplink that stay on its side: hop-by-hop ones, cookies, and what is ours to say.
const KEPT_BACK: [&str; 16] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "set-cookie",
    "content-length",
    "date",
    "server",
    "alt-svc",
    "strict-transport-security",
    "x-request-id",
    "x-cache",
];

/// Where an answer comes from, for headers and metrics.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// `uplink:<name>`, `local:<model>`, `cache`, `cache-stale`.
    pub route: Option<String>,
    /// The stored request's id.
    pub id: Option<String>,
    /// The stored request's state.
    pub state: Option<State>,
    /// Of a kept answer: its age in seconds.
    pub age_s: Option<u64>,
}

impl Origin {
    /// An uplink's live answer.
    pub fn uplink(name: &str) -> Self {
        Self { route: Some(format!("uplink:{name}")), ..Self::default() }
    }

    /// The class of the route, as a metric label.
    pub fn class(&self) -> &'static str {
        match self.route.as_deref().and_then(|route| route.split(':').next()) {
            Some("uplink") => "uplink",
            Some("local") => "local",
            Some("cache" | "cache-stale") => "cache",
            _ => "none",
        }
    }

    /// Says it in the headers.
    pub fn write(&self, headers: &mut HeaderMap) {
        let mut set = |name: &'static str, value: Option<&str>| {
            if let Some(Ok(value)) = value.map(HeaderValue::from_str) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("x-holdfast-route", self.route.as_deref());
        set("x-holdfast-id", self.id.as_deref());
        set("x-holdfast-state", self.state.map(State::as_str));
        set(
            "x-cache",
            match self.route.as_deref() {
                Some("cache") => Some("HIT"),
                Some("cache-stale") => Some("STALE"),
                _ => None,
            },
        );
        if let Some(age_s) = self.age_s {
            headers.insert(AGE, HeaderValue::from(age_s));
        }
    }
}

/// An uplink's response headers, as the client may see them.
pub fn passable(headers: &HeaderMap) -> HeaderMap {
    let mut passed: HeaderMap = headers
        .iter()
        .filter(|(name, _)| !KEPT_BACK.contains(&name.as_str()) && !is_for_this_hop(headers, name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if headers.contains_key(RETRY_AFTER) {
        passed.remove(RETRY_AFTER);
        // Broken seconds, dates and hours are seen in the wild; the SDKs obey whole seconds up to half a minute.
        let here = SystemTime::UNIX_EPOCH + Duration::from_millis(clock::unix_ms());
        if let Some(ms) = classify::retry_after_ms(headers, Some(here)) {
            passed.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).clamp(1, 30)));
        }
    }
    if let Some(id) = headers.get("x-request-id") {
        passed.insert(HeaderName::from_static("x-upstream-request-id"), id.clone());
    }
    passed
}

/// An uplink's whole answer, passed on.
pub fn from_uplink(whole: Whole, origin: &Origin) -> Response {
    let is_error = whole.status.is_client_error() || whole.status.is_server_error();
    let body = if is_error { error_body(whole.status, whole.body) } else { whole.body };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = whole.status;
    *response.version_mut() = Version::HTTP_11;
    *response.headers_mut() = passable(&whole.headers);
    if is_error {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    origin.write(response.headers_mut());
    response
}

/// Errors are always JSON: an uplink's own words where they are, a sentence where it sent text or nothing.
fn error_body(status: StatusCode, body: Bytes) -> Bytes {
    if serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok() {
        return body;
    }
    let message = format!("the uplink refused with HTTP {} and no readable reason", status.as_u16());
    Refusal::new(status, "upstream_error", message).json()
}

/// A JSON body with its origin.
pub fn json(status: StatusCode, body: impl Into<Body>, origin: &Origin) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    origin.write(response.headers_mut());
    response
}

/// A stored answer; of a file a piece at a time is in memory.
pub fn stored(status: StatusCode, body: Stored, origin: &Origin) -> Response {
    match body.in_one_piece() {
        Some(bytes) => json(status, bytes, origin),
        None => spliced(status, body.into(), origin),
    }
}

/// The same with other text around it.
pub fn spliced(status: StatusCode, text: Spliced, origin: &Origin) -> Response {
    json(status, Body::new(Outgoing::new(text, None).0), origin)
}

/// What a finished record's caller gets: the uplink's answer, or why there is none.
pub enum Finished {
    /// An answer's bytes.
    Answer(Stored, Origin),
    /// The uplink's own refusal.
    Refused(StatusCode, Stored, Origin),
    /// It ended without words of an uplink.
    Ended(Refusal),
}

/// Reads a finished record.
pub fn finished(record: Record) -> Finished {
    let mut origin =
        Origin { route: None, id: Some(record.id.clone()), state: Some(record.state), ..Origin::default() };
    if let Some((answer, _)) = record.uplink {
        // What only the local model was to answer names no uplink.
        origin.route = Some(match answer.uplink.as_str() {
            "" => format!("local:{}", answer.model),
            name => format!("uplink:{name}"),
        });
        let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
        if record.state == State::Answered {
            return Finished::Answer(answer.body, origin);
        }
        if status.is_client_error() {
            return Finished::Refused(status, answer.body, origin);
        }
    }
    let why = match (record.reason, record.state) {
        (Some(reason), _) => reason,
        (None, State::Answered) => "its answer cannot be read any more".to_owned(),
        (None, state) => state.to_string(),
    };
    let message = format!(
        "the request ended as {} ({why}); if it is still wanted send it anew, under another Idempotency-Key if it had one",
        record.state
    );
    let code = match record.state {
        State::Expired => "request_expired",
        State::Cancelled => "request_cancelled",
        State::Evicted => "queue_full",
        _ => "request_failed",
    };
    let refusal = Refusal::new(StatusCode::BAD_GATEWAY, code, message)
        .header("x-should-retry", "false")
        .header("x-holdfast-id", &record.id)
        .header("x-holdfast-state", record.state.as_str());
    Finished::Ended(refusal)
}

#[derive(Deserialize)]
struct Completion<'a> {
    #[serde(default)]
    id: String,
    #[serde(default)]
    created: u64,
    #[serde(default)]
    model: String,
    #[serde(default, borrow)]
    choices: Vec<Choice<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: u32,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    text: Option<String>,
    finish_reason: Option<String>,
}

/// A whole answer as the events of a stream, for callers that asked for one; `None` where it is no answer.
pub fn as_events(body: &[u8], include_usage: bool) -> Option<Vec<Bytes>> {
    let whole: Completion<'_> = serde_json::from_slice(body).ok()?;
    if whole.choices.is_empty() {
        return None;
    }
    let mut events = Vec::new();
    let is_text = whole.choices.iter().any(|c| c.text.is_some());
    let object = if is_text { "text_completion" } else { "chat.completion.chunk" };
    let frame = |choices: serde_json::Value, usage: Option<&RawValue>| {
        let mut chunk = json!({"id": whole.id, "object": object, "created": whole.created, "model": whole.model, "choices": choices});
        if let Some(usage) = usage {
            chunk["usage"] = serde_json::from_str(usage.get()).unwrap_or_default();
        }
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    for choice in &whole.choices {
        let end = json!(choice.finish_reason.as_deref().unwrap_or("stop"));
        if let Some(text) = &choice.text {
            events.push(frame(json!([{"index": choice.index, "text": text, "finish_reason": end}]), None));
            continue;
        }
        let delta = delta(choice.message);
        events.push(frame(json!([{"index": choice.index, "delta": delta, "finish_reason": null}]), None));
        events.push(frame(json!([{"index": choice.index, "delta": {}, "finish_reason": end}]), None));
    }
    if include_usage {
        events.push(frame(json!([]), whole.usage));
    }
    events.push(Bytes::from_static(b"data: [DONE]\n\n"));
    Some(events)
}

/// A message as a delta: tool calls of a stream carry their index.
fn delta(message: Option<&RawValue>) -> serde_json::Value {
    let mut delta: serde_json::Value =
        message.and_then(|m| serde_json::from_str(m.get()).ok()).unwrap_or_else(|| json!({}));
    if let Some(calls) = delta.get_mut("tool_calls").and_then(|c| c.as_array_mut()) {
        for (index, call) in calls.iter_mut().enumerate() {
            call["index"] = json!(index);
        }
    }
    delta
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_and_hops_stay_behind_and_the_request_id_is_renamed() {
        let headers: HeaderMap =
            [("set-cookie", "a=1"), ("x-request-id", "u1"), ("x-ratelimit-limit", "5"), ("connection", "x")]
                .iter()
                .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
                .collect();
        let passed = passable(&headers);
        assert_eq!(passed.len(), 2);
        assert_eq!(passed["x-upstream-request-id"], "u1");
    }

    #[test]
    fn an_error_is_json_whatever_the_uplink_sent() {
        let own = Bytes::from_static(br#"{"error":"bare"}"#);
        assert_eq!(error_body(StatusCode::BAD_REQUEST, own.clone()), own);
        let made = error_body(StatusCode::NOT_FOUND, Bytes::from_static(b"404 page not found"));
        let value: serde_json::Value = serde_json::from_slice(&made).unwrap();
        assert_eq!(value["error"]["code"], "upstream_error");
    }

    #[test]
    fn retry_after_is_a_whole_number_that_clients_obey() {
        for (sent, passed) in
            [("3", Some("3")), ("1.5", Some("2")), ("200", Some("30")), ("0", Some("1")), ("Wed, 21 Oct", None)]
        {
            let headers: HeaderMap = [(RETRY_AFTER, HeaderValue::from_static(sent))].into_iter().collect();
            assert_eq!(passable(&headers).get(RETRY_AFTER).map(|v| v.to_str().unwrap()), passed, "{sent}");
        }
    }

    #[test]
    fn an_answer_without_choices_is_no_stream() {
        assert!(as_events(b"{}", false).is_none());
        assert!(as_events(br#"{"choices":[{"mess"#, false).is_none());
    }

    #[test]
    fn a_whole_answer_becomes_a_stream() {
        let body = br#"{"id":"c","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"total_tokens":3}}"#;
        let text: String =
            as_events(body, true).unwrap().iter().map(|e| String::from_utf8_lossy(e).into_owned()).collect();
        assert!(text.contains(r#""delta":{"content":"hi","role":"assistant"}"#), "{text}");
        assert!(text.contains(r#""finish_reason":"stop""#) && text.contains(r#""total_tokens":3"#));
        assert!(text.ends_with("data: [DONE]\n\n"));
    }
}
