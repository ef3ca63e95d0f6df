//! A small HTTP/1.1 client over a UNIX socket: one connection per request, nothing hidden.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::within;

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Ask {
    /// Any method, no body.
    pub fn new(method: Method, path: &str) -> Ask {
        Ask { method, path: path.to_owned(), headers: Vec::new(), body: Bytes::new() }
    }

    /// GET.
    pub fn get(path: &str) -> Ask {
        Ask::new(Method::GET, path)
    }

    /// POST of a body as it is.
    pub fn post(path: &str, body: impl Into<Bytes>) -> Ask {
        let ask = Ask { body: body.into(), ..Ask::new(Method::POST, path) };
        ask.header("content-type", "application/json")
    }

    /// PUT of a body as it is.
    pub fn put(path: &str, body: impl Into<Bytes>) -> Ask {
        Ask { body: body.into(), ..Ask::new(Method::PUT, path) }
    }

    /// POST of a body of another kind than JSON.
    pub fn form(path: &str, body: impl Into<Bytes>, kind: &str) -> Ask {
        Ask { body: body.into(), ..Ask::new(Method::POST, path) }.header("content-type", kind)
    }

    /// A chat with one user message.
    pub fn chat(user: &str) -> Ask {
        Ask::post("/v1/chat/completions", chat_body(user).to_string())
    }

    /// One more header.
    pub fn header(mut self, name: &str, value: &str) -> Ask {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `X-Holdfast-Offline`.
    pub fn offline(self, policy: &str) -> Ask {
        self.header("x-holdfast-offline", policy)
    }

    /// Sends it and reads the whole answer.
    pub async fn send_to(self, socket: &Path) -> io::Result<Reply> {
        collected(self.open(socket).await?).await
    }

    /// The same over TCP, as another source than over the socket; it must get some answer.
    pub async fn send_to_tcp(self, address: &str) -> Reply {
        let sent = async {
            let stream = TcpStream::connect(address).await?;
            collected(self.over(stream, address).await?).await
        };
        within("an answer over TCP", 60, sent).await.unwrap_or_else(|error| panic!("no answer over TCP: {error}"))
    }

    /// The same with a path of its own, for a task.
    pub async fn send_to_owned(self, socket: PathBuf) -> io::Result<Reply> {
        self.send_to(&socket).await
    }

    /// Sends it and returns as soon as the answer's head is there.
    pub async fn open(self, socket: &Path) -> io::Result<Response<Incoming>> {
        let stream = UnixStream::connect(socket).await?;
        self.over(stream, "hf").await
    }

    async fn over<S>(self, stream: S, host: &str) -> io::Result<Response<Incoming>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(self.method).uri(self.path).header("host", host);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(self.body)).map_err(io::Error::other)?;
        sender.send_request(request).await.map_err(io::Error::other)
    }
}

async fn collected(response: Response<Incoming>) -> io::Result<Reply> {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Reply { status, headers, body })
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// A header's text, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; fails the test if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// What the assistant said.
    pub fn content(&self) -> String {
        self.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
    }

    /// The stored request's id; fails the test if there is none.
    pub fn id(&self) -> String {
        let id = self.header("x-holdfast-id");
        assert!(id.starts_with("req_"), "no X-Holdfast-Id: {self:?}");
        id.to_owned()
    }

    /// Fails the test unless this is an error in OpenAI's shape with this status and code.
    pub fn assert_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        assert!(self.header("content-type").starts_with("application/json"), "{self:?}");
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{error}");
        assert!(error["type"].is_string() && error.get("param").is_some(), "{error}");
    }

    /// Fails the test unless `Retry-After` is an integer from 1 to 30.
    pub fn assert_retry_after(&self) {
        let seconds: u32 = self.header("retry-after").parse().unwrap_or_else(|_| panic!("no Retry-After: {self:?}"));
        assert!((1..=30).contains(&seconds), "Retry-After: {seconds}");
    }
}

/// The JSON of a chat with one user message.
pub fn chat_body(user: &str) -> Value {
    json!({"model": "gpt-4o", "messages": [{"role": "user", "content": user}]})
}

/// The `data:` lines of a server-sent stream.
pub fn events(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// The assistant's text in a streamed chat.
pub fn stream_text(text: &str) -> String {
    let chunks = events(text).into_iter().filter_map(|data| serde_json::from_str::<Value>(&data).ok());
    chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}
