//! Files of the data folder: the lock, and bodies too large for a row.
//!
//! Owns names, fsyncs and removal; never touches SQLite and never runs on the writer thread while it writes.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use super::SpoolError;
use crate::body::{Body, BodyFile};

/// Above this a body is a file. SQLite writes each byte about twice (WAL, then database), a file once; below it
/// the file's two extra syncs (its own and the folder's) cost more than the doubled bytes.
pub(super) const INLINE_MAX: usize = 64 * 1024;

// A body that fits into a row is one piece of memory.
const _: () = assert!(INLINE_MAX <= crate::body::PIECE_BYTES);

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Makes the folders and takes the lock, which lasts as long as the returned file.
pub(super) fn take(data_dir: &Path) -> Result<File, SpoolError> {
    let above = to_sync(data_dir);
    DirBuilder::new().recursive(true).mode(0o700).create(bodies(data_dir))?;
    let file = private().create(true).truncate(false).open(lock(data_dir))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(SpoolError::Busy),
        Err(e) => return Err(std::io::Error::from(e).into()),
    }
    // Made here so that it is private from its first byte; SQLite takes an empty file as a new database.
    make_database(data_dir)?;
    for dir in above {
        sync_name(dir)?;
    }
    Ok(file)
}

/// Takes the lock of a folder that a daemon has used, and makes nothing; `None` where there is no lock to take.
pub fn hold(data_dir: &Path) -> Result<Option<File>, SpoolError> {
    let file = match File::open(lock(data_dir)) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(SpoolError::Busy),
        Err(e) => Err(std::io::Error::from(e).into()),
    }
}

/// An empty database, where there is none.
pub(super) fn make_database(data_dir: &Path) -> Result<(), SpoolError> {
    private().create(true).truncate(false).open(database(data_dir))?;
    sync_dir(data_dir)
}

/// The latest start that any body's name tells of.
pub(super) fn latest_start(data_dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(bodies(data_dir)) else { return 0 };
    entries.flatten().filter_map(|e| start_of(&e.file_name().to_string_lossy())).max().unwrap_or(0)
}

/// The folders that hold a name on the way to the data folder which may be new: the one above it in any case, because an
/// earlier start may have ended before it came to sync it.
fn to_sync(data_dir: &Path) -> Vec<&Path> {
    let made = |dir: &Path| dir.file_name().is_some() && !dir.exists();
    let parents = data_dir.ancestors().skip(1).map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    let mut all = Vec::new();
    for dir in parents {
        all.push(dir);
        if !made(dir) {
            break;
        }
    }
    all
}

/// Above the data folder we may be allowed to pass and not to read; whoever made the folder there answers for it.
fn sync_name(dir: &Path) -> Result<(), SpoolError> {
    match sync_dir(dir) {
        Err(SpoolError::Permission(_)) => Ok(()),
        synced => synced,
    }
}

/// The lock's path.
pub(super) fn lock(data_dir: &Path) -> PathBuf {
    data_dir.join("holdfast.lock")
}

/// The database's path.
pub(super) fn database(data_dir: &Path) -> PathBuf {
    data_dir.join("spool.db")
}

/// The write-ahead log's path.
pub(super) fn wal(data_dir: &Path) -> PathBuf {
    data_dir.join("spool.db-wal")
}

/// The folder of large bodies.
pub(super) fn bodies(data_dir: &Path) -> PathBuf {
    data_dir.join("bodies")
}

/// SHA-256, the checksum each body carries.
pub(super) fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// A durable file that no row names yet; dropped without [`Staged::keep`], it goes with the last who reads it.
#[derive(Debug)]
pub(super) struct Staged(pub(super) Arc<BodyFile>);

impl Staged {
    /// The name a row keeps.
    pub(super) fn name(&self) -> &str {
        self.0.name()
    }

    /// A row names it now.
    pub(super) fn keep(self) {
        self.0.keep();
    }
}

/// Opens a body's file and reads it through; `None` where it is gone or its blocks cannot be read.
pub(super) fn open_body(data_dir: &Path, name: &str) -> Result<Option<Body>, SpoolError> {
    present(Body::open(&bodies(data_dir), name))
}

/// Reads a body file; `None` where it is gone or its blocks cannot be read. Other errors (such as too many open
/// files) say nothing about the body and pass.
pub(super) fn read(data_dir: &Path, name: &str) -> Result<Option<Bytes>, SpoolError> {
    present(std::fs::read(bodies(data_dir).join(name)).map(Bytes::from))
}

fn present<T>(read: std::io::Result<T>) -> Result<Option<T>, SpoolError> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(EIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Removes a body file; one that is gone already is fine, one that stays is an orphan for the next start.
pub(super) fn remove(data_dir: &Path, name: &str) {
    let _ = std::fs::remove_file(bodies(data_dir).join(name));
}

/// The number of the start that wrote a file of this name.
pub(super) fn start_of(name: &str) -> Option<u64> {
    name.split_once('-')?.0.parse().ok()
}

/// A file system's room in bytes.
pub(super) struct Space {
    /// All of it.
    pub(super) size: u64,
    /// Free for us.
    pub(super) free: u64,
}

/// The room on the data folder's file system.
pub(super) fn space(data_dir: &Path) -> Result<Space, SpoolError> {
    let fs = rustix::fs::statvfs(data_dir).map_err(std::io::Error::from)?;
    Ok(Space { size: fs.f_blocks.saturating_mul(fs.f_frsize), free: fs.f_bavail.saturating_mul(fs.f_frsize) })
}

/// Free bytes for us there.
pub(super) fn free_bytes(data_dir: &Path) -> Result<u64, SpoolError> {
    Ok(space(data_dir)?.free)
}

pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), SpoolError> {
    Ok(File::open(dir)?.sync_all()?)
}
