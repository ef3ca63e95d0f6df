//! The simulator's memory of what reached a model: one entry per request, bounded.
//!
//! Owns entries and counts; never keeps whole bodies, except that of the latest request.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A crash test of 200 rounds makes about 50,000 entries; four times that is 60 MB at most.
const ENTRIES_MAX: usize = 200_000;

/// One request that reached a model endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, from 1.
    pub n: u64,
    /// Milliseconds since the simulator started.
    pub at_ms: u64,
    /// The path as it was asked.
    pub path: String,
    /// The model it named.
    pub model: Option<String>,
    /// Whether it asked for a stream.
    pub stream: bool,
    /// Its `Idempotency-Key`.
    pub idempotency_key: Option<String>,
    /// The last user message, up to 200 characters.
    pub user: String,
    /// The status it got; 0 where the connection was closed without one.
    pub status: u16,
    /// Tokens in that it bills for this request, whether its answer arrives or not; 0 where it refused.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// The same out.
    #[serde(default)]
    pub completion_tokens: u64,
    /// SHA-256 of the body as it arrived, in hexadecimal.
    pub body_sha256: String,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<Entry>,
    total: u64,
    latest: Value,
}

impl Log {
    /// Appends, dropping the oldest entry beyond the limit, and gives the entry its number.
    pub(super) fn push(&mut self, mut entry: Entry, latest: Value) {
        self.total += 1;
        entry.n = self.total;
        if self.entries.len() >= ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
        self.latest = latest;
    }

    /// All entries that are kept, oldest first.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.entries.iter().cloned().collect()
    }

    /// How many requests came since the start or the last `clear`, also those no longer kept.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Headers and body text of the latest request.
    pub(super) fn latest(&self) -> Value {
        if self.latest.is_null() { json!({}) } else { self.latest.clone() }
    }

    pub(super) fn clear(&mut self) {
        *self = Log::default();
    }
}
