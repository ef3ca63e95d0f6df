//! Reads the few fields of a request that decisions need, and changes bytes only where it must.
//!
//! Owns the meaning of `model`, `stream` and `stream_options` in a client's JSON; never builds a tree of it
//! and never re-serialises it, so an uplink sees the client's own bytes.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::body::Body;
use crate::body::scan::{Fault, Layout, Member};

/// What a request's body says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `model`, as the client wrote it, or what stands in its place.
    pub model: String,
    /// Bytes of `messages`, `prompt` or `input`.
    pub prompt_bytes: u64,
    /// `stream`.
    pub stream: bool,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
    /// `max_tokens` or `max_completion_tokens`.
    pub max_tokens: Option<u64>,
    /// `model`, as it stands in the body.
    written: String,
    /// `temperature` is given and exactly 0.
    pub temperature_is_zero: bool,
    /// `background`: its caller comes back for the answer.
    pub background: bool,
    /// `store`, where given: false wants nothing kept.
    pub store: Option<bool>,
    model_at: Range<u64>,
    stream_at: Option<Range<u64>>,
    stream_options_at: Option<Range<u64>>,
    background_at: Option<Range<u64>>,
}

/// Why a body is not a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Nothing came: HTTP takes a body without its length for none.
    #[error("the body is empty; send a JSON object, and its number of bytes in Content-Length")]
    Empty,
    /// An editor put a mark before it that says how it is encoded.
    #[error("the body begins with a byte order mark; send UTF-8 without one")]
    Marked,
    /// Not JSON at all, not an object, nested too deeply, or ambiguous.
    #[error(transparent)]
    Json(Fault),
    /// A field is absent or of another type.
    #[error("\"{field}\" must be {expected}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Byte order marks of UTF-8 and both of UTF-16, <https://www.unicode.org/faq/utf_bom.html#bom4>.
const MARKS: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"];

/// What is wrong with a body that is no JSON object, in the words that help most.
fn unread(body: &Body, fault: Fault) -> HeadError {
    let begin = body.in_one_piece().unwrap_or_default();
    match fault {
        _ if body.is_empty() => HeadError::Empty,
        _ if MARKS.iter().any(|mark| begin.starts_with(mark)) => HeadError::Marked,
        fault => HeadError::Json(fault),
    }
}

/// Reads the head of a request for `endpoint` and checks that what the endpoint needs is there: a request
/// that is stored now would otherwise become a dead letter hours later.
pub fn read(endpoint: &str, body: &Body) -> Result<Head, HeadError> {
    let layout = body.layout().as_ref().map_err(|fault| unread(body, *fault))?;
    match endpoint {
        "/v1/chat/completions" => require_list("messages", layout)?,
        "/v1/completions" => require("prompt", layout)?,
        "/v1/embeddings" => require("input", layout)?,
        // A prompt template may stand in its place.
        "/v1/responses" if given(layout, "prompt").is_none() => require("input", layout)?,
        _ => {}
    }
    let field = |field, expected| HeadError::Field { field, expected };
    let model_is = given(layout, "model").ok_or(field("model", "given: the model's name as a string"))?;
    let model: String = parse(model_is).ok_or(field("model", "a string of at most 1,000 bytes"))?;
    let stream = given(layout, "stream");
    let options = given(layout, "stream_options");
    let wanted = options.map(|v| parse::<StreamOptions>(v).ok_or(field("stream_options", "an object"))).transpose()?;
    let background = given(layout, "background");
    let most = given(layout, "max_completion_tokens").or(given(layout, "max_tokens"));
    let prompt = ["messages", "prompt", "input"].iter().find_map(|field| layout.get(field));
    Ok(Head {
        written: model.clone(),
        model,
        prompt_bytes: prompt.map_or(0, |member| member.at.end - member.at.start),
        stream: stream.map_or(Some(false), parse).ok_or(field("stream", "true or false"))?,
        include_usage: wanted.is_some_and(|o| o.include_usage),
        max_tokens: most.and_then(parse),
        temperature_is_zero: given(layout, "temperature").and_then(parse::<f64>) == Some(0.0),
        background: background.and_then(parse).unwrap_or(false),
        store: given(layout, "store").and_then(parse),
        model_at: model_is.at.clone(),
        stream_at: stream.map(|member| member.at.clone()),
        // Also where it is null: it must not stand there twice.
        stream_options_at: layout.get("stream_options").map(|member| member.at.clone()),
        background_at: background.map(|member| member.at.clone()),
    })
}

