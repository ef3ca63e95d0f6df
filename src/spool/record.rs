//! What goes into the spool and what comes out of it: in-memory shapes, not the on-disk ones.
//!
//! Owns the vocabulary between the spool's handle and its callers; never touches SQLite.

use bytes::Bytes;

use crate::body::Body;
pub use crate::control::price::Usage;
use crate::control::types::{Policy, Priority, State};

/// A request to be made durable.
#[derive(Debug, Clone)]
pub struct NewRequest {
    /// `req_` and 32 hexadecimal digits; chosen by the caller, unique.
    pub id: String,
    /// Who asks: `uid:1000`, a token's name, `link:<name>`.
    pub source: String,
    /// `X-Edge-Device`, where given.
    pub label: Option<String>,
    /// The path the body is for, such as `/v1/chat/completions`.
    pub endpoint: String,
    /// The model's name as the client wrote it.
    pub model: String,
    /// Its place in the order of the drain.
    pub priority: Priority,
    /// What it gets while offline.
    pub policy: Policy,
    /// The client's body, byte for byte.
    pub body: Body,
    /// `Idempotency-Key`, unique per source.
    pub idempotency_key: Option<String>,
    /// Time to live in milliseconds of powered-on time, counted from acceptance.
    pub ttl_ms: u64,
    /// Born `sending`: the caller is about to send it itself, and the mark must be on disk first.
    pub leased: bool,
    /// One send already left for it and its answer was never seen.
    pub maybe_billed: bool,
    /// What a device's request carries beside.
    pub device: Option<NewDevice>,
    /// The task it was made from.
    pub task: Option<u16>,
}

impl NewRequest {
    /// The record as it stands right after it was accepted.
    pub fn into_record(self, accepted: &Accepted, created_unix_ms: u64, position: u64) -> Record {
        Record {
            seq: accepted.seq,
            id: accepted.id.clone(),
            state: if self.leased { State::Sending } else { State::Queued },
            reason: None,
            source: self.source,
            label: self.label,
            endpoint: self.endpoint,
            model: self.model,
            priority: self.priority,
            policy: self.policy,
            created_unix_ms,
            ttl_left_ms: self.ttl_ms,
            attempts: 0,
            maybe_billed: self.maybe_billed,
            body_bytes: self.body.len(),
            body_hash: self.body.hash(),
            task: self.task,
            position,
            last_error: None,
            local: None,
            uplink: None,
        }
    }
}

/// What a device's request carries beside what every request has.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// Its own name for ever, in hexadecimal digits; the request's label too.
    pub uid: String,
    /// What it calls the request.
    pub key: DeviceKey,
    /// SHA-256 of what it sent: the same key with another content is refused.
    pub content: [u8; 32],
    /// It is to be told the result.
    pub wants_result: bool,
    /// What it asked for.
    pub ask: Ask,
    /// Longest text of the result in bytes; 0 for the gateway's limit.
    pub max_reply: u16,
}

/// What a device asked for, as far as its result is read by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A question: the answer's words.
    Chat,
    /// A request of its own making: the answer's JSON.
    Raw,
    /// The task of this number.
    Task(u16),
}

/// What a device calls a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DeviceKey {
    /// An epoch in the upper 32 bits, a counter in the lower ones.
    Number(u64),
    /// A word; nothing says in which order words come.
    Text(String),
    /// A mailbox and the number it was written with, which comes round again: only the latest is known.
    Mailbox {
        /// Which mailbox.
        slot: u8,
        /// The number it was written with.
        seq: u16,
    },
}

/// A device's request as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRequest {
    /// Its sequence number: the request's number on the link.
    pub seq: u64,
    /// Its id.
    pub id: String,
    /// Whose.
    pub uid: String,
    /// What the device calls it; `None` where that was lost.
    pub key: Option<DeviceKey>,
    /// Where it stands.
    pub state: State,
    /// Why, for final states other than `answered`.
    pub reason: Option<String>,
    /// The device waits for its result.
    pub wants_result: bool,
    /// The device has its result.
    pub handed_over: bool,
    /// What it asked for.
    pub ask: Ask,
    /// SHA-256 of what it sent.
    pub content: [u8; 32],
    /// Longest text of the result in bytes; 0 for the gateway's limit.
    pub max_reply: u16,
    /// The local model has answered, which is the device's result then.
    pub has_local: bool,
    /// What it gets while offline.
    pub policy: Policy,
}

/// What a device's key names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A request on record.
    Found(Box<DeviceRequest>),
    /// A request that ended and is gone.
    Finished,
    /// Nothing.
    Unknown,
}

/// What a mailbox was last written with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mailbox {
    /// Whose.
    pub uid: String,
    /// Which.
    pub slot: u8,
    /// The number it was written with.
    pub seq: u16,
    /// The request that became of it.
    pub request: u64,
}

/// Proof that a request is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its id: the new one, or that of the request the idempotency key already names.
    pub id: String,
    /// Its sequence number, from 1, never reused.
    pub seq: u64,
    /// True where the idempotency key and body were known before: nothing was stored.
    pub existing: bool,
    /// It is over, and its record is gone or was handed over to the device that asked.
    pub finished: bool,
}

