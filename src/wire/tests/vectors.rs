//! The bytes on the wire, frozen: version 1 means these. Nobody edits a vector; a new field is a new vector.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use holdfast_wire::message::{
    Answer, BlobRef, Cancel, Chunk, ChunkAck, Hello, HelloAck, List, Nack, Op, Ping, Pong, ResultAck, Submit, SubmitAck,
};
use holdfast_wire::{Deframer, Header, Message, encode};

const KEY: u64 = 0x00C0_FFEE_0000_0005;
const UID: [u8; 8] = [0x02, 0x00, 0x5E, 0x10, 0x00, 0x00, 0x00, 0x01];
const BLOB: [u8; 32] = [
    0xFF, 0xD8, 0xFF, 0xE0, 0x00, 0x10, 0x4A, 0x46, 0x49, 0x46, 0x00, 0x00, 0x0D, 0x1A, 0x27, 0x34, 0x41, 0x4E, 0x5B,
    0x68, 0x75, 0x82, 0x8F, 0x9C, 0xA9, 0xB6, 0xC3, 0xD0, 0xDD, 0xEA, 0xF7, 0x04,
];

/// The bytes of one vector: the file is also what the clients in C and Python are tested with.
fn bytes(name: &str) -> Vec<u8> {
    let mut lines = include_str!("vectors.txt").lines().filter_map(|line| line.split_once(' '));
    let (_, hex) = lines.find(|(first, _)| *first == name).unwrap();
    hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn header(from_gateway: bool, addr: u8, tag: u8) -> Header {
    Header { from_gateway, repeat: false, addr, kind: 0, session: 0xEE, tag }
}

/// Both ways: the message makes these bytes, and these bytes make the message.
fn frozen(name: &str, header: Header, message: &Message<'_>) {
    let wire = bytes(name);
    let mut out = [0; 256];
    let length = encode(header, message, &mut out).unwrap();
    assert_eq!(out[..length], wire[..], "{message:?}");
    let mut buffer = [0; 256];
    let mut deframer = Deframer::new(&mut buffer);
    let (last, first) = wire.split_last().unwrap();
    assert!(first.iter().all(|byte| deframer.push(*byte).is_none()));
    let frame = deframer.push(*last).unwrap().unwrap();
    assert_eq!(frame.header, Header { kind: message.kind(), ..header });
    assert_eq!(&Message::read(frame.header.kind, frame.payload).unwrap(), message);
}

fn list<T: Copy, const N: usize>(items: &[T]) -> List<T, N> {
    items.iter().copied().collect()
}

fn submit() -> Message<'static> {
    let blobs = list(&[BlobRef { blob: 9, len: 32, crc32: 0x448E_C3F3, mime: 1 }]);
    let op = Op::Task { id: 12, args: list(&["Naht 7", "23.5"]), blobs };
    Message::Submit(Submit { key: KEY, prio: 1, ttl_s: 86400, flags: 0, max_reply: 200, op })
}

#[test]
fn hello() {
    let message = Message::Hello(Hello {
        proto_min: 1,
        proto_max: 1,
        uid: &UID,
        boot_id: 0x00C0_FFEE,
        max_frame: 1024,
        rx_credit: 2048,
        caps: 3,
        model: "cam-esp32",
        fw: "1.4.2",
        token: None,
    });
    frozen("hello", header(false, 0, 1), &message);
}

#[test]
fn hello_ack() {
    let message = Message::HelloAck(HelloAck {
        proto: 1,
        gw_boot: 7,
        max_frame: 1024,
        chunk: 960,
        credit: 3840,
        max_body: 8_388_608,
        max_open: 32,
        uplink: 2,
        time_ms: 1_795_200_000_000,
        pending: 1,
        gw: "hf-line3",
    });
    frozen("hello_ack", header(true, 0, 1), &message);
}

#[test]
fn submit_and_its_repeat() {
    frozen("submit", header(false, 0, 2), &submit());
    frozen("submit_again", Header { repeat: true, ..header(false, 0, 4) }, &submit());
}

#[test]
fn submit_acks() {
    let ack = |outcome, req, queue_pos, need| Message::SubmitAck(SubmitAck { key: KEY, outcome, req, queue_pos, need });
    frozen("submit_ack_need", header(true, 0, 2), &ack(1, 0, 0, Some((9, 0))));
    frozen("submit_ack_stored", header(true, 0, 4), &ack(0, 4711, 3, None));
    frozen("submit_ack_known", header(true, 0, 5), &ack(2, 4711, 3, None));
}

#[test]
fn chunk_and_its_ack() {
    frozen("chunk", header(false, 0, 3), &Message::Chunk(Chunk { blob: 9, off: 0, data: &BLOB }));
    frozen("chunk_ack", header(true, 0, 3), &Message::ChunkAck(ChunkAck { blob: 9, next: 32, credit: 3840 }));
}

#[test]
fn result_and_its_ack() {
    let answer = Answer {
        req: 4711,
        key: KEY,
        status: 0,
        source: 1,
        code: -2,
        value: 0.5,
        off: 0,
        total: 9,
        text: b"NIO: Pore",
    };
    frozen("result", header(true, 0, 200), &Message::Result(answer));
    frozen("result_ack", header(false, 0, 200), &Message::ResultAck(ResultAck { key: KEY, next: 9 }));
}

#[test]
fn nack_and_cancel() {
    frozen(
        "nack",
        header(true, 0, 6),
        &Message::Nack(Nack { re_type: 0x10, key: 6, code: 7, retry_ms: 30_000, detail: "storage full" }),
    );
    frozen("cancel", header(false, 0, 7), &Message::Cancel(Cancel { key: KEY }));
}

#[test]
fn ping_and_pong() {
    frozen("ping", header(false, 17, 8), &Message::Ping(Ping { nonce: 0xDEAD_BEEF }));
    frozen("pong", header(true, 17, 8), &Message::Pong(Pong { nonce: 0xDEAD_BEEF, gw_boot: 7, uplink: 2, pending: 0 }));
}
