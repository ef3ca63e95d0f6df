//! Single words of the gateway that a bad line brings seldom, said on purpose: each has its end.
//!
//! Owns short conversations; any device can be put to them.

use holdfast_wire::message::{Answer, HelloAck, Message, Nack, Poll, Progress, SubmitAck};
use holdfast_wire::{Code, Deframer, Header, encode};

use super::machine::{Machine, Told, Turn};

/// Longer than any wait between two repeats.
const LONG_MS: u64 = 15_000;
const HELLO: u8 = 0x01;
const SUBMIT: u8 = 0x10;
const CHUNK: u8 = 0x20;
const QUERY: u8 = 0x33;
const PING: u8 = 0x50;
const IDLE: u8 = 0x61;

pub fn from_gateway(message: &Message<'_>) -> Vec<u8> {
    to(0, 1, message)
}

fn to(addr: u8, session: u8, message: &Message<'_>) -> Vec<u8> {
    let mut out = [0; 200];
    let header = Header { from_gateway: true, repeat: false, addr, kind: 0, session, tag: 1 };
    let length = encode(header, message, &mut out).unwrap();
    out[..length].to_vec()
}

/// A device and its clock.
struct Talk<M> {
    machine: M,
    now_ms: u64,
}

impl<M: Machine> Talk<M> {
    /// A session is open and these requests are said, each with a picture of so many bytes.
    fn new(mut machine: M, pictures: &[usize]) -> Self {
        machine.start(1, 0);
        for (key, length) in (1..).zip(pictures) {
            machine.keep(key, true, &vec![7; *length]);
            machine.submit(key, true, 0);
        }
        let mut talk = Talk { machine, now_ms: 0 };
        let ack = HelloAck { proto: 1, gw_boot: 1, chunk: 100, credit: 400, ..HelloAck::default() };
        let turn = talk.hears(&Message::HelloAck(ack));
        assert_eq!(kinds(&turn), vec![SUBMIT; pictures.len()]);
        talk
    }

    fn hears(&mut self, message: &Message<'_>) -> Turn {
        self.now_ms += 10;
        self.machine.turn(&from_gateway(message), self.now_ms)
    }

    fn submit_ack(&mut self, key: u64, outcome: u8, need: Option<(u32, u32)>) -> Turn {
        self.hears(&Message::SubmitAck(SubmitAck { key, outcome, need, ..SubmitAck::default() }))
    }

    fn nack(&mut self, key: u64, code: Code, retry_ms: u32) -> Turn {
        self.hears(&Message::Nack(Nack { key, code: code.number(), retry_ms, ..Nack::default() }))
    }

    /// Nothing comes for a while; what it says then, whether the gateway is still there left out.
    fn silence(&mut self, ms: u64) -> Vec<u8> {
        self.now_ms += ms;
        let mut said = kinds(&self.machine.turn(&[], self.now_ms));
        said.retain(|kind| *kind != PING);
        said
    }
}

/// The types of what was sent.
fn kinds(turn: &Turn) -> Vec<u8> {
    let kind = |frame: &Vec<u8>| {
        let mut place = vec![0; frame.len()];
        let mut deframer = Deframer::new(&mut place);
        frame.iter().find_map(|byte| deframer.push(*byte)?.ok().map(|frame| frame.header.kind)).unwrap()
    };
    turn.sent.iter().map(kind).collect()
}

/// Finished, and its result is not kept any more: asked for a few times, then it is over.
fn a_pruned_result(machine: impl Machine) {
    let mut talk = Talk::new(machine, &[0]);
    let turn = talk.submit_ack(1, 3, None);
    assert_eq!((&turn.told[..], kinds(&turn)), (&[Told::Stored(1)][..], vec![QUERY]));
    assert_eq!(talk.submit_ack(1, 3, None), Turn::default(), "said twice, done once");
    let over = Message::Progress(Progress { key: 1, state: 4, ..Progress::default() });
    let mut queries = 1;
    while talk.hears(&over).told != [Told::Gone(1)] {
        assert_eq!(talk.silence(LONG_MS), [QUERY]);
        queries += 1;
        assert!(queries < 10, "it asks for ever");
    }
    assert!(queries > 1, "one answer may have been about to come");
    assert!(!talk.silence(LONG_MS).contains(&QUERY));
    assert_eq!(talk.hears(&over).told, []);
}

