//! The keys of one uplink: how many requests each carries, which of them was told to slow down, which comes next.
//!
//! Pure counts with explicit time. What is shut is the pauses' to know; a key itself is never seen here.

use super::event::{KeyIndex, Outcome};
use super::pause::Gate;

/// One key's numbers.
#[derive(Debug, Clone, Copy)]
pub struct KeySettings {
    /// Requests in flight with it at once; `u32::MAX` where it has no bound of its own.
    pub max_in_flight: u32,
}

/// Shortest rest of a key that was told to slow down without being told for how long; doubled each time in a row.
const REST_MS: u64 = 1_000;
/// Longest such rest.
const REST_MAX_MS: u64 = 60_000;

/// What goes on with one key.
#[derive(Debug, Clone)]
pub struct Load {
    max_in_flight: u32,
    /// Requests in flight with it.
    pub in_flight: u32,
    /// 429 in a row.
    limited: u32,
    /// It was told to slow down until then.
    pub limited_until_ms: u64,
    /// Live requests in a row that were refused for money.
    pub unpaid: u32,
}

/// All keys of one uplink, in the configuration's order; one nameless one where it needs none.
#[derive(Debug)]
pub struct Keys(Vec<Load>);

/// What a request may do with keys.
#[derive(Debug, Clone, Copy)]
pub struct May<'a> {
    /// These refused it.
    pub not: &'a [KeyIndex],
    /// Try a shut key whose trial is due.
    pub try_shut: bool,
    /// Ask with a shut key where all are: a refusal is an answer, too.
    pub ask_shut: bool,
}

