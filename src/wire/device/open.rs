//! The requests that are not finished: what each one waits for.

use super::repeat::Repeat;

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The durable acknowledgement; the request is repeated until it comes.
    Submitting,
    /// Its picture is on the way.
    Uploading,
    /// The result; the gateway pushes it.
    Stored,
    /// The gateway says that it is finished, the device has no result: asked for until it comes, or until the gateway
    /// has said often enough that there is none.
    Asking,
}

/// One unfinished request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    pub(super) key: u64,
    pub(super) stage: Stage,
    pub(super) wants_result: bool,
    /// The first byte of the result's text that is not there yet.
    pub(super) next: u32,
    pub(super) repeat: Repeat,
}

impl Open {
    pub(super) fn new(key: u64, wants_result: bool, now_ms: u64) -> Self {
        Self { key, stage: Stage::Submitting, wants_result, next: 0, repeat: Repeat::now(now_ms) }
    }

    pub(super) fn enter(&mut self, stage: Stage, now_ms: u64) {
        self.stage = stage;
        self.repeat = Repeat::now(now_ms);
    }
}
