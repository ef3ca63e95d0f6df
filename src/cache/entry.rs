//! The name of a kept answer's file: all that the table needs, and a sum that finds every flipped bit.
//!
//! Owns the name's form. The file itself holds the answer and nothing else. Reads and writes no file.

use sha2::{Digest, Sha256};

use super::key::Key;
use super::shelf::Entry;

/// The sum that goes into the name: over the key, the time and the SHA-256 of the answer, so that nothing of the three
/// can be another one's. Half a SHA-256 is enough against disks.
pub fn sum(key: &Key, stored_ms: u64, answer: &[u8; 32]) -> u128 {
    let mut sum = Sha256::new();
    sum.update(key.0);
    sum.update(stored_ms.to_le_bytes());
    sum.update(answer);
    first_half(sum)
}

fn first_half(sum: Sha256) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&sum.finalize()[..16]);
    u128::from_be_bytes(half)
}

/// The file's name: a start reads names and opens no file.
pub fn name(key: &Key, entry: &Entry) -> String {
    let told = format!("{}.{:x}.{:x}.{:032x}", key.hex(), entry.stored_ms, entry.bytes, entry.sum);
    let check = first_half(Sha256::new_with_prefix(&told)) as u32;
    format!("{told}.{check:08x}")
}

/// The same read back, where it is one.
pub fn from_name(name: &str) -> Option<(Key, Entry)> {
    let mut parts = name.split('.');
    let key = Key::from_hex(parts.next()?)?;
    let stored_ms = u64::from_str_radix(parts.next()?, 16).ok()?;
    let bytes = u64::from_str_radix(parts.next()?, 16).ok()?;
    let sum = u128::from_str_radix(parts.next()?, 16).ok()?;
    let entry = Entry { stored_ms, bytes, sum };
    (self::name(&key, &entry) == name).then_some((key, entry))
}
