//! What the gateway adds to a request while its uplink is there, beside nginx and the plainest proxy.
//!
//! Owns the ways to the same mock and the three things that are asked for on them: a chat, a picture, a stream.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast::clock;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};

use crate::Plan;
use crate::daemon::{Daemon, Place};
use crate::load::{self, Caller, Job, Target, Timed};
use crate::mock::{self, Mock, Offers};
use crate::nginx::Nginx;
use crate::proxy::Proxy;
use crate::ways::{self, Way};

/// Names the one way that is to be measured.
const ONLY_WAY: &str = "BENCH_WAY";
pub(crate) const CALLERS: [usize; 3] = [1, 16, 64];
pub(crate) const FEW: usize = 16;
const MANY: usize = 64;
const PICTURE_BYTES: usize = 1 << 20;
const BIG_PICTURE_BYTES: usize = 10 << 20;
/// Between two looks whether the daemon has found its uplink.
const LOOK: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);

/// What is asked for on every way.
pub(crate) const CHAT: Job =
    Job { request: chat, dressed: load::as_it_is, is_right: is_ok, timed: Timed::Whole, warm_up: load::WARM_UP };
pub(crate) const PICTURE: Job = Job { request: picture, ..CHAT };
const BIG_PICTURE: Job = Job { request: big_picture, warm_up: load::WARM_UP_BIG, ..CHAT };
pub(crate) const FIRST_BYTE: Job = Job { request: streamed, timed: Timed::FirstByte, ..CHAT };
const EVENTS: Job = Job { request: streamed, timed: Timed::Events, ..CHAT };

/// What the configuration says of the mock, which is at `to`.
pub(crate) fn configuration(to: &str) -> String {
    format!("[[uplink]]\nname = \"mock\"\n{to}\nmax_in_flight = 256\n[cache]\nttl = \"0s\"\n")
}

/// All ways to one mock, and what stands on them.
struct Side {
    mock: Mock,
    socket: PathBuf,
    nginx: Option<Nginx>,
    proxy: Option<Proxy>,
    place: Place,
    daemon: Daemon,
}

impl Side {
    /// `tls`: to the mock over TLS, with what the mock offers; the plain proxy knows none.
    async fn start(tls: Option<Offers>) -> Side {
        let place = Place::new("uplink = []\n");
        let socket = place.sockets.path().join("mock.sock");
        let mock = mock::start(&socket, tls.unwrap_or(Offers::Http1)).await;
        let ca_file = place.sockets.path().join("ca.pem");
        std::fs::write(&ca_file, &mock.certificate).unwrap();
        let to = match tls {
            None => format!("base_url = \"http://{}/v1\"", mock.tcp),
            Some(_) => {
                format!("base_url = \"https://localhost:{}/v1\"\nca_file = \"{}\"", mock.tls.port(), ca_file.display())
            }
        };
        place.configure(&configuration(&to));
        let (daemon, _) = place.start().await;
        until_online(&Target::Unix(place.socket())).await;
        let nginx = Nginx::start(&mock, tls.is_some()).await;
        let proxy = if tls.is_none() { Some(Proxy::start(mock.tcp).await) } else { None };
        Side { mock, socket, nginx, proxy, place, daemon }
    }

    /// nginx first, where it is: ratios are to the first.
    fn ways(&self) -> Vec<Way> {
        let way = |name, target, through| Way { name, target, is_right: is_ok, dressed: load::as_it_is, through };
        let unix = |path| Target::Unix(path);
        let mut ways = Vec::new();
        if let Some(nginx) = &self.nginx {
            ways.push(way("nginx", unix(nginx.socket()), Some(nginx.pid())));
        }
        ways.push(way("none: the mock over TCP, no TLS", Target::Tcp(self.mock.tcp), None));
        ways.push(way("none: the mock over a UNIX socket, no TLS", unix(self.socket.clone()), None));
        if let Some(proxy) = &self.proxy {
            ways.push(way("plain proxy", unix(proxy.socket()), Some(proxy.pid())));
        }
        let holdfast = way("holdfast", unix(self.place.socket()), Some(self.daemon.pid()));
        ways.push(Way { is_right: is_uplinks, ..holdfast });
        if let Ok(only) = std::env::var(ONLY_WAY) {
            ways.retain(|way| way.name == only);
            assert!(!ways.is_empty(), "{ONLY_WAY}={only}: there is no such way");
        }
        ways
    }

    /// One table: a row for each way to the mock and number of callers.
    async fn compare(&self, plan: &Plan, title: &str, callers: &[usize], asked: Job) {
        ways::compare(&self.ways(), plan, title, callers, asked).await;
    }

