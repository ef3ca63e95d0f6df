//! Frames: `00 | COBS(header + payload + CRC-32) | 00`.
//!
//! Owns framing, checksums and the header. A frame that is damaged is counted and dropped without an answer; the
//! sender repeats it.

use crc::{CRC_32_ISO_HDLC, Crc};
use postcard::ser_flavors::crc::CrcModifier;
use postcard::ser_flavors::{Cobs, Flavor, Slice};

use crate::message::Message;

/// The protocol's version: bits 7 to 4 of a frame's first byte.
pub const VERSION: u8 = 1;
/// Header bytes before the payload.
pub const HEADER_BYTES: usize = 5;
/// Checksum bytes behind the payload.
pub const CRC_BYTES: usize = 4;
/// Smallest and largest `max_frame` that two sides may agree on: bytes of header, payload and checksum.
pub const FRAME_MIN: usize = 64;
/// See [`FRAME_MIN`].
pub const FRAME_MAX: usize = 4096;
/// `max_frame` where nothing else is agreed.
pub const FRAME_DEFAULT: usize = 1024;
/// The address that reaches every device of an RS-485 bus.
pub const BROADCAST: u8 = 255;

const FROM_GATEWAY: u8 = 0x08;
const REPEAT: u8 = 0x04;
const RESERVED: u8 = 0x03;

/// zlib's CRC-32: "123456789" gives CBF43926. Its table takes 1 KiB of flash.
pub static CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Bytes on the wire for a frame of so many bytes, delimiters included: COBS adds one byte per 254 begun.
#[must_use]
pub const fn wire_bytes(frame_bytes: usize) -> usize {
    frame_bytes.saturating_add(frame_bytes / 254).saturating_add(3)
}

/// What stands before every payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// From the gateway to a device; on a half-duplex bus the gateway drops its own echo by it.
    pub from_gateway: bool,
    /// This message was sent before.
    pub repeat: bool,
    /// 0 point to point, 1 to 247 on RS-485, 255 for all.
    pub addr: u8,
    /// The message's type.
    pub kind: u8,
    /// Low byte of the device's `boot_id`.
    pub session: u8,
    /// Echoed by a reply; pushes count their own.
    pub tag: u8,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let direction = if self.from_gateway { FROM_GATEWAY } else { 0 };
        let repeat = if self.repeat { REPEAT } else { 0 };
        [(VERSION << 4) | direction | repeat, self.addr, self.kind, self.session, self.tag]
    }

    fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        let [vf, addr, kind, session, tag] = bytes;
        if vf >> 4 != VERSION || vf & RESERVED != 0 {
            return Err(FrameError::Version);
        }
        let (from_gateway, repeat) = (vf & FROM_GATEWAY != 0, vf & REPEAT != 0);
        Ok(Header { from_gateway, repeat, addr, kind, session, tag })
    }
}

/// A whole frame, its checksum found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header.
    pub header: Header,
    /// The message's fields.
    pub payload: &'a [u8],
}

/// Why bytes between two delimiters are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// Longer than the buffer.
    TooLong,
    /// The byte stuffing is broken.
    Stuffing,
    /// Too short, or the checksum is wrong.
    Checksum,
    /// Another version, or reserved bits set.
    Version,
}

/// The buffer is too small for the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferFull;

/// Writes one frame, delimiters included, and returns its length on the wire.
pub fn encode(header: Header, message: &Message<'_>, out: &mut [u8]) -> Result<usize, BufferFull> {
    let Some((first, rest)) = out.split_first_mut() else { return Err(BufferFull) };
    *first = 0;
    let header = Header { kind: message.kind(), ..header };
    let written = write(header, message, rest).map_err(|_| BufferFull)?;
    Ok(written.saturating_add(1))
}

fn write(header: Header, message: &Message<'_>, out: &mut [u8]) -> postcard::Result<usize> {
    let stuffed = Cobs::try_new(Slice::new(out))?;
    let mut summed = CrcModifier::new(stuffed, CRC32.digest());
    summed.try_extend(&header.to_bytes())?;
    let mut serializer = postcard::Serializer { output: summed };
    message.write(&mut serializer)?;
    Ok(serializer.output.finalize()?.len())
}

/// Finds frames in a stream of bytes. The buffer holds one stuffed frame; [`wire_bytes`] tells its length.
#[derive(Debug)]
pub struct Deframer<'b> {
    buffer: &'b mut [u8],
    filled: usize,
    too_long: bool,
    /// The buffer holds a frame that was handed out.
    done: bool,
}

impl<'b> Deframer<'b> {
    /// Nothing received yet.
    pub fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, filled: 0, too_long: false, done: false }
    }

    /// Takes one byte. Something comes back at the end of a frame; delimiters without bytes between are nothing.
    pub fn push(&mut self, byte: u8) -> Option<Result<Frame<'_>, FrameError>> {
        if self.done {
            self.forget();
        }
        if byte != 0 {
            match self.buffer.get_mut(self.filled) {
                Some(place) => {
                    *place = byte;
                    self.filled = self.filled.saturating_add(1);
                }
                None => self.too_long = true,
            }
            return None;
        }
        if self.filled == 0 && !self.too_long {
            return None;
        }
        self.done = true;
        if self.too_long {
            return Some(Err(FrameError::TooLong));
        }
        Some(self.buffer.get_mut(..self.filled).ok_or(FrameError::Stuffing).and_then(decode))
    }

    /// Drops what has come of a frame: the line was silent in the middle of one.
    pub fn forget(&mut self) {
        (self.filled, self.too_long, self.done) = (0, false, false);
    }
}

fn decode(stuffed: &mut [u8]) -> Result<Frame<'_>, FrameError> {
    let length = cobs::decode_in_place(stuffed).map_err(|_| FrameError::Stuffing)?;
    let bytes = stuffed.get(..length).ok_or(FrameError::Stuffing)?;
    let (summed, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(FrameError::Checksum)?;
    if CRC32.checksum(summed) != u32::from_le_bytes(*crc) {
        return Err(FrameError::Checksum);
    }
    let (header, payload) = summed.split_first_chunk::<HEADER_BYTES>().ok_or(FrameError::Checksum)?;
    Ok(Frame { header: Header::from_bytes(*header)?, payload })
}
