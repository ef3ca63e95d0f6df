//! What a simulated device asks, and how it ended.
//!
//! Owns the request as the device keeps it; shows it to the state machine each time it is sent.

use holdfast_wire::device::Keeper;
use holdfast_wire::frame::CRC32;
use holdfast_wire::message::{BlobRef, List, Op, Submit};

/// Pictures of one device have numbers of their own; one for each request.
const JPEG: u8 = 1;
const PNG: u8 = 2;
const WEBP: u8 = 3;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Ask {
    what: What,
    picture: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
enum What {
    Task(u16, Vec<String>),
    Chat(String),
}

/// How one request ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// The device's key.
    pub key: u64,
    /// The gateway's number.
    pub req: u64,
    /// As in the message Result; `None` where the gateway refused the request or keeps no result.
    pub status: Option<u8>,
    /// 1 uplink, 2 local, 3 cache; 0 where nobody answered.
    pub source: u8,
    /// The task's number for the answer, or why it was refused.
    pub code: i32,
    /// The task's value.
    pub value: f32,
    /// The answer's text.
    pub text: String,
}

impl Ended {
    /// Answered, perhaps shortened.
    pub fn is_good(&self) -> bool {
        matches!(self.status, Some(0 | 4))
    }
}

impl Ask {
    /// A canned prompt of the gateway's configuration.
    pub fn task(id: u16, arguments: Vec<String>, picture: Option<Vec<u8>>) -> Ask {
        Ask { what: What::Task(id, arguments), picture }
    }

    /// A prompt of the device's own.
    pub fn chat(text: &str, picture: Option<Vec<u8>>) -> Ask {
        Ask { what: What::Chat(text.to_owned()), picture }
    }

    /// Number and arguments, where it is a task: the only thing a PLC can ask.
    pub(super) fn as_task(&self) -> Option<(u16, &[String])> {
        match &self.what {
            What::Task(id, arguments) => Some((*id, arguments)),
            What::Chat(_) => None,
        }
    }

    pub(super) fn has_picture(&self) -> bool {
        self.picture.is_some()
    }

    fn blobs<const N: usize>(&self, key: u64) -> List<BlobRef, N> {
        let reference = |bytes: &Vec<u8>| BlobRef {
            blob: key as u32,
            len: bytes.len() as u32,
            crc32: CRC32.checksum(bytes),
            mime: mime(bytes),
        };
        self.picture.iter().map(reference).collect()
    }
}

fn mime(bytes: &[u8]) -> u8 {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => PNG,
        [b'R', b'I', b'F', b'F', ..] => WEBP,
        _ => JPEG,
    }
}

/// Every request of this device is the same but for its key.
impl Keeper for Ask {
    fn request(&self, key: u64) -> Option<Submit<'_>> {
        let blobs = self.blobs(key);
        let op = match &self.what {
            What::Task(id, arguments) => {
                let mut args = List::new();
                arguments.iter().try_for_each(|argument| args.push(argument.as_str())).ok()?;
                Op::Task { id: *id, args, blobs }
            }
            What::Chat(text) => Op::Chat { model: "", system: "", user: text, max_tokens: 0, blobs },
        };
        Some(Submit { key, prio: 2, op, ..Submit::default() })
    }

    fn picture(&self, _key: u64, _blob: u32, off: u32, into: &mut [u8]) -> usize {
        let rest = self.picture.as_ref().and_then(|bytes| bytes.get(off as usize..)).unwrap_or_default();
        let length = rest.len().min(into.len());
        for (to, from) in into.iter_mut().zip(rest) {
            *to = *from;
        }
        length
    }
}
