//! Stored requests: leasing, sending in order, and what an attempt's end makes of them.
//!
//! Every kind of end has its row in `tests/table.rs`. Never touches the spool itself.

use super::event::{AttemptId, Block, Effect, Fault, Item, Outcome, UplinkIndex, Verdict};
use super::keys::May;
use super::pause::{Gate, Way};
use super::retry::backoff_ms;
use super::routes::Grant;
use super::strikes::{HOLD_MS, Refused};
use super::{Control, DEFERRED_MAX, Owner, TOO_DEAR_MAX, Uplink};
use crate::plant::{self, Fault as Planted};

/// After the spool failed to hand out work, or twice had none, ask again no sooner than this.
const LEASE_RETRY_MS: u64 = 1_000;

/// The same where all that waits may belong to shut routes: looking through it costs the disk's thread some time.
const LEASE_AROUND_MS: u64 = 10_000;

/// What is too dear is set aside until there is money, which is told: this is for a clock that stands still.
const TOO_DEAR_MS: u64 = 24 * 3_600_000;

/// Nothing is set aside for less: that it is set aside has to reach the disk before its release does.
const DEFER_MIN_MS: u64 = 100;

/// How long after a breaker's trial a request that failed with it comes back: the next one goes first.
const BEHIND_THE_NEXT_MS: u64 = 1_000;

const GIVEN_BACK: Verdict = Verdict::Requeue { counted: false, deferred: false, maybe_billed: false };

/// Why a leased request cannot leave now.
enum Blocked {
    /// Nothing can be sent at all: the lease goes back.
    NoUplink,
    /// An uplink is there, but full: wait.
    Full,
    /// Its route is shut.
    Shut,
}

impl Control {
    pub(super) fn told_ready(&mut self, count: u64) {
        if let Some(known) = self.nothing_around {
            if count > known {
                // What came may belong to an open route.
                self.nothing_around = None;
                self.lease_after_ms = 0;
            } else {
                self.nothing_around = Some(count);
            }
        }
        self.ready = count;
        self.ready_is_news = true;
        if count == 0 {
            self.pace.rest();
        }
    }

    pub(super) fn take_leased(&mut self, items: Vec<Item>, now_ms: u64) {
        self.leasing = false;
        self.nothing_around = (items.is_empty() && self.leasing_around).then_some(self.ready);
        if !self.ready_is_news {
            // The spool's next commit tells a new count.
            self.ready = if items.is_empty() { 0 } else { self.ready.saturating_sub(items.len() as u64) };
        }
        let labelled = items.iter().filter(|item| item.maybe_billed).count();
        let (most, most_labelled) = self.leasing_most;
        if items.len() < most as usize && most_labelled.is_some_and(|most| labelled < most as usize) {
            self.resends.nobody_waits();
        }
        self.empty_leases = if items.is_empty() { self.empty_leases.saturating_add(1) } else { 0 };
        if self.empty_leases > 1 {
            // A count that promises what is not there must not become a loop through the disk.
            self.lease_after_ms = now_ms + LEASE_RETRY_MS;
        }
        if self.nothing_around.is_some() {
            self.lease_after_ms = now_ms + LEASE_AROUND_MS;
        }
        self.leased.extend(items);
    }

    /// Before the backlog, behind the callers that came earlier.
    pub(super) fn adopt(&mut self, item: Item) {
        let place = self.leased.iter().take_while(|leased| leased.urgent).count();
        self.leased.insert(place, item);
    }

    /// A live attempt whose caller's own time is up: what comes of it is the stored request's outcome.
    pub(super) fn hand_over(&mut self, id: AttemptId, item: Item, effects: &mut Vec<Effect>) {
        match self.attempts.get_mut(&id) {
            Some(attempt) => attempt.owner = Owner::Stored(item),
            // Cannot be; but what may have been sent is not sent anew as if it had not been.
            None => {
                effects.push(settle(
                    &item,
                    None,
                    Verdict::Requeue { counted: true, deferred: false, maybe_billed: true },
                ));
            }
        }
    }

