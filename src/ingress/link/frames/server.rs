//! The gateway's side of one line: frames in, frames and jobs out.
//!
//! A pure value with explicit time. Owns who may speak (addresses, tokens, sessions) and the pushes' waits; the
//! sessions own what is said.

use std::collections::{BTreeMap, VecDeque};

use holdfast_wire::Code;
use holdfast_wire::frame::{FRAME_MAX, Header, VERSION, encode, wire_bytes};
use holdfast_wire::message::{Hello, Message, MessageError, Nack, Ping, Poll, Pong, TimeReq, TimeResp};

use super::job::{Done, Job};
use super::session::{Facts, Session, nack};
use crate::ingress::link::core::Refusal;
use crate::ingress::link::state::Count;
use crate::ingress::link::token::Token;

/// A device's own name has so many bytes.
const UID_BYTES: std::ops::RangeInclusive<usize> = 4..=16;
/// Frames that wait to be sent on one line; what does not fit is dropped, and repeated by whoever misses it.
const OUT_MAX: usize = 64;

/// Now, as the line's task read it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Now {
    /// Milliseconds since the gateway started.
    pub(super) ms: u64,
    /// Unix time in microseconds, as the wall clock says.
    pub(super) unix_us: u64,
}

/// One line's devices.
pub(super) struct Server {
    facts: Facts,
    token: Option<Token>,
    addresses: Vec<u8>,
    time_quality: u8,
    sessions: BTreeMap<u8, (u64, Session)>,
    /// Tells sessions apart that had the same address.
    next_generation: u64,
    out: VecDeque<(u8, Vec<u8>)>,
    counts: Vec<Count>,
    /// Devices that were heard of: uid, model, firmware where they said it.
    heard: Vec<(String, Option<(String, String)>)>,
}

impl Server {
    /// A line on which nobody has said anything yet.
    pub(super) fn new(facts: Facts, token: Option<Token>, addresses: Vec<u8>) -> Server {
        Server {
            facts,
            token,
            addresses,
            time_quality: 0,
            sessions: BTreeMap::new(),
            next_generation: 0,
            out: VecDeque::new(),
            counts: Vec::new(),
            heard: Vec::new(),
        }
    }

    /// What devices are told of the world.
    pub(super) fn set_facts(&mut self, uplink: u8, time_ms: u64, time_quality: u8) {
        (self.facts.uplink, self.facts.time_ms, self.time_quality) = (uplink, time_ms, time_quality);
    }

    /// A whole frame came; true where a device of this line sent it.
    pub(super) fn frame(&mut self, header: Header, payload: &[u8], now: Now) -> bool {
        // On a bus the gateway hears itself.
        if header.from_gateway || !self.is_ours(header.addr) {
            return false;
        }
        self.counts.push(Count::FramesIn);
        if header.repeat {
            self.counts.push(Count::Repeats);
        }
        match Message::read(header.kind, payload) {
            Ok(Message::Hello(hello)) => self.hello(header, &hello, now),
            Ok(message) => self.message(header, &message, now),
            // Without a session nothing is judged: the device has to say Hello first.
            Err(_) if self.session(header).is_none() => self.no_session(header),
            Err(MessageError::Unknown) => self.refuse(header, Code::Unknown, "no such type or value"),
            Err(MessageError::Malformed) => self.refuse(header, Code::BadPayload, "these are not its fields"),
            Err(MessageError::TooMany) => self.refuse(header, Code::TooLarge, "too many arguments or pictures"),
        }
        true
    }

    fn is_ours(&self, addr: u8) -> bool {
        if self.addresses.is_empty() { addr == 0 } else { self.addresses.contains(&addr) }
    }

    fn session(&mut self, header: Header) -> Option<&mut Session> {
        let session = self.sessions.get_mut(&header.addr).map(|(_, session)| session);
        session.filter(|session| session.byte() == header.session)
    }

    fn no_session(&mut self, header: Header) {
        self.refuse(header, Code::NoSession, "say Hello first");
    }

