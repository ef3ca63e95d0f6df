//! A small HTTP/1.1 client of the daemon's UNIX socket.
//!
//! One connection per request; knows exit codes, and no command.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::http::response::Parts;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::exit::{FAILED, Failure, INTERNAL, IO, NO_DAEMON, PERMISSION};
use crate::clock;

/// The largest answer read into memory: a stored picture and two answers fit many times.
const BODY_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The longest line of a stream.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long the gateway may take over a question about itself; it answers those from memory or one small read.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where the daemon is.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    verbose: bool,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// An answer that is still coming.
#[derive(Debug)]
pub struct Stream {
    /// The HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
    buffer: BytesMut,
}

impl Client {
    /// A client of the daemon at `socket`; connects with each request.
    pub fn new(socket: PathBuf) -> Client {
        Client { socket, verbose: false }
    }

    /// The same, saying on standard error what it asked and what came.
    #[must_use]
    pub fn verbose(self, verbose: bool) -> Client {
        Client { verbose, ..self }
    }

    /// Where it connects to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks the gateway about itself: a short answer, soon, and JSON.
    pub async fn call(&self, method: Method, path: &str) -> Result<Value, Failure> {
        self.answer(method, path).await?.json()
    }

    /// The same, as it came.
    pub async fn answer(&self, method: Method, path: &str) -> Result<Answer, Failure> {
        let work = async { self.stream(method, path, &[], Bytes::new()).await?.whole().await };
        self.within(PATIENCE, work).await?.success()
    }

    /// Waits for the daemon no longer than this: one that hangs still takes connections.
    pub async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let late = |_| Failure::new(NO_DAEMON, format!("the daemon at {} does not answer", self.socket.display()));
        tokio::time::timeout(limit, work).await.map_err(late)?
    }

    /// Sends one request; the answer's body is read by the caller. `headers` have lower-case names.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Stream, Failure> {
        let asked = self.verbose.then(|| (clock::now(), format!("{method} {path} at {}", self.socket.display())));
        let connection = UnixStream::connect(&self.socket).await.map_err(|error| self.refused(&error))?;
        let broken = |error: hyper::Error| {
            Failure::new(NO_DAEMON, format!("the daemon at {} broke off: {error}", self.socket.display()))
        };
        let (mut sender, driver) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.map_err(broken)?;
        // Its error is the request's error too, and is reported there.
        tokio::spawn(driver);
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| Failure::new(INTERNAL, error.to_string()))?;
        let (parts, body) = Response::into_parts(sender.send_request(request).await.map_err(broken)?);
        if let Some((began, asked)) = asked {
            eprintln!("{}", told(&asked, &parts, clock::now().duration_since(began)));
        }
        Ok(Stream { status: parts.status.as_u16(), headers: parts.headers, body, buffer: BytesMut::new() })
    }

    fn refused(&self, error: &std::io::Error) -> Failure {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::PermissionDenied => Failure::new(
                PERMISSION,
                format!("you may not use {socket}; join the group that owns it, or try again as root"),
            ),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Failure::new(
                NO_DAEMON,
                format!(
                    "no daemon answers at {socket}; start one with \"systemctl start holdfast\" or \"holdfast run\", \
                     or name its socket with --socket"
                ),
            ),
            _ => Failure::new(NO_DAEMON, format!("cannot connect to {socket}: {error}; is it the daemon's socket?")),
        }
    }
}

/// What came, by its head: nothing that a caller wrote.
fn told(asked: &str, head: &Parts, took: Duration) -> String {
    let mut text = format!("{asked}: {} in {} ms", head.status.as_u16(), took.as_millis());
    for name in ["x-request-id", "x-holdfast-route", "x-holdfast-state", "retry-after"] {
        if let Some(value) = head.headers.get(name).and_then(|value| value.to_str().ok()) {
            text += &format!(", {name} {value}");
        }
    }
    text
}

impl Stream {
    /// Reads what is left.
    pub async fn whole(self) -> Result<Answer, Failure> {
        let body = Limited::new(self.body, BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Failure::new(IO, format!("the answer broke off: {error}")))?.to_bytes();
        Ok(Answer { status: self.status, headers: self.headers, body })
    }

