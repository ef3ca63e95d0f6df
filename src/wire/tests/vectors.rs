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

fn bytes(hex: &str) -> Vec<u8> {
    hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn header(from_gateway: bool, addr: u8, tag: u8) -> Header {
    Header { from_gateway, repeat: false, addr, kind: 0, session: 0xEE, tag }
}

/// Both ways: the message makes these bytes, and these bytes make the message.
fn frozen(hex: &str, header: Header, message: &Message<'_>) {
    let wire = bytes(hex);
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
    frozen(
        "00 02 10 08 01 EE 01 01 01 08 02 03 5E 10 01 01 1B 01 EE FF 83 06 80 08 80 10 03 09 63 61 6D 2D 65 73 70 33 \
         32 05 31 2E 34 2E 32 05 3F 36 97 13 00",
        header(false, 0, 1),
        &message,
    );
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
    frozen(
        "00 02 18 26 02 EE 01 01 07 80 08 C0 07 80 1E 80 80 80 04 20 02 80 C0 88 D2 9F 34 01 08 68 66 2D 6C 69 6E 65 \
         33 3B 61 62 65 00",
        header(true, 0, 1),
        &message,
    );
}

#[test]
fn submit_and_its_repeat() {
    frozen(
        "00 02 10 10 10 EE 02 85 80 80 80 E0 FD BF 60 01 80 A3 05 03 C8 01 1C 0C 02 06 4E 61 68 74 20 37 04 32 33 2E \
         35 01 09 20 F3 87 BB A4 04 01 75 36 54 AD 00",
        header(false, 0, 2),
        &submit(),
    );
    frozen(
        "00 02 14 10 10 EE 04 85 80 80 80 E0 FD BF 60 01 80 A3 05 03 C8 01 1C 0C 02 06 4E 61 68 74 20 37 04 32 33 2E \
         35 01 09 20 F3 87 BB A4 04 01 ED B6 8D 50 00",
        Header { repeat: true, ..header(false, 0, 4) },
        &submit(),
    );
}

#[test]
fn submit_acks() {
    let ack = |outcome, req, queue_pos, need| Message::SubmitAck(SubmitAck { key: KEY, outcome, req, queue_pos, need });
    frozen(
        "00 02 18 0D 11 EE 02 85 80 80 80 E0 FD BF 60 01 01 03 01 09 05 F9 C7 5F C2 00",
        header(true, 0, 2),
        &ack(1, 0, 0, Some((9, 0))),
    );
    frozen(
        "00 02 18 0C 11 EE 04 85 80 80 80 E0 FD BF 60 04 E7 24 03 05 07 01 F6 7D 00",
        header(true, 0, 4),
        &ack(0, 4711, 3, None),
    );
    frozen(
        "00 02 18 10 11 EE 05 85 80 80 80 E0 FD BF 60 02 E7 24 03 05 11 B3 39 9A 00",
        header(true, 0, 5),
        &ack(2, 4711, 3, None),
    );
}

#[test]
fn chunk_and_its_ack() {
    frozen(
        "00 02 10 05 20 EE 03 09 06 20 FF D8 FF E0 06 10 4A 46 49 46 01 19 0D 1A 27 34 41 4E 5B 68 75 82 8F 9C A9 B6 \
         C3 D0 DD EA F7 04 87 73 DB A1 00",
        header(false, 0, 3),
        &Message::Chunk(Chunk { blob: 9, off: 0, data: &BLOB }),
    );
    frozen(
        "00 02 18 0C 21 EE 03 09 20 80 1E 8F 6A FC 77 00",
        header(true, 0, 3),
        &Message::ChunkAck(ChunkAck { blob: 9, next: 32, credit: 3840 }),
    );
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
    frozen(
        "00 02 18 0E 30 EE C8 E7 24 85 80 80 80 E0 FD BF 60 03 01 03 01 01 02 3F 10 09 09 4E 49 4F 3A 20 50 6F 72 65 \
         3C 5A 3B D4 00",
        header(true, 0, 200),
        &Message::Result(answer),
    );
    frozen(
        "00 02 10 11 31 EE C8 85 80 80 80 E0 FD BF 60 09 4F A4 0A 41 00",
        header(false, 0, 200),
        &Message::ResultAck(ResultAck { key: KEY, next: 9 }),
    );
}

#[test]
fn nack_and_cancel() {
    frozen(
        "00 02 18 1B 12 EE 06 10 06 07 B0 EA 01 0C 73 74 6F 72 61 67 65 20 66 75 6C 6C 59 03 39 9A 00",
        header(true, 0, 6),
        &Message::Nack(Nack { re_type: 0x10, key: 6, code: 7, retry_ms: 30_000, detail: "storage full" }),
    );
    frozen(
        "00 02 10 10 40 EE 07 85 80 80 80 E0 FD BF 60 2E 1E 66 59 00",
        header(false, 0, 7),
        &Message::Cancel(Cancel { key: KEY }),
    );
}

#[test]
fn ping_and_pong() {
    frozen(
        "00 0F 10 11 50 EE 08 EF FD B6 F5 0D DE 66 54 9D 00",
        header(false, 17, 8),
        &Message::Ping(Ping { nonce: 0xDEAD_BEEF }),
    );
    frozen(
        "00 0D 18 11 51 EE 08 EF FD B6 F5 0D 07 02 05 D3 E0 03 8B 00",
        header(true, 17, 8),
        &Message::Pong(Pong { nonce: 0xDEAD_BEEF, gw_boot: 7, uplink: 2, pending: 0 }),
    );
}