/// A member whose value is not `null`: only that begins with an n.
fn given<'a>(layout: &'a Layout, field: &str) -> Option<&'a Member> {
    layout.get(field).filter(|member| member.start.first() != Some(&b'n'))
}

fn parse<T: DeserializeOwned>(member: &Member) -> Option<T> {
    member.is_whole().then(|| serde_json::from_slice(&member.start).ok())?
}

fn require(field: &'static str, layout: &Layout) -> Result<(), HeadError> {
    given(layout, field).map(|_| ()).ok_or(HeadError::Field { field, expected: "given" })
}

fn require_list(field: &'static str, layout: &Layout) -> Result<(), HeadError> {
    let is_list = layout.get(field).is_some_and(|m| m.start.first() == Some(&b'[') && m.at.end - m.at.start > 2);
    is_list.then_some(()).ok_or(HeadError::Field { field, expected: "a list with at least one message" })
}

/// A body with a few places that read differently on the way out. Nothing is copied.
#[derive(Debug, Clone)]
pub struct Spliced {
    /// The bytes as they came.
    pub body: Body,
    /// What stands in place of which bytes, in order.
    pub edits: Vec<(Range<u64>, Bytes)>,
}

impl From<Body> for Spliced {
    fn from(body: Body) -> Self {
        Spliced { body, edits: Vec::new() }
    }
}

