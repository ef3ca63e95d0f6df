//! Error answers in OpenAI's shape: one type, one place that writes them.
//!
//! Messages say what to do and never repeat anything of a request's body.

use std::borrow::Cow;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use serde::Serialize;

use crate::body::ReceiveError;
use crate::control::types::State;
use crate::spool::SpoolError;
use crate::uplink::body::HeadError;
use crate::uplink::local::LocalError;

/// Bounds of `Retry-After` in seconds: what the SDKs obey.
const RETRY_AFTER_S: std::ops::RangeInclusive<u64> = 1..=30;

/// On an answer that is a refusal nobody has counted: its code.
#[derive(Debug, Clone, Copy)]
pub struct Uncounted(pub &'static str);

/// An error answer.
#[derive(Debug, Clone)]
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<Cow<'static, str>>,
    retry_after_s: Option<u64>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Words<'a>,
}

#[derive(Serialize)]
struct Words<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

impl Refusal {
    /// A refusal with a status, a stable code and a sentence.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after_s: None, headers: Vec::new() }
    }

    /// 400 with the field that is wrong.
    pub fn bad_field(
        code: &'static str,
        param: Option<impl Into<Cow<'static, str>>>,
        message: impl Into<String>,
    ) -> Self {
        Self { param: param.map(Into::into), ..Self::new(StatusCode::BAD_REQUEST, code, message) }
    }

    /// 404 for a stored request nobody knows.
    pub fn no_such_request() -> Self {
        Self::new(StatusCode::NOT_FOUND, "request_not_found", "no stored request has this id; it may have been pruned")
    }

    /// 409 for what cannot be cancelled or removed because it is on its way.
    pub fn request_sending() -> Self {
        let message = "it is being sent right now; ask again when the attempt has ended";
        Self::new(StatusCode::CONFLICT, "request_sending", message).retry_after(5)
    }

    /// 503 while the process ends.
    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the gateway is stopping; send this again in a moment")
            .retry_after(5)
    }

    /// 503 where nothing can answer and nothing is stored.
    pub fn unavailable(why: &str) -> Self {
        let message = format!("no uplink is available and {why}; send this again later");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "uplink_unavailable", message).retry_after(10)
    }

    /// 429 where it may cost more than is left of today. Clients take it for a spent quota; asking again before the day
    /// is over would not help, so they are told not to.
    pub fn budget_spent(why: &str) -> Self {
        let message = format!("not sent, because {why}");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "budget_spent", message).header("x-should-retry", "false")
    }

    /// 409 where what is to be cancelled waits no more.
    pub fn not_cancellable(state: State) -> Self {
        let message = format!("it is {state} already; only what waits can be cancelled");
        Self::new(StatusCode::CONFLICT, "not_cancellable", message).header("x-should-retry", "false")
    }

    /// 403 under a cap, where nothing bounds what a request may cost.
    pub fn boundless() -> Self {
        let message = "not sent: what the uplink works off later for this request has no bound, and [budget] usd_per_day \
                       is a cap on all of it; upload the batch's file with the purpose batch here, so that the gateway \
                       works it off, or set usd_per_day = 0";
        Self::new(StatusCode::FORBIDDEN, "unbounded_cost", message).header("x-should-retry", "false")
    }

    /// 504 where a request was sent and not answered.
    pub fn upstream_timeout() -> Self {
        let message = "the uplink took the request and did not answer; it may have been processed and billed, so it \
                       was not sent again";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message).header("x-should-retry", "false")
    }

    /// What is said instead where the request was sent before: this one's own words may ask for it again, and a client must not
    /// repeat it by itself.
    pub fn after_a_send(self, maybe_billed: bool) -> Self {
        let says_so = self.status == StatusCode::GATEWAY_TIMEOUT;
        if maybe_billed && !says_so { Self::upstream_timeout() } else { self }
    }

    /// 504: the caller's own time is up, and its policy leaves nothing for later.
    pub fn too_late(maybe_billed: bool) -> Self {
        let sent = if maybe_billed { "it may have been sent and billed" } else { "no uplink took it" };
        let message = format!(
            "no answer came in the time that this caller waits; {sent}, and nothing is kept of it: allow more time, or let it \
             be stored (X-Holdfast-Offline: both or queue)"
        );
        let refusal = Self::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message);
        if maybe_billed { refusal.header("x-should-retry", "false") } else { refusal.retry_after(1) }
    }

    /// 504: the caller's own time is up, and the identical request before it has no answer yet.
    pub fn still_under_way() -> Self {
        let message = "an identical request is under way and has no answer yet; this one was not sent: ask again in a \
                       moment, or allow more time";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message).retry_after(1)
    }

    /// 502: what the uplink sent is nothing that may be passed on.
    pub fn no_answer() -> Self {
        let message = format!(
            "the uplink's answer is nested more than {} deep and was not passed on; it may have been billed",
            crate::body::scan::JSON_DEPTH_MAX
        );
        Self::new(StatusCode::BAD_GATEWAY, "upstream_error", message).header("x-should-retry", "false")
    }

    /// 502: the answer broke off.
    pub fn truncated() -> Self {
        let message = "the uplink's answer broke off; it may have been billed";
        Self::new(StatusCode::BAD_GATEWAY, "upstream_truncated", message).header("x-should-retry", "false")
    }

    /// 500: a body that was taken cannot be read back.
    pub fn unreadable_body() -> Self {
        let message = "the body was taken and could not be read back from the disk; look at the disk";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "storage_error", message)
    }

    /// 413, said before the body is read where its length is known.
    pub fn too_large(limit: u64) -> Self {
        let message = format!("the body is larger than max_body ({limit} bytes); send less or raise [http] max_body");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    /// 429: the source asks more often than `rate` times a second, `burst` at once.
    pub fn rate_limited((rate, burst): (u32, u32), wait_ms: u64) -> Self {
        let message = format!(
            "this source sent more than {rate} requests a second (at most {burst} at once); wait as Retry-After says, or \
             raise [limits] rate"
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message).retry_after(wait_ms.div_ceil(1000))
    }

    /// Adds `Retry-After`, within what clients obey.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.clamp(*RETRY_AFTER_S.start(), *RETRY_AFTER_S.end()));
        self
    }

    /// Adds a header; a value that no header can carry is left out.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((HeaderName::from_static(name), value));
        }
        self
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The error as JSON.
    pub fn json(&self) -> Bytes {
        let words =
            Words { message: &self.message, r#type: self.kind(), param: self.param.as_deref(), code: self.code };
        // A struct of strings always serialises.
        serde_json::to_vec(&Envelope { error: words }).unwrap_or_default().into()
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The whole answer; it is counted before it leaves.
    pub fn into_response(self) -> Response {
        let code = self.code;
        let mut response = self.into_counted();
        response.extensions_mut().insert(Uncounted(code));
        response
    }

    /// The whole answer of a refusal that was counted.
    pub fn into_counted(self) -> Response {
        let mut response = Response::new(Body::from(self.json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

impl From<HeadError> for Refusal {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Empty | HeadError::Marked | HeadError::Json(_) => {
                Refusal::bad_field("invalid_json", None::<&str>, error.to_string())
            }
            HeadError::Field { field, .. } => Refusal::bad_field("missing_field", Some(field), error.to_string()),
        }
    }
}

impl From<ReceiveError> for Refusal {
    fn from(error: ReceiveError) -> Self {
        let (status, code) = match error {
            ReceiveError::Disk(_) => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            ReceiveError::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "body_memory_full"),
        };
        Refusal::new(status, code, error.to_string()).retry_after(10)
    }
}

impl From<SpoolError> for Refusal {
    fn from(error: SpoolError) -> Self {
        let full =
            |code, message: String| Refusal::new(StatusCode::INSUFFICIENT_STORAGE, code, message).retry_after(30);
        match error {
            SpoolError::QueueFull | SpoolError::SourceFull => full("queue_full", error.to_string()),
            SpoolError::DiskFull => full("disk_full", error.to_string()),
            SpoolError::KeyReused => Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "this Idempotency-Key was used with another body; use a new key for a new request",
            ),
            SpoolError::Salvaging => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "salvaging", error.to_string()).retry_after(30)
            }
            SpoolError::Closed => Refusal::stopping(),
            other => {
                let message = format!(
                    "the request could not be stored and was not accepted: {other}; see whether the disk is full, failing \
                     or mounted read-only (the system's log says why), then send it again"
                );
                full("disk_full", message)
            }
        }
    }
}

impl From<LocalError> for Refusal {
    fn from(error: LocalError) -> Self {
        let bad = |code| Refusal::bad_field(code, None::<&str>, error.to_string());
        match &error {
            LocalError::Unsupported { .. } => bad("unsupported_by_local_model"),
            LocalError::ContextLength => bad("context_length_exceeded"),
            LocalError::Invalid { .. } => bad("invalid_json"),
            _ => Refusal::unavailable(&format!("the local model cannot answer ({error})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_stays_within_what_clients_obey() {
        for (asked, said) in [(0, "1"), (7, "7"), (900, "30")] {
            let response = Refusal::stopping().retry_after(asked).into_response();
            assert_eq!(response.headers()[RETRY_AFTER], said);
        }
    }

    #[test]
    fn the_code_is_a_string_and_every_field_is_there() {
        let value: serde_json::Value = serde_json::from_slice(&Refusal::too_large(5).json()).unwrap();
        assert_eq!(value["error"]["code"], "request_too_large");
        assert!(value["error"].as_object().unwrap().contains_key("param"));
        assert_eq!(value["error"]["type"], "invalid_request_error");
    }
}
