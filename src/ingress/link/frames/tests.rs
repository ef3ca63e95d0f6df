//! The rules W1 to W13 as far as one line's sessions hold them, by their numbers, with explicit time. What the core,
//! the spool and the uploads hold of them is tested there, and all of it together against the real program.

use bytes::Bytes;
use holdfast_wire::frame::FRAME_MAX;
use holdfast_wire::message::{BlobRef, Chunk, Hello, List, Message, Op, Ping, Query, ResultAck, Submit};
use holdfast_wire::{Code, Deframer, Header, encode};

use super::job::{Done, Job, Said};
use super::server::{Now, Server};
use super::session::Facts;
use crate::ingress::link::core::Refusal;
use crate::ingress::link::core::{self, Answer, How, Outcome, Results, Stored};
use crate::ingress::link::token::Token;
use crate::ingress::link::upload::UploadError;
use crate::spool::record::DeviceKey;

const BOOT: u32 = 0x00c0_ffee;

/// A line with one device on it, and what the gateway said to it.
struct Bench {
    server: Server,
    ms: u64,
    tag: u8,
    session: u8,
}

/// A message as it came, its type and its bytes.
struct Heard {
    header: Header,
    payload: Vec<u8>,
}

impl Heard {
    fn message(&self) -> Message<'_> {
        Message::read(self.header.kind, &self.payload).unwrap()
    }
}

fn framed(header: Header, message: &Message<'_>) -> (Header, Vec<u8>) {
    let (mut out, mut place) = ([0; 5000], [0; 5000]);
    let length = encode(header, message, &mut out).unwrap();
    let mut deframer = Deframer::new(&mut place);
    for byte in &out[..length] {
        if let Some(Ok(frame)) = deframer.push(*byte) {
            return (frame.header, frame.payload.to_vec());
        }
    }
    panic!("no frame")
}

impl Bench {
    fn new() -> Bench {
        Bench::with(None, Vec::new())
    }

    fn with(token: Option<Token>, addresses: Vec<u8>) -> Bench {
        let facts = Facts { gw_boot: 7, name: "gw".to_owned(), uplink: 2, time_ms: 0 };
        Bench { server: Server::new(facts, token, addresses), ms: 1_000, tag: 0, session: BOOT.to_le_bytes()[0] }
    }

    /// With a session, its first jobs done.
    fn online() -> Bench {
        let mut bench = Bench::new();
        bench.say(&hello(BOOT, 1024));
        bench.work(|_| None);
        bench.heard();
        bench
    }

    fn now(&self) -> Now {
        Now { ms: self.ms, unix_us: 0 }
    }

    fn say(&mut self, message: &Message<'_>) {
        self.say_from(0, message, false);
    }

    fn say_from(&mut self, addr: u8, message: &Message<'_>, repeat: bool) {
        self.tag = self.tag.wrapping_add(1);
        let header = Header { from_gateway: false, repeat, addr, kind: 0, session: self.session, tag: self.tag };
        let (header, payload) = framed(header, message);
        let now = self.now();
        self.server.frame(header, &payload, now);
    }

    /// Does jobs until there are none; what `how` has no answer to is done plainly.
    fn work(&mut self, how: impl Fn(&Job) -> Option<Done>) -> Vec<String> {
        let mut done = Vec::new();
        while let Some((whose, _, job)) = self.server.next_job() {
            done.push(format!("{job:?}"));
            let answer = how(&job).unwrap_or_else(|| plainly(job));
            let now = self.now();
            self.server.done(whose, answer, now);
        }
        done
    }

    fn heard(&mut self) -> Vec<Heard> {
        let mut all = Vec::new();
        while let Some(bytes) = self.server.next_out() {
            let mut place = vec![0; FRAME_MAX + 200];
            let mut deframer = Deframer::new(&mut place);
            for byte in bytes {
                if let Some(Ok(frame)) = deframer.push(byte) {
                    all.push(Heard { header: frame.header, payload: frame.payload.to_vec() });
                }
            }
        }
        all
    }

    fn later(&mut self, ms: u64) -> Vec<Heard> {
        self.ms += ms;
        let now = self.now();
        self.server.tick(now);
        self.heard()
    }
}