/// Asks a stream to say what it took, for a caller who did not: the event that says so goes no further than here.
pub fn with_usage(mut spliced: Spliced, head: &Head) -> Spliced {
    if !head.stream || head.include_usage {
        return spliced;
    }
    let wanted = Bytes::from_static(br#"{"include_usage":true}"#);
    let behind = head.stream_at.as_ref().map_or(head.model_at.end, |at| at.end);
    spliced.edits.push(head.stream_options_at.clone().map_or_else(
        || (behind..behind, Bytes::from_static(br#","stream_options":{"include_usage":true}"#)),
        |at| (at, wanted),
    ));
    spliced.edits.sort_by_key(|(at, _)| at.start);
    spliced
}

/// The body for one uplink: `model` renamed where it has another name there, and for stored requests the
/// stream switched off, because a record keeps one answer.
pub fn for_uplink(body: &Body, head: &Head, model: Option<&str>, keep_stream: bool) -> Spliced {
    let mut edits: Vec<(Range<u64>, Bytes)> = Vec::new();
    let model = model.unwrap_or(&head.model);
    if model != head.written {
        edits.push((head.model_at.clone(), serde_json::Value::from(model).to_string().into()));
    }
    if !keep_stream && head.stream {
        edits.extend(head.stream_at.clone().map(|at| (at, Bytes::from_static(b"false"))));
        // OpenAI refuses stream_options without a stream, and allows null.
        edits.extend(head.stream_options_at.clone().map(|at| (at, Bytes::from_static(b"null"))));
    }
    if !keep_stream && head.background {
        // The answer is to come whole, on this connection; who comes back for it comes to us.
        edits.extend(head.background_at.clone().map(|at| (at, Bytes::from_static(b"false"))));
    }
    edits.sort_by_key(|(at, _)| at.start);
    Spliced { body: body.clone(), edits }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    fn spliced(spliced: &Spliced) -> Vec<u8> {
        let (mut out, mut done) = (Vec::new(), 0);
        let body = spliced.body.in_one_piece().unwrap();
        for (at, text) in &spliced.edits {
            out.extend_from_slice(&body[done..at.start as usize]);
            out.extend_from_slice(text);
            done = at.end as usize;
        }
        out.extend_from_slice(&body[done..]);
        out
    }

    fn body(text: &str) -> Body {
        Bytes::copy_from_slice(text.as_bytes()).into()
    }

    #[test]
    fn leaves_every_other_byte_alone() {
        let body = body(
            r#"{ "x":1.50, "model" : "gpt-4o","messages":[{"a":"\u00e4"}] , "stream":true,"stream_options":{"include_usage":true}}"#,
        );
        let head = read(CHAT, &body).unwrap();
        assert!(head.stream && head.include_usage);
        let edited = for_uplink(&body, &head, Some("deep\"seek"), false);
        let expected = br#"{ "x":1.50, "model" : "deep\"seek","messages":[{"a":"\u00e4"}] , "stream":false,"stream_options":null}"#;
        assert_eq!(&spliced(&edited)[..], &expected[..]);
    }

    #[test]
    fn a_stream_is_asked_for_its_usage_where_its_caller_did_not() {
        let asked = |text: &str| {
            let body = body(text);
            let head = read(CHAT, &body).unwrap();
            let out = spliced(&with_usage(for_uplink(&body, &head, None, true), &head));
            serde_json::from_slice::<serde_json::Value>(&out).unwrap()["stream_options"]["include_usage"].clone()
        };
        assert_eq!(asked(r#"{"stream":true,"messages":[1],"model":"m"}"#), true);
        assert_eq!(asked(r#"{"stream":true,"stream_options":null,"messages":[1],"model":"m"}"#), true);
        assert_eq!(
            asked(r#"{"stream":true,"stream_options":{"include_usage":false},"messages":[1],"model":"m"}"#),
            true
        );
        assert!(asked(r#"{"stream":false,"messages":[1],"model":"m"}"#).is_null());
    }

    #[test]
    fn a_background_response_is_asked_for_whole() {
        let body = body(r#"{"model":"m","background": true ,"store":true,"input":"x"}"#);
        let head = read("/v1/responses", &body).unwrap();
        assert_eq!((head.background, head.store), (true, Some(true)));
        let edited = spliced(&for_uplink(&body, &head, None, false));
        assert_eq!(&edited[..], br#"{"model":"m","background": false ,"store":true,"input":"x"}"#);
    }

    #[test]
    fn without_a_change_nothing_is_edited() {
        let body = body(r#"{"model":"m","messages":[1],"stream":true}"#);
        let head = read(CHAT, &body).unwrap();
        assert!(for_uplink(&body, &head, None, true).edits.is_empty());
    }

    #[test]
    fn says_what_is_wrong() {
        let error = |text: &str| read(CHAT, &body(text)).unwrap_err().to_string();
        assert!(error("{\"model\":").contains("line 1"));
        assert!(error("[1]").contains("JSON object"));
        assert!(error(r#"{"model":"m"}"#).contains("\"messages\" must be a list"));
        assert!(error(r#"{"model":7,"messages":[1]}"#).contains("\"model\" must be a string"));
        assert!(error(r#"{"model":"m","messages":[1],"stream":"yes"}"#).contains("true or false"));
        assert!(error(r#"{"messages":[1]}"#).contains("\"model\""));
        assert!(error(r#"{"model":"a","messages":[1],"model":"b"}"#).contains("twice"));
    }

    #[test]
    fn null_is_the_same_as_left_out() {
        let head = read(CHAT, &body(r#"{"model":"m","messages":[1],"stream":null,"stream_options":null}"#)).unwrap();
        assert!(!head.stream && !head.include_usage);
    }

    #[test]
    fn deep_nesting_is_refused_in_words() {
        let deep = format!(r#"{{"model":"m","messages":[1],"x":{}1{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        assert!(read(CHAT, &body(&deep)).unwrap_err().to_string().contains("nested"));
    }
}