    pub(super) fn lease_failed(&mut self, now_ms: u64) {
        self.leasing = false;
        self.pace.slower(now_ms + LEASE_RETRY_MS);
    }

    pub(super) fn body_out(&mut self, attempt: AttemptId, now_ms: u64) {
        if self.leaving == Some(attempt) {
            self.leaving = None;
            self.pace.left(now_ms);
        }
    }

    /// How many wait for an instant, the spool keeping them out of the queue.
    pub(super) fn set_aside(&self) -> usize {
        self.deferred.len() + self.again.len()
    }

    pub(super) fn release_deferred(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let mut due = Vec::new();
        while let Some((_, seq)) = self.deferred.first().filter(|(at, _)| *at <= now_ms).copied() {
            self.deferred.pop_first();
            due.push(seq);
        }
        if !due.is_empty() {
            effects.push(Effect::Release(due));
        }
    }

    /// These need not wait for their own instants any more.
    pub(super) fn hurry(&mut self, seqs: &[u64], now_ms: u64) {
        if seqs.is_empty() {
            return;
        }
        let soon_ms = now_ms + DEFER_MIN_MS;
        let due = |(at, seq): &(u64, u64)| if seqs.contains(seq) { (soon_ms.min(*at), *seq) } else { (*at, *seq) };
        self.deferred = self.deferred.iter().map(due).collect();
    }

    /// There may be money again.
    pub(super) fn told_funds(&mut self, now_ms: u64) {
        self.too_dear = 0;
        self.uplinks.iter_mut().for_each(|uplink| uplink.too_dear = false);
        self.hurry_deferred(now_ms);
    }

    /// Nothing was sent: it goes to an uplink that is not too dear, or waits until there is money.
    fn too_dear(&mut self, item: &Item, uplink: UplinkIndex, now_ms: u64) -> Verdict {
        self.uplinks[uplink].too_dear = true;
        if self.is_cheap_anywhere(&item.model, now_ms) {
            return GIVEN_BACK;
        }
        self.too_dear = self.too_dear.saturating_add(1);
        self.deferred.insert((now_ms + TOO_DEAR_MS, item.seq));
        Verdict::Requeue { counted: false, deferred: true, maybe_billed: item.maybe_billed }
    }

    /// Whether an uplink may take it that is not too dear. One that is shut for its model is none: whoever waited for that
    /// one would hold up all that stands behind it.
    fn is_cheap_anywhere(&self, model: &str, now_ms: u64) -> bool {
        let is_shut = |uplink| matches!(self.pauses.gate(uplink, model, now_ms), Gate::Shut { .. });
        self.uplinks.iter().enumerate().any(|(i, u)| u.is_available() && !u.too_dear && !is_shut(i))
    }

    /// What kept requests aside is mended: they need not wait for their own instants.
    pub(super) fn hurry_deferred(&mut self, now_ms: u64) {
        let soon_ms = now_ms + DEFER_MIN_MS;
        (self.nothing_around, self.lease_after_ms) = (None, 0);
        self.again.hurry(soon_ms);
        self.deferred = self.deferred.iter().map(|(at, seq)| ((*at).min(soon_ms), *seq)).collect();
    }

    /// Sends what is leased, then leases what fits.
    pub(super) fn drain(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.stopping || !self.is_available() {
            self.give_back(effects);
            return;
        }
        if self.paused {
            self.give_back_unless_urgent(effects);
        }
        if !self.storage_works {
            return;
        }
        while let Some(item) = self.leased.front() {
            let may_leave = item.urgent || self.pace_allows(now_ms);
            if !may_leave || !self.send_first(now_ms, effects) {
                break;
            }
        }
        self.lease_more(now_ms, effects);
    }

