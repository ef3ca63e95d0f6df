//! Stored requests: leasing, sending in order, and what an attempt's end makes of them.
//!
//! The table is the contract's "what an attempt's end means". Never touches the spool itself.

use super::event::{AttemptId, Effect, Item, Notice, Outcome, UplinkIndex, Verdict};
use super::pause::Gate;
use super::retry::backoff_ms;
use super::{Control, DEFERRED_MAX, Owner, Uplink};

/// After the spool failed to hand out work, or twice had none, ask again no sooner than this.
const LEASE_RETRY_MS: u64 = 1_000;

/// Nothing is set aside for less: that it is set aside has to reach the disk before its release does.
const DEFER_MIN_MS: u64 = 100;

/// How long after a breaker's trial a request that failed with it comes back: the next one goes first.
const BEHIND_THE_NEXT_MS: u64 = 1_000;

/// Between one stored body's leaving and the next: they travel on different connections, and this keeps them in
/// order at the other end too. It bounds the drain to some 300 requests a second.
const SEND_GAP_MS: u64 = 2;

const GIVEN_BACK: Verdict = Verdict::Requeue { counted: false, deferred: false, maybe_billed: false };

/// Why a leased request cannot leave now.
enum Blocked {
    /// Nothing can be sent at all: the lease goes back.
    NoUplink,
    /// An uplink is there, but full: wait.
    Full,
    /// Its route is shut until then.
    Shut(u64),
}

impl Control {
    pub(super) fn told_ready(&mut self, count: u64) {
        self.ready = count;
        self.ready_is_news = true;
        if count == 0 {
            self.pace.rest();
        }
    }

    pub(super) fn take_leased(&mut self, items: Vec<Item>, now_ms: u64) {
        self.leasing = false;
        if !self.ready_is_news {
            // The spool's next commit tells a new count.
            self.ready = if items.is_empty() { 0 } else { self.ready.saturating_sub(items.len() as u64) };
        }
        self.empty_leases = if items.is_empty() { self.empty_leases.saturating_add(1) } else { 0 };
        if self.empty_leases > 1 {
            // A count that promises what is not there must not become a loop through the disk.
            self.lease_after_ms = now_ms + LEASE_RETRY_MS;
        }
        self.leased.extend(items);
    }

    /// Before the backlog, behind the callers that came earlier.
    pub(super) fn adopt(&mut self, item: Item) {
        let place = self.leased.iter().take_while(|leased| leased.urgent).count();
        self.leased.insert(place, item);
    }

    pub(super) fn lease_failed(&mut self, now_ms: u64) {
        self.leasing = false;
        self.pace.slower(now_ms + LEASE_RETRY_MS);
    }

    pub(super) fn body_out(&mut self, attempt: AttemptId, now_ms: u64) {
        if self.leaving == Some(attempt) {
            self.leaving = None;
            self.next_send_ms = now_ms + SEND_GAP_MS;
        }
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

    /// What kept requests aside is mended: they need not wait for their own instants.
    pub(super) fn hurry_deferred(&mut self, now_ms: u64) {
        let soon_ms = now_ms + DEFER_MIN_MS;
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
            Ok(uplink) => {
                self.pauses.begin_trial(uplink, &item.model);
                let (seq, urgent) = (item.seq, item.urgent);
                let attempt = self.start_attempt(Owner::Stored(item), uplink);
                if !urgent {
                    self.leaving = Some(attempt);
                }
                effects.push(Effect::Send { attempt, seq, uplink });
                true
            }
            Err(Blocked::Full) => {
                self.leased.push_front(item);
                false
            }
            Err(Blocked::NoUplink) => {
                effects.push(settle(&item, None, GIVEN_BACK));
                true
            }
            Err(Blocked::Shut(until_ms)) => {
                self.deferred.insert((until_ms, item.seq));
                let verdict = Verdict::Requeue { counted: false, deferred: true, maybe_billed: false };
                effects.push(settle(&item, None, verdict));
                true
            }
        }
    }

    fn pick(&mut self, item: &Item, now_ms: u64) -> Result<UplinkIndex, Blocked> {
        let gates: Vec<Gate> = (0..self.uplinks.len()).map(|i| self.pauses.gate(i, &item.model, now_ms)).collect();
        let room = |u: &Uplink| item.urgent || has_room_beside_live(u);
        let chosen = self.choose(|i, u| gates[i] == Gate::Open && room(u));
        if let Some(uplink) = chosen.or_else(|| self.choose(|i, _| gates[i] == Gate::Trial)) {
            return Ok(uplink);
        }
        let up = || self.uplinks.iter().zip(&gates).filter(|(u, _)| u.is_available());
        if up().any(|(_, gate)| !matches!(gate, Gate::Shut { .. })) {
            return Err(Blocked::Full);
        }
        let until =
            up().filter_map(|(_, gate)| if let Gate::Shut { until_ms } = gate { Some(*until_ms) } else { None });
        until.min().map_or(Err(Blocked::NoUplink), |ms| Err(Blocked::Shut(ms)))
    }

