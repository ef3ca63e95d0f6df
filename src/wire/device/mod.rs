//! The device's side of the rules, as a state machine with explicit time that firmware uses as it is.
//!
//! Bytes from the port go into [`Device::receive`], what it wants to send comes out of [`Device::poll`]. The
//! requests and pictures stay with the firmware, which shows them through [`Keeper`]: in RAM, in flash, on a card.
//! Owns sessions, repeats, uploads and the acknowledging of answers; never forgets a request before the gateway has
//! it on disk, and hands each answer over once.

mod event;
mod open;
mod receive;
mod repeat;
mod send;
mod upload;

use crate::frame::Deframer;
use crate::message::Submit;

pub use event::Event;
use open::{Open, Stage};
use repeat::{Chance, Repeat};
use upload::Upload;

/// Answers whose acknowledgement waits to be sent. More are not needed: what is not acknowledged comes again.
const ACKS_MAX: usize = 4;

/// What the firmware holds.
pub trait Keeper {
    /// The request of this key, the same each time.
    fn request(&self, key: u64) -> Option<Submit<'_>>;

    /// Copies a picture's bytes from `off` on into `into`; returns how many.
    fn picture(&self, key: u64, blob: u32, off: u32, into: &mut [u8]) -> usize;
}

/// Who the device is, and its line.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'b> {
    /// Its own name for ever: 4 to 16 bytes.
    pub uid: &'b [u8],
    /// Another number after each start.
    pub boot_id: u32,
    /// What it is.
    pub model: &'b str,
    /// Its firmware.
    pub fw: &'b str,
    /// What it can do, as bits.
    pub caps: u32,
    /// A shared secret, where the gateway asks for one.
    pub token: Option<&'b [u8]>,
    /// 0 point to point; 1 to 247 on RS-485.
    pub addr: u8,
    /// Largest frame it takes, 64 to 4096.
    pub max_frame: u16,
    /// Bytes of its receive buffer.
    pub rx_credit: u16,
    /// Milliseconds that such a frame takes on this line.
    pub frame_ms: u32,
    /// RS-485: it speaks only when polled.
    pub polled: bool,
}

/// No place for another request: wait until one is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// What the gateway agreed to.
#[derive(Debug, Clone, Copy)]
struct Session {
    gw_boot: u32,
    chunk: u16,
    credit: u16,
}

/// Everything but the buffer of a frame that is being received.
#[derive(Debug)]
struct State<'b, const OPEN: usize> {
    identity: Identity<'b>,
    session: Option<Session>,
    hello: Repeat,
    open: [Option<Open>; OPEN],
    upload: Option<Upload>,
    acks: heapless::Deque<(u64, u32, u8), ACKS_MAX>,
    cancel: Option<(u64, Repeat)>,
    pong: Option<(u32, u8)>,
    ping: Repeat,
    /// Bytes that may be sent before the next poll.
    may_send: u32,
    tag: u8,
    chance: Chance,
    damaged: u32,
}

/// One device on one line, with at most `OPEN` unfinished requests.
#[derive(Debug)]
pub struct Device<'b, const OPEN: usize> {
    deframer: Deframer<'b>,
    piece: &'b mut [u8],
    state: State<'b, OPEN>,
}

impl<'b, const OPEN: usize> Device<'b, OPEN> {
    /// Nothing said yet. `incoming` holds one stuffed frame ([`crate::frame::wire_bytes`] of `max_frame`), `piece`
    /// the bytes of one chunk of a picture; both bound what the gateway may choose.
    pub fn new(identity: Identity<'b>, incoming: &'b mut [u8], piece: &'b mut [u8], now_ms: u64) -> Self {
        let state = State {
            session: None,
            hello: Repeat::now(now_ms),
            open: [None; OPEN],
            upload: None,
            acks: heapless::Deque::new(),
            cancel: None,
            pong: None,
            ping: Repeat::default().after(now_ms, send::PING_EVERY_MS),
            may_send: 0,
            tag: 0,
            chance: Chance::new(identity.boot_id),
            damaged: 0,
            identity,
        };
        Self { deframer: Deframer::new(incoming), piece, state }
    }

    /// Takes over a request; [`Keeper::request`] must know its key from now on. After a start, also for each one that
    /// was unfinished before: the gateway knows what it has.
    pub fn submit(&mut self, key: u64, wants_result: bool, now_ms: u64) -> Result<(), Full> {
        let open = &mut self.state.open;
        if open.iter().flatten().any(|open| open.key == key) {
            return Ok(());
        }
        let place = open.iter_mut().find(|place| place.is_none()).ok_or(Full)?;
        *place = Some(Open::new(key, wants_result, now_ms));
        Ok(())
    }

    /// Asks the gateway not to answer this request any more; one at a time.
    pub fn cancel(&mut self, key: u64, now_ms: u64) -> Result<(), Full> {
        if self.state.cancel.is_some_and(|(under_way, _)| under_way != key) {
            return Err(Full);
        }
        self.state.cancel = Some((key, Repeat::now(now_ms)));
        Ok(())
    }

    /// The line was closed or fell silent in the middle of a frame.
    pub fn line_lost(&mut self, now_ms: u64) {
        self.deframer.forget();
        self.state.session = None;
        self.state.hello = Repeat::now(now_ms);
    }

    /// Whether a session is open.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.state.session.is_some()
    }

    /// Unfinished requests.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.state.open.iter().flatten().count()
    }

    /// Frames that were dropped because they were damaged.
    #[must_use]
    pub fn damaged(&self) -> u32 {
        self.state.damaged
    }
}

impl<const OPEN: usize> State<'_, OPEN> {
    fn find(&mut self, key: u64) -> Option<&mut Open> {
        self.open.iter_mut().flatten().find(|open| open.key == key)
    }

    /// The gateway has it, or never will: the place is free, its picture is not wanted any more.
    fn finish(&mut self, key: u64, now_ms: u64) {
        for place in &mut self.open {
            if place.is_some_and(|open| open.key == key) {
                *place = None;
            }
        }
        if self.upload.is_some_and(|upload| upload.key == key) {
            self.end_upload(now_ms);
        }
    }

    /// The line is free for the next picture: whoever waits for it asks again.
    fn end_upload(&mut self, now_ms: u64) {
        self.upload = None;
        for open in self.open.iter_mut().flatten().filter(|open| open.stage == Stage::Uploading) {
            open.enter(Stage::Submitting, now_ms);
        }
    }

    fn lose_session(&mut self, now_ms: u64) {
        self.session = None;
        self.hello = Repeat::now(now_ms);
    }

    /// The largest chunk that both sides and the buffer allow.
    fn chunk(&self, buffer: usize) -> u16 {
        let agreed = self.session.map_or(u16::MAX, |session| session.chunk);
        agreed.min(u16::try_from(buffer).unwrap_or(u16::MAX)).max(1)
    }
}
