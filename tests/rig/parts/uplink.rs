//! An uplink that remembers each whole request and can lose, cut or withhold its answers; one connection a request.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::rest;

/// No request of a test takes longer.
const PATIENCE: Duration = Duration::from_mins(1);

/// What it does with a chat that arrived whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Answers with so many bytes of text.
    Text(usize),
    /// Ends the connection without a status.
    Nothing,
    /// Ends the connection after half of the body.
    Half,
    /// Says nothing until the client is gone.
    Silence,
    /// Answers after so many milliseconds.
    Late(u64),
    /// An error of its own, which says the user's text backwards: services repeat prompts in their messages.
    Status(u16),
    /// These very words: a status, further headers (each with its line end) and a body.
    Words(&'static str, &'static str, &'static str),
}

/// A chat that arrived whole.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The user's text.
    pub user: String,
    /// Its `Idempotency-Key`.
    pub key: String,
    /// Whether the gateway's own record said before the answer that it may have been billed.
    pub labelled: bool,
}

/// Whether the gateway says of what it is sending now that it may have been billed.
type Label = Box<dyn Fn() -> bool + Send + Sync>;

/// A certificate that it made for itself, as PEM for the gateway and as a TLS server for [`Uplink::serve`].
pub fn own_certificate(name: &str) -> (String, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made.cert.pem(), Arc::new(server))
}

/// The uplink's memory and its switch.
pub struct Uplink {
    sent: Mutex<Vec<Sent>>,
    answer: Mutex<Answer>,
    once: Mutex<Option<(String, Answer)>>,
    label: Mutex<Option<Label>>,
    requests: Mutex<u64>,
}

impl Uplink {
    /// One on this machine, and its address for the configuration.
    pub fn here() -> (Arc<Uplink>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        (Uplink::serve(listener, None), address)
    }

    /// Serves every connection of this listener from now on.
    pub fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> Arc<Uplink> {
        let uplink = Arc::new(Uplink {
            sent: Mutex::default(),
            answer: Mutex::new(Answer::Text(20)),
            once: Mutex::default(),
            label: Mutex::default(),
            requests: Mutex::new(0),
        });
        let shared = Arc::clone(&uplink);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                // A connection that breaks is what the tests are about.
                std::thread::spawn(move || drop(shared.connection(stream, tls)));
            }
        });
        uplink
    }

    /// What the next chats get.
    pub fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// What only the next chat with this text gets: the rest of an earlier one may still be on its way.
    pub fn set_once(&self, user: &str, answer: Answer) {
        *self.once.lock().unwrap() = Some((user.to_owned(), answer));
    }

    /// Asks this at each chat before it is answered.
    pub fn ask_label(&self, label: impl Fn() -> bool + Send + Sync + 'static) {
        *self.label.lock().unwrap() = Some(Box::new(label));
    }

    /// The chats with this text, in the order in which they came.
    pub fn sent(&self, user: &str) -> Vec<Sent> {
        self.sent.lock().unwrap().iter().filter(|sent| sent.user == user).cloned().collect()
    }

    /// Every chat there was.
    pub fn all(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    /// How many requests of any kind it saw.
    pub fn requests(&self) -> u64 {
        *self.requests.lock().unwrap()
    }

    fn connection(&self, stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        match tls {
            None => self.request(stream),
            Some(tls) => {
                let connection = ServerConnection::new(tls).map_err(io::Error::other)?;
                self.request(StreamOwned::new(connection, stream))
            }
        }
    }

    fn request(&self, mut stream: impl Read + Write) -> io::Result<()> {
        let (head, body) = read_request(&mut stream)?;
        *self.requests.lock().unwrap() += 1;
        if head.starts_with("GET ") {
            // Not the status that some rules on the line look for: the probe stays green while an answer is lost.
            let models = json!({"object": "list", "data": []}).to_string();
            return write(&mut stream, "201 Created", &models, models.len());
        }
        let user = user_of(&body);
        let labelled = self.label.lock().unwrap().as_ref().is_some_and(|label| label());
        let key = header(&head, "idempotency-key");
        let once = self.once.lock().unwrap().take_if(|(wanted, _)| *wanted == user).map(|(_, answer)| answer);
        let backwards: String = user.chars().rev().collect();
        self.sent.lock().unwrap().push(Sent { user, key, labelled });
        let answer = once.unwrap_or(*self.answer.lock().unwrap());
        match answer {
            Answer::Nothing => Ok(()),
            Answer::Silence => {
                let _ = stream.read(&mut [0u8; 1]);
                Ok(())
            }
            Answer::Status(status) => {
                let text = json!({"error": {"message": backwards, "type": "t", "code": "c"}}).to_string();
                write(&mut stream, &format!("{status} Error"), &text, text.len())
            }
            Answer::Half => {
                let text = chat_answer(2_000);
                write(&mut stream, "200 OK", &text[..text.len() / 2], text.len())?;
                // Long enough that the half has left before the end does.
                rest(Duration::from_millis(20));
                Ok(())
            }
            Answer::Words(status, headers, body) => {
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
                stream.write_all((head + body).as_bytes())?;
                stream.flush()
            }
            Answer::Late(ms) => {
                rest(Duration::from_millis(ms));
                let text = chat_answer(20);
                write(&mut stream, "200 OK", &text, text.len())
            }
            Answer::Text(bytes) => {
                let text = chat_answer(bytes);
                write(&mut stream, "200 OK", &text, text.len())
            }
        }
    }
}

fn chat_answer(bytes: usize) -> String {
    let message = json!({"role": "assistant", "content": "a".repeat(bytes)});
    let choices = json!([{"index": 0, "finish_reason": "stop", "message": message}]);
    json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}).to_string()
}

fn write(stream: &mut impl Write, status: &str, body: &str, length: usize) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes())?;
    stream.flush()
}

/// A head and a body of the length that it names.
fn read_request(stream: &mut impl Read) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut part = [0u8; 16 * 1024];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length: usize = header(&head, "content-length").parse().unwrap_or(0);
            while bytes.len() < end + 4 + length {
                let read = stream.read(&mut part)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                bytes.extend_from_slice(&part[..read]);
            }
            return Ok((head, bytes.split_off(end + 4)));
        }
        let read = stream.read(&mut part)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&part[..read]);
    }
}

fn header(head: &str, name: &str) -> String {
    let line = head.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)));
    line.map_or(String::new(), |(_, value)| value.trim().to_owned())
}

/// The last message's text, with or without a picture beside it.
fn user_of(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let content = &value["messages"][0]["content"];
    content.as_str().or_else(|| content[0]["text"].as_str()).unwrap_or_default().to_owned()
}
