//! The cache's side of HTTP: what comes from it, what goes into it, and one send for identical requests.
//!
//! Owns those steps and `X-Cache`. Whether an answer is worth keeping, its key and its age are `cache`'s; the way to an
//! uplink is that of every other request.

mod lead;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::response::Response;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use super::answer::{self, Origin};
use super::call::Call;
use super::refusal::Refusal;
use super::{plain, stream};
use crate::body::{Body, PIECE_BYTES};
use crate::cache::flights::{Flights, Follow, Part, Waited};
use crate::cache::key::{self, Key, Question};
use crate::cache::shelf::Standing;
use crate::cache::worth::{self, Asked};
use crate::cache::{Cache, Found};
use crate::control::event::Outcome;
use crate::control::types::Policy;
use crate::gateway::{Gateway, Received};

/// Memory in KiB for answers on their way, all together, that may be kept or shared. One that finds no room is passed on
/// as ever, is not kept, and whoever waited for it is sent by itself.
const ROOM_KIB: usize = 4 * 1024;
/// How long one waits for an identical request that is under way, unless its client stated a shorter time: with it the
/// longest attempt has ended, and more than one rarely follows.
const FOLLOW_TIME: Duration = Duration::from_secs(280);
/// How often a request whose leader went away begins anew, before it goes by itself.
const TURNS_MAX: usize = 3;
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// Cache and flights, as the HTTP side has them.
pub struct Cached {
    cache: Cache,
    flights: Flights<Landing>,
    room: Arc<Semaphore>,
    uplinks: String,
}

impl Cached {
    /// Around an opened cache.
    pub fn new(cache: Cache, gateway: &Gateway) -> Cached {
        let uplinks = gateway.uplinks().iter().map(|cloud| cloud.fingerprint()).collect();
        Cached { cache, flights: Flights::default(), room: Arc::new(Semaphore::new(ROOM_KIB)), uplinks }
    }

    /// The cache itself.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }
}

/// A request that the cache has a key for, and what is known of its own send.
#[derive(Debug)]
pub struct Keyed {
    key: Key,
    /// Whether an uplink's answer went out, and how it was counted.
    how: OnceLock<(bool, &'static str)>,
    /// It took the way of an outage: what it got is for it alone.
    is_alone: AtomicBool,
    /// Its caller's time was up before its next try; and whether one before may have been billed.
    gave_up: OnceLock<bool>,
    /// Tells who leads that this is so.
    went_alone: Notify,
    /// Where the answer of a send that outlives its caller goes, while it is sent for others, too.
    followers: Mutex<Option<oneshot::Sender<Landing>>>,
}

impl Keyed {
    /// The caller has an answer from there, in this way.
    pub fn answered(&self, origin: &Origin, outcome: &'static str) {
        let _ = self.how.set((origin.class() == "uplink", outcome));
        self.is_alone.fetch_or(origin.id.is_some(), Ordering::AcqRel);
    }

    fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::Acquire)
    }

    fn new(key: Key) -> Self {
        let (how, followers) = (OnceLock::new(), Mutex::default());
        let (is_alone, gave_up) = (AtomicBool::new(false), OnceLock::new());
        Self { key, how, is_alone, gave_up, went_alone: Notify::new(), followers }
    }

    fn go_alone(&self) {
        self.is_alone.store(true, Ordering::Release);
        self.went_alone.notify_one();
    }

    /// What its own caller gets is for that one alone; what comes of the send goes there.
    fn outlive_its_caller(&self) -> Option<oneshot::Sender<Landing>> {
        let followers = self.followers().take()?;
        self.is_alone.store(true, Ordering::Release);
        Some(followers)
    }

    fn followers(&self) -> MutexGuard<'_, Option<oneshot::Sender<Landing>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of a request for those who wait for the same.
#[derive(Debug, Clone)]
pub enum Landing {
    /// This: the answer, or the error that all of them get.
    Shared(Arc<Shared>),
    /// Nothing that could be shared: each goes its own way.
    Own,
}

/// An answer that several get.
#[derive(Debug)]
pub struct Shared {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    /// A whole answer of an uplink.
    is_good: bool,
    outcome: &'static str,
    _room: Option<OwnedSemaphorePermit>,
}

