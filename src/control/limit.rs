//! How often each source may ask: a bucket of requests for each, filled evenly.
//!
//! A pure value with explicit time; whoever uses it says what counts as asking.

use std::collections::HashMap;

/// Sources remembered, about 100 bytes each. Beyond it new ones share one bucket, so that inventing sources helps nobody.
const SOURCES_MAX: usize = 4096;
/// A bucket counts thousandths of a request: what one request a second earns in a millisecond.
const REQUEST: u64 = 1000;

/// The buckets of all sources.
#[derive(Debug)]
pub struct Limiter {
    per_second: u64,
    full: u64,
    buckets: HashMap<String, Bucket>,
    shared: Bucket,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: u64,
    at_ms: u64,
}

impl Limiter {
    /// So many requests a second in the long run, so many at once. At least one of each.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let full = u64::from(burst.max(1)) * REQUEST;
        let shared = Bucket { level: full, at_ms: 0 };
        Self { per_second: u64::from(per_second.max(1)), full, buckets: HashMap::new(), shared }
    }

    /// Takes one request, or says after how many milliseconds there is one.
    pub fn take(&mut self, source: &str, now_ms: u64) -> Result<(), u64> {
        let (per_second, full) = (self.per_second, self.full);
        let bucket = self.bucket(source, now_ms);
        bucket.fill(per_second, full, now_ms);
        match bucket.level.checked_sub(REQUEST) {
            Some(rest) => {
                bucket.level = rest;
                Ok(())
            }
            None => Err((REQUEST - bucket.level).div_ceil(per_second)),
        }
    }

    fn bucket(&mut self, source: &str, now_ms: u64) -> &mut Bucket {
        if !self.buckets.contains_key(source) {
            if self.buckets.len() >= SOURCES_MAX {
                self.forget_full(now_ms);
            }
            if self.buckets.len() >= SOURCES_MAX {
                return &mut self.shared;
            }
        }
        let new = Bucket { level: self.full, at_ms: now_ms };
        self.buckets.entry(source.to_owned()).or_insert(new)
    }

    /// A full bucket is the same as none.
    fn forget_full(&mut self, now_ms: u64) {
        let (per_second, full) = (self.per_second, self.full);
        self.buckets.retain(|_, bucket| {
            bucket.fill(per_second, full, now_ms);
            bucket.level < full
        });
    }
}

impl Bucket {
    fn fill(&mut self, per_second: u64, full: u64, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.at_ms);
        self.level = self.level.saturating_add(passed.saturating_mul(per_second)).min(full);
        self.at_ms = self.at_ms.max(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::retry::Chance;

    #[test]
    fn a_burst_passes_and_a_flood_waits_by_itself() {
        let mut limiter = Limiter::new(10, 50);
        assert!((0..50).all(|_| limiter.take("a", 1_000).is_ok()));
        assert_eq!(limiter.take("a", 1_000), Err(100));
        assert!(limiter.take("b", 1_000).is_ok(), "another source is not touched by it");
        assert_eq!(limiter.take("a", 1_099), Err(1));
        assert!(limiter.take("a", 1_100).is_ok());
        assert!(limiter.take("a", 1_100).is_err());
    }

    #[test]
    fn a_thousand_a_second_are_counted_exactly() {
        let mut limiter = Limiter::new(10, 50);
        let granted = (0..60_000).filter(|ms| limiter.take("a", *ms).is_ok()).count();
        // The burst, and ten for each second but the last instant, which belongs to the next request.
        assert_eq!(granted, 50 + 10 * 60 - 1);
    }

    /// Against a list of what was granted: between any two grants there are never more than the burst and what that
    /// time earned, and whoever comes when told to is served.
    #[test]
    fn no_stretch_of_time_holds_more_than_it_may() {
        for seed in 0..200 {
            let mut chance = Chance::new(seed);
            let (rate, burst) = (1 + chance.up_to(30), 1 + chance.up_to(20));
            let mut limiter = Limiter::new(rate as u32, burst as u32);
            let (mut now_ms, mut granted) = (0, Vec::new());
            for _ in 0..500 {
                now_ms += chance.up_to(2000 / rate);
                match limiter.take("a", now_ms) {
                    Ok(()) => granted.push(now_ms),
                    Err(wait_ms) if chance.up_to(1) == 0 => {
                        now_ms += wait_ms;
                        assert_eq!(limiter.take("a", now_ms), Ok(()), "seed {seed}: told to come after {wait_ms} ms");
                        granted.push(now_ms);
                    }
                    Err(_) => {}
                }
            }
            for (i, from) in granted.iter().enumerate() {
                for (j, to) in granted.iter().enumerate().skip(i) {
                    let most = burst * 1000 + (to - from) * rate;
                    assert!((j - i + 1) as u64 * 1000 <= most, "seed {seed}: {} from {from} to {to} ms", j - i + 1);
                }
            }
        }
    }

    #[test]
    fn invented_sources_share_one_bucket_and_old_ones_keep_theirs() {
        let mut limiter = Limiter::new(1, 2);
        for source in 0..SOURCES_MAX {
            assert!(limiter.take(&source.to_string(), 0).is_ok());
        }
        let granted = (0..100).filter(|n| limiter.take(&format!("new{n}"), 0).is_ok()).count();
        assert_eq!(granted, 2);
        assert_eq!(limiter.buckets.len(), SOURCES_MAX);
        // A second later all are full again, which makes room.
        assert!(limiter.take("late", 1_000).is_ok());
        assert_eq!(limiter.buckets.len(), 1);
    }
}
