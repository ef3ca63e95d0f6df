//! Turns the pieces of an answer into OpenAI's chunks as they come.
//!
//! Owns the order of the chunks: role, content, finish, usage, `[DONE]`; never waits for anything.

use std::collections::VecDeque;

use bytes::Bytes;

use super::shape::{Call, Choice, Heading, Kind, Message, Usage, finish_reason};
use super::wire::{End, Piece, Pieces, ToolCall};
use crate::uplink::local::LocalError;
use crate::uplink::local::flow::{Events, Reading};
use crate::uplink::local::sse;

pub(super) struct Stream {
    heading: Heading,
    include_usage: bool,
    pieces: Pieces,
    ready: VecDeque<Bytes>,
    role_sent: bool,
    tool_calls: usize,
}

impl Stream {
    pub(super) fn new(heading: Heading, include_usage: bool) -> Self {
        let pieces = Pieces::new(heading.model.clone());
        Self { heading, include_usage, pieces, ready: VecDeque::new(), role_sent: false, tool_calls: 0 }
    }

    pub(super) fn model(&self) -> &str {
        &self.pieces.model
    }

    fn add(&mut self, piece: Piece) -> Result<(), LocalError> {
        self.heading.model.clone_from(&self.pieces.model);
        match self.heading.kind {
            Kind::Chat => self.chat(piece),
            Kind::Text => self.text(piece),
        }
    }

    fn chat(&mut self, piece: Piece) -> Result<(), LocalError> {
        if !self.role_sent {
            self.role_sent = true;
            let role = Message { role: Some("assistant"), content: Some(Some(String::new())), ..Message::default() };
            self.chunk(Choice::delta(role, None))?;
        }
        let tool_calls: Vec<_> = piece.tool_calls.into_iter().map(|call| self.call(call)).collect();
        let content = (!piece.text.is_empty()).then_some(Some(piece.text));
        if content.is_some() || !piece.thinking.is_empty() || !tool_calls.is_empty() {
            let delta = Message { role: None, content, reasoning_content: piece.thinking, tool_calls };
            self.chunk(Choice::delta(delta, None))?;
        }
        let Some(end) = piece.end else { return Ok(()) };
        let finish = finish_reason(end, self.tool_calls > 0);
        self.chunk(Choice::delta(Message::default(), Some(finish)))?;
        self.last(end)
    }

    fn call(&mut self, call: ToolCall) -> Call {
        let at = self.tool_calls;
        self.tool_calls += 1;
        Call::new(call, &self.heading.id, at, true)
    }

    fn text(&mut self, piece: Piece) -> Result<(), LocalError> {
        if !piece.text.is_empty() {
            self.chunk(Choice::text(piece.text, None))?;
        }
        let Some(end) = piece.end else { return Ok(()) };
        self.chunk(Choice::text(String::new(), Some(finish_reason(end, false))))?;
        self.last(end)
    }

    fn chunk(&mut self, choice: Choice) -> Result<(), LocalError> {
        self.ready.push_back(sse::json_event(&self.heading.around(true, &[choice], None))?);
        Ok(())
    }

    fn last(&mut self, end: End) -> Result<(), LocalError> {
        if self.include_usage {
            let usage = Some(Usage::from(end));
            self.ready.push_back(sse::json_event(&self.heading.around(true, &[], usage))?);
        }
        self.ready.push_back(sse::event(sse::DONE));
        Ok(())
    }
}

impl Reading for Stream {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), LocalError> {
        for piece in self.pieces.feed(bytes)? {
            self.add(piece)?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), LocalError> {
        match self.pieces.close()? {
            Some(piece) => self.add(piece),
            None => Ok(()),
        }
    }

    fn started(&self) -> bool {
        self.pieces.started
    }

    fn finished(&self) -> bool {
        self.pieces.finished
    }
}

impl Events for Stream {
    fn take(&mut self) -> VecDeque<Bytes> {
        std::mem::take(&mut self.ready)
    }
}
