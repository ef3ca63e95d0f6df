//! How fast the backlog is sent: a window that grows by one per success and halves when the uplink pushes back, and a gap
//! between sends that an uplink with a rate limit teaches.
//!
//! Additive increase, multiplicative decrease (Chiu and Jain, 1989). Owns numbers only. The gap is apart from the window:
//! a service that counts requests per minute refuses one in flight as readily as four.

/// `[drain]`.
#[derive(Debug, Clone, Copy)]
pub struct DrainSettings {
    /// Upper bound of the window.
    pub max_in_flight: u32,
    /// This device's own share of the start jitter, already computed from its name.
    pub start_delay_ms: u64,
}

/// The drain's pace.
#[derive(Debug)]
pub struct Pace {
    window: u32,
    max: u32,
    /// Nothing is sent before this: start jitter, or an uplink's `Retry-After`.
    not_before_ms: u64,
    /// Rate limits since the last answer.
    limits: u32,
    /// Between two sends, in milliseconds; never below [`GAP_MIN_MS`].
    gap_ms: f64,
    /// When the next one may leave; with its fraction, or gaps of a few milliseconds could not be told apart.
    next_ms: f64,
    /// When the last backlog request was answered, and the average time between answers.
    last_answer_ms: Option<u64>,
    spacing_ms: Option<f64>,
}

/// Weight of the newest spacing in the moving average.
const SPACING_WEIGHT: f64 = 0.1;
/// The gap where no uplink has a limit: between one stored body's leaving and the next. They travel on different
/// connections, and this keeps them in order at the other end too. It bounds the drain to some 300 requests a second.
const GAP_MIN_MS: f64 = 2.0;
/// The widest gap: an uplink that takes less than one in ten seconds says so with `Retry-After`.
const GAP_MAX_MS: f64 = 10_000.0;
/// What the first rate limit makes of the gap between answers, and what each further one makes of the gap.
const WIDER_FIRST: f64 = 2.0;
const WIDER: f64 = 1.15;
/// What each answer makes of it: 280 answers earn back what one limit took, so that about one in 300 is refused.
const NARROWER: f64 = 0.9995;

impl Pace {
    /// Starts with a window of one.
    pub fn new(settings: &DrainSettings) -> Self {
        Self {
            window: 1,
            max: settings.max_in_flight.max(1),
            not_before_ms: 0,
            limits: 0,
            gap_ms: GAP_MIN_MS,
            next_ms: 0.0,
            last_answer_ms: None,
            spacing_ms: None,
        }
    }

    /// How many may be in flight at once.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// When sending may go on.
    pub fn not_before_ms(&self) -> u64 {
        self.not_before_ms
    }

    /// When the next request may leave, for its distance from the one before.
    pub fn next_ms(&self) -> u64 {
        self.next_ms as u64
    }

    /// A request has left.
    pub fn left(&mut self, now_ms: u64) {
        // A timer that was late is caught up with; what was missed while nothing waited is not.
        self.next_ms = (self.next_ms + self.gap_ms).max(now_ms as f64 + GAP_MIN_MS);
    }

    /// An uplink came back: start small, and not before the jitter and any `Retry-After` are over.
    pub fn restart(&mut self, at_ms: u64) {
        self.window = 1;
        self.not_before_ms = self.not_before_ms.max(at_ms);
        self.last_answer_ms = None;
    }

    /// Send now, whatever was waited for.
    pub fn hurry(&mut self) {
        self.not_before_ms = 0;
    }

    /// A request met a rate limit; returns how many did before it since the last answer. Those that were under way with the
    /// first say nothing more than it.
    pub fn limited(&mut self) -> u32 {
        if self.limits == 0 {
            let first = self.spacing_ms.unwrap_or(0.0).max(GAP_MIN_MS) * WIDER_FIRST;
            let wider = if self.gap_ms > GAP_MIN_MS { self.gap_ms * WIDER } else { first };
            self.gap_ms = wider.min(GAP_MAX_MS);
        }
        self.limits = self.limits.saturating_add(1);
        self.limits - 1
    }

