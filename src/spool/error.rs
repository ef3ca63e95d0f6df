//! What can go wrong in the spool, in words that stay the same.
//!
//! Owns the translation of SQLite's and the system's errors; never carries a request's text.

use rusqlite::ErrorCode;

/// Why the spool said no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    /// `max_requests` or `max_bytes` is reached and nothing less urgent can make room.
    #[error("the queue is full; raise queue.max_requests or queue.max_bytes, or wait for the drain")]
    QueueFull,
    /// The source has `per_source_backlog` unfinished requests.
    #[error("this source has too many unfinished requests; see limits.per_source_backlog")]
    SourceFull,
    /// The disk has less than `min_disk_free` left, or SQLite found it full.
    #[error("the disk is full; free space below queue.min_disk_free")]
    DiskFull,
    /// The idempotency key is known with another body.
    #[error("the idempotency key was used before with another body")]
    KeyReused,
    /// A newer holdfast wrote this database; it was left untouched.
    #[error("the spool has schema version {found}, this program knows up to {known}; start a newer holdfast")]
    Newer {
        /// The version on disk.
        found: u32,
        /// The newest version this program knows.
        known: u32,
    },
    /// Another process owns the data folder.
    #[error(
        "another holdfast process owns this data folder; stop it first, or start this one with another gateway.data_dir"
    )]
    Busy,
    /// SQLite or the file system failed; the request in question was not accepted.
    #[error("storage failed: {0}")]
    Storage(String),
    /// The bytes of this one body or answer are damaged or gone; nothing else is.
    #[error("the stored bytes are damaged or gone")]
    Unreadable,
    /// What is on disk is not what was written. The file is set aside and what can be read is salvaged.
    #[error("the stored data is damaged: {0}")]
    Damaged(String),
    /// A damaged log may hold a later state of this request; nothing was changed.
    #[error("this request is being salvaged from a damaged log; try again in a minute")]
    Salvaging,
    /// The data folder or a file in it belongs to somebody else.
    #[error("no permission for the data folder: {0}; run as its owner, or set another gateway.data_dir")]
    Permission(String),
    /// The spool was closed.
    #[error("the spool is closed")]
    Closed,
}

impl SpoolError {
    /// A stable word for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            SpoolError::QueueFull => "queue_full",
            SpoolError::SourceFull => "source_full",
            SpoolError::DiskFull => "disk_full",
            SpoolError::KeyReused => "idempotency_key_reused",
            SpoolError::Newer { .. } => "spool_newer",
            SpoolError::Busy => "spool_busy",
            SpoolError::Storage(_) => "storage",
            SpoolError::Unreadable => "unreadable",
            SpoolError::Damaged(_) => "damaged",
            SpoolError::Salvaging => "salvaging",
            SpoolError::Permission(_) => "permission",
            SpoolError::Closed => "closed",
        }
    }
}

impl From<rusqlite::Error> for SpoolError {
    fn from(error: rusqlite::Error) -> SpoolError {
        use rusqlite::Error as E;
        // The tables are strict: a value of another type or range was not written by us.
        let strange = matches!(error, E::Utf8Error(..) | E::FromSqlConversionFailure(..))
            || matches!(error, E::IntegralValueOutOfRange(..) | E::InvalidColumnType(..))
            || is_a_name_unknown(&error);
        if strange {
            return SpoolError::Damaged(error.to_string());
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => SpoolError::DiskFull,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => SpoolError::Damaged(error.to_string()),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => SpoolError::Busy,
            // SQLite's own text names tables and columns, never values.
            _ => SpoolError::Storage(error.to_string()),
        }
    }
}

/// Every statement fits the tables as they were made: one that does not has met a flipped bit in a name. SQLite has no code of
/// its own for that.
fn is_a_name_unknown(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqlInputError { .. } => true,
        rusqlite::Error::SqliteFailure(_, Some(said)) => UNKNOWN_NAMES.iter().any(|words| said.contains(words)),
        _ => false,
    }
}

/// How SQLite says that. Not its words for a savepoint, which an I/O error may have taken away.
const UNKNOWN_NAMES: [&str; 4] = ["no such table", "no such column", "no such index", "has no column named"];

impl From<std::io::Error> for SpoolError {
    fn from(error: std::io::Error) -> SpoolError {
        use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, StorageFull};
        match error.kind() {
            PermissionDenied => SpoolError::Permission(error.to_string()),
            StorageFull | QuotaExceeded => SpoolError::DiskFull,
            _ => SpoolError::Storage(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_damage_and_a_savepoint_that_went_is_none() {
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE request (seq INTEGER PRIMARY KEY)").unwrap();
        let said = |text: &str| SpoolError::from(conn.execute_batch(text).unwrap_err());
        for text in [
            "SELECT seq FROM bequest",
            "SELECT teq FROM request",
            "SELECT seq FROM request INDEXED BY request_ready",
            "INSERT INTO request (teq) VALUES (1)",
            "UPDATE request SET teq = 1",
        ] {
            assert!(matches!(said(text), SpoolError::Damaged(_)), "{text}: {:?}", said(text));
        }
        for text in ["ROLLBACK TO one", "RELEASE one", "COMMIT"] {
            assert!(matches!(said(text), SpoolError::Storage(_)), "{text}: {:?}", said(text));
        }
    }
}
