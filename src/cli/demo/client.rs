//! The demo's own small HTTP client over the gateway's socket: one connection per request.
//!
//! Owns nothing but the exchange; what an answer means is the story's business.

use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// A whole answer.
pub(super) struct Reply {
    pub(super) status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    /// A header's text, or nothing.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON; `Null` if it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// What the assistant said, whole or streamed, or the error's code.
    pub(super) fn said(&self) -> String {
        let json = self.json();
        if let Some(content) = json["choices"][0]["message"]["content"].as_str() {
            return content.to_owned();
        }
        if let Some(code) = json["error"]["code"].as_str() {
            return code.to_owned();
        }
        let text = String::from_utf8_lossy(&self.body);
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let chunks = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
    }
}

/// GET.
pub(super) async fn get(socket: &Path, path: &str) -> anyhow::Result<Reply> {
    send(socket, Method::GET, path, &[], Bytes::new()).await
}

/// POST of JSON.
pub(super) async fn post(socket: &Path, path: &str, headers: &[(&str, &str)], body: &Value) -> anyhow::Result<Reply> {
    send(socket, Method::POST, path, headers, Bytes::from(body.to_string())).await
}

async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> anyhow::Result<Reply> {
    let stream = UnixStream::connect(socket).await.context("connecting to the gateway's socket")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "holdfast");
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(body))?).await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok(Reply { status, headers, body })
}