/// One request handed out for one attempt; `sending` is already on disk.
#[derive(Debug, Clone)]
pub struct Leased {
    /// Its sequence number.
    pub seq: u64,
    /// Its id.
    pub id: String,
    /// Who asked.
    pub source: String,
    /// The path the body is for.
    pub endpoint: String,
    /// The model's name as the client wrote it.
    pub model: String,
    /// Its priority.
    pub priority: Priority,
    /// Attempts that counted so far, this one not included.
    pub attempts: u32,
    /// One earlier send may have been billed: this one is the last that is allowed.
    pub maybe_billed: bool,
    /// The key to send with: the client's own, else the request's id.
    pub idempotency_key: String,
    /// The task it was made from: what its answer must fit.
    pub task: Option<u16>,
    /// The client's body: a file where it is large, checked against its checksum.
    pub body: Body,
}

/// An uplink's answer, to be kept.
#[derive(Debug, Clone)]
pub struct UplinkAnswer {
    /// The uplink's configured name.
    pub uplink: String,
    /// The model that answered, as the answer names it.
    pub model: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// `Content-Type` of the answer.
    pub content_type: String,
    /// From the first byte sent to the last byte received.
    pub latency_ms: u64,
    /// Input and output tokens, where the answer says so.
    pub usage: Option<Usage>,
    /// The answer's bytes: a file where they are many.
    pub body: Body,
}

/// The local model's answer, to be kept beside the uplink's.
#[derive(Debug, Clone)]
pub struct LocalAnswer {
    /// The model that answered.
    pub model: String,
    /// From asking to the last byte.
    pub latency_ms: u64,
    /// The answer as OpenAI JSON.
    pub body: Bytes,
}

/// Why the latest attempt failed: a stable word and a sentence without any body text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    /// Stable, for programs and metrics.
    pub kind: String,
    /// For people.
    pub message: String,
}

/// How a lease ends.
#[derive(Debug, Clone)]
pub enum Settlement {
    /// The answer is recorded; final.
    Answered(UplinkAnswer),
    /// Back into the queue.
    Requeue {
        /// Whether this attempt counts against `max_attempts`.
        counted: bool,
        /// Not offered by `lease` again until `release`d (or the next start).
        deferred: bool,
        /// The send may have been billed: recorded before any further send.
        maybe_billed: bool,
        /// What happened; `None` where a lease is merely given back.
        error: Option<LastError>,
        /// What came of an answer that was cut (kept up to 64 KiB).
        came: Option<UplinkAnswer>,
    },
    /// Set aside; final. `answer` is the uplink's refusal where there was one (kept up to 64 KiB).
    Dead {
        /// Stable word: why.
        reason: String,
        /// What happened.
        error: LastError,
        /// The uplink's own words.
        answer: Option<UplinkAnswer>,
    },
}

impl Settlement {
    /// What the attempt took whose answer ends the request.
    pub fn latency_ms(&self) -> Option<u64> {
        match self {
            Settlement::Answered(answer) | Settlement::Dead { answer: Some(answer), .. } => Some(answer.latency_ms),
            Settlement::Dead { answer: None, .. } | Settlement::Requeue { .. } => None,
        }
    }
}

/// A stored request as it stands, for showing.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its sequence number.
    pub seq: u64,
    /// Its id.
    pub id: String,
    /// Where it stands.
    pub state: State,
    /// Why, for final states other than `answered`.
    pub reason: Option<String>,
    /// Who asked.
    pub source: String,
    /// `X-Edge-Device`, where given.
    pub label: Option<String>,
    /// The path the body is for.
    pub endpoint: String,
    /// The model's name as the client wrote it.
    pub model: String,
    /// Its priority.
    pub priority: Priority,
    /// Its policy.
    pub policy: Policy,
    /// Unix milliseconds of acceptance, as the wall clock said then.
    pub created_unix_ms: u64,
    /// Milliseconds of powered-on time left before it expires; 0 once final.
    pub ttl_left_ms: u64,
    /// Attempts that counted.
    pub attempts: u32,
    /// A send may have been billed without an answer.
    pub maybe_billed: bool,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// SHA-256 of the body.
    pub body_hash: [u8; 32],
    /// The task it was made from.
    pub task: Option<u16>,
    /// Requests that stand before it; 0 when not queued; counted up to 10,000.
    pub position: u64,
    /// The latest failure.
    pub last_error: Option<LastError>,
    /// The local model's answer and its Unix milliseconds; the body is empty in listings.
    pub local: Option<(LocalAnswer, u64)>,
    /// The uplink's answer and its Unix milliseconds; the body is empty in listings.
    pub uplink: Option<(UplinkAnswer, u64)>,
}

/// Which records a listing wants.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this state.
    pub state: Option<State>,
    /// Only this source.
    pub source: Option<String>,
    /// Only sequence numbers above this one.
    pub after: u64,
    /// At most this many; capped at 1,000.
    pub limit: u32,
}

/// Counts kept up to date by every commit; reading them costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests per state, in the order of [`State::ALL`].
    pub requests: [u64; 8],
    /// Body bytes of the states that are not final.
    pub backlog_bytes: u64,
    /// Bytes of everything kept: bodies and answers.
    pub kept_bytes: u64,
    /// Requests that `lease` would offer now: queued and not deferred.
    pub ready: u64,
    /// Powered-on milliseconds at which the oldest unfinished request was accepted.
    pub oldest_powered_ms: Option<u64>,
    /// Commits since start: the watchdog's proof of progress.
    pub commits: u64,
}

impl Tally {
    /// Requests in one state.
    pub fn in_state(&self, state: State) -> u64 {
        self.requests[state as usize]
    }

    /// Requests that wait: queued, sending, unknown.
    pub fn backlog(&self) -> u64 {
        State::ALL.iter().filter(|s| !s.is_final()).map(|s| self.in_state(*s)).sum()
    }
}
