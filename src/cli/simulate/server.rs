//! Runs a simulator: listeners that can refuse, connections that can go silent, and the fault switch.
//!
//! Owns sockets, the log and the switch; what an answer says is decided in `uplink` and `ollama`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::faults::{self, Faults, Mode};
use super::log::{Entry, Log};
use super::ollama::Ollama;
use super::uplink::Uplink;
use super::{Listen, door, openai, text};
use crate::clock;

/// Which service a simulator imitates.
#[derive(Debug)]
pub(super) enum Kind {
    Uplink(Uplink),
    Ollama(Ollama),
}

/// What all connections of one simulator share.
#[derive(Debug)]
pub(super) struct Shared {
    kind: Kind,
    faults: watch::Sender<Faults>,
    open: watch::Sender<bool>,
    log: Mutex<Log>,
    started: Instant,
}

/// One request, read to its end.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// `Null` where the body is no JSON.
    pub(super) json: Value,
    /// The faults that concern this request.
    pub(super) faults: Faults,
}

impl Call {
    /// The model it names.
    pub(super) fn model(&self) -> Option<&str> {
        self.json["model"].as_str()
    }

    pub(super) fn is_post(&self) -> bool {
        self.method == Method::POST
    }
}

/// A running simulator; dropping it closes its listeners and connections.
#[derive(Debug)]
pub struct Simulator {
    shared: Arc<Shared>,
    at: Listen,
    control: Option<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Simulator {
    pub(super) async fn start(
        listen: Listen,
        control: Option<SocketAddr>,
        faults: Faults,
        kind: Kind,
    ) -> io::Result<Simulator> {
        let refusing = faults.fail == Mode::Refuse;
        let shared = Arc::new(Shared {
            kind,
            faults: watch::channel(faults).0,
            open: watch::channel(true).0,
            log: Mutex::default(),
            started: clock::now(),
        });
        let door = door::Door::open(&listen)?;
        let at = door.address()?;
        let mut tasks = JoinSet::new();
        let control = match control {
            Some(wanted) => Some(serve_control(wanted, Arc::clone(&shared), &mut tasks).await?),
            None => None,
        };
        tasks.spawn(keep_door(door, Arc::clone(&shared)));
        let simulator = Simulator { shared, at, control, _tasks: tasks };
        simulator.wait_open(!refusing).await;
        Ok(simulator)
    }

    /// `http://127.0.0.1:PORT`, or `unix:/path`.
    pub fn base_url(&self) -> String {
        match &self.at {
            Listen::Tcp(address) => format!("http://{address}"),
            Listen::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Where the fault switch stays reachable while the simulator refuses.
    pub fn control_url(&self) -> Option<String> {
        self.control.map(|address| format!("http://{address}"))
    }

    /// What goes wrong now.
    pub fn faults(&self) -> Faults {
        self.shared.faults.borrow().clone()
    }

    /// Sets the fault switch; returns once the listener has followed.
    pub async fn set_faults(&self, faults: Faults) {
        let open = faults.fail != Mode::Refuse;
        self.shared.faults.send_replace(faults);
        self.wait_open(open).await;
    }

    /// Every request that reached a model endpoint and is still kept, oldest first.
    pub fn log(&self) -> Vec<Entry> {
        self.shared.log().entries()
    }

    /// Milliseconds since it started: what `Entry::at_ms` counts.
    pub fn age_ms(&self) -> u64 {
        self.shared.started.elapsed().as_millis() as u64
    }

    /// How many requests reached a model endpoint since the last `clear_log`.
    pub fn requests_total(&self) -> u64 {
        self.shared.log().total()
    }

    /// Headers and body text of the latest request: `{"headers":{…},"body":"…"}`.
    pub fn latest(&self) -> Value {
        self.shared.log().latest()
    }

    /// Forgets the log.
    pub fn clear_log(&self) {
        self.shared.log().clear();
    }

    async fn wait_open(&self, open: bool) {
        // The sender lives in `shared`, so waiting cannot fail.
        let _ = self.shared.open.subscribe().wait_for(|now| *now == open).await;
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a request has reached the model, before any answer leaves.
    pub(super) fn note(&self, call: &Call, status: u16) {
        // Probes and listings never reach a model.
        if !call.is_post() {
            return;
        }
        let header = |name: &str| call.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (prompt_tokens, completion_tokens) = openai::billed(&call.path, &call.json, status);
        let entry = Entry {
            prompt_tokens,
            completion_tokens,
            n: 0,
            at_ms: self.started.elapsed().as_millis() as u64,
            path: call.path.clone(),
            model: call.model().map(str::to_owned),
            stream: call.json["stream"].as_bool().unwrap_or(false),
            idempotency_key: header("idempotency-key"),
            user: text::first(&openai::last_user_text(&call.json), 200),
            status,
            body_sha256: text::sha256_hex(&call.body),
        };
        let headers: serde_json::Map<String, Value> = call
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))))
            .collect();
        self.log().push(entry, json!({"headers": headers, "body": String::from_utf8_lossy(&call.body)}));
    }
}

