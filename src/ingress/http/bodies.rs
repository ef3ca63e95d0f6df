//! Beginnings of requests and answers for `tap --bodies`: only while somebody listens, never pictures, never in a log.
//!
//! Owns the shortening and the tee. Bodies pass through unchanged and are read no further than their reader reads them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use hyper::Method;
use hyper::body::{Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderMap};

use super::call;
use super::{App, Handler};
use crate::telemetry::feed::{Event, Feed};

/// What is shown of a body: enough to see what it asks, and little enough to be kept for a slow listener.
const SHOWN_BYTES_MAX: usize = 4 * 1024;
/// So many base64 characters in a row are no words: keys of 64 hex digits are shown, small pictures are not.
const RUN_MIN: usize = 100;
/// What stands before base64 whatever its length.
const MARK: &[u8] = b";base64,";

/// Shows both bodies of a request to whoever listens.
pub async fn show(app: Arc<App>, request: Request, handler: Handler) -> Response {
    let path = request.uri().path();
    let is_upload = path.starts_with("/v1/files") || path.starts_with("/v1/batches");
    if !app.gateway.feed().has_body_listener() || request.method() != Method::POST || is_upload {
        return handler.run(app, request).await;
    }
    let feed = app.gateway.feed().clone();
    let (id, source) = (call::request_id(&request), call::source(&request));
    let about = |kind, route| {
        let mut event = Event::new(kind);
        (event.id, event.source, event.route) = (Some(id.clone()), Some(source.clone()), route);
        event
    };
    let asked = Shown::new(feed.clone(), about("request_body", Some(path.to_owned())), request.headers());
    let request = request.map(|body| Body::new(Tee { body, shown: asked }));
    let response = handler.run(app, request).await;
    let route = response.headers().get("x-holdfast-route").and_then(|route| route.to_str().ok()).map(str::to_owned);
    let answered = Shown::new(feed, about("answer_body", route), response.headers());
    response.map(|body| Body::new(Tee { body, shown: answered }))
}

/// Publishes what passed when it is dropped: at the body's end, or where its reader gave up.
struct Shown {
    feed: Feed,
    event: Option<Event>,
    is_text: bool,
    short: Shortener,
}

impl Shown {
    fn new(feed: Feed, event: Event, headers: &HeaderMap) -> Self {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("text/");
        let is_text = ["text/", "json", "x-www-form-urlencoded"].iter().any(|word| kind.contains(word));
        Self { feed, event: Some(event), is_text, short: Shortener::default() }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let Some(mut event) = self.event.take() else { return };
        let total = self.short.total;
        let short = std::mem::take(&mut self.short);
        event.body = Some(if self.is_text { short.finish() } else { format!("[no text, {total} bytes]") });
        self.feed.publish_body(event);
    }
}

/// A body on its way, and what is shown of it.
struct Tee {
    body: Body,
    shown: Shown,
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.shown.short.push(data);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The beginning of a text without what is base64 in it. Takes pieces as they come; keeps [`SHOWN_BYTES_MAX`] and a run.
#[derive(Default)]
struct Shortener {
    shown: Vec<u8>,
    /// Base64 characters (and escapes that may stand between them) since anything else; no more than [`RUN_MIN`] are kept.
    run: Vec<u8>,
    run_bytes: usize,
    /// A backslash and what followed it so far.
    escape: Vec<u8>,
    total: u64,
}

impl Shortener {
    fn push(&mut self, data: &[u8]) {
        self.total += data.len() as u64;
        for byte in data {
            if self.shown.len() >= SHOWN_BYTES_MAX {
                return;
            }
            self.take(*byte);
        }
    }

    fn take(&mut self, byte: u8) {
        if !self.escape.is_empty() {
            self.escape.push(byte);
            let whole = if self.escape[1] == b'u' { 6 } else { 2 };
            if self.escape.len() == whole {
                let escape = std::mem::take(&mut self.escape);
                self.escaped(&escape);
            }
        } else if byte == b'\\' {
            self.escape.push(byte);
        } else if is_base64(byte) {
            self.in_run(&[byte]);
        } else {
            self.end_run();
            self.shown.push(byte);
        }
    }

