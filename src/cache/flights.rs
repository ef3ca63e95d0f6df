//! Identical requests under way: one is sent, the others wait for what comes of it.
//!
//! Owns who leads and who follows. Knows nothing of HTTP: what comes of a flight is its own type.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::key::Key;
use crate::plant::{self, Fault};

/// Different requests under way at once: far more than `[http] max_in_flight` lets in; 100 bytes each.
pub const FLIGHTS_MAX: usize = 1024;
/// Who may wait for one of them; one more goes by itself.
pub const FOLLOWERS_MAX: usize = 1024;

/// What came of a flight.
type Landed<T> = watch::Sender<Option<T>>;
type Table<T> = Mutex<HashMap<Key, Arc<Landed<T>>>>;

/// All flights.
#[derive(Debug)]
pub struct Flights<T>(Arc<Table<T>>);

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Flights(Arc::default())
    }
}

/// The part of a request in its flight.
pub enum Part<T> {
    /// It is sent for all.
    Leader(Lead<T>),
    /// It waits.
    Follower(Follow<T>),
    /// There are too many: it goes by itself.
    Alone,
}

/// The one that is sent. Dropped without an end, it leaves its followers to themselves.
#[derive(Debug)]
pub struct Lead<T> {
    table: Arc<Table<T>>,
    key: Key,
    landed: Arc<Landed<T>>,
}

/// One that waits.
#[derive(Debug)]
pub struct Follow<T>(watch::Receiver<Option<T>>);

/// How waiting ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited<T> {
    /// This came of it.
    Landed(T),
    /// The leader is gone and has nothing for others.
    Lost,
    /// The time is up.
    Late,
}

impl<T: Clone> Flights<T> {
    /// Leads a flight, or follows the one under way.
    pub fn join(&self, key: Key) -> Part<T> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(landed) = table.get(&key).filter(|_| !plant::is(Fault::CacheSendsEach)) {
            let room = landed.receiver_count() < FOLLOWERS_MAX;
            return if room { Part::Follower(Follow(landed.subscribe())) } else { Part::Alone };
        }
        if table.len() >= FLIGHTS_MAX {
            return Part::Alone;
        }
        let landed = Arc::new(watch::Sender::new(None));
        table.insert(key, landed.clone());
        Part::Leader(Lead { table: self.0.clone(), key, landed })
    }

    /// Flights under way.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Lead<T> {
    /// Everybody who waits gets this; who comes later leads anew.
    pub fn land(self, what: T) {
        // Out of the table first: nobody may find a flight that is over.
        self.leave();
        self.landed.send_replace(Some(what));
    }

    /// Resolves when nobody follows any more, and ends the flight in the same instant: nobody follows it later.
    pub async fn forsaken(&self) {
        loop {
            self.landed.closed().await;
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            if self.landed.receiver_count() == 0 {
                self.remove(&mut table);
                return;
            }
        }
    }

    /// How many follow.
    pub fn followers(&self) -> usize {
        self.landed.receiver_count()
    }

    fn leave(&self) {
        self.remove(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn remove(&self, table: &mut HashMap<Key, Arc<Landed<T>>>) {
        if table.get(&self.key).is_some_and(|there| Arc::ptr_eq(there, &self.landed)) {
            table.remove(&self.key);
        }
    }
}

impl<T> Drop for Lead<T> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<T: Clone> Follow<T> {
    /// Waits for what comes of it, so long at most.
    pub async fn wait(mut self, limit: Duration) -> Waited<T> {
        let landed = self.0.wait_for(Option::is_some);
        match tokio::time::timeout(limit, landed).await {
            Err(_) => Waited::Late,
            Ok(Err(_)) => Waited::Lost,
            Ok(Ok(landed)) => landed.clone().map_or(Waited::Lost, Waited::Landed),
        }
    }
}