    fn refuse(&mut self, to: Header, code: Code, detail: &str) {
        self.say(to, &Message::Nack(Nack { re_type: to.kind, code: code.number(), detail, ..Nack::default() }));
    }

    fn hello(&mut self, header: Header, hello: &Hello<'_>, now: Now) {
        if !(hello.proto_min..=hello.proto_max).contains(&VERSION) {
            return self.refuse(header, Code::Version, "this gateway speaks version 1");
        }
        if !UID_BYTES.contains(&hello.uid.len()) || header.session != hello.boot_id.to_le_bytes()[0] {
            return self.refuse(header, Code::BadPayload, "a uid has 4 to 16 bytes");
        }
        if self.token.as_ref().is_some_and(|token| !token.is(hello.token)) {
            return self.refuse(header, Code::Forbidden, "this link asks for a token");
        }
        let uid = hello.uid.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        self.heard.push((uid.clone(), Some((hello.model.to_owned(), hello.fw.to_owned()))));
        let max_frame = if hello.max_frame == 0 { FRAME_DEFAULT } else { hello.max_frame };
        // A longer one would not fit into a turn on a bus.
        let max_frame = if self.addresses.is_empty() { max_frame } else { max_frame.min(FRAME_DEFAULT) };
        match self.sessions.get_mut(&header.addr) {
            Some((_, session)) if session.uid == uid && session.boot == hello.boot_id => {
                session.hello_again(max_frame, header.tag, now.ms);
            }
            _ => {
                self.next_generation += 1;
                let session = Session::new(uid, hello.boot_id, max_frame, header.tag);
                self.sessions.insert(header.addr, (self.next_generation, session));
            }
        }
    }

    fn message(&mut self, header: Header, message: &Message<'_>, now: Now) {
        if self.session(header).is_none() {
            return self.no_session(header);
        }
        let Server { sessions, out, counts, facts, heard, .. } = self;
        let Some((_, session)) = sessions.get_mut(&header.addr) else { return };
        heard.push((session.uid.clone(), None));
        let mut say = |tag, repeat, message: &Message<'_>| put(out, counts, reply(header, tag, repeat), message);
        let tag = header.tag;
        match message {
            Message::Submit(submit) => session.submit(tag, submit),
            Message::Chunk(chunk) => session.chunk_came(tag, chunk, &mut say),
            Message::ResultAck(ack) => session.result_acked(ack.key, ack.next, now.ms),
            Message::Query(query) => session.query(tag, query.key),
            Message::Cancel(cancel) => session.cancel(tag, cancel.key),
            Message::Ping(Ping { nonce }) => {
                let pending = u16::try_from(session.pushes.len()).unwrap_or(u16::MAX);
                let pong = Pong { nonce: *nonce, gw_boot: facts.gw_boot, uplink: facts.uplink, pending };
                say(tag, false, &Message::Pong(pong));
            }
            Message::TimeReq(TimeReq { t0_us }) => {
                let (t1, quality) = (now.unix_us, self.time_quality);
                let time = TimeResp { t0: *t0_us, t1, t2: now.unix_us, quality };
                say(tag, false, &Message::TimeResp(time));
            }
            Message::Pong(_) | Message::Idle(_) | Message::Hello(_) => {}
            // A gateway's words from a device.
            _ => {
                let refusal = Refusal::new(Code::Unknown, "only a gateway says this");
                nack(tag, header.kind, 0, &refusal, &mut say);
            }
        }
    }

    /// Something stored has changed: every session looks for results.
    pub(super) fn look_for_results(&mut self) {
        self.sessions.values_mut().for_each(|(_, session)| session.look_for_results());
    }

    /// The next job of any session that has none under way: address and generation, whose, what.
    pub(super) fn next_job(&mut self) -> Option<((u8, u64), String, Job)> {
        self.sessions.iter_mut().find_map(|(addr, (generation, session))| {
            let job = session.next_job()?;
            Some(((*addr, *generation), session.uid.clone(), job))
        })
    }

