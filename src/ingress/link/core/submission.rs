//! What a dialect hands in, and what it gets back.
//!
//! Plain values only. Owns the hash by which a key's content is known again, and no rule.

use std::path::PathBuf;

use bytes::Bytes;
use holdfast_wire::Code;
use sha2::{Digest, Sha256};

use crate::spool::record::{Ask, DeviceKey};

/// What a device asks the gateway to do.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Whose: its own name for ever, in hexadecimal digits.
    pub uid: String,
    /// What the device calls it.
    pub key: DeviceKey,
    /// 0 critical to 3 low.
    pub prio: u8,
    /// Seconds until nobody wants the answer any more; 0 for the gateway's default.
    pub ttl_s: u32,
    /// As in the message Submit: `NO_RESULT`, `LOCAL_ONLY`, `UPLINK_ONLY` of `holdfast_wire::message`.
    pub flags: u8,
    /// Longest text of the result in bytes; 0 for the gateway's limit.
    pub max_reply: u16,
    /// What is asked.
    pub op: Op,
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum Op {
    /// A canned prompt of the configuration.
    Task {
        /// Its number.
        id: u16,
        /// Its arguments, in order.
        args: Vec<String>,
        /// Its pictures.
        pictures: Vec<Upload>,
    },
    /// A question of the device's own.
    Chat {
        /// The model; empty for the gateway's choice.
        model: String,
        /// What the model is told to be; may be empty.
        system: String,
        /// The question.
        user: String,
        /// Longest answer in tokens; 0 for the model's own limit.
        max_tokens: u16,
        /// Its pictures.
        pictures: Vec<Upload>,
    },
    /// A whole request in JSON.
    Raw {
        /// 0 chat completions, 1 completions, 2 embeddings.
        endpoint: u8,
        /// Its body.
        json: Bytes,
    },
    /// The same, uploaded as a picture is.
    RawUpload {
        /// As in `Raw`.
        endpoint: u8,
        /// Its body.
        body: Upload,
    },
}

/// Bytes that came apart from the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Their number.
    pub len: u32,
    /// Their CRC-32.
    pub crc32: u32,
    /// 1 JPEG, 2 PNG, 3 WebP.
    pub mime: u8,
    /// Where they are; not needed to ask whether the request is known already.
    pub file: Option<PathBuf>,
}

impl Submission {
    /// SHA-256 of what is asked: the same key with another one is refused. What a template makes of it does not
    /// count, and neither do urgency and time to live, which say nothing about what the answer is to.
    pub fn content(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(&[self.flags]);
        let uploads = match &self.op {
            Op::Task { id, args, pictures } => {
                field(&[0]);
                field(&id.to_le_bytes());
                for arg in args {
                    field(arg.as_bytes());
                }
                pictures.as_slice()
            }
            Op::Chat { model, system, user, max_tokens, pictures } => {
                field(&[1]);
                for text in [model, system, user] {
                    field(text.as_bytes());
                }
                field(&max_tokens.to_le_bytes());
                pictures.as_slice()
            }
            Op::Raw { endpoint, json } => {
                field(&[2, *endpoint]);
                field(json);
                &[]
            }
            Op::RawUpload { endpoint, body } => {
                field(&[3, *endpoint]);
                std::slice::from_ref(body)
            }
        };
        for upload in uploads {
            field(&upload.len.to_le_bytes());
            field(&upload.crc32.to_le_bytes());
            field(&[upload.mime]);
        }
        hash.finalize().into()
    }

    /// By what its result will be read.
    pub(super) fn ask(&self) -> Ask {
        match &self.op {
            Op::Task { id, .. } => Ask::Task(*id),
            Op::Chat { .. } => Ask::Chat,
            Op::Raw { .. } | Op::RawUpload { .. } => Ask::Raw,
        }
    }

    /// What has to be there before it can be stored.
    pub fn uploads(&self) -> &[Upload] {
        match &self.op {
            Op::Task { pictures, .. } | Op::Chat { pictures, .. } => pictures,
            Op::RawUpload { body, .. } => std::slice::from_ref(body),
            Op::Raw { .. } => &[],
        }
    }
}

/// It is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The gateway's own number; 0 where only the key is known any more.
    pub request: u64,
    /// How many stand before it.
    pub position: u64,
    /// Whether it was there before.
    pub how: How,
}

/// Whether a submission was new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It was: outcome 0.
    New,
    /// It was stored before: outcome 2.
    Again,
    /// It was stored before and is over: outcome 3.
    Finished,
}

/// Why the gateway says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The number on the wire.
    pub code: Code,
    /// Milliseconds until it makes sense again; 0 where it does not.
    pub retry_ms: u32,
    /// For people; never a device's own words.
    pub detail: String,
}

impl Refusal {
    /// One that no repeat changes.
    pub fn new(code: Code, detail: impl Into<String>) -> Refusal {
        Refusal { code, retry_ms: 0, detail: detail.into() }
    }

    /// One that may go away.
    pub fn for_now(code: Code, retry_ms: u32, detail: impl Into<String>) -> Refusal {
        Refusal { code, retry_ms, detail: detail.into() }
    }
}

/// Where a request stands, as the link says it: the numbers of Progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// 1 uploading, 2 queued, 3 in flight, 4 done, 5 failed, 6 expired, 7 cancelled.
    pub state: u8,
    /// How many stand before it.
    pub position: u64,
    /// Seconds until an answer may be expected; 0 where nobody knows.
    pub eta_s: u64,
}

/// A device's one result of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The gateway's own number.
    pub request: u64,
    /// What the device calls it.
    pub key: DeviceKey,
    /// 0 ok, 1 failed, 2 expired, 3 cancelled, 4 truncated, 5 refused.
    pub status: u8,
    /// 1 uplink, 2 local, 3 cache; 0 where nobody answered.
    pub source: u8,
    /// The task's number for the answer.
    pub code: i32,
    /// The task's value.
    pub value: f32,
    /// The text, no longer than the device asked for.
    pub text: Bytes,
}

/// Results that a device is to be told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results {
    /// Oldest first.
    pub outcomes: Vec<Outcome>,
    /// Some could not be looked up now: to be asked for again after a while.
    pub again: bool,
}

/// What a key names.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Nothing: the device submits it again.
    Unknown,
    /// A request that is not over, or over and gone.
    Progress(Progress),
    /// A request that has its result.
    Result(Outcome),
}

/// What became of a Cancel, as the link says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It is cancelled.
    Yes,
    /// It is being sent, or over.
    TooLate,
    /// Nobody knows such a key.
    Unknown,
}