impl Keys {
    /// Nothing in flight.
    pub fn new(settings: &[KeySettings]) -> Self {
        let unbounded = [KeySettings { max_in_flight: u32::MAX }];
        let settings = if settings.is_empty() { &unbounded } else { settings };
        let load = |s: &KeySettings| Load {
            max_in_flight: s.max_in_flight.max(1),
            in_flight: 0,
            limited: 0,
            limited_until_ms: 0,
            unpaid: 0,
        };
        Self(settings.iter().map(load).collect())
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Load> {
        self.0.iter()
    }

    /// One of them.
    pub fn get_mut(&mut self, key: KeyIndex) -> Option<&mut Load> {
        self.0.get_mut(key)
    }

    /// Whether there is more than one.
    pub fn are_several(&self) -> bool {
        self.0.len() > 1
    }

    /// The key for the next request: one whose trial is due, since the others stand by; else the first good one in
    /// order; else the one told to slow down for the shortest time. `Err` says whether one that may be used is full.
    pub fn pick(&self, gates: impl Fn(KeyIndex) -> Gate, may: May<'_>, now_ms: u64) -> Result<KeyIndex, bool> {
        if !self.are_several() {
            return if self.0[0].is_full() { Err(true) } else { Ok(0) };
        }
        let all_shut = (0..self.0.len()).all(|key| matches!(gates(key), Gate::Shut { .. }));
        let rank = |key: KeyIndex| match gates(key) {
            Gate::Trial if may.try_shut => Some((0, 0)),
            Gate::Open if self.0[key].limited_until_ms <= now_ms => Some((1, 0)),
            Gate::Open => Some((2, self.0[key].limited_until_ms)),
            Gate::Trial if may.ask_shut => Some((3, 0)),
            Gate::Shut { until_ms } if may.ask_shut && all_shut => Some((3, until_ms)),
            Gate::Trial | Gate::Shut { .. } => None,
        };
        let usable = (0..self.0.len()).filter(|key| !may.not.contains(key));
        let (full, free): (Vec<_>, Vec<_>) =
            usable.filter_map(|key| Some((rank(key)?, key))).partition(|(_, key)| self.0[*key].is_full());
        free.into_iter().min().map(|(_, key)| key).ok_or(!full.is_empty())
    }

    /// Whether another key can serve a request that these refused: a good one that was not told to slow down, even if
    /// it is full now.
    pub fn is_other_good(&self, gates: impl Fn(KeyIndex) -> Gate, not: &[KeyIndex], now_ms: u64) -> bool {
        let good = |key: &KeyIndex| gates(*key) == Gate::Open && self.0[*key].limited_until_ms <= now_ms;
        (0..self.0.len()).filter(|key| !not.contains(key)).any(|key| good(&key))
    }

    /// An attempt with this key ended.
    pub fn ended(&mut self, key: KeyIndex, outcome: Outcome, now_ms: u64) {
        let Some(load) = self.0.get_mut(key) else { return };
        load.in_flight = load.in_flight.saturating_sub(1);
        match outcome {
            Outcome::RateLimited { retry_after_ms } => {
                let doubled = REST_MS.saturating_mul(1 << load.limited.min(16)).min(REST_MAX_MS);
                load.limited = load.limited.saturating_add(1);
                let until_ms = now_ms + retry_after_ms.unwrap_or(doubled).max(REST_MS);
                load.limited_until_ms = load.limited_until_ms.max(until_ms);
            }
            Outcome::Delivered | Outcome::Misfit => (load.limited, load.limited_until_ms) = (0, 0),
            _ => {}
        }
    }
}

impl Load {
    fn is_full(&self) -> bool {
        self.in_flight >= self.max_in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: May<'static> = May { not: &[], try_shut: true, ask_shut: false };
    const SHUT: Gate = Gate::Shut { until_ms: 9_000 };

    fn keys(count: usize) -> Keys {
        Keys::new(&vec![KeySettings { max_in_flight: 2 }; count])
    }

    fn pick(keys: &Keys, gates: &[Gate], may: May<'_>) -> Option<KeyIndex> {
        keys.pick(|key| gates[key], may, 1_000).ok()
    }

    #[test]
    fn the_first_good_key_serves_until_it_is_full() {
        let mut keys = keys(3);
        assert_eq!(pick(&keys, &[SHUT, Gate::Open, Gate::Open], ANY), Some(1));
        keys.0[1].in_flight = 2;
        assert_eq!(pick(&keys, &[SHUT, Gate::Open, Gate::Open], ANY), Some(2));
        keys.0[2].in_flight = 2;
        assert_eq!(pick(&keys, &[SHUT, Gate::Open, Gate::Open], ANY), None);
        assert_eq!(pick(&keys, &[SHUT, Gate::Open, Gate::Open], May { ask_shut: true, ..ANY }), None);
    }

    #[test]
    fn a_trial_that_is_due_is_made_while_others_serve() {
        let keys = keys(2);
        let gates = [Gate::Open, Gate::Trial];
        assert_eq!(pick(&keys, &gates, ANY), Some(1));
        assert_eq!(pick(&keys, &gates, May { not: &[1], ..ANY }), Some(0));
        assert_eq!(pick(&keys, &gates, May { try_shut: false, ..ANY }), Some(0));
    }

    #[test]
    fn a_key_told_to_slow_down_is_the_last_resort_and_rests_longer_each_time() {
        let mut keys = keys(2);
        keys.ended(0, Outcome::RateLimited { retry_after_ms: None }, 500);
        assert_eq!(pick(&keys, &[Gate::Open, Gate::Open], ANY), Some(1));
        assert_eq!(pick(&keys, &[Gate::Open, SHUT], ANY), Some(0));
        assert_eq!(keys.0[0].limited_until_ms, 1_500);
        keys.ended(0, Outcome::RateLimited { retry_after_ms: None }, 2_000);
        assert_eq!(keys.0[0].limited_until_ms, 4_000);
        keys.ended(0, Outcome::Delivered, 5_000);
        assert_eq!(pick(&keys, &[Gate::Open, Gate::Open], ANY), Some(0));
    }

    #[test]
    fn where_all_are_shut_only_a_caller_asks() {
        let keys = keys(2);
        let gates = [Gate::Shut { until_ms: 9_000 }, Gate::Shut { until_ms: 5_000 }];
        assert_eq!(pick(&keys, &gates, ANY), None);
        assert_eq!(pick(&keys, &gates, May { ask_shut: true, ..ANY }), Some(1));
        assert!(!keys.is_other_good(|key| gates[key], &[0], 1_000));
    }
}
