//! What the device says, one frame at a time, most urgent first.

use super::open::Stage;
use super::repeat::Repeat;
use super::{Device, Keeper, State};
use crate::frame::{Header, encode};
use crate::message::{Cancel, Chunk, Hello, Idle, Message, Ping, Pong, Query, ResultAck};

/// A silent line is asked this often whether the gateway is still the same.
pub(super) const PING_EVERY_MS: u64 = 30_000;
/// Pings without an answer after which the session counts as lost.
const PINGS_MAX: u8 = 3;
/// Rounds of an upload without an answer after which the request is repeated: that asks where to go on.
const ROUNDS_MAX: u8 = 4;
/// A plain message is repeated after three times its time on the line and this.
const ANSWER_MS: u64 = 300;
/// A request may have to reach the disk first.
const STORE_MS: u64 = 2_000;

impl<const OPEN: usize> Device<'_, OPEN> {
    /// Writes the next frame to send into `out` and returns its length; 0 when there is nothing to say now. `out`
    /// holds one frame on the wire ([`crate::frame::wire_bytes`] of `max_frame`). Call it again until it says 0.
    pub fn poll(&mut self, keeper: &impl Keeper, now_ms: u64, out: &mut [u8]) -> usize {
        let state = &mut self.state;
        if state.identity.polled && state.may_send == 0 {
            return 0;
        }
        let length = state.next(keeper, self.piece, now_ms, out);
        if !state.identity.polled {
            return length;
        }
        if length == 0 {
            state.may_send = 0;
            return state.frame_out(&Message::Idle(Idle {}), false, None, out);
        }
        state.may_send = state.may_send.saturating_sub(u32::try_from(length).unwrap_or(u32::MAX));
        length
    }

    /// When [`Device::poll`] has something to say next, if nothing is received before.
    #[must_use]
    pub fn deadline_ms(&self) -> u64 {
        let state = &self.state;
        if state.session.is_none() {
            return state.hello.due_ms();
        }
        let waiting = |stage| matches!(stage, Stage::Submitting | Stage::Asking);
        let open = state.open.iter().flatten().filter(|open| waiting(open.stage)).map(|open| open.repeat.due_ms());
        let upload = state.upload.map(|upload| if upload.repeat.is_repeat() { upload.repeat.due_ms() } else { 0 });
        let cancel = state.cancel.map(|(_, repeat)| repeat.due_ms());
        open.chain(upload).chain(cancel).fold(state.ping.due_ms(), u64::min)
    }
}

