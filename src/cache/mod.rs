//! The answer cache: answers of uplinks to deterministic requests, kept on disk for a while; identical requests under way.
//!
//! Owns the folder `cache` in the data folder, the keys, what is worth keeping, what leaves, and who waits for whom. Never
//! sends. Age is powered-on time: the spool's clock at the start, and the time since boot from there on. No request waits for
//! a write, and a disk in trouble costs a request nothing but the hit.

mod canon;
mod disk;
mod entry;
pub mod flights;
pub mod key;
pub mod shelf;
#[cfg(test)]
mod tests;
pub mod worth;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use crate::body::Body;
use crate::clock;
use disk::{Folder, Job, Writer};
use key::Key;
use shelf::{Bounds, ENTRIES_MAX, Entry, Shelf, Standing};

/// Answers on their way to the disk, all together; where more come, they are not kept.
const PENDING_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// How many of them.
const PENDING_MAX: usize = 256;
/// Files read at once: more would only queue inside the disk, and one that hangs must not take every thread.
const READS_MAX: usize = 4;
/// A disk that takes longer to find an answer is no faster than asking for it.
const READ_TIME: Duration = Duration::from_secs(1);
/// How long a stop waits for answers on their way to the disk.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// What the cache is configured with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its files go to `cache` in there.
    pub data_dir: PathBuf,
    /// How long an answer is fresh, in ms; 0 turns everything off.
    pub ttl_ms: u64,
    /// How old an answer may be while there is no uplink, in ms.
    pub stale_ms: u64,
    /// What its files may take on the disk.
    pub max_bytes: u64,
    /// Bytes of the file system that stay free.
    pub min_free: u64,
    /// One answer for all sources.
    pub shared: bool,
}

/// An answer that is kept.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its bytes as they were passed on.
    pub body: Body,
    /// Fresh or stale, and its age.
    pub standing: Standing,
}

/// The handle; clones share one folder and one thread.
#[derive(Clone)]
pub struct Cache(Option<Arc<Inner>>);

struct Inner {
    table: Arc<Mutex<Table>>,
    folder: Arc<Folder>,
    jobs: Sender<Job>,
    reads: Arc<Semaphore>,
    shared: bool,
    time: Time,
}

/// The cache's time: powered-on milliseconds.
#[derive(Debug, Clone, Copy)]
struct Time {
    /// At the start.
    first_ms: u64,
    /// Time since boot then.
    since: Duration,
}

impl Time {
    fn now(self) -> u64 {
        self.first_ms.saturating_add(clock::since_boot().saturating_sub(self.since).as_millis() as u64)
    }
}

/// What is on the disk, and what is on its way there.
#[derive(Debug)]
struct Table {
    shelf: Shelf,
    pending: HashMap<Key, (Entry, Bytes)>,
    /// Of all answers that the thread still has before it, also of those that a newer one took the place of.
    pending_bytes: u64,
    pending_jobs: usize,
}

impl Table {
    /// An answer is on the disk, or will never be.
    fn written(&mut self, key: &Key, entry: &Entry) {
        self.pending_bytes -= entry.bytes;
        self.pending_jobs -= 1;
        if self.pending.get(key).is_some_and(|(there, _)| there == entry) {
            self.pending.remove(key);
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("on", &self.is_on()).finish()
    }
}

impl Cache {
    /// One that keeps nothing.
    pub fn off() -> Cache {
        Cache(None)
    }

    /// Opens the folder and reads its names; `powered_ms` is powered-on time now. Where the folder cannot be used, one log
    /// line says so and nothing is kept. Blocks.
    pub fn open(options: &Options, powered_ms: u64) -> Cache {
        let path = options.data_dir.join("cache");
        if options.ttl_ms == 0 || options.max_bytes == 0 {
            // Nobody will look after what is there.
            let _ = std::fs::remove_dir_all(path);
            return Cache::off();
        }
        let opened = Folder::open(path, options.min_free).and_then(|folder| Ok((folder.list()?, folder)));
        let started = opened.and_then(|(found, folder)| Inner::start(options, folder, &found, powered_ms));
        match started {
            Ok(inner) => Cache(Some(Arc::new(inner))),
            Err(error) => {
                let kind = error.kind();
                tracing::warn!(HOLDFAST_REASON = "cache_disk", "the cache is off until the next start: {kind}");
                Cache::off()
            }
        }
    }

    /// Whether anything is kept, or shared while it is under way.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether all sources share.
    pub fn is_shared(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.shared)
    }

    /// Entries, and what they take on the disk.
    pub fn size(&self) -> (u64, u64) {
        let Some(inner) = &self.0 else { return (0, 0) };
        let table = inner.table();
        (table.shelf.len() as u64, table.shelf.bytes())
    }

    /// Whether there is a fresh answer, without reading it.
    pub fn has_fresh(&self, key: &Key) -> bool {
        let Some(inner) = &self.0 else { return false };
        matches!(inner.table().shelf.look(key, inner.time.now()), Some((_, Standing::Fresh(_))))
    }

