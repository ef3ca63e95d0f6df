//! HTTP over the UNIX socket, and over TCP where switched on.
//!
//! Owns paths, headers and the shapes of answers. Routes nothing to uplinks by itself: control does.

mod admin;
mod answer;
mod attach;
mod batches;
mod bodies;
mod cached;
mod call;
mod cors;
mod files;
mod framing;
#[cfg(feature = "planted")]
#[doc(hidden)]
pub mod fuzz;
mod guarded;
mod health;
mod kept;
mod late;
mod links;
mod listen;
mod models;
mod multipart;
mod offline;
mod ollama;
mod onward;
mod openai;
mod owned;
mod passthrough;
mod path;
mod peers;
mod places;
mod plain;
mod record_json;
mod refusal;
mod relay;
mod responses;
mod spend;
mod stream;
mod tasks;
mod threads;
mod tokens;
mod uplinks;
mod wants;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{any, get, post};
use hyper::header::{CONTENT_ENCODING, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tower::{ServiceExt, service_fn};
use tower_http::decompression::RequestDecompression;

use crate::batch::Later;
use crate::cache::Cache;
use crate::clock;
use crate::control::limit::Limiter;
use crate::control::types::Policy;
use crate::gateway::Gateway;
use crate::ingress::link::Links;
use crate::telemetry::host::Board;
use crate::telemetry::log::uplink_of;
use answer::Origin;
use attach::Attach;
use cached::Cached;
use call::{Call, RequestId};
pub use listen::{Listeners, serve};
pub use models::Models;
use owned::Owned;
use places::{Door, Loan};
pub use record_json::RecordJson;
use refusal::{Refusal, Uncounted};
use threads::Threads;
pub use tokens::Tokens;

/// What the HTTP side is configured with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Shown in the status.
    pub device_id: String,
    /// Largest request body, compressed or not.
    pub max_body: u64,
    /// Requests served at once.
    pub max_in_flight: usize,
    /// Requests of one source per second, and how many may come at once; `None` for any number.
    pub rate: Option<(u32, u32)>,
    /// The policy of requests that name none.
    pub offline: Policy,
    /// Time to live of requests that name none.
    pub ttl: Duration,
    /// Whether a request without an answer is never sent again.
    pub hold_unknown: bool,
    /// `Origin` values that browsers may send over TCP.
    pub allowed_origins: Vec<String>,
    /// Names under which TCP callers may ask for this gateway, beside its addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// The local model's name and dialect, for the status.
    pub local_model: String,
    /// `ollama` or `openai`.
    pub local_api: &'static str,
    /// Where the spool lives, for its free space.
    pub data_dir: std::path::PathBuf,
    /// Where answers are kept.
    pub cache: Cache,
}

/// Everything a handler needs.
pub struct App {
    gateway: Gateway,
    options: Options,
    models: Arc<Models>,
    links: Links,
    later: Later,
    attach: Attach,
    owned: Owned,
    door: Arc<Door>,
    cached: Cached,
    limiter: Option<Mutex<Limiter>>,
    reshaping: Semaphore,
    board: Board,
    /// Why the configuration on the disk was not taken over.
    refused: watch::Receiver<Option<String>>,
    /// Kept by every request: the second thread ends after the last work on it, not with its last connection.
    threads: Arc<Threads>,
    stop: watch::Receiver<bool>,
    started_unix_s: u64,
}

/// Memory in KiB for answers that must be reshaped as a whole: made into events, or shown in a record though they are the local
/// model's or no JSON object. What does not fit waits its turn.
const RESHAPING_KIB: usize = 8 * 1024;
/// An answer being reshaped is there about this often: its bytes, their tree, the new text.
const RESHAPING_COPIES: u64 = 4;

/// Now, for the table of repeats: it must go on while the machine sleeps.
fn attach_now() -> u64 {
    clock::since_boot().as_millis() as u64
}

