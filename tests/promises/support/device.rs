//! A device on a UNIX socket or a pty: the state machine that firmware uses, with its requests in memory.
//!
//! Owns no rule of the link; it is what the gateway has to get on with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast::clock;
use holdfast_wire::device::{Device, Event, Identity, Keeper};
use holdfast_wire::frame::CRC32;
use holdfast_wire::message::{BlobRef, List, Op, Submit};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

const FRAME: usize = 1024;

/// What the device wants.
#[derive(Clone)]
pub struct Request {
    pub user: String,
    pub picture: Option<Vec<u8>>,
    pub flags: u8,
    pub ttl_s: u32,
    pub max_reply: u16,
}

impl Request {
    pub fn new(user: &str) -> Request {
        Request { user: user.to_owned(), picture: None, flags: 0, ttl_s: 0, max_reply: 0 }
    }

    pub fn with_picture(user: &str, bytes: usize) -> Request {
        let picture = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
        Request { picture: Some(picture), ..Request::new(user) }
    }
}

/// What it was told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    Online,
    Stored { key: u64, outcome: u8, request: u64 },
    Refused { key: u64, code: u16 },
    Result { key: u64, status: u8, source: u8, text: String },
    Cancelled { key: u64, outcome: u8 },
    Gone { key: u64 },
}

#[derive(Default)]
struct Memory {
    requests: BTreeMap<u64, Request>,
    /// Bytes of pictures that were sent.
    sent: std::cell::Cell<usize>,
}

