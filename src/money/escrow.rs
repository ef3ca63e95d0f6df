//! The file that says how much of a day's cap is taken: `money/escrow`, replaced whole and synced before money is spent.
//!
//! Owns its form. Three equal lines, each with its checksum: one flipped bit costs nothing, also between two lines. Decides nothing.

use std::fs;
use std::io;
use std::path::Path;

use crate::control::money::Escrow;
use crate::durable::replace;

const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
/// First words of each line, with the version of the form.
const HEAD: &str = "holdfast-escrow 1";

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A line that holds.
    Escrow(Escrow),
    /// No file.
    Nothing,
    /// A file of which no line holds, or that cannot be read.
    Damaged,
}

pub(super) fn read(path: &Path) -> Found {
    match fs::read(path) {
        Ok(bytes) => {
            // Where they differ, the one that has more taken is the safe one.
            let lines = String::from_utf8_lossy(&bytes);
            let best = lines.lines().filter_map(parse).max_by_key(|one| (one.day, one.taken));
            best.map_or(Found::Damaged, Found::Escrow)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
        Err(_) => Found::Damaged,
    }
}

pub(super) fn write(path: &Path, escrow: &Escrow) -> io::Result<()> {
    let said = format!("{HEAD} day={} taken={} short={}", escrow.day, escrow.taken, escrow.short);
    let line = format!("{said} crc={:08x}\n", CRC.checksum(said.as_bytes()));
    replace(path, line.repeat(3).as_bytes())
}

fn parse(line: &str) -> Option<Escrow> {
    let (said, sum) = line.rsplit_once(" crc=")?;
    if u32::from_str_radix(sum, 16).ok()? != CRC.checksum(said.as_bytes()) {
        return None;
    }
    let mut numbers = said.strip_prefix(HEAD)?.split_whitespace().map(|word| {
        let (_, number) = word.split_once('=')?;
        number.parse::<u64>().ok()
    });
    let mut next = || numbers.next().flatten();
    Some(Escrow { day: next()?, taken: next()?, short: next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flipped_bit_costs_nothing_and_a_worn_file_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("escrow");
        assert_eq!(read(&path), Found::Nothing);
        let escrow = Escrow { day: 20_000, taken: 5_000_000_000, short: 7 };
        write(&path, &escrow).unwrap();
        assert_eq!(read(&path), Found::Escrow(escrow));
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut worn = good.clone();
            worn[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &worn).unwrap();
            assert_eq!(read(&path), Found::Escrow(escrow), "bit {bit}");
        }
        for worn in [&b""[..], b"\xff\xff", b"holdfast-escrow 1 day=1 taken=1 short=0 crc=00000000\n"] {
            fs::write(&path, worn).unwrap();
            assert_eq!(read(&path), Found::Damaged);
        }
    }
}
