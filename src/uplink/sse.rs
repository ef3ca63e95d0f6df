//! Server-sent events: bytes in any pieces to whole events, and back; comments and bookkeeping fields are dropped.
//!
//! Owns framing only (WHATWG HTML, "server-sent events"); what an event says is the caller's business.

use bytes::{Bytes, BytesMut};

/// Longest event that is kept together; a chunk of a stream is far smaller.
pub const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The data that ends a stream.
pub const DONE: &[u8] = b"[DONE]";

/// One whole event around `data`, which may have several lines.
pub fn event(data: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(data.len() + 8);
    for line in data.split(|b| *b == b'\n') {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    event.into()
}

/// An event grew beyond [`EVENT_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than {EVENT_BYTES_MAX} bytes")]
pub struct TooLarge;

/// Splits a byte stream into the `data` of its events.
#[derive(Debug, Default)]
pub struct Splitter {
    buffer: BytesMut,
    searched: usize,
    data: Option<BytesMut>,
}

impl Splitter {
    /// Takes in more bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TooLarge> {
        let held = self.buffer.len() + self.data.as_ref().map_or(0, BytesMut::len);
        if held + bytes.len() > EVENT_BYTES_MAX {
            return Err(TooLarge);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole event's data; several `data` lines are joined by line feeds.
    pub fn next_event(&mut self) -> Option<Bytes> {
        while let Some(line) = self.next_line() {
            if line.is_empty() {
                if let Some(data) = self.data.take() {
                    return Some(data.freeze());
                }
            } else if let Some(value) = line.strip_prefix(b"data:") {
                let value = value.strip_prefix(b" ").unwrap_or(value);
                match &mut self.data {
                    Some(data) => {
                        data.extend_from_slice(b"\n");
                        data.extend_from_slice(value);
                    }
                    None => self.data = Some(BytesMut::from(value)),
                }
            }
            // Comments, `id:`, `retry:` and `event:` are the sender's own bookkeeping.
        }
        None
    }

    /// What stands after the last blank line when the stream ends: some services leave the blank line out.
    pub fn finish(&mut self) -> Option<Bytes> {
        let _ = self.push(b"\n\n");
        self.next_event()
    }

    fn next_line(&mut self) -> Option<Bytes> {
        let found = self.buffer[self.searched..].iter().position(|b| *b == b'\n');
        let Some(offset) = found else {
            self.searched = self.buffer.len();
            return None;
        };
        let mut line = self.buffer.split_to(self.searched + offset + 1);
        self.searched = 0;
        line.truncate(line.len() - 1);
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        Some(line.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b": hello\r\n\r\nid: 1\nretry: 5\nevent: x\ndata: {\"a\":1}\r\n\r\ndata:b\ndata: c\n\n\n\ndata: [DONE]";

    fn split_at(cut: usize) -> Vec<Bytes> {
        let mut splitter = Splitter::default();
        let mut events = Vec::new();
        for part in [&STREAM[..cut], &STREAM[cut..]] {
            splitter.push(part).unwrap();
            events.extend(std::iter::from_fn(|| splitter.next_event()));
        }
        events.extend(splitter.finish());
        events
    }

    #[test]
    fn cut_anywhere_the_events_are_the_same() {
        for cut in 0..STREAM.len() {
            assert_eq!(split_at(cut), ["{\"a\":1}", "b\nc", "[DONE]"], "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut splitter = Splitter::default();
        let block = vec![b'x'; 1024 * 1024];
        let results: Vec<_> = (0..5).map(|_| splitter.push(&block)).collect();
        assert_eq!(results[4], Err(TooLarge));
    }
}