    /// Sends, sets aside or gives back the first leased request; false if it must wait.
    fn send_first(&mut self, now_ms: u64, effects: &mut Vec<Effect>) -> bool {
        let Some(item) = self.leased.pop_front() else { return false };
        match self.pick(&item, now_ms) {
            // It waits in the queue: no lease brings more of its kind than the budget has room for.
            Ok(_) if !self.may_be_paid_again(&item) => {
                effects.push(settle(&item, None, GIVEN_BACK));
                true
            }
            Ok(way) => {
                self.pauses.begin_trial(way, &item.model);
                if item.maybe_billed {
                    self.charge_second_send(item.seq);
                }
                let (seq, urgent) = (item.seq, item.urgent);
                let attempt = self.start_attempt(Owner::Stored(item), way);
                if !urgent {
                    self.leaving = Some(attempt);
                }
                effects.push(Effect::Send { attempt, seq, uplink: way.0, key: way.1 });
                true
            }
            Err(Blocked::Full) => {
                self.leased.push_front(item);
                false
            }
            // A shut route's requests stay in the queue: they are not leased before its trial is due.
            Err(Blocked::NoUplink | Blocked::Shut) => {
                effects.push(settle(&item, None, GIVEN_BACK));
                true
            }
        }
    }

    /// What may have been billed leaves again within its budget only.
    fn may_be_paid_again(&mut self, item: &Item) -> bool {
        !item.maybe_billed || plant::is(Planted::ResendWithoutLimit) || self.resends.spend()
    }

    fn pick(&mut self, item: &Item, now_ms: u64) -> Result<Way, Blocked> {
        let gates: Vec<Gate> = (0..self.uplinks.len()).map(|i| self.pauses.gate(i, &item.model, now_ms)).collect();
        // With none left that is not too dear, any may still be cheap enough for this one.
        let cheap = self.is_cheap_anywhere(&item.model, now_ms);
        let affordable = |u: &Uplink| !cheap || !u.too_dear;
        let room = |u: &Uplink| (item.urgent || has_room_beside_live(u)) && affordable(u);
        // Whoever waits for it asks as every live request does.
        let may_ask = |u: &Uplink| item.urgent || !u.is_resting(now_ms);
        let may = May { not: &[], try_shut: true, ask_shut: false };
        let key = |(i, u): (usize, &Uplink)| {
            u.keys.pick(|key| self.pauses.gate_with((i, key), &item.model, now_ms), may, now_ms).ok()
        };
        let keys: Vec<_> = self.uplinks.iter().enumerate().map(key).collect();
        let is_open = |i: UplinkIndex, gate: Gate, u: &Uplink| gates[i] == gate && keys[i].is_some() && may_ask(u);
        let chosen = self.choose(|i, u| is_open(i, Gate::Open, u) && room(u) && !u.is_slowed(now_ms));
        let chosen = chosen.or_else(|| self.choose(|i, u| is_open(i, Gate::Open, u) && room(u)));
        let chosen = chosen.or_else(|| self.choose(|i, u| is_open(i, Gate::Trial, u) && affordable(u)));
        if let Some(uplink) = chosen {
            return Ok((uplink, keys[uplink].unwrap_or(0)));
        }
        let up = || self.uplinks.iter().zip(&gates).filter(|(u, _)| u.is_available());
        if up().any(|(u, gate)| !matches!(gate, Gate::Shut { .. }) && may_ask(u)) {
            return Err(Blocked::Full);
        }
        if up().next().is_some() { Err(Blocked::Shut) } else { Err(Blocked::NoUplink) }
    }

    fn pace_allows(&self, now_ms: u64) -> bool {
        let open = now_ms >= self.pace.not_before_ms().max(self.pace.next_ms());
        open && self.leaving.is_none() && self.stored_in_flight() < self.pace.window()
    }

    fn stored_in_flight(&self) -> u32 {
        self.attempts.values().filter(|a| matches!(&a.owner, Owner::Stored(item) if !item.urgent)).count() as u32
    }

