//! HTTP/1.1 over a UNIX socket, one connection a request, as plain as can be: also bytes that are no HTTP.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Longer than any answer of a test's daemon may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Head and body as text.
    pub fn text(&self) -> String {
        format!("{}\r\n\r\n{}", self.head, String::from_utf8_lossy(&self.body))
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        });
        line.unwrap_or_default()
    }
}

/// A connection on which this was said. It may be closed before all of it was written.
pub fn say(socket: &Path, text: &[u8]) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let _ = stream.write_all(text);
    Ok(stream)
}

/// One request and its answer.
pub fn ask(socket: &Path, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: hf\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    }
    let text = [(head + "\r\n").as_bytes(), body].concat();
    read(&mut say(socket, &text)?)
}

/// Reads one answer up to the connection's end.
pub fn read(stream: &mut impl Read) -> io::Result<Reply> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| io::Error::other("no HTTP answer"))
}

fn parse(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = &bytes[end + 4..];
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Some(Reply { status, body: if chunked { unchunk(body) } else { body.to_vec() }, head })
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(line) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(String::from_utf8_lossy(&rest[..line]).trim(), 16).unwrap_or(0);
        let (from, to) = (line + 2, line + 2 + size);
        if size == 0 || to > rest.len() {
            break;
        }
        out.extend_from_slice(&rest[from..to]);
        rest = rest.get(to + 2..).unwrap_or_default();
    }
    out
}

/// A chat with one user message.
pub fn chat(user: &str) -> Vec<u8> {
    json!({"model": "gpt-4o", "messages": [{"role": "user", "content": user}]}).to_string().into_bytes()
}

/// A chat with a picture of `bytes` bytes of text, as a camera sends it.
pub fn picture(user: &str, bytes: usize) -> Vec<u8> {
    let data = format!("data:image/png;base64,{}", "iVBORw0K".repeat(bytes / 8));
    let content = json!([{"type": "text", "text": user}, {"type": "image_url", "image_url": {"url": data}}]);
    json!({"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}).to_string().into_bytes()
}
