//! Tests of the room against a small scripted server on loopback.
//!
//! Owns that server; never needs a model.

mod ollama;
mod openai;
mod shapes;
mod slots;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Api, Content, Local, LocalAnswer, LocalError, Options, StewardSettings, Timeouts, Warm};

/// What the scripted server saw.
#[derive(Debug)]
enum Seen {
    Request { head: String, body: Bytes },
    Gone,
}

/// What it does with one connection: writes the pieces one by one, then closes, or waits until the client goes.
#[derive(Clone)]
struct Script {
    pieces: Vec<Vec<u8>>,
    hang: bool,
}

impl Script {
    fn new(status: &str, body: &str) -> Self {
        Self { pieces: vec![format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{body}").into_bytes()], hang: false }
    }

    fn ok(body: &str) -> Self {
        Self::new("200 OK", body)
    }

    fn hanging(mut self) -> Self {
        self.hang = true;
        self
    }

    /// Splits everything at `at`.
    fn split(mut self, at: usize) -> Self {
        let all = self.pieces.concat();
        let (front, back) = all.split_at(at);
        self.pieces = vec![front.to_vec(), back.to_vec()];
        self
    }

    fn len(&self) -> usize {
        self.pieces.iter().map(Vec::len).sum()
    }
}

struct Server {
    url: String,
    seen: UnboundedReceiver<Seen>,
}

impl Server {
    /// Serves one connection per script, then refuses.
    async fn start(scripts: Vec<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, seen) = unbounded_channel();
        tokio::spawn(async move {
            for script in scripts {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, script, sender.clone()));
            }
        });
        Self { url, seen }
    }

    async fn request(&mut self) -> (String, Value) {
        let (head, body) = self.raw_request().await;
        (head, serde_json::from_slice(&body).unwrap())
    }

    async fn raw_request(&mut self) -> (String, Bytes) {
        match self.seen.recv().await.unwrap() {
            Seen::Request { head, body } => (head, body),
            Seen::Gone => panic!("the client went before its request"),
        }
    }

    async fn gone(&mut self) {
        assert!(matches!(self.seen.recv().await, Some(Seen::Gone)));
    }
}

async fn serve(mut stream: TcpStream, script: Script, seen: UnboundedSender<Seen>) {
    stream.set_nodelay(true).unwrap();
    let Some((head, body)) = read_request(&mut stream).await else { return };
    let _ = seen.send(Seen::Request { head, body });
    for piece in script.pieces {
        if stream.write_all(&piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    if script.hang {
        let mut rest = [0; 64];
        while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
        let _ = seen.send(Seen::Gone);
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<(String, Bytes)> {
    let mut all = Vec::new();
    loop {
        if let Some(end) = all.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(all[..end].to_vec()).unwrap();
            let length =
                head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if all.len() >= end + 4 + length.unwrap_or(0) {
                return Some((head, Bytes::from(all.split_off(end + 4))));
            }
        }
        if stream.read_buf(&mut all).await.ok()? == 0 {
            return None;
        }
    }
}

fn options(url: &str, api: Api) -> Options {
    Options {
        base_url: Some(url.to_owned()),
        api,
        model: "llama3.2:latest".into(),
        vision_model: "llava:7b".into(),
        models: BTreeMap::from([
            ("text-embedding-3-small".to_owned(), "nomic-embed-text".to_owned()),
            ("gpt-4o-mini".to_owned(), "qwen3:0.6b".to_owned()),
        ]),
        max_in_flight: 1,
        timeouts: Timeouts {
            connect: Duration::from_secs(1),
            first_token: Duration::from_mins(2),
            idle: Duration::from_secs(20),
            total: Duration::from_mins(5),
        },
        steward: StewardSettings { warm: Warm::Never, max_temperature_c: 80, shares_memory: true },
    }
}

async fn start(api: Api, scripts: Vec<Script>) -> (Server, Local) {
    let server = Server::start(scripts).await;
    let local = Local::new(options(&server.url, api)).unwrap();
    (server, local)
}

const CHAT: &str = "/v1/chat/completions";

async fn ask(local: &Local, endpoint: &str, body: impl ToString) -> Result<LocalAnswer, LocalError> {
    local.answer(endpoint, &Bytes::from(body.to_string()).into(), "req_0123abc", 1_700_000_000).await
}

fn whole(answer: LocalAnswer) -> Value {
    match answer.content {
        Content::Whole(bytes) => serde_json::from_slice(&bytes).unwrap(),
        Content::Stream(_) => panic!("a stream where a whole answer was asked for"),
    }
}

/// The events of a stream, and the error that ended it, if one did.
async fn events(answer: LocalAnswer) -> (Vec<Bytes>, Option<LocalError>) {
    let Content::Stream(mut receiver) = answer.content else { panic!("no stream") };
    let mut all = Vec::new();
    while let Some(item) = receiver.recv().await {
        match item {
            Ok(event) => all.push(event),
            Err(error) => {
                assert!(receiver.recv().await.is_none(), "something follows an error");
                return (all, Some(error));
            }
        }
    }
    (all, None)
}

/// The JSON of events, without the closing `[DONE]`, which must be there.
fn chunks(events: &[Bytes]) -> Vec<Value> {
    let (last, rest) = events.split_last().unwrap();
    assert_eq!(&last[..], b"data: [DONE]\n\n");
    rest.iter().map(|e| json_of(e)).collect()
}

fn json_of(event: &[u8]) -> Value {
    let data = event.strip_prefix(b"data: ").and_then(|e| e.strip_suffix(b"\n\n")).unwrap();
    serde_json::from_slice(data).unwrap()
}
