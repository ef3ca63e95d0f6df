//! One OpenAI-style request, read and checked: who asks, what for, under which conditions.
//!
//! Owns the reading of bodies under limits of size and time. Sends and stores nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body as HttpBody;
use axum::extract::Request;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName};
use tokio::time::{timeout, timeout_at};

use super::App;
use super::cached::Keyed;
use super::places::Lent;
use super::refusal::Refusal;
use super::wants::Wants;
use crate::body::{Bodies, Body};
use crate::clock;
use crate::control::route::offline;
use crate::control::types::Policy;
use crate::plant::{self, Fault};
use crate::spool::record::NewRequest;
use crate::uplink::body::{self, Head};

/// A body may take this long, and a second more per [`BODY_BYTES_PER_S`] that have come: a slow modem gets
/// through, a client that sends a byte a second does not.
const BODY_TIME: Duration = Duration::from_secs(8);
const BODY_BYTES_PER_S: u64 = 4096;
/// Longest silence in the middle of a body.
const BODY_IDLE: Duration = Duration::from_secs(8);

/// How much of a refused body is taken, and for how long, so that its client reads the refusal.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(3);

/// Who asks, as the connection tells.
#[derive(Debug, Clone)]
pub struct Peer(pub String);

/// The id given to every HTTP request.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// A checked request.
#[derive(Clone)]
pub struct Call {
    /// The gateway and its settings.
    pub app: Arc<App>,
    /// The path, such as `/v1/chat/completions`.
    pub endpoint: &'static str,
    /// Who asks.
    pub source: String,
    /// `req_…`.
    pub id: String,
    /// The client's bytes.
    pub body: Body,
    /// What the body says about itself.
    pub head: Head,
    /// What the headers ask for.
    pub wants: Wants,
    /// Headers that an uplink may see.
    pub forward: HeaderMap,
    /// When its head arrived.
    pub received: Instant,
    /// When all of it was here: what its caller waits counts from then.
    pub complete: Instant,
    /// The task it was made from.
    pub task: Option<u16>,
    /// An uplink has answered it once already, and the answer did not fit the task.
    pub was_answered: bool,
    /// Its place among those that are served at once.
    pub place: Option<Lent>,
    /// Its key in the cache, where it may come from there.
    pub cache: Option<Arc<Keyed>>,
}

/// What is known of a request before its body.
#[derive(Debug)]
pub struct Arrived {
    source: String,
    id: String,
    wants: Wants,
    forward: HeaderMap,
    received: Instant,
    place: Option<Lent>,
}

impl Arrived {
    /// Reads a request's head, which came then.
    pub fn read(request: &Request, received: Instant, policy: Policy) -> Result<Arrived, Refusal> {
        let (source, id, headers) = (source(request), request_id(request), request.headers());
        let (wants, forward) = (Wants::read(headers, policy)?, forwardable(headers));
        let place = request.extensions().get::<Lent>().cloned();
        Ok(Arrived { source, id, wants, forward, received, place })
    }
}

impl Call {
    /// Reads and checks a request.
    pub async fn read(app: Arc<App>, endpoint: &'static str, request: Request) -> Result<Call, Refusal> {
        let arrived = Arrived::read(&request, clock::now(), app.options.offline)?;
        require_json(request.headers())?;
        let body = read_body(app.gateway.spool().bodies(), request, app.options.max_body).await?;
        Call::checked(app, endpoint, arrived, body, None).await
    }

    /// A request whose body is here; `auto` is decided.
    pub async fn checked(
        app: Arc<App>,
        endpoint: &'static str,
        arrived: Arrived,
        body: Body,
        task: Option<u16>,
    ) -> Result<Call, Refusal> {
        let Arrived { source, id, wants, forward, received, place } = arrived;
        let mut head = body::read(endpoint, &body)?;
        // Vectors of different models do not mix.
        if endpoint != "/v1/embeddings" {
            app.gateway.choose_model(&id, &mut head, &body, wants.priority).await;
        }
        let (complete, was_answered, cache) = (clock::now(), false, None);
        Ok(Call {
            app,
            endpoint,
            source,
            id,
            body,
            head,
            wants,
            forward,
            received,
            complete,
            task,
            was_answered,
            place,
            cache,
        })
    }

