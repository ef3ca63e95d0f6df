//! Circuit breaker of one uplink, in the textbook's sense: closed passes, open rejects, half-open makes one trial.
//!
//! The trial is a probe, so it needs no traffic; its deadline is the probe's. Owns no clock.

use super::types::words;

/// The breaker's three states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Requests pass.
    Closed,
    /// Requests are rejected.
    Open,
    /// One trial is under way.
    HalfOpen,
}

words!(BreakerState { Closed => "closed", Open => "open", HalfOpen => "half_open" });

/// `[[uplink]] breaker`.
#[derive(Debug, Clone, Copy)]
pub struct BreakerSettings {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open before the trial.
    pub open_for_ms: u64,
}

/// One uplink's breaker.
#[derive(Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    state: BreakerState,
    failures: u32,
    open_until_ms: u64,
}

impl Breaker {
    /// Closed.
    pub fn new(settings: BreakerSettings) -> Self {
        Self { settings, state: BreakerState::Closed, failures: 0, open_until_ms: 0 }
    }

    /// Its state.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Whether requests pass.
    pub fn is_closed(&self) -> bool {
        self.state == BreakerState::Closed
    }

    /// A request succeeded, or the uplink came back from being unhealthy.
    pub fn success(&mut self) {
        self.failures = 0;
        self.state = BreakerState::Closed;
    }

    /// A request failed; true if this opened the breaker.
    pub fn failure(&mut self, now_ms: u64) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.state == BreakerState::Closed && self.failures >= self.settings.failures {
            self.open(now_ms);
            return true;
        }
        false
    }

    fn open(&mut self, now_ms: u64) {
        self.state = BreakerState::Open;
        self.open_until_ms = now_ms + self.settings.open_for_ms;
    }

    /// Goes half-open when its time has come; true if a trial must start now.
    pub fn start_trial(&mut self, now_ms: u64) -> bool {
        if self.state != BreakerState::Open || now_ms < self.open_until_ms {
            return false;
        }
        self.state = BreakerState::HalfOpen;
        true
    }

    /// The trial's end. A trial that passed closes the breaker on probation: the probe may well be answered
    /// while requests are not, so one more failed request opens it again.
    pub fn trial_ended(&mut self, passed: bool, now_ms: u64) {
        if self.state != BreakerState::HalfOpen {
            return;
        }
        if passed {
            self.state = BreakerState::Closed;
            self.failures = self.settings.failures.saturating_sub(1);
        } else {
            self.open(now_ms);
        }
    }

    /// When the trial is due, while open.
    pub fn deadline_ms(&self) -> Option<u64> {
        (self.state == BreakerState::Open).then_some(self.open_until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(BreakerSettings { failures: 3, open_for_ms: 30_000 })
    }

    fn opened() -> Breaker {
        let mut breaker = breaker();
        assert!(!breaker.failure(0));
        assert!(!breaker.failure(0));
        assert!(breaker.failure(0));
        breaker
    }

    #[test]
    fn success_between_failures_keeps_it_closed() {
        let mut breaker = breaker();
        for _ in 0..10 {
            breaker.failure(0);
            breaker.failure(0);
            breaker.success();
        }
        assert!(breaker.is_closed());
    }

    #[test]
    fn makes_exactly_one_trial_after_open_for() {
        let mut breaker = opened();
        assert!(!breaker.start_trial(29_999));
        assert!(breaker.start_trial(30_000));
        assert!(!breaker.start_trial(30_000));
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
    }

    #[test]
    fn a_failed_trial_opens_it_again_for_as_long() {
        let mut breaker = opened();
        breaker.start_trial(30_000);
        breaker.trial_ended(false, 31_000);
        assert_eq!(breaker.deadline_ms(), Some(61_000));
    }

    #[test]
    fn after_a_passed_trial_one_failure_opens_it() {
        let mut breaker = opened();
        breaker.start_trial(30_000);
        breaker.trial_ended(true, 30_001);
        assert!(breaker.is_closed());
        assert!(breaker.failure(30_002));
    }
}