    fn pace_allows(&self, now_ms: u64) -> bool {
        let open = now_ms >= self.pace.not_before_ms().max(self.next_send_ms);
        open && self.leaving.is_none() && self.stored_in_flight() < self.pace.window()
    }

    fn stored_in_flight(&self) -> u32 {
        self.attempts.values().filter(|a| matches!(&a.owner, Owner::Stored(item) if !item.urgent)).count() as u32
    }

    fn lease_more(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let busy = self.paused || self.leasing || !self.leased.is_empty() || self.deferred.len() >= DEFERRED_MAX;
        let not_before_ms = self.pace.not_before_ms().max(self.lease_after_ms);
        if busy || self.ready == 0 || now_ms < not_before_ms {
            return;
        }
        let free = self.pace.window().saturating_sub(self.stored_in_flight());
        let free = free.min(self.open_slots(now_ms));
        if free > 0 {
            self.leasing = true;
            self.ready_is_news = false;
            effects.push(Effect::Lease(free));
        }
    }

    /// With every uplink shut there is nothing to lease for, or just the one request that tries.
    fn open_slots(&self, now_ms: u64) -> u32 {
        let gates = self.uplinks.iter().enumerate().filter(|(_, u)| u.is_available());
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
        let paces = [self.pace.not_before_ms(), self.next_send_ms, self.lease_after_ms].into_iter();
        paces.chain(self.pauses.trials_ms()).filter(move |_| waiting)
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
        uplink: UplinkIndex,
        outcome: Outcome,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.learn_route(uplink, item, outcome, now_ms, effects);
        let verdict = self.verdict(item, uplink, outcome, now_ms);
        self.adapt_pace(outcome, now_ms);
        effects.push(settle(item, Some(attempt), verdict));
    }

    fn learn_route(&mut self, i: UplinkIndex, item: &Item, outcome: Outcome, now_ms: u64, effects: &mut Vec<Effect>) {
        match outcome {
            Outcome::Blocked(block) => {
                // Requests that were in flight together find out one after the other: one alarm is enough.
                let known = self.pauses.is_known(i, &item.model, block);
                let wait_ms = self.pauses.shut(i, &item.model, block, now_ms);
                if known {
                    return;
                }
                let notice = Notice::RoutePaused { uplink: i, block, retry_in_s: wait_ms / 1000 };
                effects.push(Effect::Notice(notice));
            }
            Outcome::Delivered | Outcome::Permanent(_) | Outcome::NoAnswer | Outcome::RateLimited { .. } => {
                if self.pauses.open(i, &item.model) {
                    self.hurry_deferred(now_ms);
                    effects.push(Effect::Notice(Notice::RouteResumed { uplink: i }));
                }
            }
            _ => self.pauses.trial_undecided(i, &item.model),
        }
    }

    fn adapt_pace(&mut self, outcome: Outcome, now_ms: u64) {
        match outcome {
            Outcome::Delivered => self.pace.success(now_ms),
            Outcome::RateLimited { retry_after_ms } => {
                let floor = retry_after_ms.unwrap_or(0);
                let wait = backoff_ms(&self.settings.retry, self.pace.limited(), floor, &mut self.chance);
                self.pace.slower(now_ms + wait.max(self.settings.retry.base_ms));
            }
            Outcome::Transient(_) | Outcome::Unknown(_) => self.pace.slower(now_ms),
            _ => {}
        }
    }

    /// An uplink that fails everybody (its breaker is open) says nothing about this request: it costs no
    /// attempt, or an hour of 503 would kill what stands first. It waits until just after the next request
    /// was tried in its place, so that one request that always fails cannot hold the breaker open either.
    fn transient_verdict(&mut self, item: &Item, uplink: UplinkIndex, now_ms: u64) -> Verdict {
        let open_until_ms = self.uplinks[uplink].breaker.deadline_ms();
        if open_until_ms.is_none() && item.attempts + 1 >= self.settings.max_attempts {
            return Verdict::Dead("attempts_exhausted");
        }
        let wait = backoff_ms(&self.settings.retry, item.attempts, DEFER_MIN_MS, &mut self.chance);
        let due_ms = open_until_ms.map_or(now_ms + wait, |until| {
            until + self.settings.drain.start_delay_ms + BEHIND_THE_NEXT_MS + self.chance.up_to(BEHIND_THE_NEXT_MS)
        });
        self.deferred.insert((due_ms, item.seq));
        Verdict::Requeue { counted: open_until_ms.is_none(), deferred: true, maybe_billed: false }
    }

    fn verdict(&mut self, item: &Item, uplink: UplinkIndex, outcome: Outcome, now_ms: u64) -> Verdict {
        match outcome {
            Outcome::Delivered => Verdict::Answered,
            Outcome::Permanent(fault) => Verdict::Dead(fault.as_str()),
            Outcome::NoAnswer => Verdict::Dead("no_answer"),
            Outcome::Unreachable(_) | Outcome::RateLimited { .. } | Outcome::Blocked(_) | Outcome::GivenUp => {
                GIVEN_BACK
            }
            Outcome::Transient(_) => self.transient_verdict(item, uplink, now_ms),
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
