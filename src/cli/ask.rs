//! `holdfast ask`: one request from a shell.
//!
//! Standard output carries the answer, or the ticket; everything about it goes to standard error.

mod task;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::client::{Answer, Client, Stream, header, refusal};
use super::exit::{Done, FAILED, Failure, INTERNAL, IO, STORED, USAGE};
use super::out::{Out, text_at};
use crate::control::types::{Policy, Priority};

/// How much longer than it was told to wait the tool waits for the daemon: for a last commit on slow flash.
const OVER_WAIT: Duration = Duration::from_secs(10);

/// A picture larger than this fills a spool and a context window for nothing.
const IMAGE_BYTES_MAX: u64 = 10 * 1024 * 1024;

/// A text larger than this is no question: a model would read none of it.
const TEXT_BYTES_MAX: u64 = 1024 * 1024;

/// `ask`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The question; for a task its first argument; - reads it from standard input
    #[arg(required_unless_present = "task")]
    text: Option<String>,
    /// A picture that goes with it: PNG, JPEG, GIF or WebP, at most 10 MiB; several for a task
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// The model's name
    #[arg(long, default_value = "gpt-4o")]
    model: String,
    /// A canned prompt's number or name, instead of a question
    #[arg(long, value_name = "N", conflicts_with_all = ["model", "stream"])]
    task: Option<String>,
    /// An argument of the task, as name=value
    #[arg(long = "arg", value_name = "NAME=VALUE", requires = "task")]
    named: Vec<String>,
    /// How urgent it is: critical, high, normal or low
    #[arg(long)]
    priority: Option<Priority>,
    /// What to do while no uplink is available: both, local, queue or fail
    #[arg(long, value_name = "POLICY")]
    offline: Option<Policy>,
    /// Wait at most this many seconds, then take a ticket
    #[arg(long, value_name = "SECONDS", conflicts_with = "stream")]
    wait: Option<u32>,
    /// Print the answer as it comes
    #[arg(long)]
    stream: bool,
}

/// Asks and prints.
pub async fn run(mut args: Args, client: &Client, out: &Out) -> Done {
    if args.text.as_deref() == Some("-") {
        args.text = Some(piped(std::io::stdin())?);
    }
    let images = args.image.iter().map(|path| data_url(path)).collect::<Result<Vec<_>, _>>()?;
    if let Some(task) = &args.task {
        return task::run(task, &args, &images, client, out).await;
    }
    let body = body(&args, &images).to_string();
    let answer = sent(client, &args, "/v1/chat/completions", Bytes::from(body)).await?;
    let streamed = header(&answer.headers, "content-type").starts_with("text/event-stream");
    if answer.status == 200 && streamed { print_stream(answer, out).await } else { print(&answer.whole().await?, out) }
}

/// What another program writes, without the line's end behind it.
fn piped(input: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = input.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::new(IO, format!("standard input cannot be read: {error}")))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(Failure::new(USAGE, "standard input holds more than 1 MiB; that is no question"));
    }
    let text = String::from_utf8(bytes).map_err(|_| Failure::new(USAGE, "standard input is not UTF-8 text"))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks; who said how long to wait waits no longer for a daemon that hangs either.
async fn sent(client: &Client, args: &Args, path: &str, body: Bytes) -> Result<Stream, Failure> {
    let headers = headers(args);
    let asking = client.stream(Method::POST, path, &headers, body);
    match args.wait {
        Some(seconds) => client.within(Duration::from_secs(seconds.into()) + OVER_WAIT, asking).await,
        None => asking.await,
    }
}

fn body(args: &Args, images: &[String]) -> Value {
    let picture = |url: &String| json!({ "type": "image_url", "image_url": { "url": url } });
    let content = match images {
        [] => json!(args.text),
        urls => std::iter::once(json!({ "type": "text", "text": args.text })).chain(urls.iter().map(picture)).collect(),
    };
    let mut body = json!({ "model": args.model, "messages": [{ "role": "user", "content": content }] });
    if args.stream {
        body["stream"] = json!(true);
    }
    body
}

