//! Puts the pieces of a streamed answer together for a client that asked for it in one.
//!
//! Owns the collected answer; never sends anything.

use super::shape::{Call, Choice, Heading, Kind, Message, finish_reason};
use super::to_json;
use super::wire::{End, Piece, Pieces, ToolCall};
use crate::uplink::local::flow::Reading;
use crate::uplink::local::{Content, LocalAnswer, LocalError};

pub(super) struct Whole {
    heading: Heading,
    pieces: Pieces,
    text: String,
    thinking: String,
    tool_calls: Vec<ToolCall>,
    end: End,
}

impl Whole {
    pub(super) fn new(heading: Heading) -> Self {
        let pieces = Pieces::new(heading.model.clone());
        Self {
            heading,
            pieces,
            text: String::new(),
            thinking: String::new(),
            tool_calls: Vec::new(),
            end: End::default(),
        }
    }

    pub(super) fn into_answer(mut self) -> Result<LocalAnswer, LocalError> {
        self.heading.model = self.pieces.model;
        let finish = finish_reason(self.end, !self.tool_calls.is_empty());
        let choice = match self.heading.kind {
            Kind::Text => Choice::text(self.text, Some(finish)),
            Kind::Chat => {
                let calls = self.tool_calls.into_iter().enumerate();
                let tool_calls: Vec<_> = calls.map(|(at, c)| Call::new(c, &self.heading.id, at, false)).collect();
                let content = if self.text.is_empty() && !tool_calls.is_empty() { None } else { Some(self.text) };
                let message = Message {
                    role: Some("assistant"),
                    content: Some(content),
                    reasoning_content: self.thinking,
                    tool_calls,
                };
                Choice::message(message, finish)
            }
        };
        let body = to_json(&self.heading.around(false, &[choice], Some(self.end.into())))?;
        Ok(LocalAnswer { model: self.heading.model, content: Content::Whole(body) })
    }

    fn add(&mut self, piece: Piece) {
        self.text.push_str(&piece.text);
        self.thinking.push_str(&piece.thinking);
        self.tool_calls.extend(piece.tool_calls);
        self.end = piece.end.unwrap_or(self.end);
    }
}

impl Reading for Whole {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), LocalError> {
        for piece in self.pieces.feed(bytes)? {
            self.add(piece);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), LocalError> {
        if let Some(piece) = self.pieces.close()? {
            self.add(piece);
        }
        Ok(())
    }

    fn started(&self) -> bool {
        self.pieces.started
    }

    fn finished(&self) -> bool {
        self.pieces.finished
    }
}
