//! How many new requests one device may make in a time.
//!
//! A pure value with explicit time. Repeats cost nothing: a device that repeats does what it must.

use std::collections::HashMap;

/// New requests of one device per second, in the long run.
const PER_SECOND: u64 = 10;
/// How many may come at once: all that a device may have open, and some that want no result.
const BURST: u64 = 64;
/// Devices remembered: more than stand on any line; beyond it all begin anew.
const DEVICES_MAX: usize = 1024;

/// One bucket per device, in thousandths of a request.
#[derive(Debug, Default)]
pub(super) struct Rate {
    devices: HashMap<String, (u64, u64)>,
}

impl Rate {
    /// Takes one, or says after how many milliseconds there is one.
    pub(super) fn take(&mut self, uid: &str, now_ms: u64) -> Result<(), u32> {
        if self.devices.len() >= DEVICES_MAX && !self.devices.contains_key(uid) {
            self.devices.clear();
        }
        let (level, at) = self.devices.entry(uid.to_owned()).or_insert((BURST * 1000, now_ms));
        *level = (*level + now_ms.saturating_sub(*at) * PER_SECOND).min(BURST * 1000);
        *at = now_ms;
        if *level < 1000 {
            return Err(((1000 - *level) / PER_SECOND) as u32 + 1);
        }
        *level -= 1000;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_a_flood_waits_by_itself() {
        let mut rate = Rate::default();
        assert!((0..BURST).all(|_| rate.take("a", 1_000).is_ok()));
        assert_eq!(rate.take("a", 1_000), Err(101));
        assert!(rate.take("b", 1_000).is_ok(), "another device is not touched by it");
        assert!(rate.take("a", 1_101).is_ok());
        assert!(rate.take("a", 1_101).is_err());
    }
}