    fn lease_more(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let rests = self.paused || self.too_dear >= TOO_DEAR_MAX;
        let busy = rests || self.leasing || !self.leased.is_empty() || self.set_aside() >= DEFERRED_MAX;
        let not_before_ms = self.pace.not_before_ms().max(self.lease_after_ms);
        if busy || self.ready == 0 || now_ms < not_before_ms {
            return;
        }
        let free = self.pace.window().saturating_sub(self.stored_in_flight());
        let free = free.min(self.open_slots(now_ms));
        if free > 0 {
            self.leasing = true;
            self.ready_is_news = false;
            let (except, labelled) = (self.shut_models(now_ms), self.resends.worth_leasing());
            self.leasing_around = !except.is_empty() || labelled == Some(0);
            self.leasing_most = (free, labelled.filter(|_| except.is_empty()));
            effects.push(Effect::Lease { max: free, except, labelled });
        }
    }

    /// Models that no uplink takes now; their number is bounded by that of the pauses.
    fn shut_models(&self, now_ms: u64) -> Vec<String> {
        let is_shut = |model: &String| {
            let mut up = self.uplinks.iter().enumerate().filter(|(_, u)| u.is_available());
            up.all(|(i, _)| matches!(self.pauses.gate(i, model, now_ms), Gate::Shut { .. }))
        };
        self.pauses.models().into_iter().filter(is_shut).collect()
    }

    /// With every uplink shut or at rest there is nothing to lease for, or just the one request that tries.
    fn open_slots(&self, now_ms: u64) -> u32 {
        let gates = self.uplinks.iter().enumerate().filter(|(_, u)| u.is_available() && !u.is_resting(now_ms));
        let slots = gates.map(|(i, _)| match self.pauses.gate(i, "", now_ms) {
            Gate::Open => u32::MAX,
            Gate::Trial => 1,
            Gate::Shut { .. } => 0,
        });
        slots.max().unwrap_or(0)
    }

    /// Instants at which the drain may go on, past ones among them.
    pub(super) fn drain_deadlines_ms(&self) -> impl Iterator<Item = u64> {
        let waiting = (self.ready > 0 || !self.leased.is_empty()) && self.is_available();
        let paces = [self.pace.not_before_ms(), self.pace.next_ms(), self.lease_after_ms].into_iter();
        let rests = self.uplinks.iter().map(|u| u.rests_until_ms);
        paces.chain(self.pauses.trials_ms()).chain(rests).filter(move |_| waiting)
    }

    fn give_back(&mut self, effects: &mut Vec<Effect>) {
        for item in self.leased.drain(..) {
            effects.push(settle(&item, None, GIVEN_BACK));
        }
    }

    fn give_back_unless_urgent(&mut self, effects: &mut Vec<Effect>) {
        let (urgent, rest) = self.leased.drain(..).partition(|item| item.urgent);
        self.leased = urgent;
        effects.extend(Vec::from(rest).iter().map(|item| settle(item, None, GIVEN_BACK)));
    }