    /// It is on disk, and its caller merely waits: others may be served meanwhile. Those who wait are bounded by their connections.
    pub fn waits_aside(&self) {
        if let Some(place) = &self.place {
            place.give_back();
        }
    }

    /// SHA-256 of the body.
    pub fn hash(&self) -> [u8; 32] {
        self.body.hash()
    }

    /// The trace that it belongs to, as `traceparent` says (W3C Trace Context); passed on to uplinks as it came.
    pub fn trace_id(&self) -> Option<&str> {
        trace_id(self.forward.get("traceparent")?.to_str().ok()?)
    }

    /// Somebody's question whether we live; never stored.
    pub fn is_health_probe(&self) -> bool {
        self.head.max_tokens == Some(1) && self.endpoint != "/v1/embeddings"
    }

    /// Whether an outage makes it a stored request.
    pub fn stores_offline(&self) -> bool {
        offline(self.wants.policy, self.is_health_probe()).store
    }

    /// The request as the spool takes it.
    pub fn to_store(&self, leased: bool, maybe_billed: bool) -> NewRequest {
        NewRequest {
            id: self.id.clone(),
            source: self.source.clone(),
            label: self.wants.label.clone(),
            endpoint: self.endpoint.to_owned(),
            model: self.head.model.clone(),
            priority: self.wants.priority,
            policy: self.wants.policy,
            body: self.body.clone(),
            idempotency_key: self.wants.idempotency_key.clone(),
            ttl_ms: self.wants.ttl.unwrap_or(self.app.options.ttl).as_millis() as u64,
            leased,
            device: None,
            maybe_billed: maybe_billed || self.was_answered,
            task: self.task,
        }
    }

    /// Until when its caller waits, where it said so.
    pub fn deadline(&self) -> Option<Instant> {
        // Somebody who takes a ticket does not wait for the tries.
        self.wants.stated.filter(|_| !self.wants.respond_async).map(|stated| self.complete + stated)
    }

    /// Whether its try may go on without its caller, as a stored request's.
    pub fn may_be_handed_over(&self) -> bool {
        !self.head.stream && self.deadline().is_some() && self.stores_offline()
    }

    /// How long its caller has waited.
    pub fn waited(&self) -> Duration {
        clock::now().duration_since(self.complete)
    }

    /// Time since the request's head arrived.
    pub fn elapsed(&self) -> Duration {
        clock::now().duration_since(self.received)
    }
}

/// Who asks.
pub fn source(request: &Request) -> String {
    request.extensions().get::<Peer>().map_or_else(|| "unknown".to_owned(), |peer| peer.0.clone())
}

/// The id this HTTP request was given.
pub fn request_id(request: &Request) -> String {
    request.extensions().get::<RequestId>().map_or_else(clock::request_id, |id| id.0.clone())
}

/// Refuses what says to be something else than JSON.
pub fn require_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(kind) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or_default().trim_start().to_ascii_lowercase();
    // `curl -d` says form-urlencoded unless told otherwise; its users mean JSON.
    if kind.starts_with("application/json")
        || kind.starts_with("application/x-www-form-urlencoded")
        || kind.starts_with("text/")
    {
        return Ok(());
    }
    let message = "this path takes application/json";
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

/// Headers that stay on this side: hop-by-hop ones, who we are, and what is ours to say.
const KEPT_BACK: [&str; 23] = [
    "host",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "cookie",
    "forwarded",
    "accept-encoding",
    "content-length",
    "content-encoding",
    "authorization",
    "api-key",
    // These belong to a key, and the key is ours.
    "x-api-key",
    "openai-organization",
    "openai-project",
    "expect",
    "prefer",
    "origin",
];

