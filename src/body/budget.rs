//! How much memory all bodies of requests and stored answers together may take; what is beyond it goes to files.
//!
//! Owns one counter, and the queue of those who wait a moment for room. Decides nothing about files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};

/// Bodies in memory, all together, stored answers among them. With the program itself (about 26 MiB in a debug build),
/// its connections, what is held back of live answers and what is on its way between socket and disk this stays below
/// the 64 MiB that a board of 96 MiB can spare. Three pictures of 1 MiB in base64 fit: enough for two processors to be busy.
pub const MEMORY_BYTES_MAX: u64 = 5 * 1024 * 1024;

/// Longest wait for room: beside an uplink that answers within milliseconds it comes sooner and a file is spared, which costs as much
/// again as the request; beside one that takes seconds this delay is small.
const ROOM_WAIT: Duration = Duration::from_millis(50);
/// Larger ones do not wait: they would need most of the others gone.
const WAITING_BYTES_MAX: u64 = MEMORY_BYTES_MAX / 2;
/// One that is no larger goes past those who wait where it fits: beside a slow uplink they wait in vain.
const PASSING_BYTES_MAX: u64 = MEMORY_BYTES_MAX / 16;

/// The shared counter.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    used: AtomicU64,
    /// Whoever holds it is the next to get room; the others queue for it in their order.
    turn: Mutex<()>,
    freed: Notify,
}

/// A share of the memory, given back when dropped.
#[derive(Debug, Default)]
pub(super) struct Held {
    budget: Budget,
    bytes: u64,
}

impl Budget {
    pub(super) fn hold(&self) -> Held {
        Held { budget: self.clone(), bytes: 0 }
    }

    /// Bytes held now.
    pub(super) fn used(&self) -> u64 {
        self.0.used.load(Ordering::Acquire)
    }
}

impl Held {
    /// Takes more where there is more.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= MEMORY_BYTES_MAX);
        let taken = self.budget.0.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok();
        self.bytes += if taken { bytes } else { 0 };
        taken
    }

    /// The same, after waiting a moment for others to be done, where it is not too large for that.
    pub(super) async fn grow_soon(&mut self, bytes: u64) -> bool {
        if bytes > WAITING_BYTES_MAX {
            return self.grow(bytes);
        }
        if bytes <= PASSING_BYTES_MAX && self.grow(bytes) {
            return true;
        }
        let shared = self.budget.0.clone();
        let room = async {
            let _turn = shared.turn.lock().await;
            while !self.grow(bytes) {
                shared.freed.notified().await;
            }
        };
        // Where the one before waited in vain, the next had no turn.
        tokio::time::timeout(ROOM_WAIT, room).await.is_ok() || self.grow(bytes)
    }

    /// Gives a part of it back.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.bytes -= bytes;
        drop(Held { budget: self.budget.clone(), bytes });
    }

    /// Takes more whatever is there: small bodies are bounded by the number of requests at once.
    pub(super) fn grow_anyway(&mut self, bytes: u64) {
        self.budget.0.used.fetch_add(bytes, Ordering::AcqRel);
        self.bytes += bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.0.used.fetch_sub(self.bytes, Ordering::AcqRel);
            self.budget.0.freed.notify_one();
        }
    }
}
