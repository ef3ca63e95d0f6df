//! Whose turn it is on an RS-485 bus: the gateway asks each address in turn, one device answers at a time.
//!
//! A pure value with explicit time. Owns the turns and the waits; a device that does not answer costs the others one
//! short wait, and is asked less often.

use std::collections::BTreeMap;

/// Bytes a device may send in its turn: two frames of the usual length.
pub(super) const CREDIT: u16 = 2048;
/// A device that is there begins to answer within this, beside the time of the bytes on the wire.
const ANSWER_MS: u64 = 50;
/// Bytes that end a turn: those of the credit, as a frame that began within it may end behind it.
const TURN_BYTES_MAX: usize = CREDIT as usize + 1_040;
/// A turn's time beside that of its bytes on the wire: a device thinks between its frames, a serial server gathers bytes.
const TURN_MS: u64 = 1_000;
/// A turn lasts no longer than so many full frames on the wire, beside [`TURN_MS`]: twice what the credit allows.
const TURN_FRAMES: u64 = 6;
/// Turns without an answer after which an address counts as absent.
const MISSED_MAX: u32 = 3;
/// An absent address is asked once in so many rounds.
const ABSENT_EVERY: u32 = 16;
/// Rest after a round in which nobody had anything to say, so that an idle bus does not keep a small board busy.
const REST_MS: u64 = 20;

/// Who may speak.
#[derive(Debug)]
struct Turn {
    addr: u8,
    since_ms: u64,
    /// Silence is waited for until then.
    until_ms: u64,
    /// It is over then in any case.
    end_ms: u64,
    /// What its device sent in it.
    bytes: usize,
    spoke: bool,
}

/// How a turn ended without a device's word that it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing was heard of the device.
    Silent,
    /// It went on and on.
    Babbled,
}

/// The bus.
#[derive(Debug)]
pub(super) struct Bus {
    addresses: Vec<u8>,
    at: usize,
    round: u32,
    turn: Option<Turn>,
    /// Turns that each address missed, or did not end, in a row.
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
        let (until_ms, end_ms) = (now_ms + ANSWER_MS + self.frame_ms, now_ms + TURN_MS + TURN_FRAMES * self.frame_ms);
        self.turn = Some(Turn { addr, since_ms: now_ms, until_ms, end_ms, bytes: 0, spoke: false });
    }

    /// A frame of a device came, so long on the wire. `idle`: it has nothing more to say. Gives the time to its first
    /// answer. Noise is no frame and does not make a turn longer; nor does the gateway's own echo.
    pub(super) fn heard(&mut self, addr: u8, idle: bool, bytes: usize, now_ms: u64) -> Option<u64> {
        let turn = self.turn.as_mut().filter(|turn| turn.addr == addr)?;
        let since_ms = turn.since_ms;
        turn.bytes = turn.bytes.saturating_add(bytes);
        self.spoke |= !idle;
        if idle {
            self.missed.remove(&addr);
            self.turn = None;
        } else {
            (turn.spoke, turn.until_ms) = (true, now_ms + ANSWER_MS + self.frame_ms);
        }
        Some(now_ms.saturating_sub(since_ms))
    }

    /// Ends a turn whose time or bytes are over; says how where its device was silent, or did not stop.
    pub(super) fn tick(&mut self, now_ms: u64) -> Option<Ended> {
        let babbles = |turn: &Turn| now_ms >= turn.end_ms || turn.bytes > TURN_BYTES_MAX;
        let turn = self.turn.take_if(|turn| now_ms >= turn.until_ms || babbles(turn))?;
        if turn.spoke && !babbles(&turn) {
            // The word that it is over was lost.
            self.missed.remove(&turn.addr);
            return None;
        }
        let missed = self.missed.entry(turn.addr).or_default();
        *missed = missed.saturating_add(1);
        Some(if turn.spoke { Ended::Babbled } else { Ended::Silent })
    }

    /// When [`Bus::tick`] or [`Bus::next`] has something to do.
    pub(super) fn deadline_ms(&self) -> u64 {
        let of_turn = |turn: &Turn| if turn.bytes > TURN_BYTES_MAX { 0 } else { turn.until_ms.min(turn.end_ms) };
        self.turn.as_ref().map_or(self.rest_until_ms, of_turn)
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
                    assert_eq!(bus.heard(5, false, 9, now + 2), Some(2));
                    assert_eq!(bus.heard(5, true, 9, now + 3), Some(3));
                }
            }
            assert!(bus.heard(9, false, 9, now).is_none(), "somebody who was not asked");
            now = bus.deadline_ms().max(now + 1);
            bus.tick(now);
        }
        assert!(asked[&5] > 1_000 && asked[&6] > 50 && asked[&6] < asked[&5] / 10, "{asked:?}");
    }

    #[test]
    fn a_device_that_goes_on_and_on_does_not_keep_the_bus() {
        for by_bytes in [false, true] {
            let mut bus = Bus::new(vec![5, 6], 10);
            let (mut now, mut asked, mut ended) = (0, BTreeMap::<u8, u32>::new(), 0);
            while now < 10_000 {
                if let Some(addr) = bus.next(now) {
                    *asked.entry(addr).or_default() += 1;
                    bus.asked(addr, now);
                    if addr == 6 {
                        bus.heard(6, true, 9, now + 2);
                    }
                }
                // A frame of 5 each 20 ms, or, where bytes count, each millisecond; never the word that it is over.
                now += if by_bytes { 1 } else { 20 };
                bus.heard(5, false, if by_bytes { 200 } else { 20 }, now);
                ended += u32::from(bus.tick(now) == Some(Ended::Babbled));
            }
            assert!(asked[&6] > 20 && ended > 3, "{by_bytes}: {asked:?}, ended {ended} times");
            assert!(asked[&5] < asked[&6], "and it is asked less often: {asked:?}");
        }
    }

    #[test]
    fn an_idle_bus_rests() {
        let mut bus = Bus::new(vec![1], 10);
        let (mut now, mut polls) = (0, 0);
        while now < 1_000 {
            if let Some(addr) = bus.next(now) {
                polls += 1;
                bus.asked(addr, now);
                bus.heard(addr, true, 9, now + 1);
            }
            now = bus.deadline_ms().max(now + 1);
        }
        assert!((10..60).contains(&polls), "{polls}");
    }
}
