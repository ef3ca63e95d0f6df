//! Bad input: refused in words, bounded in memory and descriptors, and nobody else notices.
//!
//! `HOLDFAST_ABUSE_CALLS=10000` for a long run.

use std::path::Path;
use std::time::Duration;

use holdfast::cli::simulate::Faults;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::{Ask, Bench, chat_body, rounds, until, within};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn malformed_and_wrong_bodies_are_refused_in_words() {
    let bench = Bench::start().await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for body in ["", "{", "nonsense", "{\"model\":\"gpt-4o\",\"messages\":", "\u{0}\u{1}", &deep] {
        let reply = bench.daemon.send(Ask::post("/v1/chat/completions", body.to_owned())).await;
        reply.assert_error(400, "invalid_json");
        assert_eq!(reply.text().contains("the body is empty"), body.is_empty(), "{}", reply.text());
    }
    let marked = format!("\u{feff}{}", chat_body("marked"));
    let reply = bench.daemon.send(Ask::post("/v1/chat/completions", marked)).await;
    reply.assert_error(400, "invalid_json");
    assert!(reply.text().contains("byte order mark"), "{}", reply.text());
    for body in ["[]", "5", "null", "\"text\"", "{}", "{\"model\":5,\"messages\":7}", "{\"model\":\"gpt-4o\"}"] {
        let reply = bench.daemon.send(Ask::post("/v1/chat/completions", body)).await;
        assert!((400..500).contains(&reply.status), "{body}: {} {}", reply.status, reply.text());
        assert!(reply.json()["error"]["message"].is_string(), "{body}: {}", reply.text());
    }
    let wrong_method = bench.daemon.get("/v1/chat/completions").await;
    assert!((400..500).contains(&wrong_method.status), "{wrong_method:?}");
    assert_eq!(bench.uplink.log().iter().filter(|entry| entry.status == 200).count(), 0);
}

#[tokio::test]
async fn strange_request_headers_are_refused() {
    let bench = Bench::start().await;
    for (name, value) in
        [("x-holdfast-priority", "urgent"), ("x-holdfast-offline", "maybe"), ("x-holdfast-ttl", "soon")]
    {
        let reply = bench.daemon.send(Ask::chat("strange").header(name, value)).await;
        reply.assert_error(400, "invalid_header");
        assert!(reply.text().contains(name), "{}", reply.text());
    }
    let long = "k".repeat(5_000);
    let reply = bench.daemon.send(Ask::chat("long key").header("idempotency-key", &long)).await;
    reply.assert_error(400, "invalid_header");
    assert_eq!(bench.uplink.requests_total(), 0, "a refused request was sent");
}

/// Reads until the answer's head is there or the connection ends.
async fn head(stream: &mut UnixStream) -> String {
    let (mut text, mut buffer) = (String::new(), [0u8; 4096]);
    while !text.contains("\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
            _ => break,
        }
    }
    text
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    let bench = Bench::start().await;
    let before = bench.daemon.resident_kib();
    let mut stream = UnixStream::connect(bench.daemon.socket()).await.unwrap();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        40 * MIB
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.write_all(&[b' '; 1024]).await.unwrap();
    let answer = within("413 without the body", 5, head(&mut stream)).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let grown = bench.daemon.resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB for a body that was never sent");
}

#[tokio::test]
async fn an_endless_chunked_body_is_cut_at_the_limit() {
    let bench = Bench::start().await;
    let mut stream = UnixStream::connect(bench.daemon.socket()).await.unwrap();
    let request = "POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-type: application/json\r\n\
                   transfer-encoding: chunked\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let chunk = [format!("{MIB:x}\r\n").into_bytes(), vec![b' '; MIB], b"\r\n".to_vec()].concat();
    let writing = async {
        for sent in 0..64 {
            if writer.write_all(&chunk).await.is_err() {
                return sent;
            }
        }
        64
    };
    let reading = async {
        let mut answer = vec![0u8; 12];
        // A reset instead of an answer is also a refusal: the sender did not listen.
        reader.read_exact(&mut answer).await.map(|_| String::from_utf8_lossy(&answer).into_owned())
    };
    let (sent, answer) = within("cutting an endless body", 20, async { tokio::join!(writing, reading) }).await;
    assert!(sent < 64 || answer.is_ok(), "64 MiB were read and nothing was said");
    if let Ok(answer) = answer {
        assert_eq!(answer, "HTTP/1.1 413");
    }
}

