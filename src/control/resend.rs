//! The budget of second sends: what may have been billed is sent again for one in ten successes.
//!
//! Owns who waits for the budget and who has its permission; sends nothing.

use std::collections::BTreeSet;

/// Second sends a fresh process may make before it saw a success: a crash leaves about as many in flight.
pub const ALLOWANCE: u32 = 5;
/// Most that is saved up, so that a good month does not pay for a bad hour.
const SAVED_MAX: u32 = 10;
/// Successes that earn one second send.
pub const SUCCESSES_EACH: u32 = 10;
/// Permissions given and not used yet; a request that was cancelled meanwhile never uses its own.
const GRANTED_MAX: usize = 64;

/// The budget.
#[derive(Debug)]
pub struct Resends {
    /// In tenths: one success each.
    tenths: u32,
    waiting: BTreeSet<u64>,
    granted: BTreeSet<u64>,
}

impl Default for Resends {
    fn default() -> Self {
        Self { tenths: ALLOWANCE * SUCCESSES_EACH, waiting: BTreeSet::new(), granted: BTreeSet::new() }
    }
}

impl Resends {
    /// Whether this request may be sent a second time now; if not, it waits.
    pub fn may_leave(&mut self, seq: u64) -> bool {
        if self.granted.remove(&seq) || self.spend() {
            return true;
        }
        self.waiting.insert(seq);
        false
    }

    /// This request may be sent a second time, whatever is left.
    pub fn grant_one(&mut self, seq: u64) {
        if self.granted.len() >= GRANTED_MAX {
            self.granted.pop_first();
        }
        self.granted.insert(seq);
    }

    /// A request was answered. Returns who may leave now.
    pub fn earn(&mut self) -> Vec<u64> {
        self.tenths = (self.tenths + 1).min(SAVED_MAX * SUCCESSES_EACH);
        self.grant()
    }

    /// The second send turned out to cost nothing: it was not one.
    pub fn refund(&mut self) -> Vec<u64> {
        self.tenths = (self.tenths + SUCCESSES_EACH).min(SAVED_MAX * SUCCESSES_EACH);
        self.grant()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn grant(&mut self) -> Vec<u64> {
        let mut free = Vec::new();
        while !self.waiting.is_empty() && self.spend() {
            let Some(seq) = self.waiting.pop_first() else { break };
            self.granted.insert(seq);
            free.push(seq);
        }
        while self.granted.len() > GRANTED_MAX {
            self.granted.pop_first();
        }
        free
    }

    fn spend(&mut self) -> bool {
        let granted = self.tenths >= SUCCESSES_EACH;
        if granted {
            self.tenths -= SUCCESSES_EACH;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_sends_are_one_in_ten_successes() {
        let mut resends = Resends::default();
        let mut sent: u32 = (0..100).map(|seq| u32::from(resends.may_leave(seq))).sum();
        assert_eq!((sent, resends.waiting()), (ALLOWANCE, 95));
        for _ in 0..200 {
            sent += resends.earn().iter().map(|seq| u32::from(resends.may_leave(*seq))).sum::<u32>();
        }
        assert_eq!((sent, resends.waiting()), (ALLOWANCE + 20, 75));
    }

    #[test]
    fn what_is_saved_up_is_bounded() {
        let mut resends = Resends::default();
        (0..1_000).for_each(|_| drop(resends.earn()));
        assert_eq!((0..100).filter(|seq| resends.may_leave(*seq)).count() as u32, SAVED_MAX);
    }
}
