//! A batch as it is kept on disk.
//!
//! Owns its states and which of them are ends. What of its lines is done stands in the files that it writes, never
//! here. Knows nothing of HTTP.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock;

/// What our batches' ids begin with; others are an uplink's.
pub const BATCH_PREFIX: &str = "batch_hf_";
/// Lines of one batch: what OpenAI takes.
pub const LINES_MAX: u32 = 50_000;
/// Faults of one input file that are told: whoever has more of them mends the first ones first.
pub const FAULTS_MAX: usize = 25;

/// Where a batch stands, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its input is being read through.
    Validating,
    /// Its input is no batch.
    Failed,
    /// Its lines are in the queue, or wait for a place there.
    InProgress,
    /// All lines have ended; its files are being closed.
    Finalizing,
    /// Done.
    Completed,
    /// Its time was over before all lines were done.
    Expired,
    /// Somebody cancelled it; what is being sent is waited for.
    Cancelling,
    /// It was cancelled.
    Cancelled,
}

impl Status {
    /// OpenAI's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Validating => "validating",
            Status::Failed => "failed",
            Status::InProgress => "in_progress",
            Status::Finalizing => "finalizing",
            Status::Completed => "completed",
            Status::Expired => "expired",
            Status::Cancelling => "cancelling",
            Status::Cancelled => "cancelled",
        }
    }

    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, Status::Failed | Status::Completed | Status::Expired | Status::Cancelled)
    }
}

/// What is wrong with an input file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineFault {
    /// OpenAI's word for it.
    pub code: String,
    /// In words; never anything that the line says.
    pub message: String,
    /// The field.
    pub param: Option<String>,
    /// The line, from 1.
    pub line: Option<u32>,
}

/// A batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// `batch_hf_` and 32 hexadecimal digits.
    pub id: String,
    /// Ascends with each batch.
    pub seq: u64,
    /// Whose it is.
    pub source: String,
    /// The path of all its lines.
    pub endpoint: String,
    /// Its input.
    pub input_file_id: String,
    /// Its caller's own key; older versions knew none.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// What its caller wrote to it.
    pub metadata: Option<BTreeMap<String, String>>,
    /// The priority of its lines.
    pub priority: String,
    /// How much time it has, in powered-on milliseconds.
    pub ttl_ms: u64,
    /// When its time is over, in powered-on milliseconds.
    pub deadline_powered_ms: u64,
    /// Where it stands.
    pub status: Status,
    /// What it ends as, once all lines are done.
    pub ends_as: Option<Status>,
    /// When it came to stand there, in Unix seconds, for showing.
    pub since: BTreeMap<String, u64>,
    /// When it was made, in Unix seconds, for showing.
    pub created_at: u64,
    /// Lines of its input; 0 until it is read through.
    pub total: u32,
    /// All lines before this one were accepted by the queue or need no place there: one that is not on record any
    /// more is never sent anew.
    pub fed: u32,
    /// Where what succeeded is written.
    pub output_file_id: String,
    /// Where what did not is written.
    pub error_file_id: String,
    /// Lines that succeeded and that did not, counted when it ended.
    pub counted: Option<(u32, u32)>,
    /// Why its input is no batch.
    pub faults: Vec<LineFault>,
}

impl Manifest {
    /// It stands elsewhere from now on.
    pub(super) fn turn(&mut self, status: Status) {
        self.status = status;
        self.since.insert(status.as_str().to_owned(), clock::unix_ms() / 1000);
    }

    /// When it came to stand there, in Unix seconds.
    pub fn since(&self, status: Status) -> Option<u64> {
        self.since.get(status.as_str()).copied()
    }
}