    /// A request was answered.
    pub fn success(&mut self, now_ms: u64) {
        self.limits = 0;
        self.gap_ms = (self.gap_ms * NARROWER).max(GAP_MIN_MS);
        self.window = (self.window + 1).min(self.max);
        if let Some(last) = self.last_answer_ms {
            let gap = now_ms.saturating_sub(last) as f64;
            self.spacing_ms = Some(self.spacing_ms.map_or(gap, |old| old + SPACING_WEIGHT * (gap - old)));
        }
        self.last_answer_ms = Some(now_ms);
    }

    /// Nothing waits: the time until the next answer says nothing about the pace.
    pub fn rest(&mut self) {
        self.last_answer_ms = None;
    }

    /// The uplink pushed back.
    pub fn slower(&mut self, not_before_ms: u64) {
        self.window = (self.window / 2).max(1);
        self.not_before_ms = self.not_before_ms.max(not_before_ms);
    }

    /// Seconds until `waiting` requests are sent at the pace seen so far.
    pub fn seconds_to_drain(&self, waiting: u64) -> Option<u64> {
        self.spacing_ms.map(|gap| (gap * waiting as f64 / 1000.0).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(&DrainSettings { max_in_flight: 4, start_delay_ms: 0 })
    }

    #[test]
    fn grows_by_one_to_its_bound_and_halves() {
        let mut pace = pace();
        for now in 0..10 {
            pace.success(now);
        }
        assert_eq!(pace.window(), 4);
        pace.slower(100);
        assert_eq!((pace.window(), pace.not_before_ms()), (2, 100));
        pace.slower(50);
        pace.slower(50);
        assert_eq!((pace.window(), pace.not_before_ms()), (1, 100));
    }

    /// A token bucket answers at once: how many of so many sends it refuses, and how many milliseconds they take.
    fn against_a_bucket(per_second: f64, sends: u32, pace: &mut Pace) -> (u32, u64) {
        let (mut tokens, mut refused, mut now_ms, mut answered) = (per_second, 0, 0, 0);
        while answered < sends {
            let at_ms = pace.next_ms().max(pace.not_before_ms()).max(now_ms);
            tokens = (tokens + (at_ms - now_ms) as f64 * per_second / 1000.0).min(per_second);
            now_ms = at_ms;
            pace.left(now_ms);
            if tokens >= 1.0 {
                tokens -= 1.0;
                answered += 1;
                pace.success(now_ms);
            } else {
                refused += 1;
                pace.limited();
                pace.slower(now_ms + 1000);
            }
        }
        (refused, now_ms)
    }

    #[test]
    fn an_uplink_with_a_rate_limit_refuses_less_than_one_in_a_hundred() {
        for per_second in [3.0, 50.0, 170.0, 400.0] {
            let mut pace = pace();
            let (refused, took_ms) = against_a_bucket(per_second, 50_000, &mut pace);
            let best_ms = 50_000.0 / per_second * 1000.0;
            assert!(refused > 0 && refused < 500, "{per_second}/s: {refused} of 50,000");
            assert!((took_ms as f64) < best_ms * 1.25, "{per_second}/s: {took_ms} ms instead of {best_ms}");
        }
    }

    #[test]
    fn without_a_limit_the_gap_stays_small_and_a_lifted_one_is_forgotten() {
        let mut pace = pace();
        assert_eq!(against_a_bucket(1000.0, 5_000, &mut pace).0, 0);
        assert!(against_a_bucket(50.0, 5_000, &mut pace).0 > 0 && pace.gap_ms > 15.0);
        pace.not_before_ms = 0;
        pace.next_ms = 0.0;
        assert_eq!(against_a_bucket(1000.0, 8_000, &mut pace).0, 0);
        assert!(pace.gap_ms <= GAP_MIN_MS, "{}", pace.gap_ms);
    }

    #[test]
    fn tells_the_time_to_drain_from_the_spacing_of_answers() {
        let mut pace = pace();
        assert_eq!(pace.seconds_to_drain(10), None);
        for n in 0..50 {
            pace.success(n * 100);
        }
        assert_eq!(pace.seconds_to_drain(100), Some(10));
    }
}
