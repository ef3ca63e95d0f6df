//! The device: its memory survives a restart, the rest does not.
//!
//! Owns what it asks, what was acknowledged and what was handed over; speaks through the state machine that firmware uses.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_wire::device::{Device, Event, Identity, Keeper};
use holdfast_wire::frame::{CRC32, wire_bytes};
use holdfast_wire::message::{Answer, BlobRef, List, NO_RESULT, Op, Submit};
use holdfast_wire::{Deframer, Message};

use super::chance::Chance;

const OPEN: usize = 32;
/// Every request with a number like this only has to arrive.
const NO_RESULT_EVERY: u64 = 10;

/// One request as the device keeps it.
pub struct Kept {
    pub prompt: String,
    pub picture: Vec<u8>,
}

#[derive(Default)]
pub struct Memory {
    pub kept: BTreeMap<u64, Kept>,
}

pub fn wants_result(key: u64) -> bool {
    !(key & 0xFFFF_FFFF).is_multiple_of(NO_RESULT_EVERY)
}

impl Keeper for Memory {
    fn request(&self, key: u64) -> Option<Submit<'_>> {
        let kept = self.kept.get(&key)?;
        let mut blobs = List::new();
        if !kept.picture.is_empty() {
            let (len, crc32) = (kept.picture.len() as u32, CRC32.checksum(&kept.picture));
            blobs.push(BlobRef { blob: key as u32, len, crc32, mime: 1 }).unwrap();
        }
        let op = Op::Chat { model: "gpt-4o", system: "", user: &kept.prompt, max_tokens: 0, blobs };
        let flags = if wants_result(key) { 0 } else { NO_RESULT };
        Some(Submit { key, prio: 2, flags, op, ..Submit::default() })
    }

    fn picture(&self, key: u64, _blob: u32, off: u32, into: &mut [u8]) -> usize {
        let rest = self.kept.get(&key).and_then(|kept| kept.picture.get(off as usize..)).unwrap_or_default();
        let length = rest.len().min(into.len());
        into[..length].copy_from_slice(&rest[..length]);
        length
    }
}

/// A JPEG as far as its first bytes go.
pub fn jpeg(length: usize, chance: &mut Chance) -> Vec<u8> {
    let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE0];
    bytes.extend((4..length).map(|_| chance.next() as u8));
    bytes
}

/// How the device itself may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It gives its request up with the acknowledgement.
    ForgetsAtTheAck,
    /// It hands over every result that comes.
    HandsOverEach,
}

pub struct Firmware {
    pub memory: Memory,
    device: Device<'static, OPEN>,
    uid: &'static [u8],
    frame_ms: u32,
    boot_id: u32,
    wrong: Option<Wrong>,
    /// What was acknowledged as stored.
    pub acked: BTreeSet<u64>,
    /// The gateway's number of each, by key.
    pub numbers: BTreeMap<u64, u64>,
    /// Status of each result that was handed over, by key.
    pub results: BTreeMap<u64, Vec<u8>>,
    pub refused: Vec<String>,
    /// Results that belong to another request.
    pub torn: Vec<String>,
    text: BTreeMap<u64, Vec<u8>>,
    prompts: BTreeMap<u64, String>,
    raw: Vec<u8>,
}

