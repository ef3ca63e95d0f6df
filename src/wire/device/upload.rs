//! One picture on its way: what was sent, what has arrived, what may still be on the line.

use super::repeat::Repeat;

/// Where an upload stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upload {
    pub(super) key: u64,
    pub(super) blob: u32,
    /// Its length, once the keeper was asked.
    pub(super) len: Option<u32>,
    /// The gateway has all before this.
    acked: u32,
    /// All before this was sent.
    sent: u32,
    credit: u32,
    /// The gateway asked for the same byte again, and it was sent again; once per byte it asks for.
    went_back: bool,
    /// Runs while bytes are on the way.
    pub(super) repeat: Repeat,
}

impl Upload {
    pub(super) fn new(key: u64, blob: u32, from: u32, credit: u16, now_ms: u64) -> Self {
        let (len, credit) = (None, u32::from(credit));
        Self { key, blob, len, acked: from, sent: from, credit, went_back: false, repeat: Repeat::now(now_ms) }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.len.is_some_and(|len| self.acked >= len)
    }

    /// The next piece that may leave: where it begins and how long it may be.
    pub(super) fn next_piece(&self, chunk: u16) -> Option<(u32, u32)> {
        let limit = self.acked.saturating_add(self.credit).min(self.len.unwrap_or(0));
        let length = limit.saturating_sub(self.sent).min(u32::from(chunk));
        (length > 0).then_some((self.sent, length))
    }

    pub(super) fn piece_sent(&mut self, length: u32) {
        self.sent = self.sent.saturating_add(length);
    }

    /// Whether bytes are on the way that nobody confirmed.
    pub(super) fn is_waiting(&self) -> bool {
        self.sent > self.acked
    }

    /// The gateway tells how far it is; that may also be less than before.
    pub(super) fn confirmed(&mut self, next: u32, credit: u16, now_ms: u64) {
        let next = next.min(self.len.unwrap_or(next));
        self.credit = u32::from(credit);
        if next < self.acked {
            (self.sent, self.went_back) = (next, false);
        } else if next > self.acked {
            (self.sent, self.went_back) = (self.sent.max(next), false);
        } else if !self.went_back && self.sent > next {
            // The same byte once more: a piece was lost, and all behind it is of no use.
            (self.sent, self.went_back) = (next, true);
        }
        self.acked = next;
        self.repeat = Repeat::now(now_ms);
    }

    /// Nothing was heard for too long: from the first unconfirmed byte again.
    pub(super) fn go_back(&mut self) {
        (self.sent, self.went_back) = (self.acked, false);
    }
}