impl<const OPEN: usize> State<'_, OPEN> {
    fn next(&mut self, keeper: &impl Keeper, piece: &mut [u8], now_ms: u64, out: &mut [u8]) -> usize {
        if self.session.is_none() {
            return self.say_hello(now_ms, out);
        }
        if let Some((key, next, tag)) = self.acks.pop_front() {
            return self.frame_out(&Message::ResultAck(ResultAck { key, next }), false, Some(tag), out);
        }
        if let Some((nonce, tag)) = self.pong.take() {
            let pong = Pong { nonce, ..Pong::default() };
            return self.frame_out(&Message::Pong(pong), false, Some(tag), out);
        }
        let wait_ms = self.wait_ms();
        if let Some((key, repeat)) = self.cancel.as_mut().filter(|(_, repeat)| repeat.is_due(now_ms)) {
            let (key, again) = (*key, repeat.is_repeat());
            repeat.sent(now_ms, wait_ms, &mut self.chance);
            return self.frame_out(&Message::Cancel(Cancel { key }), again, None, out);
        }
        match self.say_open(keeper, now_ms, out) {
            0 => match self.say_piece(keeper, piece, now_ms, out) {
                0 => self.say_ping(now_ms, out),
                length => length,
            },
            length => length,
        }
    }

    fn say_hello(&mut self, now_ms: u64, out: &mut [u8]) -> usize {
        if !self.hello.is_due(now_ms) {
            return 0;
        }
        let (identity, again, wait_ms) = (self.identity, self.hello.is_repeat(), self.wait_ms());
        self.hello.sent(now_ms, wait_ms, &mut self.chance);
        let hello = Hello {
            proto_min: crate::frame::VERSION,
            proto_max: crate::frame::VERSION,
            uid: identity.uid,
            boot_id: identity.boot_id,
            max_frame: identity.max_frame,
            rx_credit: identity.rx_credit,
            caps: identity.caps,
            model: identity.model,
            fw: identity.fw,
            token: identity.token,
        };
        self.frame_out(&Message::Hello(hello), again, None, out)
    }

    /// The first request whose repeat is due: submitted, or asked for.
    fn say_open(&mut self, keeper: &impl Keeper, now_ms: u64, out: &mut [u8]) -> usize {
        let wait_ms = self.wait_ms();
        let waiting = |stage| matches!(stage, Stage::Submitting | Stage::Asking);
        let due = |open: &&mut super::Open| waiting(open.stage) && open.repeat.is_due(now_ms);
        let Some(open) = self.open.iter_mut().flatten().find(due) else { return 0 };
        let (key, again, asking) = (open.key, open.repeat.is_repeat(), open.stage == Stage::Asking);
        let first_ms = if asking { wait_ms } else { wait_ms.saturating_add(STORE_MS) };
        open.repeat.sent(now_ms, first_ms, &mut self.chance);
        if asking {
            return self.frame_out(&Message::Query(Query { key }), again, None, out);
        }
        let Some(submit) = keeper.request(key) else {
            // The firmware gave it up.
            self.finish(key, now_ms);
            return 0;
        };
        self.frame_out(&Message::Submit(submit), again, None, out)
    }

    /// The next piece of the picture on its way.
    fn say_piece(&mut self, keeper: &impl Keeper, piece: &mut [u8], now_ms: u64, out: &mut [u8]) -> usize {
        let (chunk, wait_ms) = (self.chunk(piece.len()), self.wait_ms());
        let Some(upload) = self.upload.as_mut() else { return 0 };
        let (key, blob) = (upload.key, upload.blob);
        let named = || keeper.request(key)?.blobs().iter().find(|wanted| wanted.blob == blob).map(|wanted| wanted.len);
        let Some(len) = upload.len.or_else(named) else {
            // A picture that the request does not name, or a request that the firmware gave up.
            self.end_upload(now_ms);
            return 0;
        };
        upload.len = Some(len);
        let overdue = upload.repeat.is_repeat() && upload.repeat.is_due(now_ms);
        if upload.is_complete() || (overdue && (upload.repeat.sends() >= ROUNDS_MAX || !upload.is_waiting())) {
            // The request's repeat tells where to go on, or brings the durable acknowledgement.
            self.end_upload(now_ms);
            return 0;
        }
        if overdue {
            upload.go_back();
        }
        let again = upload.repeat.is_repeat();
        let Some((off, length)) = upload.next_piece(chunk) else {
            if !again {
                // The gateway takes nothing more for now; should its word that it does be lost, the request asks.
                upload.repeat.sent(now_ms, wait_ms, &mut self.chance);
            }
            return 0;
        };
        let Some(into) = piece.get_mut(..length as usize) else { return 0 };
        let got = keeper.picture(key, blob, off, into).min(into.len());
        let Some(data) = into.get(..got).filter(|data| !data.is_empty()) else {
            self.end_upload(now_ms);
            return 0;
        };
        if !again || overdue {
            upload.repeat.sent(now_ms, wait_ms, &mut self.chance);
        }
        upload.piece_sent(u32::try_from(got).unwrap_or(0));
        self.frame_out(&Message::Chunk(Chunk { blob, off, data }), overdue, None, out)
    }

    fn say_ping(&mut self, now_ms: u64, out: &mut [u8]) -> usize {
        if !self.ping.is_due(now_ms) {
            return 0;
        }
        if self.ping.sends() >= PINGS_MAX {
            self.ping = Repeat::default().after(now_ms, PING_EVERY_MS);
            self.lose_session(now_ms);
            return self.say_hello(now_ms, out);
        }
        let (again, wait_ms) = (self.ping.is_repeat(), self.wait_ms());
        self.ping.sent(now_ms, wait_ms, &mut self.chance);
        let nonce = u32::try_from(now_ms & u64::from(u32::MAX)).unwrap_or(0);
        self.frame_out(&Message::Ping(Ping { nonce }), again, None, out)
    }

    /// How long an answer may take that needs no disk.
    fn wait_ms(&self) -> u64 {
        u64::from(self.identity.frame_ms).saturating_mul(3).saturating_add(ANSWER_MS)
    }

    /// One frame; a message that does not fit the buffer is not sent at all.
    fn frame_out(&mut self, message: &Message<'_>, repeat: bool, reply_to: Option<u8>, out: &mut [u8]) -> usize {
        let tag = reply_to.unwrap_or_else(|| {
            self.tag = self.tag.wrapping_add(1);
            self.tag
        });
        let [session, ..] = self.identity.boot_id.to_le_bytes();
        let header = Header { from_gateway: false, repeat, addr: self.identity.addr, kind: 0, session, tag };
        encode(header, message, out).unwrap_or(0)
    }
}