/// Answers a request that repeats no stored one.
pub async fn answer(call: Arc<Call>) -> Response {
    let Some(key) = cache_key(&call).await else { return direct(call).await };
    let call = Arc::new(Call { cache: Some(Arc::new(Keyed::new(key))), ..Call::clone(&call) });
    if call.wants.anew {
        return lead::lead(call, None).await;
    }
    let cached = &call.app.cached;
    let flight = if call.was_answered { key.of_second_try() } else { key };
    for _ in 0..TURNS_MAX {
        if cached.cache.has_fresh(&key)
            && let Some(found) = cached.cache.get(&key).await
        {
            return hit(&call, found);
        }
        match cached.flights.join(flight) {
            // It came while this one was on its way here.
            Part::Leader(lead) if cached.cache.has_fresh(&key) => drop(lead),
            Part::Leader(leader) => return lead::lead(call.clone(), Some(leader)).await,
            Part::Alone => break,
            Part::Follower(follow) if call.head.stream => {
                let mut response = stream::follow(call.clone(), follow).await;
                // Where the wait was so long that the head went before the answer was there.
                response.headers_mut().entry(X_CACHE).or_insert(HeaderValue::from_static("MISS"));
                return response;
            }
            Part::Follower(follow) => match followed(&call, follow).await {
                Followed::Shared(shared) => return shared.response(&call),
                Followed::Late(refusal) => return call.app.refused(&call, refusal),
                Followed::Own => break,
                Followed::Lost => {}
            },
        }
    }
    alone(call).await
}

/// The ordinary way.
async fn direct(call: Arc<Call>) -> Response {
    if call.head.stream { stream::answer(call).await } else { plain::answer(call).await }
}

/// The ordinary way of a request that might have come from the cache.
async fn alone(call: Arc<Call>) -> Response {
    let mut response = direct(call.clone()).await;
    mark(&call, response.headers_mut());
    response
}

/// Says that it was not in the cache, unless it was.
fn mark(call: &Call, headers: &mut HeaderMap) {
    if !headers.contains_key(X_CACHE) {
        call.app.gateway.metrics().cache("miss");
        headers.insert(X_CACHE, HeaderValue::from_static("MISS"));
    }
}

/// A new answer is wanted, or the one there is did not do.
fn wants_new(call: &Call) -> bool {
    call.wants.anew || call.was_answered
}

/// The key of a request that may come from the cache.
async fn cache_key(call: &Arc<Call>) -> Option<Key> {
    let asked = Asked {
        endpoint: call.endpoint,
        temperature_is_zero: call.head.temperature_is_zero,
        is_health_probe: call.is_health_probe(),
        wish: call.wants.cache,
    };
    if !call.app.cached.cache.is_on() || !worth::is_cacheable(&asked) {
        return None;
    }
    let small = call.body.in_one_piece().is_some_and(|bytes| bytes.len() <= PIECE_BYTES);
    if small {
        return key_of(call).ok()?;
    }
    // A picture is megabytes to sum, or to read.
    let call = call.clone();
    tokio::task::spawn_blocking(move || key_of(&call)).await.ok()?.ok()?
}

fn key_of(call: &Call) -> io::Result<Option<Key>> {
    let cached = &call.app.cached;
    let mut headers: Vec<u8> = Vec::new();
    for (name, value) in call.forward.iter().filter(|(name, _)| name.as_str().starts_with("openai-")) {
        headers.extend([name.as_str().as_bytes(), b":", value.as_bytes(), b"\n"].concat());
    }
    let question = Question {
        source: (!cached.cache.is_shared()).then_some(call.source.as_str()),
        endpoint: call.endpoint,
        model: &call.head.model,
        uplinks: &cached.uplinks,
        headers: &headers,
    };
    key::key(&question, &call.body)
}

fn origin_of(standing: Standing) -> Origin {
    let (route, age_ms) = match standing {
        Standing::Fresh(age_ms) => ("cache", age_ms),
        Standing::Stale(age_ms) => ("cache-stale", age_ms),
    };
    Origin { route: Some(route.to_owned()), age_s: Some(age_ms / 1000), ..Origin::default() }
}

fn hit(call: &Call, found: Found) -> Response {
    call.app.gateway.metrics().cache("hit");
    let origin = origin_of(found.standing);
    call.app.answered(call, &origin, "ok");
    kept(call, found.body, &origin)
}

