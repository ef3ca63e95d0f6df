//! Bodies in memory and in files: the same bytes, the same reading, nothing left behind.

use std::task::{Context, Waker};
use std::time::Duration;

use proptest::prelude::*;

use super::scan::{FIELDS, JSON_DEPTH_MAX, Scan};
use super::*;
use crate::clock;

fn scanned(text: &[u8], piece: usize) -> Result<Layout, Fault> {
    let mut scan = Scan::default();
    text.chunks(piece.max(1)).for_each(|piece| scan.feed(piece));
    scan.finish()
}

#[test]
fn finds_values_where_they_stand() {
    let text = br#" {"a":{"model":"no"}, "mod\u0065l" : "gpt\"4" ,"stream_options":{"x": [1, {}], "y":"z"},"n":-1.5e+7,"stream":true} "#;
    for piece in [1, 2, 3, 7, 8, 9, 1000] {
        let layout = scanned(text, piece).unwrap();
        let at = |field: &str| {
            let member = layout.get(field).unwrap();
            assert!(member.is_whole(), "{field}");
            let slice = &text[member.at.start as usize..member.at.end as usize];
            assert_eq!(slice, &member.start[..], "{field} in pieces of {piece}");
            String::from_utf8(member.start.clone()).unwrap()
        };
        assert_eq!(at("model"), r#""gpt\"4""#);
        assert_eq!(at("stream_options"), r#"{"x": [1, {}], "y":"z"}"#);
        assert_eq!(at("stream"), "true");
        assert_eq!(layout.get("max_tokens"), None);
    }
}

#[test]
fn says_why_it_is_no_request() {
    let fault = |text: &str| scanned(text.as_bytes(), 3).unwrap_err();
    assert_eq!(fault("[1]"), Fault::Syntax { line: 1, column: 1 });
    assert_eq!(fault("{\n \"a\":}"), Fault::Syntax { line: 2, column: 6 });
    assert_eq!(fault(r#"{"model":1,"mode\u006c":2}"#), Fault::Twice("model"));
    for text in
        ["", "{", "{}}", "{} x", "{\"a\":01}", "{\"a\":1.}", "{\"a\":\"\n\"}", "{\"a\":\"\\x\"}", "{\"a\":tru}", "{,}"]
    {
        assert!(matches!(fault(text), Fault::Syntax { .. }), "{text}");
    }
    assert!(matches!(scanned(b"{\"a\":\"\xff\"}", 4), Err(Fault::Syntax { .. })));
    assert!(matches!(scanned(b"{\"a\":\"\xc3", 1), Err(Fault::Syntax { .. })));
}

#[test]
fn the_limit_of_depth_is_exact() {
    let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
    assert!(scanned(nested(JSON_DEPTH_MAX - 1).as_bytes(), 5).is_ok());
    assert_eq!(scanned(nested(JSON_DEPTH_MAX).as_bytes(), 5), Err(Fault::Deep));
}

/// The first fault counts, and stands where it stands, however the bytes come.
#[test]
fn a_fault_does_not_depend_on_how_the_bytes_were_cut() {
    for text in [
        &b"{\"a\":x,\"b\":\"\xff\"}"[..],
        b"{\"a\":\"\xc3(\",\"b\":x}",
        b"{\"a\":\"\xe2\x82(\"}",
        b"{\"model\":1,\"model\":\"\xff\"}",
    ] {
        let whole = scanned(text, text.len());
        assert!(whole.is_err());
        for piece in 1..text.len() {
            assert_eq!(scanned(text, piece), whole, "{:?} in pieces of {piece}", String::from_utf8_lossy(text));
        }
    }
}

#[test]
fn one_odd_byte_is_seen_wherever_it_stands() {
    // Long enough for blocks of 64 and for what is left behind them.
    for at in 0..150 {
        for odd in [0x00, 0x1F, 0x20, b'"', b'\\', 0x7F, 0x80, 0xC3, 0xFF] {
            let mut text = request(150);
            let begin = text.iter().position(|byte| *byte == b'A').unwrap();
            text[begin + at] = odd;
            let whole = scanned(&text, text.len());
            assert_eq!(whole, scanned(&text, 7), "{odd:#04x} at {at}");
            let valid = serde_json::from_slice::<serde_json::Value>(&text).is_ok();
            assert_eq!(whole.is_ok(), valid, "{odd:#04x} at {at}");
        }
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i32>().prop_map(|n| (f64::from(n) / 8.0).into()),
        any::<i64>().prop_map(Into::into),
        ".{0,12}".prop_map(serde_json::Value::from),
    ];
    let key = prop_oneof!["[a-z\"\\\\é]{0,4}", (0..FIELDS.len()).prop_map(|at| FIELDS[at].to_owned())];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::btree_map(key.clone(), inner, 0..5)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// serde_json is the other opinion: whatever it takes and refuses, we take and refuse, in pieces of any size.
    #[test]
    fn agrees_with_another_reader(value in json(), pretty: bool, piece in 1usize..40, spoil in 0usize..200, with: u8) {
        let mut text = if pretty { serde_json::to_vec_pretty(&value).unwrap() } else { serde_json::to_vec(&value).unwrap() };
        let whole = scanned(&text, piece);
        prop_assert_eq!(whole.is_ok(), value.is_object());
        if let (Ok(layout), Some(map)) = (&whole, value.as_object()) {
            for field in FIELDS {
                let found = layout.get(field).map(|m| &text[m.at.start as usize..m.at.end as usize]);
                let found = found.map(|slice| serde_json::from_slice::<serde_json::Value>(slice).unwrap());
                prop_assert_eq!(found.as_ref(), map.get(field));
            }
        }
        if spoil < text.len() {
            text[spoil] = with;
            let other = serde_json::from_slice::<serde_json::Value>(&text);
            let ours = scanned(&text, piece);
            // Half of a surrogate pair is text to us: the bytes go on as they are. A number too large is one, too.
            let lenient = other.as_ref().is_err_and(|e| e.to_string().contains("surrogate") || e.to_string().contains("range"));
            if !lenient && !matches!(ours, Err(Fault::Twice(_))) {
                prop_assert_eq!(ours.is_ok(), other.is_ok_and(|v| v.is_object()), "{:?}", String::from_utf8_lossy(&text));
            }
        }
    }
}

fn request(bytes: usize) -> Vec<u8> {
    format!(r#"{{"messages":[{{"content":"{}"}}],"model":"m"}}"#, "A".repeat(bytes)).into_bytes()
}

async fn take(bodies: &Bodies, bytes: &[u8]) -> Body {
    let mut receiving = bodies.receive(Some(bytes.len() as u64));
    for part in bytes.chunks(10_000) {
        receiving.push(part).await.unwrap();
    }
    receiving.finish().await.unwrap()
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test]
async fn memory_first_then_files_and_both_read_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
    let bytes = request(2 << 20);
    let taken = [take(&bodies, &bytes).await, take(&bodies, &bytes).await, take(&bodies, &bytes).await];
    assert!(taken[0].file().is_none() && taken[1].file().is_none());
    assert!(taken[2].file().is_some(), "three times 2 MiB do not fit into the memory for bodies");
    assert_eq!(files(dir.path()), 1);
    assert_eq!(taken[0].hash(), taken[2].hash());
    assert_eq!(taken[0].layout(), taken[2].layout());
    assert_eq!(taken[2].whole().await.unwrap(), bytes);
    assert_eq!(taken[0].whole().await.unwrap(), bytes);
    let small = take(&bodies, b"{}").await;
    assert!(small.in_one_piece().is_some());
    drop((taken, small));
    assert_eq!((files(dir.path()), bodies.memory_used()), (0, 0), "nothing is left behind");
}

#[tokio::test(start_paused = true)]
async fn a_body_waits_a_moment_for_room_and_becomes_a_file_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
    let bytes = request(MEMORY_BYTES_MAX as usize / 2 - 100);
    let (first, _second) = (take(&bodies, &bytes).await, take(&bodies, &bytes).await);
    let used = bodies.memory_used();
    let third = take(&bodies, &bytes).await;
    assert!(third.file().is_some(), "nobody made room");
    assert_eq!(bodies.memory_used(), used, "a part of it is in memory");
    let (fourth, ()) = tokio::join!(take(&bodies, &bytes), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(first);
    });
    assert!(fourth.file().is_none(), "there was room 20 ms later");
    assert_eq!((fourth.whole().await.unwrap(), bodies.memory_used()), (bytes.into(), used));
}

#[tokio::test(start_paused = true)]
async fn room_goes_to_who_waited_first_and_small_bodies_do_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
    let _some = take(&bodies, &request(MEMORY_BYTES_MAX as usize / 4)).await;
    let most = take(&bodies, &request(MEMORY_BYTES_MAX as usize / 4 * 3 - 200)).await;
    let bytes = request(MEMORY_BYTES_MAX as usize / 2 - 100);
    let began = clock::timers_now();
    let (early, late, ()) = tokio::join!(
        take(&bodies, &bytes),
        async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            take(&bodies, &bytes).await
        },
        async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert!(take(&bodies, &request(1_000)).await.in_one_piece().is_some());
            assert_eq!(began.elapsed(), Duration::from_millis(2));
            drop(most);
        }
    );
    assert!(early.file().is_none() && late.file().is_some(), "{early:?} {late:?}");
}

