//! The client of one cloud uplink: pooled connections, HTTP/2 by ALPN, time-outs, the key.
//!
//! Sends what it is given and says how it ended; never decides where a request goes and never tries again.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hyper::body::Body as _;
use hyper::header::{ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, StatusCode, Uri};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::body::Spliced;
use super::bundle::Bundled;
use super::classify;
use super::outgoing::{Left, Outgoing, Progress};
use super::tls::TlsError;
use super::unpack::{Coming, unpacked};
use crate::body::{Bodies, Body};
use crate::clock::{self, Floor};
use crate::control::event::{Check, Fault, KeyIndex, Outcome};
use crate::plant;

/// Largest answer that is passed on or kept; a long chat answer is some 100 KiB, a batch of embeddings a few MiB.
pub const ANSWER_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Largest list of models a probe reads.
const PROBE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Least time between two looks at whether a body still moves, however short the time-outs are.
const LOOK_MIN: Duration = Duration::from_millis(1);

/// How the key is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer …`.
    Bearer,
    /// `api-key: …` (Azure OpenAI).
    ApiKey,
}

/// `[[uplink]] timeouts`.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Name, TCP and TLS.
    pub connect: Duration,
    /// From the body's end to the answer's head.
    pub first_byte: Duration,
    /// Between two pieces of an answer, and of a body on its way out.
    pub idle: Duration,
    /// The whole of one attempt.
    pub total: Duration,
}

/// What one uplink is configured with.
#[derive(Clone)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Such as `https://api.holysheep.ai/v1`.
    pub base_url: String,
    /// The keys to present.
    pub keys: Keys,
    /// How it is presented.
    pub auth: Auth,
    /// Models that have another name there.
    pub models: BTreeMap<String, String>,
    /// Extra root certificates.
    pub ca_file: Option<PathBuf>,
    /// Appended to the base for a probe.
    pub probe_path: String,
    /// A silent probe has failed after this.
    pub probe_timeout: Duration,
    /// Of one attempt.
    pub timeouts: Timeouts,
    /// Below it nothing is sent over TLS.
    pub floor: Arc<Floor>,
}

/// Why an uplink cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// The address is not one.
    #[error("base_url {0:?} is not an http or https address")]
    Address(String),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key has a character that no header can carry.
    #[error("the key of uplink {0} has characters that cannot be sent in a header")]
    Key(String),
}

/// One request towards the uplink.
#[derive(Debug)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Path and query as the client sent them, such as `/v1/chat/completions`.
    pub path: String,
    /// Headers that may be forwarded.
    pub headers: HeaderMap,
    /// The body, with what reads differently for this uplink.
    pub body: Spliced,
    /// Told when the body has left entirely.
    pub on_out: Option<oneshot::Sender<()>>,
}

/// An attempt that brought no usable head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", .outcome.kind())]
pub struct SendError {
    /// What it means.
    pub outcome: Outcome,
}

/// An answer whose body is still coming.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Coming,
    body_out: bool,
    idle: Duration,
    until: Instant,
}

/// An answer with its body, or with as much of that as is needed to judge it.
#[derive(Debug, Clone)]
pub struct Whole {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The request's own body had left entirely when the answer's head came.
    pub body_out: bool,
}

mod keys;
mod pools;

pub use keys::{ApiKey, Keys};
use pools::{Pool, Pools};

/// The client of one uplink.
pub struct Cloud {
    options: Options,
    base: String,
    /// `base`, taken apart once: each request's address is made from it.
    address: Uri,
    pools: RwLock<Pools>,
    /// As they are sent, one for each key.
    credentials: Vec<(HeaderName, HeaderValue)>,
    over_tls: bool,
}

impl Cloud {
    /// Checks the options; connects to nothing.
    pub fn new(options: Options) -> Result<Self, CloudError> {
        let base = options.base_url.trim_end_matches('/').to_owned();
        let uri: Uri = base.parse().map_err(|_| CloudError::Address(base.clone()))?;
        if uri.host().is_none() || !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(CloudError::Address(base));
        }
        let credentials = keys::credentials(&options)?;
        let pools = RwLock::new(Pools::new(&options)?);
        let over_tls = uri.scheme_str() == Some("https");
        Ok(Self { options, base, address: uri, pools, credentials, over_tls })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Its address, without a slash at its end.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// What it was built with.
    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// What `model` is called there, where it has another name.
    pub fn alias(&self, model: &str) -> Option<&str> {
        self.options.models.get(model).map(String::as_str)
    }

    /// The names under which models of this uplink may be asked for.
    pub fn aliases(&self) -> impl Iterator<Item = &str> {
        self.options.models.keys().map(String::as_str)
    }

    /// Forgets all connections: the network they belong to is gone.
    pub fn reset(&self) {
        if let Ok(pools) = Pools::new(&self.options) {
            *self.pools.write().unwrap_or_else(PoisonError::into_inner) = pools;
        }
    }

    /// The connections of the thread that asks.
    fn pool(&self) -> Pool {
        let runtime = Handle::current().id();
        let known = self.pools.read().unwrap_or_else(PoisonError::into_inner).of(runtime);
        known.unwrap_or_else(|| self.pools.write().unwrap_or_else(PoisonError::into_inner).begin(runtime))
    }

