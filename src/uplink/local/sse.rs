//! Server-sent events: reads those of a model server, writes those of the gateway.
//!
//! Owns the framing, both ways; never looks into the data. Comments and the fields `event`, `id` and `retry`
//! are dropped, because OpenAI's clients stumble over them.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Serialize;

use super::LocalError;
use super::ndjson::{LINE_BYTES_MAX, Lines};

/// The data that ends a stream.
pub(super) const DONE: &[u8] = b"[DONE]";

/// Cuts a stream of bytes into the data of its events.
#[derive(Default)]
pub(super) struct Reader {
    lines: Lines,
    data: Option<Vec<u8>>,
}

impl Reader {
    pub(super) fn feed(&mut self, bytes: &[u8], out: &mut VecDeque<Vec<u8>>) -> Result<(), LocalError> {
        self.lines.push(bytes);
        while let Some(line) = self.lines.next_line()? {
            self.line(&line, out)?;
        }
        Ok(())
    }

    /// The stream is over: an event that lacks only its blank line still counts.
    pub(super) fn close(&mut self, out: &mut VecDeque<Vec<u8>>) -> Result<(), LocalError> {
        if let Some(line) = self.lines.rest() {
            self.line(&line, out)?;
        }
        out.extend(self.data.take());
        Ok(())
    }

    fn line(&mut self, line: &[u8], out: &mut VecDeque<Vec<u8>>) -> Result<(), LocalError> {
        if line.is_empty() {
            out.extend(self.data.take());
            return Ok(());
        }
        let Some(value) = line.strip_prefix(b"data:") else { return Ok(()) };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_vec()),
        }
        match &self.data {
            Some(data) if data.len() > LINE_BYTES_MAX => Err(LocalError::Failed { status: 200 }),
            _ => Ok(()),
        }
    }
}

/// One whole event around `data`, which may have several lines.
pub(super) fn event(data: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(data.len() + 8);
    for line in data.split(|b| *b == b'\n') {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    Bytes::from(event)
}

/// One whole event that carries `value` as JSON.
pub(super) fn json_event<T: Serialize>(value: &T) -> Result<Bytes, LocalError> {
    // Our own shapes always serialise; an error here would be a fault of this program, not of the request.
    serde_json::to_vec(value).map(|data| event(&data)).map_err(|_| LocalError::Failed { status: 200 })
}
