//! Callers who wait for a stored request's outcome.
//!
//! Bounded by the callers themselves: an entry lives as long as its caller.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

type Waiting = Arc<Mutex<HashMap<String, (Arc<Notify>, usize)>>>;

/// Who waits for what.
#[derive(Debug, Default, Clone)]
pub(super) struct Waiters {
    waiting: Waiting,
    over: Arc<AtomicBool>,
}

/// One caller's place; leaves the list when dropped.
#[derive(Debug)]
pub(super) struct Waiter {
    id: String,
    notify: Arc<Notify>,
    all: Waiting,
}

impl Waiters {
    pub(super) fn register(&self, id: &str) -> Waiter {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(id.to_owned()).or_insert_with(|| (Arc::new(Notify::new()), 0));
        entry.1 += 1;
        if self.is_over() {
            entry.0.notify_one();
        }
        Waiter { id: id.to_owned(), notify: entry.0.clone(), all: self.waiting.clone() }
    }

    /// No outcome comes any more: nobody waits any longer, and whoever comes now is told at once.
    pub(super) fn end(&self) {
        let all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.over.store(true, Ordering::Release);
        for (notify, _) in all.values() {
            notify.notify_waiters();
            notify.notify_one();
        }
    }

    /// Whether nobody waits any longer.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) fn wake(&self, id: &str) {
        let all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((notify, count)) = all.get(id) {
            // One permit would wake only one of several; each waiter passes the permit on when it leaves.
            notify.notify_waiters();
            if *count > 0 {
                notify.notify_one();
            }
        }
    }
}

impl Waiter {
    pub(super) async fn wait(&self) {
        self.notify.notified().await;
        self.notify.notify_one();
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = all.get_mut(&self.id) {
            entry.1 -= 1;
            if entry.1 == 0 {
                all.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_who_waits_is_woken_even_before_the_first_poll() {
        let waiters = Waiters::default();
        let (a, b) = (waiters.register("x"), waiters.register("x"));
        waiters.wake("x");
        a.wait().await;
        b.wait().await;
        drop((a, b));
        assert!(waiters.waiting.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn at_the_end_nobody_waits_whenever_he_came() {
        let waiters = Waiters::default();
        let (a, b) = (waiters.register("x"), waiters.register("x"));
        waiters.end();
        a.wait().await;
        b.wait().await;
        waiters.register("y").wait().await;
    }
}
