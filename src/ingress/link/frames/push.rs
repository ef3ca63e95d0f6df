//! Results on their way to one device: in parts, repeated until the device has all of it.
//!
//! A pure value with explicit time. Owns the order and the waits; never knows where results come from.

use std::collections::VecDeque;

use holdfast_wire::frame::{CRC_BYTES, HEADER_BYTES};
use holdfast_wire::message::Answer;

use crate::ingress::link::core::Outcome;
use crate::spool::record::DeviceKey;

/// The first wait for an acknowledgement.
const WAIT_MIN_MS: u64 = 2_000;
/// The longest.
const WAIT_MAX_MS: u64 = 60_000;
/// What a part's other fields take at most: two u64, two bytes, an i32, an f32, two u32 and a length, each as postcard
/// writes its longest.
const FIELDS_BYTES: usize = 10 + 10 + 1 + 1 + 5 + 4 + 5 + 5 + 3;
/// After so many parts without an answer the next result has its turn.
const TRIES: u32 = 3;
/// Results held here; the others wait in the spool.
const RESULTS_MAX: usize = 16;
/// Requests whose result was taken a moment ago, for looks that began before.
const TAKEN_MAX: usize = 32;

struct Push {
    outcome: Outcome,
    key: u64,
    next: u32,
    due_ms: u64,
    wait_ms: u64,
    sends: u32,
    tag: u8,
}

/// One device's results.
#[derive(Default)]
pub(super) struct Pushes {
    waiting: VecDeque<Push>,
    taken: VecDeque<u64>,
    /// Those of them of which that could not be noted down.
    unnoted: Vec<u64>,
}

/// A part to be sent.
pub(super) struct Part<'a> {
    pub(super) answer: Answer<'a>,
    pub(super) tag: u8,
    pub(super) repeat: bool,
}

impl Pushes {
    /// Takes over what is to be told; what is known already stays where it stands.
    pub(super) fn add(&mut self, outcomes: Vec<Outcome>, now_ms: u64) {
        for outcome in outcomes {
            let DeviceKey::Number(key) = outcome.key else { continue };
            let known = self.waiting.iter().any(|push| push.outcome.request == outcome.request);
            if known || self.taken.contains(&outcome.request) || self.waiting.len() >= RESULTS_MAX {
                continue;
            }
            self.waiting.push_back(Push {
                outcome,
                key,
                next: 0,
                due_ms: now_ms,
                wait_ms: WAIT_MIN_MS,
                sends: 0,
                tag: 0,
            });
        }
    }

    /// Whoever asks for a result gets it first, and once more where it was taken before.
    pub(super) fn asked(&mut self, outcome: Outcome, now_ms: u64) {
        self.waiting.retain(|push| push.outcome.request != outcome.request);
        self.taken.retain(|request| *request != outcome.request);
        self.add(vec![outcome], now_ms);
        if let Some(push) = self.waiting.pop_back() {
            self.waiting.push_front(push);
        }
    }

    /// A new session: everything is offered again at once.
    pub(super) fn again(&mut self, now_ms: u64) {
        for push in &mut self.waiting {
            (push.due_ms, push.wait_ms, push.sends) = (now_ms, WAIT_MIN_MS, 0);
        }
    }

    /// When there is something to send.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.waiting.front().map(|push| push.due_ms)
    }

    /// Requests whose results are on their way.
    pub(super) fn known(&self) -> Vec<u64> {
        self.waiting.iter().map(|push| push.outcome.request).collect()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The part that is due; `tag` is what a new one is marked with.
    pub(super) fn part(&mut self, max_frame: usize, tag: u8, now_ms: u64) -> Option<Part<'_>> {
        if self.waiting.len() > 1
            && let Some(mut push) = self.waiting.pop_front_if(|push| push.sends >= TRIES)
        {
            push.sends = 0;
            self.waiting.push_back(push);
        }
        let push = self.waiting.front_mut().filter(|push| push.due_ms <= now_ms)?;
        let repeat = push.sends > 0;
        if !repeat {
            push.tag = tag;
        }
        push.sends += 1;
        push.due_ms = now_ms + push.wait_ms;
        push.wait_ms = (push.wait_ms * 2).min(WAIT_MAX_MS);
        let room = max_frame.saturating_sub(HEADER_BYTES + CRC_BYTES + FIELDS_BYTES).max(1);
        let rest = push.outcome.text.get(push.next as usize..).unwrap_or_default();
        let answer = Answer {
            req: push.outcome.request,
            key: push.key,
            status: push.outcome.status,
            source: push.outcome.source,
            code: push.outcome.code,
            value: push.outcome.value,
            off: push.next,
            total: push.outcome.text.len() as u32,
            text: &rest[..rest.len().min(room)],
        };
        Some(Part { answer, tag: push.tag, repeat })
    }

    /// The device has so much; gives the request whose result it has whole now.
    pub(super) fn acked(&mut self, key: u64, next: u32, now_ms: u64) -> Option<u64> {
        let at = self.waiting.iter().position(|push| push.key == key)?;
        let push = self.waiting.get_mut(at)?;
        if push.sends == 0 && push.next == 0 && next == 0 && !push.outcome.text.is_empty() {
            return None;
        }
        if next < push.outcome.text.len() as u32 {
            // The next part follows at once; the same one again waits, or two acknowledgements made two of it.
            if next != push.next {
                (push.next, push.due_ms, push.wait_ms, push.sends) = (next, now_ms, WAIT_MIN_MS, 0);
            }
            return None;
        }
        let request = push.outcome.request;
        self.waiting.remove(at);
        if self.taken.len() >= TAKEN_MAX {
            self.taken.pop_front();
        }
        self.taken.push_back(request);
        Some(request)
    }

    /// That it was taken could not be noted down: it is offered again, but not at once.
    pub(super) fn not_noted(&mut self, request: u64) {
        if self.unnoted.len() < TAKEN_MAX {
            self.unnoted.push(request);
        }
    }

    /// What could not be noted down may be offered again from now on.
    pub(super) fn forgive(&mut self) {
        let unnoted = std::mem::take(&mut self.unnoted);
        self.taken.retain(|request| !unnoted.contains(request));
    }
}
