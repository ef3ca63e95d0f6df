//! The line in front of the model server: a few slots and a bounded number of waiters.
//!
//! Owns the counts; never talks to the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::LocalError;

/// How many requests may wait for a slot. Small boards answer a few requests a minute: who stands further
/// back would time out anyway, and each waiter keeps its prompt in memory.
pub(super) const WAITING_MAX: usize = 64;

/// How busy the model server is with our requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Requests that the server is working on.
    pub in_flight: usize,
    /// Requests that wait for a slot.
    pub waiting: usize,
}

pub(super) struct Slots {
    semaphore: Arc<Semaphore>,
    max: usize,
    waiting: AtomicUsize,
}

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Self { semaphore: Arc::new(Semaphore::new(max)), max, waiting: AtomicUsize::new(0) }
    }

    /// A slot, freed when dropped. `Busy` if the line is full or none came free until `give_up`.
    pub(super) async fn take(&self, give_up: Instant) -> Result<OwnedSemaphorePermit, LocalError> {
        if let Ok(permit) = Arc::clone(&self.semaphore).try_acquire_owned() {
            return Ok(permit);
        }
        let _waiter = Waiter::join(&self.waiting)?;
        let permit = tokio::time::timeout_at(give_up, Arc::clone(&self.semaphore).acquire_owned()).await;
        permit.ok().and_then(Result::ok).ok_or(LocalError::Busy)
    }

    pub(super) fn load(&self) -> Load {
        Load { in_flight: self.max - self.semaphore.available_permits(), waiting: self.waiting.load(Ordering::Relaxed) }
    }
}

/// Counts one waiter for as long as it lives, also when its future is dropped.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn join(count: &'a AtomicUsize) -> Result<Self, LocalError> {
        let waiter = Self(count);
        if count.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            return Err(LocalError::Busy);
        }
        Ok(waiter)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