    /// The next line without its end; `None` at the end of the answer.
    pub async fn line(&mut self) -> Result<Option<String>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(Failure::new(
                    FAILED,
                    format!("a line of the answer is longer than {LINE_BYTES_MAX} bytes"),
                ));
            }
            match self.body.frame().await {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Ok(Some(String::from_utf8_lossy(&self.buffer.split()).into_owned())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(Failure::new(FAILED, format!("the answer broke off: {error}"))),
            }
        }
    }
}

impl Answer {
    /// The answer itself, or the gateway's refusal in its own words.
    pub fn success(self) -> Result<Answer, Failure> {
        if (200..300).contains(&self.status) { Ok(self) } else { Err(refusal(self.status, &self.body)) }
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value, Failure> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        let strange =
            |error| Failure::new(FAILED, format!("the daemon's answer is no JSON ({error}); is it a holdfast?"));
        serde_json::from_slice(&self.body).map_err(strange)
    }

    /// A header's text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        header(&self.headers, name)
    }
}

/// A header's text; empty where there is none.
pub fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// What an error answer means for the exit code, in the gateway's own words where it has any.
pub fn refusal(status: u16, body: &[u8]) -> Failure {
    let json: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let field = |pointer| json.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    let code = if matches!(status, 401 | 403) { PERMISSION } else { FAILED };
    let words = field("/error/message").or_else(|| field("/error")).unwrap_or("the gateway refused without a reason");
    let kind = field("/error/code").map(|code| format!(", {code}")).unwrap_or_default();
    Failure::new(code, format!("{words} (status {status}{kind})"))
}

/// `text` as one part of a path or query.
pub fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    #[test]
    fn verbose_says_how_it_went_and_nothing_of_what_was_asked() {
        let answer =
            Response::builder().status(503).header("retry-after", "5").header("x-other", "words").body(()).unwrap();
        let text = told("GET /health at /run/s", &answer.into_parts().0, Duration::from_millis(3));
        assert_eq!(text, "GET /health at /run/s: 503 in 3 ms, retry-after 5");
    }

    /// A daemon that answers one connection with `reply`.
    fn once(reply: &'static str) -> (tempfile::TempDir, Client) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = [0; 4096];
            let _ = stream.read(&mut seen).await.unwrap();
            stream.write_all(reply.as_bytes()).await.unwrap();
        });
        (folder, Client::new(path))
    }

    #[tokio::test]
    async fn no_daemon_is_exit_69_with_a_hint() {
        let failure = Client::new("/nonexistent/s".into()).call(Method::GET, "/").await.unwrap_err();
        assert_eq!(failure.code, NO_DAEMON);
        assert!(failure.message.contains("holdfast run"), "{}", failure.message);
    }

    #[tokio::test]
    async fn an_answer_is_read_whole() {
        let (_folder, client) = once("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"count\":3}");
        assert_eq!(client.call(Method::GET, "/x").await.unwrap()["count"], 3);
    }

    #[tokio::test]
    async fn a_refusal_keeps_the_gateways_words() {
        let (_folder, client) = once(
            "HTTP/1.1 404 Not Found\r\ncontent-length: 42\r\n\r\n{\"error\":{\"message\":\"no\",\"code\":\"gone\"}}  ",
        );
        let failure = client.call(Method::GET, "/x").await.unwrap_err();
        assert_eq!(failure, Failure::new(FAILED, "no (status 404, gone)"));
    }

    #[tokio::test]
    async fn a_stream_is_read_line_by_line() {
        let reply = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\ndata: a\r\n\n: hf\ndata: b";
        let (_folder, client) = once(reply);
        let mut stream = client.stream(Method::GET, "/x", &[], Bytes::new()).await.unwrap();
        let mut lines = Vec::new();
        while let Some(line) = stream.line().await.unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["data: a", "", ": hf", "data: b"]);
    }

    #[test]
    fn refusals_become_exit_codes() {
        assert_eq!(refusal(403, b"").code, PERMISSION);
        assert_eq!(refusal(503, b"<html>").message, "the gateway refused without a reason (status 503)");
        assert_eq!(encoded("link:a b/é"), "link%3Aa%20b%2F%C3%A9");
    }
}
