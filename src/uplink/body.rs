//! Reads the few fields of a request that decisions need, and changes bytes only where it must.
//!
//! Owns the positions of `model`, `stream` and `stream_options` in a client's JSON; never builds a tree of it
//! and never re-serialises it, so an uplink sees the client's own bytes.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// What a request's body says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `model`, as the client wrote it.
    pub model: String,
    /// `stream`.
    pub stream: bool,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
    /// `max_tokens` or `max_completion_tokens`.
    pub max_tokens: Option<u64>,
    model_at: Range<usize>,
    stream_at: Option<Range<usize>>,
    stream_options_at: Option<Range<usize>>,
}

/// Why a body is not a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not JSON at all, or not an object.
    #[error("the body is not a JSON object (line {line}, column {column}); send valid JSON")]
    Json {
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
    },
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
struct Raw<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Where a borrowed value stands in the body.
fn position(body: &[u8], value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr() as usize - body.as_ptr() as usize;
    start..start + value.get().len()
}

fn json_error(error: &serde_json::Error) -> HeadError {
    HeadError::Json { line: error.line(), column: error.column() }
}

/// Reads the head of a request for `endpoint` and checks that what the endpoint needs is there: a request
/// that is stored now would otherwise become a dead letter hours later.
pub fn read(endpoint: &str, body: &Bytes) -> Result<Head, HeadError> {
    let raw: Raw<'_> = serde_json::from_slice(body).map_err(|e| json_error(&e))?;
    match endpoint {
        "/v1/chat/completions" => require_list("messages", raw.messages)?,
        "/v1/completions" => require("prompt", raw.prompt)?,
        "/v1/embeddings" => require("input", raw.input)?,
        _ => {}
    }
    let field = |field, expected| HeadError::Field { field, expected };
    let model_raw = raw.model.ok_or(field("model", "given: the model's name as a string"))?;
    let model: String = parse(model_raw).ok_or(field("model", "a string"))?;
    let stream = raw.stream.map_or(Some(false), parse).ok_or(field("stream", "true or false"))?;
    let options: Option<StreamOptions> =
        raw.stream_options.map(|v| parse(v).ok_or(field("stream_options", "an object"))).transpose()?;
    let max_tokens = raw.max_completion_tokens.or(raw.max_tokens).and_then(parse);
    Ok(Head {
        model,
        stream,
        include_usage: options.is_some_and(|o| o.include_usage),
        max_tokens,
        model_at: position(body, model_raw),
        stream_at: raw.stream.map(|v| position(body, v)),
        stream_options_at: raw.stream_options.map(|v| position(body, v)),
    })
}

fn parse<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    serde_json::from_str(value.get()).ok()
}

fn require(field: &'static str, value: Option<&RawValue>) -> Result<(), HeadError> {
    value.map(|_| ()).ok_or(HeadError::Field { field, expected: "given" })
}

fn require_list(field: &'static str, value: Option<&RawValue>) -> Result<(), HeadError> {
    let is_list = value.is_some_and(|v| v.get().starts_with('[') && v.get().len() > 2);
    is_list.then_some(()).ok_or(HeadError::Field { field, expected: "a list with at least one message" })
}

/// The body for one uplink: `model` renamed where it has another name there, and for stored requests the
/// stream switched off, because a record keeps one answer. Without a change it is the same memory.
pub fn for_uplink(body: &Bytes, head: &Head, model: Option<&str>, keep_stream: bool) -> Bytes {
    let mut edits: Vec<(&Range<usize>, String)> = Vec::new();
    if let Some(model) = model {
        edits.push((&head.model_at, serde_json::Value::from(model).to_string()));
    }
    if !keep_stream && head.stream {
        edits.extend(head.stream_at.as_ref().map(|at| (at, "false".to_owned())));
        // OpenAI refuses stream_options without a stream, and allows null.
        edits.extend(head.stream_options_at.as_ref().map(|at| (at, "null".to_owned())));
    }
    if edits.is_empty() { body.clone() } else { splice(body, edits) }
}

fn splice(body: &Bytes, mut edits: Vec<(&Range<usize>, String)>) -> Bytes {
    edits.sort_by_key(|(at, _)| at.start);
    let mut out = Vec::with_capacity(body.len() + 64);
    let mut done = 0;
    for (at, text) in edits {
        out.extend_from_slice(&body[done..at.start]);
        out.extend_from_slice(text.as_bytes());
        done = at.end;
    }
    out.extend_from_slice(&body[done..]);
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    #[test]
    fn leaves_every_other_byte_alone() {
        let body = Bytes::from_static(br#"{ "x":1.50, "model" : "gpt-4o","messages":[{"a":"\u00e4"}] , "stream":true,"stream_options":{"include_usage":true}}"#);
        let head = read(CHAT, &body).unwrap();
        assert!(head.stream && head.include_usage);
        let edited = for_uplink(&body, &head, Some("deep\"seek"), false);
        let expected = br#"{ "x":1.50, "model" : "deep\"seek","messages":[{"a":"\u00e4"}] , "stream":false,"stream_options":null}"#;
        assert_eq!(&edited[..], &expected[..]);
    }

    #[test]
    fn without_a_change_it_is_the_same_memory() {
        let body = Bytes::from_static(br#"{"model":"m","messages":[1],"stream":true}"#);
        let head = read(CHAT, &body).unwrap();
        assert_eq!(for_uplink(&body, &head, None, true).as_ptr(), body.as_ptr());
    }

    #[test]
    fn says_what_is_wrong() {
        let error = |text: &'static str| read(CHAT, &Bytes::from_static(text.as_bytes())).unwrap_err().to_string();
        assert!(error("{\"model\":").contains("line 1"));
        assert!(error("[1]").contains("JSON object"));
        assert!(error(r#"{"model":"m"}"#).contains("\"messages\" must be a list"));
        assert!(error(r#"{"model":7,"messages":[1]}"#).contains("\"model\" must be a string"));
        assert!(error(r#"{"model":"m","messages":[1],"stream":"yes"}"#).contains("true or false"));
        assert!(error(r#"{"messages":[1]}"#).contains("\"model\""));
    }

    #[test]
    fn deep_nesting_is_no_stack_overflow() {
        let deep = format!(r#"{{"model":"m","messages":[1],"x":{}1{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        assert!(read(CHAT, &Bytes::from(deep)).is_ok());
    }
}
