//! When a message is sent again: doubled waits with a little chance, so that two devices do not keep colliding.

/// Longest wait between two sends.
const WAIT_MAX_MS: u64 = 8_000;

/// Chance for the spread of repeats; its quality does not matter, only that two devices differ.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance(u32);

impl Chance {
    pub(super) fn new(seed: u32) -> Self {
        Self(seed | 1)
    }

    /// `wait_ms` with up to a quarter more or less.
    fn spread(&mut self, wait_ms: u64) -> u64 {
        // Xorshift, 32 bits (G. Marsaglia, "Xorshift RNGs", 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        let quarter = wait_ms / 4;
        // A share of twice a quarter, in 65,536 steps.
        let chosen = quarter.saturating_mul(2).saturating_mul(u64::from(self.0 & 0xFFFF)) >> 16;
        wait_ms.saturating_sub(quarter).saturating_add(chosen)
    }
}

/// One message's timer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Repeat {
    due_ms: u64,
    wait_ms: u64,
    sends: u8,
}

impl Repeat {
    /// To be sent at once, as if for the first time.
    pub(super) fn now(now_ms: u64) -> Self {
        Self { due_ms: now_ms, wait_ms: 0, sends: 0 }
    }

    /// To be sent again, not before so long.
    pub(super) fn after(self, now_ms: u64, wait_ms: u64) -> Self {
        Self { due_ms: now_ms.saturating_add(wait_ms), wait_ms: 0, ..self }
    }

    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        now_ms >= self.due_ms
    }

    pub(super) fn due_ms(&self) -> u64 {
        self.due_ms
    }

    /// Whether it was sent before.
    pub(super) fn is_repeat(&self) -> bool {
        self.sends > 0
    }

    /// How often it was sent without an answer; stays at 255.
    pub(super) fn sends(&self) -> u8 {
        self.sends
    }

    /// It is being sent now; the next time follows after `first_ms`, then twice that, and so on.
    pub(super) fn sent(&mut self, now_ms: u64, first_ms: u64, chance: &mut Chance) {
        self.wait_ms = if self.wait_ms == 0 { first_ms } else { self.wait_ms.saturating_mul(2).min(WAIT_MAX_MS) };
        self.due_ms = now_ms.saturating_add(chance.spread(self.wait_ms));
        self.sends = self.sends.saturating_add(1);
    }
}
