//! Why a file or a batch was not taken or not found, in words that stay the same.

use std::io;

use super::files::{FILES_MAX, FILES_OF_SOURCE_MAX};
use super::{BATCHES_MAX, UNFINISHED_OF_SOURCE_MAX};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum LaterError {
    /// No file of this source has this id.
    #[error("no such file: {0}; it may have been deleted, or its time may be over")]
    NoSuchFile(String),
    /// No batch of this source has this id.
    #[error("no such batch: {0}; its time may be over")]
    NoSuchBatch(String),
    /// A field is not what the API asks for.
    #[error("{message}")]
    Field {
        /// Which.
        param: &'static str,
        /// What belongs there.
        message: String,
    },
    /// The key made another batch.
    #[error("this Idempotency-Key was used for another batch; use a new key for a new batch")]
    KeyReused,
    /// A batch that has not ended reads the file.
    #[error("a batch that has not ended uses this file; wait for its end, or cancel it")]
    InUse,
    /// The batch has ended already.
    #[error("this batch is {0} already and cannot be cancelled")]
    Ended(&'static str),
    /// As many files as are kept.
    #[error("{FILES_OF_SOURCE_MAX} files of one source and {FILES_MAX} in all are kept; delete some")]
    TooManyFiles,
    /// As many bytes of files as are kept.
    #[error("the files that are kept may have {0} bytes together ([queue] max_bytes); delete some")]
    TooManyBytes(u64),
    /// As many batches as are kept.
    #[error(
        "{UNFINISHED_OF_SOURCE_MAX} batches of one source may be unfinished, and {BATCHES_MAX} are kept; wait for one to end"
    )]
    TooManyBatches,
    /// The disk takes nothing more.
    #[error("the disk is full or takes no writes; nothing was kept ({0})")]
    Disk(io::ErrorKind),
}

impl From<io::Error> for LaterError {
    fn from(error: io::Error) -> Self {
        LaterError::Disk(error.kind())
    }
}
