//! `[routing]`, `[queue]`, `[drain]`, `[retry]`: what happens to a request while no uplink answers, and after.

use std::time::Duration;

use super::walk::Table;
use crate::control::route::Strategy;
use crate::control::types::{Policy, words};

/// What a full queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Refuses the new request.
    Reject,
    /// Sets the oldest of a lower priority aside.
    Evict,
}
words!(WhenFull { Reject => "reject", Evict => "evict" });

/// What becomes of a request whose body was sent and whose answer was not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknown {
    /// Sent once more at most.
    Resend,
    /// Kept for a person to decide.
    Hold,
}
words!(OnUnknown { Resend => "resend", Hold => "hold" });

/// `[routing]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// How an uplink is chosen.
    pub strategy: Strategy,
    /// What an ordinary request gets while no uplink is available.
    pub offline: Policy,
}

/// `[queue]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// The backlog's largest size in bytes.
    pub max_bytes: u64,
    /// The largest number of requests in it.
    pub max_requests: u64,
    /// Below this much free disk nothing more is stored.
    pub min_disk_free: u64,
    /// What a full queue does.
    pub when_full: WhenFull,
    /// How long a request waits, in powered-on time.
    pub ttl: Duration,
    /// Attempts until it is set aside.
    pub max_attempts: u32,
    /// How long a finished request stays readable.
    pub keep_results: Duration,
    /// How many bytes of finished requests are kept.
    pub keep_results_bytes: u64,
}

/// `[drain]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Drain {
    /// The working window's upper bound.
    pub max_in_flight: u32,
    /// Spread of a fleet's return, by `device_id`.
    pub start_jitter: Duration,
}

/// `[retry]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Attempts while the client waits.
    pub attempts: u32,
    /// The first wait's upper bound.
    pub base: Duration,
    /// Every wait's upper bound.
    pub max: Duration,
    /// Retries as a share of requests.
    pub budget: f64,
    /// What becomes of an attempt that may have been billed.
    pub on_unknown: OnUnknown,
}

pub(super) fn routing(t: &mut Table<'_>) -> Routing {
    Routing { strategy: t.word("strategy", Strategy::Priority), offline: t.word("offline", Policy::Both) }
}

pub(super) fn queue(t: &mut Table<'_>) -> Queue {
    Queue {
        max_bytes: t.size("max_bytes", "1GiB", 1),
        max_requests: t.count("max_requests", 100_000, 1..=u32::MAX).into(),
        min_disk_free: t.size("min_disk_free", "64MiB", 0),
        when_full: t.word("when_full", WhenFull::Reject),
        ttl: t.duration("ttl", "72h", "1ms"),
        max_attempts: t.count("max_attempts", 8, 1..=10_000),
        keep_results: t.duration("keep_results", "7d", "0s"),
        keep_results_bytes: t.size("keep_results_bytes", "256MiB", 0),
    }
}

pub(super) fn drain(t: &mut Table<'_>) -> Drain {
    Drain { max_in_flight: t.count("max_in_flight", 4, 1..=1024), start_jitter: t.duration("start_jitter", "5s", "0s") }
}

pub(super) fn retry(t: &mut Table<'_>) -> Retry {
    let retry = Retry {
        attempts: t.count("attempts", 3, 1..=100),
        base: t.duration("base", "500ms", "1ms"),
        max: t.duration("max", "60s", "1ms"),
        budget: t.number("budget", 0.2, 0.0..=10.0),
        on_unknown: t.word("on_unknown", OnUnknown::Resend),
    };
    if retry.base > retry.max {
        t.fault("base", "is longer than max; make base the shortest wait and max the longest");
    }
    retry
}