/// The trace's id in a `traceparent`: 32 hex digits, not all of them 0. Anything else is no trace, and goes into no log.
fn trace_id(parent: &str) -> Option<&str> {
    let mut parts = parent.split('-');
    let (version, id, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let is_named = |part: &str| part.bytes().any(|b| b != b'0');
    let is_known = is_hex(version, 2) && version != "ff" && is_hex(flags, 2);
    let is_whole = version != "00" || parts.next().is_none();
    let is_trace = is_hex(id, 32) && is_named(id) && is_hex(span, 16) && is_named(span);
    (is_known && is_whole && is_trace).then_some(id)
}

/// The headers that an uplink may see.
pub fn forwardable(headers: &HeaderMap) -> HeaderMap {
    let stays = |name: &HeaderName| {
        let name = name.as_str();
        KEPT_BACK.contains(&name)
            || is_for_this_hop(headers, name)
            || ["x-forwarded-", "x-holdfast-", "x-real-ip", "x-edge-"].iter().any(|p| name.starts_with(p))
    };
    headers.iter().filter(|(name, _)| !stays(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Whether `Connection` names it (RFC 9110, section 7.6.1).
pub fn is_for_this_hop(headers: &HeaderMap, name: &str) -> bool {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    named.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(name))
}

/// Reads a body under limits of size and time; refuses a declared size before reading anything.
pub async fn read_body(bodies: &Bodies, request: Request<HttpBody>, limit: u64) -> Result<Body, Refusal> {
    let declared = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit) {
        discard(request.into_body());
        return Err(Refusal::too_large(limit));
    }
    let started = clock::timers_now();
    let mut body = request.into_body();
    let mut read = bodies.receive(declared);
    loop {
        let allowed = BODY_TIME + Duration::from_secs(read.len() / BODY_BYTES_PER_S);
        let silent = clock::timers_now() + BODY_IDLE;
        let until = if plant::is(Fault::NoTimers) { silent } else { silent.min(started + allowed) };
        match timeout_at(until, body.frame()).await {
            Err(_) if plant::is(Fault::NoTimers) => {}
            Err(_) => return Err(too_slow()),
            Ok(None) => return Ok(read.finish().await?),
            Ok(Some(Err(error))) => return Err(broken(&error)),
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                if read.len() + data.len() as u64 > limit {
                    discard(body);
                    return Err(Refusal::too_large(limit));
                }
                if let Err(error) = read.push_bytes(data).await {
                    discard(body);
                    return Err(error.into());
                }
            }
        }
    }
}

/// Takes the rest of a refused body and forgets it, within bounds: a client that writes everything before it
/// reads would otherwise see a broken connection instead of the refusal.
pub fn discard(mut body: HttpBody) {
    tokio::spawn(async move {
        let mut left = DISCARD_BYTES_MAX;
        let discarding = async {
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if left == 0 {
                    return;
                }
            }
        };
        let _ = timeout(DISCARD_TIME, discarding).await;
    });
}

fn too_slow() -> Refusal {
    let message = "the body came too slowly; send at least 4096 bytes a second";
    Refusal::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message).header("connection", "close")
}

fn broken(error: &axum::Error) -> Refusal {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    let mut packed = false;
    while let Some(e) = cause {
        packed |= e.is::<std::io::Error>();
        cause = e.source();
    }
    let message = if packed {
        "the body is not framed as HTTP demands, or its compression cannot be unpacked; send whole chunks, and valid \
         gzip or deflate or no Content-Encoding"
    } else {
        "the body ended early or is not framed as HTTP demands"
    };
    // Nobody knows where the next request would begin.
    Refusal::bad_field("invalid_body", None::<&str>, message).header("connection", "close")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_traceparent_names_a_trace() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(&format!("00-{id}-00f067aa0ba902b7-01")), Some(id));
        assert_eq!(trace_id(&format!("01-{id}-00f067aa0ba902b7-01-more")), Some(id), "a later version may say more");
        for wrong in [
            "",
            "00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-my password-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace_id(wrong), None, "{wrong}");
        }
    }
}
