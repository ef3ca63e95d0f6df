//! Peers on TCP and the socket that mean no good: foreign names, answers never read, connections without end.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use holdfast::cli::simulate::Faults;

use crate::support::{Ask, Bench, Settings, chat_body, free_port, until, within};

/// Connections of one peer, as the product's documents name it.
const PEER_CONNECTIONS_MAX: usize = 1_152;

/// A bench that listens on TCP too; and the port.
async fn on_tcp() -> (Bench, u16) {
    let free = free_port();
    let http = format!("listen = [\"127.0.0.1:{free}\"]\nallowed_hosts = [\"gateway.lan\"]");
    (Bench::with(Settings { http, ..Settings::default() }).await, free)
}

/// All of the answer to one raw request over TCP.
async fn answer(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let _ = within("an answer", 20, stream.read_to_string(&mut text)).await;
    text
}

/// Its status.
async fn status(port: u16, request: &str) -> u16 {
    let text = answer(port, request).await;
    text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{request:?}: {text:?}"))
}

#[tokio::test]
async fn a_page_whose_name_was_made_to_point_here_is_refused() {
    let (bench, port) = on_tcp().await;
    let get = |target: &str, host: &str| format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    for (target, host, wanted) in [
        ("/health", format!("127.0.0.1:{port}"), 200),
        ("/health", format!("localhost:{port}"), 200),
        ("/health", "gateway.lan".to_owned(), 200),
        ("/health", format!("evil.example:{port}"), 421),
        ("/health", "10.1.2.3".to_owned(), 421),
        ("/health", "localhost.evil.example".to_owned(), 421),
        // What the target names goes before the header.
        ("http://evil.example/health", "localhost".to_owned(), 421),
        ("/holdfast/v1/requests", "evil.example".to_owned(), 421),
    ] {
        assert_eq!(status(port, &get(target, &host)).await, wanted, "{target} {host}");
    }
    let body = chat_body("rebound").to_string();
    let chat = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(status(port, &chat).await, 421);
    assert_eq!(bench.answered("rebound"), 0, "it was sent all the same");
}

/// A panel's page may ask and read, with a token; no other page may, and nobody without one.
#[tokio::test]
async fn a_listed_page_is_let_in_with_a_token_and_no_other() {
    let (folder, free) = (tempfile::tempdir().unwrap(), free_port());
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "panel secret\n").unwrap();
    let http =
        format!("listen = [\"127.0.0.1:{free}\"]\ntoken_file = {tokens:?}\nallowed_origins = [\"http://panel.local\"]");
    let bench = Bench::with(Settings { http, ..Settings::default() }).await;
    let ask = async |method: &str, more: &str| {
        let request = format!("{method} /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}\r\n");
        answer(free, &request).await
    };
    let has = |text: &str, status: &str, headers: &[&str]| {
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        for header in headers {
            assert!(text.contains(&format!("\r\n{header}")), "{header} is missing: {text}");
        }
    };
    let from_panel = "origin: http://panel.local\r\n";
    let wish = "access-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n";
    let preflight = ask("OPTIONS", &format!("{from_panel}{wish}")).await;
    let allowed = [
        "access-control-allow-origin: http://panel.local",
        "access-control-allow-headers: authorization",
        "access-control-allow-methods: GET,HEAD,POST,DELETE",
        "access-control-max-age: 600",
        "vary: origin",
        "x-request-id: req_",
    ];
    has(&preflight, "204", &allowed);
    let asked = ask("GET", &format!("{from_panel}authorization: bearer secret\r\n")).await;
    has(
        &asked,
        "200",
        &["access-control-allow-origin: http://panel.local", "access-control-expose-headers:", "x-request-id:"],
    );
    let body = chat_body("of a page").to_string();
    let chat = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{from_panel}\
         authorization: Bearer secret\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answered = answer(free, &chat).await;
    has(
        &answered,
        "200",
        &["x-holdfast-route: uplink:", "access-control-allow-origin: http://panel.local", "vary: origin"],
    );
    let readable = answered.lines().find_map(|line| line.strip_prefix("access-control-expose-headers: ")).unwrap();
    for name in ["location", "retry-after", "x-holdfast-route", "x-upstream-request-id", "idempotent-replayed"] {
        assert!(readable.split(',').any(|readable| readable == name), "{name}: {readable}");
    }
    let nobody = ask("GET", from_panel).await;
    has(&nobody, "401", &["www-authenticate: Bearer", "x-request-id: req_", "access-control-allow-origin:"]);
    for method in ["GET", "OPTIONS"] {
        let other =
            ask(method, &format!("origin: http://evil.example\r\n{wish}authorization: Bearer secret\r\n")).await;
        has(&other, "403", &["x-request-id: req_"]);
        assert!(!other.contains("access-control"), "{other}");
    }
    let plain = ask("GET", "authorization: Bearer secret\r\n").await;
    assert!(plain.starts_with("HTTP/1.1 200") && !plain.contains("access-control"), "{plain}");
    let local = bench.daemon.send(Ask::get("/health").header("origin", "http://panel.local")).await;
    assert!(local.status == 200 && !local.headers.contains_key("access-control-allow-origin"), "{:?}", local.headers);
}

