//! The only reader of clocks and of chance: monotonic, powered-on and Unix time, random identifiers.
//!
//! Everything else takes `now` as an argument, so a week of outages runs in a test in milliseconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A monotonic instant, for tasks that measure how long something took.
#[expect(clippy::disallowed_methods, reason = "the one reader of clocks")]
pub fn now() -> Instant {
    Instant::now()
}

/// Now by the clock of the runtime's timers, which a test can stop.
#[expect(clippy::disallowed_methods, reason = "the one reader of clocks")]
pub fn timers_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// Unix time in milliseconds; may be wrong or jump on boards without a clock. For showing only.
#[expect(clippy::disallowed_methods, reason = "the one reader of clocks")]
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The UTC day in days since 1970. As wrong as the clock is; whoever counts by it must not go back with it.
pub fn utc_day() -> u64 {
    unix_ms() / DAY_MS
}

/// Milliseconds of one day.
pub const DAY_MS: u64 = 86_400_000;

/// Time since this machine booted, suspended time included (`CLOCK_BOOTTIME`).
pub fn since_boot() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// 1 January 2026: no board that runs this program is older.
const RELEASE_UNIX_MS: u64 = 1_767_225_600_000;
/// A clock may be this much behind what was known to be good: it was fast by hours then and has been set right.
const FLOOR_SLACK_MS: u64 = 24 * 3_600_000;
/// The floor is written down after so much of a change: an hour more or less says nothing, and flash wears.
const FLOOR_STEP_MS: u64 = 3_600_000;

/// The earliest wall time that can be true: below it no certificate can be judged, so nothing is sent.
///
/// A time is good when an uplink's certificate was accepted at it. The floor never rises faster than time passes
/// for this process: a clock that was years ahead for a moment must not keep the gateway waiting for years.
#[derive(Debug)]
pub struct Floor {
    first_ms: u64,
    since: Duration,
    now_ms: AtomicU64,
    kept_ms: AtomicU64,
}

impl Floor {
    /// From what an earlier process wrote down.
    pub fn new(stored_unix_ms: u64) -> Floor {
        Floor::at(stored_unix_ms, since_boot())
    }

    fn at(stored_unix_ms: u64, since: Duration) -> Floor {
        let first_ms = stored_unix_ms.max(RELEASE_UNIX_MS);
        Floor { first_ms, since, now_ms: first_ms.into(), kept_ms: stored_unix_ms.into() }
    }

    /// Whether the clock stands below it now.
    pub fn is_above_clock(&self) -> bool {
        self.is_above(unix_ms())
    }

    fn is_above(&self, unix_ms: u64) -> bool {
        unix_ms.saturating_add(FLOOR_SLACK_MS) < self.now_ms.load(Ordering::Acquire)
    }

    /// A certificate was accepted now.
    pub fn good(&self) {
        self.good_at(unix_ms(), since_boot());
    }

    fn good_at(&self, unix_ms: u64, boot: Duration) {
        let lived_ms = boot.saturating_sub(self.since).as_millis() as u64;
        self.now_ms.fetch_max(unix_ms.min(self.first_ms.saturating_add(lived_ms)), Ordering::AcqRel);
    }

    /// What to write down, if it is worth it.
    pub fn to_keep(&self) -> Option<u64> {
        let (now_ms, kept_ms) = (self.now_ms.load(Ordering::Acquire), self.kept_ms.load(Ordering::Acquire));
        let due = now_ms >= kept_ms.saturating_add(FLOOR_STEP_MS);
        due.then(|| {
            self.kept_ms.store(now_ms, Ordering::Release);
            now_ms
        })
    }
}

/// A name for this boot of the machine; the same in every process until the next boot.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// A random number from the operating system.
pub fn random_u64() -> u64 {
    random::<1>()[0]
}

