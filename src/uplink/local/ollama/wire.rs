//! The lines that Ollama answers with, from `/api/chat` and `/api/generate` alike.
//!
//! Owns their reading; never their translation.

use std::collections::VecDeque;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::uplink::local::LocalError;
use crate::uplink::local::error::Fault;
use crate::uplink::local::ndjson::Lines;

/// One line.
#[derive(Deserialize)]
struct Line {
    #[serde(default, deserialize_with = "or_default")]
    model: String,
    #[serde(default, deserialize_with = "or_default")]
    message: Said,
    #[serde(default, deserialize_with = "or_default")]
    response: String,
    #[serde(default, deserialize_with = "or_default")]
    thinking: String,
    #[serde(default, deserialize_with = "or_default")]
    done: bool,
    #[serde(default, deserialize_with = "or_default")]
    done_reason: String,
    #[serde(default, deserialize_with = "or_default")]
    prompt_eval_count: u64,
    #[serde(default, deserialize_with = "or_default")]
    eval_count: u64,
    #[serde(default)]
    error: Option<Fault>,
}

#[derive(Deserialize, Default)]
struct Said {
    #[serde(default, deserialize_with = "or_default")]
    content: String,
    #[serde(default, deserialize_with = "or_default")]
    thinking: String,
    #[serde(default, deserialize_with = "or_default")]
    tool_calls: Vec<ToolCall>,
}

/// A tool that the model wants to be called.
#[derive(Deserialize)]
pub(super) struct ToolCall {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) id: String,
    pub(super) function: Function,
}

/// The tool and what to call it with.
#[derive(Deserialize)]
pub(super) struct Function {
    pub(super) name: String,
    #[serde(default)]
    pub(super) arguments: Option<Box<RawValue>>,
}

/// A piece of an answer, whichever call it came from.
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) thinking: String,
    pub(super) tool_calls: Vec<ToolCall>,
    pub(super) end: Option<End>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    /// Whether the token limit cut it.
    pub(super) cut: bool,
    pub(super) prompt_tokens: u64,
    pub(super) answer_tokens: u64,
}

/// Puts pieces together from bytes, and knows how far the answer has come.
pub(super) struct Pieces {
    lines: Lines,
    pub(super) model: String,
    pub(super) started: bool,
    pub(super) finished: bool,
}

impl Pieces {
    pub(super) fn new(model: String) -> Self {
        Self { lines: Lines::default(), model, started: false, finished: false }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<VecDeque<Piece>, LocalError> {
        self.lines.push(bytes);
        let mut pieces = VecDeque::new();
        while !self.finished {
            let Some(line) = self.lines.next_line()? else { break };
            pieces.extend(self.read(&line)?);
        }
        Ok(pieces)
    }

    /// The body is over: a last line without its line end still counts, a missing `done` does not pass.
    pub(super) fn close(&mut self) -> Result<Option<Piece>, LocalError> {
        let rest = self.lines.rest();
        let piece = match rest.as_deref().map(|line| self.read(line)) {
            // Half a line is what a cut connection leaves.
            Some(Err(LocalError::Failed { status: 200 })) | None => None,
            Some(read) => read?,
        };
        if self.finished { Ok(piece) } else { Err(LocalError::Truncated) }
    }

    fn read(&mut self, line: &[u8]) -> Result<Option<Piece>, LocalError> {
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let line: Line = serde_json::from_slice(line).map_err(|_| LocalError::Failed { status: 200 })?;
        if let Some(fault) = line.error {
            return Err(fault.midway(&self.model));
        }
        if !line.model.is_empty() {
            self.model.clone_from(&line.model);
        }
        let piece = piece(line);
        self.finished = piece.end.is_some();
        self.started |= self.finished || piece.has_content();
        Ok(Some(piece))
    }
}

impl Piece {
    fn has_content(&self) -> bool {
        !(self.text.is_empty() && self.thinking.is_empty() && self.tool_calls.is_empty())
    }
}

fn piece(line: Line) -> Piece {
    let end = End {
        cut: line.done_reason == "length",
        prompt_tokens: line.prompt_eval_count,
        answer_tokens: line.eval_count,
    };
    Piece {
        text: line.message.content + &line.response,
        thinking: line.message.thinking + &line.thinking,
        tool_calls: line.message.tool_calls,
        end: line.done.then_some(end),
    }
}

/// `null` read as the default, since other programs that speak Ollama's API write it.
pub(super) fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}