fn plainly(job: Job) -> Done {
    match job {
        Job::Hello { tag, .. } => Done::Hello { tag, pending: 0 },
        Job::Submit { tag, key, .. } => Done::Submit { tag, key, said: Said::Stored(stored(How::New)) },
        Job::Append { tag, blob, off, data, .. } => Done::Append { tag, blob, next: Ok(off + data.len() as u32) },
        Job::Query { tag, key } => Done::Query { tag, key, answer: Ok(Answer::Unknown) },
        Job::Cancel { tag, key } => {
            Done::Cancel { tag, key, cancelled: Ok(crate::ingress::link::core::Cancelled::Yes) }
        }
        Job::Results { .. } => told(Vec::new()),
        Job::Progress { key } => Done::Progress { key, progress: None },
        Job::Acked { request } => Done::Acked { request, noted: true },
    }
}

fn told(outcomes: Vec<Outcome>) -> Done {
    Done::Results(Results { outcomes, again: false }, Vec::new())
}

fn stored(how: How) -> Stored {
    Stored { request: 4711, position: 3, how }
}

fn hello(boot_id: u32, max_frame: u16) -> Message<'static> {
    Message::Hello(Hello {
        proto_min: 1,
        proto_max: 1,
        uid: b"\x02\x00\x5e\x10",
        boot_id,
        max_frame,
        rx_credit: 2048,
        ..Hello::default()
    })
}

fn submit(key: u64, blobs: &[BlobRef]) -> Message<'static> {
    let op = Op::Chat { model: "", system: "", user: "?", max_tokens: 0, blobs: List::from_slice(blobs).unwrap() };
    Message::Submit(Submit { key, op, ..Submit::default() })
}

const BLOB: BlobRef = BlobRef { blob: 9, len: 32, crc32: 0x448e_c3f3, mime: 1 };

fn outcome(key: u64, request: u64, text: &str) -> Outcome {
    let text = Bytes::copy_from_slice(text.as_bytes());
    Outcome { request, key: DeviceKey::Number(key), status: 0, source: 1, code: 0, value: 0.0, text }
}

fn nacks(heard: &[Heard]) -> Vec<u16> {
    heard.iter().filter_map(|h| if let Message::Nack(nack) = h.message() { Some(nack.code) } else { None }).collect()
}

fn results(heard: &[Heard]) -> Vec<(u64, u32, bool)> {
    let part = |h: &Heard| match h.message() {
        Message::Result(part) => Some((part.key, part.off, h.header.repeat)),
        _ => None,
    };
    heard.iter().filter_map(part).collect()
}

#[test]
fn w2_the_acknowledgement_leaves_when_the_store_is_done_and_not_before() {
    let mut bench = Bench::online();
    bench.say(&submit(5, &[]));
    let (whose, _, job) = bench.server.next_job().unwrap();
    assert!(bench.heard().is_empty(), "nothing is said while it is being stored");
    bench.say_from(0, &submit(5, &[]), true);
    assert!(bench.server.next_job().is_none(), "and a repeat makes no second one");
    let now = bench.now();
    bench.server.done(whose, plainly(job), now);
    let heard = bench.heard();
    let Message::SubmitAck(ack) = heard[0].message() else { panic!() };
    assert_eq!((ack.key, ack.outcome, ack.req, ack.queue_pos, heard.len()), (5, 0, 4711, 3, 1));
}

#[test]
fn w4_each_repeat_is_answered_from_what_the_core_knows() {
    let mut bench = Bench::online();
    for (how, outcome) in [(How::New, 0), (How::Again, 2), (How::Finished, 3)] {
        bench.say(&submit(5, &[]));
        bench.work(|job| match job {
            Job::Submit { tag, key, .. } => {
                Some(Done::Submit { tag: *tag, key: *key, said: Said::Stored(stored(how)) })
            }
            _ => None,
        });
        let heard = bench.heard();
        let Message::SubmitAck(ack) = heard[0].message() else { panic!() };
        assert_eq!((ack.outcome, heard[0].header.tag), (outcome, bench.tag));
    }
}

