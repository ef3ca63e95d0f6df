//! Health of one uplink: `fall` failures in a row make it unhealthy, `rise` successes healthy again.
//!
//! Owns the check's schedule. Fed by probes and by what live traffic saw; does no I/O and reads no clock.

use super::event::{Check, Fault};
use super::types::words;

/// What is believed about an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not checked yet.
    Unknown,
    /// Answers in time.
    Healthy,
    /// Answers, but slowly.
    Degraded,
    /// Does not answer.
    Unhealthy,
}

impl Health {
    /// Every state.
    pub const ALL: [Health; 4] = [Health::Unknown, Health::Healthy, Health::Degraded, Health::Unhealthy];
}

words!(Health {
    Unknown => "unknown",
    Healthy => "healthy",
    Degraded => "degraded",
    Unhealthy => "unhealthy",
});

/// `[[uplink]] probe`.
#[derive(Debug, Clone, Copy)]
pub struct ProbeSettings {
    /// From the end of one probe to the start of the next.
    pub interval_ms: u64,
    /// After this a silent probe has failed.
    pub timeout_ms: u64,
    /// Failures in a row that make it unhealthy.
    pub fall: u32,
    /// Successes in a row that make it healthy.
    pub rise: u32,
    /// A slower answer than this is degraded.
    pub degraded_above_ms: u64,
}

/// After one failure of a healthy uplink the next probe comes this many times sooner, so that an outage is
/// known quickly without probing often in good times (`HAProxy`'s `fastinter`).
const FAST_CHECK_DIVISOR: u64 = 4;
/// Weight of the newest latency in the moving average.
const LATENCY_WEIGHT: f64 = 0.3;
/// Grace over the probe's own time-out before an unreported probe counts as failed.
const PROBE_GRACE_MS: u64 = 250;

/// One uplink's health check.
#[derive(Debug)]
pub struct HealthCheck {
    settings: ProbeSettings,
    health: Health,
    failures: u32,
    successes: u32,
    /// Live traffic or the system cast doubt: the next check alone decides.
    suspect: bool,
    fault: Option<Fault>,
    latency_ms: Option<f64>,
    due_ms: u64,
    probing_since_ms: Option<u64>,
    last_check_ms: Option<u64>,
}

impl HealthCheck {
    /// Unknown, and due at once.
    pub fn new(settings: ProbeSettings, now_ms: u64) -> Self {
        Self {
            settings,
            health: Health::Unknown,
            failures: 0,
            successes: 0,
            suspect: false,
            fault: None,
            latency_ms: None,
            due_ms: now_ms,
            probing_since_ms: None,
            last_check_ms: None,
        }
    }

    /// What is believed now.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Answers, and nothing casts doubt on it.
    pub fn is_up(&self) -> bool {
        matches!(self.health, Health::Healthy | Health::Degraded) && !self.suspect
    }

