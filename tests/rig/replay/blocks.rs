//! A recorded disk: its writes, flushes and marks in one order, and what a power cut between two of them leaves of it.
//!
//! What was written before a flush that returned is there; of what came later each 4 KiB is there or not. Owns the log's format
//! (dm-log-writes, which qemu's `blklogwrites` writes: Documentation/admin-guide/device-mapper/log-writes.rst of the kernel); never
//! mounts anything.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::chance::Chance;
use crate::marks::{self, BLOCK};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
/// A write that lasts without a flush.
const FORCED: u64 = 2;
/// It names blocks and brings none.
const DISCARD: u64 = 4;
/// What arrives or does not: a file system's block.
const PIECE: usize = 4096;

/// One thing that happened to the disk.
#[derive(Debug, Clone)]
pub enum Event {
    /// Bytes of the log, at an offset of the disk.
    Write { at: u64, bytes: Range<usize>, lasting: bool },
    /// Everything before it is durable.
    Flush,
    /// What the driver was told.
    Mark(String),
}

/// What happens to that which was not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// All of it is lost.
    Dropped,
    /// Each piece arrived or did not.
    Subset,
    /// All arrived, but of the last write only some sectors.
    Torn,
}

impl Damage {
    /// Every one.
    pub const ALL: [Damage; 3] = [Damage::Dropped, Damage::Subset, Damage::Torn];
}

/// A log and its events.
pub struct Log {
    bytes: Vec<u8>,
    pub events: Vec<Event>,
}

impl Log {
    /// Reads a whole log. What is written from `marks_at` on are marks.
    pub fn read(path: &Path, marks_at: u64) -> io::Result<Log> {
        let bytes = std::fs::read(path)?;
        let wrong = |what: &str| io::Error::other(format!("no log of a disk: {what}"));
        let word = |at: usize| bytes.get(at..at + 8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
        if word(0) != Some(MAGIC) {
            return Err(wrong("another beginning"));
        }
        let sector = (word(24).unwrap_or(0) & 0xffff_ffff) as usize;
        if sector < BLOCK {
            return Err(wrong("no size of a sector"));
        }
        let (mut events, mut at) = (Vec::new(), sector);
        while let (Some(to), Some(sectors), Some(flags)) = (word(at), word(at + 8), word(at + 16)) {
            let data = at + sector;
            let len = if flags & DISCARD == 0 { sectors as usize * sector } else { 0 };
            if data + len > bytes.len() {
                break;
            }
            if flags & FLUSH != 0 {
                events.push(Event::Flush);
            }
            let to = to * sector as u64;
            if to >= marks_at && len > 0 {
                events.extend(bytes[data..data + len].chunks(BLOCK).map(|block| Event::Mark(marks::text(block))));
            } else if len > 0 {
                events.push(Event::Write { at: to, bytes: data..data + len, lasting: flags & FORCED != 0 });
            }
            at = data + len;
        }
        Ok(Log { bytes, events })
    }
}

/// The disk at one point of its log.
pub struct Disk<'a> {
    log: &'a Log,
    /// What is durable.
    image: File,
    pending: Vec<(u64, Range<usize>)>,
}

impl<'a> Disk<'a> {
    /// As it was before the first event; `image` is changed as time goes by.
    pub fn new(log: &'a Log, image: &Path) -> io::Result<Disk<'a>> {
        Ok(Disk { log, image: File::options().write(true).open(image)?, pending: Vec::new() })
    }

    /// Lets it happen.
    pub fn apply(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Write { at, bytes, lasting: true } => self.image.write_all_at(&self.log.bytes[bytes.clone()], *at),
            Event::Write { at, bytes, lasting: false } => {
                self.pending.push((*at, bytes.clone()));
                Ok(())
            }
            Event::Flush => {
                self.pending.drain(..).try_for_each(|(at, bytes)| self.image.write_all_at(&self.log.bytes[bytes], at))
            }
            Event::Mark(_) => Ok(()),
        }
    }

    /// Adds to a copy of the durable image what else arrived.
    pub fn damage(&self, copy: &Path, damage: Damage, chance: &mut Chance) -> io::Result<()> {
        let copy = File::options().write(true).open(copy)?;
        let last = self.pending.len().saturating_sub(1);
        for (n, (at, bytes)) in self.pending.iter().enumerate() {
            let size = if damage == Damage::Torn && n == last { BLOCK } else { PIECE };
            for from in bytes.clone().step_by(size) {
                let arrives = match damage {
                    Damage::Dropped => false,
                    Damage::Torn if n < last => true,
                    Damage::Subset | Damage::Torn => chance.one_in(2),
                };
                if arrives {
                    let piece = &self.log.bytes[from..(from + size).min(bytes.end)];
                    copy.write_all_at(piece, at + (from - bytes.start) as u64)?;
                }
            }
        }
        Ok(())
    }
}
