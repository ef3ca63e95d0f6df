//! An OpenAI-compatible model server: the request goes on byte for byte, apart from `model`.
//!
//! Owns the splice and the reading of what comes back; never reshapes an answer: its events are only re-framed.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::dialect::Glance;
use super::error::Fault;
use super::flow::{Events, Reading, pump, to_content};
use super::sse;
use super::transport::Transport;
use super::{Content, Endpoint, LocalAnswer, LocalError, Prepared, Reply, Turn};

/// Events without content that may come before the first one with it; real servers send one.
const EMPTY_EVENTS_MAX: usize = 64;

/// The request with the model replaced.
pub(super) fn prepare(
    endpoint: Endpoint,
    model: String,
    body: &Bytes,
    glance: &Glance<'_>,
) -> Result<Prepared, LocalError> {
    let body = with_model(body, glance.raw_model(), &model)?;
    let reply = Reply::Same { stream: glance.stream == Some(true) };
    Ok(Prepared { path: endpoint.path(), body, model, reply })
}

pub(super) async fn answer(
    transport: &Transport,
    request: Prepared,
    stream: bool,
    turn: Turn,
) -> Result<LocalAnswer, LocalError> {
    let Prepared { path, body, model, .. } = request;
    if !stream {
        let mut source = transport.post(path, body, &model, turn.limits.in_one_piece()).await?;
        return whole(source.whole().await?, model);
    }
    let mut source = transport.post(path, body, &model, turn.limits).await?;
    let mut stream = Stream::new(model);
    to_content(&mut source, &mut stream).await?;
    let model = stream.model.clone();
    Ok(LocalAnswer { model, content: Content::Stream(pump(source, stream, turn.permit)) })
}

/// The body with `model` in the place of the client's; an empty name leaves the body alone.
fn with_model(body: &Bytes, at: Option<&RawValue>, model: &str) -> Result<Bytes, LocalError> {
    if model.is_empty() {
        return Ok(body.clone());
    }
    let name = serde_json::to_string(model).map_err(|_| LocalError::invalid("the model's name is not text"))?;
    let (start, end, insert) = match at {
        Some(raw) => {
            // `raw` borrows from `body`, so the difference of the addresses is its position.
            let start = raw.get().as_ptr() as usize - body.as_ptr() as usize;
            (start, start + raw.get().len(), name)
        }
        None => missing_model(body, &name),
    };
    let mut spliced = BytesMut::with_capacity(body.len() + insert.len());
    spliced.extend_from_slice(&body[..start]);
    spliced.extend_from_slice(insert.as_bytes());
    spliced.extend_from_slice(&body[end..]);
    Ok(spliced.freeze())
}

/// Where to put a `model` that the client left out: right behind the opening brace.
fn missing_model(body: &[u8], name: &str) -> (usize, usize, String) {
    let start = body.iter().position(|b| *b == b'{').map_or(0, |at| at + 1);
    let empty = body[start..].trim_ascii_start().first() == Some(&b'}');
    let comma = if empty { "" } else { "," };
    (start, start, format!("\"model\":{name}{comma}"))
}

/// What must be known of an answer or of a chunk.
#[derive(Deserialize)]
struct Peek {
    model: Option<String>,
    error: Option<Fault>,
    choices: Option<Vec<Choice>>,
    data: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<IgnoredAny>,
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    /// vLLM's name for it; some versions send both.
    reasoning: Option<String>,
    tool_calls: Option<Vec<IgnoredAny>>,
}

impl Choice {
    fn has_content(&self) -> bool {
        let full = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
        let delta = self.delta.as_ref();
        let said = delta.is_some_and(|d| full(&d.content) || full(&d.reasoning_content) || full(&d.reasoning));
        let called = delta.and_then(|d| d.tool_calls.as_ref()).is_some_and(|c| !c.is_empty());
        said || called || full(&self.text) || self.finish_reason.is_some()
    }
}

fn whole(body: Bytes, asked: String) -> Result<LocalAnswer, LocalError> {
    let peek: Peek = serde_json::from_slice(&body).map_err(|e| not_json(&e))?;
    if let Some(fault) = peek.error {
        return Err(fault.midway(&asked));
    }
    let says_something = |choice: &Choice| choice.message.is_some() || choice.text.is_some();
    let is_answer = peek.choices.is_some_and(|choices| choices.iter().any(says_something));
    if !is_answer && peek.data.is_none_or(|vectors| vectors.is_empty()) {
        return Err(LocalError::Failed { status: 200 });
    }
    Ok(LocalAnswer { model: peek.model.unwrap_or(asked), content: Content::Whole(body) })
}

fn not_json(error: &serde_json::Error) -> LocalError {
    if error.is_eof() { LocalError::Truncated } else { LocalError::Failed { status: 200 } }
}

/// A streamed answer, event by event.
struct Stream {
    splitter: sse::Splitter,
    ready: VecDeque<Bytes>,
    model: String,
    started: bool,
    /// A choice told its `finish_reason`: from there on a missing `[DONE]` loses nothing.
    complete: bool,
    finished: bool,
}

impl Stream {
    fn new(model: String) -> Self {
        Self {
            splitter: sse::Splitter::default(),
            ready: VecDeque::new(),
            model,
            started: false,
            complete: false,
            finished: false,
        }
    }

    fn take_events(&mut self) -> Result<(), LocalError> {
        while let Some(data) = self.splitter.next_event() {
            if self.finished {
                break;
            }
            self.event(&data)?;
        }
        Ok(())
    }

    fn event(&mut self, data: &[u8]) -> Result<(), LocalError> {
        if data.trim_ascii() == sse::DONE {
            if !self.started && !self.complete {
                return Err(LocalError::Truncated);
            }
            self.finished = true;
            self.ready.push_back(sse::event(sse::DONE));
            return Ok(());
        }
        if data.trim_ascii().is_empty() {
            return Ok(());
        }
        let peek: Peek = serde_json::from_slice(data).map_err(|_| LocalError::Failed { status: 200 })?;
        if let Some(fault) = peek.error {
            return Err(fault.midway(&self.model));
        }
        if let Some(model) = peek.model.filter(|m| !m.is_empty() && !self.started) {
            self.model = model;
        }
        let choices = peek.choices.unwrap_or_default();
        self.complete |= choices.iter().any(|c| c.finish_reason.is_some());
        self.ready.push_back(sse::event(data));
        self.started |= choices.iter().any(Choice::has_content) || self.ready.len() > EMPTY_EVENTS_MAX;
        Ok(())
    }
}

impl Reading for Stream {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), LocalError> {
        let pushed = self.splitter.push(bytes).map_err(|_| LocalError::Failed { status: 200 });
        self.take_events()?;
        pushed
    }

    fn close(&mut self) -> Result<(), LocalError> {
        if let Some(data) = self.splitter.finish().filter(|_| !self.finished) {
            match self.event(&data) {
                // Half an event is what a cut connection leaves.
                Err(LocalError::Failed { status: 200 }) => {}
                other => other?,
            }
        }
        if !self.finished && !self.complete {
            return Err(LocalError::Truncated);
        }
        if !self.finished {
            self.finished = true;
            self.ready.push_back(sse::event(sse::DONE));
        }
        Ok(())
    }

    fn started(&self) -> bool {
        self.started
    }

    fn finished(&self) -> bool {
        self.finished
    }
}

impl Events for Stream {
    fn take(&mut self) -> VecDeque<Bytes> {
        std::mem::take(&mut self.ready)
    }
}
