//! Doors for the fuzz targets: what a request's headers ask for, and what a connection's bytes become.
//!
//! Only with the feature `planted`. Owns no behaviour: everything runs as it does behind the sockets.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::{self, Chunks, Framing, HEAD_BYTES_MAX};
use super::guarded::{Guarded, Line};
use super::{call, wants};
use crate::control::types::Policy;

/// Reads what a request's headers ask for.
pub fn head(headers: &HeaderMap) {
    let _ = wants::Wants::read(headers, Policy::Both);
    let _ = call::forwardable(headers);
}

/// The methods of the heads that are judged good, in order, where nothing else is looked at.
pub fn judged(mut bytes: &[u8]) -> Vec<String> {
    let mut methods = Vec::new();
    while let Some(end) = framing::head_end(bytes).filter(|end| *end <= HEAD_BYTES_MAX) {
        let Ok(framing) = framing::judge(&bytes[..end]) else { break };
        let head = bytes[..end].trim_ascii_start();
        let method = head.split(|b| *b == b' ').next().unwrap_or_default();
        methods.push(String::from_utf8_lossy(method).into_owned());
        bytes = &bytes[end..];
        let body = match framing {
            Framing::Length(length) => usize::try_from(length).ok().filter(|length| *length <= bytes.len()),
            Framing::Chunked => { Chunks::START }.feed(bytes).unwrap_or(None),
        };
        let Some(body) = body else { break };
        bytes = &bytes[body..];
    }
    methods
}

/// A peer that says this in pieces of `size` bytes, and is gone then.
struct Said<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl AsyncRead for Said<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let now = self.size.min(self.bytes.len()).min(buf.remaining());
        let (piece, rest) = self.bytes.split_at(now);
        buf.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The methods of the requests that the HTTP library serves from a guarded connection; `reads` bodies or leaves them.
/// `None` where the connection does not come to its end.
pub async fn served(bytes: &[u8], size: usize, reads: bool) -> Option<Vec<String>> {
    let line = Arc::new(Line::default());
    let methods = Mutex::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        if line.fault().is_none() {
            let method = request.method().to_string();
            methods.lock().unwrap_or_else(PoisonError::into_inner).push(method);
        }
        async move {
            if reads {
                let _ = request.into_body().collect().await;
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let stream = TokioIo::new(Guarded::new(Said { bytes, size: size.max(1) }, |_| false, line.clone()));
    let mut server = http1::Builder::new();
    server.header_read_timeout(None);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(5), server.serve_connection(stream, service)).await;
    ended.is_ok().then(|| methods.into_inner().unwrap_or_else(PoisonError::into_inner))
}
