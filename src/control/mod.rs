//! Decisions as one pure value: route, breaker, health, drain, retry.
//!
//! Owns every choice the gateway makes; never does I/O, never reads a clock, never sees a prompt or an
//! answer. Imports `std` and its own types only. [`Control::handle`] takes one event and an explicit `now`,
//! then restores what must always hold (`settle_down`): live callers first, then probes, then the backlog.

mod again;
pub mod auto;
mod backlog;
pub mod breaker;
pub mod drain;
pub mod event;
pub mod fair;
pub mod health;
pub mod keys;
pub mod limit;
mod live;
pub mod money;
pub mod pause;
pub mod price;
pub mod resend;
pub mod retry;
pub mod route;
mod routes;
pub mod strikes;
#[cfg(test)]
mod tests;
pub mod types;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use again::Again;
use breaker::{Breaker, BreakerSettings, BreakerState};
use drain::{DrainSettings, Pace};
use event::{AskId, AttemptId, Block, Check, Effect, Event, Fault, Item, KeyIndex, Notice, Outcome, Shut, UplinkIndex};
use health::{Health, HealthCheck, ProbeSettings};
use keys::{KeySettings, Keys};
use live::Ask;
use pause::{Pauses, Way};
use resend::Resends;
use retry::{Budget, Chance, RetrySettings};
use route::{Candidate, Strategy, Turns};
use routes::Grant;
use strikes::Strikes;

/// One uplink's numbers.
#[derive(Debug, Clone)]
pub struct UplinkSettings {
    /// Lower is tried first.
    pub priority: u32,
    /// Its share under the weighted strategies.
    pub weight: u32,
    /// Requests in flight at once.
    pub max_in_flight: u32,
    /// Its keys, in the order in which they are tried; empty where it needs none.
    pub keys: Vec<KeySettings>,
    /// Its health check.
    pub probe: ProbeSettings,
    /// Its circuit breaker.
    pub breaker: BreakerSettings,
}

/// Everything control is configured with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// In the configuration's order; may be empty.
    pub uplinks: Vec<UplinkSettings>,
    /// How an uplink is chosen.
    pub strategy: Strategy,
    /// When to try again.
    pub retry: RetrySettings,
    /// Whether a stored request without an answer is kept as a dead letter instead of sent once more.
    pub hold_unknown: bool,
    /// Counted attempts after which a stored request is a dead letter.
    pub max_attempts: u32,
    /// How the backlog is sent.
    pub drain: DrainSettings,
    /// Seed of all chance in here.
    pub seed: u64,
}

#[derive(Debug)]
struct Uplink {
    settings: UplinkSettings,
    health: HealthCheck,
    breaker: Breaker,
    in_flight: u32,
    keys: Keys,
    /// Requests in a row that something else answered in its place.
    portals: u32,
    /// That something is there, and no trial is due: as good as down.
    walled: bool,
    /// A request was too dear for it; others go elsewhere where they can.
    too_dear: bool,
    /// It said that it fails until then: the backlog leaves it alone.
    rests_until_ms: u64,
}

impl Uplink {
    fn is_available(&self) -> bool {
        self.health.is_up() && self.breaker.is_closed() && !self.walled
    }

    fn is_resting(&self, now_ms: u64) -> bool {
        self.rests_until_ms > now_ms
    }

    /// Whether it asked for less, with whichever key.
    fn is_slowed(&self, now_ms: u64) -> bool {
        self.is_resting(now_ms) || self.keys.iter().all(|key| key.limited_until_ms > now_ms)
    }

    fn is_full(&self) -> bool {
        self.in_flight >= self.settings.max_in_flight
    }
}

/// Whose attempt it is.
#[derive(Debug)]
enum Owner {
    Live(AskId),
    /// A live request on a path that nobody here knows.
    Aside(AskId),
    Stored(Item),
}

#[derive(Debug)]
struct Attempt {
    owner: Owner,
    uplink: UplinkIndex,
    key: KeyIndex,
    answering: bool,
}

