//! Live requests: somebody is waiting, and nothing is stored yet.
//!
//! Owns the order in which they get targets and what follows a failed attempt; never settles stored requests.

use std::collections::BTreeMap;

use super::breaker::BreakerState;
use super::event::{AskId, Block, Effect, KeyIndex, Outcome, Reason, Route, UplinkIndex};
use super::health::Health;
use super::keys::May;
use super::pause::{Gate, Way};
use super::retry::backoff_ms;
use super::{Control, Owner, Uplink};

/// One live request.
#[derive(Debug)]
pub(super) struct Ask {
    /// Attempts made, per uplink.
    tries: BTreeMap<UplinkIndex, u32>,
    /// Uplinks that are not tried again for this request.
    done_with: Vec<UplinkIndex>,
    /// Keys that are not tried again for it; no more than there are.
    refused_with: Vec<Way>,
    /// The uplink to which it was sent without an answer.
    unsure_of: Option<UplinkIndex>,
    /// An uplink refused it for a reason that is not its own; that is its answer where every other refuses, too.
    refused: bool,
    /// An uplink failed it: what the others refused is not all there is to say.
    failed: bool,
    /// An uplink would have taken it, but it may cost more than is left of today's budget.
    too_dear: bool,
    /// It tells nothing of keys, quotas and money.
    aside: bool,
    /// Its caller waits no longer.
    until_ms: Option<u64>,
    /// No further try could end before that.
    late: bool,
    /// Not before this.
    pub(super) retry_at_ms: Option<u64>,
}

impl Control {
    pub(super) fn asked(&mut self, ask: AskId, aside: bool, until_ms: Option<u64>) {
        self.budget.earn();
        let new = Ask {
            tries: BTreeMap::new(),
            done_with: Vec::new(),
            refused_with: Vec::new(),
            unsure_of: None,
            refused: false,
            failed: false,
            too_dear: false,
            aside,
            until_ms,
            late: false,
            retry_at_ms: None,
        };
        self.asks.insert(ask, new);
        self.waiting.push_back(ask);
    }

    pub(super) fn forget(&mut self, ask: AskId) {
        if self.asks.remove(&ask).is_some() {
            self.waiting.retain(|waiting| *waiting != ask);
        }
    }

    /// A live attempt failed and its caller wants the next target.
    pub(super) fn live_failed(&mut self, id: AskId, way: Way, outcome: Outcome, now_ms: u64) {
        let uplink = way.0;
        self.see_lateness(id, now_ms);
        if matches!(outcome, Outcome::RateLimited { .. } | Outcome::Blocked(_)) {
            return self.live_refused(id, way, now_ms);
        }
        let attempts = self.settings.retry.attempts;
        let elsewhere = self.is_other_available(id, uplink);
        let Some(ask) = self.asks.get_mut(&id) else { return };
        let tries = *ask.tries.get(&uplink).unwrap_or(&0);
        let mut again = !elsewhere && tries < attempts;
        let (says_try_again, wait_ms) = (outcome.says_try_again(), outcome.wait_ms());
        ask.refused |= says_try_again;
        ask.failed |= !says_try_again
            && matches!(outcome, Outcome::Unreachable(_) | Outcome::Transient(_) | Outcome::Later { .. });
        match outcome {
            Outcome::Unknown(_) => ask.unsure_of = Some(uplink),
            Outcome::Unreachable(_) => again = again && self.budget.spend(),
            Outcome::Transient(_) | Outcome::Later { .. } => {
                // Nobody is kept here for longer than we would wait of ourselves.
                again = again && wait_ms <= self.settings.retry.max_ms;
                again = again && self.uplinks[uplink].breaker.is_closed() && self.budget.spend();
                if again {
                    let wait = backoff_ms(&self.settings.retry, tries.saturating_sub(1), wait_ms, &mut self.chance);
                    ask.retry_at_ms = Some(now_ms + wait);
                    ask.late |=
                        ask.until_ms.is_some_and(|until| now_ms + wait + usual_ms(&self.uplinks[uplink]) > until);
                }
            }
            Outcome::Unaffordable => {
                ask.too_dear = true;
                again = false;
            }
            _ => again = false,
        }
        if !again {
            ask.done_with.push(uplink);
        }
        self.waiting.push_back(id);
    }

