//! What the events of a stream add up to: has content begun, is it finished, was it an error.
//!
//! Looks at each event's few deciding fields; keeps the text only where a record needs it.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::uplink::usage::{self, Summary};

/// Text and tool calls of a streamed answer that are kept for the record; longer ones are cut there.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// What is to be done with an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// Pass it on.
    Keep,
    /// No event of this API. In the middle it is the client's to judge; at the end it is a torn one.
    Unreadable,
    /// The caller did not ask for it.
    Drop,
    /// The service reports a failure.
    Error,
    /// The end.
    Done,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(default, borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    content: Option<String>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow)]
    function_call: Option<&'a RawValue>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    refusal: Option<String>,
}

/// A stream so far.
#[derive(Debug, Default)]
pub struct Gist {
    wants_usage: bool,
    content: bool,
    finish_reason: Option<String>,
    summary: Summary,
    kept_bytes: usize,
    text: String,
    tool_calls: Vec<serde_json::Value>,
}

impl Gist {
    /// Nothing seen yet; `wants_usage` where the caller asked for the usage event.
    pub fn new(wants_usage: bool) -> Self {
        Self { wants_usage, ..Self::default() }
    }

    /// Whether anything a caller would show has come.
    pub fn has_content(&self) -> bool {
        self.content
    }

    /// Whether the service said that the answer is whole.
    pub fn is_finished(&self) -> bool {
        self.finish_reason.is_some()
    }

    /// Which model answered and what it took, where the service said so.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Takes in one event's data.
    pub fn see(&mut self, data: &[u8]) -> Seen {
        if data == b"[DONE]" {
            return Seen::Done;
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else { return Seen::Unreadable };
        if chunk.error.is_some() {
            return Seen::Error;
        }
        if chunk.usage.is_some() {
            self.summary = usage::read(data);
        }
        let choices = chunk.choices.unwrap_or_default();
        if choices.is_empty() && chunk.usage.is_some() && !self.wants_usage {
            return Seen::Drop;
        }
        for choice in choices {
            self.take(choice);
        }
        Seen::Keep
    }

    fn take(&mut self, choice: Choice<'_>) {
        if let Some(reason) = choice.finish_reason {
            self.content = true;
            self.finish_reason = Some(reason);
        }
        let text = choice.text.or_else(|| choice.delta.as_ref().and_then(|d| d.content.clone()));
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            self.content = true;
            if self.has_room(text.len()) {
                self.text.push_str(&text);
            }
        }
        let Some(delta) = choice.delta else { return };
        let thought = [&delta.reasoning_content, &delta.reasoning, &delta.refusal];
        self.content |= thought.iter().any(|t| t.as_ref().is_some_and(|t| !t.is_empty()));
        self.content |= delta.function_call.is_some();
        let Some(raw) = delta.tool_calls.map(RawValue::get) else { return };
        if let Ok(calls) = serde_json::from_str::<Vec<serde_json::Value>>(raw) {
            self.content |= !calls.is_empty();
            if self.has_room(raw.len()) {
                self.tool_calls.extend(calls);
            }
        }
    }

    /// Whether this much more is kept; once it is not, nothing more is.
    fn has_room(&mut self, bytes: usize) -> bool {
        self.kept_bytes = self.kept_bytes.saturating_add(bytes);
        self.kept_bytes <= KEPT_BYTES_MAX
    }

    /// The stream as one whole answer, for the record.
    pub fn to_completion(&self, id: &str, model: &str, created: u64) -> Bytes {
        let mut message = json!({"role": "assistant", "content": self.text});
        if !self.tool_calls.is_empty() {
            message["tool_calls"] = self.tool_calls.clone().into();
        }
        let finish = self.finish_reason.as_deref().unwrap_or("stop");
        let whole = json!({
            "id": format!("chatcmpl-{}", id.trim_start_matches("req_")),
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        });
        Bytes::from(whole.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_no_content_and_a_tool_call_is() {
        let mut gist = Gist::new(false);
        assert_eq!(gist.see(br#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#), Seen::Keep);
        assert!(!gist.has_content());
        gist.see(br#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a"}]}}]}"#);
        assert!(gist.has_content() && !gist.is_finished());
    }

    #[test]
    fn a_usage_event_passes_only_where_it_was_asked_for() {
        let usage = br#"{"choices":[],"usage":{"total_tokens":1}}"#;
        assert_eq!(Gist::new(false).see(usage), Seen::Drop);
        assert_eq!(Gist::new(true).see(usage), Seen::Keep);
    }

    #[test]
    fn errors_and_the_end_are_seen() {
        let mut gist = Gist::new(false);
        assert_eq!(gist.see(br#"{"error":"bare string"}"#), Seen::Error);
        assert_eq!(gist.see(b"[DONE]"), Seen::Done);
        assert_eq!(gist.see(b"not json"), Seen::Unreadable);
    }

    #[test]
    fn an_endless_answer_is_cut_and_not_kept_whole() {
        let mut gist = Gist::new(false);
        let word = json!({"choices": [{"delta": {"content": "x".repeat(1024)}}]}).to_string();
        let call = json!({"choices": [{"delta": {"tool_calls": [{"id": "x".repeat(1024)}]}}]}).to_string();
        for _ in 0..1000 {
            gist.see(word.as_bytes());
            gist.see(call.as_bytes());
        }
        assert!(gist.has_content() && gist.to_completion("req_1", "m", 5).len() < 2 * KEPT_BYTES_MAX);
    }

    #[test]
    fn adds_up_to_a_whole_answer() {
        let mut gist = Gist::new(false);
        gist.see(br#"{"choices":[{"delta":{"content":"he"}}]}"#);
        gist.see(br#"{"choices":[{"delta":{"content":"y"},"finish_reason":"stop"}]}"#);
        let whole: serde_json::Value = serde_json::from_slice(&gist.to_completion("req_1", "m", 5)).unwrap();
        assert_eq!(whole["choices"][0]["message"]["content"], "hey");
        assert_eq!(whole["id"], "chatcmpl-1");
    }
}
