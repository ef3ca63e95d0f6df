//! What makes two requests the same: who asks, where, under which configuration, and the body.
//!
//! Owns the key. Never looks at what is kept under it.

use std::fmt;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::canon::Canon;
use crate::body::{Body, PIECE_BYTES};
use crate::plant::{self, Fault};

/// Counted up whenever the way a key is made changes: what older versions kept is not found then, and leaves in time.
const VERSION: u8 = 1;

/// A request's key: a SHA-256, so that nobody can make two that meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.hex())
    }
}

impl Key {
    /// 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing into a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// The same question, asked once more because its answer did not do: a flight of its own, so that those who shared the
    /// first answer share the second, too. Nothing is kept under it.
    #[must_use]
    pub fn of_second_try(&self) -> Key {
        Key(self.0.map(|byte| !byte))
    }

    /// The hexadecimal digits read back.
    pub fn from_hex(text: &str) -> Option<Key> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut key = [0; 32];
        for (at, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Key(key))
    }
}

/// What a key is made of, beside the body.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who asks; `None` where all share what is kept.
    pub source: Option<&'a str>,
    /// The path.
    pub endpoint: &'a str,
    /// The model's name as it was asked for.
    pub model: &'a str,
    /// Address, key and model names of all uplinks: another configuration may mean another model by the same name.
    pub uplinks: &'a str,
    /// Headers that change what a service does.
    pub headers: &'a [u8],
}

/// The key of a question with this body; `None` where the body has no fingerprint. Blocks where it is a file.
pub fn key(question: &Question<'_>, body: &Body) -> io::Result<Option<Key>> {
    let mut canon = Canon::default();
    let mut reader = body.reader();
    let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(body.len()).unwrap_or(PIECE_BYTES)).max(1)];
    loop {
        match reader.read(&mut piece)? {
            0 => break,
            read => canon.feed(&piece[..read]),
        }
    }
    let Some(body) = canon.finish() else { return Ok(None) };
    let mut sum = Sha256::new();
    sum.update([VERSION, u8::from(question.source.is_some())]);
    let source = question.source.filter(|_| !plant::is(Fault::CacheForgetsSource)).unwrap_or_default();
    let parts = [source, question.endpoint, question.model, question.uplinks].map(str::as_bytes);
    for part in parts.into_iter().chain([question.headers, &body]) {
        sum.update((part.len() as u64).to_le_bytes());
        sum.update(part);
    }
    Ok(Some(Key(sum.finalize().into())))
}