#[tokio::test]
async fn a_stored_file_is_the_one_that_came_in() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = Bodies::new(dir.path().to_owned(), 7, 0);
    let _memory = take(&bodies, &request(MEMORY_BYTES_MAX as usize - 200_000)).await;
    let body = take(&bodies, &request(1 << 20)).await;
    let first = bodies.durable(&body).await.unwrap();
    assert!(Arc::ptr_eq(&first, body.file().unwrap()), "it was copied");
    first.keep();
    let second = bodies.durable(&body).await.unwrap();
    assert!(first.name().starts_with("7-") && second.name() != first.name());
    let (name, hash) = (first.name().to_owned(), body.hash());
    drop((first, second, body));
    assert_eq!(files(dir.path()), 1, "only what a row names stays");
    let again = Body::open(dir.path(), &name).unwrap();
    assert_eq!(again.hash(), hash);
    assert!(again.layout().is_ok());
}

#[tokio::test]
async fn what_waits_for_a_file_is_written_together_and_counts_as_memory() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
    let memory = take(&bodies, &vec![b' '; MEMORY_BYTES_MAX as usize - 3 * PIECE_BYTES]).await;
    let held = bodies.memory_used();
    let bytes = request(10 * PIECE_BYTES);
    let mut receiving = bodies.receive(None);
    let mut used = Vec::new();
    for piece in bytes.chunks(PIECE_BYTES) {
        receiving.push(piece).await.unwrap();
        used.push((bodies.memory_used() - held) / PIECE_BYTES as u64);
    }
    // The fourth does not fit and all go to a file; then it is a write's worth each time, until the rest of one piece.
    assert_eq!(used, [1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 2]);
    assert_eq!(files(dir.path()), 1);
    let body = receiving.finish().await.unwrap();
    assert_eq!(bodies.memory_used(), held);
    assert!(body.file().is_some() && body.whole().await.unwrap() == bytes);
    drop(memory);
}

