//! Which stored requests a repeated body is attached to, so that it makes no second one.
//!
//! An entry exists while a caller is being answered, and for ten minutes where that caller never got its
//! answer: a ticket, or a broken connection. Memory only; filled again from the spool at start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a repeat is recognised.
pub const ATTACH_MS: u64 = 600_000;
/// Entries kept; 100 bytes each. Beyond this the oldest is forgotten, and its repeat would be a new request.
pub const ATTACH_MAX: usize = 4096;
/// How often, and how far apart, a repeat looks whether the first caller is gone: 300 ms in all, the time of a
/// commit on slow flash.
const LOOKS: u32 = 30;
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Source, body, request: callers with one body may have several requests, and each is found again.
type Key = (String, [u8; 32], String);
type Table = Mutex<BTreeMap<Key, Entry>>;

/// One request that may be repeated.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Until when a repeat is recognised; `None` while its own caller is still being answered.
    until_ms: Option<u64>,
    /// From before this start: nobody knows whether its caller had its ticket.
    restored: bool,
}

/// All entries.
#[derive(Debug, Default, Clone)]
pub struct Attach(Arc<Table>);

/// One caller being answered. Dropped without [`Handing::delivered`], its request can be attached to.
#[derive(Debug)]
pub struct Handing {
    table: Arc<Table>,
    key: Key,
    now: fn() -> u64,
    done: bool,
}

impl Attach {
    /// A caller of a request just stored is being answered.
    pub fn begin(&self, source: &str, hash: [u8; 32], id: &str, now: fn() -> u64) -> Handing {
        let key = (source.to_owned(), hash, id.to_owned());
        self.insert(key.clone(), Entry { until_ms: None, restored: false }, now());
        Handing { table: self.0.clone(), key, now, done: false }
    }

    /// A request from before this start whose caller may not have got its answer.
    pub fn restore(&self, source: String, hash: [u8; 32], id: String, now_ms: u64) {
        self.insert((source, hash, id), Entry { until_ms: Some(now_ms + ATTACH_MS), restored: true }, now_ms);
    }

    /// Whether looking is worth a hash of the body.
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The same, with some patience where the first caller is still being answered: one whose connection just
    /// broke is noticed a moment later, and its repeat must not come before that.
    pub async fn find_patiently(&self, source: &str, hash: [u8; 32], now: fn() -> u64) -> Option<Handing> {
        for _ in 0..LOOKS {
            match self.find(source, hash, now) {
                Some(handing) => return Some(handing),
                None if self.is_handing(source, hash) => tokio::time::sleep(LOOK_EVERY).await,
                None => return None,
            }
        }
        self.find(source, hash, now)
    }

    fn is_handing(&self, source: &str, hash: [u8; 32]) -> bool {
        let from = (source.to_owned(), hash, String::new());
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table
            .range(from..)
            .take_while(|(key, _)| key.0 == source && key.1 == hash)
            .any(|(_, entry)| entry.until_ms.is_none())
    }

    /// Takes over a request that this body repeats.
    pub fn find(&self, source: &str, hash: [u8; 32], now: fn() -> u64) -> Option<Handing> {
        self.find_where(source, hash, now, |_| true)
    }

    /// The same for whoever takes a ticket each time: an equal body is his next request, unless his connection broke under our eyes.
    pub fn find_left_behind(&self, source: &str, hash: [u8; 32], now: fn() -> u64) -> Option<Handing> {
        self.find_where(source, hash, now, |entry| !entry.restored)
    }

    fn find_where(&self, source: &str, hash: [u8; 32], now: fn() -> u64, fits: fn(&Entry) -> bool) -> Option<Handing> {
        let from = (source.to_owned(), hash, String::new());
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same_body = table.range_mut(from..).take_while(|(key, _)| key.0 == source && key.1 == hash);
        let is_open = |entry: &Entry| entry.until_ms.is_some_and(|until| until > now()) && fits(entry);
        let (key, entry) = same_body.into_iter().find(|(_, entry)| is_open(entry))?;
        entry.until_ms = None;
        Some(Handing { table: self.0.clone(), key: key.clone(), now, done: false })
    }

    fn insert(&self, key: Key, entry: Entry, now_ms: u64) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= ATTACH_MAX {
            table.retain(|_, old| old.until_ms.is_none_or(|until| until > now_ms));
        }
        if table.len() >= ATTACH_MAX {
            let oldest = table.iter().filter_map(|(k, old)| old.until_ms.map(|until| (until, k.clone()))).min();
            if let Some((_, key)) = oldest {
                table.remove(&key);
            }
        }
        table.insert(key, entry);
    }
}

impl Handing {
    /// The stored request.
    pub fn id(&self) -> &str {
        &self.key.2
    }

    /// The caller has its answer: the same body is a new request from now on.
    pub fn delivered(mut self) {
        self.done = true;
    }
}

impl Drop for Handing {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if self.done {
            table.remove(&self.key);
        } else if let Some(entry) = table.get_mut(&self.key) {
            entry.until_ms = Some((self.now)() + ATTACH_MS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn early() -> u64 {
        1000
    }

    fn late() -> u64 {
        1000 + ATTACH_MS
    }

    #[test]
    fn a_repeat_after_a_ticket_is_attached_once_at_a_time() {
        let attach = Attach::default();
        let handing = attach.begin("uid:1", [1; 32], "req_a", early);
        assert!(attach.find("uid:1", [1; 32], early).is_none(), "its own caller is still being answered");
        drop(handing);
        assert!(attach.find("uid:2", [1; 32], early).is_none(), "another source");
        let taken = attach.find("uid:1", [1; 32], early).unwrap();
        assert_eq!(taken.id(), "req_a");
        assert!(attach.find("uid:1", [1; 32], early).is_none());
        taken.delivered();
        assert!(attach.is_empty());
    }

    #[test]
    fn callers_with_the_same_body_each_find_a_request_again() {
        let attach = Attach::default();
        let (a, b) = (attach.begin("uid:1", [1; 32], "req_a", early), attach.begin("uid:1", [1; 32], "req_b", early));
        drop((a, b));
        let taken = [attach.find("uid:1", [1; 32], early).unwrap(), attach.find("uid:1", [1; 32], early).unwrap()];
        assert_ne!(taken[0].id(), taken[1].id());
        assert!(attach.find("uid:1", [1; 32], early).is_none());
    }

    #[test]
    fn whoever_takes_tickets_finds_only_what_broke_in_this_life() {
        let attach = Attach::default();
        attach.restore("uid:1".to_owned(), [1; 32], "req_a".to_owned(), early());
        assert!(attach.find_left_behind("uid:1", [1; 32], early).is_none());
        drop(attach.begin("uid:1", [1; 32], "req_b", early));
        assert_eq!(attach.find_left_behind("uid:1", [1; 32], early).unwrap().id(), "req_b");
    }

    #[test]
    fn ten_minutes_later_it_is_a_new_request() {
        let attach = Attach::default();
        drop(attach.begin("uid:1", [1; 32], "req_a", early));
        assert!(attach.find("uid:1", [1; 32], late).is_none());
    }

    #[test]
    fn the_table_is_bounded() {
        let attach = Attach::default();
        for n in 0..(ATTACH_MAX + 100) {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&(n as u64).to_le_bytes());
            drop(attach.begin("uid:1", hash, "req", early));
        }
        assert!(attach.0.lock().unwrap().len() <= ATTACH_MAX);
    }
}
