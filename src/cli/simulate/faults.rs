//! What a simulator does wrong on purpose, and how answers leave it under those faults.
//!
//! Owns the words of the fault switch and the delivery of bodies; never decides what an answer says.

use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// What HTTP knows as a status.
pub(super) const STATUSES: RangeInclusive<i64> = 100..=599;

/// The one kind of failure that is switched on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Mode {
    /// Healthy.
    #[default]
    None,
    /// The listener is closed: connections are refused and open ones break.
    Refuse,
    /// Requests are read and never answered; the model does not see them.
    Silence,
    /// A captive portal: 200 and a login page for everything.
    Portal,
    /// A captive portal: 302 to a login page for everything.
    Redirect,
    /// The connection is closed after the request was read; the model has seen it.
    Reset,
    /// 200 and HTML where the model's JSON belongs.
    Html,
    /// 200 and the first half of the JSON, as if it were all.
    HalfJson,
    /// A stream that merely ends: no finish reason, no `[DONE]`.
    NoDone,
    /// An error after the status line was good.
    ErrorEvent,
    /// The connection breaks in the middle of the body.
    Truncate,
    /// Answers are packed, although nobody asked for it.
    Gzip,
}

/// Which requests `status` is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusOn {
    /// Every request, the health probe included.
    #[default]
    All,
    /// Only requests with a body, so that the probe stays green.
    Post,
}

/// The fault switch; everything off by default. A PUT replaces all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The kind of failure.
    pub fail: Mode,
    /// Answer with this status and an error body.
    #[serde(deserialize_with = "status")]
    pub status: Option<u16>,
    /// Which requests `status` is for.
    pub status_on: StatusOn,
    /// Wait before each answer; the request is in the log before the wait.
    pub delay_ms: u64,
    /// Wait between the pieces of a stream.
    pub chunk_ms: u64,
    /// Time a model takes to load (Ollama only).
    pub load_ms: u64,
    /// What each model's file takes (Ollama only). By default small enough to fit wherever the simulator runs.
    pub model_bytes: Option<u64>,
    /// Break the connection after this many pieces of a stream.
    pub cut_after: Option<usize>,
    /// `Retry-After` of error answers, as it is.
    pub retry_after: Option<String>,
    /// `error.code` of error answers.
    pub error_code: Option<String>,
    /// Answer plain requests with this text as it is.
    pub answer: Option<String>,
    /// Only requests that name this model fail.
    pub only_model: Option<String>,
    /// Only requests that bear this key fail.
    pub only_key: Option<String>,
}

impl Faults {
    /// Healthy but for one kind of failure.
    pub fn failing(fail: Mode) -> Faults {
        Faults { fail, ..Faults::default() }
    }

    /// Healthy but for this status on everything.
    pub fn status(status: u16) -> Faults {
        Faults { status: Some(status), ..Faults::default() }
    }

    /// What of this concerns a request that names `model` and bears `key`.
    pub(super) fn for_request(&self, model: Option<&str>, key: Option<&str>) -> Faults {
        let concerns = |only: &Option<String>, it| only.is_none() || only.as_deref() == it;
        if concerns(&self.only_model, model) && concerns(&self.only_key, key) {
            self.clone()
        } else {
            Faults::default()
        }
    }

    /// The status to fail a request with, if any.
    pub(super) fn status_for(&self, is_post: bool) -> Option<StatusCode> {
        let wanted = self.status.filter(|_| is_post || self.status_on == StatusOn::All)?;
        StatusCode::from_u16(wanted).ok()
    }

    /// Waits `delay_ms`.
    pub(super) async fn delay(&self) {
        pause(self.delay_ms).await;
    }
}

/// A status that no answer can have would be none, and everything would look healthy.
fn status<'de, D: Deserializer<'de>>(wanted: D) -> Result<Option<u16>, D::Error> {
    let wanted = Option::<u16>::deserialize(wanted)?;
    if wanted.is_none_or(|status| STATUSES.contains(&status.into())) {
        return Ok(wanted);
    }
    let (first, last) = (STATUSES.start(), STATUSES.end());
    Err(serde::de::Error::custom(format_args!("status: use {first} to {last}")))
}

/// Waits so many milliseconds; none for 0.
pub(super) async fn pause(ms: u64) {
    if ms > 0 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// A response with a whole body.
pub(super) fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An error answer in whatever shape the caller gives, with `Retry-After` where the switch says so.
pub(super) fn refusal(faults: &Faults, status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = whole(status, "application/json", body.to_string());
    if let Some(value) = faults.retry_after.as_deref().and_then(|v| HeaderValue::from_str(v).ok()) {
        response.headers_mut().insert(RETRY_AFTER, value);
    }
    response
}

/// The login page of a captive portal.
pub(super) fn portal(faults: &Faults) -> Response<Body> {
    let page = "<!doctype html><html><title>Guest Wi-Fi</title><body>Please log in to use the network.</body></html>";
    let mut response = whole(StatusCode::OK, "text/html; charset=utf-8", page);
    if faults.fail == Mode::Redirect {
        *response.status_mut() = StatusCode::FOUND;
        response.headers_mut().insert(LOCATION, HeaderValue::from_static("http://portal.invalid/login"));
    }
    response
}

/// A model's JSON answer as it leaves under these faults.
pub(super) fn json(faults: &Faults, answer: &Value) -> Response<Body> {
    text(faults, answer.to_string())
}

/// The same where the text is there already.
pub(super) fn text(faults: &Faults, text: String) -> Response<Body> {
    let half = Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]);
    match faults.fail {
        Mode::Html => portal(&Faults::default()),
        Mode::HalfJson => whole(StatusCode::OK, "application/json", half),
        Mode::Truncate => {
            let mut response = stream(faults, "application/json", vec![half]);
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
            response
        }
        Mode::Gzip => packed(whole(StatusCode::OK, "application/json", gzip(text.as_bytes()))),
        _ => whole(StatusCode::OK, "application/json", text),
    }
}

fn gzip(bytes: &[u8]) -> Bytes {
    let mut packing = GzEncoder::new(Vec::new(), Compression::default());
    // Memory takes everything.
    let _ = packing.write_all(bytes);
    packing.finish().unwrap_or_default().into()
}

fn packed(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
}

/// A body that leaves piece by piece, cut where the faults say.
pub(super) fn stream(faults: &Faults, content_type: &'static str, mut pieces: Vec<Bytes>) -> Response<Body> {
    if faults.fail == Mode::Html {
        return portal(&Faults::default());
    }
    if faults.fail == Mode::Gzip {
        return packed(whole(StatusCode::OK, content_type, gzip(&pieces.concat())));
    }
    let cut = match (faults.cut_after, faults.fail) {
        (Some(n), _) => Some(n),
        (None, Mode::Truncate) => Some(pieces.len().div_ceil(2)),
        _ => None,
    };
    if let Some(n) = cut {
        pieces.truncate(n);
    }
    let body = Body::from_stream(paced(pieces, faults.chunk_ms, cut.is_some()));
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Long enough for hyper to flush what it holds before the connection breaks.
const FLUSH_MS: u64 = 20;

fn paced(pieces: Vec<Bytes>, chunk_ms: u64, cut: bool) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    let pieces = pieces.into_iter();
    futures_util::stream::unfold((pieces, true, cut), move |(mut pieces, first, cut)| async move {
        if let Some(piece) = pieces.next() {
            pause(if first { 0 } else { chunk_ms }).await;
            return Some((Ok(piece), (pieces, false, cut)));
        }
        if !cut {
            return None;
        }
        pause(FLUSH_MS).await;
        Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), (pieces, false, false)))
    })
}
