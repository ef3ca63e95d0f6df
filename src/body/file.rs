//! A body that is a file: written once, readable while it lives, removed unless a row names it.
//!
//! Owns the temporary name, the steps that make it durable, and the removal. Knows nothing of requests.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use rustix::io::ReadWriteFlags;

use crate::clock;
use crate::plant::{self, Fault};

/// A body's file. The open descriptor keeps it readable when its name is gone.
#[derive(Debug)]
pub struct BodyFile {
    file: File,
    len: u64,
    name: String,
    path: Mutex<PathBuf>,
    durable: AtomicBool,
    kept: AtomicBool,
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Writing {
    file: BodyFile,
}

impl Writing {
    /// Begins one in `dir`. Its name starts with the number of this start, so that cleaning up after earlier starts
    /// never meets it.
    pub(super) fn begin(dir: &Path, start: u64) -> io::Result<Writing> {
        let name = format!("{start}-{:016x}{:016x}", clock::random_u64(), clock::random_u64());
        let path = dir.join(format!("{name}.tmp"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let path = Mutex::new(path);
        let (durable, kept) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Writing { file: BodyFile { file, len: 0, name, path, durable, kept } })
    }

    pub(super) fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        (&self.file.file).write_all(piece)?;
        self.file.len += piece.len() as u64;
        Ok(())
    }

    pub(super) fn finish(self) -> BodyFile {
        self.file
    }
}

impl BodyFile {
    /// Opens one that a row names; it is never removed from here.
    pub(super) fn open(dir: &Path, name: &str) -> io::Result<BodyFile> {
        let path = dir.join(name);
        let file = File::open(&path)?;
        let len = file.metadata()?.len();
        let (durable, kept) = (AtomicBool::new(true), AtomicBool::new(true));
        Ok(BodyFile { file, len, name: name.to_owned(), path: Mutex::new(path), durable, kept })
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The name that a row keeps; the file has it once it is durable.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Syncs the file, gives it its name, syncs the folder: what survives a power cut. Blocks.
    pub fn make_durable(&self) -> io::Result<()> {
        let mut path = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        if self.durable.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.file.sync_all() {
            Err(_) if plant::is(Fault::FsyncRetriedAfterEio) => self.file.sync_all()?,
            synced => synced?,
        }
        let named = path.with_file_name(&self.name);
        std::fs::rename(&*path, &named)?;
        *path = named;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        self.durable.store(true, Ordering::Release);
        Ok(())
    }

    /// A row names it now: it stays.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// Whether a row names it.
    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }

    /// So many bytes from an offset, as far as the kernel has them in its cache; `None` where a disk would have to be asked.
    pub(super) fn read_cached(&self, offset: u64, bytes: usize) -> Option<Bytes> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut buffer = BytesMut::zeroed(bytes.min(left));
        let mut into = [IoSliceMut::new(&mut buffer)];
        let read = rustix::io::preadv2(&self.file, &mut into, offset, ReadWriteFlags::NOWAIT).ok()?;
        buffer.truncate(read);
        (read > 0).then(|| buffer.freeze())
    }

    /// So many bytes from an offset, fewer at the end. Blocks.
    pub(super) fn read(&self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut buffer = BytesMut::zeroed(bytes.min(left));
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.freeze())
    }
}

impl Drop for BodyFile {
    fn drop(&mut self) {
        if !self.is_kept() {
            // A file that stays is an orphan, and the next start removes it.
            let _ = std::fs::remove_file(&*self.path.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}
