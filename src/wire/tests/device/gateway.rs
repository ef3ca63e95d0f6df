//! The gateway's side as a model: sessions in memory, requests and pictures on a disk that its restarts leave.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_wire::frame::CRC32;
use holdfast_wire::message::{Answer, ChunkAck, HelloAck, Message, NO_RESULT, Nack, Pong, Submit, SubmitAck};
use holdfast_wire::{Code, Deframer, Header, encode};

use super::chance::Chance;

/// Mistakes of a gateway or a device, as somebody might make them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// The acknowledgement leaves before the request is on disk.
    AckBeforeCommit,
    /// Each Submit makes a new request, whatever its key.
    NoUniqueKey,
    /// The device gives its request up with the acknowledgement, and knows nothing of it after its restart.
    DeviceForgetsAtTheAck,
    /// A picture is appended wherever its piece belongs.
    PiecesOutOfOrder,
}

impl Mistake {
    pub const ALL: [Mistake; 4] =
        [Mistake::AckBeforeCommit, Mistake::NoUniqueKey, Mistake::DeviceForgetsAtTheAck, Mistake::PiecesOutOfOrder];
}

/// A stored request.
struct Row {
    key: u64,
    answered: bool,
    delivered: bool,
    push_ms: u64,
}

/// The text that answers a request: some fit one frame, some do not.
pub fn answer(key: u64) -> Vec<u8> {
    format!("answer {key} ").repeat(1 + (key as usize % 5) * 8).into_bytes()
}

#[derive(Default)]
struct Disk {
    rows: Vec<Row>,
    pictures: BTreeMap<u32, Vec<u8>>,
}

pub struct Gateway {
    mistake: Option<Mistake>,
    buffer: Vec<u8>,
    disk: Disk,
    /// Accepted, not on disk yet: with the mistake, a restart loses these.
    uncommitted: Vec<(u64, bool)>,
    boot: u32,
    session: Option<u8>,
    outbox: VecDeque<Vec<u8>>,
    damaged_pictures: BTreeSet<u64>,
}

impl Gateway {
    pub fn new(mistake: Option<Mistake>) -> Self {
        Self {
            mistake,
            buffer: Vec::new(),
            disk: Disk::default(),
            uncommitted: Vec::new(),
            boot: 1,
            session: None,
            outbox: VecDeque::new(),
            damaged_pictures: BTreeSet::new(),
        }
    }

    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    pub fn restart(&mut self) {
        self.boot += 1;
        self.session = None;
        self.outbox.clear();
        self.buffer.clear();
        self.uncommitted.clear();
    }

    pub fn receive(&mut self, bytes: &[u8], now_ms: u64) {
        for byte in bytes {
            self.buffer.push(*byte);
            if *byte != 0 {
                continue;
            }
            let stuffed = std::mem::take(&mut self.buffer);
            let mut place = vec![0; stuffed.len() + 1];
            let mut deframer = Deframer::new(&mut place);
            for byte in &stuffed {
                if let Some(Ok(frame)) = deframer.push(*byte) {
                    let payload = frame.payload.to_vec();
                    self.frame(frame.header, &payload, now_ms);
                    break;
                }
            }
        }
    }

    fn frame(&mut self, header: Header, payload: &[u8], now_ms: u64) {
        let Ok(message) = Message::read(header.kind, payload) else { return };
        if let Message::Hello(hello) = &message {
            // Half uploads of an earlier life of the device are of no use.
            let session = hello.boot_id as u8;
            if self.session.is_some_and(|old| old != session) {
                self.disk.pictures.retain(|blob, _| self.disk.rows.iter().any(|row| row.key == u64::from(*blob)));
            }
            self.session = Some(session);
            for row in &mut self.disk.rows {
                row.push_ms = now_ms;
            }
            let ack = HelloAck {
                proto: 1,
                gw_boot: self.boot,
                max_frame: 256,
                chunk: 150,
                credit: 600,
                ..HelloAck::default()
            };
            return self.reply(header, &Message::HelloAck(ack));
        }
        if self.session != Some(header.session) {
            let nack = Nack { re_type: header.kind, code: Code::NoSession.number(), ..Nack::default() };
            return self.reply(header, &Message::Nack(nack));
        }
        match message {
            Message::Submit(submit) => self.submit(header, &submit),
            Message::Chunk(chunk) => {
                let in_order = !self.makes(Mistake::PiecesOutOfOrder);
                let picture = self.disk.pictures.entry(chunk.blob).or_default();
                if picture.len() == chunk.off as usize || !in_order {
                    picture.extend(chunk.data);
                }
                let next = picture.len() as u32;
                self.reply(header, &Message::ChunkAck(ChunkAck { blob: chunk.blob, next, credit: 600 }));
            }
            Message::ResultAck(ack) => {
                if ack.next as usize >= answer(ack.key).len() {
                    self.disk.rows.iter_mut().filter(|row| row.key == ack.key).for_each(|row| row.delivered = true);
                } else {
                    self.push(ack.key, ack.next);
                }
            }
            Message::Query(query) => {
                if self.disk.rows.iter().any(|row| row.key == query.key) {
                    self.push(query.key, 0);
                } else {
                    let nack =
                        Nack { re_type: 0x33, key: query.key, code: Code::UnknownKey.number(), ..Nack::default() };
                    self.reply(header, &Message::Nack(nack));
                }
            }
            Message::Ping(ping) => {
                let here = Pong { nonce: ping.nonce, gw_boot: self.boot, uplink: 2, pending: 0 };
                self.reply(header, &Message::Pong(here));
            }
            _ => {}
        }
    }

