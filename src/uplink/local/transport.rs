//! HTTP towards the model server: one pooled client, addresses, time-outs, size limits.
//!
//! Owns the connection; never understands what is sent over it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, sleep, timeout_at};

use super::error::from_answer;
use super::{LocalError, Timeouts};
use crate::body::Body;
use crate::uplink::bundle::Bundled;
use crate::uplink::dial::Dial;
use crate::uplink::outgoing::Outgoing;

/// The most that is read of one answer: hours of tokens with their wrapping, or thousands of embeddings.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The most that is read of an error answer; real ones have one line.
const ERROR_BYTES_MAX: usize = 16 * 1024;
/// How long an error answer may take after its status.
const ERROR_BODY_LIMIT: Duration = Duration::from_secs(2);
/// What one connection holds back of a request on its way out.
const BUFFER_BYTES: usize = 64 * 1024;
/// Shorter than any model server's own keep-alive, so that a kept connection is rarely a dead one.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Headers of a proxied request that concern one connection or the gateway's own clients only.
const NOT_FORWARDED: [HeaderName; 14] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
    header::AUTHORIZATION,
    header::COOKIE,
    header::ORIGIN,
    header::ACCEPT_ENCODING,
    HeaderName::from_static("keep-alive"),
];

/// Until when one request may take. Tokio's instants, so that tests can turn the clock.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// The first content must be there by then.
    pub(super) first: Instant,
    /// The longest silence after it.
    pub(super) idle: Duration,
    /// The whole answer must be there by then.
    pub(super) total: Instant,
}

impl Limits {
    pub(super) fn begin(timeouts: &Timeouts, total: Instant) -> Self {
        Self { first: after(timeouts.first_token).min(total), idle: timeouts.idle, total }
    }

    /// For answers that come in one piece at the end, where no first token can be seen.
    pub(super) fn in_one_piece(self) -> Self {
        Self { first: self.total, idle: self.idle, total: self.total }
    }
}

/// The instant `wait` from now.
pub(super) fn after(wait: Duration) -> Instant {
    sleep(wait).deadline()
}

pub(super) struct Transport {
    // The cloud's kind of body: a second one would be a second client in the program.
    client: Client<Dial, Bundled>,
    authority: String,
    prefix: String,
}

impl Transport {
    pub(super) fn new(base_url: &str, timeouts: &Timeouts) -> Result<Self, LocalError> {
        let (authority, prefix) = split_base(base_url)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .http1_max_buf_size(BUFFER_BYTES)
            .build(Dial::plain(timeouts.connect));
        Ok(Self { client, authority, prefix })
    }

    /// Sends `request` (its path relative to the base address) and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        mut request: Request<Outgoing>,
        until: Instant,
    ) -> Result<Response<Incoming>, LocalError> {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let uri = format!("http://{}{}{path}", self.authority, self.prefix);
        *request.uri_mut() = uri.parse().map_err(|_| LocalError::invalid("the path is not a valid one"))?;
        let answer =
            timeout_at(until, self.client.request(request.map(Bundled))).await.map_err(|_| LocalError::Timeout)?;
        answer.map_err(|_| LocalError::Unreachable)
    }

    /// A request as a client sent it, without what concerns only the client's own connection.
    pub(super) async fn forward(
        &self,
        request: Request<Outgoing>,
        until: Instant,
    ) -> Result<Response<Incoming>, LocalError> {
        let (mut head, body) = request.into_parts();
        for name in NOT_FORWARDED {
            head.headers.remove(name);
        }
        head.version = hyper::Version::HTTP_11;
        head.extensions = hyper::http::Extensions::new();
        self.send(Request::from_parts(head, body), until).await
    }

    /// Posts JSON and hands back the body of a good answer; `model` only names the culprit of a 404.
    pub(super) async fn post(
        &self,
        path: &str,
        body: Bytes,
        model: &str,
        limits: Limits,
    ) -> Result<Source, LocalError> {
        let mut request = Request::new(outgoing(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.parse().map_err(|_| LocalError::invalid("the path is not a valid one"))?;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let answer = self.send(request, limits.first).await?;
        good(answer, model, limits).await
    }

    /// Gets one short JSON document.
    pub(super) async fn get(&self, path: &'static str, until: Instant) -> Result<Bytes, LocalError> {
        let mut request = Request::new(outgoing(Bytes::new()));
        *request.uri_mut() = Uri::from_static(path);
        let answer = self.send(request, until).await?;
        let limits = Limits { first: until, idle: Duration::MAX, total: until };
        good(answer, "", limits).await?.whole().await
    }
}

fn outgoing(bytes: Bytes) -> Outgoing {
    Outgoing::new(Body::from(bytes).into(), None).0
}

async fn good(answer: Response<Incoming>, model: &str, limits: Limits) -> Result<Source, LocalError> {
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(Source { body: answer.into_body(), left: ANSWER_BYTES_MAX, limits });
    }
    let until = after(ERROR_BODY_LIMIT).min(limits.total);
    let limits = Limits { first: until, idle: ERROR_BODY_LIMIT, total: until };
    let mut source = Source { body: answer.into_body(), left: ERROR_BYTES_MAX, limits };
    // The status alone says enough where the text does not arrive.
    let text = source.whole().await.unwrap_or_default();
    Err(from_answer(status.as_u16(), &text, model))
}

/// The body of one answer, under its limits. Dropping it before its end closes the connection, which is how
/// model servers learn that nobody wants the rest.
pub(super) struct Source {
    body: Incoming,
    left: usize,
    pub(super) limits: Limits,
}

impl Source {
    /// The next bytes, or `None` at the end.
    pub(super) async fn next(&mut self, started: bool) -> Result<Option<Bytes>, LocalError> {
        loop {
            let until = if started { silence(&self.limits) } else { self.limits.first };
            let frame = timeout_at(until, self.body.frame()).await.map_err(|_| LocalError::Timeout)?;
            let Some(frame) = frame else { return Ok(None) };
            let Ok(bytes) = frame.map_err(|_| LocalError::Truncated)?.into_data() else { continue };
            self.left = self.left.checked_sub(bytes.len()).ok_or(LocalError::Truncated)?;
            return Ok(Some(bytes));
        }
    }

    /// Everything up to the end.
    pub(super) async fn whole(&mut self) -> Result<Bytes, LocalError> {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.next(true).await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }
}

fn silence(limits: &Limits) -> Instant {
    after(limits.idle).min(limits.total)
}

/// Host and port, and the path before `/v1` or `/api`, of a base address.
fn split_base(base_url: &str) -> Result<(String, String), LocalError> {
    let wrong = || LocalError::invalid("base_url under [local] must look like http://127.0.0.1:11434");
    let uri: Uri = base_url.parse().map_err(|_| wrong())?;
    let (Some("http"), Some(authority), None) = (uri.scheme_str(), uri.authority(), uri.query()) else {
        return Err(wrong());
    };
    if authority.as_str().contains('@') {
        return Err(wrong());
    }
    let path = uri.path().trim_end_matches('/');
    // The paths asked for bring these themselves, so both ways of writing the address are the same one.
    let prefix = path.strip_suffix("/v1").or_else(|| path.strip_suffix("/api")).unwrap_or(path);
    Ok((authority.as_str().to_owned(), prefix.to_owned()))
}