fn headers(args: &Args) -> Vec<(&'static str, String)> {
    let priority = args.priority.map(|priority| ("x-holdfast-priority", priority.to_string()));
    let offline = args.offline.map(|policy| ("x-holdfast-offline", policy.to_string()));
    let wait = args.wait.map(|seconds| ("prefer", format!("wait={seconds}")));
    let fixed = ("content-type", "application/json".to_owned());
    std::iter::once(fixed).chain([priority, offline, wait].into_iter().flatten()).collect()
}

fn print(answer: &Answer, out: &Out) -> Done {
    let json = answer.json().unwrap_or(Value::Null);
    let stored = answer.status == 202 || text_at(&json, "/error/code") == "request_queued";
    if !stored && answer.status != 200 {
        if out.json {
            out.line(&String::from_utf8_lossy(&answer.body))?;
        }
        return Err(refusal(answer.status, &answer.body));
    }
    let ticket = ticket(answer, &json);
    if out.json {
        out.line(&String::from_utf8_lossy(&answer.body))?;
    } else if stored {
        out.line(&ticket)?;
    } else {
        match json.pointer("/choices/0/message/content").and_then(Value::as_str) {
            Some(text) => out.line(text)?,
            None => out.line(&String::from_utf8_lossy(&answer.body))?,
        }
    }
    if stored {
        out.note(&format!("stored, no answer yet; look with: holdfast queue show {ticket}"));
        return Ok(STORED);
    }
    about(answer.header("x-holdfast-route"), answer.header("x-holdfast-id"), answer.header("x-holdfast-state"), out);
    Ok(0)
}

/// The one line about an answer.
fn about(route: &str, id: &str, state: &str, out: &Out) {
    let route = if route.is_empty() { "unknown" } else { route };
    let id = if id.is_empty() { String::new() } else { format!(", id {id}") };
    let later = if state == "queued" { ", stored too: an uplink's answer follows" } else { "" };
    out.note(&format!("route {route}{id}{later}"));
}

/// The stored request's id, from whichever place names it.
fn ticket(answer: &Answer, json: &Value) -> String {
    let location = answer.header("location").rsplit('/').next().unwrap_or("");
    let places = [answer.header("x-holdfast-id").to_owned(), text_at(json, "/id"), location.to_owned()];
    places.into_iter().find(|id| !id.is_empty()).unwrap_or_default()
}

async fn print_stream(mut stream: Stream, out: &Out) -> Done {
    let about_it = ["x-holdfast-route", "x-holdfast-id", "x-holdfast-state"];
    let [route, id, state] = about_it.map(|name| header(&stream.headers, name).to_owned());
    let mut written = false;
    let end = loop {
        let Some(line) = stream.line().await? else {
            break Err(Failure::new(FAILED, "the answer ended before it was complete; ask again"));
        };
        match piece(&line) {
            Piece::Nothing => {}
            Piece::Done => break Ok(0),
            Piece::Failed(words) => break Err(Failure::new(FAILED, words)),
            Piece::Data(data) if out.json => out.line(data)?,
            Piece::Data(data) => {
                let chunk: Value = serde_json::from_str(data).unwrap_or(Value::Null);
                let delta = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or("");
                written |= !delta.is_empty();
                out.piece(delta)?;
            }
        }
    };
    if written {
        out.piece("\n")?;
    }
    about(&route, &id, &state, out);
    end
}

#[derive(Debug, PartialEq, Eq)]
enum Piece<'l> {
    Nothing,
    Data(&'l str),
    Done,
    Failed(String),
}

/// What one line of a server-sent stream says.
fn piece(line: &str) -> Piece<'_> {
    let Some(data) = line.strip_prefix("data:").map(str::trim) else { return Piece::Nothing };
    if data == "[DONE]" {
        return Piece::Done;
    }
    let error = serde_json::from_str::<Value>(data).ok().filter(|chunk| chunk.get("error").is_some());
    error.map_or(Piece::Data(data), |chunk| {
        let words = text_at(&chunk, "/error/message");
        Piece::Failed(if words.is_empty() { "the answer broke off".to_owned() } else { words })
    })
}