/// How often an address is tried again that another program has taken.
const REOPEN_EVERY_MS: u64 = 100;

/// Opens and closes the door as the switch says, and serves what comes in.
async fn keep_door(mut door: door::Door, shared: Arc<Shared>) {
    let mut faults = shared.faults.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let refuse = faults.borrow_and_update().fail == Mode::Refuse;
        if refuse == door.is_open() {
            connections.shutdown().await;
            door = if refuse { door.shut() } else { door.reopen() };
        }
        shared.open.send_replace(door.is_open());
        tokio::select! {
            changed = faults.changed() => if changed.is_err() { return },
            stream = door.accept() => { connections.spawn(serve(stream, Arc::clone(&shared))); }
            Some(_) = connections.join_next() => {}
            () = faults::pause(REOPEN_EVERY_MS), if !refuse && !door.is_open() => {}
        }
    }
}

async fn serve(stream: Box<dyn Duplex>, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
    // Broken connections are this program's trade; there is nobody to tell.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A connection of whichever kind.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let json: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let key = header("authorization").and_then(|value| value.strip_prefix("Bearer ")).or_else(|| header("api-key"));
    let faults = shared.faults.borrow().for_request(json["model"].as_str(), key);
    let path = parts.uri.path().to_owned();
    let call = Call { method: parts.method, path, headers: parts.headers, body, json, faults };
    if call.path.starts_with("/simulator/") {
        return Ok(control(&shared, &call));
    }
    match call.faults.fail {
        Mode::Silence => silence(&shared).await,
        Mode::Portal | Mode::Redirect => Ok(faults::portal(&call.faults)),
        Mode::Reset => {
            shared.note(&call, 0);
            Err(io::ErrorKind::ConnectionReset.into())
        }
        _ => match &shared.kind {
            Kind::Uplink(uplink) => Ok(uplink.answer(&shared, &call).await),
            Kind::Ollama(ollama) => Ok(ollama.answer(&shared, &call).await),
        },
    }
}

/// Says nothing for as long as the switch stands on silence, then breaks the connection.
async fn silence(shared: &Shared) -> io::Result<Response<Body>> {
    let _ = shared.faults.subscribe().wait_for(|faults| faults.fail != Mode::Silence).await;
    Err(io::ErrorKind::ConnectionReset.into())
}

async fn serve_control(at: SocketAddr, shared: Arc<Shared>, tasks: &mut JoinSet<()>) -> io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(at).await?;
    let at = listener.local_addr()?;
    let app = axum::Router::new().fallback(move |request: Request<Body>| control_answer(Arc::clone(&shared), request));
    tasks.spawn(async move {
        // `axum::serve` only ends with its task.
        let _ = axum::serve(listener, app).await;
    });
    Ok(at)
}

async fn control_answer(shared: Arc<Shared>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (path, json) = (parts.uri.path().to_owned(), Value::Null);
    let call = Call { method: parts.method, path, headers: parts.headers, body, json, faults: Faults::default() };
    Ok(control(&shared, &call))
}

/// `/simulator/*`: the switch and the log.
fn control(shared: &Shared, call: &Call) -> Response<Body> {
    let ok = |value: Value| faults::whole(StatusCode::OK, "application/json", value.to_string());
    match (call.method.as_str(), call.path.as_str()) {
        ("GET", "/simulator/faults") => ok(json!(*shared.faults.borrow())),
        ("PUT", "/simulator/faults") => match serde_json::from_slice::<Faults>(&call.body) {
            Ok(wanted) => {
                shared.faults.send_replace(wanted.clone());
                ok(json!(wanted))
            }
            Err(error) => faults::whole(StatusCode::BAD_REQUEST, "text/plain", format!("{error}\n")),
        },
        ("GET", "/simulator/log") => ok(json!(shared.log().entries())),
        ("GET", "/simulator/count") => ok(json!({"requests": shared.log().total()})),
        ("GET", "/simulator/latest") => ok(shared.log().latest()),
        ("DELETE", "/simulator/log") => {
            shared.log().clear();
            ok(json!({}))
        }
        _ => faults::whole(StatusCode::NOT_FOUND, "text/plain", "faults, log, count or latest\n"),
    }
}