#[tokio::test]
async fn what_waits_for_files_stays_within_the_memory_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
    let memory = take(&bodies, &vec![b' '; MEMORY_BYTES_MAX as usize - PIECE_BYTES]).await;
    let mut uploads: Vec<_> = (0..8).map(|_| bodies.receive(None)).collect();
    for _ in 0..9 {
        for upload in &mut uploads {
            upload.push(&vec![b' '; PIECE_BYTES]).await.unwrap();
            // Each may have one piece whatever the others hold.
            assert!(bodies.memory_used() <= MEMORY_BYTES_MAX + 8 * PIECE_BYTES as u64);
        }
    }
    drop(memory);
}

#[test]
fn an_upload_that_is_cut_off_gives_nothing_back_that_is_still_being_written() {
    let dir = tempfile::tempdir().unwrap();
    let one_thread =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).max_blocking_threads(1).enable_time().build();
    one_thread().unwrap().block_on(async {
        let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
        let memory = take(&bodies, &vec![b' '; MEMORY_BYTES_MAX as usize - PIECE_BYTES]).await;
        // A disk that hangs: the one thread that could write waits.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let hung = tokio::task::spawn_blocking(move || wait.recv().is_ok());
        let before = bodies.memory_used();
        for _ in 0..20 {
            let mut receiving = bodies.receive(None);
            let bytes = vec![b' '; 2 * PIECE_BYTES];
            let mut upload = Box::pin(receiving.push(&bytes));
            // As far as it comes without waiting, then the caller goes away.
            assert!(upload.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        let held = bodies.memory_used() - before;
        // Four writes hold one piece each that was counted; nobody else got that far.
        assert_eq!(held, 4 * PIECE_BYTES as u64);
        go.send(()).unwrap();
        hung.await.unwrap();
        let written = async {
            while bodies.memory_used() > before {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), written).await.unwrap();
        drop(memory);
        assert_eq!((bodies.memory_used(), files(dir.path())), (0, 0));
    });
}

#[tokio::test]
async fn a_disk_without_room_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = Bodies::new(dir.path().to_owned(), 1, u64::MAX);
    let mut receiving = bodies.receive(None);
    let mut result = Ok(());
    for _ in 0..17 {
        result = receiving.push(&vec![b' '; 1 << 20]).await;
    }
    assert_eq!(result, Err(ReceiveError::Disk("full")));
    assert_eq!(files(dir.path()), 0);
    drop(receiving);
    assert_eq!(bodies.memory_used(), 0);
}

