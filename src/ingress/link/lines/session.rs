//! One line's conversation: pure state with explicit time, bytes in and deeds out.
//!
//! Owns when a result is offered and when it counts as taken. Stores nothing: the rules of the link do.

use std::collections::VecDeque;

use holdfast_wire::Code;

use super::line::{LINE_DEFAULT, Lines, Said};
use super::message::{self, Asked, Parted, Told, Wrong};
use crate::plant::{self, Fault};

/// Answers in JSON need so many bytes of a line at least: a result's words around its text are some 115.
const JSON_LINE_MIN: usize = 128;
/// A result is repeated this often until it is taken.
pub const OFFER_MS: u64 = 5_000;
/// Requests on their way to the disk at once; the next is told to come again.
const STORING_MAX: usize = 8;
/// When it may come again, in seconds.
const BUSY_S: u32 = 3;
/// Results held ready at once; the rest wait in the spool.
pub const OFFERS_MAX: usize = 8;

/// How a port is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a line, its end included.
    pub line_max: usize,
    /// Whether a line without a checksum is dropped.
    pub needs_crc: bool,
    /// Whether results come by themselves.
    pub push: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { line_max: LINE_DEFAULT, needs_crc: true, push: true }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Write these bytes.
    Send(Vec<u8>),
    /// Say who we are; told by [`Session::greet`].
    Greet(Option<u32>),
    /// Store a task; told by [`Session::stored`].
    Store {
        /// What the device calls it.
        key: String,
        /// 0 critical to 3 low.
        prio: u8,
        /// Seconds; 0 for the default.
        ttl_s: u32,
        /// The task's number.
        task: u16,
        /// Its arguments.
        args: Vec<String>,
    },
    /// Look where a request stands; told by [`Session::found`]. The part is what the device has of its result.
    Find(String, Option<u32>),
    /// Cancel it; told by [`Session::cancelled`].
    Cancel(String),
    /// The device has all of this request's result.
    Taken(u64),
    /// Results may wait; told by [`Session::offer`].
    Look,
}

/// A result of the link's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The gateway's number of the request.
    pub request: u64,
    /// What the device calls it.
    pub key: String,
    /// Status, source, code.
    pub about: (u8, u8, i32),
    /// The whole text.
    pub text: String,
}

/// Where a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nobody knows it.
    Unknown,
    /// State, position, seconds.
    Waits(u8, u64, u64),
    /// It has its result.
    Result(Offer),
}

struct Offered {
    offer: Offer,
    parted: Parted,
    /// Parts that the device has.
    has: u32,
}

/// One port's conversation.
pub struct Session {
    options: Options,
    lines: Lines,
    uid: String,
    /// Another number for each device on this line: what was begun for one is not told to the next.
    generation: u64,
    /// The device spoke JSON last, and is answered so.
    is_json: bool,
    nacks: u64,
    storing: Vec<String>,
    offers: VecDeque<Offered>,
    /// When the next result may go out.
    next_ms: u64,
    looking: bool,
    /// Something changed while a look was under way.
    look_again: bool,
    /// Taken, and being noted down: not to be offered again.
    taking: Vec<u64>,
}

impl Session {
    /// Nothing said yet; `uid` is who spoke last on this port, empty where nobody said a name.
    pub fn new(options: Options, uid: String) -> Session {
        let lines = Lines::new(options.line_max, options.needs_crc);
        let (storing, offers) = (Vec::new(), VecDeque::new());
        Session {
            options,
            lines,
            uid,
            generation: 0,
            is_json: false,
            nacks: 0,
            storing,
            offers,
            next_ms: 0,
            looking: false,
            look_again: false,
            taking: Vec::new(),
        }
    }

