//! What a simulated line does to frames: loses, flips and doubles some of them.
//!
//! Owns chance from a seed; works on whole frames, so that a percentage means what it says.

/// Faults in percent of the frames.
#[derive(Debug, Clone, Copy, Default)]
pub struct BadLine {
    loss: u8,
    flip: u8,
    duplicate: u8,
    state: u64,
}

impl BadLine {
    /// The same faults again from the same seed.
    pub fn new(loss: u8, flip: u8, duplicate: u8, seed: u64) -> BadLine {
        BadLine { loss, flip, duplicate, state: seed | 1 }
    }

    /// What becomes of a frame: nothing, itself, two of it, another.
    pub(super) fn carry(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        if self.hits(self.loss) {
            return Vec::new();
        }
        if self.hits(self.flip) && !frame.is_empty() {
            let at = self.below(frame.len() as u64) as usize;
            frame[at] ^= 1 << self.below(8);
        }
        if self.hits(self.duplicate) {
            frame.extend_from_within(..);
        }
        frame
    }

    fn hits(&mut self, percent: u8) -> bool {
        percent > 0 && self.below(100) < u64::from(percent)
    }

    /// Xorshift (G. Marsaglia): enough for noise.
    fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentages_are_kept() {
        let mut bad = BadLine::new(20, 0, 10, 7);
        let carried: Vec<usize> = (0..10_000).map(|_| bad.carry(b"frame").len()).collect();
        let count = |length: usize| carried.iter().filter(|seen| **seen == length).count();
        assert!((1_800..2_200).contains(&count(0)), "{}", count(0));
        assert!((650..950).contains(&count(10)), "{}", count(10));
        let mut flips = BadLine::new(0, 50, 0, 7);
        let flipped = (0..1_000).filter(|_| flips.carry(b"frame") != b"frame").count();
        assert!((430..570).contains(&flipped), "{flipped}");
        assert_eq!(BadLine::default().carry(b"frame"), b"frame");
    }
}