impl App {
    /// Puts the parts together; `stop` turns true when the process ends, `refused` says why a configuration was not taken over.
    pub fn new(
        gateway: Gateway,
        options: Options,
        models: Arc<Models>,
        links: Links,
        later: Later,
        refused: watch::Receiver<Option<String>>,
        stop: watch::Receiver<bool>,
    ) -> Arc<App> {
        let door = Door::new(options.max_in_flight);
        let limiter = options.rate.map(|(rate, burst)| Mutex::new(Limiter::new(rate, burst)));
        let cached = Cached::new(options.cache.clone(), &gateway);
        let reshaping = Semaphore::new(RESHAPING_KIB);
        let started_unix_s = clock::unix_ms() / 1000;
        let board = Board::new(options.data_dir.clone());
        Arc::new(App {
            gateway,
            options,
            models,
            links,
            later,
            attach: Attach::default(),
            owned: Owned::default(),
            door,
            cached,
            limiter,
            reshaping,
            board,
            refused,
            threads: Arc::default(),
            stop,
            started_unix_s,
        })
    }

    /// The second thread, where it has begun.
    pub fn second_thread(&self) -> Option<Handle> {
        self.threads.second()
    }

    /// Recognises repeats of requests that were stored before this start.
    pub async fn restore_repeats(&self) {
        let recent = self.gateway.spool().attachable(attach::ATTACH_MS, attach::ATTACH_MAX as u32).await;
        for (source, hash, id) in recent.unwrap_or_default() {
            self.attach.restore(source, hash, id, attach_now());
        }
    }

    /// Resolves when the process ends.
    async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // The sender lives as long as the process; if it is gone, so is everything else.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Counts a request that makes work; refuses what its source has too many of.
    fn limit(&self, request: &Request) -> Result<(), Refusal> {
        let (Some(limiter), &Method::POST) = (&self.limiter, request.method()) else { return Ok(()) };
        let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.take(&call::source(request), clock::since_boot().as_millis() as u64).map_err(|wait_ms| {
            self.gateway.metrics().limited();
            Refusal::rate_limited(self.options.rate.unwrap_or_default(), wait_ms)
        })
    }

    /// Room to reshape an answer of so many bytes, as long as it is held.
    async fn reshaping(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let kib = (bytes * RESHAPING_COPIES).div_ceil(1024).clamp(1, RESHAPING_KIB as u64);
        // It is never closed.
        self.reshaping.acquire_many(kib as u32).await.ok()
    }

    /// Counts an answer and writes its journal line.
    fn answered(&self, call: &Call, origin: &Origin, outcome: &'static str) {
        if let Some(place) = &call.cache {
            place.answered(origin, outcome);
        }
        let took = call.elapsed();
        self.gateway.metrics().answered(origin.class(), outcome, took);
        tracing::debug!(
            HOLDFAST_REQUEST_ID = call.id,
            HOLDFAST_SOURCE = call.source,
            HOLDFAST_ROUTE = origin.route.as_deref(),
            HOLDFAST_UPLINK = uplink_of(origin.route.as_deref()),
            HOLDFAST_STATE = origin.state.map(super::super::control::types::State::as_str),
            HOLDFAST_TRACE_ID = call.trace_id(),
            HOLDFAST_LATENCY_MS = took.as_millis() as u64,
            "{} {outcome}",
            call.endpoint
        );
    }

    /// Counts a refusal and writes it.
    fn refused(&self, call: &Call, refusal: Refusal) -> Response {
        let took = call.elapsed();
        self.gateway.metrics().answered("none", refusal.code(), took);
        tracing::info!(
            HOLDFAST_REQUEST_ID = call.id,
            HOLDFAST_SOURCE = call.source,
            HOLDFAST_REASON = refusal.code(),
            HOLDFAST_TRACE_ID = call.trace_id(),
            HOLDFAST_LATENCY_MS = took.as_millis() as u64,
            "{} refused: {}",
            call.endpoint,
            refusal.code()
        );
        refusal.into_counted()
    }

    /// Counts what was passed on as it is, when its answer begins.
    fn passed_on(&self, route: &'static str, done: Result<Response, Refusal>, began: Instant) -> Response {
        let (route, outcome, response) = match done {
            Ok(response) if response.status().as_u16() < 400 => (route, "ok", response),
            Ok(response) => (route, "refused", response),
            Err(refusal) => ("none", refusal.code(), refusal.into_counted()),
        };
        self.gateway.metrics().answered(route, outcome, clock::now().duration_since(began));
        response
    }

