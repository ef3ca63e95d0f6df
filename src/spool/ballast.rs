//! A file that only takes up room, to be given up when an outcome needs it.
//!
//! Owns the room for outcomes on a full disk; never given up for new requests.

use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::{SpoolError, files};
use crate::plant::{self, Fault};

/// As much as the answers of a full drain's window and a write-ahead log of usual size (4 MiB) take.
const BYTES_MAX: u64 = 8 << 20;
/// On a small file system not more than one part in this many of what is free.
const PART: u64 = 8;
/// What the drain leaves when it is given up, beside what folding the log in may take, so that a purge and the next start find room.
const LEFT_BYTES: u64 = 4 << 20;
/// A file system smaller than this has no such room to spare.
const SMALL_BYTES: u64 = 64 << 20;
/// Below this it would hold back no answer worth the name.
const BYTES_MIN: u64 = 64 << 10;

/// The file, where it stands.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    bytes: u64,
}

impl Ballast {
    /// Takes over the file an earlier process left.
    pub(super) fn find(data_dir: &Path) -> Ballast {
        let path = data_dir.join("ballast");
        let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        Ballast { path, bytes }
    }

    /// Bytes that answers may take on a file system with so much room, while the write-ahead log has so many.
    pub(super) fn for_answers(&self, fs: &files::Space, log_bytes: u64) -> u64 {
        if self.bytes > 0 || fs.size < SMALL_BYTES {
            return fs.free.saturating_add(self.bytes);
        }
        fs.free.saturating_sub(LEFT_BYTES).saturating_sub(log_bytes)
    }

    /// Makes the file where it is missing and `floor` bytes stay free beside it.
    pub(super) fn make(&mut self, floor: u64) {
        if self.bytes > 0 || plant::is(Fault::NoBallast) {
            return;
        }
        let Some(dir) = self.path.parent() else { return };
        let Ok(files::Space { free, .. }) = files::space(dir) else { return };
        let bytes = (free / PART).min(BYTES_MAX);
        if bytes < BYTES_MIN || free - bytes < floor {
            return;
        }
        // Not having it is no fault: a file system that cannot reserve room has none to promise.
        match self.reserve(bytes) {
            Ok(()) => self.bytes = bytes,
            Err(_) => drop(std::fs::remove_file(&self.path)),
        }
    }

    fn reserve(&self, bytes: u64) -> Result<(), SpoolError> {
        let file = files::private().create(true).truncate(true).open(&self.path)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes).map_err(std::io::Error::from)?;
        Ok(file.sync_all()?)
    }

    /// Gives the room up; says whether there was any.
    pub(super) fn give_up(&mut self) -> bool {
        if self.bytes == 0 {
            return false;
        }
        tracing::warn!(bytes = self.bytes, "the disk is full: the reserve for outcomes is given up");
        let gone = std::fs::remove_file(&self.path).is_ok();
        self.bytes = 0;
        gone
    }
}
