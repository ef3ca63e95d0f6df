//! holdfast: a store-and-forward AI gateway for embedded Linux.
//!
//! Rooms, arrows pointing down only:
//!
//! ```text
//! main -> cli -> supervisor -> { ingress, systemd, network } -> batch -> gateway
//!      -> { spool, uplink, money, telemetry, task, cache } -> { control, body, clock, durable }
//! ```
//!
//! `config` is seen by `cli` and `supervisor` alone. `plant` holds mistakes that tests switch on and is left out of a
//! released binary; `wire` below is a crate of its own (`holdfast-wire`), since firmware uses it, too. A test reads the
//! `use` lines and holds the rule.

pub mod batch;
pub mod body;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod durable;
pub mod gateway;
pub mod ingress;
pub mod money;
pub mod network;
pub mod plant;
pub mod spool;
pub mod supervisor;
pub mod systemd;
pub mod task;
pub mod telemetry;
pub mod uplink;
