//! Chance that repeats from its seed, and bodies that are known by their number.

/// xorshift.
pub struct Chance(u64);

impl Chance {
    /// From any seed; nought would stay nought.
    pub fn new(seed: u64) -> Chance {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        chance.next();
        chance
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`, which is not nought.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Bytes that nobody can mistake for another request's.
pub fn body(n: u64, size: usize) -> Vec<u8> {
    let mut chance = Chance::new(n + 1);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&chance.next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
