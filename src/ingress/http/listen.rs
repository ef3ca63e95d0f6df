//! Sockets: accepts connections, says who is at the other end, bounds and times them.
//!
//! hyper closes nothing by itself and takes heads that it should not, so every connection is guarded (see `guarded`).

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use futures_util::FutureExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tower::{Layer, ServiceExt};

use super::call::Peer;
use super::cors;
use super::framing::HeadFault;
use super::guarded::{Guarded, HEAD_TIMEOUT, Line, ReadsOn};
use super::peers::{PeerKey, Peers};
use super::refusal::Refusal;
use super::threads::OnThread;
use super::{App, Tokens, router, serve_with_id, with_ids};
use crate::clock;
use crate::plant::{self, Fault};

/// What one connection holds back of a body on its way in and of an answer on its way out.
const BUFFER_BYTES: usize = 64 * 1024;
/// What a connection is told that finds no place.
const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 161\r\n\r\n{\"error\":{\"message\":\"too many connections are open here; close some, \
    or try again in a moment\",\"type\":\"server_error\",\"param\":null,\"code\":\"too_many_connections\"}}";
/// What answers take to be written that say that the grace is over.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// After a failed accept (out of descriptors) the listener rests this long.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What to listen on.
pub struct Listeners {
    /// The UNIX socket, already bound with its mode.
    pub unix: UnixListener,
    /// TCP sockets.
    pub tcp: Vec<TcpListener>,
    /// Who may use TCP; `None` where everybody on loopback may.
    pub tokens: Option<Tokens>,
    /// TLS for TCP.
    pub tls: Option<tokio_rustls::TlsAcceptor>,
}

/// Accepts until `shut` turns true, serves whom it accepted, and from `stop` on lets running answers end, at most `grace`.
pub async fn serve(
    app: Arc<App>,
    listeners: Listeners,
    mut shut: watch::Receiver<bool>,
    mut stop: watch::Receiver<bool>,
    grace: Duration,
) {
    let server = Arc::new(Server {
        router: router(app.clone()),
        app,
        tokens: listeners.tokens,
        tls: listeners.tls,
        peers: Peers::default(),
    });
    let graceful = GracefulShutdown::new();
    let (unix, tcp) = (listeners.unix, listeners.tcp);
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut shut) => break,
            accepted = unix.accept() => match accepted {
                Ok((stream, _)) => server.clone().unix(stream, graceful.watcher()),
                Err(error) => rest(&error).await,
            },
            accepted = accept_any(&tcp), if !tcp.is_empty() => match accepted {
                Ok(stream) => server.clone().tcp(stream, graceful.watcher()),
                Err(error) => rest(&error).await,
            },
        }
    }
    drop((unix, tcp));
    stopped(&mut stop).await;
    // Whoever is cut off at the end of the grace is told so; after that the process ends and takes what is left with it.
    let _ = tokio::time::timeout(grace + LAST_WORDS, graceful.shutdown()).await;
}

/// Resolves when the process ends.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn rest(error: &io::Error) {
    tracing::warn!("a connection could not be accepted: {error}");
    tokio::time::sleep(ACCEPT_REST).await;
}

async fn accept_any(listeners: &[TcpListener]) -> io::Result<TcpStream> {
    let accepts = listeners.iter().map(|listener| Box::pin(listener.accept()));
    futures_util::future::select_all(accepts).await.0.map(|(stream, _)| stream)
}

/// Whether a peer that ended its side has not closed the connection: one that has takes no answer.
fn reads_on(stream: &UnixStream) -> bool {
    let ready = stream.ready(Interest::READABLE | Interest::WRITABLE).now_or_never();
    matches!(ready, Some(Ok(ready)) if !ready.is_write_closed())
}

/// Serves a connection on its thread. A socket reports to the thread that it was made on: on another one it is made anew.
fn spawn_on<S, F>(
    thread: OnThread,
    stream: S,
    remade: fn(S) -> io::Result<S>,
    serve: impl FnOnce(S) -> F + Send + 'static,
) where
    S: Send + 'static,
    F: Future<Output = ()> + Send,
{
    let elsewhere = thread.elsewhere().cloned();
    let moves = elsewhere.is_some();
    let serving = async move {
        if moves && plant::is(Fault::SecondThreadHangs) {
            plant::hang();
        }
        let stream = if moves { remade(stream) } else { Ok(stream) };
        match stream {
            Ok(stream) => serve(stream).await,
            Err(error) => tracing::warn!("a connection could not change its thread: {error}"),
        }
        drop(thread);
    };
    match elsewhere {
        Some(elsewhere) => elsewhere.spawn(serving),
        None => tokio::spawn(serving),
    };
}

