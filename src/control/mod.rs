//! Decisions as one pure value: route, breaker, health, drain, retry.
//!
//! Owns every choice the gateway makes; never does I/O, never reads a clock, never sees a prompt or an
//! answer. Imports `std` and its own types only.

pub mod types;
