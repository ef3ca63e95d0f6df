//! The smallest uplink there can be: the same 600 bytes to every POST, or a short stream of events where the body asks for
//! one; over loopback TCP, TLS and a UNIX socket.
//!
//! Owns the answers' bytes; reads requests to their end and looks at nothing else in them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use holdfast::clock;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

const HEAD: &str = r#"{"id":"chatcmpl-bench","object":"chat.completion","created":1750000000,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":""#;
const TAIL: &str =
    r#""},"finish_reason":"stop"}],"usage":{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}}"#;
const ANSWER_BYTES: usize = 600;
const MODELS: &str = r#"{"object":"list","data":[{"id":"bench","object":"model","created":0,"owned_by":"bench"}]}"#;
/// How a request says that it wants a stream: the callers put it at the body's very end, and a gateway may add to it.
const STREAMED: &[u8] = br#""stream":true"#;
const STREAMED_WITHIN: usize = 64;
/// Events of a stream, and the time between two of them: a fast model's.
pub(crate) const EVENTS: u32 = 10;
const BETWEEN_EVENTS: Duration = Duration::from_millis(2);

/// Which versions of HTTP the TLS side offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offers {
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2 first.
    Http2,
}

/// Where it listens, until the runtime ends.
pub(crate) struct Mock {
    pub(crate) tcp: SocketAddr,
    /// `localhost` at this port, with `certificate`.
    pub(crate) tls: SocketAddr,
    /// PEM.
    pub(crate) certificate: String,
}

/// Serves at free loopback ports and at `socket` until the runtime ends.
pub(crate) async fn start(socket: &Path, offers: Offers) -> Mock {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let unix = UnixListener::bind(socket).unwrap();
    let (acceptor, certificate) = acceptor(offers);
    let mock = Mock { tcp: tcp.local_addr().unwrap(), tls: tls.local_addr().unwrap(), certificate };
    let text = "a".repeat(ANSWER_BYTES - HEAD.len() - TAIL.len());
    let answer = Bytes::from([HEAD, text.as_str(), TAIL].concat());
    tokio::spawn(async move {
        loop {
            let answer = answer.clone();
            tokio::select! {
                Ok((stream, _)) = tcp.accept() => {
                    stream.set_nodelay(true).unwrap();
                    tokio::spawn(serve(stream, answer));
                }
                Ok((stream, _)) = unix.accept() => {
                    tokio::spawn(serve(stream, answer));
                }
                Ok((stream, _)) = tls.accept() => {
                    stream.set_nodelay(true).unwrap();
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve(stream, answer).await;
                        }
                    });
                }
            }
        }
    });
    mock
}

fn acceptor(offers: Offers) -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let names: &[&[u8]] = if offers == Offers::Http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
    server.alpn_protocols = names.iter().map(|name| name.to_vec()).collect();
    (TlsAcceptor::from(Arc::new(server)), made.cert.pem())
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T, answer: Bytes) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let posted = request.method() == Method::POST;
            // Of a picture only the end is kept.
            let (mut body, mut end) = (request.into_body(), Bytes::new());
            while let Some(Ok(frame)) = body.frame().await {
                end = frame.into_data().unwrap_or_default();
            }
            let (kind, body) = match posted {
                true if wants_stream(&end) => ("text/event-stream", events()),
                true => ("application/json", Full::new(answer).boxed_unsync()),
                false => ("application/json", Full::new(Bytes::from_static(MODELS.as_bytes())).boxed_unsync()),
            };
            Ok::<_, Infallible>(Response::builder().header("content-type", kind).body(body).unwrap())
        }
    });
    // A caller that went away has no use for an answer.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

fn wants_stream(end: &[u8]) -> bool {
    let end = &end[end.len().saturating_sub(STREAMED_WITHIN)..];
    end.windows(STREAMED.len()).any(|part| part == STREAMED)
}

/// The events, one at a time; each says when it was sent, in microseconds since the machine's start.
fn events() -> UnsyncBoxBody<Bytes, Infallible> {
    let events = stream::unfold(0, |sent| async move {
        if sent > EVENTS {
            return None;
        }
        if sent > 0 {
            tokio::time::sleep(BETWEEN_EVENTS).await;
        }
        let text = if sent == EVENTS { "[DONE]".to_owned() } else { event() };
        Some((Ok(Frame::data(Bytes::from(format!("data: {text}\n\n")))), sent + 1))
    });
    StreamBody::new(events).boxed_unsync()
}

fn event() -> String {
    let at = clock::since_boot().as_micros();
    format!(
        r#"{{"id":"c","object":"chat.completion.chunk","created":1,"model":"bench","choices":[{{"index":0,"delta":{{"content":"{at}"}},"finish_reason":null}}]}}"#
    )
}
