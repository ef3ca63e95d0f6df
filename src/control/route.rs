//! Which uplink a request goes to, and what it gets when there is none.
//!
//! Two pure functions over plain candidates: the strategy, and the offline table.

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

/// Picks one; `turn` counts decisions and makes the turns of the rotating strategies.
pub fn choose(strategy: Strategy, candidates: &[Candidate], turn: u64) -> Option<UplinkIndex> {
    let best_class = candidates.iter().map(|c| c.degraded).min()?;
    let pool: Vec<&Candidate> = candidates.iter().filter(|c| c.degraded == best_class).collect();
    let picked = match strategy {
        Strategy::Priority => pool.iter().min_by_key(|c| c.priority).copied(),
        Strategy::RoundRobin => pool.get((turn % pool.len() as u64) as usize).copied(),
        Strategy::Weighted => by_weight(&pool, turn),
        Strategy::LeastLatency => least(&pool, |c| c.latency_ms.unwrap_or(0.0)),
        Strategy::LeastConnections => least(&pool, |c| f64::from(c.in_flight) / f64::from(c.weight.max(1))),
    };
    picked.map(|c| c.uplink)
}

fn least<'a>(pool: &[&'a Candidate], cost: impl Fn(&Candidate) -> f64) -> Option<&'a Candidate> {
    pool.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).copied()
}

fn by_weight<'a>(pool: &[&'a Candidate], turn: u64) -> Option<&'a Candidate> {
    let total: u64 = pool.iter().map(|c| u64::from(c.weight)).sum();
    if total == 0 {
        return pool.first().copied();
    }
    let mut mark = turn % total;
    pool.iter()
        .find(|c| {
            let hit = mark < u64::from(c.weight);
            mark = mark.saturating_sub(u64::from(c.weight));
            hit
        })
        .copied()
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
        assert_eq!(choose(Strategy::Priority, &all, 9), Some(0));
        all[0].degraded = true;
        assert_eq!(choose(Strategy::Priority, &all, 9), Some(1));
        assert_eq!(choose(Strategy::Priority, &[], 0), None);
    }

    #[test]
    fn weights_are_shares_of_turns() {
        let mut all = [candidate(0), candidate(1), candidate(2)];
        (all[0].weight, all[1].weight, all[2].weight) = (5, 3, 2);
        let hits = |n: usize| (0..1000).filter(|t| choose(Strategy::Weighted, &all, *t) == Some(n)).count();
        assert_eq!((hits(0), hits(1), hits(2)), (500, 300, 200));
    }

    #[test]
    fn round_robin_visits_everybody() {
        let all = [candidate(0), candidate(1), candidate(2)];
        let seen: Vec<_> = (0..6).filter_map(|t| choose(Strategy::RoundRobin, &all, t)).collect();
        assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn least_latency_and_least_connections() {
        let mut all = [candidate(0), candidate(1)];
        (all[0].latency_ms, all[1].latency_ms) = (Some(20.0), Some(10.0));
        assert_eq!(choose(Strategy::LeastLatency, &all, 0), Some(1));
        (all[0].in_flight, all[0].weight, all[1].in_flight) = (3, 4, 1);
        assert_eq!(choose(Strategy::LeastConnections, &all, 0), Some(0));
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
