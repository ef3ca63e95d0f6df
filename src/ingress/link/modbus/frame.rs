//! Modbus on the wire: RTU frames told apart by length and checksum, and the header of Modbus TCP.
//!
//! Owns framing in both directions on one bus. Silence is only waited for where a beginning could still become a
//! frame: Linux and USB adapters do not keep the 3.5 characters that the standard counts on.

use crate::ingress::link::lines::line::{crc16, crc16_on};

/// Longest RTU frame.
pub const FRAME_MAX: usize = 256;
/// A beginning that nothing follows for so long is no frame, in milliseconds: more than the 16 ms that USB adapters
/// hold bytes back, less than the 100 ms in which an answer is promised.
pub const SILENCE_MS: u64 = 30;
/// Header of Modbus TCP: transaction, protocol, length, unit.
pub const HEADER_BYTES: usize = 7;

/// A frame that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The unit it is for, or from.
    pub unit: u8,
    /// A unit's answer, not a master's question.
    pub is_reply: bool,
    /// Function and data.
    pub pdu: Vec<u8>,
}

/// Finds frames in what a line brings.
#[derive(Debug, Default)]
pub struct Framer {
    bytes: Vec<u8>,
    /// How far the beginning was looked at as a function of unknown length.
    scan: Scan,
    /// Bytes that belonged to no frame.
    pub dropped: u64,
    /// Bytes that checksums were made of.
    #[cfg(test)]
    pub summed: usize,
}

/// A checksum that goes on where it stopped, so that a byte more costs one step and not all of them again.
#[derive(Debug, Default, Clone, Copy)]
struct Scan {
    length: usize,
    crc: u16,
}

/// What stands at the beginning of the bytes.
enum Found {
    Frame(usize, bool),
    /// More bytes may make it one.
    Beginning,
    Nothing,
}

impl Framer {
    /// Takes bytes off the line.
    pub fn receive(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.bytes.extend_from_slice(bytes);
        self.frames()
    }

    /// Whether a beginning waits for more.
    pub fn waits(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// The line was silent for [`SILENCE_MS`]: the beginning is no frame, but one may stand behind it.
    pub fn silent(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while !self.bytes.is_empty() {
            self.drop_one();
            frames.extend(self.frames());
        }
        frames
    }

    fn drop_one(&mut self) {
        self.bytes.remove(0);
        self.scan = Scan::default();
        self.dropped += 1;
    }

    fn frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            match self.look() {
                Found::Beginning => return frames,
                Found::Nothing => self.drop_one(),
                Found::Frame(length, is_reply) => {
                    let frame: Vec<u8> = self.bytes.drain(..length).collect();
                    self.scan = Scan::default();
                    if let [unit, pdu @ .., _, _] = frame.as_slice() {
                        frames.push(Frame { unit: *unit, is_reply, pdu: pdu.to_vec() });
                    }
                }
            }
        }
    }

    /// Whether a frame stands at the beginning.
    fn look(&mut self) -> Found {
        let bytes = &self.bytes;
        let Some(function) = bytes.get(1) else { return Found::Beginning };
        let count = |at: usize, around: usize| bytes.get(at).map(|bytes| around + usize::from(*bytes));
        // How long it is as a question and as an answer; none where that byte has not come.
        let lengths = match function {
            1..=4 => [(Some(8), false), (count(2, 5), true)],
            // Question and answer look alike; a question is answered, and an echo is known by whoever sent it.
            5 | 6 => [(Some(8), false), (Some(8), false)],
            15 | 16 => [(count(6, 9), false), (Some(8), true)],
            0x81..=0xff => [(Some(5), true), (Some(5), true)],
            _ => return self.look_unknown(),
        };
        let mut more = false;
        for (length, is_reply) in lengths {
            match length {
                Some(length) if length > FRAME_MAX => {}
                Some(length) if bytes.len() >= length => {
                    #[cfg(test)]
                    {
                        self.summed += length;
                    }
                    if holds(&bytes[..length]) {
                        return Found::Frame(length, is_reply);
                    }
                }
                _ => more = true,
            }
        }
        if more { Found::Beginning } else { Found::Nothing }
    }

    /// A function whose length nobody here knows: it ends where a checksum holds, which over a frame and its checksum
    /// is zero.
    fn look_unknown(&mut self) -> Found {
        let limit = self.bytes.len().min(FRAME_MAX);
        while self.scan.length < limit {
            let next = &self.bytes[self.scan.length..=self.scan.length];
            let crc = if self.scan.length == 0 { crc16(next) } else { crc16_on(self.scan.crc, next) };
            self.scan = Scan { length: self.scan.length + 1, crc };
            #[cfg(test)]
            {
                self.summed += 1;
            }
            if crc == 0 && self.scan.length >= 4 {
                return Found::Frame(self.scan.length, false);
            }
        }
        if limit < FRAME_MAX { Found::Beginning } else { Found::Nothing }
    }
}

fn holds(frame: &[u8]) -> bool {
    frame.split_last_chunk::<2>().is_some_and(|(content, crc)| crc16(content) == u16::from_le_bytes(*crc))
}

/// A whole RTU frame.
pub fn rtu(unit: u8, pdu: &[u8]) -> Vec<u8> {
    let mut frame = vec![unit];
    frame.extend_from_slice(pdu);
    frame.extend_from_slice(&crc16(&frame).to_le_bytes());
    frame
}

/// A Modbus TCP header: transaction, unit, and the length of the function and data behind it; `None` where it is none.
pub fn header(bytes: [u8; HEADER_BYTES]) -> Option<([u8; 2], u8, usize)> {
    let [t0, t1, p0, p1, l0, l1, unit] = bytes;
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    let fits = [p0, p1] == [0, 0] && (2..=FRAME_MAX - 2).contains(&length);
    fits.then_some(([t0, t1], unit, length - 1))
}

/// A whole Modbus TCP answer.
pub fn tcp(transaction: [u8; 2], unit: u8, pdu: &[u8]) -> Vec<u8> {
    let mut frame = transaction.to_vec();
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(&(pdu.len() as u16 + 1).to_be_bytes());
    frame.push(unit);
    frame.extend_from_slice(pdu);
    frame
}
