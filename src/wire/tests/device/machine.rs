//! A device that can be put on the line: the Rust state machine itself, or a client in another language behind pipes.
//!
//! Owns what a device keeps over a power cut. Two in lockstep must say the same bytes at the same time.

use std::collections::BTreeMap;

use holdfast_wire::device::{Device, Event, Identity, Keeper};
use holdfast_wire::frame::CRC32;
use holdfast_wire::message::{BlobRef, List, NO_RESULT, Op, Submit};

/// What a device says in one turn at most.
const FRAMES_MAX: usize = 8;

/// What the device told its program.
#[derive(Debug, PartialEq)]
pub enum Told {
    Stored(u64),
    Refused(u64),
    Answer { key: u64, last: bool, text: Vec<u8> },
    Gone(u64),
}

/// What one turn brought.
#[derive(Debug, Default, PartialEq)]
pub struct Turn {
    pub told: Vec<Told>,
    /// Whole frames.
    pub sent: Vec<Vec<u8>>,
}

/// One device with its memory.
pub trait Machine {
    /// The memory holds this request from now on, also over a restart.
    fn keep(&mut self, key: u64, wants_result: bool, picture: &[u8]);
    /// The memory gives it up.
    fn forget(&mut self, key: u64);
    /// Power on, the memory as it is.
    fn start(&mut self, boot_id: u32, now_ms: u64);
    /// Power on as number 17 of a bus, where it speaks only when polled.
    fn start_on_bus(&mut self, boot_id: u32, now_ms: u64);
    fn submit(&mut self, key: u64, wants_result: bool, now_ms: u64);
    /// Takes the bytes, and says what there is to say.
    fn turn(&mut self, bytes: &[u8], now_ms: u64) -> Turn;
}

#[derive(Default)]
struct Memory(BTreeMap<u64, (bool, Vec<u8>)>);

impl Keeper for Memory {
    fn request(&self, key: u64) -> Option<Submit<'_>> {
        let (wants_result, picture) = self.0.get(&key)?;
        let mut blobs = List::new();
        if !picture.is_empty() {
            let (len, crc32) = (picture.len() as u32, CRC32.checksum(picture));
            blobs.push(BlobRef { blob: key as u32, len, crc32, mime: 1 }).unwrap();
        }
        let flags = if *wants_result { 0 } else { NO_RESULT };
        Some(Submit { key, flags, op: Op::Task { id: 1, args: List::new(), blobs }, ..Submit::default() })
    }

    fn picture(&self, key: u64, _blob: u32, off: u32, into: &mut [u8]) -> usize {
        let rest = self.0.get(&key).and_then(|(_, picture)| picture.get(off as usize..)).unwrap_or_default();
        let length = rest.len().min(into.len());
        into[..length].copy_from_slice(&rest[..length]);
        length
    }
}

/// The state machine under test, in this process.
pub struct Rust {
    memory: Memory,
    device: Device<'static, 4>,
}

impl Rust {
    pub fn new() -> Self {
        Self { memory: Memory::default(), device: device(1, 0, 0) }
    }
}

fn device(boot_id: u32, addr: u8, now_ms: u64) -> Device<'static, 4> {
    let identity = Identity {
        uid: b"device-1",
        boot_id,
        model: "test",
        fw: "1",
        caps: 0,
        token: None,
        addr,
        max_frame: 256,
        rx_credit: 512,
        frame_ms: 20,
        polled: addr != 0,
    };
    // A test's device lives as long as the test; its buffers may stay.
    Device::new(identity, vec![0; 1100].leak(), vec![0; 960].leak(), now_ms)
}

impl Machine for Rust {
    fn keep(&mut self, key: u64, wants_result: bool, picture: &[u8]) {
        self.memory.0.insert(key, (wants_result, picture.to_vec()));
    }

    fn forget(&mut self, key: u64) {
        self.memory.0.remove(&key);
    }

    fn start(&mut self, boot_id: u32, now_ms: u64) {
        self.device = device(boot_id, 0, now_ms);
    }

    fn start_on_bus(&mut self, boot_id: u32, now_ms: u64) {
        self.device = device(boot_id, 17, now_ms);
    }

    fn submit(&mut self, key: u64, wants_result: bool, now_ms: u64) {
        let _ = self.device.submit(key, wants_result, now_ms);
    }

    fn turn(&mut self, bytes: &[u8], now_ms: u64) -> Turn {
        let mut turn = Turn::default();
        for byte in bytes {
            match self.device.receive(*byte, now_ms) {
                Some(Event::Stored(ack)) => turn.told.push(Told::Stored(ack.key)),
                Some(Event::Refused(nack)) => turn.told.push(Told::Refused(nack.key)),
                Some(Event::Answer { part, last }) => {
                    turn.told.push(Told::Answer { key: part.key, last, text: part.text.to_vec() });
                }
                Some(Event::Gone { key }) => turn.told.push(Told::Gone(key)),
                _ => {}
            }
        }
        let mut out = [0; 1100];
        for _ in 0..FRAMES_MAX {
            match self.device.poll(&self.memory, now_ms, &mut out) {
                0 => break,
                length => turn.sent.push(out[..length].to_vec()),
            }
        }
        turn
    }
}

/// Another implementation beside the Rust one: each turn of both is the same, or the test fails.
pub struct Twins<A, B>(pub A, pub B);

impl<A: Machine, B: Machine> Machine for Twins<A, B> {
    fn keep(&mut self, key: u64, wants_result: bool, picture: &[u8]) {
        self.0.keep(key, wants_result, picture);
        self.1.keep(key, wants_result, picture);
    }

    fn forget(&mut self, key: u64) {
        self.0.forget(key);
        self.1.forget(key);
    }

    fn start(&mut self, boot_id: u32, now_ms: u64) {
        self.0.start(boot_id, now_ms);
        self.1.start(boot_id, now_ms);
    }

    fn start_on_bus(&mut self, boot_id: u32, now_ms: u64) {
        self.0.start_on_bus(boot_id, now_ms);
        self.1.start_on_bus(boot_id, now_ms);
    }

    fn submit(&mut self, key: u64, wants_result: bool, now_ms: u64) {
        self.0.submit(key, wants_result, now_ms);
        self.1.submit(key, wants_result, now_ms);
    }

    fn turn(&mut self, bytes: &[u8], now_ms: u64) -> Turn {
        let turn = self.0.turn(bytes, now_ms);
        assert_eq!(turn, self.1.turn(bytes, now_ms), "at {now_ms} ms, after {bytes:02X?}");
        turn
    }
}
