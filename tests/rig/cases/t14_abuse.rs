//! T14: clients that break the protocol, or are slow on purpose: refused or closed in time, and nobody else notices.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast::clock;
use holdfast::plant::Fault;

use crate::case::{Case, Effort, Outcome, Planted};
use crate::parts::config::config;
use crate::parts::gateway::{Gateway, Setup};
use crate::parts::http::{ask, chat, say};
use crate::parts::rest;
use crate::parts::uplink::Uplink;

pub const CASE: Case = Case {
    id: "T14",
    what: "HTTP abuse: broken requests, slow heads and bodies, many connections",
    faults: &[Planted::In(Fault::NoTimers)],
    run,
};

/// The promise is 10 s; a busy machine gets some more before it counts as broken.
const CLOSED_WITHIN: Duration = Duration::from_secs(25);
/// What the memory may grow by while all of them are connected: 15 MB; what is not optimised is twice as large.
const GROWTH_KIB_MAX: u64 = if cfg!(debug_assertions) { 32 * 1024 } else { 15 * 1024 };
/// Some of the 1,024 connections stay free for the others.
const SLOW_HEADS: usize = 800;
const SLOW_BODIES: usize = 200;
const SILENT: usize = 1_000;

fn run(effort: &Effort) -> Outcome {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).is_err() {
        return Outcome::Missing("3,000 file descriptors: raise ulimit -n".to_owned());
    }
    let (uplink, address) = Uplink::here();
    // Patient probes: a machine under this load must not take the uplink for lost.
    let config = config(&address, &["probe = { interval = \"500ms\", timeout = \"5s\" }"], &[]);
    let gateway = Gateway::start(Setup { config, ..Setup::default() });
    gateway.wait_available(true);
    let rounds = effort.pick(1, 5);
    for _ in 0..rounds {
        if let Err(broken) = abuse(&gateway, &uplink) {
            return Outcome::Broken(broken);
        }
    }
    let each = RAW.len() + SLOW_HEADS + SLOW_BODIES + SILENT;
    Outcome::held(rounds * each as u64, "connections", format!("{} raw requests, then slow and silent ones", RAW.len()))
}

fn abuse(gateway: &Gateway, uplink: &Uplink) -> Result<(), String> {
    let socket = gateway.socket();
    raw_requests(&socket, uplink)?;
    let base_kib = gateway.resident_kib();
    let slow = (0..SLOW_HEADS + SLOW_BODIES).map(|n| begun(&socket, if n < SLOW_HEADS { HEAD } else { BODY }));
    all_closed(gateway, "slow", base_kib, slow.collect())?;
    all_closed(gateway, "silent", base_kib, (0..SILENT).map(|_| begun(&socket, "")).collect())?;
    Ok(())
}

/// A head that never ends, and a body of which nearly nothing comes.
const HEAD: &str = "GET /health HTTP/1.1\r\nhost: hf\r\nx-slow: a";
const BODY: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-type: application/json\r\n\
                    content-length: 100000\r\n\r\n{\"model\":";

fn begun(socket: &Path, text: &str) -> Option<UnixStream> {
    let stream = say(socket, text.as_bytes()).ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

/// Waits until the gateway has closed every one, while others are served and memory stays under its bound.
fn all_closed(gateway: &Gateway, what: &str, base_kib: u64, open: Vec<Option<UnixStream>>) -> Result<(), String> {
    let mut open: Vec<UnixStream> = open.into_iter().flatten().collect();
    let (count, started) = (open.len(), clock::now());
    let others = Others::start(gateway.socket());
    let mut most_kib = base_kib;
    let mut trickle = 0;
    while !open.is_empty() && started.elapsed() < CLOSED_WITHIN {
        rest(Duration::from_millis(200));
        most_kib = most_kib.max(gateway.resident_kib());
        trickle += 1;
        open.retain_mut(|stream| is_open(stream, trickle % 5 == 0 && what == "slow"));
    }
    let served = others.stop();
    if !open.is_empty() {
        return Err(format!("{} of {count} {what} connections are open after {CLOSED_WITHIN:?}", open.len()));
    }
    let grown = most_kib.saturating_sub(base_kib);
    if grown > GROWTH_KIB_MAX {
        return Err(format!("{count} {what} connections cost {grown} KiB"));
    }
    eprintln!("T14: {count} {what} connections closed in {:?}, {grown} KiB, {served:?} others", started.elapsed());
    served.map(drop)
}

/// Reads what came, and writes one more byte of the head where this is wanted.
fn is_open(stream: &mut UnixStream, one_more: bool) -> bool {
    let mut buffer = [0u8; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => return false,
        }
    }
    !one_more || stream.write(b"a").is_ok()
}

/// Somebody who asks properly all the time.
struct Others {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<u64, String>>,
}

impl Others {
    fn start(socket: PathBuf) -> Others {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut served = 0;
            while !told.load(Ordering::Relaxed) {
                let health = ask(&socket, "GET", "/health", &[], b"").map_err(|e| format!("/health: {e}"))?;
                let reply = ask(&socket, "POST", "/v1/chat/completions", &[], &chat("from somebody else"));
                let reply = reply.map_err(|e| format!("a proper request got no answer: {e}"))?;
                if health.status != 200 || reply.status != 200 {
                    return Err(format!("others are not served: {} {}", health.status, reply.text()));
                }
                served += 1;
                rest(Duration::from_millis(100));
            }
            Ok(served)
        });
        Others { stop, thread }
    }

    fn stop(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// What may come of a request that is not one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Must {
    /// An error, or the end of the connection; the uplink sees nothing.
    Refuse,
    /// At most one answer: what follows the body is not a second request.
    Once,
}

