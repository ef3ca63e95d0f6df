//! Targets of requests: cloud uplinks and the local model, and what their answers mean.
//!
//! Translates and nothing else: bytes to calls, statuses to outcomes. Decides nothing.

pub mod body;
mod bundle;
pub mod classify;
pub mod cloud;
mod dial;
pub mod ladder;
pub mod local;
pub mod outgoing;
pub mod sse;
mod tls;
mod unpack;
pub mod usage;