    /// A refusal that is not its own: another key is asked, else another uplink. It cost nothing, so it is no retry.
    fn live_refused(&mut self, id: AskId, way: Way, now_ms: u64) {
        let Some(ask) = self.asks.get_mut(&id) else { return };
        ask.refused = true;
        ask.refused_with.push(way);
        let refused_with = keys_of(&ask.refused_with, way.0);
        let (pauses, keys) = (&self.pauses, &self.uplinks[way.0].keys);
        let gates = |key| pauses.gate_with((way.0, key), "", now_ms);
        if !keys.are_several() || !keys.is_other_good(gates, &refused_with, now_ms) {
            ask.done_with.push(way.0);
        }
        self.waiting.push_back(id);
    }

    /// The key with which each uplink would take it now; else whether one of its keys is full.
    fn live_keys(&self, id: AskId, now_ms: u64) -> Vec<Result<KeyIndex, bool>> {
        let Some(ask) = self.asks.get(&id) else { return Vec::new() };
        let one = |uplink: UplinkIndex| {
            let may = May { not: &keys_of(&ask.refused_with, uplink), try_shut: !ask.aside, ask_shut: true };
            self.uplinks[uplink].keys.pick(|key| self.pauses.gate_with((uplink, key), "", now_ms), may, now_ms)
        };
        (0..self.uplinks.len()).map(one).collect()
    }

    /// Whether any other try could end while its caller still waits.
    fn see_lateness(&mut self, id: AskId, now_ms: u64) {
        let quickest = self.uplinks.iter().filter(|u| u.is_available()).map(usual_ms).min().unwrap_or(0);
        if let Some(ask) = self.asks.get_mut(&id) {
            ask.late |= ask.until_ms.is_some_and(|until| now_ms + quickest > until);
        }
    }

    fn is_other_available(&self, id: AskId, uplink: UplinkIndex) -> bool {
        let Some(ask) = self.asks.get(&id) else { return false };
        self.uplinks.iter().enumerate().any(|(i, u)| i != uplink && u.is_available() && !ask.done_with.contains(&i))
    }

    /// Names a target for every waiting request for which one can be named.
    pub(super) fn route_waiting(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        for _ in 0..self.waiting.len() {
            let Some(id) = self.waiting.pop_front() else { return };
            match self.route(id, now_ms) {
                Some(route) => {
                    if !matches!(route, Route::Uplink { .. }) {
                        self.asks.remove(&id);
                    }
                    effects.push(Effect::Answer(id, route));
                }
                None if self.asks.contains_key(&id) => self.waiting.push_back(id),
                None => {}
            }
        }
    }

    /// `None` while a check under way, a full uplink or a back-off makes it wait.
    fn route(&mut self, id: AskId, now_ms: u64) -> Option<Route> {
        let ask = self.asks.get(&id)?;
        if self.stopping {
            return Some(Route::Stopping);
        }
        if let Some(uplink) = ask.unsure_of {
            return self.route_unsure(uplink);
        }
        if ask.late {
            let last = ask.refused && !ask.failed;
            let offline = Route::Offline { reason: Reason::AllTried, maybe_billed: false };
            return Some(if last { Route::LastAnswer } else { offline });
        }
        // There is nothing to wait for once no uplink is left.
        if ask.retry_at_ms.is_some_and(|at| now_ms < at) && self.is_available() {
            return None;
        }
        let done_with = ask.done_with.clone();
        // One whose key or money is refused is tried when no other is left: its refusal is an answer, too.
        let shut: Vec<bool> = (0..self.uplinks.len()).map(|i| self.pauses.gate(i, "", now_ms) != Gate::Open).collect();
        let keys = self.live_keys(id, now_ms);
        let usable = |i: usize| !done_with.contains(&i) && keys[i].is_ok();
        let chosen = self.choose(|i, _| usable(i) && !shut[i]);
        let open = |i: usize, u: &Uplink| !done_with.contains(&i) && u.breaker.is_closed() && !u.walled;
        // A shut one's refusal can wait for a check under way; after a start that is so for all of them.
        let undecided = |i: usize, u: &Uplink| open(i, u) && !shut[i] && u.health.is_undecided();
        if chosen.is_none() && self.uplinks.iter().enumerate().any(|(i, u)| undecided(i, u)) {
            return None;
        }
        if let Some(uplink) = chosen.or_else(|| self.choose(|i, _| usable(i))) {
            return Some(self.send_live(id, (uplink, keys[uplink].unwrap_or(0))));
        }
        let full = |i: usize, u: &Uplink| u.is_full() || keys[i] == Err(true);
        let worth_waiting = |i, u: &Uplink| u.health.is_undecided() || (u.health.is_up() && full(i, u));
        if self.uplinks.iter().enumerate().any(|(i, u)| open(i, u) && worth_waiting(i, u)) {
            return None;
        }
        if self.asks.get(&id).is_some_and(|ask| ask.too_dear) {
            return Some(Route::Offline { reason: Reason::BudgetSpent, maybe_billed: false });
        }
        if self.asks.get(&id).is_some_and(|ask| ask.refused && !ask.failed) {
            return Some(Route::LastAnswer);
        }
        Some(Route::Offline { reason: self.offline_reason(), maybe_billed: false })
    }

