//! What the device's own program is told.

use crate::message::{Answer, CancelAck, Nack, Progress, SubmitAck, TimeResp};

/// Something happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// A session is open; how the gateway stands.
    Online {
        /// 0 offline, 1 degraded, 2 online.
        uplink: u8,
        /// Unix time in milliseconds; 0 unknown.
        time_ms: u64,
    },
    /// The request is on the gateway's disk. One without a wish for a result may be forgotten now.
    Stored(SubmitAck),
    /// The gateway does not take this request and never will as it is: see [`crate::Code`]. With `key` 0 the session
    /// itself was refused.
    Refused(Nack<'a>),
    /// A part of the answer, in order, each part once. The request may be forgotten with the last one.
    Answer {
        /// Its numbers, and this part of its text.
        part: Answer<'a>,
        /// Nothing follows.
        last: bool,
    },
    /// The gateway finished this request, and its result is not kept any more: it may be forgotten.
    Gone {
        /// The device's key of it.
        key: u64,
    },
    /// Where a request stands.
    Progress(Progress),
    /// What became of a cancellation.
    Cancelled(CancelAck),
    /// The gateway's time.
    Time(TimeResp),
}
