//! The service clock: milliseconds this board has been powered on since the spool was made.
//!
//! Owns the arithmetic over reboots; never looks at wall time. While the board is off, or holdfast was not
//! running in an earlier boot, the clock stands still: a request can live longer than its time, never shorter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock;
use crate::plant::{self, Fault};

/// What was stored with the latest commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) boot_id: String,
    pub(super) boot_ms: u64,
    pub(super) powered_ms: u64,
}

/// A running service clock; clones tick together.
#[derive(Debug, Clone)]
pub(super) struct Powered {
    boot_id: Arc<str>,
    /// Powered-on time minus time since boot; constant within one boot.
    base_ms: i64,
    /// Only tests move it.
    skew_ms: Arc<AtomicU64>,
}

impl Powered {
    /// Resumes from the stored mark, as seen `boot_ms` after the start of boot `boot_id`.
    pub(super) fn resume(mark: &Mark, boot_id: &str, boot_ms: u64) -> Powered {
        let same_boot = !boot_id.is_empty() && mark.boot_id == boot_id;
        let missed = if same_boot { boot_ms.saturating_sub(mark.boot_ms) } else { 0 };
        let base_ms = (mark.powered_ms.saturating_add(missed) as i64).saturating_sub(boot_ms as i64);
        Powered { boot_id: boot_id.into(), base_ms, skew_ms: Arc::default() }
    }

    /// Resumes in the present boot.
    pub(super) fn resume_now(mark: &Mark) -> Powered {
        Powered::resume(mark, &clock::boot_id(), boot_ms())
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.mark().powered_ms
    }

    /// What to store.
    pub(super) fn mark(&self) -> Mark {
        if plant::is(Fault::WallClockTimers) {
            return Mark { boot_id: self.boot_id.to_string(), boot_ms: boot_ms(), powered_ms: clock::unix_ms() };
        }
        let boot_ms = boot_ms().saturating_add(self.skew_ms.load(Ordering::Relaxed));
        let powered_ms = boot_ms.checked_add_signed(self.base_ms).unwrap_or(0);
        Mark { boot_id: self.boot_id.to_string(), boot_ms, powered_ms }
    }

    #[cfg(test)]
    pub(super) fn advance(&self, ms: u64) {
        self.skew_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

fn boot_ms() -> u64 {
    clock::since_boot().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(boot_id: &str, boot_ms: u64, powered_ms: u64) -> Mark {
        Mark { boot_id: boot_id.into(), boot_ms, powered_ms }
    }

    fn at_resume(mark: &Mark, boot_id: &str, boot_ms: u64) -> i64 {
        Powered::resume(mark, boot_id, boot_ms).base_ms + boot_ms as i64
    }

    #[test]
    fn the_same_boot_adds_what_was_missed() {
        assert_eq!(at_resume(&mark("a", 1_000, 50_000), "a", 4_000), 53_000);
    }

    #[test]
    fn another_boot_adds_nothing() {
        assert_eq!(at_resume(&mark("a", 1_000, 50_000), "b", 9_000_000), 50_000);
    }

    #[test]
    fn an_unknown_boot_is_never_the_same() {
        assert_eq!(at_resume(&mark("", 1_000, 50_000), "", 4_000), 50_000);
    }
}