    /// Sent, and no answer came. If the uplink is down it is an outage like any other, but the record will
    /// say that one send may have been billed; if it is up, nothing is paid for twice.
    fn route_unsure(&self, uplink: UplinkIndex) -> Option<Route> {
        if self.uplinks[uplink].health.is_undecided() {
            return None;
        }
        if self.is_available() {
            return Some(Route::Unsure);
        }
        Some(Route::Offline { reason: self.offline_reason(), maybe_billed: true })
    }

    fn send_live(&mut self, id: AskId, way: Way) -> Route {
        let (uplink, key) = way;
        let aside = self.asks.get(&id).is_some_and(|ask| ask.aside);
        if !aside && self.pauses.block_of(uplink) == Some(Block::Portal) {
            // It is the trial: for everybody else the uplink stays down until it ends.
            self.pauses.begin_trial(way, "");
            self.uplinks[uplink].walled = true;
        }
        if !aside && self.pauses.of_key(way).is_some() {
            self.pauses.begin_trial(way, "");
        }
        let owner = if aside { Owner::Aside(id) } else { Owner::Live(id) };
        let attempt = self.start_attempt(owner, way);
        if let Some(ask) = self.asks.get_mut(&id) {
            *ask.tries.entry(uplink).or_insert(0) += 1;
            ask.retry_at_ms = None;
        }
        Route::Uplink { attempt, uplink, key }
    }

    fn offline_reason(&self) -> Reason {
        let all = |f: &dyn Fn(&Uplink) -> bool| self.uplinks.iter().all(f);
        if self.uplinks.is_empty() {
            Reason::NoUplink
        } else if all(&|u| u.health.health() == Health::Unhealthy) {
            Reason::Unhealthy
        } else if all(&|u| {
            u.walled || u.health.health() == Health::Unhealthy || u.breaker.state() != BreakerState::Closed
        }) {
            Reason::BreakerOpen
        } else {
            Reason::AllTried
        }
    }

    /// The uplink is down: whoever still waits for its first byte is told at once.
    pub(super) fn abandon_live(&mut self, uplink: UplinkIndex, effects: &mut Vec<Effect>) {
        for (id, attempt) in &self.attempts {
            let is_live = matches!(attempt.owner, Owner::Live(_) | Owner::Aside(_));
            if attempt.uplink == uplink && !attempt.answering && is_live {
                effects.push(Effect::Abandon(*id));
            }
        }
    }
}

/// How long an answer usually takes there; nothing is known before the first.
fn usual_ms(uplink: &Uplink) -> u64 {
    uplink.health.latency_ms().unwrap_or(0.0) as u64
}

fn keys_of(ways: &[Way], uplink: UplinkIndex) -> Vec<KeyIndex> {
    ways.iter().filter(|way| way.0 == uplink).map(|way| way.1).collect()
}
