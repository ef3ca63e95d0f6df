//! Whose turn it is on an RS-485 bus: the gateway asks each address in turn, one device answers at a time.
//!
//! A pure value with explicit time. Owns the turns and the waits; a device that does not answer costs the others one
//! short wait, and is asked less often.

use std::collections::BTreeMap;

/// Bytes a device may send in its turn: two frames of the usual length.
pub(super) const CREDIT: u16 = 2048;
/// A device that is there begins to answer within this, beside the time of the bytes on the wire.
const ANSWER_MS: u64 = 50;
/// Turns without an answer after which an address counts as absent.
const MISSED_MAX: u32 = 3;
/// An absent address is asked once in so many rounds.
const ABSENT_EVERY: u32 = 16;
/// Rest after a round in which nobody had anything to say, so that an idle bus does not keep a small board busy.
const REST_MS: u64 = 20;

/// The bus.
#[derive(Debug)]
pub(super) struct Bus {
    addresses: Vec<u8>,
    at: usize,
    round: u32,
    /// Who may speak, since when, and until when silence is waited for.
    turn: Option<(u8, u64, u64)>,
    /// Turns that each address missed in a row.
    missed: BTreeMap<u8, u32>,
    spoke: bool,
    rest_until_ms: u64,
    /// Milliseconds of one full frame on the wire.
    frame_ms: u64,
}

impl Bus {
    /// Nobody was asked yet.
    pub(super) fn new(addresses: Vec<u8>, frame_ms: u64) -> Bus {
        Bus {
            addresses,
            at: 0,
            round: 0,
            turn: None,
            missed: BTreeMap::new(),
            spoke: false,
            rest_until_ms: 0,
            frame_ms,
        }
    }

    /// Whom to ask now; `None` while somebody may speak, or while the bus rests.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<u8> {
        if self.turn.is_some() || now_ms < self.rest_until_ms || self.addresses.is_empty() {
            return None;
        }
        for _ in 0..=self.addresses.len() {
            if self.at >= self.addresses.len() {
                (self.at, self.round) = (0, self.round.wrapping_add(1));
                if !std::mem::take(&mut self.spoke) {
                    self.rest_until_ms = now_ms + REST_MS;
                    return None;
                }
            }
            let addr = self.addresses[self.at];
            self.at += 1;
            let is_absent = self.missed.get(&addr).is_some_and(|missed| *missed >= MISSED_MAX);
            if !is_absent || self.round.is_multiple_of(ABSENT_EVERY) {
                return Some(addr);
            }
        }
        None
    }

    /// It was asked; its words were on the wire at `now_ms`.
    pub(super) fn asked(&mut self, addr: u8, now_ms: u64) {
        self.turn = Some((addr, now_ms, now_ms + ANSWER_MS + self.frame_ms));
    }

    /// A frame of a device came. `idle`: it has nothing more to say. Gives the time to its first answer.
    pub(super) fn heard(&mut self, addr: u8, idle: bool, now_ms: u64) -> Option<u64> {
        let (_, since, _) = self.turn.filter(|(whose, ..)| *whose == addr)?;
        self.missed.remove(&addr);
        self.spoke |= !idle;
        self.turn = (!idle).then_some((addr, since, now_ms + ANSWER_MS + self.frame_ms));
        Some(now_ms.saturating_sub(since))
    }

    /// Ends a turn whose time is over; true where its device said nothing at all.
    pub(super) fn tick(&mut self, now_ms: u64) -> bool {
        let Some((addr, ..)) = self.turn.filter(|(.., until)| now_ms >= *until) else { return false };
        self.turn = None;
        let missed = self.missed.entry(addr).or_default();
        *missed = missed.saturating_add(1);
        true
    }

    /// When [`Bus::tick`] or [`Bus::next`] has something to do.
    pub(super) fn deadline_ms(&self) -> u64 {
        self.turn.map_or(self.rest_until_ms, |(.., until)| until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_turn_and_one_that_is_silent_keeps_nobody_waiting_long() {
        let mut bus = Bus::new(vec![5, 6], 10);
        let (mut now, mut asked) = (0, BTreeMap::<u8, u32>::new());
        while now < 10_000 {
            if let Some(addr) = bus.next(now) {
                *asked.entry(addr).or_default() += 1;
                bus.asked(addr, now);
                if addr == 5 {
                    assert_eq!(bus.heard(5, false, now + 2), Some(2));
                    assert_eq!(bus.heard(5, true, now + 3), Some(3));
                }
            }
            assert!(bus.heard(9, false, now).is_none(), "somebody who was not asked");
            now = bus.deadline_ms().max(now + 1);
            bus.tick(now);
        }
        assert!(asked[&5] > 1_000 && asked[&6] > 50 && asked[&6] < asked[&5] / 10, "{asked:?}");
    }

    #[test]
    fn an_idle_bus_rests() {
        let mut bus = Bus::new(vec![1], 10);
        let (mut now, mut polls) = (0, 0);
        while now < 1_000 {
            if let Some(addr) = bus.next(now) {
                polls += 1;
                bus.asked(addr, now);
                bus.heard(addr, true, now + 1);
            }
            now = bus.deadline_ms().max(now + 1);
        }
        assert!((10..60).contains(&polls), "{polls}");
    }
}