/// A kept answer in the shape it had.
pub fn kept(call: &Call, body: Body, origin: &Origin) -> Response {
    let mut response = answer::stored(StatusCode::OK, body, origin);
    if call.head.stream {
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    response
}

/// What this caller gets is for it alone, and it sends no more: one of those who wait for the same does, unless a send may
/// have been billed: they hear of that.
pub fn give_up_lead(call: &Call, maybe_billed: bool) {
    if let Some(keyed) = &call.cache {
        let _ = keyed.gave_up.set(maybe_billed);
        keyed.go_alone();
    }
}

/// What this caller gets is for it alone, but its send goes on: where what comes of it is to go, if others wait for that.
pub fn outlive_its_caller(call: &Call) -> Option<Followers> {
    Some(Followers(call.cache.as_ref()?.outlive_its_caller()?))
}

/// Those who wait for what comes of a send whose own caller has gone.
pub struct Followers(oneshot::Sender<Landing>);

impl Followers {
    /// It ended like this: they get a good answer, which may be kept, and hear of what may have been billed.
    pub async fn get(self, call: Arc<Call>, result: Result<Received, Outcome>) {
        let landing = match result {
            Ok(Received { failed: Some(Outcome::Unknown(_) | Outcome::NoAnswer), .. })
            | Err(Outcome::Unknown(_) | Outcome::NoAnswer) => lead::broken_off(),
            Ok(came) => lead::landing_of(&call, &came).await,
            // It cost nothing: one of those who wait is the next to send.
            Err(_) => return,
        };
        let _ = self.0.send(landing);
    }

    /// Resolves when nobody waits any more.
    pub async fn gone(&mut self) {
        self.0.closed().await;
    }
}

/// What is kept for a request that no uplink can answer now. `fail` asks for an uplink or nothing.
pub async fn while_offline(call: &Call) -> Option<(Body, Origin)> {
    let keyed = call.cache.as_ref()?;
    keyed.go_alone();
    if call.wants.policy == Policy::Fail || wants_new(call) {
        return None;
    }
    let found = call.app.cached.cache.get(&keyed.key).await?;
    let result = if matches!(found.standing, Standing::Fresh(_)) { "hit" } else { "stale" };
    call.app.gateway.metrics().cache(result);
    Some((found.body, origin_of(found.standing)))
}

/// How following ended.
pub enum Followed {
    /// With this, for all.
    Shared(Arc<Shared>),
    /// Each goes its own way.
    Own,
    /// The leader is gone.
    Lost,
    /// This caller's own time is up.
    Late(Refusal),
}

/// Waits for the identical request that is under way.
pub async fn followed(call: &Call, follow: Follow<Landing>) -> Followed {
    let limit = call.wants.stated.map_or(FOLLOW_TIME, |stated| stated.min(FOLLOW_TIME));
    let left = limit.saturating_sub(call.waited());
    let waited = tokio::select! {
        waited = follow.wait(left) => waited,
        () = call.app.stopping() => return Followed::Late(Refusal::stopping()),
    };
    match waited {
        // A send that may have been billed and brought nothing: the local model's answer is for who would take one.
        Waited::Landed(Landing::Shared(shared)) if shared.is_local() && !plain::wants_local(call) => {
            Followed::Late(Refusal::upstream_timeout())
        }
        Waited::Landed(Landing::Shared(shared)) => {
            call.app.gateway.metrics().cache("coalesced");
            Followed::Shared(shared)
        }
        Waited::Landed(Landing::Own) => Followed::Own,
        Waited::Lost => Followed::Lost,
        Waited::Late => Followed::Late(Refusal::still_under_way()),
    }
}

impl Shared {
    /// Where it comes from, as those are told who did not send.
    pub fn origin(&self) -> Origin {
        if self.is_good {
            return origin_of(Standing::Fresh(0));
        }
        let route = self.headers.get("x-holdfast-route").and_then(|route| route.to_str().ok());
        Origin { route: route.map(str::to_owned), ..Origin::default() }
    }

    /// How it is counted.
    pub fn outcome(&self) -> &'static str {
        self.outcome
    }

    fn is_local(&self) -> bool {
        self.headers.get("x-holdfast-route").is_some_and(|route| route.as_bytes().starts_with(b"local:"))
    }

    /// Its bytes.
    pub fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// Whether it is a stream's events.
    pub fn is_stream(&self) -> bool {
        is_stream(&self.headers)
    }

    /// The same for one more caller.
    pub fn response(&self, call: &Call) -> Response {
        let origin = self.origin();
        call.app.answered(call, &origin, self.outcome());
        if self.is_good {
            return kept(call, self.body().into(), &origin);
        }
        let mut response = Response::new(HttpBody::from(self.body()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response.headers_mut().insert(X_CACHE, HeaderValue::from_static("MISS"));
        response
    }
}

fn is_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}
