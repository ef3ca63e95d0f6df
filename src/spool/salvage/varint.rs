//! SQLite's integers of one to nine bytes.
//!
//! Owns their decoding; never reads past the bytes it was given.

/// Most bytes one takes.
const BYTES_MAX: usize = 9;

/// The number at the front and the bytes it took; `None` where the bytes end before it does.
pub(super) fn read(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().take(BYTES_MAX).enumerate() {
        if at + 1 == BYTES_MAX {
            return Some((value << 8 | u64::from(*byte), BYTES_MAX));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    type Case = (&'static [u8], Option<(u64, usize)>);

    #[test]
    fn numbers_of_every_length_are_read() {
        let cases: [Case; 7] = [
            (&[], None),
            (&[0x00], Some((0, 1))),
            (&[0x7f, 0xff], Some((127, 1))),
            (&[0x81, 0x00], Some((128, 2))),
            (&[0x81], None),
            (&[0xff; 9], Some((u64::MAX, 9))),
            (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x05, 0x09], Some((5, 9))),
        ];
        for (bytes, expected) in cases {
            assert_eq!(read(bytes), expected, "{bytes:x?}");
        }
    }
}