impl Keeper for Memory {
    fn request(&self, key: u64) -> Option<Submit<'_>> {
        let request = self.requests.get(&key)?;
        let mut blobs = List::new();
        if let Some(picture) = &request.picture {
            let (len, crc32) = (picture.len() as u32, CRC32.checksum(picture));
            blobs.push(BlobRef { blob: key as u32, len, crc32, mime: 1 }).unwrap();
        }
        let op = Op::Chat { model: "gpt-4o", system: "", user: &request.user, max_tokens: 0, blobs };
        let (flags, ttl_s, max_reply) = (request.flags, request.ttl_s, request.max_reply);
        Some(Submit { key, prio: 1, ttl_s, flags, max_reply, op })
    }

    fn picture(&self, key: u64, _: u32, off: u32, into: &mut [u8]) -> usize {
        let Some(picture) = self.requests.get(&key).and_then(|request| request.picture.as_ref()) else { return 0 };
        let rest = &picture[off as usize..];
        let length = rest.len().min(into.len());
        into[..length].copy_from_slice(&rest[..length]);
        self.sent.set(self.sent.get() + length);
        length
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The device with its cable.
pub struct Peer {
    device: Device<'static, 32>,
    memory: Memory,
    stream: Option<Box<dyn Stream>>,
    place: PathBuf,
    parts: BTreeMap<u64, Vec<u8>>,
    pub told: Vec<Told>,
    /// States that it was told of without having asked: key, state.
    pub states: Vec<(u64, u8)>,
    started: std::time::Instant,
}

impl Peer {
    /// A device that was just switched on and is not plugged in.
    pub fn new(place: &Path, boot_id: u32, addr: u8) -> Peer {
        let identity = Identity {
            uid: b"\x02\x00\x5e\x10\x01",
            boot_id,
            model: "bench",
            fw: "1",
            caps: 0,
            token: None,
            addr,
            max_frame: FRAME as u16,
            rx_credit: 4096,
            frame_ms: 5,
            polled: addr != 0,
        };
        let device = Device::new(identity, vec![0; 2048].leak(), vec![0; 960].leak(), 0);
        Peer {
            device,
            memory: Memory::default(),
            stream: None,
            place: place.to_owned(),
            parts: BTreeMap::new(),
            told: Vec::new(),
            states: Vec::new(),
            started: clock::now(),
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// A new start that remembers its requests: what is open is submitted again.
    pub fn reboot(&mut self, boot_id: u32, wants: &[u64]) {
        let mut next = Peer::new(&self.place, boot_id, 0);
        next.memory = std::mem::take(&mut self.memory);
        next.told = std::mem::take(&mut self.told);
        for key in wants {
            let now_ms = next.now_ms();
            let wants_result = next.memory.requests[key].flags & 1 == 0;
            next.device.submit(*key, wants_result, now_ms).unwrap();
        }
        *self = next;
    }

    pub fn submit(&mut self, key: u64, request: Request) {
        let (now_ms, wants_result) = (self.now_ms(), request.flags & 1 == 0);
        self.memory.requests.insert(key, request);
        self.device.submit(key, wants_result, now_ms).unwrap();
    }

    pub fn cancel(&mut self, key: u64) {
        let now_ms = self.now_ms();
        self.device.cancel(key, now_ms).unwrap();
    }

    /// Bytes of pictures sent so far.
    pub fn sent(&self) -> usize {
        self.memory.sent.get()
    }

    /// Pulls the cable.
    pub fn unplug(&mut self) {
        self.stream = None;
        let now_ms = self.now_ms();
        self.device.line_lost(now_ms);
    }

    async fn plug(&mut self) {
        if self.stream.is_none() {
            match UnixStream::connect(&self.place).await {
                Ok(stream) => self.stream = Some(Box::new(stream)),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Speaks until `done` holds of what it was told and of the bytes it sent.
    pub async fn talk(&mut self, what: &str, seconds: u64, done: impl Fn(&Peer) -> bool) {
        let begun = clock::now();
        while !done(self) {
            assert!(begun.elapsed() < Duration::from_secs(seconds), "in vain for {what}: {:?}", self.told);
            self.plug().await;
            if !self.turn().await {
                self.unplug();
            }
        }
        // What it was told last is acknowledged yet.
        if !self.turn().await {
            self.unplug();
        }
    }

    /// One round: says what there is to say, then listens; false when the line is gone.
    async fn turn(&mut self) -> bool {
        let Some(mut stream) = self.stream.take() else { return true };
        let (mut out, mut into) = ([0; 2048], [0; 2048]);
        loop {
            let now_ms = self.now_ms();
            let length = self.device.poll(&self.memory, now_ms, &mut out);
            if length == 0 {
                break;
            }
            if stream.write_all(&out[..length]).await.is_err() {
                return false;
            }
        }
        match tokio::time::timeout(Duration::from_millis(20), stream.read(&mut into)).await {
            Err(_) => {}
            Ok(Ok(bytes)) if bytes > 0 => self.came(&into[..bytes]),
            Ok(_) => return false,
        }
        self.stream = Some(stream);
        true
    }

    fn came(&mut self, bytes: &[u8]) {
        let now_ms = self.now_ms();
        for byte in bytes {
            let Some(event) = self.device.receive(*byte, now_ms) else { continue };
            let told = match event {
                Event::Online { .. } => Told::Online,
                Event::Stored(ack) => Told::Stored { key: ack.key, outcome: ack.outcome, request: ack.req },
                Event::Refused(nack) => Told::Refused { key: nack.key, code: nack.code },
                Event::Gone { key } => Told::Gone { key },
                Event::Cancelled(ack) => Told::Cancelled { key: ack.key, outcome: ack.outcome },
                Event::Answer { part, last } => {
                    let text = self.parts.entry(part.key).or_default();
                    text.extend_from_slice(part.text);
                    if !last {
                        continue;
                    }
                    let text = String::from_utf8(self.parts.remove(&part.key).unwrap_or_default()).unwrap();
                    Told::Result { key: part.key, status: part.status, source: part.source, text }
                }
                Event::Progress(progress) => {
                    self.states.push((progress.key, progress.state));
                    continue;
                }
                Event::Time(_) => continue,
            };
            self.told.push(told);
        }
    }

    /// The results of a key so far.
    pub fn results(&self, key: u64) -> Vec<(u8, u8, String)> {
        let result = |told: &Told| match told {
            Told::Result { key: of, status, source, text } if *of == key => Some((*status, *source, text.clone())),
            _ => None,
        };
        self.told.iter().filter_map(result).collect()
    }

    /// Whether a key is on the gateway's disk, as far as the device was told.
    pub fn is_stored(&self, key: u64) -> bool {
        self.told.iter().any(|told| matches!(told, Told::Stored { key: of, .. } if *of == key))
    }
}
