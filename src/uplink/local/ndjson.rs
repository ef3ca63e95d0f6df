//! Cuts a stream of bytes into lines, however the network split it.
//!
//! Owns the unfinished line and its length limit; never looks into a line.

use bytes::{Bytes, BytesMut};

use super::LocalError;

/// The longest line taken: a whole tool call or a final line with everything in it fits many times over.
pub(super) const LINE_BYTES_MAX: usize = 1024 * 1024;

/// The lines of a stream, without their line ends.
#[derive(Default)]
pub(super) struct Lines {
    buffer: BytesMut,
    /// How much of `buffer` is known to hold no line end, so that byte-by-byte arrival stays linear.
    scanned: usize,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, if there is one.
    pub(super) fn next_line(&mut self) -> Result<Option<Bytes>, LocalError> {
        let end = self.buffer[self.scanned..].iter().position(|b| *b == b'\n').map(|at| at + self.scanned);
        if end.unwrap_or(self.buffer.len()) > LINE_BYTES_MAX {
            return Err(LocalError::Failed { status: 200 });
        }
        let Some(end) = end else {
            self.scanned = self.buffer.len();
            return Ok(None);
        };
        self.scanned = 0;
        let mut line = self.buffer.split_to(end + 1);
        line.truncate(end);
        Ok(Some(without_return(line.freeze())))
    }

    /// What stands after the last line end, once the stream is over.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        self.scanned = 0;
        let rest = self.buffer.split().freeze();
        (!rest.is_empty()).then(|| without_return(rest))
    }
}

fn without_return(mut line: Bytes) -> Bytes {
    if line.last() == Some(&b'\r') {
        line.truncate(line.len() - 1);
    }
    line
}
