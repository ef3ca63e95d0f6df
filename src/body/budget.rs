//! How much memory all bodies of requests and stored answers together may take; what is beyond it goes to files.
//!
//! Owns one counter. Decides nothing about files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bodies in memory, all together, stored answers among them. With the program itself (about 26 MiB in a debug build),
/// its connections, what is held back of live answers and what is on its way between socket and disk this stays below
/// the 64 MiB that a board of 96 MiB can spare.
pub const MEMORY_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The shared counter.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget(Arc<AtomicU64>);

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
        self.0.load(Ordering::Acquire)
    }
}

impl Held {
    /// Takes more where there is more.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= MEMORY_BYTES_MAX);
        let taken = self.budget.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok();
        self.bytes += if taken { bytes } else { 0 };
        taken
    }

    /// Takes more whatever is there: small bodies are bounded by the number of requests at once.
    pub(super) fn grow_anyway(&mut self, bytes: u64) {
        self.budget.0.fetch_add(bytes, Ordering::AcqRel);
        self.bytes += bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