    /// What becomes of a stored request, and of the drain, after an attempt.
    pub(super) fn stored_ended(
        &mut self,
        attempt: AttemptId,
        item: &Item,
        way: Way,
        outcome: Outcome,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let uplink = way.0;
        let unsent = plant::is(Planted::RetryOnTimeout) && outcome == Outcome::Unknown(Fault::Timeout);
        let outcome = if unsent { Outcome::Unreachable(Fault::Timeout) } else { outcome };
        self.account_stored(item, outcome);
        // Before the route learns: whether it was shut for refusing everybody decides on this request.
        let struck = self.pauses.is_struck(uplink, &item.model);
        self.learn_route(way, item, outcome, now_ms, effects);
        let verdict = match outcome {
            Outcome::Permanent(_) if struck && !item.urgent => self.behind_the_trial(uplink, item, now_ms),
            Outcome::Permanent(fault) if !item.urgent => self.refused(way, item, fault, now_ms, effects),
            _ => self.verdict(item, uplink, outcome, now_ms),
        };
        let paid = matches!(outcome, Outcome::Delivered | Outcome::Misfit | Outcome::NoAnswer | Outcome::Unknown(_));
        if item.maybe_billed && !paid {
            self.grant_resends(Grant::Refunded);
        }
        // One key that is told to slow down slows nobody down while another one, or another uplink, may go on.
        let is_other_good =
            || self.is_other_key_good(way, &item.model, now_ms) || self.is_other_good(uplink, &item.model, now_ms);
        if !matches!(outcome, Outcome::RateLimited { .. }) || !is_other_good() {
            self.adapt_pace(outcome, now_ms);
        }
        effects.push(settle(item, Some(attempt), verdict));
    }

    fn is_other_key_good(&self, (uplink, key): Way, model: &str, now_ms: u64) -> bool {
        let gates = |key| self.pauses.gate_with((uplink, key), model, now_ms);
        self.uplinks[uplink].keys.is_other_good(gates, &[key], now_ms)
    }

    /// Whether another uplink would take such a request now.
    fn is_other_good(&self, uplink: UplinkIndex, model: &str, now_ms: u64) -> bool {
        let others = self.uplinks.iter().enumerate().filter(|(i, u)| *i != uplink && u.is_available() && !u.too_dear);
        others.filter(|(_, u)| !u.is_slowed(now_ms)).any(|(i, _)| self.pauses.gate(i, model, now_ms) == Gate::Open)
    }

    fn adapt_pace(&mut self, outcome: Outcome, now_ms: u64) {
        match outcome {
            Outcome::Delivered | Outcome::Misfit => {
                self.too_dear = 0;
                self.pace.success(now_ms);
            }
            Outcome::RateLimited { retry_after_ms } => {
                let floor = retry_after_ms.unwrap_or(0);
                let wait = backoff_ms(&self.settings.retry, self.pace.limited(), floor, &mut self.chance);
                self.pace.slower(now_ms + wait.max(self.settings.retry.base_ms));
            }
            Outcome::Transient(_) | Outcome::Later { .. } | Outcome::Unknown(_) => self.pace.slower(now_ms),
            _ => {}
        }
    }

    /// Refused: its own fault, or the route's. Nobody who waits for a caller is set aside: the caller can react.
    fn refused(&mut self, way: Way, item: &Item, fault: Fault, now_ms: u64, effects: &mut Vec<Effect>) -> Verdict {
        let uplink = way.0;
        let others = self.ready > 0 || !self.leased.is_empty() || self.stored_in_flight() > 0;
        let held = self.strikes.held(uplink, &item.model);
        match self.strikes.refused(uplink, &item.model, item.seq, fault, others) {
            Refused::Shut => {
                self.strike(way, item, &held, now_ms, effects);
                self.behind_the_trial(uplink, item, now_ms)
            }
            Refused::Hold => {
                self.deferred.insert((now_ms + HOLD_MS, item.seq));
                Verdict::Requeue { counted: false, deferred: true, maybe_billed: item.maybe_billed }
            }
            Refused::Dead => {
                if !others {
                    self.hurry(&held, now_ms);
                }
                Verdict::Dead(fault.as_str())
            }
        }
    }

    /// Back behind the next trial, so that another request makes that one.
    fn behind_the_trial(&mut self, uplink: UplinkIndex, item: &Item, now_ms: u64) -> Verdict {
        let due_ms = match self.pauses.gate(uplink, &item.model, now_ms) {
            Gate::Shut { until_ms } => until_ms + BEHIND_THE_NEXT_MS,
            Gate::Open | Gate::Trial => now_ms + BEHIND_THE_NEXT_MS,
        };
        self.deferred.insert((due_ms, item.seq));
        Verdict::Requeue { counted: false, deferred: true, maybe_billed: item.maybe_billed }
    }

