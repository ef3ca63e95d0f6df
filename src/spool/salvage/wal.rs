//! The write-ahead log, frame by frame: which ones SQLite applies, and which it would drop without a word.
//!
//! Owns the arithmetic of salts and checksums; never reads what stands on a page.

use super::images::Source;
use crate::spool::schema::PAGE_SIZES;

/// Bytes before the first frame.
pub(super) const HEADER: u64 = 32;
/// Bytes before each page image.
pub(super) const FRAME_HEADER: u64 = 24;
const MAGIC: u32 = 0x377f_0682;
/// Most frames looked at: 4 GiB of log, a thousand times what a checkpoint leaves.
const FRAMES_MAX: u64 = 1 << 20;
/// Two generations of a log differ in about half of 64 salt bits; this few are damage.
const SALT_BITS_MAX: u32 = 2;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// SQLite reads it.
    Applied,
    /// It was committed, as far as can be seen, and SQLite ignores it because of damage before or in it.
    Dropped,
    /// The rest of a transaction that never committed.
    Unfinished,
}

/// One page image of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// The page it is an image of.
    pub(super) page: u32,
    /// What becomes of it.
    pub(super) fate: Fate,
    /// Its checksum, continued from the frame before, holds.
    pub(super) whole: bool,
}

/// The frames of the log's present generation, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    /// Bytes of a page.
    pub(super) page_size: usize,
    /// From the front of the log to its first frame of an earlier generation.
    pub(super) frames: Vec<Frame>,
}

impl Log {
    /// How many frames SQLite drops.
    pub(super) fn dropped(&self) -> u64 {
        self.frames.iter().filter(|f| f.fate == Fate::Dropped).count() as u64
    }
}

/// What the log's first 32 bytes say.
struct Head {
    sound: bool,
    big_endian: bool,
    salts: u64,
    sums: [u32; 2],
}

/// A frame as it stands in the file.
struct Raw {
    page: u32,
    commit: bool,
    salts: u64,
    sums: [u32; 2],
    reckoned: [u32; 2],
}

/// Reads a whole log; an empty or missing one has no frames. `page_size` is used where the log does not say it.
pub(super) fn scan(source: &dyn Source, page_size: usize) -> Log {
    let mut bytes = [0u8; HEADER as usize];
    if source.len() < HEADER {
        return Log { page_size, frames: Vec::new() };
    }
    if !source.fill(0, &mut bytes) {
        // As good as a damaged header: the frames behind it have salts of their own.
        bytes.fill(0);
    }
    let (head, said) = head(&bytes);
    let page_size = said.or_else(|| common_size(source)).unwrap_or(page_size);
    let size = FRAME_HEADER + page_size as u64;
    let count = ((source.len() - HEADER) / size).min(FRAMES_MAX);
    let salts = if head.sound { head.salts } else { common_salts(source, size, count).unwrap_or(head.salts) };
    let mut buffer = vec![0u8; size as usize];
    let mut before = head.sums;
    let mut judge = Judge { linked: head.sound, frames: Vec::new(), committed: 0, last: 0 };
    for n in 0..count {
        if !source.fill(HEADER + n * size, &mut buffer) {
            // Unreadable blocks: the frame's page is unknown, those behind it are not.
            judge.unreadable();
            continue;
        }
        let raw = raw(&buffer, before, head.big_endian);
        if (raw.salts ^ salts).count_ones() > SALT_BITS_MAX {
            break;
        }
        before = raw.sums;
        judge.add(&raw, raw.salts == salts);
    }
    Log { page_size, frames: judge.verdict() }
}

/// Follows the chain as SQLite does, and goes on where SQLite stops.
struct Judge {
    linked: bool,
    frames: Vec<Frame>,
    /// Frames up to the last commit that SQLite sees.
    committed: usize,
    /// Frames up to the last one that ends a transaction, or could have before it was damaged.
    last: usize,
}

impl Judge {
    fn add(&mut self, raw: &Raw, salted: bool) {
        let whole = salted && raw.page != 0 && raw.sums == raw.reckoned;
        self.linked &= whole;
        self.frames.push(Frame { page: raw.page, fate: Fate::Unfinished, whole });
        if self.linked && raw.commit {
            self.committed = self.frames.len();
        }
        // A torn frame at the end is a power cut's, and ended nothing where it says so itself.
        if raw.commit || !salted {
            self.last = self.frames.len();
        }
    }

    fn unreadable(&mut self) {
        self.linked = false;
        self.frames.push(Frame { page: 0, fate: Fate::Unfinished, whole: false });
        self.last = self.frames.len();
    }

    fn verdict(mut self) -> Vec<Frame> {
        for (n, frame) in self.frames.iter_mut().enumerate() {
            if n < self.committed {
                frame.fate = Fate::Applied;
            } else if n < self.last {
                frame.fate = Fate::Dropped;
            }
        }
        self.frames
    }
}

fn head(bytes: &[u8; HEADER as usize]) -> (Head, Option<usize>) {
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let sums = [word(24), word(28)];
    // The last bit says in which order of bytes the sums are made; another flipped bit leaves it readable.
    let claimed = word(0) & 1 == 1;
    let holds = |big: bool| checksum([0, 0], &bytes[..24], big) == sums;
    let big_endian = if holds(!claimed) && !holds(claimed) { !claimed } else { claimed };
    let sound = word(0) & !1 == MAGIC && holds(claimed);
    let said = word(8) as usize;
    let size = (sound && said.is_power_of_two() && (512..=65536).contains(&said)).then_some(said);
    (Head { sound, big_endian, salts: u64::from(word(16)) << 32 | u64::from(word(20)), sums }, size)
}

