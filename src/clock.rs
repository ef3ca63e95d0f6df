//! The only reader of clocks and of chance: monotonic, powered-on and Unix time, random identifiers.
//!
//! Everything else takes `now` as an argument, so a week of outages runs in a test in milliseconds.

use std::time::{Duration, Instant};

/// A monotonic instant, for tasks that measure how long something took.
#[expect(clippy::disallowed_methods, reason = "the one reader of clocks")]
pub fn now() -> Instant {
    Instant::now()
}

/// Unix time in milliseconds; may be wrong or jump on boards without a clock. For showing only.
#[expect(clippy::disallowed_methods, reason = "the one reader of clocks")]
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Time since this machine booted, suspended time included (`CLOCK_BOOTTIME`).
pub fn since_boot() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// A name for this boot of the machine; the same in every process until the next boot.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// A random number from the operating system.
pub fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    // Without a random source a fixed-per-instant value still keeps the gateway serving.
    if getrandom::fill(&mut bytes).is_err() {
        return since_boot().as_nanos() as u64;
    }
    u64::from_le_bytes(bytes)
}

/// A fresh request id: `req_` and 32 hexadecimal digits.
pub fn request_id() -> String {
    format!("req_{:016x}{:016x}", random_u64(), random_u64())
}