#[test]
fn w5_only_the_next_bytes_are_taken_and_told_cumulatively() {
    let mut bench = Bench::online();
    bench.say(&submit(5, &[BLOB]));
    bench.work(|job| match job {
        Job::Submit { tag, key, .. } => {
            Some(Done::Submit { tag: *tag, key: *key, said: Said::Need { blob: BLOB, there: 4, with: vec![9] } })
        }
        _ => None,
    });
    let heard = bench.heard();
    let Message::SubmitAck(ack) = heard[0].message() else { panic!() };
    assert_eq!((ack.outcome, ack.need), (1, Some((9, 4))));
    let chunk = |off: u32, data: &'static [u8]| Message::Chunk(Chunk { blob: 9, off, data });
    bench.say(&chunk(8, b"late"));
    let heard = bench.heard();
    let Message::ChunkAck(ack) = heard[0].message() else { panic!() };
    assert_eq!(ack.next, 4, "what is missing is asked for again");
    bench.say(&chunk(4, b"aaaa"));
    bench.say(&chunk(8, b"bbbb"));
    let done = bench.work(|_| None);
    assert_eq!(done.iter().filter(|job| job.starts_with("Append")).count(), 1, "small pieces are one write: {done:?}");
    let heard = bench.heard();
    let Message::ChunkAck(ack) = heard.last().unwrap().message() else { panic!() };
    assert_eq!((ack.next, ack.credit), (12, 3840));
    bench.say(&chunk(30, b"beyond the end"));
    assert!(bench.work(|_| None).iter().all(|job| !job.starts_with("Append")));
}

/// Request 5 was handed in, and nothing of its picture has come.
fn bench_that_waits_for_a_picture() -> Bench {
    let mut bench = Bench::online();
    bench.say(&submit(5, &[BLOB]));
    bench.work(|job| match job {
        Job::Submit { tag, key, .. } => {
            Some(Done::Submit { tag: *tag, key: *key, said: Said::Need { blob: BLOB, there: 0, with: vec![9] } })
        }
        _ => None,
    });
    bench.heard();
    bench
}

#[test]
fn w5_what_the_disk_has_is_what_counts() {
    let mut bench = bench_that_waits_for_a_picture();
    let fail = |bench: &mut Bench, error: UploadError| {
        bench.say(&Message::Chunk(Chunk { blob: 9, off: 0, data: b"aaaa" }));
        bench.work(|job| match job {
            Job::Append { tag, blob, .. } => Some(Done::Append { tag: *tag, blob: *blob, next: Err(error) }),
            _ => None,
        });
        bench.heard()
    };
    let heard = fail(&mut bench, UploadError::OutOfOrder(0));
    let Message::ChunkAck(ack) = heard[0].message() else { panic!() };
    assert_eq!(ack.next, 0);
    // A Nack that is lost is said again.
    for _ in 0..2 {
        let heard = fail(&mut bench, UploadError::Full);
        let Message::Nack(nack) = heard[0].message() else { panic!() };
        assert_eq!((nack.code, nack.key, nack.re_type), (Code::StorageFull.number(), 5, 0x20));
    }
}

#[test]
fn w6_without_a_session_every_message_is_told_to_say_hello() {
    let mut bench = Bench::new();
    bench.say(&submit(5, &[]));
    assert_eq!(nacks(&bench.heard()), [Code::NoSession.number()]);
    bench.say(&hello(BOOT, 1024));
    bench.work(|_| None);
    let heard = bench.heard();
    let Message::HelloAck(ack) = heard[0].message() else { panic!() };
    assert_eq!((ack.gw_boot, ack.max_frame, ack.chunk, ack.credit, ack.max_open), (7, 1024, 960, 3840, 32));
    bench.session ^= 1;
    bench.say(&Message::Query(Query { key: 5 }));
    assert_eq!(nacks(&bench.heard()), [Code::NoSession.number()], "another start's byte is another session");
    bench.session ^= 1;
    bench.say(&Message::Ping(Ping { nonce: 3 }));
    let heard = bench.heard();
    let Message::Pong(pong) = heard[0].message() else { panic!() };
    assert_eq!((pong.nonce, pong.gw_boot, pong.uplink), (3, 7, 2));
}

