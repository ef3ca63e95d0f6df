//! A device's own program: a memory that survives its restarts, and the state machine under test.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_wire::device::{Device, Event, Identity, Keeper};
use holdfast_wire::frame::CRC32;
use holdfast_wire::message::{BlobRef, List, NO_RESULT, Op, Submit};

use super::chance::Chance;

/// What a device keeps over a power cut.
#[derive(Default)]
struct Memory {
    pictures: BTreeMap<u64, Vec<u8>>,
    unfinished: BTreeSet<u64>,
    forgotten: BTreeSet<u64>,
}

impl Keeper for Memory {
    fn request(&self, key: u64) -> Option<Submit<'_>> {
        let known = self.unfinished.contains(&key) && !self.forgotten.contains(&key);
        let picture = self.pictures.get(&key).filter(|_| known)?;
        let mut blobs = List::new();
        if !picture.is_empty() {
            let (len, crc32) = (picture.len() as u32, CRC32.checksum(picture));
            blobs.push(BlobRef { blob: key as u32, len, crc32, mime: 1 }).unwrap();
        }
        let flags = if wants_result(key) { 0 } else { NO_RESULT };
        Some(Submit { key, flags, op: Op::Task { id: 1, args: List::new(), blobs }, ..Submit::default() })
    }

    fn picture(&self, key: u64, _blob: u32, off: u32, into: &mut [u8]) -> usize {
        let rest = self.pictures.get(&key).and_then(|picture| picture.get(off as usize..)).unwrap_or_default();
        let length = rest.len().min(into.len());
        into[..length].copy_from_slice(&rest[..length]);
        length
    }
}

/// A third of the requests only have to arrive.
fn wants_result(key: u64) -> bool {
    !key.is_multiple_of(3)
}

pub struct Firmware {
    memory: Memory,
    device: Device<'static, 4>,
    boot_id: u32,
    forgets_at_the_ack: bool,
    acked: BTreeSet<u64>,
    results: BTreeMap<u64, u32>,
    text: BTreeMap<u64, Vec<u8>>,
    /// An answer was put together wrongly.
    torn: bool,
}

fn device(boot_id: u32, now_ms: u64) -> Device<'static, 4> {
    let identity = Identity {
        uid: b"device-1",
        boot_id,
        model: "test",
        fw: "1",
        caps: 0,
        token: None,
        addr: 0,
        max_frame: 256,
        rx_credit: 512,
        frame_ms: 20,
        polled: false,
    };
    // A test's device lives as long as the test; its buffers may stay.
    Device::new(identity, vec![0; 300].leak(), vec![0; 180].leak(), now_ms)
}

impl Firmware {
    pub fn new(requests: u64, forgets_at_the_ack: bool, chance: &mut Chance) -> Self {
        let mut memory = Memory::default();
        for key in 1..=requests {
            let length = if key % 4 == 0 { 200 + chance.below(1_500) } else { 0 };
            memory.pictures.insert(key, (0..length).map(|_| chance.next() as u8).collect());
            memory.unfinished.insert(key);
        }
        let (acked, results, text) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        Self { memory, device: device(1, 0), boot_id: 1, forgets_at_the_ack, acked, results, text, torn: false }
    }

    /// A power cut: everything but the memory is gone.
    pub fn restart(&mut self, now_ms: u64) {
        self.boot_id += 1;
        self.device = device(self.boot_id, now_ms);
        self.text.clear();
    }

    pub fn step(&mut self, now_ms: u64, mut send: impl FnMut(&[u8])) {
        let keys: Vec<u64> = self.memory.unfinished.iter().copied().collect();
        for key in keys {
            let _ = self.device.submit(key, wants_result(key), now_ms);
        }
        let mut out = [0; 300];
        for _ in 0..8 {
            let length = self.device.poll(&self.memory, now_ms, &mut out);
            if length == 0 {
                return;
            }
            send(&out[..length]);
        }
    }

    pub fn receive(&mut self, bytes: &[u8], now_ms: u64) {
        for byte in bytes {
            match self.device.receive(*byte, now_ms) {
                Some(Event::Stored(ack)) => {
                    self.acked.insert(ack.key);
                    if !wants_result(ack.key) {
                        self.memory.unfinished.remove(&ack.key);
                    }
                    if self.forgets_at_the_ack {
                        self.memory.forgotten.insert(ack.key);
                    }
                }
                Some(Event::Answer { part, last }) => {
                    let text = self.text.entry(part.key).or_default();
                    text.extend(part.text);
                    if last {
                        let text = self.text.remove(&part.key).unwrap_or_default();
                        self.torn |= text != super::gateway::answer(part.key);
                        *self.results.entry(part.key).or_default() += 1;
                        self.memory.unfinished.remove(&part.key);
                    }
                }
                _ => {}
            }
        }
    }

    pub fn is_done(&self) -> bool {
        self.memory.unfinished.is_empty()
    }

    pub fn acked(&self) -> &BTreeSet<u64> {
        &self.acked
    }

    pub fn check(&self) -> Result<(), String> {
        if !self.is_done() {
            return Err(format!("without a result: {:?}", self.memory.unfinished));
        }
        if self.torn {
            return Err("the parts of an answer do not make it".to_owned());
        }
        match self.results.iter().find(|(_, count)| **count != 1) {
            Some((key, count)) => Err(format!("result of {key} handed over {count} times")),
            None => Ok(()),
        }
    }
}
