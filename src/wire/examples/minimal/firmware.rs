//! A minimal device for a Cortex-M4: one request with a picture, from Hello to the answer, on frozen bytes.
//!
//! Owns nothing but the measurement: how much flash, RAM and stack the link takes (`measure.py` beside it). The
//! gateway's words are constants, so no gateway is measured with it.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m_rt::entry;
use panic_halt as _;

/// What the script waits for: 1 the conversation went as it must, 2 it did not.
#[unsafe(no_mangle)]
static DONE: AtomicU32 = AtomicU32::new(0);

#[cfg(feature = "empty")]
fn converse() -> bool {
    true
}

#[cfg(not(feature = "empty"))]
use conversation::converse;

#[entry]
fn main() -> ! {
    DONE.store(if converse() { 1 } else { 2 }, Ordering::Relaxed);
    loop {
        cortex_m::asm::wfi();
    }
}

#[cfg(not(feature = "empty"))]
mod conversation {
    use cortex_m::singleton;
    use holdfast_wire::device::{Device, Event, Identity, Keeper};
    use holdfast_wire::frame::wire_bytes;
    use holdfast_wire::message::{BlobRef, List, Op, Submit};

    const KEY: u64 = 0x00C0_FFEE_0000_0005;
    const FRAME: usize = 1024;
    const PICTURE: [u8; 32] = [
        0xFF, 0xD8, 0xFF, 0xE0, 0x00, 0x10, 0x4A, 0x46, 0x49, 0x46, 0x00, 0x00, 0x0D, 0x1A, 0x27, 0x34, 0x41, 0x4E,
        0x5B, 0x68, 0x75, 0x82, 0x8F, 0x9C, 0xA9, 0xB6, 0xC3, 0xD0, 0xDD, 0xEA, 0xF7, 0x04,
    ];

    /// What the gateway says, one frame after the other.
    const GATEWAY: [&[u8]; 5] = [
        &[
            0x00, 0x02, 0x18, 0x26, 0x02, 0xEE, 0x01, 0x01, 0x07, 0x80, 0x08, 0xC0, 0x07, 0x80, 0x1E, 0x80, 0x80, 0x80,
            0x04, 0x20, 0x02, 0x80, 0xC0, 0x88, 0xD2, 0x9F, 0x34, 0x01, 0x08, 0x68, 0x66, 0x2D, 0x6C, 0x69, 0x6E, 0x65,
            0x33, 0x3B, 0x61, 0x62, 0x65, 0x00,
        ],
        &[
            0x00, 0x02, 0x18, 0x0D, 0x11, 0xEE, 0x02, 0x85, 0x80, 0x80, 0x80, 0xE0, 0xFD, 0xBF, 0x60, 0x01, 0x01, 0x03,
            0x01, 0x09, 0x05, 0xF9, 0xC7, 0x5F, 0xC2, 0x00,
        ],
        &[0x00, 0x02, 0x18, 0x0C, 0x21, 0xEE, 0x03, 0x09, 0x20, 0x80, 0x1E, 0x8F, 0x6A, 0xFC, 0x77, 0x00],
        &[
            0x00, 0x02, 0x18, 0x0C, 0x11, 0xEE, 0x04, 0x85, 0x80, 0x80, 0x80, 0xE0, 0xFD, 0xBF, 0x60, 0x04, 0xE7, 0x24,
            0x03, 0x05, 0x07, 0x01, 0xF6, 0x7D, 0x00,
        ],
        &[
            0x00, 0x02, 0x18, 0x0E, 0x30, 0xEE, 0xC8, 0xE7, 0x24, 0x85, 0x80, 0x80, 0x80, 0xE0, 0xFD, 0xBF, 0x60, 0x03,
            0x01, 0x03, 0x01, 0x01, 0x02, 0x3F, 0x10, 0x09, 0x09, 0x4E, 0x49, 0x4F, 0x3A, 0x20, 0x50, 0x6F, 0x72, 0x65,
            0x3C, 0x5A, 0x3B, 0xD4, 0x00,
        ],
    ];

    struct Memory;

    impl Keeper for Memory {
        fn request(&self, key: u64) -> Option<Submit<'_>> {
            let mut args = List::new();
            args.push("Naht 7").ok()?;
            args.push("23.5").ok()?;
            let mut blobs = List::new();
            blobs.push(BlobRef { blob: 9, len: 32, crc32: 0x448E_C3F3, mime: 1 }).ok()?;
            let op = Op::Task { id: 12, args, blobs };
            (key == KEY).then_some(Submit { key, prio: 1, ttl_s: 86_400, flags: 0, max_reply: 200, op })
        }

        fn picture(&self, _key: u64, _blob: u32, off: u32, into: &mut [u8]) -> usize {
            let rest = PICTURE.get(off as usize..).unwrap_or_default();
            let length = rest.len().min(into.len());
            into.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            length
        }
    }

    fn identity() -> Identity<'static> {
        Identity {
            uid: b"\x02\x00\x5E\x10\x00\x00\x00\x01",
            boot_id: 0x00C0_FFEE,
            model: "cam-esp32",
            fw: "1.4.2",
            caps: 3,
            token: None,
            addr: 0,
            max_frame: 1024,
            rx_credit: 2048,
            frame_ms: 90,
            polled: false,
        }
    }

    /// True when the answer came with the words it must have, and nothing is left open.
    #[inline(never)]
    pub fn converse() -> bool {
        let Some(incoming) = singleton!(: [u8; wire_bytes(FRAME)] = [0; wire_bytes(FRAME)]) else { return false };
        let Some(piece) = singleton!(: [u8; 960] = [0; 960]) else { return false };
        let Some(out) = singleton!(: [u8; wire_bytes(FRAME)] = [0; wire_bytes(FRAME)]) else { return false };
        let Some(device) = singleton!(: Device<'static, 4> = Device::new(identity(), incoming, piece, 0)) else {
            return false;
        };
        let mut answered = false;
        let mut said = 0;
        if device.submit(KEY, true, 0).is_err() {
            return false;
        }
        for (now_ms, words) in (0..).zip(GATEWAY) {
            while device.poll(&Memory, now_ms, out) > 0 {
                said += 1;
            }
            for byte in words {
                if let Some(Event::Answer { part, last: true }) = device.receive(*byte, now_ms) {
                    answered = part.text == b"NIO: Pore" && part.code == -2;
                }
            }
        }
        while device.poll(&Memory, 5, out) > 0 {
            said += 1;
        }
        // Hello, Submit, Chunk, Submit, ResultAck.
        answered && device.unfinished() == 0 && said == 5
    }
}