#[tokio::test]
async fn a_body_packed_in_an_unknown_way_is_refused_in_words() {
    let bench = Bench::start().await;
    for packing in ["br", "zstd", "gzip, br"] {
        let reply = bench.daemon.send(Ask::chat("packed").header("content-encoding", packing)).await;
        reply.assert_error(415, "unsupported_media_type");
    }
    let plain = bench.daemon.send(Ask::chat("as it is").header("content-encoding", "identity")).await;
    assert_eq!(plain.status, 200);
}

#[tokio::test]
async fn endless_headers_are_cut() {
    let bench = Bench::start().await;
    let mut stream = UnixStream::connect(bench.daemon.socket()).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: hf\r\n").await.unwrap();
    let line = format!("x-more: {}\r\n", "a".repeat(1000));
    let sent = within("cutting endless headers", 20, async {
        for sent in 0..4_000 {
            if stream.write_all(line.as_bytes()).await.is_err() {
                return sent;
            }
        }
        4_000
    })
    .await;
    assert!(sent < 4_000, "4 MB of headers were taken");
}

#[tokio::test]
async fn a_byte_a_second_holds_up_nobody_else() {
    let bench = Bench::start().await;
    let socket = bench.daemon.socket();
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let socket = socket.clone();
        slow.spawn(async move {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            for byte in b"POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-length: 100\r\n\r\n{}" {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    for n in 0..20 {
        let reply = within("others", 2, bench.daemon.send(Ask::chat(&format!("quick {n}")))).await;
        assert_eq!(reply.status, 200);
        assert_eq!(within("health", 1, bench.daemon.get("/health")).await.status, 200);
    }
    within("closing slow headers", 40, slow.join_all()).await;
}

/// One rude call, of a kind chosen by its number; how it ends does not matter.
async fn rude(socket: &Path, n: usize) {
    let Ok(mut stream) = UnixStream::connect(socket).await else { return };
    let body = chat_body(&format!("rude {n}")).to_string();
    let request = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-length: {}\r\n\r\n", body.len());
    let bytes: Vec<u8> = match n % 6 {
        0 => Vec::new(),
        1 => request.into_bytes(),
        2 => format!("{request}{}", &body[..body.len() / 2]).into_bytes(),
        3 => format!("{request}{body}").into_bytes(),
        4 => b"\x00\x01\x02 garbage \r\n\r\n".to_vec(),
        _ => b"POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-length: 1\r\n\r\n{".to_vec(),
    };
    // It may well be cut off while it is rude.
    let _ = stream.write_all(&bytes).await;
    if n % 6 >= 4 {
        let _ = head(&mut stream).await;
    }
}

#[tokio::test]
async fn rude_callers_leave_no_descriptor_and_no_memory_behind() {
    let bench = Bench::start().await;
    bench.uplink.set_faults(Faults { delay_ms: 20, ..Faults::default() }).await;
    let socket = bench.daemon.socket();
    for n in 0..60 {
        within("a rude call", 20, rude(&socket, n)).await;
    }
    bench.daemon.get("/health").await;
    let (descriptors, memory) = (bench.daemon.descriptors(), bench.daemon.resident_kib());
    for n in 0..rounds("HOLDFAST_ABUSE_CALLS", 1_000) {
        within("a rude call", 20, rude(&socket, n)).await;
    }
    until("descriptors to be level", 30, || async { (bench.daemon.descriptors() <= descriptors + 8).then_some(()) })
        .await;
    let grown = bench.daemon.resident_kib().saturating_sub(memory);
    assert!(grown < 30 * 1024, "{grown} KiB more than before");
    assert_eq!(bench.daemon.send(Ask::chat("still here")).await.status, 200);
}

/// Sends raw bytes; the answer's status, and whether the connection was closed behind it.
async fn raw(socket: &Path, bytes: &[u8]) -> (u16, bool) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // It may be refused before its end.
    let _ = stream.write_all(bytes).await;
    let text = within("an answer to a strange request", 10, head(&mut stream)).await;
    let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    let closed = text.to_ascii_lowercase().contains("connection: close");
    (status.unwrap_or_else(|| panic!("no answer to {:?}: {text:?}", String::from_utf8_lossy(bytes))), closed)
}

#[tokio::test]
async fn every_strange_request_has_its_one_answer() {
    let bench = Bench::start().await;
    let socket = bench.daemon.socket();
    let chat = chat_body("strange").to_string();
    let post =
        |headers: &str, body: &str| format!("POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\n{headers}\r\n{body}");
    let length = chat.len();
    let chunked = |chunks: &str| post("transfer-encoding: chunked\r\n", chunks);
    let get = |rest: &str| format!("GET /health {rest}");
    let many = "x: 1\r\n".repeat(101);
    let cases: Vec<(&str, String, u16)> = vec![
        ("plain", get("HTTP/1.1\r\nhost: hf\r\n\r\n"), 200),
        ("HTTP/1.0 without Host", get("HTTP/1.0\r\n\r\n"), 200),
        ("absolute form", "GET http://hf/health HTTP/1.1\r\nhost: hf\r\n\r\n".to_owned(), 200),
        ("chunk extension", chunked(&format!("{length:x};a=b\r\n{chat}\r\n0\r\n\r\n")), 200),
        ("no Host", get("HTTP/1.1\r\n\r\n"), 400),
        ("two Hosts", get("HTTP/1.1\r\nhost: hf\r\nhost: hf\r\n\r\n"), 400),
        ("bare LF", get("HTTP/1.1\nhost: hf\n\n"), 400),
        ("NUL in a header", get("HTTP/1.1\r\nhost: hf\r\nx: a\0b\r\n\r\n"), 400),
        ("folded header", get("HTTP/1.1\r\nhost: hf\r\nx: a\r\n b\r\n\r\n"), 400),
        ("blank before the colon", get("HTTP/1.1\r\nhost : hf\r\n\r\n"), 400),
        ("header without colon", get("HTTP/1.1\r\nhost: hf\r\nnothing\r\n\r\n"), 400),
        ("two Content-Lengths", post(&format!("content-length: {length}\r\ncontent-length: {length}\r\n"), &chat), 400),
        ("two other Content-Lengths", post(&format!("content-length: {length}\r\ncontent-length: 1\r\n"), &chat), 400),
        ("Content-Length as a list", post(&format!("content-length: {length}, {length}\r\n"), &chat), 400),
        ("negative Content-Length", post("content-length: -1\r\n", &chat), 400),
        ("length and chunks", post("content-length: 3\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"), 400),
        ("other coding", post("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n"), 501),
        ("chunk size 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n"), 400),
        ("negative chunk size", chunked("-5\r\nhello\r\n0\r\n\r\n"), 400),
        ("huge chunk size", chunked("fffffffffffffffff\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk without its end", chunked("5\r\nhelloworld\r\n0\r\n\r\n"), 400),
        ("method of no word", "G@T /health HTTP/1.1\r\nhost: hf\r\n\r\n".to_owned(), 400),
        ("unknown method", "BREW /health HTTP/1.1\r\nhost: hf\r\n\r\n".to_owned(), 405),
        ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n".to_owned(), 400),
        ("HTTP/0.9", "GET /health\r\n\r\n".to_owned(), 400),
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        ("HTTP/3.0", get("HTTP/3.0\r\nhost: hf\r\n\r\n"), 505),
        ("huge header", get(&format!("HTTP/1.1\r\nhost: hf\r\nx: {}\r\n\r\n", "a".repeat(40_000))), 431),
        ("too many headers", get(&format!("HTTP/1.1\r\nhost: hf\r\n{many}\r\n")), 431),
        ("huge path", format!("GET /{} HTTP/1.1\r\nhost: hf\r\n\r\n", "a".repeat(9_000)), 414),
    ];
    let mut wrong = Vec::new();
    for (name, request, expected) in &cases {
        let (status, closed) = raw(&socket, request.as_bytes()).await;
        let must_close = !matches!(*expected, 200 | 405);
        if status != *expected || (must_close && !closed) {
            wrong.push(format!("{name}: {status} instead of {expected}, closed: {closed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn two_requests_in_one_packet_are_both_answered() {
    let bench = Bench::start().await;
    let mut stream = UnixStream::connect(bench.daemon.socket()).await.unwrap();
    let body = chat_body("first of two").to_string();
    let two = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-length: {}\r\n\r\n{body}\
         GET /livez HTTP/1.1\r\nhost: hf\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(two.as_bytes()).await.unwrap();
    let mut text = String::new();
    within("two answers", 10, stream.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2, "{text}");
    assert!(text.contains("alive"), "{text}");
}

/// Sends all of it and ends the sending side, as small programs do before they read.
async fn sent_and_ended(bench: &Bench, requests: &str) -> UnixStream {
    let mut stream = UnixStream::connect(bench.daemon.socket()).await.unwrap();
    stream.write_all(requests.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    stream
}

fn post(body: &str) -> String {
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn who_ends_his_side_after_asking_is_answered_and_the_connection_ends() {
    let bench = Bench::start().await;
    bench.uplink.set_faults(Faults { delay_ms: 300, ..Faults::default() }).await;
    let mut streamed = chat_body("streamed");
    streamed["stream"] = true.into();
    let asked = post(&chat_body("plain").to_string()) + &post(&streamed.to_string());
    let mut stream = sent_and_ended(&bench, &asked).await;
    let mut text = String::new();
    within("two answers", 10, stream.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2, "{text}");
    assert!(text.contains("chat.completion\"") && text.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{text}");
}

#[tokio::test]
async fn who_closes_after_ending_his_side_is_given_up() {
    let bench = Bench::start().await;
    bench.uplink.set_faults(Faults { delay_ms: 60_000, ..Faults::default() }).await;
    let stream = sent_and_ended(&bench, &post(&chat_body("given up").to_string())).await;
    let in_flight = async |wanted: u64| {
        until("the request at the uplink", 20, || async {
            (bench.daemon.status().await["uplinks"][0]["in_flight"] == wanted).then_some(())
        })
        .await;
    };
    in_flight(1).await;
    drop(stream);
    in_flight(0).await;
}

/// Reads until the other side ends the connection.
async fn closed(stream: &mut UnixStream) {
    let mut buffer = [0u8; 4096];
    while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
}

#[tokio::test]
async fn slow_callers_by_the_hundred_are_closed_in_time_and_others_are_served() {
    let bench = Bench::start().await;
    let socket = bench.daemon.socket();
    bench.daemon.send(Ask::chat("warm")).await;
    let before = bench.daemon.resident_kib();
    let mut slow = Vec::new();
    for n in 0..1_000 {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let begun: &[u8] = match n % 5 {
            0 => b"POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-length: 100\r\n\r\n{",
            1 => b"",
            _ => b"GET /health HTTP/1.1\r\nhost: hf\r\nx-slow:",
        };
        stream.write_all(begun).await.unwrap();
        slow.push(stream);
    }
    for n in 0..10 {
        let reply = within("others", 5, bench.daemon.send(Ask::chat(&format!("beside them {n}")))).await;
        assert_eq!(reply.status, 200);
        assert_eq!(within("health", 5, bench.daemon.get("/health")).await.status, 200);
    }
    let grown = bench.daemon.resident_kib().saturating_sub(before);
    println!("1,000 slow connections: {grown} KiB");
    within("closing them all", 10, async {
        for stream in &mut slow {
            closed(stream).await;
        }
    })
    .await;
    assert!(grown <= 15 * 1024, "{grown} KiB for 1,000 slow connections");
}
