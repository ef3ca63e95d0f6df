//! How fast the backlog is sent: a window that grows by one per success and halves when the uplink pushes back.
//!
//! Additive increase, multiplicative decrease (Chiu and Jain, 1989). Owns numbers only.

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
    /// When the last backlog request was answered, and the average time between answers.
    last_answer_ms: Option<u64>,
    spacing_ms: Option<f64>,
}

/// Weight of the newest spacing in the moving average.
const SPACING_WEIGHT: f64 = 0.1;

impl Pace {
    /// Starts with a window of one.
    pub fn new(settings: &DrainSettings) -> Self {
        Self {
            window: 1,
            max: settings.max_in_flight.max(1),
            not_before_ms: 0,
            limits: 0,
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

    /// A request met a rate limit; returns how many did before it since the last answer.
    pub fn limited(&mut self) -> u32 {
        self.limits = self.limits.saturating_add(1);
        self.limits - 1
    }

    /// A request was answered.
    pub fn success(&mut self, now_ms: u64) {
        self.limits = 0;
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
