//! What is fuzzed, each with what must hold for any bytes at all. Used by libFuzzer and by the rig's own short run.
//!
//! A target panics where something does not hold; it never tries to be right about what the bytes mean.

use std::path::PathBuf;

use bytes::Bytes;
use holdfast::body::Body;
use holdfast::body::scan::{FIELDS, Fault, Scan};
use holdfast::ingress::http::fuzz as http;
use holdfast::ingress::link::WordOrder;
use holdfast::ingress::link::lines::session::{Deed, Found, Offer, Options, Session};
use holdfast::ingress::link::modbus::frame::Framer;
use holdfast::ingress::link::modbus::unit::Unit;
use holdfast::uplink::sse::Splitter;
use holdfast::uplink::{body, classify};
use holdfast_wire::device::{Device, Identity, Keeper};
use holdfast_wire::frame::{CRC32, wire_bytes};
use holdfast_wire::message::{BlobRef, List, Op, Submit};
use holdfast_wire::{Deframer, Header, Message, encode};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// Takes any bytes; panics where something does not hold.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const ALL: &[(&str, Target)] = &[
    ("answer", answer),
    ("body", request),
    ("config", config),
    ("frames", frames),
    ("framing", framing),
    ("head", head),
    ("lines", lines),
    ("modbus", modbus),
    ("ndjson", ndjson),
    ("salvage", salvage),
    ("scan", scan),
    ("sse", sse),
];

/// The first byte says how long the pieces are in which the rest arrives.
fn pieces(data: &[u8]) -> (&[u8], usize) {
    data.split_first().map_or((data, 1), |(first, rest)| (rest, usize::from(*first).max(1)))
}

/// A stream's events do not depend on how the network cut it.
pub fn sse(data: &[u8]) {
    let (data, size) = pieces(data);
    let events = |size: usize| {
        let (mut splitter, mut events) = (Splitter::default(), Vec::new());
        for piece in data.chunks(size) {
            if splitter.push(piece).is_err() {
                return None;
            }
            while let Some(event) = splitter.next_event() {
                events.push(event);
            }
        }
        events.extend(splitter.finish());
        Some(events)
    };
    assert_eq!(events(size), events(usize::MAX));
}

/// Nor do a local model's lines.
pub fn ndjson(data: &[u8]) {
    let (data, size) = pieces(data);
    let in_pieces = holdfast::uplink::local::fuzz_lines(data.chunks(size));
    assert_eq!(in_pieces, holdfast::uplink::local::fuzz_lines(std::iter::once(data)));
}

/// Any status, headers and body mean something.
pub fn answer(data: &[u8]) {
    let Some((status, rest)) = data.split_first_chunk::<2>() else { return };
    let status = hyper::StatusCode::from_u16(100 + u16::from_le_bytes(*status) % 900).unwrap();
    let (headers, body) = headers_of(rest);
    let outcome = classify::outcome(status, &headers, body);
    let _ = classify::check(status, &headers, body, 1);
    let stored = classify::stored_answer(&Bytes::copy_from_slice(body).into());
    let wait = classify::retry_after_ms(&headers, None);
    assert!(wait.is_none_or(|ms| ms <= 3_600_000), "{wait:?}");
    let class = (outcome.kind(), stored.kind());
    assert!(!class.0.is_empty() && !class.1.is_empty());
}

/// A request that is taken stays JSON when the model is renamed and the stream switched off.
pub fn request(data: &[u8]) {
    const ENDPOINTS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/other"];
    let Some((first, rest)) = data.split_first() else { return };
    let body = Body::from(Bytes::copy_from_slice(rest));
    let Ok(head) = body::read(ENDPOINTS[usize::from(first % 4)], &body) else { return };
    let changed = spliced(rest, &body::for_uplink(&body, &head, Some("a \"new\" name"), false).edits);
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&changed) else {
        // What was too deep, or no number that fits, was so before.
        assert!(serde_json::from_slice::<serde_json::Value>(rest).is_err(), "the change made it no JSON");
        return;
    };
    assert_eq!(value["model"], "a \"new\" name");
    assert_ne!(value["stream"], true);
    assert!(body::for_uplink(&body, &head, None, true).edits.is_empty());
}

/// The bytes with what stands in place of some of them.
fn spliced(bytes: &[u8], edits: &[(std::ops::Range<u64>, Bytes)]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    for (range, new) in edits {
        out.extend_from_slice(&bytes[at..range.start as usize]);
        out.extend_from_slice(new);
        at = range.end as usize;
    }
    out.extend_from_slice(&bytes[at..]);
    out
}