    /// Sends with one of its keys and waits for the answer's head, unless it is taken back before. A body that had not left entirely never will then, so that it is
    /// given up at no cost; what had left may have been billed.
    pub async fn send_unless(&self, call: Call, key: KeyIndex, taken_back: impl Future) -> Result<Reply, SendError> {
        if self.missing_keys().is_some() {
            return Err(SendError { outcome: Outcome::Unreachable(Fault::NoKey) });
        }
        if self.over_tls && self.options.floor.is_above_clock() {
            return Err(SendError { outcome: Outcome::Unreachable(Fault::WaitingForTime) });
        }
        self.panic_where_planted(&call);
        let started = clock::now();
        let (body, progress) = Outgoing::new(call.body, call.on_out);
        if body.is_end_stream() && !call.method.is_safe() {
            // Nothing will tell when it leaves: it counts as gone.
            progress.assume_out();
        }
        let mut request = Request::new(Bundled(body));
        *request.method_mut() = call.method;
        *request.uri_mut() = self.uri(&call.path)?;
        *request.headers_mut() = call.headers;
        self.sign(request.headers_mut(), key);
        if plant::is(plant::Fault::HeadersInADebugLog) {
            request
                .headers()
                .iter()
                .for_each(|(n, v)| tracing::debug!("{n}: {}", String::from_utf8_lossy(v.as_bytes())));
        }
        let pool = self.pool();
        let times = self.options.timeouts;
        let answer = tokio::select! {
            biased;
            answer = in_time(pool.request(request), &progress, times, started) => Some(answer),
            _ = taken_back => None,
        };
        let outcome = match answer {
            Some(Ok(Ok(response))) => {
                let (head, body) = unpacked(response).await.into_parts();
                let until = started + times.total;
                let body_out = progress.is_out();
                return Ok(Reply {
                    status: head.status,
                    headers: head.headers,
                    body,
                    body_out,
                    idle: times.idle,
                    until,
                });
            }
            Some(Ok(Err(error))) => classify::send_failure(&error, error.is_connect(), &progress),
            // A body that is not out cannot be answered, so it is not billed.
            Some(Err(Late)) => match progress.take_back() {
                Left::Nothing => Outcome::Unreachable(Fault::Connect),
                Left::Part => Outcome::Transient(Fault::Write),
                Left::All => Outcome::Unknown(Fault::Timeout),
            },
            None if progress.take_back() == Left::All => Outcome::Unknown(Fault::Outage),
            None => Outcome::GivenUp,
        };
        Err(SendError { outcome })
    }

    /// Asks the uplink whether it is there, without spending a token. The body is the list of models where
    /// the probe's path is the usual one.
    pub async fn probe(&self, key: KeyIndex) -> (Check, Option<Bytes>) {
        let started = clock::now();
        let call = Call {
            method: Method::GET,
            path: format!("/v1{}", self.options.probe_path),
            headers: HeaderMap::new(),
            body: Body::default().into(),
            on_out: None,
        };
        let answer = timeout(self.options.probe_timeout, async {
            let reply = self.send_unless(call, key, std::future::pending::<()>()).await?;
            reply.whole(PROBE_BYTES_MAX).await
        });
        let latency_ms = |started: Instant| clock::now().duration_since(started).as_millis() as u64;
        match answer.await {
            Ok(Ok(whole)) => {
                let check = classify::check(whole.status, &whole.headers, &whole.body, latency_ms(started));
                let models = whole.status.is_success().then_some(whole.body);
                (check, models)
            }
            Ok(Err(error)) => (Check::Failed(fault_of(error.outcome)), None),
            Err(_) => (Check::Failed(Fault::Timeout), None),
        }
    }

    /// A panic as bad as they come: made of what could not be dealt with. Only where a test plants it.
    fn panic_where_planted(&self, call: &Call) {
        let planted = [plant::Fault::PanicInAnAttempt, plant::Fault::PanicWordsShown].into_iter().any(plant::is);
        if planted && call.method == Method::POST {
            let key = self.credentials.first().map_or(&[][..], |(_, value)| value.as_bytes());
            let body = call.body.body.glance(0, call.body.body.len()).unwrap_or_default();
            panic!("{} {}", String::from_utf8_lossy(key), String::from_utf8_lossy(&body));
        }
    }

    fn uri(&self, path: &str) -> Result<Uri, SendError> {
        let rest = path.strip_prefix("/v1").unwrap_or(path);
        let refused = || SendError { outcome: Outcome::Permanent(Fault::Refused) };
        let path = format!("{}{rest}", self.address.path().trim_end_matches('/'));
        let mut parts = self.address.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(path).map_err(|_| refused())?);
        Uri::from_parts(parts).map_err(|_| refused())
    }

    fn sign(&self, headers: &mut HeaderMap, key: KeyIndex) {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some((name, value)) = self.credentials.get(key) {
            headers.insert(name, value.clone());
        }
    }
}

/// A time-out ran out.
struct Late;

