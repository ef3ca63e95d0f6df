//! The promises to users, held against the real binary from outside.
//!
//! Every test starts `holdfast run` in a folder of its own, with simulators in this process; nothing here looks into
//! the program. The clients are the official ones or a small HTTP client of our own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod abuse;
mod answers;
mod archive;
mod auto;
mod brownout;
mod budget;
mod cache;
mod clients;
mod crash;
mod crooked;
mod disk;
mod failover;
mod journal;
mod keys;
mod ladder;
mod late;
mod later;
mod limits;
mod links;
mod local_steward;
mod measured;
mod memory;
mod online;
mod opinions;
mod outages;
mod plc;
mod policies;
mod reload;
mod repairs;
mod repeats;
mod reset;
mod routes;
mod rude;
mod simulators;
mod stopping;
#[allow(dead_code, reason = "each test program uses its part of what all share")]
mod support;
mod tap;
mod tasks;
mod tls;
mod turning;
