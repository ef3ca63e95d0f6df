//! What the outside sees of the inside: log lines, live events, metrics.
//!
//! Owns every event and metric name. No picture or key passes through here, and prompts and answers
//! only to a listener who asked for them (`tap --bodies`).

pub mod feed;
pub mod host;
pub mod journal;
pub mod limit;
pub mod log;
pub mod metrics;
pub mod wear;
