//! Which uplink a request goes to, and what it gets when there is none.
//!
//! Two pure functions over plain candidates, the strategy and the offline table; and whose turn it is.

use super::event::UplinkIndex;
use super::types::{Policy, words};

/// `[routing] strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// The lowest `priority` number that is up.
    #[default]
    Priority,
    /// In turn.
    RoundRobin,
    /// In turn, as often as `weight` says.
    Weighted,
    /// The lowest moving average of answer times.
    LeastLatency,
    /// The fewest in flight per weight.
    LeastConnections,
}

words!(Strategy {
    Priority => "priority",
    RoundRobin => "round_robin",
    Weighted => "weighted",
    LeastLatency => "least_latency",
    LeastConnections => "least_connections",
});

/// One uplink that could take the request now.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Which.
    pub uplink: UplinkIndex,
    /// Lower is tried first.
    pub priority: u32,
    /// Its share.
    pub weight: u32,
    /// It answers slowly: used only when nothing better is there.
    pub degraded: bool,
    /// Requests in flight.
    pub in_flight: u32,
    /// Moving average of its answer time.
    pub latency_ms: Option<f64>,
}

/// Picks one; among equals the first in the configuration's order.
pub fn choose(strategy: Strategy, candidates: &[Candidate], turns: &mut Turns) -> Option<UplinkIndex> {
    let best_class = candidates.iter().map(|c| c.degraded).min()?;
    let pool: Vec<&Candidate> = candidates.iter().filter(|c| c.degraded == best_class).collect();
    let picked = match strategy {
        Strategy::Priority => pool.iter().min_by_key(|c| c.priority).copied(),
        Strategy::RoundRobin => turns.next(&pool, |_| 1),
        Strategy::Weighted => turns.next(&pool, |c| i64::from(c.weight.max(1))),
        Strategy::LeastLatency => least(&pool, |c| c.latency_ms.unwrap_or(0.0)),
        Strategy::LeastConnections => least(&pool, |c| f64::from(c.in_flight) / f64::from(c.weight.max(1))),
    };
    picked.map(|c| c.uplink)
}

fn least<'a>(pool: &[&'a Candidate], cost: impl Fn(&Candidate) -> f64) -> Option<&'a Candidate> {
    pool.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).copied()
}

/// Whose turn it is under the rotating strategies: what each uplink has earned and not yet used.
#[derive(Debug, Default)]
pub struct Turns(Vec<i64>);

impl Turns {
    /// Smooth weighted turns, as nginx makes them: each candidate earns its weight, the richest goes and pays for all.
    /// So shares hold whatever set of uplinks is up, and no share is used in one burst.
    fn next<'a>(&mut self, pool: &[&'a Candidate], weight: impl Fn(&Candidate) -> i64) -> Option<&'a Candidate> {
        let total: i64 = pool.iter().map(|c| weight(c)).sum();
        let most = pool.iter().map(|c| c.uplink + 1).max()?;
        if self.0.len() < most {
            self.0.resize(most, 0);
        }
        for c in pool {
            // What was earned in another set counts for one turn at most.
            self.0[c.uplink] = self.0[c.uplink].clamp(-total, total) + weight(c);
        }
        let picked = pool.iter().max_by_key(|c| (self.0[c.uplink], std::cmp::Reverse(c.uplink)))?;
        self.0[picked.uplink] -= total;
        Some(picked)
    }
}

/// What an offline request gets now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// The local model's answer; without one, the caller waits and then gets a ticket.
    LocalThenTicket,
    /// The local model's answer, or an error.
    Local,
    /// The caller waits, then gets a ticket.
    Ticket,
    /// An error at once.
    Refuse,
}

/// What an offline request gets, now and later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offline {
    /// On disk before anything is said.
    pub store: bool,
    /// What the caller gets.
    pub now: Now,
}

/// The offline table. A health probe (`max_tokens` 1) is somebody's question whether we live: never stored.
pub fn offline(policy: Policy, health_probe: bool) -> Offline {
    match (policy, health_probe) {
        (Policy::Fail, _) | (Policy::Queue, true) => Offline { store: false, now: Now::Refuse },
        (Policy::Local, _) | (Policy::Both, true) => Offline { store: false, now: Now::Local },
        (Policy::Both, false) => Offline { store: true, now: Now::LocalThenTicket },
        (Policy::Queue, false) => Offline { store: true, now: Now::Ticket },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(uplink: usize) -> Candidate {
        Candidate { uplink, priority: uplink as u32, weight: 1, degraded: false, in_flight: 0, latency_ms: None }
    }

    #[test]
    fn priority_takes_the_first_and_prefers_fast_ones() {
        let mut all = [candidate(0), candidate(1)];
        assert_eq!(choose(Strategy::Priority, &all, &mut Turns::default()), Some(0));
        all[0].degraded = true;
        assert_eq!(choose(Strategy::Priority, &all, &mut Turns::default()), Some(1));
        assert_eq!(choose(Strategy::Priority, &[], &mut Turns::default()), None);
    }

    #[test]
    fn weights_are_shares_of_turns() {
        let mut all = [candidate(0), candidate(1), candidate(2)];
        (all[0].weight, all[1].weight, all[2].weight) = (5, 3, 2);
        let mut turns = Turns::default();
        let seen: Vec<_> = (0..1000).filter_map(|_| choose(Strategy::Weighted, &all, &mut turns)).collect();
        let hits = |n: usize| seen.iter().filter(|uplink| **uplink == n).count();
        assert_eq!((hits(0), hits(1), hits(2)), (500, 300, 200));
        assert_eq!(seen[..10], [0, 1, 2, 0, 0, 1, 0, 2, 1, 0], "no burst");
    }

    #[test]
    fn round_robin_visits_everybody() {
        let all = [candidate(0), candidate(1), candidate(2)];
        let mut turns = Turns::default();
        let seen: Vec<_> = (0..6).filter_map(|_| choose(Strategy::RoundRobin, &all, &mut turns)).collect();
        assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn least_latency_and_least_connections() {
        let mut all = [candidate(0), candidate(1)];
        (all[0].latency_ms, all[1].latency_ms) = (Some(20.0), Some(10.0));
        assert_eq!(choose(Strategy::LeastLatency, &all, &mut Turns::default()), Some(1));
        (all[0].in_flight, all[0].weight, all[1].in_flight) = (3, 4, 1);
        assert_eq!(choose(Strategy::LeastConnections, &all, &mut Turns::default()), Some(0));
    }

    #[test]
    fn the_offline_table() {
        assert_eq!(offline(Policy::Both, false), Offline { store: true, now: Now::LocalThenTicket });
        assert_eq!(offline(Policy::Local, false), Offline { store: false, now: Now::Local });
        assert_eq!(offline(Policy::Queue, false), Offline { store: true, now: Now::Ticket });
        assert_eq!(offline(Policy::Fail, false), Offline { store: false, now: Now::Refuse });
        assert!(Policy::ALL.iter().all(|p| !offline(*p, true).store));
    }
}