fn data_url(path: &Path) -> Result<String, Failure> {
    let unreadable = |error: std::io::Error| Failure::new(IO, format!("{} cannot be read: {error}", path.display()));
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > IMAGE_BYTES_MAX {
        return Err(Failure::new(FAILED, format!("{} is larger than 10 MiB; scale it down", path.display())));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let hint = || Failure::new(FAILED, format!("{} is neither PNG, JPEG, GIF nor WebP", path.display()));
    let kind = picture_kind(&bytes).ok_or_else(hint)?;
    let data = base64(&bytes).ok_or_else(|| Failure::new(INTERNAL, "a picture could not be encoded"))?;
    Ok(format!("data:image/{kind};base64,{data}"))
}

/// By its first bytes: a file's name may lie, and some cameras give none.
fn picture_kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("png"),
        [0xff, 0xd8, 0xff, ..] => Some("jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("webp"),
        _ => None,
    }
}

/// RFC 4648 with padding.
fn base64(bytes: &[u8]) -> Option<String> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            let present = digit <= group.len();
            text.push(if present { char::from(*DIGITS.get(index as usize)?) } else { '=' });
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Line::parse_from([&["ask"], words].concat()).args
    }

    #[test]
    fn a_question_may_come_from_another_program() {
        assert_eq!(args(&["-"]).text.as_deref(), Some("-"));
        assert_eq!(piped(&b"two\nlines\r\n"[..]).unwrap(), "two\nlines");
        let refused = |bytes: &[u8]| piped(bytes).unwrap_err().code;
        assert_eq!(refused(&vec![b'a'; TEXT_BYTES_MAX as usize + 1]), USAGE);
        assert_eq!(refused(b"\xff"), USAGE);
    }

    #[test]
    fn a_question_becomes_a_chat_request() {
        let body = body(&args(&["hello"]), &[]);
        assert_eq!(body.to_string(), r#"{"messages":[{"content":"hello","role":"user"}],"model":"gpt-4o"}"#);
        let body = super::body(&args(&["what?", "--stream"]), &["data:x".to_owned()]);
        assert_eq!(body["messages"][0]["content"][1]["image_url"]["url"], "data:x");
        assert_eq!(body["stream"], true);
    }

    #[test]
    fn wishes_travel_as_headers() {
        let headers = headers(&args(&["x", "--priority", "high", "--offline", "queue", "--wait", "3"]));
        let expected = [
            ("content-type", "application/json"),
            ("x-holdfast-priority", "high"),
            ("x-holdfast-offline", "queue"),
            ("prefer", "wait=3"),
        ];
        assert_eq!(headers, expected.map(|(name, value)| (name, value.to_owned())));
        assert!(Line::try_parse_from(["ask", "x", "--priority", "urgent"]).is_err());
    }

    #[test]
    fn lines_of_a_stream_are_told_apart() {
        assert_eq!(piece(": hf"), Piece::Nothing);
        assert_eq!(piece("data: [DONE]"), Piece::Done);
        assert_eq!(piece("data: {\"a\":1}"), Piece::Data("{\"a\":1}"));
        assert_eq!(piece("data: {\"error\":{\"message\":\"gone\"}}"), Piece::Failed("gone".to_owned()));
    }

    #[test]
    fn a_queued_answer_is_a_ticket() {
        let mut answer = Answer {
            status: 503,
            headers: hyper::HeaderMap::new(),
            body: Bytes::from_static(b"{\"error\":{\"code\":\"request_queued\"}}"),
        };
        answer.headers.insert("location", "/v1/chat/completions/req_7".parse().unwrap());
        assert_eq!(ticket(&answer, &Value::Null), "req_7");
        assert_eq!(print(&answer, &Out::plain()), Ok(STORED));
        answer.body = Bytes::from_static(b"{\"error\":{\"code\":\"queue_full\",\"message\":\"full\"}}");
        assert_eq!(print(&answer, &Out::plain()).unwrap_err().message, "full (status 503, queue_full)");
    }

    #[test]
    fn pictures_are_known_by_their_bytes() {
        assert_eq!(picture_kind(b"\x89PNG\r\n"), Some("png"));
        assert_eq!(picture_kind(b"RIFF1234WEBPVP8"), Some("webp"));
        assert_eq!(picture_kind(b"<svg>"), None);
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()).as_deref(), Some(text));
        }
    }
}