/// Also who is refused before any handler knows of it, for a name, a page, a token or a head.
#[tokio::test]
async fn who_may_not_ask_on_tcp_is_told_how_to_and_under_an_id() {
    let (folder, free) = (tempfile::tempdir().unwrap(), free_port());
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "panel secret\n").unwrap();
    let http = format!("listen = [\"127.0.0.1:{free}\"]\ntoken_file = {tokens:?}");
    let _bench = Bench::with(Settings { http, ..Settings::default() }).await;
    let head = |host: &str, more: &str| format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}");
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR  "] {
        let said = head("localhost", &format!("authorization: {scheme} secret\r\n\r\n"));
        assert_eq!(status(free, &said).await, 200, "{scheme}");
    }
    for (said, wanted) in [
        (head("localhost", "\r\n"), 401),
        (head("localhost", "authorization: Bearersecret\r\n\r\n"), 401),
        (head("localhost", "authorization: Basic secret\r\n\r\n"), 401),
        (head("localhost", "authorization: bearer other\r\nx-request-id: mine\r\n\r\n"), 401),
        (head("localhost", "origin: http://evil.example\r\n\r\n"), 403),
        (head("evil.example", "\r\n"), 421),
        (head("localhost", " folded\r\n\r\n"), 400),
        // It never ends.
        (head("localhost", "x-slow:"), 408),
    ] {
        let told = answer(free, &said).await;
        assert!(told.starts_with(&format!("HTTP/1.1 {wanted} ")), "{said:?}: {told}");
        assert_eq!(told.matches("\r\nx-request-id: req_").count(), 1, "{told}");
        assert_eq!(told.contains("\r\nwww-authenticate: Bearer\r\n"), wanted == 401, "{told}");
        assert_eq!(told.contains("\r\nx-client-request-id: mine\r\n"), said.contains("mine"), "{told}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_let_go_and_its_answer_too() {
    let bench = Bench::start().await;
    let answer = format!(r#"{{"choices":[{{"message":{{"content":"{}"}}}}]}}"#, "x".repeat(4 * 1024 * 1024));
    bench.uplink.set_faults(Faults { answer: Some(answer), ..Faults::default() }).await;
    bench.daemon.send(Ask::chat("warm")).await;
    let before = bench.daemon.descriptors();
    let body = chat_body("never read").to_string();
    let ask = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let mut stream = UnixStream::connect(bench.daemon.socket()).await.unwrap();
        stream.write_all(ask.as_bytes()).await.unwrap();
        deaf.push(stream);
    }
    until("their answers", 20, || async { (bench.answered("never read") == 8).then_some(()) }).await;
    assert!(bench.daemon.descriptors() >= before + 8);
    assert_eq!(within("others", 10, bench.daemon.send(Ask::chat("beside them"))).await.status, 200);
    until("them to be let go", 40, || async { (bench.daemon.descriptors() <= before + 4).then_some(()) }).await;
    drop(deaf);
}

/// Whether the gateway keeps a new connection: one without a place is closed at once.
async fn is_kept(socket: &Path) -> bool {
    Ask::get("/livez").send_to(socket).await.is_ok_and(|reply| reply.status == 200)
}

#[tokio::test]
async fn one_peer_cannot_take_every_connection() {
    let files = rustix::process::Rlimit { current: Some(4_096), maximum: Some(4_096) };
    if rustix::process::setrlimit(rustix::process::Resource::Nofile, files).is_err() {
        println!("SKIPPED: this process may not open 4,096 files");
        return;
    }
    let (bench, port) = on_tcp().await;
    let socket = bench.daemon.socket();
    let mut open = Vec::new();
    for _ in 0..PEER_CONNECTIONS_MAX + 50 {
        open.push(UnixStream::connect(&socket).await.unwrap());
    }
    // Other addresses still get in, this user does not.
    let get = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    until("the cap", 7, || async { (!is_kept(&socket).await).then_some(()) }).await;
    assert_eq!(status(port, get).await, 200);
    drop(open);
    until("a place", 10, || async { is_kept(&socket).await.then_some(()) }).await;
}