    /// Who speaks; empty until somebody said Hello.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Which device of this line speaks: the first, the second.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.lines.dropped
    }

    /// Takes bytes off the port.
    pub fn receive(&mut self, bytes: &[u8], now_ms: u64) -> Vec<Deed> {
        let mut deeds = Vec::new();
        for byte in bytes {
            if let Some(content) = self.lines.push(*byte) {
                if message::is_own(&content) {
                    self.lines.dropped += 1;
                    continue;
                }
                self.is_json = matches!(content.said, Said::Json(_)) && self.options.line_max >= JSON_LINE_MIN;
                match message::read(&content) {
                    Ok(asked) => self.asked(asked, now_ms, &mut deeds),
                    Err(Wrong { key, code }) => deeds.push(self.told(&Told::Nak(key, code, 0))),
                }
            }
        }
        deeds
    }

    /// Times it said no.
    pub fn nacks(&self) -> u64 {
        self.nacks
    }

    fn told(&mut self, told: &Told) -> Deed {
        self.nacks += u64::from(matches!(told, Told::Nak(..)));
        Deed::Send(told.line(self.is_json))
    }

    fn asked(&mut self, asked: Asked, now_ms: u64, deeds: &mut Vec<Deed>) {
        match asked {
            Asked::Hello { uid } => {
                if uid != self.uid {
                    (self.uid, self.generation) = (uid, self.generation + 1);
                    // What the last device was offered is not this one's; the spool still has it. What is under way
                    // for it is not told to this one either.
                    (self.offers, self.storing, self.taking) = (VecDeque::new(), Vec::new(), Vec::new());
                    (self.looking, self.look_again) = (false, false);
                }
                self.next_ms = now_ms;
                deeds.push(Deed::Greet(None));
                self.look(deeds);
            }
            Asked::Ping { nonce } => deeds.push(Deed::Greet(Some(nonce))),
            // The one under way will be acknowledged.
            Asked::Submit { key, .. } if self.storing.contains(&key) => {}
            Asked::Submit { key, .. } if self.storing.len() >= STORING_MAX => {
                deeds.push(self.told(&Told::Nak(key, Code::Busy, BUSY_S)));
            }
            Asked::Submit { key, prio, ttl_s, task, args } => {
                self.storing.push(key.clone());
                deeds.push(Deed::Store { key, prio, ttl_s, task, args });
            }
            Asked::Query { key } => deeds.push(Deed::Find(key, None)),
            Asked::Cancel { key } => {
                assert!(!plant::is(Fault::PanicInALink), "as planted");
                deeds.push(Deed::Cancel(key));
            }
            Asked::ResultAck { key, part } => self.has(key, part, now_ms, deeds),
        }
    }

    /// The device has a result up to a part: the next part, or the next result.
    fn has(&mut self, key: String, part: u32, now_ms: u64, deeds: &mut Vec<Deed>) {
        let Some(index) = self.offers.iter().position(|offered| offered.offer.key == key) else {
            // Offered by an earlier process, or answered to a question: the record says how many parts there are.
            deeds.push(Deed::Find(key, Some(part)));
            return;
        };
        let Some(mut offered) = self.offers.remove(index) else { return };
        offered.has = offered.has.max(part);
        self.next_ms = now_ms;
        if offered.has >= offered.parted.parts() {
            self.taking.push(offered.offer.request);
            deeds.push(Deed::Taken(offered.offer.request));
            self.look(deeds);
        } else {
            self.offers.push_front(offered);
        }
        self.speak(now_ms, deeds);
    }

    /// A request is on disk, or refused with a code and seconds.
    pub fn stored(&mut self, key: &str, outcome: Result<(u64, bool), (Code, u32)>) -> Vec<Deed> {
        self.storing.retain(|storing| storing != key);
        let told = match outcome {
            Ok((request, again)) => Told::Ack(key.to_owned(), request, again),
            Err((code, retry_s)) => Told::Nak(key.to_owned(), code, retry_s),
        };
        vec![self.told(&told)]
    }

    /// Where a request stands; with a part, what the device has of it.
    pub fn found(&mut self, key: &str, part: Option<u32>, found: Found) -> Vec<Deed> {
        let told = match (found, part) {
            // An acknowledgement of what nobody knows is taken and forgotten.
            (Found::Unknown | Found::Waits(..), Some(_)) => return Vec::new(),
            (Found::Unknown, None) => Told::Nak(key.to_owned(), Code::UnknownKey, 0),
            (Found::Waits(state, position, eta_s), None) => Told::State(key.to_owned(), state, position, eta_s),
            (Found::Result(offer), part) => return self.result(offer, part),
        };
        vec![self.told(&told)]
    }

    fn result(&mut self, offer: Offer, part: Option<u32>) -> Vec<Deed> {
        let known = self.offers.iter().position(|offered| offered.offer.request == offer.request);
        if known.is_none() && self.offers.len() >= OFFERS_MAX {
            self.offers.pop_back();
        }
        let index = known.unwrap_or_else(|| {
            self.offers.push_back(self.offered(offer));
            self.offers.len() - 1
        });
        let Some(offered) = self.offers.get_mut(index) else { return Vec::new() };
        offered.has = offered.has.max(part.unwrap_or(0));
        if offered.has >= offered.parted.parts() {
            let taken = Deed::Taken(offered.offer.request);
            self.taking.push(offered.offer.request);
            self.offers.remove(index);
            return vec![taken];
        }
        vec![Deed::Send(offered.parted.line(offered.has + 1))]
    }

    fn offered(&self, offer: Offer) -> Offered {
        let parted = Parted::new(&offer.key, offer.about, &offer.text, self.options.line_max, self.is_json);
        Offered { offer, parted, has: 0 }
    }

    /// What became of a Cancel: 0 cancelled, 1 too late, 2 unknown.
    pub fn cancelled(&mut self, key: &str, outcome: u8) -> Vec<Deed> {
        vec![self.told(&Told::Cancelled(key.to_owned(), outcome))]
    }

    /// Who we are: to a Ping its number comes back.
    pub fn greet(&mut self, nonce: Option<u32>, boot: u32, uplink: u8, unix_s: u64) -> Vec<Deed> {
        let told = match nonce {
            None => Told::Hello(boot, uplink, unix_s),
            Some(nonce) => Told::Pong(nonce, boot, uplink, unix_s),
        };
        vec![self.told(&told)]
    }

    /// Something stored has changed: results may wait.
    pub fn changed(&mut self) -> Vec<Deed> {
        let mut deeds = Vec::new();
        self.look(&mut deeds);
        deeds
    }

    fn look(&mut self, deeds: &mut Vec<Deed>) {
        if !self.options.push || self.offers.len() >= OFFERS_MAX {
            return;
        }
        if self.looking {
            self.look_again = true;
        } else {
            self.looking = true;
            deeds.push(Deed::Look);
        }
    }

    /// Results that wait for this device.
    pub fn offer(&mut self, results: Vec<Offer>, now_ms: u64) -> Vec<Deed> {
        self.looking = false;
        for offer in results {
            let known = self.offers.iter().any(|offered| offered.offer.request == offer.request);
            let known = known || self.taking.contains(&offer.request);
            if !known && self.offers.len() < OFFERS_MAX {
                self.offers.push_back(self.offered(offer));
            }
        }
        let mut deeds = Vec::new();
        if std::mem::take(&mut self.look_again) {
            self.look(&mut deeds);
        }
        self.speak(now_ms, &mut deeds);
        deeds
    }

    /// That a result was taken is noted down, or could not be: then it is offered once more.
    pub fn taken(&mut self, request: u64, is_durable: bool, now_ms: u64) -> Vec<Deed> {
        self.taking.retain(|taking| *taking != request);
        if !is_durable {
            // A disk in trouble is not asked at the speed of the line.
            self.next_ms = self.next_ms.max(now_ms + OFFER_MS);
        }
        self.changed()
    }

    /// When [`Session::tick`] is due.
    pub fn deadline_ms(&self) -> Option<u64> {
        (self.options.push && !self.offers.is_empty()).then_some(self.next_ms)
    }

    /// A deadline passed.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Deed> {
        let mut deeds = Vec::new();
        self.speak(now_ms, &mut deeds);
        deeds
    }

    /// Offers the first result. One that nobody takes goes behind the others, so that it holds up none.
    fn speak(&mut self, now_ms: u64, deeds: &mut Vec<Deed>) {
        if !self.options.push || now_ms < self.next_ms {
            return;
        }
        let Some(offered) = self.offers.pop_front() else { return };
        deeds.push(Deed::Send(offered.parted.line(offered.has + 1)));
        self.offers.push_back(offered);
        self.next_ms = now_ms + OFFER_MS;
    }
}
