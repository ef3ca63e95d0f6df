//! The smallest uplink there can be: the same 600 bytes to every POST, over loopback TCP and a UNIX socket.
//!
//! Owns the answer's bytes; reads requests to their end and looks at nothing in them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

const HEAD: &str = r#"{"id":"chatcmpl-bench","object":"chat.completion","created":1750000000,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":""#;
const TAIL: &str =
    r#""},"finish_reason":"stop"}],"usage":{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}}"#;
const ANSWER_BYTES: usize = 600;
const MODELS: &str = r#"{"object":"list","data":[{"id":"bench","object":"model","created":0,"owned_by":"bench"}]}"#;

/// Serves at a free loopback port and at `socket` until the runtime ends.
pub(crate) async fn start(socket: &Path) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let unix = UnixListener::bind(socket).unwrap();
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
            }
        }
    });
    address
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T, answer: Bytes) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let body = if request.method() == Method::POST { answer } else { Bytes::from_static(MODELS.as_bytes()) };
            // A caller that went away has no use for an answer.
            let _ = request.into_body().collect().await;
            let answer = Response::builder().header("content-type", "application/json").body(Full::new(body));
            Ok::<_, Infallible>(answer.unwrap())
        }
    });
    let _ = Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
