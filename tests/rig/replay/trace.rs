//! The recorder's file, read back: every change below the watched folder and every mark, in one order.
//!
//! Owns the format of `shims/recorder.c`; never interprets what a change means.

use std::path::Path;
use std::sync::Arc;

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A descriptor leads to this path now; made and emptied where so asked.
    Open { fd: i32, path: String, create: bool, truncate: bool },
    /// It leads nowhere.
    Close { fd: i32 },
    /// Bytes at an offset.
    Write { fd: i32, at: u64, bytes: Arc<[u8]> },
    /// A new length.
    Truncate { fd: i32, to: u64 },
    /// A sync that returned.
    Sync { fd: i32 },
    /// A name is gone.
    Unlink { path: String },
    /// A folder.
    Mkdir { path: String },
    /// Another name.
    Rename { from: String, to: String },
    /// One more name.
    Link { from: String, to: String },
    /// What the driver was told.
    Mark { text: String },
}

/// Reads a whole trace.
pub fn read(path: &Path) -> std::io::Result<Vec<Event>> {
    let bytes = std::fs::read(path)?;
    let (mut events, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((head, tail)) = rest.split_at_checked(21) {
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (a, b) = (word(13) as usize, word(17) as usize);
        let Some((body, next)) = tail.split_at_checked(a + b) else { break };
        let at = u64::from(word(5)) | u64::from(word(9)) << 32;
        events.push(event(head[0], word(1).cast_signed(), at, body.split_at(a)));
        rest = next;
    }
    Ok(events)
}

fn event(op: u8, fd: i32, at: u64, (a, b): (&[u8], &[u8])) -> Event {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match op {
        b'o' => Event::Open { fd, path: text(a), create: at & 1 != 0, truncate: at & 2 != 0 },
        b'c' => Event::Close { fd },
        b'w' => Event::Write { fd, at, bytes: a.into() },
        b't' => Event::Truncate { fd, to: at },
        b's' => Event::Sync { fd },
        b'u' => Event::Unlink { path: text(a) },
        b'd' => Event::Mkdir { path: text(a) },
        b'r' => Event::Rename { from: text(a), to: text(b) },
        b'l' => Event::Link { from: text(a), to: text(b) },
        b'm' => Event::Mark { text: text(a) },
        other => panic!("the recorder wrote an operation {other}"),
    }
}
