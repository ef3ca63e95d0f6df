//! What the outside sees of the inside: log lines, live events, metrics.
//!
//! Owns every event and metric name. No prompt, picture, answer or key passes through here.

pub mod feed;
pub mod host;
pub mod log;
pub mod metrics;
