//! Retries of stored requests: set aside for their back-off, let go as the one budget over all retries allows.
//!
//! Owns who waits for the budget and whose next send is paid for. A budget that is spent delays; it never ends a request and
//! costs it no attempt. What a refusal (429, a shut key or route) sends again is no retry: pace and pauses have bounds of
//! their own.

use std::collections::BTreeSet;

use super::Control;
use super::event::{Effect, Item, Outcome, Verdict};
use super::pause::Gate;

/// Requests remembered as paid for; beyond it the oldest is forgotten, and costs a retry that is not given back. 8 bytes each.
const PAID_MAX: usize = 4096;

/// The stored requests that are tried again.
#[derive(Debug, Default)]
pub(super) struct Again {
    /// From when on each may leave, if the budget allows it. Counted into the bound of all that is set aside.
    waiting: BTreeSet<(u64, u64)>,
    /// Their next send is paid for.
    paid: BTreeSet<u64>,
}

impl Again {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// They need not wait for their own instants any more; the budget is asked all the same.
    pub(super) fn hurry(&mut self, soon_ms: u64) {
        self.waiting = self.waiting.iter().map(|(at, seq)| ((*at).min(soon_ms), *seq)).collect();
    }

    fn pay(&mut self, seq: u64) {
        self.paid.insert(seq);
        if self.paid.len() > PAID_MAX {
            self.paid.pop_first();
        }
    }
}

impl Control {
    /// It is sent again, not before this.
    pub(super) fn retry_stored(&mut self, seq: u64, due_ms: u64) {
        self.again.waiting.insert((due_ms, seq));
    }

    /// Its connection failed before anything was sent: back to its place if the budget has room, else set aside.
    pub(super) fn unreachable_verdict(&mut self, item: &Item, soon_ms: u64, now_ms: u64) -> Verdict {
        let deferred = !self.budget.spend_stored(now_ms);
        if deferred {
            self.retry_stored(item.seq, soon_ms);
        } else {
            self.again.pay(item.seq);
        }
        Verdict::Requeue { counted: false, deferred, maybe_billed: false }
    }

    /// A second send of what may have been billed: its own budget, which is smaller, has allowed it.
    pub(super) fn charge_second_send(&mut self, seq: u64) {
        if !self.again.paid.contains(&seq) && self.budget.charge() {
            self.again.pay(seq);
        }
    }

    /// What the end of a stored request's attempt means for the budget.
    pub(super) fn account_stored(&mut self, item: &Item, outcome: Outcome) {
        if matches!(outcome, Outcome::GivenUp | Outcome::Unaffordable) {
            // Nothing was sent: what is paid for is still to come.
            return;
        }
        let was_paid = self.again.paid.remove(&item.seq);
        if matches!(outcome, Outcome::Delivered | Outcome::Misfit) {
            self.budget.earn();
            if was_paid {
                self.budget.refund();
            }
        }
    }

    /// While no uplink takes anything they stay aside: what the budget grants is not spent on waiting.
    pub(super) fn release_retries(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let mut due = Vec::new();
        while let Some((_, seq)) = self.again.waiting.first().filter(|(at, _)| *at <= now_ms).copied() {
            if !self.is_available() || !self.budget.spend_stored(now_ms) {
                break;
            }
            self.again.waiting.pop_first();
            self.again.pay(seq);
            due.push(seq);
        }
        if !due.is_empty() {
            effects.push(Effect::Release(due));
        }
    }

    /// When a stored request that waits is sent at the earliest, where there is more to wait for than its turn: an instant of its own,
    /// the uplinks' pace or a shut route.
    pub fn next_attempt_ms(&self, seq: u64, model: &str, now_ms: u64) -> Option<u64> {
        let is_this = |(_, one): &&(u64, u64)| *one == seq;
        if let Some((due_ms, _)) = self.deferred.iter().find(is_this) {
            return Some(*due_ms);
        }
        if let Some((due_ms, _)) = self.again.waiting.iter().find(is_this) {
            return self.is_available().then(|| (*due_ms).max(self.budget.stored_due_ms()));
        }
        let up = self.uplinks.iter().enumerate().filter(|(_, uplink)| uplink.is_available());
        let opens_ms = up.map(|(index, _)| match self.pauses.gate(index, model, now_ms) {
            Gate::Shut { until_ms } => until_ms,
            Gate::Open | Gate::Trial => now_ms.max(self.uplinks[index].rests_until_ms),
        });
        let due_ms = opens_ms.min()?.max(self.pace.not_before_ms());
        (due_ms > now_ms).then_some(due_ms)
    }

    /// When the first of them may leave.
    pub(super) fn retries_deadline_ms(&self) -> Option<u64> {
        let first = self.again.waiting.first().filter(|_| self.is_available());
        first.map(|(at, _)| (*at).max(self.budget.stored_due_ms()))
    }
}