    /// Counts and writes a refusal that came before its request was read as one for a model. The id is no field of the line:
    /// strangers can have it written, so it is one of those that are heard so often in a minute and then counted.
    fn turned_away(&self, response: &mut Response, id: &str, source: Option<&str>, received: Instant) {
        let Some(Uncounted(code)) = response.extensions_mut().remove() else { return };
        self.gateway.metrics().answered("none", code, clock::now().duration_since(received));
        tracing::warn!(HOLDFAST_SOURCE = source, HOLDFAST_REASON = code, "{id} turned away: {code}");
    }
}

/// All paths.
fn router(app: Arc<App>) -> Router {
    // Other methods of these find out here which one is right; their requests go past the router, see `straight`.
    let endpoints = openai::ENDPOINTS.into_iter().fold(Router::new(), |router, endpoint| {
        let serve = move |State(app): State<Arc<App>>, request: Request| openai::serve(app, endpoint, request);
        router.route(endpoint, post(serve))
    });
    let limited = endpoints
        .route("/v1/chat/completions/{id}", get(admin::completion).delete(admin::delete_completion))
        .route("/holdfast/v1/tasks/{which}", post(tasks::call))
        .route("/v1/files", post(files::create).get(files::list))
        .route("/v1/files/{id}", any(files::one))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/batches", post(batches::create).get(batches::list))
        .route("/v1/batches/{id}", any(batches::one))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", any(responses::one))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/{*rest}", any(passthrough::any_v1))
        .route("/api/{*rest}", any(ollama::any_api))
        // One layer for all that comes before: each costs every request a copy of the route and two boxes.
        .layer(middleware::from_fn_with_state(app.clone(), admit_routed));
    Router::new()
        .merge(limited)
        .route("/", get(health::page))
        .route("/health", get(health::health))
        .route("/v1/health", get(health::providers))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::health))
        .route("/metrics", get(health::metrics))
        .route("/holdfast/v1/status", get(admin::status))
        .route("/holdfast/v1/spend", get(spend::spend))
        .route("/holdfast/v1/tasks", get(tasks::list))
        .route("/holdfast/v1/requests", get(admin::list).delete(admin::purge))
        .route("/holdfast/v1/requests/{id}", get(admin::show).delete(admin::cancel))
        .route("/holdfast/v1/requests/{id}/retry", post(admin::retry))
        .route("/holdfast/v1/requests/{id}/events", get(admin::request_events))
        .route("/holdfast/v1/events", get(admin::events))
        .route("/holdfast/v1/cache/purge", post(admin::purge_cache))
        .route("/holdfast/v1/drain", post(admin::drain))
        .route("/holdfast/v1/pause", post(admin::pause))
        .route("/holdfast/v1/resume", post(admin::resume))
        .route("/holdfast/v1/uplinks/{name}/test", post(uplinks::test))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .with_state(app)
}

/// Who answers once the steps are done that each request takes.
#[derive(Clone)]
enum Handler {
    /// The router's choice.
    Routed(Next),
    /// One of [`openai::ENDPOINTS`].
    Endpoint(&'static str),
}

impl Handler {
    async fn run(self, app: Arc<App>, request: Request) -> Response {
        match self {
            Handler::Routed(next) => next.run(request).await,
            Handler::Endpoint(endpoint) => openai::serve(app, endpoint, request).await,
        }
    }
}

/// The endpoints that nearly all requests are for go past the router, which copies and boxes each request several times.
fn straight(request: &Request) -> Option<&'static str> {
    let asked = request.uri().path();
    let known = openai::ENDPOINTS.iter().find(|endpoint| **endpoint == asked);
    known.copied().filter(|_| request.method() == Method::POST)
}