/// Finished, and its result comes at the third question.
fn a_result_that_is_late(machine: impl Machine) {
    let mut talk = Talk::new(machine, &[0]);
    talk.submit_ack(1, 3, None);
    assert_eq!((talk.silence(LONG_MS), talk.silence(LONG_MS)), (vec![QUERY], vec![QUERY]));
    // In flight is no end, however often it was asked for.
    let sending = Message::Progress(Progress { key: 1, state: 3, ..Progress::default() });
    assert_eq!(talk.hears(&sending).told, []);
    let text = b"at last";
    let answer = Answer { req: 5, key: 1, source: 1, total: 7, text, ..Answer::default() };
    let told = talk.hears(&Message::Result(answer)).told;
    assert_eq!(told, [Told::Answer { key: 1, last: true, text: text.to_vec() }]);
}

/// Finished, then unknown: as if it had never been said.
fn a_key_that_is_unknown(machine: impl Machine) {
    let mut talk = Talk::new(machine, &[0]);
    talk.submit_ack(1, 3, None);
    let turn = talk.nack(1, Code::UnknownKey, 0);
    assert_eq!((&turn.told[..], kinds(&turn)), (&[][..], vec![SUBMIT]));
    assert_eq!(talk.nack(1, Code::UnknownKey, 0), Turn::default(), "late, it is being submitted already");
    assert_eq!(talk.submit_ack(1, 0, None).told, [Told::Stored(1)]);
    assert_eq!(kinds(&talk.nack(1, Code::UnknownKey, 0)), [SUBMIT]);
}

/// No room for the one picture: the other, which waits for the line, is not held up by it.
fn a_picture_without_room(machine: impl Machine) {
    let mut talk = Talk::new(machine, &[150, 150]);
    assert_eq!(kinds(&talk.submit_ack(1, 1, Some((1, 0)))), [CHUNK, CHUNK]);
    assert_eq!(kinds(&talk.submit_ack(2, 1, Some((2, 0)))), []);
    assert_eq!(kinds(&talk.nack(1, Code::StorageFull, 60_000)), [SUBMIT]);
    assert_eq!(kinds(&talk.submit_ack(2, 1, Some((2, 0)))), [CHUNK, CHUNK]);
}

/// The session is refused: it asks again, not before the time that it was told, then ever more seldom.
fn a_refused_session(mut machine: impl Machine) {
    machine.start(1, 0);
    let mut talk = Talk { machine, now_ms: 0 };
    assert_eq!([talk.silence(0), talk.silence(LONG_MS), talk.silence(LONG_MS)], [[HELLO], [HELLO], [HELLO]]);
    assert_eq!(talk.nack(0, Code::Version, 20_000).told, [Told::Refused(0)]);
    assert_eq!(talk.silence(19_000), []);
    let said: usize = (0..400).map(|_| talk.silence(20).len()).sum();
    assert!((4..8).contains(&said), "{said} times in eight seconds");
}

/// On a bus: silent until polled, also by a gateway that knows nothing of its start; one poll lets it say so much.
pub fn a_bus(mut machine: impl Machine) {
    machine.start_on_bus(9, 0);
    machine.keep(1, true, &[]);
    machine.submit(1, true, 0);
    let polls = |session, credit| to(17, session, &Message::Poll(Poll { credit }));
    assert_eq!(machine.turn(&[], 5), Turn::default());
    assert_eq!(machine.turn(&to(18, 0, &Message::Poll(Poll { credit: 500 })), 10), Turn::default());
    assert_eq!(kinds(&machine.turn(&polls(0, 500), 20)), [HELLO, IDLE]);
    let ack = HelloAck { proto: 1, gw_boot: 1, chunk: 100, credit: 400, ..HelloAck::default() };
    assert_eq!(machine.turn(&to(17, 9, &Message::HelloAck(ack)), 30), Turn::default());
    assert_eq!(kinds(&machine.turn(&polls(9, 1), 40)), [SUBMIT]);
    assert_eq!(kinds(&machine.turn(&polls(9, 500), 50)), [IDLE]);
}

pub fn all<M: Machine>(start: impl Fn() -> M) {
    a_pruned_result(start());
    a_result_that_is_late(start());
    a_key_that_is_unknown(start());
    a_picture_without_room(start());
    a_refused_session(start());
}