    /// The answer that is kept, if it is whole. A damaged one is removed.
    pub async fn get(&self, key: &Key) -> Option<Found> {
        let inner = self.0.as_ref()?;
        let (entry, standing, pending) = {
            let table = inner.table();
            let (entry, standing) = table.shelf.look(key, inner.time.now())?;
            let pending = table.pending.get(key).filter(|(there, _)| *there == entry);
            (entry, standing, pending.map(|(_, answer)| answer.clone()))
        };
        let body = match pending {
            Some(answer) => answer.into(),
            None => inner.read(*key, entry).await?,
        };
        inner.table().shelf.touch(key);
        Some(Found { body, standing })
    }

    /// Keeps an answer that came just now. Returns at once; it can be found from then on.
    pub fn put(&self, key: Key, answer: Bytes) {
        let Some(inner) = self.0.as_ref().filter(|inner| !inner.folder.is_resting()) else { return };
        let entry = disk::entry_of(&key, inner.time.now(), &answer);
        let mut table = inner.table();
        if table.shelf.holds(&key, &entry) {
            // The same answer in the same millisecond: its file has this very name.
            return;
        }
        let bytes = table.pending_bytes + entry.bytes;
        if bytes > PENDING_BYTES_MAX || table.pending_jobs >= PENDING_MAX {
            return;
        }
        let gone = table.shelf.insert(key, entry);
        if gone.contains(&(key, entry)) {
            let _ = inner.jobs.send(Job::Remove(gone));
            return;
        }
        table.pending.insert(key, (entry, answer.clone()));
        table.pending_bytes += entry.bytes;
        table.pending_jobs += 1;
        // While the table is held: what leaves is removed after it was written.
        let _ = inner.jobs.send(Job::Write(key, entry, answer, gone));
    }

    /// Empties it; says how many answers there were. Returns when their files are gone.
    pub async fn purge(&self) -> u64 {
        let Some(inner) = &self.0 else { return 0 };
        let purged = {
            let mut table = inner.table();
            let gone = table.shelf.clear();
            let purged = gone.len() as u64;
            let _ = inner.jobs.send(Job::Remove(gone));
            purged
        };
        self.flush().await;
        purged
    }

    /// Waits a moment for what is on its way to the disk.
    pub async fn flush(&self) {
        let Some(inner) = &self.0 else { return };
        let (done, flushed) = oneshot::channel();
        let _ = inner.jobs.send(Job::Flush(done));
        let _ = tokio::time::timeout(FLUSH_TIME, flushed).await;
    }
}

impl Inner {
    fn start(options: &Options, folder: Folder, found: &[(Key, Entry)], powered_ms: u64) -> std::io::Result<Inner> {
        let bounds = Bounds {
            ttl_ms: options.ttl_ms,
            stale_ms: options.stale_ms,
            max_bytes: options.max_bytes,
            max_entries: ENTRIES_MAX,
        };
        let mut shelf = Shelf::new(bounds);
        let newest_ms = found.iter().map(|(_, entry)| entry.stored_ms).max().unwrap_or(0);
        // A power cut may have taken the last minutes of the service clock, and a damage all of it: an answer that was
        // kept proves that it was at least that late.
        let time = Time { first_ms: powered_ms.max(newest_ms), since: clock::since_boot() };
        let mut gone: Vec<(Key, Entry)> = found.iter().flat_map(|(key, entry)| shelf.insert(*key, *entry)).collect();
        gone.extend(shelf.expire(time.now()));
        let table = Arc::new(Mutex::new(Table { shelf, pending: HashMap::new(), pending_bytes: 0, pending_jobs: 0 }));
        let (folder, (jobs, inbox)) = (Arc::new(folder), channel());
        let writer = Writer { folder: folder.clone(), table: table.clone(), jobs: inbox, time, in_trouble: false };
        let _ = jobs.send(Job::Remove(gone));
        std::thread::Builder::new().name("cache".into()).spawn(move || writer.run())?;
        Ok(Inner { table, folder, jobs, reads: Arc::new(Semaphore::new(READS_MAX)), shared: options.shared, time })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, key: Key, entry: Entry) -> Option<Body> {
        let folder = self.folder.clone();
        let reading = async {
            // It is never closed.
            let permit = self.reads.clone().acquire_owned().await.ok()?;
            let read = move || {
                // As long as the thread is held, not only as long as somebody waits for it.
                let _permit = permit;
                folder.read(&key, &entry)
            };
            tokio::task::spawn_blocking(read).await.ok()
        };
        match tokio::time::timeout(READ_TIME, reading).await.ok()?? {
            Ok(body) => Some(body),
            Err(error) => {
                let mut table = self.table();
                if table.shelf.remove_this(&key, &entry) {
                    let kind = error.kind();
                    tracing::warn!(HOLDFAST_REASON = "cache_damaged", "a kept answer cannot be read and goes: {kind}");
                    let _ = self.jobs.send(Job::Remove(vec![(key, entry)]));
                }
                None
            }
        }
    }
}
