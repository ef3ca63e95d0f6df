//! The durable queue.
pub mod record;