/// The gateway's decisions.
#[derive(Debug)]
pub struct Control {
    settings: Settings,
    uplinks: Vec<Uplink>,
    attempts: BTreeMap<AttemptId, Attempt>,
    next_attempt: AttemptId,
    asks: BTreeMap<AskId, Ask>,
    /// Live requests that wait for a decision, in order of arrival. Bounded by the callers' own limit.
    waiting: VecDeque<AskId>,
    turns: Turns,
    chance: Chance,
    budget: Budget,
    again: Again,
    pauses: Pauses,
    strikes: Strikes,
    resends: Resends,
    pace: Pace,
    /// Handed out by the spool, not sent yet; never longer than the window, urgent ones aside.
    leased: VecDeque<Item>,
    leasing: bool,
    ready: u64,
    /// The count was told after the lease under way was asked for.
    ready_is_news: bool,
    /// Leases in a row that brought nothing.
    empty_leases: u32,
    lease_after_ms: u64,
    /// The lease under way leaves out models whose routes are shut, or what may have been billed.
    leasing_around: bool,
    /// It would bring so many, and so many of those that may have been billed, if that many wait.
    leasing_most: (u32, Option<u32>),
    /// Such a lease brought nothing while so many waited: only more of them are worth another one.
    nothing_around: Option<u64>,
    /// Stored requests in a row that were too dear for what is left of today; with [`TOO_DEAR_MAX`] the drain rests.
    too_dear: u32,
    /// Set aside until an instant; at most [`DEFERRED_MAX`].
    deferred: BTreeSet<(u64, u64)>,
    /// The stored request whose body is still leaving: the next one waits, so that order holds on the wire.
    leaving: Option<AttemptId>,
    was_available: bool,
    paused: bool,
    /// Outcomes can be recorded.
    storage_works: bool,
    stopping: bool,
    /// The instant of the last event: what was due by then is done.
    handled_ms: u64,
}

/// Stored requests set aside at once; beyond this the drain waits for the first of them. 16 bytes each. A shut route
/// sets nothing aside, nor does an empty budget of second sends: their requests stay in the queue and are not leased.
const DEFERRED_MAX: usize = 4096;

/// So many stored requests are looked at for one that is cheap enough, before the drain rests until there is money.
const TOO_DEAR_MAX: u32 = 64;

/// One uplink as it stands, for showing.
#[derive(Debug, Clone)]
pub struct UplinkView {
    /// Its health.
    pub health: Health,
    /// Whether requests go to it now.
    pub available: bool,
    /// Why the last check failed.
    pub fault: Option<Fault>,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Moving average of its answer time.
    pub latency_ms: Option<u64>,
    /// Requests in flight.
    pub in_flight: u32,
    /// Failed checks in a row.
    pub failures: u32,
    /// When the last check ended.
    pub last_check_ms: Option<u64>,
    /// Why the backlog is not sent there, or some of it, and when the next trial is due.
    pub paused: Option<(Block, u64)>,
    /// Its keys, in their order; empty where it has only one.
    pub keys: Vec<KeyView>,
}

/// One of several keys as it stands, for showing.
#[derive(Debug, Clone, Copy)]
pub struct KeyView {
    /// Requests in flight with it.
    pub in_flight: u32,
    /// Why it is shut, and when the next trial is due.
    pub paused: Option<(Block, u64)>,
    /// It was told to slow down until then.
    pub limited_until_ms: u64,
}

/// Control as it stands, for showing.
#[derive(Debug, Clone)]
pub struct View {
    /// In the configuration's order.
    pub uplinks: Vec<UplinkView>,
    /// The operator stopped the drain.
    pub paused: bool,
    /// Outcomes can be recorded; while not, nothing of the backlog is sent.
    pub storage_works: bool,
    /// Every shut route.
    pub shut: Vec<Shut>,
    /// The drain's window.
    pub window: u32,
    /// Seconds until the backlog is sent, at the pace seen so far; `None` while none was seen or nothing is sent.
    pub seconds_to_drain: Option<u64>,
}