/// The size of page with which the salts of the first two frames are the same, where the header does not tell.
fn common_size(source: &dyn Source) -> Option<usize> {
    let salts = |at: u64| {
        let mut bytes = [0u8; 8];
        source.fill(at + 8, &mut bytes).then(|| u64::from_be_bytes(bytes))
    };
    let first = salts(HEADER).filter(|salts| *salts != 0)?;
    let is_next = |size: &u64| {
        salts(HEADER + FRAME_HEADER + size).is_some_and(|next| (next ^ first).count_ones() <= SALT_BITS_MAX)
    };
    PAGE_SIZES.into_iter().find(is_next).map(|size| size as usize)
}

/// The salts of the log's front, where the header's own are not to be believed: two of the first three agree.
fn common_salts(source: &dyn Source, size: u64, count: u64) -> Option<u64> {
    let salts = |n: u64| {
        let mut bytes = [0u8; 8];
        source.fill(HEADER + n * size + 8, &mut bytes).then(|| u64::from_be_bytes(bytes))
    };
    let first: Vec<u64> = (0..count.min(3)).filter_map(salts).collect();
    let agreed = first.iter().find(|one| first.iter().filter(|other| other == one).count() > 1);
    agreed.or(first.first()).copied()
}

fn raw(frame: &[u8], before: [u32; 2], big_endian: bool) -> Raw {
    let word = |at: usize| super::pages::number(frame.get(at..).unwrap_or_default()).unwrap_or(0);
    let (header, page) = frame.split_at(FRAME_HEADER as usize);
    let reckon = |mark: u32| {
        let sums = checksum(before, &[&header[..4], &mark.to_be_bytes()].concat(), big_endian);
        checksum(sums, page, big_endian)
    };
    let (mark, sums) = (word(4), [word(16), word(20)]);
    let reckoned = reckon(mark);
    // One flipped bit may have taken away the mark of a commit.
    let was_commit = || reckoned != sums && (0..u32::BITS).any(|bit| reckon(1 << bit) == sums);
    Raw {
        page: word(0),
        commit: mark != 0 || was_commit(),
        salts: u64::from(word(8)) << 32 | u64::from(word(12)),
        sums,
        reckoned,
    }
}

/// SQLite's running sum over pairs of words.
fn checksum(start: [u32; 2], bytes: &[u8], big_endian: bool) -> [u32; 2] {
    let word = |b: &[u8]| {
        let b = [b[0], b[1], b[2], b[3]];
        if big_endian { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
    };
    bytes.chunks_exact(8).fold(start, |[a, b], pair| {
        let a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        [a, b.wrapping_add(word(&pair[4..])).wrapping_add(a)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;
    const FRAME: usize = FRAME_HEADER as usize + PAGE;

    /// A log of one image per mark; a mark that is not 0 ends a transaction.
    fn log_of(marks: &[u32]) -> Vec<u8> {
        let mut log = vec![0u8; HEADER as usize];
        for (at, word) in [(0, MAGIC), (4, 3_007_000), (8, PAGE as u32), (16, 0x1234_5678), (20, 0x9abc_def0)] {
            log[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        let mut sums = checksum([0, 0], &log[..24], false);
        put(&mut log, 24, sums);
        for (n, mark) in marks.iter().enumerate() {
            let begin = log.len();
            log.extend(n.wrapping_add(1).to_be_bytes().split_at(4).1);
            log.extend(mark.to_be_bytes());
            log.extend(log[16..24].to_vec());
            log.extend([0; 8]);
            log.extend((0..PAGE).map(|byte| (byte + n) as u8));
            sums = checksum(sums, &log[begin..begin + 8], false);
            sums = checksum(sums, &log[begin + FRAME_HEADER as usize..], false);
            put(&mut log, begin + 16, sums);
        }
        log
    }

    fn put(log: &mut [u8], at: usize, [a, b]: [u32; 2]) {
        log[at..at + 4].copy_from_slice(&a.to_be_bytes());
        log[at + 4..at + 8].copy_from_slice(&b.to_be_bytes());
    }

    fn fates(log: &[u8]) -> Vec<Fate> {
        scan(&log.to_vec(), PAGE).frames.iter().map(|frame| frame.fate).collect()
    }

    #[test]
    fn a_write_that_a_power_cut_tore_is_no_damage() {
        let mut log = log_of(&[0, 2, 0, 0]);
        assert_eq!(fates(&log), [Fate::Applied, Fate::Applied, Fate::Unfinished, Fate::Unfinished]);
        let half = log.len() - PAGE / 2;
        log[half..].fill(0);
        assert_eq!(fates(&log), [Fate::Applied, Fate::Applied, Fate::Unfinished, Fate::Unfinished]);
    }

    #[test]
    fn a_commit_is_known_with_any_one_bit_of_its_frame_flipped() {
        let sound = log_of(&[0, 2, 0, 4]);
        assert_eq!(fates(&sound), [Fate::Applied; 4]);
        let begin = HEADER as usize + 3 * FRAME;
        for byte in (begin..begin + 24).chain([begin + 100, begin + FRAME - 1]) {
            for bit in 0..8 {
                let mut log = sound.clone();
                log[byte] ^= 1 << bit;
                assert_eq!(fates(&log), [Fate::Applied, Fate::Applied, Fate::Dropped, Fate::Dropped], "{byte}.{bit}");
            }
        }
    }
}
