//! Sockets: accepts connections, says who is at the other end, bounds and times them.
//!
//! hyper closes nothing by itself: without a timer its header time-out is silently off, so every connection
//! gets one here.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use hyper::Request;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::ServiceExt;

use super::call::Peer;
use super::refusal::Refusal;
use super::{App, Tokens, router};
use hyper::StatusCode;

/// A request's head must be there by then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; each costs about 20 KiB.
const CONNECTIONS_MAX: usize = 1024;
/// Headers of one request.
const HEADERS_MAX: usize = 100;
/// Buffer of one connection, which also bounds a request's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
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

/// Serves until `stop` turns true, then lets running answers end, at most `grace`.
pub async fn serve(app: Arc<App>, listeners: Listeners, mut stop: watch::Receiver<bool>, grace: Duration) {
    let server = Arc::new(Server {
        router: router(app.clone()),
        app,
        tokens: listeners.tokens,
        tls: listeners.tls,
        connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
    });
    let graceful = GracefulShutdown::new();
    let (unix, tcp) = (listeners.unix, listeners.tcp);
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
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
    // After the grace the process ends and takes what is left with it.
    let _ = tokio::time::timeout(grace, graceful.shutdown()).await;
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

struct Server {
    router: axum::Router,
    app: Arc<App>,
    tokens: Option<Tokens>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    connections: Arc<Semaphore>,
}

impl Server {
    fn unix(self: Arc<Self>, stream: UnixStream, watcher: Watcher) {
        // Over the limit the connection is closed at once: the peer sees it and can try again.
        let Ok(permit) = self.connections.clone().try_acquire_owned() else { return };
        // The kernel's word, not the peer's.
        let peer = stream.peer_cred().map_or_else(|_| "uid:unknown".to_owned(), |cred| format!("uid:{}", cred.uid()));
        tokio::spawn(async move {
            self.connection(stream, Origin::Unix(peer), watcher).await;
            drop(permit);
        });
    }

    fn tcp(self: Arc<Self>, stream: TcpStream, watcher: Watcher) {
        let Ok(permit) = self.connections.clone().try_acquire_owned() else { return };
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            match self.tls.clone() {
                None => self.connection(stream, Origin::Tcp, watcher).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                        self.connection(stream, Origin::Tcp, watcher).await;
                    }
                }
            }
            drop(permit);
        });
    }

    async fn connection<S>(self: Arc<Self>, stream: S, origin: Origin, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = self.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (server, origin) = (server.clone(), origin.clone());
            async move { Ok::<_, Infallible>(server.request(request.map(Body::new), &origin).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!("a connection ended: {error}");
        }
    }

    async fn request(&self, mut request: Request<Body>, origin: &Origin) -> Response {
        let peer = match self.identify(&request, origin) {
            Ok(peer) => peer,
            Err(refusal) => return refusal.into_response(),
        };
        request.extensions_mut().insert(Peer(peer));
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    fn identify(&self, request: &Request<Body>, origin: &Origin) -> Result<String, Refusal> {
        let Origin::Unix(peer) = origin else { return self.identify_tcp(request) };
        Ok(peer.clone())
    }

    /// On TCP a token tells who asks, and a browser's page is not let in unless its origin is listed.
    fn identify_tcp(&self, request: &Request<Body>) -> Result<String, Refusal> {
        if let Some(origin) = request.headers().get(ORIGIN) {
            let listed = self.app.options.allowed_origins.iter().any(|o| o.as_bytes() == origin.as_bytes());
            if !listed {
                let message = "this Origin is not in [http] allowed_origins";
                return Err(Refusal::new(StatusCode::FORBIDDEN, "origin_not_allowed", message));
            }
        }
        let Some(tokens) = &self.tokens else { return Ok("tcp".to_owned()) };
        let bearer = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
        let name = bearer.and_then(|token| tokens.name_of(token));
        name.map(|name| format!("token:{name}")).ok_or_else(|| {
            let message = "send Authorization: Bearer with a token from [http] token_file";
            Refusal::new(StatusCode::UNAUTHORIZED, "invalid_token", message)
        })
    }
}

#[derive(Clone)]
enum Origin {
    Unix(String),
    Tcp,
}

/// A body that keeps its request's place until its last byte.
pub struct Held {
    body: Body,
    _permit: OwnedSemaphorePermit,
}

impl Held {
    /// Ties a place to a body.
    pub fn new(body: Body, permit: OwnedSemaphorePermit) -> Self {
        Self { body, _permit: permit }
    }
}

impl HttpBody for Held {
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
