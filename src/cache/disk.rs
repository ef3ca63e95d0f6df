//! The cache's folder: one thread that writes and removes, and the reading of one answer.
//!
//! Owns files, their mode and what a disk in trouble means: nothing new is kept for a while, and one log line. Nobody
//! waits for it; nothing is synced, since a lost answer is asked for again.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::entry;
use super::key::Key;
use super::shelf::Entry;
use super::{Table, Time};
use crate::body::{Body, PIECE_BYTES};
use crate::clock;
use crate::plant::{self, Fault};

/// How long nothing new is kept after the disk took nothing: a full disk is looked at again, a dying one not hammered.
const REST_MS: u64 = 600_000;
/// How often what is too old leaves, also where nothing new comes.
const TIDY_EVERY: Duration = Duration::from_mins(10);

/// What the thread is told. Unbounded by type, bounded by use: answers on their way count in the table's own bound, and
/// each removal belongs to one entry.
pub(super) enum Job {
    /// Keep this answer; these had to leave for it.
    Write(Key, Entry, Bytes, Vec<(Key, Entry)>),
    /// These left.
    Remove(Vec<(Key, Entry)>),
    /// Say when everything before is done.
    Flush(oneshot::Sender<()>),
}

/// The folder, as the thread and the readers see it.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// Bytes of the file system that stay free for the spool.
    pub(super) min_free: u64,
    /// Time since boot until which nothing new is kept; 0 while all is well.
    pub(super) rests_until_ms: AtomicU64,
}

fn boot_ms() -> u64 {
    clock::since_boot().as_millis() as u64
}

impl Folder {
    /// Makes the folder, or takes it over; answers hold what people asked, so nobody else may look.
    pub(super) fn open(path: PathBuf, min_free: u64) -> io::Result<Folder> {
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        if std::fs::metadata(&path)?.permissions().mode() & 0o777 != 0o700 {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700))?;
        }
        Ok(Folder { path, min_free, rests_until_ms: AtomicU64::new(0) })
    }

    /// What is there by its names; what has another name is removed. Opens no file.
    pub(super) fn list(&self) -> io::Result<Vec<(Key, Entry)>> {
        let mut found = Vec::new();
        for file in std::fs::read_dir(&self.path)? {
            let name = file?.file_name();
            match name.to_str().and_then(entry::from_name) {
                Some(entry) => found.push(entry),
                None => remove(&self.path.join(name)),
            }
        }
        found.sort_by_key(|(key, entry)| (entry.stored_ms, *key));
        Ok(found)
    }

    pub(super) fn is_resting(&self) -> bool {
        let until = self.rests_until_ms.load(Ordering::Acquire);
        until > 0 && boot_ms() < until
    }

    /// Reads one answer and believes it only if every byte is as it was kept. Blocks.
    pub(super) fn read(&self, key: &Key, entry: &Entry) -> io::Result<Body> {
        let name = entry::name(key, entry);
        let body = if entry.bytes <= PIECE_BYTES as u64 {
            Body::from(std::fs::read(self.path.join(name))?)
        } else {
            Body::open(&self.path, &name)?
        };
        let good = body.len() == entry.bytes && entry::sum(key, entry.stored_ms, &body.hash()) == entry.sum;
        if good || plant::is(Fault::CacheBelievesDamage) { Ok(body) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn write(&self, key: &Key, entry: &Entry, answer: &[u8]) -> io::Result<()> {
        self.check_space(entry.bytes)?;
        let path = self.path.join(entry::name(key, entry));
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = written.and_then(|mut file: File| file.write_all(answer));
        if written.is_err() {
            remove(&path);
        }
        written
    }

    /// The spool comes first: what it keeps free is not the cache's.
    fn check_space(&self, bytes: u64) -> io::Result<()> {
        let fs = rustix::fs::statvfs(&self.path)?;
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        if free < self.min_free.saturating_add(bytes) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    pub(super) fn forget(&self, gone: &[(Key, Entry)]) {
        for (key, entry) in gone {
            remove(&self.path.join(entry::name(key, entry)));
        }
    }
}

/// A file that stays is found by the next start.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// An entry for an answer that came just now.
pub(super) fn entry_of(key: &Key, stored_ms: u64, answer: &[u8]) -> Entry {
    let sum = entry::sum(key, stored_ms, &Sha256::digest(answer).into());
    Entry { stored_ms, bytes: answer.len() as u64, sum }
}

/// The thread.
pub(super) struct Writer {
    pub(super) folder: Arc<Folder>,
    pub(super) table: Arc<Mutex<Table>>,
    pub(super) jobs: Receiver<Job>,
    pub(super) time: Time,
    pub(super) in_trouble: bool,
}

impl Writer {
    /// Runs until the last handle is gone.
    pub(super) fn run(mut self) {
        loop {
            match self.jobs.recv_timeout(TIDY_EVERY) {
                Ok(Job::Write(key, entry, answer, gone)) => {
                    self.folder.forget(&gone);
                    self.write(&key, &entry, &answer);
                }
                Ok(Job::Remove(gone)) => self.folder.forget(&gone),
                Ok(Job::Flush(done)) => {
                    // Whoever asked may have given up waiting.
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => self.tidy(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tidy(&self) {
        let gone = self.table.lock().unwrap_or_else(PoisonError::into_inner).shelf.expire(self.time.now());
        self.folder.forget(&gone);
    }

    fn write(&mut self, key: &Key, entry: &Entry, answer: &[u8]) {
        let resting = self.folder.is_resting();
        let written = if resting { Ok(()) } else { self.folder.write(key, entry, answer) };
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if resting || written.is_err() {
            table.shelf.remove_this(key, entry);
        }
        table.written(key, entry);
        drop(table);
        match written {
            Err(error) => self.trouble(&error),
            Ok(()) if !resting && self.in_trouble => {
                self.in_trouble = false;
                self.folder.rests_until_ms.store(0, Ordering::Release);
                tracing::info!("the cache keeps answers again");
            }
            Ok(()) => {}
        }
    }

    fn trouble(&mut self, error: &io::Error) {
        self.folder.rests_until_ms.store(boot_ms() + REST_MS, Ordering::Release);
        if !std::mem::replace(&mut self.in_trouble, true) {
            let kind = error.kind();
            tracing::warn!(
                HOLDFAST_REASON = "cache_disk",
                "the cache keeps no new answers for now: {kind}; tried again every ten minutes"
            );
        }
    }
}
