//! The model's spool: rows that are offered, leased, settled and released, one disk operation after the other.

use super::super::*;
use super::{Happening, World};

#[derive(Debug)]
pub(super) enum DiskOp {
    Lease(u32, Vec<String>, Option<u32>),
    Settle { seq: u64, verdict: Verdict },
    Release(Vec<u64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowState {
    Queued,
    Deferred,
    Sending,
    Over,
}

#[derive(Debug)]
pub(super) struct Row {
    pub(super) state: RowState,
    pub(super) model: &'static str,
    pub(super) attempts: u32,
    /// On disk; `billed` is the truth.
    pub(super) maybe_billed: bool,
    pub(super) billed: u32,
    /// Paid for by the live attempt before it was stored.
    pub(super) born_billed: bool,
    pub(super) dead: bool,
    pub(super) settling: bool,
}

impl Row {
    /// The process that had it is gone.
    pub(super) fn orphaned(&mut self, hold_unknown: bool) {
        self.settling = false;
        if self.state == RowState::Sending && (self.maybe_billed || hold_unknown) {
            (self.state, self.dead) = (RowState::Over, true);
        } else {
            self.maybe_billed |= self.state == RowState::Sending;
            self.state = RowState::Queued;
        }
    }
}

impl World {
    /// The disk does one thing after the other, each in up to 20 ms.
    pub(super) fn disk(&mut self, op: DiskOp) {
        self.disk_free_ms = self.disk_free_ms.max(self.now_ms) + self.chance.up_to(20);
        self.at(self.disk_free_ms, Happening::Disk(op));
    }

    pub(super) fn settle(&mut self, seq: u64, verdict: Verdict) {
        let Some(row) = self.rows.get_mut(&seq) else { panic!("request {seq} is not known") };
        assert!(row.state == RowState::Sending && !row.settling, "request {seq} is settled twice: {row:?}");
        row.settling = true;
        self.offered.retain(|offered| *offered != seq);
        self.disk(DiskOp::Settle { seq, verdict });
    }

    pub(super) fn disk_done(&mut self, op: DiskOp) {
        match op {
            DiskOp::Lease(max, except, labelled) => return self.lease(max, &except, labelled),
            DiskOp::Settle { seq, verdict } => self.settled(seq, verdict),
            DiskOp::Release(seqs) => seqs.into_iter().for_each(|seq| self.released(seq)),
        }
        self.tell_count();
    }

    pub(super) fn lease(&mut self, max: u32, except: &[String], labelled: Option<u32>) {
        if self.chance.up_to(200) == 0 {
            return self.after(5, Happening::Tell(Event::LeaseFailed));
        }
        let mut labelled_left = labelled.unwrap_or(max);
        let wanted = |seq: &&u64| {
            let row = &self.rows[*seq];
            let left_out = except.iter().any(|model| model == row.model) || (row.maybe_billed && labelled_left == 0);
            labelled_left -= u32::from(!left_out && row.maybe_billed);
            !left_out
        };
        let seqs: Vec<u64> = self.offerable.iter().filter(wanted).take(max as usize).copied().collect();
        let mut items = Vec::new();
        for seq in seqs {
            self.offerable.remove(&seq);
            let Some(row) = self.rows.get_mut(&seq) else { panic!("request {seq} is not known") };
            row.state = RowState::Sending;
            items.push(Item {
                seq,
                model: row.model.to_owned(),
                attempts: row.attempts,
                maybe_billed: row.maybe_billed,
                urgent: false,
            });
        }
        self.offered.extend(items.iter().map(|item| item.seq));
        // The count and the rows come by different ways, in either order.
        self.after(3, Happening::Tell(Event::Leased(items)));
        let count = self.offerable.len() as u64;
        self.at(self.now_ms + 1, Happening::Tell(Event::Ready(count)));
    }

    pub(super) fn settled(&mut self, seq: u64, verdict: Verdict) {
        let Some(row) = self.rows.get_mut(&seq) else { panic!("request {seq} is not known") };
        row.settling = false;
        assert_eq!(row.state, RowState::Sending, "request {seq} has an outcome already");
        match verdict {
            Verdict::Answered => row.state = RowState::Over,
            Verdict::Dead(_) => (row.state, row.dead) = (RowState::Over, true),
            Verdict::Requeue { counted, deferred, maybe_billed } => {
                row.attempts += u32::from(counted);
                row.maybe_billed |= maybe_billed;
                row.state = if deferred { RowState::Deferred } else { RowState::Queued };
                if !deferred {
                    self.offerable.insert(seq);
                }
            }
        }
    }

    pub(super) fn released(&mut self, seq: u64) {
        if let Some(row) = self.rows.get_mut(&seq).filter(|row| row.state == RowState::Deferred) {
            row.state = RowState::Queued;
            self.offerable.insert(seq);
        }
    }
}
