//! Pages of a browser whose origin is listed: they may ask, and read what is answered (CORS, the Fetch standard).
//!
//! Owns the headers for that. Which origin is let in is decided where its request is.

use std::time::Duration;

use hyper::Method;
use hyper::header::{ACCESS_CONTROL_REQUEST_HEADERS, HeaderName, HeaderValue, LOCATION, ORIGIN, RETRY_AFTER};
use tower_http::cors::{AllowHeaders, CorsLayer};

/// How long a browser remembers what it was allowed: a mended configuration counts soon.
const REMEMBERED: Duration = Duration::from_mins(10);
const METHODS: [Method; 4] = [Method::GET, Method::HEAD, Method::POST, Method::DELETE];
/// What a page may read beside the body and the plainest headers.
const READABLE: [HeaderName; 12] = [
    LOCATION,
    RETRY_AFTER,
    HeaderName::from_static("idempotent-replayed"),
    HeaderName::from_static("preference-applied"),
    HeaderName::from_static("x-cache"),
    HeaderName::from_static("x-client-request-id"),
    HeaderName::from_static("x-holdfast-id"),
    HeaderName::from_static("x-holdfast-route"),
    HeaderName::from_static("x-holdfast-state"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-should-retry"),
    HeaderName::from_static("x-upstream-request-id"),
];

/// For the pages of this origin. A preflight, which bears no token, is answered here.
pub fn pages_of(origin: HeaderValue) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(METHODS)
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(READABLE)
        .max_age(REMEMBERED)
        // The layer is told one origin and takes it for the only one; a browser's cache may be asked by another.
        .vary([ORIGIN, ACCESS_CONTROL_REQUEST_HEADERS])
}