fn device(uid: &'static [u8], boot_id: u32, frame_ms: u32, now_ms: u64) -> Device<'static, OPEN> {
    let identity = Identity {
        uid,
        boot_id,
        model: "test",
        fw: "1",
        caps: 0,
        token: None,
        addr: 0,
        max_frame: 1024,
        rx_credit: 4096,
        frame_ms,
        polled: false,
    };
    // A test's device lives as long as the test; its buffers may stay.
    Device::new(identity, vec![0; wire_bytes(1024)].leak(), vec![0; 960].leak(), now_ms)
}

impl Firmware {
    /// Holds these requests: a prompt and a picture, which may be empty. `quiet` ones all only have to arrive.
    pub fn new(
        uid: &'static [u8],
        frame_ms: u32,
        wrong: Option<Wrong>,
        quiet: bool,
        requests: Vec<(String, Vec<u8>)>,
    ) -> Firmware {
        let (mut memory, mut prompts) = (Memory::default(), BTreeMap::new());
        let step = if quiet { NO_RESULT_EVERY } else { 1 };
        for (number, (prompt, picture)) in (1..).zip(requests) {
            let key = 7_u64 << 32 | (number * step);
            prompts.insert(key, prompt.clone());
            memory.kept.insert(key, Kept { prompt, picture });
        }
        Firmware {
            memory,
            device: device(uid, 1, frame_ms, 0),
            uid,
            frame_ms,
            boot_id: 1,
            wrong,
            acked: BTreeSet::new(),
            numbers: BTreeMap::new(),
            results: BTreeMap::new(),
            refused: Vec::new(),
            torn: Vec::new(),
            text: BTreeMap::new(),
            prompts,
            raw: Vec::new(),
        }
    }

    /// Power off and on: all but the memory is gone.
    pub fn reboot(&mut self, now_ms: u64) {
        self.boot_id += 1;
        self.device = device(self.uid, self.boot_id, self.frame_ms, now_ms);
        self.text.clear();
    }

    pub fn line_lost(&mut self, now_ms: u64) {
        self.device.line_lost(now_ms);
    }

    pub fn prompts(&self) -> &BTreeMap<u64, String> {
        &self.prompts
    }

    /// Everything it asked has ended, as far as it knows.
    pub fn is_done(&self) -> bool {
        self.memory.kept.is_empty()
    }

    pub fn step(&mut self, bytes: &[u8], now_ms: u64, mut send: impl FnMut(&[u8])) {
        for byte in bytes {
            if self.wrong == Some(Wrong::HandsOverEach) {
                self.hand_over_each(*byte);
            }
            self.take(*byte, now_ms);
        }
        // After each start from another place on: firmware knows no order, and the gateway may rely on none.
        let first = 7_u64 << 32 | (u64::from(self.boot_id - 1) * 7 % (self.prompts.len() as u64 + 1));
        let kept = &self.memory.kept;
        let keys: Vec<u64> = kept.range(first..).chain(kept.range(..first)).map(|(key, _)| *key).take(OPEN).collect();
        for key in keys {
            let _ = self.device.submit(key, wants_result(key), now_ms);
        }
        let mut out = [0; wire_bytes(1024)];
        for _ in 0..16 {
            match self.device.poll(&self.memory, now_ms, &mut out) {
                0 => return,
                length => send(&out[..length]),
            }
        }
    }

    fn take(&mut self, byte: u8, now_ms: u64) {
        match self.device.receive(byte, now_ms) {
            Some(Event::Stored(ack)) => {
                self.acked.insert(ack.key);
                self.number(ack.key, ack.req);
                if !wants_result(ack.key) || self.wrong == Some(Wrong::ForgetsAtTheAck) {
                    self.memory.kept.remove(&ack.key);
                }
            }
            Some(Event::Answer { part, last }) => {
                let (key, req) = (part.key, part.req);
                let whole = Self::part(&mut self.text, part, last);
                self.number(key, req);
                if let Some((key, status, text)) = whole {
                    self.ended(key, status, &text);
                }
            }
            Some(Event::Gone { key }) => self.torn.push(format!("{key:x} ended without its result")),
            Some(Event::Refused(no)) => self.refused.push(format!("{:x}: {} {}", no.key, no.code, no.detail)),
            _ => {}
        }
    }

    /// A key that gets another number was forgotten after its acknowledgement; so was one whose number is another's.
    fn number(&mut self, key: u64, req: u64) {
        if req == 0 {
            return;
        }
        let before = self.numbers.insert(key, req);
        if let Some(before) = before.filter(|before| *before != req) {
            self.torn.push(format!("{key:x} was acknowledged as request {before} and as request {req}"));
        }
        if let Some(other) = self.numbers.iter().find(|(other, number)| **other != key && **number == req) {
            self.torn.push(format!("{key:x} and {:x} were both acknowledged as request {req}", other.0));
        }
    }

    fn ended(&mut self, key: u64, status: u8, text: &str) {
        if self.wrong != Some(Wrong::HandsOverEach) {
            self.results.entry(key).or_default().push(status);
        }
        self.memory.kept.remove(&key);
        let own = self.prompts.get(&key).is_some_and(|prompt| text.contains(prompt.as_str()));
        if status == 0 && !own {
            self.torn.push(format!("{key:x} got {text:?}"));
        }
    }

    fn part(text: &mut BTreeMap<u64, Vec<u8>>, part: Answer<'_>, last: bool) -> Option<(u64, u8, String)> {
        text.entry(part.key).or_default().extend_from_slice(part.text);
        let whole = last.then(|| text.remove(&part.key).unwrap_or_default())?;
        Some((part.key, part.status, String::from_utf8_lossy(&whole).into_owned()))
    }

    /// The mistake: what a program does that asks nobody whether a result came before.
    fn hand_over_each(&mut self, byte: u8) {
        self.raw.push(byte);
        if byte != 0 {
            return;
        }
        let (mut buffer, raw) = (vec![0; 2_000], std::mem::take(&mut self.raw));
        let mut deframer = Deframer::new(&mut buffer);
        for byte in raw {
            let Some(Ok(frame)) = deframer.push(byte) else { continue };
            if let Ok(Message::Result(part)) = Message::read(frame.header.kind, frame.payload)
                && part.off as usize + part.text.len() >= part.total as usize
            {
                self.results.entry(part.key).or_default().push(part.status);
            }
        }
    }
}