    /// A job is done; that of a session that is gone leaves nothing to say.
    pub(super) fn done(&mut self, whose: (u8, u64), done: Done, now: Now) {
        let Server { sessions, out, counts, facts, .. } = self;
        let Some((_, session)) = sessions.get_mut(&whose.0).filter(|(generation, _)| *generation == whose.1) else {
            return;
        };
        let to = of(whose.0, session);
        let mut say = |tag, repeat, message: &Message<'_>| put(out, counts, reply(to, tag, repeat), message);
        session.done(done, facts, now.ms, &mut say);
        session.push(now.ms, &mut say);
    }

    /// Results whose time has come.
    pub(super) fn tick(&mut self, now: Now) {
        let Server { sessions, out, counts, .. } = self;
        for (addr, (_, session)) in sessions {
            let to = of(*addr, session);
            session.push(now.ms, &mut |tag, repeat, message| put(out, counts, reply(to, tag, repeat), message));
        }
    }

    /// When [`Server::tick`] has something to do.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        self.sessions.values().filter_map(|(_, session)| session.due_ms()).min()
    }

    /// The next frame to send, to anybody.
    pub(super) fn next_out(&mut self) -> Option<Vec<u8>> {
        self.out.pop_front().map(|(_, bytes)| bytes)
    }

    /// All that waits for one address.
    pub(super) fn out_for(&mut self, addr: u8) -> Vec<u8> {
        let mut all = Vec::new();
        self.out.retain(|(to, bytes)| {
            let is_theirs = *to == addr;
            if is_theirs {
                all.extend_from_slice(bytes);
            }
            !is_theirs
        });
        all
    }

    /// The word by which a device on a bus may speak.
    pub(super) fn poll(&mut self, addr: u8, credit: u16) -> Vec<u8> {
        let session = self.sessions.get(&addr).map_or(0, |(_, session)| session.byte());
        let header = Header { from_gateway: true, repeat: false, addr, kind: 0, session, tag: 0 };
        self.counts.push(Count::FramesOut);
        bytes_of(header, &Message::Poll(Poll { credit }))
    }

    /// What was counted since the last call.
    pub(super) fn take_counts(&mut self) -> Vec<Count> {
        std::mem::take(&mut self.counts)
    }

    /// Devices that were heard of since the last call.
    pub(super) fn take_heard(&mut self) -> Vec<(String, Option<(String, String)>)> {
        std::mem::take(&mut self.heard)
    }

    fn say(&mut self, to: Header, message: &Message<'_>) {
        put(&mut self.out, &mut self.counts, reply(to, to.tag, false), message);
    }
}

/// `max_frame` of a device that names none.
const FRAME_DEFAULT: u16 = holdfast_wire::frame::FRAME_DEFAULT as u16;

fn of(addr: u8, session: &Session) -> Header {
    Header { from_gateway: true, repeat: false, addr, kind: 0, session: session.byte(), tag: 0 }
}

fn reply(to: Header, tag: u8, repeat: bool) -> Header {
    Header { from_gateway: true, repeat, tag, ..to }
}

fn put(out: &mut VecDeque<(u8, Vec<u8>)>, counts: &mut Vec<Count>, header: Header, message: &Message<'_>) {
    if out.len() >= OUT_MAX {
        return;
    }
    counts.push(Count::FramesOut);
    if matches!(message, Message::Nack(_)) {
        counts.push(Count::Nacks);
    }
    out.push_back((header.addr, bytes_of(header, message)));
}

fn bytes_of(header: Header, message: &Message<'_>) -> Vec<u8> {
    let mut bytes = vec![0; wire_bytes(FRAME_MAX) + 1];
    // The longest message fits: texts and parts are cut before.
    let length = encode(header, message, &mut bytes).unwrap_or(0);
    bytes.truncate(length);
    bytes
}