#[test]
fn a_small_device_gets_frames_of_its_size_only() {
    const SMALL: u16 = 64;
    let name = "a gateway with a long näme beside line three".to_owned();
    let facts = Facts { gw_boot: u32::MAX, name, uplink: 2, time_ms: 1_795_200_000_000 };
    let mut bench = Bench::new();
    bench.server = Server::new(facts, None, Vec::new());
    bench.say(&hello(BOOT, SMALL));
    bench.work(|_| None);
    bench.say(&submit(u64::MAX, &[]));
    let detail = "w".repeat(64);
    let refusal = Refusal { retry_ms: u32::MAX, ..Refusal::new(Code::StorageFull, &detail) };
    bench.work(|job| match job {
        Job::Submit { tag, key, .. } => {
            Some(Done::Submit { tag: *tag, key: *key, said: Said::Refused(refusal.clone()) })
        }
        _ => None,
    });
    let mut frames = 0;
    while let Some(bytes) = bench.server.next_out() {
        frames += 1;
        let frame: Vec<u8> = bytes.into_iter().filter(|byte| *byte != 0).collect();
        // COBS has put one byte before it.
        assert!(frame.len() - 1 <= SMALL.into(), "{}", frame.len());
    }
    assert_eq!(frames, 2, "HelloAck and Nack");
}

#[test]
fn w7_a_device_that_started_anew_is_another_session_and_jobs_of_the_old_one_say_nothing() {
    let mut bench = Bench::online();
    bench.say(&submit(5, &[]));
    let (whose, _, job) = bench.server.next_job().unwrap();
    bench.session = 0x55;
    bench.say(&hello(0x55, 1024));
    let now = bench.now();
    bench.server.done(whose, plainly(job), now);
    assert!(bench.heard().is_empty());
    let done = bench.work(|_| None);
    assert!(done[0].contains("Hello") && done[0].contains("boot: 85"), "its half uploads are dropped: {done:?}");
    assert!(done[1].contains("Results"), "and its results are looked for: {done:?}");
}

#[test]
fn w8_a_result_goes_out_in_parts_and_again_until_all_of_it_is_acknowledged() {
    let mut bench = Bench::new();
    bench.say(&hello(BOOT, 64));
    let text = "0123456789abcdefghijklmnopqrstuvwxyz";
    bench.work(|job| matches!(job, Job::Results { .. }).then(|| told(vec![outcome(5, 4711, text)])));
    let heard = bench.heard();
    assert_eq!(results(&heard), [(5, 0, false)]);
    let part = |heard: &[Heard]| match heard.last().unwrap().message() {
        Message::Result(part) => (part.off + part.text.len() as u32, part.total),
        other => panic!("{other:?}"),
    };
    let (mut next, total) = part(&heard);
    assert_eq!(total, 36);
    for wait in [2_000, 4_000, 8_000] {
        assert!(bench.later(wait - 1).is_empty());
        assert_eq!(results(&bench.later(1)), [(5, 0, true)], "repeated after {wait} ms");
    }
    while next < total {
        bench.say(&Message::ResultAck(ResultAck { key: 5, next }));
        let heard = bench.later(0);
        assert_eq!(results(&heard), [(5, next, false)], "the next part follows at once");
        (next, _) = part(&heard);
        assert!(bench.later(0).is_empty());
    }
    bench.say(&Message::ResultAck(ResultAck { key: 5, next: total }));
    let done = bench.work(|job| matches!(job, Job::Results { .. }).then(|| told(vec![outcome(5, 4711, text)])));
    assert!(done[0].contains("Acked { request: 4711 }"), "{done:?}");
    assert!(bench.later(120_000).is_empty(), "a look that began before does not offer it again");
}

#[test]
fn w8_waits_end_at_a_minute_and_a_hello_offers_everything_at_once() {
    let mut bench = Bench::online();
    bench.server.look_for_results();
    bench.work(|job| matches!(job, Job::Results { .. }).then(|| told(vec![outcome(5, 1, "x")])));
    let mut waits = Vec::new();
    for _ in 0..8 {
        let due = bench.server.deadline_ms().unwrap();
        waits.push(due - bench.ms);
        bench.ms = due;
        bench.later(0);
    }
    assert_eq!(waits[..6], [2_000, 4_000, 8_000, 16_000, 32_000, 60_000]);
    assert_eq!(waits[7], 60_000);
    bench.heard();
    bench.say(&hello(BOOT, 1024));
    bench.work(|_| None);
    assert_eq!(results(&bench.heard()), [(5, 0, false)]);
}