    fn submit(&mut self, header: Header, submit: &Submit<'_>) {
        let (key, wants_result) = (submit.key, submit.flags & NO_RESULT == 0);
        let ack = |outcome, need| Message::SubmitAck(SubmitAck { key, outcome, req: key, queue_pos: 0, need });
        let known = self.disk.rows.iter().find(|row| row.key == key).map(|row| row.delivered);
        if let Some(delivered) = known.filter(|_| !self.makes(Mistake::NoUniqueKey)) {
            return self.reply(header, &ack(if delivered { 3 } else { 2 }, None));
        }
        for blob in submit.blobs() {
            let picture = self.disk.pictures.entry(blob.blob).or_default();
            if picture.len() > blob.len as usize
                || (picture.len() == blob.len as usize && CRC32.checksum(picture) != blob.crc32)
            {
                if self.mistake == Some(Mistake::PiecesOutOfOrder) {
                    self.damaged_pictures.insert(key);
                }
                picture.clear();
            }
            if picture.len() < blob.len as usize {
                let off = picture.len() as u32;
                return self.reply(header, &ack(1, Some((blob.blob, off))));
            }
        }
        if self.makes(Mistake::AckBeforeCommit) {
            self.uncommitted.push((key, wants_result));
        } else {
            self.commit(key, wants_result);
        }
        self.reply(header, &ack(0, None));
    }

    fn commit(&mut self, key: u64, wants_result: bool) {
        self.disk.rows.push(Row { key, answered: false, delivered: !wants_result, push_ms: 0 });
    }

    /// The uplink's answers come, results are pushed and repeated.
    pub fn step(&mut self, now_ms: u64, chance: &mut Chance, mut send: impl FnMut(&[u8], &mut Chance)) {
        if chance.one_in(400) {
            for (key, wants_result) in std::mem::take(&mut self.uncommitted) {
                self.commit(key, wants_result);
            }
        }
        if chance.one_in(40)
            && let Some(row) = self.disk.rows.iter_mut().find(|row| !row.answered)
        {
            (row.answered, row.push_ms) = (true, now_ms);
        }
        let due = |row: &&mut Row| row.answered && !row.delivered && row.push_ms <= now_ms;
        if let Some(row) = self.disk.rows.iter_mut().find(due).filter(|_| self.session.is_some()) {
            row.push_ms = now_ms + 2_000;
            let key = row.key;
            self.push(key, 0);
        }
        while let Some(bytes) = self.outbox.pop_front() {
            send(&bytes, chance);
        }
    }

    fn push(&mut self, key: u64, off: u32) {
        let Some(session) = self.session.filter(|_| self.disk.rows.iter().any(|row| row.key == key && row.answered))
        else {
            return;
        };
        let text = answer(key);
        let part = text.get(off as usize..).unwrap_or_default();
        let part = &part[..part.len().min(150)];
        let total = text.len() as u32;
        let result = Answer { req: key, key, status: 0, source: 1, code: 0, value: 0.0, off, total, text: part };
        let header = Header { from_gateway: true, repeat: false, addr: 0, kind: 0, session, tag: 200 };
        self.send(header, &Message::Result(result));
    }

    fn reply(&mut self, to: Header, message: &Message<'_>) {
        self.send(Header { from_gateway: true, repeat: false, ..to }, message);
    }

    fn send(&mut self, header: Header, message: &Message<'_>) {
        let mut out = [0; 600];
        let length = encode(header, message, &mut out).unwrap();
        self.outbox.push_back(out[..length].to_vec());
    }

    /// Each acknowledged request is there once.
    pub fn check(&self, acked: &BTreeSet<u64>) -> Result<(), String> {
        for key in acked {
            match self.disk.rows.iter().filter(|row| row.key == *key).count() {
                1 => {}
                count => return Err(format!("acknowledged {key} is stored {count} times")),
            }
        }
        if self.damaged_pictures.is_empty() { Ok(()) } else { Err("a picture arrived damaged".to_owned()) }
    }
}