/// Waits for an answer's head. A body may take its time as long as it moves: a picture over a slow line takes
/// minutes, and cutting it would bill it twice and never deliver it.
async fn in_time<T>(
    answer: impl Future<Output = T>,
    progress: &Progress,
    times: Timeouts,
    started: Instant,
) -> Result<T, Late> {
    let mut answer = std::pin::pin!(answer);
    // A body that moves can bring the end nearer: `idle` may be shorter than what was waited for before. Each end lies at
    // least this far behind the move that set it, so looks this far apart overshoot none.
    let look = times.first_byte.min(times.idle).max(LOOK_MIN);
    loop {
        let until = match progress.moved_at() {
            None => progress.began() + times.connect + times.first_byte,
            Some(at) if progress.is_out() => at + times.first_byte,
            Some(at) => at + times.idle,
        };
        let total = (started + times.total).saturating_duration_since(clock::now());
        let left = until.saturating_duration_since(clock::timers_now()).min(total);
        if let Ok(answer) = timeout(left.min(look), &mut answer).await {
            return Ok(answer);
        }
        if left.is_zero() {
            return Err(Late);
        }
    }
}

fn fault_of(outcome: Outcome) -> Fault {
    match outcome {
        Outcome::Unreachable(f) | Outcome::Transient(f) | Outcome::Permanent(f) | Outcome::Unknown(f) => f,
        _ => Fault::Reset,
    }
}

impl Reply {
    /// The next piece of the body; `None` at its end.
    pub async fn next(&mut self) -> Option<Result<Bytes, SendError>> {
        let left = self.until.saturating_duration_since(clock::now()).min(self.idle);
        loop {
            return match timeout(left, self.body.frame()).await {
                Err(_) => Some(Err(SendError { outcome: Outcome::Unknown(Fault::Timeout) })),
                Ok(None) => None,
                Ok(Some(Err(()))) => Some(Err(SendError { outcome: Outcome::Unknown(Fault::Truncated) })),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Some(Ok(data)),
                    Err(_trailers) => continue,
                },
            };
        }
    }

    /// Reads until there are `bytes` of the body; `true` where it ended before, so that this is all of it.
    pub async fn beginning(&mut self, bytes: usize) -> Result<(Bytes, bool), SendError> {
        let mut joined = Joined::default();
        while joined.len() < bytes {
            match self.next().await {
                None => return Ok((joined.bytes(), true)),
                Some(part) => joined.push(part?),
            }
            if self.body.is_end_stream() {
                return Ok((joined.bytes(), true));
            }
        }
        Ok((joined.bytes(), false))
    }

    /// Takes the whole body in, in memory or as a file; `first` is what has been read of it. What came before a failure is
    /// there too, with the failure.
    pub async fn receive(&mut self, first: Bytes, bodies: &Bodies, bytes_max: u64) -> (Body, Option<Outcome>) {
        let mut receiving = bodies.receive_paid(self.length().map(|left| left + first.len() as u64));
        let mut part = Some(Ok::<_, SendError>(first));
        let failed = loop {
            match part {
                None => break None,
                Some(Err(error)) => break Some(error.outcome),
                // It was answered, and paid for; asking again would bring the same.
                Some(Ok(part)) if receiving.len() + part.len() as u64 > bytes_max => break Some(Outcome::NoAnswer),
                Some(Ok(part)) => {
                    if receiving.push_bytes(part).await.is_err() {
                        return (Body::default(), Some(Outcome::Unknown(Fault::Truncated)));
                    }
                }
            }
            part = self.next().await;
        };
        match receiving.finish().await {
            Ok(body) => (body, failed),
            Err(_) => (Body::default(), Some(Outcome::Unknown(Fault::Truncated))),
        }
    }

    /// Its exact length in bytes, where the uplink said it.
    pub fn length(&self) -> Option<u64> {
        self.body.length()
    }

    /// Time in which its reader did not want more is not the uplink's.
    pub fn excuse(&mut self, pause: Duration) {
        self.until += pause;
    }

    /// Head and (a part of) the body, as what it means is judged by.
    pub fn with_body(&self, body: Bytes) -> Whole {
        Whole { status: self.status, headers: self.headers.clone(), body, body_out: self.body_out }
    }

    /// Reads the whole body, up to `limit` bytes.
    pub async fn whole(mut self, limit: usize) -> Result<Whole, SendError> {
        let mut joined = Joined::default();
        while let Some(part) = self.next().await {
            let part = part?;
            if joined.len() + part.len() > limit {
                return Err(SendError { outcome: Outcome::Unknown(Fault::TooLarge) });
            }
            joined.push(part);
        }
        Ok(Whole { status: self.status, headers: self.headers, body: joined.bytes(), body_out: self.body_out })
    }
}

/// Pieces of an answer as one. Most are one piece: it is kept as it is.
#[derive(Default)]
struct Joined {
    first: Bytes,
    all: BytesMut,
}

impl Joined {
    fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }

    fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.first = piece;
        } else {
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
            self.all.extend_from_slice(&piece);
        }
    }

    fn bytes(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.freeze() }
    }
}

#[cfg(test)]
mod tests;