/// A configuration is taken or refused with at least one reason, whatever stands in the file.
pub fn config(data: &[u8]) {
    let folder =
        if std::path::Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    let path = folder.join(format!("holdfast-fuzz-{}.toml", std::process::id()));
    std::fs::write(&path, data).unwrap();
    let loaded = holdfast::config::load(Some(&path), []);
    let _ = std::fs::remove_file(&path);
    match loaded {
        Ok(loaded) => assert!(!loaded.origins.is_empty()),
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
}

/// Whatever a gateway says, a device says whole frames only, and comes to the end of what it has to say.
///
/// Pieces that are a message's payload are put into a sound frame, so that the rules are reached; all others come as they are.
pub fn frames(data: &[u8]) {
    const FRAME: usize = 256;
    let (data, size) = pieces(data);
    let (mut incoming, mut piece) = ([0; wire_bytes(FRAME)], [0; 100]);
    let mut device = Device::<2>::new(identity(size % 8 == 7), &mut incoming, &mut piece, 0);
    let (mut now_ms, mut out, mut framed) = (0, [0; wire_bytes(FRAME)], [0; 2 * FRAME]);
    for said in data.chunks(size) {
        device.submit(1, true, now_ms).unwrap();
        device.submit(2, size % 2 == 0, now_ms).unwrap();
        let (kind, payload) = said.split_first().map_or((0, said), |(kind, payload)| (*kind, payload));
        let header = Header { from_gateway: true, repeat: false, addr: 0, kind: 0, session: 1, tag: kind };
        let message = Message::read(kind, payload).ok();
        let length = message.and_then(|message| encode(header, &message, &mut framed).ok());
        for byte in length.map_or(said, |length| &framed[..length]) {
            let _ = device.receive(*byte, now_ms);
        }
        let (mut left, mut known) = (1_000, [0; wire_bytes(FRAME)]);
        loop {
            let length = device.poll(&Firmware, now_ms, &mut out);
            if length == 0 {
                break;
            }
            left -= 1;
            assert!(left > 0, "it does not stop speaking");
            let mut deframer = Deframer::new(&mut known);
            let frame = out[..length].iter().find_map(|byte| deframer.push(*byte)?.ok().map(|frame| frame.header));
            assert!(frame.is_some_and(|header| !header.from_gateway), "no frame of a device");
        }
        now_ms += u64::from(kind) * 100;
        assert!(device.unfinished() <= 2);
    }
}

fn identity(polled: bool) -> Identity<'static> {
    Identity {
        uid: b"fuzz-dev",
        boot_id: 1,
        model: "fuzz",
        fw: "1",
        caps: 0,
        token: None,
        addr: 0,
        max_frame: 256,
        rx_credit: 512,
        frame_ms: 20,
        polled,
    }
}

/// What the fuzzed device asks: with a picture, whatever the key.
struct Firmware;

impl Keeper for Firmware {
    fn request(&self, key: u64) -> Option<Submit<'_>> {
        let mut blobs = List::new();
        let picture = [7; 700];
        blobs.push(BlobRef { blob: key as u32, len: 700, crc32: CRC32.checksum(&picture), mime: 1 }).ok()?;
        Some(Submit { key, op: Op::Task { id: 1, args: List::new(), blobs }, ..Submit::default() })
    }

    fn picture(&self, _: u64, _: u32, off: u32, into: &mut [u8]) -> usize {
        let length = into.len().min(700_usize.saturating_sub(off as usize));
        into[..length].fill(7);
        length
    }
}

/// Whatever a PLC says, what is answered are whole lines of their limit.
pub fn lines(data: &[u8]) {
    let (data, size) = pieces(data);
    let options = Options { line_max: 80 + size, needs_crc: size % 2 == 0, push: size % 3 != 0 };
    let (limit, mut session) = (options.line_max, Session::new(options, String::new()));
    let (mut deeds, mut now_ms) = (Vec::new(), 0);
    for piece in data.chunks(size) {
        deeds.extend(session.receive(piece, now_ms));
        now_ms += 1_000;
        deeds.extend(session.tick(now_ms));
        // Each deed has an end: of a request that was stored a text of the device's own comes back.
        for deed in std::mem::take(&mut deeds) {
            let offer = |key: String, text: String| Offer { request: now_ms, key, about: (0, 1, -1), text };
            deeds.extend(match deed {
                Deed::Send(line) => {
                    assert!(line.len() <= limit && line.ends_with(b"\r\n") && line.is_ascii(), "{line:?}");
                    Vec::new()
                }
                Deed::Store { key, args, .. } => {
                    let mut after = session.stored(&key, Ok((now_ms, false)));
                    after.extend(session.offer(vec![offer(key, args.join("\n"))], now_ms));
                    after
                }
                Deed::Find(key, part) => session.found(&key, part, Found::Unknown),
                Deed::Cancel(key) => session.cancelled(&key, 2),
                Deed::Greet(nonce) => session.greet(nonce, 7, 2, 1),
                Deed::Taken(request) => session.taken(request, now_ms % 2_000 == 0, now_ms),
                Deed::Look => session.offer(Vec::new(), now_ms),
            });
        }
    }
}

