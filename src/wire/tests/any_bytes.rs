//! Any bytes: no panic, no wrong frame; any message comes back as it went.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use holdfast_wire::message::{Answer, BlobRef, Chunk, Hello, List, Nack, Op, Submit};
use holdfast_wire::{Deframer, Frame, Header, Message, encode};
use proptest::collection::vec;
use proptest::prelude::*;

const HEADER: Header = Header { from_gateway: false, repeat: true, addr: 247, kind: 0, session: 1, tag: 255 };

fn there_and_back(message: &Message<'_>) {
    let mut out = [0; 8192];
    let length = encode(HEADER, message, &mut out).unwrap();
    let mut buffer = [0; 8192];
    let mut deframer = Deframer::new(&mut buffer);
    let mut seen = 0;
    // Two frames may share one delimiter; noise before the first one goes with it.
    for byte in [0x55, 0xAA].iter().chain(&out[..length]).chain(&out[1..length]) {
        if let Some(Ok(Frame { header, payload })) = deframer.push(*byte) {
            assert_eq!(&Message::read(header.kind, payload).unwrap(), message);
            seen += 1;
        }
    }
    assert_eq!(seen, 2);
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    vec("[ -~äß]{0,40}", 0..16)
}

fn blobs() -> impl Strategy<Value = Vec<BlobRef>> {
    let one = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u8>());
    vec(one.prop_map(|(blob, len, crc32, mime)| BlobRef { blob, len, crc32, mime }), 0..4)
}

fn list<T: Clone, const N: usize>(items: &[T]) -> List<T, N> {
    items.iter().cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..600), kind in any::<u8>()) {
        let mut buffer = [0; 128];
        let mut deframer = Deframer::new(&mut buffer);
        for byte in &bytes {
            if let Some(Ok(frame)) = deframer.push(*byte) {
                let _ = Message::read(frame.header.kind, frame.payload);
            }
        }
        let _ = Message::read(kind, &bytes);
    }

    #[test]
    fn a_changed_byte_is_never_believed(at in 0usize..50, to in any::<u8>()) {
        let message = Message::Nack(Nack { re_type: 1, key: 2, code: 3, retry_ms: 4, detail: "a detail of some length" });
        let mut out = [0; 128];
        let length = encode(HEADER, &message, &mut out).unwrap();
        let at = at % length;
        prop_assume!(out[at] != to && at != 0 && at != length - 1);
        out[at] = to;
        let mut buffer = [0; 128];
        let mut deframer = Deframer::new(&mut buffer);
        let whole = out[..length].iter().any(|byte| matches!(deframer.push(*byte), Some(Ok(_))));
        prop_assert!(!whole);
    }

    #[test]
    fn tasks(key in any::<u64>(), prio in 0u8..4, ttl_s in any::<u32>(), id in any::<u16>(), args in texts(), pictures in blobs()) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let op = Op::Task { id, args: list(&args), blobs: list(&pictures) };
        there_and_back(&Message::Submit(Submit { key, prio, ttl_s, flags: 7, max_reply: 1, op }));
    }

    #[test]
    fn chats(system in "[ -~]{0,90}", user in ".{0,90}", max_tokens in any::<u16>(), pictures in blobs()) {
        let op = Op::Chat { model: "m", system: &system, user: &user, max_tokens, blobs: list(&pictures) };
        there_and_back(&Message::Submit(Submit { op, ..Submit::default() }));
    }

    #[test]
    fn raw(endpoint in any::<u8>(), json in vec(any::<u8>(), 0..900), len in any::<u32>()) {
        let op = Op::Raw { endpoint, json: &json };
        there_and_back(&Message::Submit(Submit { op, ..Submit::default() }));
        let body = BlobRef { blob: 1, len, crc32: 2, mime: 0 };
        there_and_back(&Message::Submit(Submit { op: Op::RawBlob { endpoint, body }, ..Submit::default() }));
    }

    #[test]
    fn pieces(blob in any::<u32>(), off in any::<u32>(), data in vec(any::<u8>(), 0..4000)) {
        there_and_back(&Message::Chunk(Chunk { blob, off, data: &data }));
    }

    #[test]
    fn answers(code in any::<i32>(), value in -1.0e9f32..1.0e9, text in vec(any::<u8>(), 0..1000)) {
        there_and_back(&Message::Result(Answer { req: 1, key: 2, status: 3, source: 1, code, value, off: 9, total: 99, text: &text }));
    }

    #[test]
    fn a_missing_tail_is_defaults_and_a_longer_one_is_ignored(cut in 0usize..40, more in vec(any::<u8>(), 0..9)) {
        let hello = Hello { proto_min: 1, proto_max: 1, uid: b"1234", boot_id: 5, max_frame: 1024, model: "m", ..Hello::default() };
        let message = Message::Hello(hello);
        let mut out = [0; 256];
        let length = encode(HEADER, &message, &mut out).unwrap();
        let mut buffer = [0; 256];
        let mut deframer = Deframer::new(&mut buffer);
        let payload = out[..length].iter().find_map(|b| deframer.push(*b).map(|f| f.unwrap().payload.to_vec())).unwrap();
        let mut longer = payload.clone();
        longer.extend(&more);
        prop_assert_eq!(Message::read(1, &longer).unwrap(), message);
        // Cut at a field's end it reads as defaults; in the middle of one it is refused; it never invents a value.
        if let Ok(Message::Hello(read)) = Message::read(1, &payload[..cut.min(payload.len())]) {
            prop_assert!(read.uid.is_empty() || read.uid == b"1234");
            prop_assert!(read.model.is_empty() || read.model == "m");
        }
    }
}

#[test]
fn a_list_longer_than_the_limit_is_refused() {
    // Task 1 with 17 empty arguments.
    let mut payload = vec![0u8; 5];
    payload.extend([0, 1, 17]);
    payload.extend([0; 17]);
    assert_eq!(Message::read(0x10, &payload), Err(holdfast_wire::message::MessageError::TooMany));
}
