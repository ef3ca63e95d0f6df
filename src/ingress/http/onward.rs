//! An uplink's answer on its way to the caller: held back until it has begun well, then passed on piece by piece.
//!
//! Owns how much is held back and the honest end of what broke off. Chooses no target.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use hyper::header::{CONTENT_LENGTH, HeaderValue};

use super::answer::{self, Origin};
use super::call::Call;
use crate::body::Bodies;
use crate::body::scan::Scan;
use crate::clock;
use crate::control::event::{Fault, Outcome};
use crate::gateway::{self, LiveAttempt};
use crate::uplink::classify;
use crate::uplink::cloud::{ANSWER_BYTES_MAX, Reply, Whole};
use crate::uplink::usage::{self, Summary, TAIL_BYTES};

/// So much of an answer is held back: one that fails before is replaced silently by the next target, and most answers
/// are whole by then. It is what each caller's answer costs in memory; the number of requests at once bounds the sum.
pub const HELD_BACK_BYTES: usize = 64 * 1024;

/// An answer whose beginning is here.
pub enum Came {
    /// It is all of it, or an error with as much of its words as is passed on; and what it says of itself.
    Whole(Whole, Summary),
    /// More follows.
    Begun(Box<Begun>),
}

impl Came {
    /// All of it, for a stored request's record.
    pub async fn read_on(self, bodies: &Bodies) -> gateway::Received {
        match self {
            Came::Whole(head, _) => gateway::Received { body: head.body.clone().into(), head, failed: None },
            Came::Begun(begun) => {
                let Begun { first, mut reply, .. } = *begun;
                let head = reply.with_body(first.clone());
                let (body, failed) = reply.receive(first, bodies, ANSWER_BYTES_MAX).await;
                gateway::Received { head, body, failed }
            }
        }
    }
}

/// The beginning of a good answer.
pub struct Begun {
    first: Bytes,
    reply: Reply,
    scan: Scan,
}

/// Holds back the beginning of an answer and says what it means so far.
pub async fn begin(mut reply: Reply) -> (Outcome, Option<Came>) {
    let (first, ended) = match reply.beginning(HELD_BACK_BYTES).await {
        Ok(beginning) => beginning,
        Err(error) => return (error.outcome, None),
    };
    let whole = reply.with_body(first.clone());
    let outcome = classify::attempt(&whole);
    let passed = |said| (outcome, Some(Came::Whole(whole, said)));
    if outcome != Outcome::Delivered {
        return passed(usage::read(&first));
    }
    // What reads the tokens sees on its way that nothing is missing: most answers are read once.
    if ended && let Some(said) = usage::read_whole(&first) {
        return passed(said);
    }
    let mut scan = Scan::default();
    scan.feed(&first);
    if scan.is_deep() {
        (Outcome::NoAnswer, None)
    } else if !ended {
        (outcome, Some(Came::Begun(Box::new(Begun { first, reply, scan }))))
    } else if scan.is_cut() {
        (Outcome::Unknown(Fault::Truncated), None)
    } else {
        passed(usage::read(&first))
    }
}

/// What is still to come of an answer.
struct Onward {
    reply: Reply,
    scan: Scan,
    /// The latest piece. It goes only when the next one has come, or the end has proved good: after the last byte of
    /// a stated length nothing could be taken back.
    held: Bytes,
    attempt: LiveAttempt,
    call: Arc<Call>,
    origin: Origin,
    bytes: u64,
    /// The last bytes of what has come.
    tail: Vec<u8>,
    /// When the caller got the latest piece.
    handed: Instant,
}

/// Passes an answer on. Control learns how it went at its end; a caller that goes away gives the attempt up.
pub fn pass(call: Arc<Call>, begun: Box<Begun>, attempt: LiveAttempt, origin: Origin) -> Response {
    let Begun { first, reply, scan } = *begun;
    let length = reply.length().map(|left| left + first.len() as u64);
    let mut response = answer::from_uplink(reply.with_body(Bytes::new()), &origin);
    let bytes = first.len() as u64;
    let mut tail = Vec::new();
    keep_tail(&mut tail, &first);
    let onward = Onward { reply, scan, held: first, attempt, call, origin, bytes, tail, handed: clock::now() };
    let body = stream::unfold(Some(onward), |onward| async move { Some(onward?.next().await) });
    *response.body_mut() = Body::from_stream(body);
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

impl Onward {
    /// The next piece. After an error the server breaks the connection: half an answer must not look like one.
    async fn next(mut self) -> (io::Result<Bytes>, Option<Onward>) {
        self.reply.excuse(clock::now().duration_since(self.handed));
        let failed = match self.reply.next().await {
            None if self.scan.is_cut() => Outcome::Unknown(Fault::Truncated),
            None => {
                let last = std::mem::take(&mut self.held);
                self.end(Outcome::Delivered, "ok");
                return (Ok(last), None);
            }
            Some(Err(error)) => error.outcome,
            Some(Ok(piece)) => {
                self.bytes += piece.len() as u64;
                self.scan.feed(&piece);
                keep_tail(&mut self.tail, &piece);
                if self.bytes <= ANSWER_BYTES_MAX && !self.scan.is_deep() {
                    let before = std::mem::replace(&mut self.held, piece);
                    self.handed = clock::now();
                    return (Ok(before), Some(self));
                }
                Outcome::NoAnswer
            }
        };
        self.end(failed, failed.class());
        (Err(io::ErrorKind::ConnectionAborted.into()), None)
    }

    fn end(mut self, outcome: Outcome, how: &'static str) {
        let summary = Summary { model: None, usage: usage::in_tail(&self.tail) };
        self.attempt.spent(&self.call.head.model, &summary);
        self.attempt.end(outcome);
        self.call.app.answered(&self.call, &self.origin, how);
    }
}

/// Keeps the last bytes of what has come: tokens stand there.
pub fn keep_tail(tail: &mut Vec<u8>, piece: &[u8]) {
    tail.extend_from_slice(&piece[piece.len().saturating_sub(TAIL_BYTES)..]);
    tail.drain(..tail.len().saturating_sub(TAIL_BYTES));
}
