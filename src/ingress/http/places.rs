//! Places for requests that are served at once: waiting for one, and giving it back.
//!
//! Owns the waiting; who is next is control's to say (`control::fair`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use crate::control::fair::{Entry, Places, Ticket};

/// A request waits so long for a place: shorter than any client's own time-out, long enough for a burst to pass.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Callers who wait aside and take no place: each keeps up to 140 KiB, its body and its connection's buffers.
const ASIDE_MAX: usize = 128;

/// All places.
pub struct Door {
    inner: Mutex<Inner>,
    aside: Arc<Semaphore>,
}

struct Inner {
    places: Places,
    waiting: HashMap<Ticket, oneshot::Sender<Place>>,
}

/// One place; it is free again when this is dropped.
pub struct Place(Arc<Door>);

/// A request's place while its caller is served: free when this is dropped, or as soon as whoever has it [`Lent`] gives it back.
pub struct Loan(Arc<Mutex<Kept>>);

/// What a caller takes.
enum Kept {
    Place(Place),
    /// Room to wait aside.
    Aside {
        _room: OwnedSemaphorePermit,
    },
}

/// May free a place. What of a request's work outlives its caller has this, and keeps no place.
#[derive(Clone)]
pub struct Lent(Weak<Mutex<Kept>>);

impl Loan {
    /// Of this place.
    pub fn new(place: Place) -> Loan {
        Loan(Arc::new(Mutex::new(Kept::Place(place))))
    }

    /// For whoever may give it back.
    pub fn lent(&self) -> Lent {
        Lent(Arc::downgrade(&self.0))
    }
}

impl Lent {
    /// Frees it: its request is on disk and its caller merely waits, or one outage would shut the door for everybody. Where too many
    /// wait so already, it is kept.
    pub fn give_back(&self) {
        let Some(loan) = self.0.upgrade() else { return };
        let mut kept = loan.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept::Place(Place(door)) = &*kept else { return };
        let Ok(room) = door.aside.clone().try_acquire_owned() else { return };
        let before = std::mem::replace(&mut *kept, Kept::Aside { _room: room });
        // Whoever comes next is let in without this lock.
        drop(kept);
        drop(before);
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lent")
    }
}

impl Door {
    /// So many places.
    pub fn new(places: usize) -> Arc<Door> {
        let inner = Mutex::new(Inner { places: Places::new(places), waiting: HashMap::new() });
        Arc::new(Door { inner, aside: Arc::new(Semaphore::new(ASIDE_MAX)) })
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
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
