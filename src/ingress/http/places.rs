//! Places for requests that are served at once: waiting for one, and giving it back.
//!
//! Owns the waiting; who is next is control's to say (`control::fair`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::control::fair::{Entry, Places, Ticket};

/// A request waits so long for a place: shorter than any client's own time-out, long enough for a burst to pass.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// All places.
pub struct Door(Mutex<Inner>);

struct Inner {
    places: Places,
    waiting: HashMap<Ticket, oneshot::Sender<Place>>,
}

/// One place; it is free again when this is dropped.
pub struct Place(Arc<Door>);

impl Door {
    /// So many places.
    pub fn new(places: usize) -> Arc<Door> {
        Arc::new(Door(Mutex::new(Inner { places: Places::new(places), waiting: HashMap::new() })))
    }

    /// A place, at once or after a while; `None` where too many of this source wait, or it waited too long.
    pub async fn enter(self: &Arc<Self>, source: &str) -> Option<Place> {
        let (ticket, granted) = {
            let mut inner = self.lock();
            match inner.places.enter(source) {
                Entry::Place => return Some(Place(self.clone())),
                Entry::Full => return None,
                Entry::Wait(ticket) => {
                    let (grant, granted) = oneshot::channel();
                    inner.waiting.insert(ticket, grant);
                    (ticket, granted)
                }
            }
        };
        // Also where its client goes away: the future is dropped then, and this with it.
        let _leaving = Leaving { door: self, source, ticket };
        timeout(WAIT_MAX, granted).await.ok()?.ok()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(self: &Arc<Self>) {
        let grant = {
            let mut inner = self.lock();
            let next = inner.places.leave();
            next.and_then(|ticket| inner.waiting.remove(&ticket))
        };
        if let Some(grant) = grant {
            // Whoever is gone by now drops the place, which frees it for the next.
            let _ = grant.send(Place(self.clone()));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A request that waits, until it does not.
struct Leaving<'a> {
    door: &'a Arc<Door>,
    source: &'a str,
    ticket: Ticket,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut inner = self.door.lock();
        if inner.places.give_up(self.source, self.ticket) {
            inner.waiting.remove(&self.ticket);
        }
    }
}