    /// Some writers escape `/` and `+`, some break lines: neither ends a run.
    fn escaped(&mut self, escape: &[u8]) {
        let is_part = match escape {
            [_, b'/' | b'n' | b'r'] => true,
            [_, b'u', digits @ ..] => {
                let code = std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
                code.is_some_and(is_base64)
            }
            _ => false,
        };
        if is_part {
            self.in_run(escape);
        } else {
            self.end_run();
            self.shown.extend_from_slice(escape);
        }
    }

    fn in_run(&mut self, bytes: &[u8]) {
        self.run_bytes += bytes.len();
        if self.run.len() < RUN_MIN {
            self.run.extend_from_slice(bytes);
        }
    }

    fn end_run(&mut self) {
        let from = self.shown.len().saturating_sub(MARK.len());
        let is_marked = self.shown[from..].eq_ignore_ascii_case(MARK);
        if self.run_bytes >= RUN_MIN || (is_marked && self.run_bytes > 0) {
            self.shown.extend_from_slice(format!("[picture, {} bytes]", self.run_bytes / 4 * 3).as_bytes());
        } else {
            self.shown.extend_from_slice(&self.run);
        }
        self.run.clear();
        self.run_bytes = 0;
    }

    fn finish(mut self) -> String {
        self.end_run();
        let is_cut = self.shown.len() >= SHOWN_BYTES_MAX;
        self.shown.truncate(SHOWN_BYTES_MAX);
        let text = String::from_utf8_lossy(&self.shown).into_owned();
        if is_cut { format!("{text}… ({} bytes in all)", self.total) } else { text }
    }
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In pieces of each size: where a piece ends changes nothing.
    fn shortened(text: &str) -> String {
        let all = |size: usize| {
            let mut short = Shortener::default();
            text.as_bytes().chunks(size).for_each(|piece| short.push(piece));
            short.finish()
        };
        let whole = all(text.len().max(1));
        for size in [1, 2, 7, 64] {
            assert_eq!(all(size), whole, "pieces of {size}");
        }
        whole
    }

    #[test]
    fn words_stay_as_they_are() {
        let text = r#"{"messages":[{"role":"user","content":"Naht\n7 \"rot\" \u00e4 a/b+c=d"}]}"#;
        assert_eq!(shortened(text), text);
        let key = format!("{{\"sum\":\"{}\"}}", "0123456789abcdef".repeat(4));
        assert_eq!(shortened(&key), key);
    }

    #[test]
    fn no_picture_is_shown_however_it_is_written() {
        let picture = "iVBORw0KGgo/+AAAA".repeat(40);
        let ways = [
            picture.clone(),
            picture.replace('/', "\\/"),
            picture.replace('+', "\\u002B"),
            picture.replace("AAAA", "AAAA\\r\\n"),
        ];
        for written in ways {
            for before in ["data:image/png;base64,", "", "DATA:image/jpeg;BASE64,"] {
                let shown = shortened(&format!("{{\"url\":\"{before}{written}\",\"after\":\"words\"}}"));
                assert!(!shown.contains("iVBOR") && shown.contains("[picture, "), "{shown}");
                assert!(shown.ends_with("\"after\":\"words\"}"), "{shown}");
            }
        }
        assert_eq!(shortened("data:image/png;base64,/9j/4AAQ\""), "data:image/png;base64,[picture, 6 bytes]\"");
        // The body breaks off in the middle of a picture.
        assert_eq!(shortened("data:image/png;base64,/9j/4AAQ"), "data:image/png;base64,[picture, 6 bytes]");
    }

    #[test]
    fn the_rest_is_cut_and_counted() {
        let shown = shortened(&"Wort ä ".repeat(1_000));
        assert!(shown.ends_with("… (8000 bytes in all)") && shown.len() < SHOWN_BYTES_MAX + 40, "{shown}");
    }
}
