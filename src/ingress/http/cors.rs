//! Pages of a browser whose origin is listed: they may ask, and read what is answered (CORS, the Fetch standard).
//!
//! Owns the headers for that. Which origin is let in is decided where its request is.

use std::time::Duration;

use hyper::Method;
use hyper::header::{HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use tower_http::cors::{AllowHeaders, CorsLayer};

/// How long a browser remembers what it was allowed: a mended configuration counts soon.
const REMEMBERED: Duration = Duration::from_mins(10);
const METHODS: [Method; 4] = [Method::GET, Method::HEAD, Method::POST, Method::DELETE];
/// What a page may read beside the body and the plainest headers.
const READABLE: [HeaderName; 9] = [
    LOCATION,
    RETRY_AFTER,
    HeaderName::from_static("x-cache"),
    HeaderName::from_static("x-client-request-id"),
    HeaderName::from_static("x-holdfast-id"),
    HeaderName::from_static("x-holdfast-route"),
    HeaderName::from_static("x-holdfast-state"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-should-retry"),
];

/// For the pages of this origin. A preflight, which bears no token, is answered here.
pub fn pages_of(origin: HeaderValue) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(METHODS)
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(READABLE)
        .max_age(REMEMBERED)
}