#[test]
fn w8_one_result_that_nobody_takes_does_not_keep_the_others() {
    let mut bench = Bench::online();
    bench.server.look_for_results();
    let both = || told(vec![outcome(5, 1, "x"), outcome(6, 2, "y")]);
    bench.work(|job| matches!(job, Job::Results { .. }).then(both));
    let mut seen = results(&bench.heard());
    for _ in 0..4 {
        seen.extend(results(&bench.later(60_000)));
    }
    assert!(seen.iter().any(|(key, ..)| *key == 6), "{seen:?}");
}

#[test]
fn w8_a_result_whose_note_failed_is_offered_again_and_not_at_full_speed() {
    let mut bench = Bench::online();
    bench.server.look_for_results();
    // The spool goes on to name it, and cannot note down that it was taken.
    let failing = |job: &Job| match job {
        Job::Results { known } if known.is_empty() => Some(told(vec![outcome(5, 4711, "x")])),
        Job::Acked { request } => Some(Done::Acked { request: *request, noted: false }),
        _ => None,
    };
    bench.work(failing);
    assert_eq!(results(&bench.heard()), [(5, 0, false)]);
    let (begun, mut offered) = (bench.ms, 0);
    while bench.ms < begun + 60_000 {
        bench.say(&Message::ResultAck(ResultAck { key: 5, next: 1 }));
        bench.work(failing);
        bench.ms = bench.server.deadline_ms().unwrap_or(bench.ms + 1_000).max(bench.ms + 1);
        offered += results(&bench.later(0)).len();
        bench.work(failing);
        offered += results(&bench.heard()).len();
    }
    assert!((5..=30).contains(&offered), "{offered} times in a minute");
    bench.say(&Message::ResultAck(ResultAck { key: 5, next: 1 }));
    bench.work(|_| None);
    bench.heard();
    assert!(bench.later(120_000).is_empty(), "noted down at last");
}

#[test]
fn a_job_that_broke_off_holds_up_nothing() {
    let mut bench = Bench::online();
    bench.say(&submit(5, &[]));
    bench.work(|job| matches!(job, Job::Submit { .. }).then_some(Done::Broke));
    assert!(bench.heard().is_empty());
    bench.say_from(0, &submit(5, &[]), true);
    let done = bench.work(|_| None);
    assert!(done.iter().any(|job| job.starts_with("Submit")), "its repeat is looked at: {done:?}");
}

#[test]
fn w13_on_a_bus_no_frame_is_longer_than_a_turn() {
    let mut bench = Bench::with(None, vec![17]);
    bench.say_from(17, &hello(BOOT, 4096), false);
    bench.work(|_| None);
    let heard = bench.heard();
    let Message::HelloAck(ack) = heard[0].message() else { panic!() };
    assert_eq!((ack.max_frame, ack.chunk), (1024, 960));
    assert!(usize::from(super::bus::CREDIT) >= holdfast_wire::frame::wire_bytes(1024));
}

#[test]
fn each_change_of_a_state_is_told_once() {
    let mut bench = Bench::online();
    let mut look = |state: u8| {
        bench.server.look_for_results();
        bench.work(|job| match job {
            Job::Results { .. } => Some(Done::Results(Results::default(), vec![(5, state), (6, 2)])),
            Job::Progress { key } => {
                let progress = Some(core::Progress { state, position: 70_000, eta_s: 90 });
                Some(Done::Progress { key: *key, progress })
            }
            _ => None,
        });
        let told = |heard: &Heard| match heard.message() {
            Message::Progress(told) => (told.key, told.state, told.queue_pos, told.eta_s),
            other => panic!("{other:?}"),
        };
        bench.heard().iter().map(told).collect::<Vec<_>>()
    };
    assert_eq!(look(2), [], "what was just stored is known to wait");
    assert_eq!(look(3), [(5, 3, 65_535, 90)]);
    assert_eq!(look(3), []);
    assert_eq!(look(2), [(5, 2, 65_535, 90)], "back in the queue");
}