impl Control {
    /// Nothing known yet; the first probes are due at once.
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        let uplinks = settings.uplinks.iter().map(|s| Uplink {
            settings: s.clone(),
            health: HealthCheck::new(s.probe, now_ms),
            breaker: Breaker::new(s.breaker),
            in_flight: 0,
            keys: Keys::new(&s.keys),
            portals: 0,
            walled: false,
            too_dear: false,
            rests_until_ms: 0,
        });
        Self {
            uplinks: uplinks.collect(),
            attempts: BTreeMap::new(),
            next_attempt: 1,
            asks: BTreeMap::new(),
            waiting: VecDeque::new(),
            turns: Turns::default(),
            chance: Chance::new(settings.seed),
            budget: Budget::new(settings.retry.budget),
            again: Again::default(),
            pauses: Pauses::new(settings.uplinks.iter().map(|u| u.keys.len())),
            strikes: Strikes::default(),
            resends: Resends::default(),
            pace: Pace::new(&settings.drain),
            leased: VecDeque::new(),
            leasing: false,
            ready: 0,
            ready_is_news: false,
            empty_leases: 0,
            lease_after_ms: 0,
            leasing_around: false,
            leasing_most: (0, None),
            nothing_around: None,
            too_dear: 0,
            deferred: BTreeSet::new(),
            leaving: None,
            was_available: false,
            paused: false,
            storage_works: true,
            stopping: false,
            handled_ms: now_ms,
            settings,
        }
    }

    /// Takes in one event; appends what is to be done.
    pub fn handle(&mut self, event: Event, now_ms: u64, effects: &mut Vec<Effect>) {
        match event {
            Event::Asked(ask) => self.asked(ask, false, None),
            Event::AskedUntil(ask, until_ms) => self.asked(ask, false, Some(until_ms)),
            Event::AskedAside(ask) => self.asked(ask, true, None),
            Event::Withdrawn(ask) => self.forget(ask),
            Event::Answering(attempt) => {
                if let Some(attempt) = self.attempts.get_mut(&attempt) {
                    attempt.answering = true;
                }
            }
            Event::BodyOut(attempt) => self.body_out(attempt, now_ms),
            Event::Ended { attempt, outcome, latency_ms, next } => {
                self.ended(attempt, outcome, latency_ms, next, now_ms, effects);
            }
            Event::Probed(uplink, key, check) => self.probed((uplink, key), check, now_ms, effects),
            Event::NetworkChanged => self.uplinks.iter_mut().for_each(|u| u.health.doubt(now_ms)),
            Event::Ready(count) => self.told_ready(count),
            Event::Leased(items) => self.take_leased(items, now_ms),
            Event::Adopted(item) => self.adopt(item),
            Event::HandedOver(attempt, item) => self.hand_over(attempt, item, effects),
            Event::LeaseFailed => self.lease_failed(now_ms),
            Event::Paused(paused) => self.paused = paused,
            Event::DrainNow => {
                self.pace.hurry();
                self.pauses.hurry(now_ms);
                self.probe_shut(now_ms);
                self.hurry_deferred(now_ms);
                self.uplinks.iter_mut().for_each(|u| u.rests_until_ms = 0);
            }
            Event::Funds => self.told_funds(now_ms),
            Event::Storage(works) => self.told_storage(works, effects),
            Event::Restored(shut) => self.pauses.restore(shut, now_ms),
            Event::Stopping => self.stopping = true,
            Event::Tick => {}
        }
        self.settle_down(now_ms, effects);
        self.handled_ms = now_ms;
    }

    /// Restores what must always hold, whatever the event was.
    fn settle_down(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        self.check_uplinks(now_ms, effects);
        self.see_walls(now_ms);
        self.notice_recovery(now_ms, effects);
        self.route_waiting(now_ms, effects);
        self.release_deferred(now_ms, effects);
        self.release_retries(now_ms, effects);
        self.drain(now_ms, effects);
        effects.extend(self.pauses.to_keep().map(Effect::Keep));
    }

    /// The next instant at which [`Event::Tick`] is wanted. Never one that has been handled: whatever was due
    /// by then and could not be done waits for an event, and waking up for it again and again would not help.
    pub fn deadline_ms(&self) -> Option<u64> {
        let checks = self.uplinks.iter().map(|u| u.health.deadline_ms());
        let trials = self.uplinks.iter().filter_map(|u| u.breaker.deadline_ms());
        let retries = self.waiting.iter().filter_map(|ask| self.asks.get(ask)).filter_map(|ask| ask.retry_at_ms);
        let deferred = self.deferred.first().map(|(due, _)| *due).into_iter().chain(self.retries_deadline_ms());
        let walls = self.pauses.trials_ms().filter(|_| !self.waiting.is_empty());
        let all = checks.chain(walls).chain(trials).chain(retries).chain(deferred).chain(self.drain_deadlines_ms());
        all.filter(|due| *due > self.handled_ms).min()
    }

    /// Whether any uplink takes requests now.
    pub fn is_available(&self) -> bool {
        self.uplinks.iter().any(Uplink::is_available)
    }

    /// Whether any uplink takes requests and answers its checks in time.
    pub fn is_healthy(&self) -> bool {
        self.uplinks.iter().any(|u| u.is_available() && u.health.health() == Health::Healthy)
    }

    /// Everything there is to show.
    pub fn view(&self) -> View {
        let uplinks = self.uplinks.iter().enumerate().map(|(index, u)| UplinkView {
            health: u.health.health(),
            available: u.is_available(),
            fault: u.health.fault(),
            breaker: u.breaker.state(),
            latency_ms: u.health.latency_ms().map(|ms| ms.round() as u64),
            in_flight: u.in_flight,
            failures: u.health.failures(),
            last_check_ms: u.health.last_check_ms(),
            paused: self.pauses.of_uplink(index),
            keys: self.key_views(index),
        });
        View {
            uplinks: uplinks.collect(),
            paused: self.paused,
            storage_works: self.storage_works,
            shut: self.pauses.list(),
            window: self.pace.window(),
            seconds_to_drain: self.seconds_to_drain(),
        }
    }

    /// What waits while nothing is sent waits for nobody knows how long.
    fn seconds_to_drain(&self) -> Option<u64> {
        let waiting = self.ready + self.set_aside() as u64;
        let drains = !self.paused && self.storage_works && self.uplinks.iter().any(Uplink::is_available);
        if waiting == 0 { Some(0) } else { self.pace.seconds_to_drain(waiting).filter(|_| drains) }
    }

    fn check_uplinks(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        for index in 0..self.uplinks.len() {
            if self.uplinks[index].health.overdue(now_ms) {
                self.probed((index, 0), Check::Failed(Fault::Timeout), now_ms, effects);
            }
            let uplink = &mut self.uplinks[index];
            if uplink.breaker.start_trial(now_ms) {
                effects.push(Effect::Notice(Notice::Breaker { uplink: index, state: BreakerState::HalfOpen }));
                uplink.health.hasten(now_ms);
            }
            if !self.stopping && uplink.health.start_probe(now_ms) {
                effects.push(Effect::Probe(index, self.pauses.probe_key(index)));
            }
        }
    }

    fn probed(&mut self, way: Way, check: Check, now_ms: u64, effects: &mut Vec<Effect>) {
        let index = way.0;
        let Some(uplink) = self.uplinks.get_mut(index) else { return };
        let was_down = uplink.health.health() == Health::Unhealthy;
        let changed = uplink.health.on_check(check, now_ms);
        let (health, fault) = (uplink.health.health(), uplink.health.fault());
        let breaker_before = uplink.breaker.state();
        uplink.breaker.trial_ended(matches!(check, Check::Passed { .. }), now_ms);
        if was_down && uplink.health.is_up() {
            uplink.breaker.success();
        }
        let breaker = uplink.breaker.state();
        if breaker != breaker_before {
            effects.push(Effect::Notice(Notice::Breaker { uplink: index, state: breaker }));
        }
        if changed {
            effects.push(Effect::Notice(Notice::Health { uplink: index, health, fault }));
        }
        if changed && health == Health::Unhealthy {
            effects.push(Effect::Reset(index));
            self.abandon_live(index, effects);
        }
        self.learn_probe(way, check, was_down, now_ms, effects);
    }

    /// What an attempt's end tells about its uplink.
    fn learn(&mut self, index: UplinkIndex, outcome: Outcome, latency_ms: u64, now_ms: u64, effects: &mut Vec<Effect>) {
        let uplink = &mut self.uplinks[index];
        let failed = match outcome {
            Outcome::GivenUp | Outcome::Unaffordable | Outcome::Unknown(Fault::Internal) => return,
            Outcome::Unreachable(_) | Outcome::Unknown(_) => {
                uplink.health.doubt(now_ms);
                true
            }
            Outcome::Transient(_) | Outcome::Later { .. } => {
                uplink.health.hasten(now_ms);
                if !outcome.says_try_again() {
                    uplink.rests_until_ms = uplink.rests_until_ms.max(now_ms + outcome.wait_ms());
                }
                true
            }
            Outcome::Delivered | Outcome::Misfit => {
                uplink.rests_until_ms = 0;
                uplink.health.observe_latency(latency_ms);
                false
            }
            Outcome::RateLimited { .. } | Outcome::Blocked(_) | Outcome::Permanent(_) | Outcome::NoAnswer => false,
        };
        if !failed {
            let was_closed = uplink.breaker.is_closed();
            uplink.breaker.success();
            if !was_closed {
                effects.push(Effect::Notice(Notice::Breaker { uplink: index, state: BreakerState::Closed }));
            }
        } else if uplink.breaker.failure(now_ms) {
            effects.push(Effect::Notice(Notice::Breaker { uplink: index, state: BreakerState::Open }));
        }
    }

    fn ended(
        &mut self,
        id: AttemptId,
        outcome: Outcome,
        latency_ms: u64,
        next: bool,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(attempt) = self.attempts.remove(&id) else { return };
        if self.leaving == Some(id) {
            self.leaving = None;
        }
        let (index, way) = (attempt.uplink, (attempt.uplink, attempt.key));
        self.uplinks[index].in_flight = self.uplinks[index].in_flight.saturating_sub(1);
        self.uplinks[index].keys.ended(attempt.key, outcome, now_ms);
        let is_stored = matches!(attempt.owner, Owner::Stored(_));
        // To a live request "try again" says something about that one alone: one client's conflicts stop nobody else. Stored ones
        // would each be tried to their end.
        if is_stored || !outcome.says_try_again() {
            self.learn(index, outcome, latency_ms, now_ms, effects);
        }
        if !matches!(attempt.owner, Owner::Aside(_)) {
            self.learn_portal(way, outcome, now_ms, effects);
            if outcome == Outcome::Delivered {
                self.grant_resends(Grant::Earned);
            }
        }
        if let Owner::Live(_) = attempt.owner {
            self.learn_live(way, outcome, now_ms, effects);
        }
        match attempt.owner {
            Owner::Live(ask) | Owner::Aside(ask) if next => self.live_failed(ask, way, outcome, now_ms),
            Owner::Live(ask) | Owner::Aside(ask) => self.forget(ask),
            Owner::Stored(item) => self.stored_ended(id, &item, way, outcome, now_ms, effects),
        }
    }

    /// When the first uplink comes back, the drain starts small, after this device's share of the jitter.
    /// Doubt that one check dispels was no outage.
    fn notice_recovery(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let available = self.is_available();
        if available && !self.was_available {
            let delay_ms = self.settings.drain.start_delay_ms;
            self.pace.restart(now_ms + delay_ms);
            effects.push(Effect::Notice(Notice::DrainScheduled { delay_ms }));
        }
        let doubted = self.uplinks.iter().any(|u| u.health.is_undecided() && u.breaker.is_closed());
        self.was_available = available || (self.was_available && doubted);
    }

    fn key_views(&self, index: UplinkIndex) -> Vec<KeyView> {
        let keys = &self.uplinks[index].keys;
        let one = |(key, load): (KeyIndex, &keys::Load)| KeyView {
            in_flight: load.in_flight,
            paused: self.pauses.of_key((index, key)),
            limited_until_ms: load.limited_until_ms,
        };
        keys.iter().enumerate().filter(|_| keys.are_several()).map(one).collect()
    }

    fn candidate(&self, index: UplinkIndex) -> Candidate {
        let uplink = &self.uplinks[index];
        Candidate {
            uplink: index,
            priority: uplink.settings.priority,
            weight: uplink.settings.weight,
            degraded: uplink.health.health() == Health::Degraded,
            in_flight: uplink.in_flight,
            latency_ms: uplink.health.latency_ms(),
        }
    }

    fn choose(&mut self, usable: impl Fn(UplinkIndex, &Uplink) -> bool) -> Option<UplinkIndex> {
        let candidates: Vec<Candidate> = (0..self.uplinks.len())
            .filter(|i| usable(*i, &self.uplinks[*i]) && self.uplinks[*i].is_available() && !self.uplinks[*i].is_full())
            .map(|i| self.candidate(i))
            .collect();
        route::choose(self.settings.strategy, &candidates, &mut self.turns)
    }

    fn start_attempt(&mut self, owner: Owner, (uplink, key): Way) -> AttemptId {
        let id = self.next_attempt;
        self.next_attempt += 1;
        self.uplinks[uplink].in_flight += 1;
        if let Some(load) = self.uplinks[uplink].keys.get_mut(key) {
            load.in_flight += 1;
        }
        self.attempts.insert(id, Attempt { owner, uplink, key, answering: false });
        id
    }
}