/// Whatever a line brings, frames come to an end and each question has an answer of its own function.
pub fn modbus(data: &[u8]) {
    let (data, size) = pieces(data);
    let (mut framer, mut unit) = (Framer::default(), Unit::new(WordOrder::HighFirst));
    unit.restore(&[]);
    let mut frames: Vec<_> = data.chunks(size).flat_map(|piece| framer.receive(piece)).collect();
    frames.extend(framer.silent());
    assert!(!framer.waits());
    // The same bytes without checksums, so that the registers are reached.
    let questions = frames.into_iter().map(|frame| frame.pdu).chain(data.chunks(size).map(<[u8]>::to_vec));
    for pdu in questions {
        let answer = unit.ask(&pdu, &mut Vec::new());
        let function = pdu.first().copied().unwrap_or(0);
        assert!(answer.len() <= 253 && answer[0] & 0x7f == function & 0x7f);
    }
}

/// Any headers are taken or refused.
pub fn head(data: &[u8]) {
    let (headers, _) = headers_of(data);
    http::head(&headers);
}

/// The HTTP library serves no request whose head was not judged, however the bytes come, whether bodies are read or not.
pub fn framing(data: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    }
    let Some((reads, data)) = data.split_first() else { return };
    let (data, size) = pieces(data);
    let judged = http::judged(data);
    let served = RUNTIME.with(|runtime| runtime.block_on(http::served(data, size, reads % 2 == 0)));
    let served = served.expect("a connection without an end");
    assert!(judged.starts_with(&served), "judged {judged:?}, served {served:?}");
}

/// The scanner takes what serde_json takes, finds the same members, and does not care how the bytes were cut.
pub fn scan(data: &[u8]) {
    let (data, size) = pieces(data);
    let scanned = |size: usize| {
        let mut scan = Scan::default();
        data.chunks(size).for_each(|piece| scan.feed(piece));
        scan.finish()
    };
    let ours = scanned(usize::MAX);
    assert_eq!(scanned(size), ours, "in pieces of {size}");
    // It builds nothing, so that neither a number's size nor half of a surrogate pair matters.
    let is_json = std::str::from_utf8(data).is_ok() && serde_json::from_slice::<serde::de::IgnoredAny>(data).is_ok();
    let is_object = is_json && data.trim_ascii_start().first() == Some(&b'{');
    match &ours {
        Ok(_) => assert!(is_object, "taken, and no JSON object"),
        Err(Fault::Syntax { .. }) => assert!(!is_object, "refused, and a JSON object"),
        Err(Fault::Deep | Fault::Twice(_)) => {}
    }
    if let (Ok(layout), Ok(value)) = (ours, serde_json::from_slice::<serde_json::Value>(data)) {
        for field in FIELDS {
            let found = layout.get(field).map(|member| &data[member.at.start as usize..member.at.end as usize]);
            let found = found.map(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).unwrap());
            assert_eq!(found.as_ref(), value.get(field), "{field}");
        }
    }
}

/// Any pages and any log come to an end. In front stands the length of the database in pages of 1 KiB.
pub fn salvage(data: &[u8]) {
    let Some((pages, rest)) = data.split_first() else { return };
    let (db, wal) = rest.split_at(rest.len().min(usize::from(*pages) * 1024));
    holdfast::spool::fuzz_salvage(db.to_vec(), wal.to_vec());
}

/// Lines with a colon up to an empty line, and what follows.
fn headers_of(data: &[u8]) -> (HeaderMap, &[u8]) {
    let mut headers = HeaderMap::new();
    let mut rest = data;
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        let Some(colon) = line.iter().position(|b| *b == b':') else { break };
        let name = HeaderName::from_bytes(&line[..colon]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii())) {
            headers.append(name, value);
        }
    }
    (headers, rest)
}
