//! When to try again: full jitter, a floor from `Retry-After`, and a budget over all retries.
//!
//! Pure arithmetic on explicit numbers; chance comes in as a seed.

/// `[retry]`.
#[derive(Debug, Clone, Copy)]
pub struct RetrySettings {
    /// Attempts of a live request at one uplink.
    pub attempts: u32,
    /// First back-off.
    pub base_ms: u64,
    /// Longest back-off.
    pub max_ms: u64,
    /// Retries as a share of requests.
    pub budget: f64,
}

/// A small deterministic generator (`splitmix64`): a run replays from its seed.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 to `max`, both included.
    pub fn up_to(&mut self, max: u64) -> u64 {
        if max == u64::MAX { self.next_u64() } else { self.next_u64() % (max + 1) }
    }
}

/// Full jitter: anything from 0 to `base` doubled per earlier attempt, capped, but never below the floor.
pub fn backoff_ms(settings: &RetrySettings, attempt: u32, floor_ms: u64, chance: &mut Chance) -> u64 {
    let doubled = settings.base_ms.saturating_mul(1u64 << attempt.min(32));
    chance.up_to(doubled.min(settings.max_ms)).max(floor_ms)
}

/// Tokens a quiet gateway may spend on retries at once, so that the first failure of the day is retried.
const BUDGET_BURST: f64 = 10.0;

/// With nothing left, a stored request's retry leaves so long after the one before: somebody must find out that the outage
/// is over, and a breaker lets one request try as often by default.
pub const TRICKLE_MS: u64 = 30_000;

/// Retries as a share of requests, live and stored: each live request and each answered stored one earns a fraction of a
/// retry, each retry spends one.
#[derive(Debug)]
pub struct Budget {
    share: f64,
    tokens: f64,
    /// When a stored request's retry left last.
    stored_ms: Option<u64>,
}

impl Budget {
    /// A full budget.
    pub fn new(share: f64) -> Self {
        Self { share, tokens: if share > 0.0 { BUDGET_BURST } else { 0.0 }, stored_ms: None }
    }

    /// A live request came, or a stored one was answered.
    pub fn earn(&mut self) {
        self.tokens = (self.tokens + self.share).min(BUDGET_BURST);
    }

    /// Takes a live request's retry, if there is one.
    pub fn spend(&mut self) -> bool {
        self.share > 0.0 && self.take()
    }

    /// Takes a stored request's retry: it may be late, but there is always one in the end.
    pub fn spend_stored(&mut self, now_ms: u64) -> bool {
        let granted = self.take() || now_ms >= self.stored_due_ms();
        if granted {
            self.stored_ms = Some(now_ms);
        }
        granted
    }

    /// From when on a stored request's retry may leave; 0 for at once.
    pub fn stored_due_ms(&self) -> u64 {
        let trickle = self.stored_ms.map_or(0, |last| last + TRICKLE_MS);
        if self.tokens >= 1.0 { 0 } else { trickle }
    }

    /// A retry that something else allowed, and more strictly: it counts here too, on credit if need be. False where even
    /// that is used up.
    pub fn charge(&mut self) -> bool {
        let granted = self.tokens >= 1.0 - BUDGET_BURST;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }

    /// A stored request's retry was answered: it took the place of the send that failed, and multiplied nothing.
    pub fn refund(&mut self) {
        self.tokens = (self.tokens + 1.0).min(BUDGET_BURST);
    }

    fn take(&mut self) -> bool {
        let granted = self.tokens >= 1.0;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: RetrySettings = RetrySettings { attempts: 3, base_ms: 500, max_ms: 60_000, budget: 0.2 };

    #[test]
    fn backoff_stays_within_its_bounds_and_uses_them() {
        let mut chance = Chance::new(1);
        let all: Vec<u64> = (0..1000).map(|_| backoff_ms(&SETTINGS, 2, 0, &mut chance)).collect();
        assert!(all.iter().all(|ms| *ms <= 2000));
        assert!(all.iter().any(|ms| *ms > 1800) && all.iter().any(|ms| *ms < 200));
        assert!((0..100).all(|n| backoff_ms(&SETTINGS, n, 0, &mut chance) <= 60_000));
    }

    #[test]
    fn retry_after_is_a_floor() {
        let mut chance = Chance::new(1);
        assert!((0..100).all(|_| backoff_ms(&SETTINGS, 0, 3000, &mut chance) >= 3000));
    }

    #[test]
    fn an_outage_multiplies_traffic_by_the_share_only() {
        let mut budget = Budget::new(0.2);
        let mut retries = 0;
        for _ in 0..1000 {
            budget.earn();
            while budget.spend() {
                retries += 1;
            }
        }
        assert!((200..=210).contains(&retries), "{retries}");
    }
}