#[tokio::test]
async fn what_was_paid_for_stays_in_memory_where_the_disk_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = Bodies::new(dir.path().join("gone"), 1, u64::MAX);
    let bytes = request(20 << 20);
    let mut receiving = bodies.receive_paid(None);
    for part in bytes.chunks(1 << 20) {
        receiving.push(part).await.unwrap();
    }
    let body = receiving.finish().await.unwrap();
    assert!(body.file().is_none());
    assert_eq!(body.whole().await.unwrap(), bytes);
    drop(body);
    assert_eq!(bodies.memory_used(), 0);
}

#[tokio::test]
async fn what_was_paid_for_may_use_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = Bodies::new(dir.path().to_owned(), 1, u64::MAX);
    let bytes = request(20 << 20);
    let mut receiving = bodies.receive_paid(None);
    receiving.push(&bytes).await.unwrap();
    let body = receiving.finish().await.unwrap();
    assert!(body.file().is_some());
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut body.reader(), &mut read).unwrap();
    assert!(read == bytes && body.start(10).unwrap() == bytes[..10]);
}

#[test]
fn a_beginning_is_told_from_a_whole() {
    let cut = |text: &str| {
        let mut scan = Scan::default();
        scan.feed(text.as_bytes());
        scan.is_cut()
    };
    assert!(cut("") && cut("{\"a\":\"b") && cut("{\"a\":1"));
    assert!(!cut("{\"a\":1} ") && !cut("no JSON at all") && !cut("[1"));
}

#[test]
fn a_picture_is_noticed_wherever_it_stands_in_a_prompt() {
    let has = |text: &str| {
        let mut scans = [Scan::default(), Scan::default()];
        scans[0].feed(text.as_bytes());
        text.as_bytes().iter().for_each(|byte| scans[1].feed(&[*byte]));
        let found = scans.map(|scan| scan.finish().unwrap().has_picture);
        assert_eq!(found[0], found[1], "{text}");
        found[0]
    };
    let chat = |part: &str| format!(r#"{{"model":"auto","messages":[{{"role":"user","content":[{part}]}}]}}"#);
    assert!(has(&chat(r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}"#)));
    assert!(has(&chat(r#"{"type":"image_url","image\u005furl" : "https://x/y.png"}"#)));
    assert!(!has(&chat(r#"{"type":"text","text":"what is an \"image_url\": {}"}"#)));
    assert!(!has(&chat(r#"{"type":"text","text":"hello","image_url":null}"#)));
    assert!(!has(r#"{"tools":[{"image_url":1}],"image_url":{},"messages":[1]}"#), "only what belongs to the prompt");
}
