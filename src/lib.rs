//! holdfast: a store-and-forward AI gateway for embedded Linux.
//!
//! Rooms, arrows pointing down only:
//!
//! ```text
//! main -> cli -> supervisor -> { ingress, systemd, network } -> gateway
//!      -> { spool, uplink, money, telemetry, task, cache } -> { control, body, clock }
//! ```
//!
//! `plant` holds mistakes that tests switch on; nothing of it is left in a released binary.
//! `config` is seen by `cli` and `supervisor` alone. A test reads the `use` lines and holds the rule.

pub mod body;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
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