/// So many of them at once: each call asks the kernel.
fn random<const N: usize>() -> [u64; N] {
    let mut bytes = [[0u8; 8]; N];
    // Without a random source a fixed-per-instant value still keeps the gateway serving.
    if getrandom::fill(bytes.as_flattened_mut()).is_err() {
        return [since_boot().as_nanos() as u64; N];
    }
    bytes.map(u64::from_le_bytes)
}

/// Where this process's ids begin, and how many there were.
static IDS: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(random_u64()));

/// Random numbers fetched at once for ids: a call of the kernel for each would cost more than the id itself.
const AHEAD: usize = 64;
/// Those that are left.
static RANDOM: Mutex<Vec<u64>> = Mutex::new(Vec::new());

fn random_pair() -> [u64; 2] {
    let mut ahead = RANDOM.lock().unwrap_or_else(PoisonError::into_inner);
    if ahead.len() < 2 {
        ahead.extend(random::<AHEAD>());
    }
    [ahead.pop(), ahead.pop()].map(Option::unwrap_or_default)
}

/// A fresh request id: `req_` and 32 hexadecimal digits. The first 12 count on from a random number of this process, the rest
/// is random. Ids that follow one another lie together in the spool's index, where random ones cost a page each; and an
/// uplink, which may see one, does not learn from it when the request came. Nothing is ordered by them.
pub fn request_id() -> String {
    let number = IDS.fetch_add(1, Ordering::Relaxed);
    let [a, b] = random_pair();
    let mut id = String::with_capacity(36);
    id.push_str("req_");
    for (bits, digits) in [(number, 12), (a, 16), (b, 4)] {
        id.extend((0..digits).rev().filter_map(|at| char::from_digit((bits >> (4 * at) & 0xf) as u32, 16)));
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_follow_one_another_lie_together() {
        let ids = [request_id(), request_id()];
        let [first, second] = ids.each_ref().map(|id| u64::from_str_radix(&id[4..16], 16).unwrap());
        let between = second.wrapping_sub(first) & 0xffff_ffff_ffff;
        assert!((1..1_000_000).contains(&between), "other tests count on too: {ids:?}");
        assert!(ids.iter().all(|id| id.len() == 36) && ids[0][16..] != ids[1][16..], "80 bits are random: {ids:?}");
    }

    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    const BOOT: Duration = Duration::from_secs(100);

    #[test]
    fn a_board_that_wakes_in_1970_waits_and_goes_on_when_its_clock_is_set() {
        let floor = Floor::at(0, BOOT);
        assert!(floor.is_above(0) && floor.is_above(RELEASE_UNIX_MS - YEAR_MS));
        assert!(!floor.is_above(RELEASE_UNIX_MS + 1));
    }

    #[test]
    fn the_floor_rises_with_good_times_and_survives() {
        let floor = Floor::at(0, BOOT);
        floor.good_at(RELEASE_UNIX_MS + YEAR_MS, BOOT + Duration::from_millis(10 * FLOOR_SLACK_MS));
        let kept = floor.to_keep().unwrap();
        assert_eq!((kept, floor.to_keep()), (RELEASE_UNIX_MS + 10 * FLOOR_SLACK_MS, None));
        let after = Floor::at(kept, BOOT);
        assert!(after.is_above(RELEASE_UNIX_MS) && !after.is_above(kept));
    }

    #[test]
    fn a_clock_that_was_years_ahead_keeps_nobody_waiting_for_years() {
        let floor = Floor::at(0, BOOT);
        floor.good_at(RELEASE_UNIX_MS + 10 * YEAR_MS, BOOT + Duration::from_mins(1));
        assert!(!floor.is_above(RELEASE_UNIX_MS + YEAR_MS));
    }

    #[test]
    fn an_hour_back_is_a_clock_set_right() {
        let floor = Floor::at(RELEASE_UNIX_MS + YEAR_MS, BOOT);
        assert!(!floor.is_above(RELEASE_UNIX_MS + YEAR_MS - 3_600_000));
    }
}