/// Serves a request under an id of its own, which the answer says.
async fn serve_with_id(app: Arc<App>, router: &Router, mut request: Request) -> Response {
    let (id, received) = (clock::request_id(), clock::now());
    let theirs = request.headers().get("x-request-id").cloned();
    // Who only looks is refused much and often: `request_pending` above all.
    let makes_work = !request.method().is_safe();
    let source = makes_work.then(|| call::source(&request));
    request.extensions_mut().insert(RequestId(id.clone()));
    if let Some(plain) = path::plain(request.uri()) {
        *request.uri_mut() = plain;
    }
    let mut response = match straight(&request) {
        Some(endpoint) => Box::pin(admit(app.clone(), request, Handler::Endpoint(endpoint))).await,
        None => router.clone().oneshot(request).await.unwrap_or_else(|never| match never {}),
    };
    if makes_work {
        app.turned_away(&mut response, &id, source.as_deref(), received);
    }
    with_ids(response, &id, theirs)
}

/// The answer with the request's id, and with the one that the client gave it.
fn with_ids(mut response: Response, id: &str, theirs: Option<HeaderValue>) -> Response {
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(HeaderName::from_static("x-request-id"), value);
    }
    if let Some(theirs) = theirs {
        headers.insert(HeaderName::from_static("x-client-request-id"), theirs);
    }
    response
}

async fn admit_routed(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    admit(app, request, Handler::Routed(next)).await
}

/// Bounds the requests of one source in a time and those served at once; refuses while the process ends.
async fn admit(app: Arc<App>, mut request: Request, handler: Handler) -> Response {
    if !app.gateway.is_accepting() {
        call::discard(request.into_body());
        return Refusal::stopping().into_response();
    }
    if let Err(refusal) = app.limit(&request) {
        call::discard(request.into_body());
        return refusal.into_response();
    }
    let Some(place) = app.door.enter(&call::source(&request)).await else {
        call::discard(request.into_body());
        let message = format!(
            "the gateway serves {} requests already, and others of yours wait; wait a moment, or raise [http] max_in_flight",
            app.options.max_in_flight
        );
        return Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message)
            .retry_after(1)
            .into_response();
    };
    let place = Loan::new(place);
    request.extensions_mut().insert(place.lent());
    let response = decode_and_serve(app, request, handler).await;
    // A stream is being served until its last byte: the place travels with its body.
    response.map(|body| Body::new(listen::Held::new(body, place)))
}

/// Unpacks a body that its client has packed, then serves; most come as they are.
async fn decode_and_serve(app: Arc<App>, request: Request, handler: Handler) -> Response {
    if is_unencoded(&request) {
        return bodies::show(app, request, handler).await;
    }
    let inner = service_fn(|request: hyper::Request<_>| {
        let (app, request, handler) = (app.clone(), request.map(Body::new), handler.clone());
        async move {
            // The header of what was unpacked is gone.
            let response =
                if is_unencoded(&request) { bodies::show(app, request, handler).await } else { unknown_encoding() };
            Ok::<_, Infallible>(response)
        }
    });
    // In a box: the future of each request would have room for it, and few are packed.
    let decoded = Box::pin(RequestDecompression::new(inner).pass_through_unaccepted(true).oneshot(request)).await;
    decoded.unwrap_or_else(|never| match never {}).map(Body::new)
}

fn is_unencoded(request: &Request) -> bool {
    request.headers().get(CONTENT_ENCODING).is_none_or(|packing| packing == "identity")
}

fn unknown_encoding() -> Response {
    let message = "send the body as it is, or packed with gzip or deflate";
    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message).into_response()
}

async fn unknown_path(asked: Uri) -> Response {
    let path = asked.path();
    let lacks_v1 = openai::ENDPOINTS.iter().any(|endpoint| endpoint.strip_prefix("/v1") == Some(path));
    let message = if lacks_v1 {
        "there is nothing at this path; with /v1 before it there is: let the client's base URL end with /v1"
    } else {
        "there is nothing at this path; see GET / for what there is"
    };
    Refusal::new(StatusCode::NOT_FOUND, "unknown_path", message).into_response()
}

async fn unknown_method() -> Response {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path takes another method").into_response()
}
