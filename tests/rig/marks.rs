//! Where the driver writes what it was told: lines of a file, or blocks of a disk that is recorded.
//!
//! On a disk a mark goes past the page cache and asks for no flush: it stands among the other writes at the moment it was
//! told, and makes nothing durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What a disk writes at once, and what a mark takes there.
pub const BLOCK: usize = 512;

/// The marks of one driver.
pub struct Marks {
    file: File,
    /// On a disk: where the next one goes.
    next: Option<u64>,
}

impl Marks {
    /// Lines after what the file holds; blocks from `disk_at` on where that is given.
    pub fn open(path: &Path, disk_at: Option<u64>) -> io::Result<Marks> {
        let mut options = File::options();
        match disk_at {
            None => options.create(true).append(true),
            Some(_) => options.write(true).custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed()),
        };
        Ok(Marks { file: options.open(path)?, next: disk_at })
    }

    /// One write, whole or not at all.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        let Some(at) = &mut self.next else {
            return io::Write::write_all(&mut self.file, format!("{text}\n").as_bytes());
        };
        // Direct writes come from a whole block of memory.
        let mut room = vec![0; 2 * BLOCK];
        let from = room.as_ptr().align_offset(BLOCK);
        let block = &mut room[from..from + BLOCK];
        block[..text.len()].copy_from_slice(text.as_bytes());
        self.file.write_all_at(block, *at)?;
        *at += BLOCK as u64;
        Ok(())
    }
}

/// The mark in a block.
pub fn text(block: &[u8]) -> String {
    String::from_utf8_lossy(block).trim_end_matches('\0').to_owned()
}