    fn memory(&self, after: &str) {
        let rows = [
            ("nginx", self.nginx.as_ref().map(Nginx::memory)),
            ("plain proxy", self.proxy.as_ref().map(Proxy::memory)),
            ("holdfast", Some(self.daemon.memory())),
        ];
        ways::memory(after, rows.into_iter().filter_map(|(name, memory)| Some((name, memory?))));
    }

    async fn stop(self) {
        self.daemon.stop().await;
    }
}

/// A chat request and its answer.
pub(crate) async fn chats(plan: &Plan) {
    let side = Side::start(None).await;
    side.compare(plan, "A chat request and its 600-byte answer", &CALLERS, CHAT).await;
    side.memory("after this load");
    side.stop().await;
    for (offers, name) in [(Offers::Http1, "HTTP/1.1"), (Offers::Http2, "HTTP/2, where the way speaks it")] {
        let side = Side::start(Some(offers)).await;
        side.compare(plan, &format!("The same over TLS to the uplink ({name})"), &CALLERS, CHAT).await;
        side.stop().await;
    }
}

/// A picture of 1 MiB, and what so many of them take of memory.
pub(crate) async fn pictures(plan: &Plan) {
    let side = Side::start(None).await;
    side.memory("when idle");
    side.compare(plan, "A picture of 1 MiB and its 600-byte answer", &[FEW], PICTURE).await;
    side.memory("after 16 x 1 MiB at once");
    side.stop().await;
    let side = Side::start(None).await;
    side.compare(plan, "A picture of 10 MiB", &[MANY], BIG_PICTURE).await;
    println!("\nFew are answered in a cell, often one for each caller: p99 is about the slowest of all.");
    side.memory("after 64 x 10 MiB at once");
    side.stop().await;
}

/// A stream: its first byte, and each event's way.
pub(crate) async fn streams(plan: &Plan) {
    let side = Side::start(None).await;
    side.compare(plan, "The first byte of a stream", &[1, FEW], FIRST_BYTE).await;
    let title = "One event of a stream on its way back";
    side.compare(plan, title, &[1, FEW], EVENTS).await;
    side.stop().await;
}

const TEXT: &str = "Line 3: temperature 71 degrees, current 12 amperes, no fault. Is the weld in order?";

fn post(body: Bytes) -> Request<Full<Bytes>> {
    let request = Request::post("/v1/chat/completions").header("host", "hf").header("content-type", "application/json");
    request.body(Full::new(body)).unwrap()
}

fn chat(n: u64) -> Request<Full<Bytes>> {
    post(format!(r#"{{"model":"bench","messages":[{{"role":"user","content":"{TEXT} {n}"}}]}}"#).into())
}

fn streamed(n: u64) -> Request<Full<Bytes>> {
    post(format!(r#"{{"model":"bench","messages":[{{"role":"user","content":"{TEXT} {n}"}}],"stream":true}}"#).into())
}

fn picture(n: u64) -> Request<Full<Bytes>> {
    static SAME: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![b'Q'; PICTURE_BYTES]));
    post(with_picture(&SAME, n))
}

fn big_picture(n: u64) -> Request<Full<Bytes>> {
    static SAME: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![b'Q'; BIG_PICTURE_BYTES]));
    post(with_picture(&SAME, n))
}

/// In base64, as cameras send them.
pub(crate) fn with_picture(base64: &Bytes, n: u64) -> Bytes {
    let head = format!(
        r#"{{"model":"bench","messages":[{{"role":"user","content":[{{"type":"text","text":"{n}"}},{{"type":"image_url","image_url":{{"url":"data:image/jpeg;base64,"#
    );
    let tail = r#""}}]}]}"#;
    let mut body = BytesMut::with_capacity(head.len() + base64.len() + tail.len());
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(base64);
    body.extend_from_slice(tail.as_bytes());
    body.freeze()
}

pub(crate) fn is_ok(answer: &Response<Incoming>) -> bool {
    answer.status() == StatusCode::OK
}

/// Neither a stored nor a local answer would measure this path.
pub(crate) fn is_uplinks(answer: &Response<Incoming>) -> bool {
    is_ok(answer) && answer.headers().get("x-holdfast-route").is_some_and(|route| route == "uplink:mock")
}

/// The first probe takes its time.
pub(crate) async fn until_online(target: &Target) {
    let started = clock::now();
    loop {
        let mut caller = Caller::connect(target).await.unwrap();
        let request = Request::get("/holdfast/v1/status").header("host", "hf").body(Full::new(Bytes::new())).unwrap();
        let (_, body) = caller.call(request).await.unwrap();
        if String::from_utf8_lossy(&body).contains("healthy\"") && caller.call(chat(0)).await.unwrap().0.status() == 200
        {
            return;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "the daemon does not find its uplink: {}",
            String::from_utf8_lossy(&body)
        );
        tokio::time::sleep(LOOK).await;
    }
}