    /// An uplink that fails everybody (its breaker is open) says nothing about this request: it costs no
    /// attempt, or an hour of 503 would kill what stands first. It waits until just after the next request
    /// was tried in its place, so that one request that always fails cannot hold the breaker open either.
    fn transient_verdict(&mut self, item: &Item, uplink: UplinkIndex, outcome: Outcome, now_ms: u64) -> Verdict {
        // An uplink that fails until then rests; the request need not where another one takes it.
        let is_its_own = outcome.says_try_again() || !self.is_other_good(uplink, &item.model, now_ms);
        let wait_ms = if is_its_own { outcome.wait_ms() } else { 0 };
        let open_until_ms = self.uplinks[uplink].breaker.deadline_ms();
        if open_until_ms.is_none() && item.attempts + 1 >= self.settings.max_attempts {
            return Verdict::Dead("attempts_exhausted");
        }
        let wait = backoff_ms(&self.settings.retry, item.attempts, wait_ms.max(DEFER_MIN_MS), &mut self.chance);
        let due_ms = open_until_ms.map_or(now_ms + wait, |until| {
            let trial_ms = until.max(now_ms + wait_ms) + self.settings.drain.start_delay_ms;
            trial_ms + BEHIND_THE_NEXT_MS + self.chance.up_to(BEHIND_THE_NEXT_MS)
        });
        self.retry_stored(item.seq, due_ms);
        Verdict::Requeue { counted: open_until_ms.is_none(), deferred: true, maybe_billed: false }
    }

    fn verdict(&mut self, item: &Item, uplink: UplinkIndex, outcome: Outcome, now_ms: u64) -> Verdict {
        match outcome {
            Outcome::Delivered => Verdict::Answered,
            Outcome::Permanent(fault) => Verdict::Dead(fault.as_str()),
            Outcome::NoAnswer => Verdict::Dead("no_answer"),
            // What came was paid for, so the second try is the last send there is, and the record says so first. It
            // brings its own share of the budget: each task asks for it once.
            Outcome::Misfit if item.maybe_billed => Verdict::Dead("misfit"),
            Outcome::Misfit => {
                self.grant_resends(Grant::Refunded);
                Verdict::Requeue { counted: true, deferred: false, maybe_billed: true }
            }
            Outcome::Blocked(Block::Key) if plant::is(Planted::DeadLetterOn401) => Verdict::Dead("key"),
            Outcome::Unreachable(_) => self.unreachable_verdict(item, now_ms + DEFER_MIN_MS, now_ms),
            Outcome::RateLimited { .. } | Outcome::Blocked(_) | Outcome::GivenUp => GIVEN_BACK,
            Outcome::Unaffordable => self.too_dear(item, uplink, now_ms),
            Outcome::Transient(_) | Outcome::Later { .. } => self.transient_verdict(item, uplink, outcome, now_ms),
            Outcome::Unknown(_) if plant::is(Planted::ResendWithoutLimit) => {
                Verdict::Requeue { counted: true, deferred: false, maybe_billed: true }
            }
            // Sent once more at most, and the record says so first.
            Outcome::Unknown(_) if item.maybe_billed || self.settings.hold_unknown => Verdict::Dead("unknown"),
            Outcome::Unknown(_) => Verdict::Requeue { counted: true, deferred: false, maybe_billed: true },
        }
    }
}

/// The backlog leaves one slot to live requests wherever an uplink has more than one.
fn has_room_beside_live(uplink: &Uplink) -> bool {
    uplink.settings.max_in_flight == 1 || uplink.in_flight + 1 < uplink.settings.max_in_flight
}

fn settle(item: &Item, attempt: Option<AttemptId>, verdict: Verdict) -> Effect {
    Effect::Settle { seq: item.seq, attempt, verdict }
}