#[test]
fn w9_a_key_that_nobody_knows_is_to_be_submitted_again() {
    let mut bench = Bench::online();
    bench.say(&Message::Query(Query { key: 5 }));
    bench.work(|_| None);
    let heard = bench.heard();
    let Message::Nack(nack) = heard[0].message() else { panic!() };
    assert_eq!((nack.re_type, nack.key, nack.code), (0x33, 5, Code::UnknownKey.number()));
    bench.say(&Message::Query(Query { key: 6 }));
    bench.work(|job| match job {
        Job::Query { tag, key } => {
            Some(Done::Query { tag: *tag, key: *key, answer: Ok(Answer::Result(outcome(6, 2, "y"))) })
        }
        _ => None,
    });
    assert_eq!(results(&bench.heard()), [(6, 0, false)], "whoever asks gets the result");
}

#[test]
fn w9_a_request_whose_picture_is_on_its_way_is_known() {
    let mut bench = bench_that_waits_for_a_picture();
    bench.say(&Message::Query(Query { key: 5 }));
    bench.work(|_| None);
    let heard = bench.heard();
    let Message::Progress(told) = heard[0].message() else { panic!() };
    assert_eq!((told.key, told.state), (5, 1));
}

#[test]
fn w13_frames_keep_their_agreed_length_and_a_flood_is_dropped() {
    let mut bench = Bench::new();
    bench.say(&hello(BOOT, 64));
    bench.work(|job| matches!(job, Job::Results { .. }).then(|| told(vec![outcome(u64::MAX, u64::MAX, "z")])));
    for heard in bench.heard().iter().filter(|h| matches!(h.message(), Message::Result(_))) {
        assert!(heard.payload.len() + 9 <= 64, "{}", heard.payload.len());
    }
    for key in 0..1_000 {
        bench.say(&submit(key, &[]));
        bench.say(&Message::Query(Query { key }));
    }
    assert!(bench.work(|_| None).len() <= 64);
    assert!(bench.heard().len() <= 64);
}

#[test]
fn a_wrong_token_version_or_type_is_refused() {
    let mut bench = Bench::with(Some(Token::new(b"open")), Vec::new());
    bench.say(&hello(BOOT, 1024));
    assert_eq!(nacks(&bench.heard()), [Code::Forbidden.number()]);
    bench.say(&Message::Ping(Ping { nonce: 1 }));
    assert_eq!(nacks(&bench.heard()), [Code::NoSession.number()]);
    let Message::Hello(plain) = hello(BOOT, 1024) else { panic!() };
    bench.say(&Message::Hello(Hello { token: Some(b"open"), ..plain }));
    bench.work(|_| None);
    assert!(matches!(bench.heard()[0].message(), Message::HelloAck(_)));
    bench.say(&Message::Hello(Hello { proto_min: 2, proto_max: 3, ..plain }));
    assert_eq!(nacks(&bench.heard()), [Code::Version.number()]);
    bench.say(&Message::Pong(holdfast_wire::message::Pong::default()));
    bench.say(&Message::HelloAck(holdfast_wire::message::HelloAck::default()));
    assert_eq!(nacks(&bench.heard()), [Code::Unknown.number()], "a gateway's word from a device");
}

#[test]
fn on_a_bus_only_known_addresses_and_no_echo_are_heard() {
    let mut bench = Bench::with(None, vec![17, 18]);
    bench.say_from(19, &hello(BOOT, 1024), false);
    assert!(bench.server.next_job().is_none());
    let echo = Header { from_gateway: true, repeat: false, addr: 17, kind: 0, session: 0, tag: 0 };
    let (echo, payload) = framed(echo, &hello(BOOT, 1024));
    let now = bench.now();
    assert!(!bench.server.frame(echo, &payload, now));
    bench.say_from(17, &hello(BOOT, 1024), false);
    bench.work(|_| None);
    assert!(bench.server.out_for(18).is_empty());
    assert!(!bench.server.out_for(17).is_empty());
}
