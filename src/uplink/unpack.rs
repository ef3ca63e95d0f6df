//! An answer that came packed although nobody asked for it: something between did that. Callers, records and whoever judges it get what
//! was packed.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_ENCODING, HeaderValue};
use hyper::{Request, Response};
use tower::{BoxError, ServiceExt, service_fn};
use tower_http::decompression::Decompression;

/// A body on its way.
#[derive(Debug)]
pub(super) enum Coming {
    /// As it comes.
    Plain(Incoming),
    /// Unpacked piece by piece.
    Unpacked(BoxBody<Bytes, BoxError>),
}

impl Coming {
    /// The next piece; an error is a body that broke off.
    pub(super) async fn frame(&mut self) -> Option<Result<Frame<Bytes>, ()>> {
        match self {
            Coming::Plain(body) => body.frame().await.map(|frame| frame.map_err(|_| ())),
            Coming::Unpacked(body) => body.frame().await.map(|frame| frame.map_err(|_| ())),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Coming::Plain(body) => body.is_end_stream(),
            Coming::Unpacked(body) => body.is_end_stream(),
        }
    }

    /// Its exact length in bytes, where that is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Coming::Plain(body) => body.size_hint().exact(),
            Coming::Unpacked(body) => body.size_hint().exact(),
        }
    }
}

/// What came, unpacked where it has to be and can be (gzip, deflate).
pub(super) async fn unpacked(mut response: Response<Incoming>) -> Response<Coming> {
    let Some(packing) = response.headers().get(CONTENT_ENCODING) else { return response.map(Coming::Plain) };
    // Some write it in capitals or by its old name; the library knows one way.
    let known = match packing.as_bytes().to_ascii_lowercase().as_slice() {
        b"gzip" | b"x-gzip" => Some("gzip"),
        b"deflate" => Some("deflate"),
        _ => None,
    };
    let Some(known) = known else { return response.map(Coming::Plain) };
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(known));
    let mut came = Some(response);
    let inner = service_fn(move |_: Request<()>| {
        let came = came.take();
        async {
            match came {
                Some(came) => Ok::<_, Infallible>(came),
                // It is asked once.
                None => std::future::pending().await,
            }
        }
    });
    let unpacked = Decompression::new(inner).oneshot(Request::new(())).await;
    unpacked.unwrap_or_else(|never| match never {}).map(|body| Coming::Unpacked(body.boxed()))
}