    /// A check under way or due will decide soon; callers wait for it rather than for a dead connection.
    pub fn is_undecided(&self) -> bool {
        self.health == Health::Unknown || (self.suspect && self.health != Health::Unhealthy)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Why the last check failed.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Moving average of the answer time.
    pub fn latency_ms(&self) -> Option<f64> {
        self.latency_ms
    }

    /// When the last check ended.
    pub fn last_check_ms(&self) -> Option<u64> {
        self.last_check_ms
    }

    /// A live request's own answer time joins the average.
    pub fn observe_latency(&mut self, latency_ms: u64) {
        let new = latency_ms as f64;
        self.latency_ms = Some(self.latency_ms.map_or(new, |old| old + LATENCY_WEIGHT * (new - old)));
    }

    /// Live traffic failed, or the network changed: check now, and let that one check decide.
    pub fn doubt(&mut self, now_ms: u64) {
        if self.health == Health::Unhealthy {
            // Nothing new, however many attempts end in it.
            self.hasten(now_ms);
            return;
        }
        self.suspect = true;
        self.due_ms = now_ms;
    }

    /// Check soon, without doubting yet; never more often than after a failed probe.
    pub fn hasten(&mut self, now_ms: u64) {
        let earliest = self.last_check_ms.map_or(0, |last| last + self.settings.interval_ms / FAST_CHECK_DIVISOR);
        self.due_ms = self.due_ms.min(earliest.max(now_ms));
    }

    /// The next check comes no sooner: what it would find is known, and asking costs.
    pub fn postpone(&mut self, at_ms: u64) {
        self.due_ms = self.due_ms.max(at_ms);
    }

    /// The next check is due by then.
    pub fn check_by(&mut self, at_ms: u64) {
        self.due_ms = self.due_ms.min(at_ms);
    }

    /// Starts a probe if one is due; the caller must carry it out.
    pub fn start_probe(&mut self, now_ms: u64) -> bool {
        if self.probing_since_ms.is_some() || now_ms < self.due_ms {
            return false;
        }
        self.probing_since_ms = Some(now_ms);
        true
    }

    /// A probe that never reported has failed.
    pub fn overdue(&self, now_ms: u64) -> bool {
        self.probe_deadline_ms().is_some_and(|deadline| now_ms >= deadline)
    }

    fn probe_deadline_ms(&self) -> Option<u64> {
        self.probing_since_ms.map(|since| since + self.settings.timeout_ms + PROBE_GRACE_MS)
    }

    /// The next instant at which this check wants to be looked at.
    pub fn deadline_ms(&self) -> u64 {
        self.probe_deadline_ms().unwrap_or(self.due_ms)
    }

    /// Takes in a probe's result; true if the health changed.
    pub fn on_check(&mut self, check: Check, now_ms: u64) -> bool {
        let before = self.health;
        self.probing_since_ms = None;
        self.last_check_ms = Some(now_ms);
        match check {
            Check::Passed { latency_ms, .. } => self.passed(latency_ms),
            Check::Failed(fault) => self.failed(fault),
        }
        let soon = self.failures > 0 && self.health != Health::Unhealthy;
        let divisor = if soon { FAST_CHECK_DIVISOR } else { 1 };
        self.due_ms = now_ms + (self.settings.interval_ms / divisor).max(1);
        self.health != before
    }

    fn passed(&mut self, latency_ms: u64) {
        self.suspect = false;
        self.failures = 0;
        self.fault = None;
        self.successes = self.successes.saturating_add(1);
        self.observe_latency(latency_ms);
        let up = self.health != Health::Unhealthy || self.successes >= self.settings.rise;
        if up {
            let slow = latency_ms > self.settings.degraded_above_ms;
            self.health = if slow { Health::Degraded } else { Health::Healthy };
        }
    }

    fn failed(&mut self, fault: Fault) {
        self.successes = 0;
        self.failures = self.failures.saturating_add(1);
        self.fault = Some(fault);
        // The very first check and a check after doubt decide alone: waiting for more would only let
        // live requests run into the same wall.
        if self.suspect || self.health == Health::Unknown || self.failures >= self.settings.fall {
            self.health = Health::Unhealthy;
            self.suspect = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: ProbeSettings =
        ProbeSettings { interval_ms: 2000, timeout_ms: 1000, fall: 3, rise: 2, degraded_above_ms: 1500 };
    const OK: Check = Check::Passed { latency_ms: 10, key_refused: false };
    const BAD: Check = Check::Failed(Fault::Connect);

    fn healthy() -> HealthCheck {
        let mut check = HealthCheck::new(SETTINGS, 0);
        assert!(check.start_probe(0));
        assert!(check.on_check(OK, 10));
        check
    }

    #[test]
    fn first_check_decides_alone() {
        assert_eq!(healthy().health(), Health::Healthy);
        let mut check = HealthCheck::new(SETTINGS, 0);
        check.on_check(BAD, 5);
        assert_eq!(check.health(), Health::Unhealthy);
    }

    #[test]
    fn falls_after_three_and_rises_after_two() {
        let mut check = healthy();
        assert!(!check.on_check(BAD, 20));
        assert!(!check.on_check(BAD, 30));
        assert!(check.on_check(BAD, 40));
        assert_eq!(check.health(), Health::Unhealthy);
        assert!(!check.on_check(OK, 50));
        assert!(check.on_check(OK, 60));
        assert!(check.is_up());
    }

    #[test]
    fn one_check_decides_after_doubt() {
        let mut check = healthy();
        check.doubt(100);
        assert!(!check.is_up());
        assert!(check.is_undecided());
        assert!(check.start_probe(100));
        assert!(check.on_check(BAD, 101));
        assert!(!check.is_undecided());
    }

    #[test]
    fn slow_answers_are_degraded_but_up() {
        let mut check = healthy();
        check.on_check(Check::Passed { latency_ms: 1501, key_refused: false }, 100);
        assert_eq!(check.health(), Health::Degraded);
        assert!(check.is_up());
    }

    #[test]
    fn a_failure_hastens_the_next_probe_until_it_is_decided() {
        let mut check = healthy();
        check.on_check(BAD, 1000);
        assert_eq!(check.deadline_ms(), 1500);
        check.on_check(BAD, 1500);
        check.on_check(BAD, 2000);
        assert_eq!(check.deadline_ms(), 4000);
    }

    #[test]
    fn a_probe_that_never_reports_is_overdue() {
        let mut check = HealthCheck::new(SETTINGS, 0);
        assert!(check.start_probe(0));
        assert!(!check.start_probe(1));
        assert!(!check.overdue(1249));
        assert!(check.overdue(1250));
    }
}