struct Server {
    router: axum::Router,
    app: Arc<App>,
    tokens: Option<Tokens>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    peers: Peers,
}

impl Server {
    fn unix(self: Arc<Self>, stream: UnixStream, watcher: Watcher) {
        // The kernel's word, not the peer's.
        let user = stream.peer_cred().ok().map(|cred| cred.uid());
        let Some(place) = self.peers.enter(PeerKey::User(user)) else {
            let _ = stream.try_write(NO_PLACE);
            return;
        };
        let peer = user.map_or_else(|| "uid:unknown".to_owned(), |uid| format!("uid:{uid}"));
        let thread = self.app.threads.enter();
        let remade = |stream: UnixStream| UnixStream::from_std(stream.into_std()?);
        spawn_on(thread, stream, remade, move |stream| async move {
            self.connection(stream, reads_on, Origin::Unix(peer), watcher).await;
            drop(place);
        });
    }

    fn tcp(self: Arc<Self>, stream: TcpStream, watcher: Watcher) {
        let (Ok(here), Ok(there)) = (stream.local_addr(), stream.peer_addr()) else { return };
        let Some(place) = self.peers.enter(PeerKey::Address(there.ip())) else {
            if self.tls.is_none() {
                let _ = stream.try_write(NO_PLACE);
            }
            return;
        };
        let _ = stream.set_nodelay(true);
        let thread = self.app.threads.enter();
        let remade = |stream: TcpStream| TcpStream::from_std(stream.into_std()?);
        spawn_on(thread, stream, remade, move |stream| async move {
            match self.tls.clone() {
                // There a connection that was closed looks the same as one whose peer only ended its side.
                None => self.connection(stream, |_| false, Origin::Tcp(here.ip()), watcher).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                        self.connection(stream, |_| false, Origin::Tcp(here.ip()), watcher).await;
                    }
                }
            }
            drop(place);
        });
    }

    async fn connection<S>(self: Arc<Self>, stream: S, reads_on: ReadsOn<S>, origin: Origin, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let line = Arc::new(Line::default());
        let stream = Guarded::new(stream, reads_on, line.clone());
        let server = self.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (server, origin, line) = (server.clone(), origin.clone(), line.clone());
            async move {
                let busy = line.busy();
                let response = match (line.fault(), server.page(&request, &origin)) {
                    (Some(fault), _) => server.refused(fault),
                    (None, None) => server.request(request.map(Body::new), &origin).await,
                    // By itself, as each connection has the room for what it waits for.
                    (None, Some(page)) => Box::pin(server.of_page(page, request.map(Body::new), &origin)).await,
                };
                Ok::<_, Infallible>(response.map(|body| Body::new(Held::new(body, busy))))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // The guard's own: it tells idle from slow.
            .header_read_timeout(None)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!("a connection ended: {error}");
        }
    }

    /// The listed page that asks, if one does.
    fn page<B>(&self, request: &Request<B>, origin: &Origin) -> Option<HeaderValue> {
        let page = request.headers().get(ORIGIN).filter(|_| matches!(origin, Origin::Tcp(_)))?;
        self.is_listed(page).then(|| page.clone())
    }

    async fn of_page(&self, page: HeaderValue, request: Request<Body>, origin: &Origin) -> Response {
        let is_preflight = request.method() == Method::OPTIONS;
        let ask = tower::service_fn(|request| async move { Ok::<_, Infallible>(self.request(request, origin).await) });
        let asked = cors::pages_of(page).layer(ask).oneshot(request).await;
        let mut response = asked.unwrap_or_else(|never| match never {});
        if !is_preflight {
            return response;
        }
        // The layer's own answer: a 200 without anything in it, which no id was given.
        *response.status_mut() = StatusCode::NO_CONTENT;
        with_ids(response, &clock::request_id(), None)
    }

    fn is_listed(&self, page: &HeaderValue) -> bool {
        self.app.options.allowed_origins.iter().any(|listed| listed.as_bytes() == page.as_bytes())
    }

    async fn request(&self, mut request: Request<Body>, origin: &Origin) -> Response {
        if plant::is(Fault::HeadersInADebugLog) {
            tracing::debug!("{} {:?}", request.uri(), request.headers());
        }
        let peer = match self.identify(&request, origin) {
            Ok(peer) => peer,
            Err(refusal) => {
                let theirs = request.headers().get("x-request-id").cloned();
                return self.turned_away(refusal, theirs);
            }
        };
        request.extensions_mut().insert(Peer(peer));
        serve_with_id(self.app.clone(), &self.router, request).await
    }

    /// The answer to a refused head; nothing behind it can be trusted to be a request.
    fn refused(&self, fault: HeadFault) -> Response {
        let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::BAD_REQUEST);
        let refusal = Refusal::new(status, fault.code, fault.message).header("connection", "close");
        self.turned_away(refusal, None)
    }

    /// The answer to one who is not let in.
    fn turned_away(&self, refusal: Refusal, theirs: Option<HeaderValue>) -> Response {
        let (id, mut response) = (clock::request_id(), refusal.into_response());
        self.app.turned_away(&mut response, &id, None, clock::now());
        with_ids(response, &id, theirs)
    }

    fn identify(&self, request: &Request<Body>, origin: &Origin) -> Result<String, Refusal> {
        match origin {
            Origin::Unix(peer) => Ok(peer.clone()),
            Origin::Tcp(here) => {
                self.check_host(request, *here)?;
                self.identify_tcp(request)
            }
        }
    }

    /// A page whose name was made to point here (DNS rebinding) asks under that name: only ours are answered.
    fn check_host(&self, request: &Request<Body>, here: IpAddr) -> Result<(), Refusal> {
        let header = request.headers().get(HOST).and_then(|v| v.to_str().ok());
        let Some(asked) = request.uri().authority().map(Authority::as_str).or(header) else {
            // HTTP/1.0 may leave it out; no browser speaks that.
            return Ok(());
        };
        let name = asked.parse::<Authority>().map(|a| a.host().to_ascii_lowercase()).unwrap_or_default();
        let ours = match name.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => address == here || (address.is_loopback() && here.is_loopback()),
            Err(_) => name == "localhost" || self.app.options.allowed_hosts.contains(&name),
        };
        let message =
            "this Host is not a name of this gateway; use its address, or add the name to [http] allowed_hosts";
        let refusal = || Refusal::new(StatusCode::MISDIRECTED_REQUEST, "host_not_allowed", message);
        if ours { Ok(()) } else { Err(refusal()) }
    }

    /// On TCP a token tells who asks, and a browser's page is not let in unless its origin is listed.
    fn identify_tcp(&self, request: &Request<Body>) -> Result<String, Refusal> {
        if request.headers().get(ORIGIN).is_some_and(|page| !self.is_listed(page)) {
            let message = "this Origin is not in [http] allowed_origins";
            return Err(Refusal::new(StatusCode::FORBIDDEN, "origin_not_allowed", message));
        }
        let Some(tokens) = &self.tokens else { return Ok("tcp".to_owned()) };
        let name = request.headers().get(AUTHORIZATION).and_then(bearer).and_then(|token| tokens.name_of(token));
        name.map(|name| format!("token:{name}")).ok_or_else(|| {
            let message = "send Authorization: Bearer with a token from [http] token_file";
            Refusal::new(StatusCode::UNAUTHORIZED, "invalid_token", message).header("www-authenticate", "Bearer")
        })
    }
}

#[derive(Clone)]
enum Origin {
    Unix(String),
    /// Our own address.
    Tcp(IpAddr),
}

/// The token of `Authorization`; a scheme's name is the same in any case and any number of blanks follow it (RFC 9110,
/// sections 11.1 and 11.4).
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}

/// A body that keeps something until its last byte: its request's place, or its connection busy.
pub struct Held<K> {
    body: Body,
    _kept: K,
}

impl<K> Held<K> {
    /// Ties something to a body.
    pub fn new(body: Body, kept: K) -> Self {
        Self { body, _kept: kept }
    }
}

impl<K: Unpin> HttpBody for Held<K> {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
