//! What is kept, how old it is and what has to go: the cache's table as a pure value.
//!
//! Owns size, number, age and the order of leaving. Time is an argument; no file is touched here.

use std::collections::{BTreeMap, HashMap};

use super::key::Key;
use crate::plant::{self, Fault};

/// What a file takes on a disk is a multiple of this.
const BLOCK_BYTES: u64 = 4096;
/// Entries kept: as many as the default size has blocks. About 150 bytes of memory each.
pub const ENTRIES_MAX: usize = 16_384;

/// One kept answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// When it came, in powered-on time.
    pub stored_ms: u64,
    /// Its length, and that of its file.
    pub bytes: u64,
    /// Finds damage: see `entry::sum`.
    pub sum: u128,
}

/// How an answer stands at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As good as a new one; its age in milliseconds.
    Fresh(u64),
    /// Good while there is no new one; its age in milliseconds.
    Stale(u64),
}

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long an answer is fresh.
    pub ttl_ms: u64,
    /// How old one may be while there is no uplink.
    pub stale_ms: u64,
    /// What all files together may take on the disk.
    pub max_bytes: u64,
    /// How many there may be.
    pub max_entries: usize,
}

/// All that is kept.
#[derive(Debug)]
pub struct Shelf {
    bounds: Bounds,
    entries: HashMap<Key, (Entry, u64)>,
    /// By latest use, the longest unused first.
    order: BTreeMap<u64, Key>,
    uses: u64,
    bytes: u64,
}

/// What an entry takes on the disk.
pub fn cost(entry: &Entry) -> u64 {
    entry.bytes.next_multiple_of(BLOCK_BYTES)
}

impl Shelf {
    /// Nothing kept yet.
    pub fn new(bounds: Bounds) -> Shelf {
        Shelf { bounds, entries: HashMap::new(), order: BTreeMap::new(), uses: 0, bytes: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What they take on the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts one in; says which had to leave for it. One that is larger than everything leaves at once.
    pub fn insert(&mut self, key: Key, entry: Entry) -> Vec<(Key, Entry)> {
        let mut gone: Vec<(Key, Entry)> = self.remove(&key).map(|old| (key, old)).into_iter().collect();
        self.uses += 1;
        self.order.insert(self.uses, key);
        self.bytes += cost(&entry);
        self.entries.insert(key, (entry, self.uses));
        while self.bytes > self.bounds.max_bytes || self.entries.len() > self.bounds.max_entries {
            let Some(oldest) = self.longest_unused() else { break };
            gone.extend(self.remove(&oldest).map(|entry| (oldest, entry)));
        }
        gone
    }

    fn longest_unused(&self) -> Option<Key> {
        if plant::is(Fault::CacheEvictsNewest) {
            return self.order.last_key_value().map(|(_, key)| *key);
        }
        self.order.first_key_value().map(|(_, key)| *key)
    }

    /// How one stands now, if it is there and not too old for everything. Does not count as a use.
    pub fn look(&self, key: &Key, now_ms: u64) -> Option<(Entry, Standing)> {
        let (entry, _) = self.entries.get(key)?;
        let age_ms = now_ms.saturating_sub(entry.stored_ms);
        if age_ms < self.bounds.ttl_ms || plant::is(Fault::CacheNeverAges) {
            return Some((*entry, Standing::Fresh(age_ms)));
        }
        (age_ms <= self.bounds.stale_ms).then_some((*entry, Standing::Stale(age_ms)))
    }

    /// Whether this very entry is kept.
    pub fn holds(&self, key: &Key, entry: &Entry) -> bool {
        self.entries.get(key).is_some_and(|(there, _)| there == entry)
    }

    /// It was used just now. In memory only: flash is not written for a hit.
    pub fn touch(&mut self, key: &Key) {
        let Some((_, used)) = self.entries.get_mut(key) else { return };
        self.uses += 1;
        self.order.remove(used);
        self.order.insert(self.uses, *key);
        *used = self.uses;
    }

    /// Takes one out.
    pub fn remove(&mut self, key: &Key) -> Option<Entry> {
        let (entry, used) = self.entries.remove(key)?;
        self.order.remove(&used);
        self.bytes -= cost(&entry);
        Some(entry)
    }

    /// The same, unless another one took its place meanwhile.
    pub fn remove_this(&mut self, key: &Key, entry: &Entry) -> bool {
        self.holds(key, entry) && self.remove(key).is_some()
    }

    /// Takes everything out.
    pub fn clear(&mut self) -> Vec<(Key, Entry)> {
        self.order.clear();
        self.bytes = 0;
        self.entries.drain().map(|(key, (entry, _))| (key, entry)).collect()
    }

    /// Takes out what is too old for everything.
    pub fn expire(&mut self, now_ms: u64) -> Vec<(Key, Entry)> {
        let old: Vec<Key> = self.entries.keys().filter(|key| self.look(key, now_ms).is_none()).copied().collect();
        old.into_iter().filter_map(|key| Some((key, self.remove(&key)?))).collect()
    }
}
