//! The durable queue: one SQLite database and a folder of large bodies, behind a cheap handle.
//!
//! Owns everything below `data_dir` that a request consists of, and says "accepted" only after an fsync.
//! Never decides where or when a request is sent, never reads wall time for anything but display.

mod accept;
mod adopt;
mod ballast;
mod behind;
mod change;
mod codes;
mod condition;
mod device;
mod devices;
mod error;
mod files;
mod handle;
mod lanes;
mod lease;
mod marks;
mod merge;
mod migrate;
mod mounts;
mod open;
mod outcomes;
mod pauses;
mod powered;
mod quarantine;
mod read;
pub mod record;
mod rescue;
mod salvage;
mod schema;
mod scrub;
mod settle;
mod shrink;
mod sources;
mod store;
mod sum;
mod sweep;
#[cfg(test)]
mod tests;
mod writer;

use std::path::PathBuf;

pub use condition::Condition;
pub use error::SpoolError;
pub use files::hold;
pub use handle::Spool;
pub use open::open;
pub use pauses::SavedPause;
pub use salvage::offline::{Fault, Offline, Shown, repair};

/// A door for the fuzz targets: how many requests a salvage finds in a database and its log.
#[cfg(feature = "planted")]
#[doc(hidden)]
pub fn fuzz_salvage(db: Vec<u8>, wal: Vec<u8>) -> usize {
    salvage::count(db, wal)
}

/// What the spool needs to know; see `[queue]` and `[retry]` of the configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the database, the lock and the bodies; made with mode 0700 where missing.
    pub data_dir: PathBuf,
    /// Most bytes of bodies and answers kept.
    pub max_bytes: u64,
    /// Most unfinished requests; as many finished ones may stand beside them.
    pub max_requests: u64,
    /// Bytes the file system must have left after an acceptance.
    pub min_disk_free: u64,
    /// When full, the oldest request of a strictly lower priority makes room.
    pub evict_when_full: bool,
    /// Most unfinished requests of one source.
    pub per_source_backlog: u64,
    /// How long a finished request stays readable, in powered-on milliseconds.
    pub keep_results_ms: u64,
    /// Most bytes of answers; beyond it the oldest finished requests go first.
    pub keep_results_bytes: u64,
    /// At start, set aside what may have been billed instead of sending it once more.
    pub hold_unknown: bool,
}