struct Raw {
    what: &'static str,
    head: &'static str,
    body: &'static str,
    must: Must,
}

const fn raw(what: &'static str, head: &'static str, body: &'static str) -> Raw {
    Raw { what, head, body, must: Must::Refuse }
}

const CHAT: &str = r#"{"model":"gpt-4o","messages":[{"role":"user","content":"raw"}]}"#;
const CHUNKED_CHAT: &str =
    "3f\r\n{\"model\":\"gpt-4o\",\"messages\":[{\"role\":\"user\",\"content\":\"raw\"}]}\r\n0\r\n\r\n";
const POST: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-type: application/json\r\n";

/// Each is sent as it stands, `@POST@` being [`POST`]; the connection is then left open.
const RAW: [Raw; 22] = [
    raw("two lengths", "@POST@content-length: 63\r\ncontent-length: 10\r\n\r\n", CHAT),
    raw("a list of lengths", "@POST@content-length: 63, 10\r\n\r\n", CHAT),
    raw("a negative length", "@POST@content-length: -63\r\n\r\n", CHAT),
    raw("a length beyond 64 bits", "@POST@content-length: 99999999999999999999\r\n\r\n", CHAT),
    raw("a length with a sign", "@POST@content-length: +63\r\n\r\n", CHAT),
    Raw {
        what: "a length and chunks",
        head: "@POST@content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        body: CHUNKED_CHAT,
        must: Must::Once,
    },
    raw("an unknown coding", "@POST@transfer-encoding: xchunked\r\n\r\n", CHUNKED_CHAT),
    raw("chunked, but not last", "@POST@transfer-encoding: chunked, identity\r\n\r\n", CHUNKED_CHAT),
    raw("a chunk's size that is no number", "@POST@transfer-encoding: chunked\r\n\r\n", "zz\r\n{}\r\n0\r\n\r\n"),
    raw(
        "a chunk's size beyond 64 bits",
        "@POST@transfer-encoding: chunked\r\n\r\n",
        "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    ),
    raw("a chunk's size below zero", "@POST@transfer-encoding: chunked\r\n\r\n", "-2\r\n{}\r\n0\r\n\r\n"),
    raw("a chunk longer than its size", "@POST@transfer-encoding: chunked\r\n\r\n", "2\r\n{}{}\r\n0\r\n\r\n"),
    raw("NUL in a header", "@POST@x-a: a\0b\r\ncontent-length: 63\r\n\r\n", CHAT),
    raw("NUL in the path", "POST /v1/chat\0/completions HTTP/1.1\r\nhost: hf\r\ncontent-length: 63\r\n\r\n", CHAT),
    raw("a space before the colon", "@POST@content-length : 63\r\n\r\n", CHAT),
    raw("a folded header", "@POST@x-a: a\r\n b\r\ncontent-length: 63\r\n\r\n", CHAT),
    raw(
        "bare line feeds",
        "POST /v1/chat/completions HTTP/1.1\nhost: hf\ncontent-type: application/json\ncontent-length: 63\n\n",
        CHAT,
    ),
    raw(
        "no host",
        "POST /v1/chat/completions HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 63\r\n\r\n",
        CHAT,
    ),
    raw("two hosts", "@POST@host: other\r\ncontent-length: 63\r\n\r\n", CHAT),
    raw("HTTP/3.0", "POST /v1/chat/completions HTTP/3.0\r\nhost: hf\r\ncontent-length: 63\r\n\r\n", CHAT),
    raw("a method with a space", "PO ST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-length: 63\r\n\r\n", CHAT),
    raw("the beginning of TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}", ""),
];

fn raw_requests(socket: &Path, uplink: &Uplink) -> Result<(), String> {
    // Side by side: some end by a time-out only.
    let threads: Vec<_> = RAW
        .iter()
        .map(|raw| {
            let socket = socket.to_owned();
            std::thread::spawn(move || raw_request(&socket, raw).map_err(|what| format!("{}: {what}", raw.what)))
        })
        .collect();
    let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let broken: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    if !broken.is_empty() {
        return Err(broken.join("; "));
    }
    let reached = uplink.sent("raw").len();
    let allowed = RAW.iter().filter(|raw| raw.must == Must::Once).count();
    if reached <= allowed { Ok(()) } else { Err(format!("{reached} of the raw requests reached the uplink")) }
}

fn raw_request(socket: &Path, raw: &Raw) -> Result<(), String> {
    let head = raw.head.replace("@POST@", POST);
    let mut stream = say(socket, (head + raw.body).as_bytes()).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(CLOSED_WITHIN)).map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
        return Err(format!("open after {CLOSED_WITHIN:?}"));
    }
    let text = String::from_utf8_lossy(&answer);
    // The words of a refusal may name HTTP/1.1 too.
    let is_status = |rest: &&str| rest.as_bytes().iter().take(3).all(u8::is_ascii_digit);
    let answers = text.split("HTTP/1.1 ").skip(1).filter(is_status).count();
    let refused = answers == 0 || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.1 5");
    match raw.must {
        Must::Refuse if !refused => Err(format!("it was served: {}", text.lines().next().unwrap_or_default())),
        _ if answers > 1 => Err(format!("{answers} answers to one request")),
        _ => Ok(()),
    }
}
