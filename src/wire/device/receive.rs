//! What the gateway says, and what follows from it.

use super::open::Stage;
use super::repeat::Repeat;
use super::{Device, Event, Session, State, Upload};
use crate::Code;
use crate::frame::{BROADCAST, Frame};
use crate::message::{Answer, HelloAck, Message, Nack, Progress, SubmitAck, state};

/// A refusal that gives no time of its own: ask again after this.
const BUSY_MS: u32 = 2_000;
/// Queries for the result of a finished request after which "finished" is all that is to be had. More than one, since a
/// result that is there may meet the same bad line.
const QUERIES_MAX: u8 = 3;

impl<const OPEN: usize> Device<'_, OPEN> {
    /// Takes one byte from the port.
    pub fn receive(&mut self, byte: u8, now_ms: u64) -> Option<Event<'_>> {
        if let Ok(frame) = self.deframer.push(byte)? {
            return self.state.frame(frame, now_ms);
        }
        self.state.damaged = self.state.damaged.saturating_add(1);
        None
    }
}

impl<const OPEN: usize> State<'_, OPEN> {
    fn frame<'a>(&mut self, frame: Frame<'a>, now_ms: u64) -> Option<Event<'a>> {
        let header = frame.header;
        let [session, ..] = self.identity.boot_id.to_le_bytes();
        let is_mine = header.addr == self.identity.addr || header.addr == BROADCAST;
        let message = Message::read(header.kind, frame.payload).ok()?;
        // A gateway that polls may not have heard of this device yet, or of its last start.
        let is_current = header.session == session || matches!(message, Message::Poll(_));
        // Its own echo, somebody else's, or an answer to what it was before its last start.
        if !header.from_gateway || !is_mine || !is_current {
            return None;
        }
        self.ping = Repeat::default().after(now_ms, super::send::PING_EVERY_MS);
        match message {
            Message::HelloAck(ack) => Some(self.agreed(&ack, now_ms)),
            Message::SubmitAck(ack) => self.submitted(ack, now_ms),
            Message::Nack(nack) => self.refused(nack, now_ms),
            Message::ChunkAck(ack) => {
                if let Some(upload) = self.upload.as_mut().filter(|upload| upload.blob == ack.blob) {
                    upload.confirmed(ack.next, ack.credit, now_ms);
                    if upload.is_complete() {
                        self.end_upload(now_ms);
                    }
                }
                None
            }
            Message::Result(answer) => self.answered(answer, header.tag, now_ms),
            Message::Progress(progress) => Some(self.stands(progress, now_ms)),
            Message::CancelAck(ack) => {
                self.cancel = self.cancel.filter(|(key, _)| *key != ack.key);
                Some(Event::Cancelled(ack))
            }
            Message::Ping(ping) => {
                self.pong = Some((ping.nonce, header.tag));
                None
            }
            Message::Pong(pong) => {
                if self.session.is_some_and(|session| session.gw_boot != pong.gw_boot) {
                    self.lose_session(now_ms);
                }
                None
            }
            Message::TimeResp(time) => Some(Event::Time(time)),
            Message::Poll(poll) => {
                self.may_send = u32::from(poll.credit).max(1);
                None
            }
            // Only a gateway is told these.
            Message::Hello(_)
            | Message::Submit(_)
            | Message::Chunk(_)
            | Message::ResultAck(_)
            | Message::Query(_)
            | Message::Cancel(_)
            | Message::TimeReq(_)
            | Message::Idle(_) => None,
        }
    }

    /// The session is open: everything unfinished is repeated, the gateway knows what it has.
    fn agreed<'a>(&mut self, ack: &HelloAck<'a>, now_ms: u64) -> Event<'a> {
        self.session = Some(Session { gw_boot: ack.gw_boot, chunk: ack.chunk, credit: ack.credit });
        self.upload = None;
        for open in self.open.iter_mut().flatten() {
            open.enter(Stage::Submitting, now_ms);
        }
        Event::Online { uplink: ack.uplink, time_ms: ack.time_ms }
    }

    fn submitted<'a>(&mut self, ack: SubmitAck, now_ms: u64) -> Option<Event<'a>> {
        let credit = self.session?.credit;
        let open = self.find(ack.key)?;
        match (ack.outcome, ack.need) {
            (1, Some((blob, off))) => self.wanted(ack.key, blob, off, credit, now_ms),
            (0 | 2, _) => {
                let was_stored = open.stage == Stage::Stored;
                let wants_result = open.wants_result;
                open.enter(Stage::Stored, now_ms);
                if !wants_result {
                    self.finish(ack.key, now_ms);
                }
                return (!was_stored).then_some(Event::Stored(ack));
            }
            (3, _) => {
                let was_asking = open.stage == Stage::Asking;
                if !open.wants_result {
                    self.finish(ack.key, now_ms);
                } else if !was_asking {
                    open.enter(Stage::Asking, now_ms);
                }
                return (!was_asking).then_some(Event::Stored(ack));
            }
            _ => {}
        }
        None
    }

    /// The gateway wants a picture from some byte on; one upload at a time.
    fn wanted(&mut self, key: u64, blob: u32, off: u32, credit: u16, now_ms: u64) {
        let busy = self.upload.is_some_and(|upload| upload.key != key || upload.blob == blob && upload.is_waiting());
        if let Some(open) = self.find(key) {
            open.enter(Stage::Uploading, now_ms);
        }
        if !busy {
            self.upload = Some(Upload::new(key, blob, off, credit, now_ms));
        }
    }

    /// Finished, and asked for often enough without a result: there is none any more.
    fn stands<'a>(&mut self, progress: Progress, now_ms: u64) -> Event<'a> {
        let key = progress.key;
        let is_over = |open: &mut super::Open| open.stage == Stage::Asking && open.repeat.sends() >= QUERIES_MAX;
        if progress.state >= state::DONE && self.find(key).is_some_and(is_over) {
            self.finish(key, now_ms);
            return Event::Gone { key };
        }
        Event::Progress(progress)
    }

    fn refused<'a>(&mut self, nack: Nack<'a>, now_ms: u64) -> Option<Event<'a>> {
        let is = |code: Code| nack.code == code.number();
        if is(Code::NoSession) {
            self.lose_session(now_ms);
            return None;
        }
        if is(Code::Version) || (is(Code::Forbidden) && self.session.is_none()) {
            self.hello = self.hello.after(now_ms, u64::from(nack.retry_ms.max(BUSY_MS)));
            return Some(Event::Refused(nack));
        }
        let open = self.find(nack.key)?;
        if is(Code::UnknownKey) {
            // What is being submitted already was asked for before: an answer that comes late.
            if matches!(open.stage, Stage::Stored | Stage::Asking) {
                open.enter(Stage::Submitting, now_ms);
            }
            return None;
        }
        let for_now = [Code::Busy, Code::StorageFull, Code::RateLimited, Code::Internal, Code::BlobChecksum];
        if for_now.into_iter().any(is) {
            let wait_ms = u64::from(if nack.retry_ms == 0 { BUSY_MS } else { nack.retry_ms });
            open.enter(Stage::Submitting, now_ms);
            open.repeat = open.repeat.after(now_ms, wait_ms);
            if self.upload.is_some_and(|upload| upload.key == nack.key) {
                self.end_upload(now_ms);
            }
            return None;
        }
        self.finish(nack.key, now_ms);
        Some(Event::Refused(nack))
    }

    /// An answer is acknowledged always, also one that nobody waits for, and handed over once.
    fn answered<'a>(&mut self, part: Answer<'a>, tag: u8, now_ms: u64) -> Option<Event<'a>> {
        let Some(open) = self.find(part.key) else {
            self.acknowledge(part.key, part.total, tag);
            return None;
        };
        if part.off != open.next {
            let next = open.next;
            self.acknowledge(part.key, next, tag);
            return None;
        }
        open.next = part.off.saturating_add(u32::try_from(part.text.len()).unwrap_or(u32::MAX));
        // The gateway has it whole, and knows: nothing needs to be repeated while the rest comes.
        open.stage = Stage::Stored;
        let (next, last) = (open.next.min(part.total), open.next >= part.total);
        self.acknowledge(part.key, next, tag);
        if last {
            self.finish(part.key, now_ms);
        }
        Some(Event::Answer { part, last })
    }

    fn acknowledge(&mut self, key: u64, next: u32, tag: u8) {
        if self.acks.is_full() {
            // The gateway repeats what is not acknowledged.
            self.acks.pop_front();
        }
        let _ = self.acks.push_back((key, next, tag));
    }
}
