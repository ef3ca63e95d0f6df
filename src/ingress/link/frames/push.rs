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
/// After so many parts without an answer the next result has its turn. From then on one part is enough, and the shortest wait for its
/// answer: what a device never acknowledges must not hold up the rest.
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
    sent_ms: u64,
    /// It had its tries and was not acknowledged.
    in_vain: bool,
    tag: u8,
}

impl Push {
    /// When the next result has its turn.
    fn yields_ms(&self) -> u64 {
        if self.in_vain { self.sent_ms + WAIT_MIN_MS } else { self.due_ms }
    }

    fn is_done(&self, now_ms: u64) -> bool {
        self.sends >= TRIES || (self.in_vain && self.sends > 0 && self.yields_ms() <= now_ms)
    }
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
                sent_ms: now_ms,
                in_vain: false,
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
            (push.due_ms, push.wait_ms, push.sends, push.in_vain) = (now_ms, WAIT_MIN_MS, 0, false);
        }
    }

    /// When there is something to send.
    pub(super) fn due_ms(&self) -> Option<u64> {
        let front = self.waiting.front()?;
        match front.sends {
            0 => self.waiting.iter().map(|push| push.due_ms).min(),
            _ if self.waiting.len() > 1 => Some(front.due_ms.min(front.yields_ms())),
            _ => Some(front.due_ms),
        }
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
            && let Some(mut push) = self.waiting.pop_front_if(|push| push.is_done(now_ms))
        {
            (push.sends, push.in_vain) = (0, true);
            self.waiting.push_back(push);
        }
        // Whoever has its wait before it lets pass who is due.
        let due = self.waiting.iter().position(|push| push.due_ms <= now_ms);
        if self.waiting.front().is_some_and(|front| front.sends == 0)
            && let Some(push) = due.and_then(|at| self.waiting.remove(at))
        {
            self.waiting.push_front(push);
        }
        let push = self.waiting.front_mut().filter(|push| push.due_ms <= now_ms)?;
        let repeat = push.sends > 0;
        if !repeat {
            push.tag = tag;
        }
        push.sends += 1;
        push.sent_ms = now_ms;
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
                push.in_vain = false;
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn outcome(request: u64) -> Outcome {
        let key = DeviceKey::Number(request);
        Outcome { request, key, status: 0, source: 1, code: 0, value: 0.0, text: Bytes::from_static(b"text") }
    }

    #[test]
    fn what_a_device_never_acknowledges_holds_up_the_others_for_moments_only() {
        let (mut pushes, mut now_ms, mut sends, mut looks) = (Pushes::default(), 0, 0, 0);
        pushes.add(vec![outcome(1)], now_ms);
        let mut longest_ms = 0;
        for request in 2..200 {
            // A new one every 20 seconds, which it takes at once.
            pushes.add(vec![outcome(request)], now_ms);
            let (began_ms, next_ms) = (now_ms, now_ms + 20_000);
            while let Some(due_ms) = pushes.due_ms().filter(|due| *due < next_ms) {
                now_ms = now_ms.max(due_ms);
                looks += 1;
                let Some(part) = pushes.part(1024, 1, now_ms) else { continue };
                sends += 1;
                let key = part.answer.key;
                if key != 1 {
                    longest_ms = longest_ms.max(now_ms - began_ms);
                    assert_eq!(pushes.acked(key, 4, now_ms), Some(key));
                }
            }
            now_ms = next_ms;
        }
        assert_eq!(pushes.known(), [1], "all others were taken");
        assert!(longest_ms <= WAIT_MIN_MS + 4_000 + 8_000, "{longest_ms}");
        // It is offered on, at the longest wait.
        assert!((198 + 60..198 + 90).contains(&sends), "{sends}");
        assert!(looks < sends * 2, "{looks} looks for {sends} sends");
    }
}
