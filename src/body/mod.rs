//! The bodies of requests: in memory while there is room, else a file; never two copies of the same.
//!
//! Owns the memory they may take, their files, their checksum and the positions of what matters in them. Base64 is
//! never decoded, JSON never built as a tree.

mod budget;
mod file;
mod receive;
pub mod scan;
#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use budget::Held;
pub use budget::MEMORY_BYTES_MAX;
pub use file::BodyFile;
pub use receive::{Bodies, ReceiveError, Receiving};
use scan::{Fault, Layout, Scan};

/// Bytes handled at once: what is read from a file, handed to a connection, or written. A body of at most this many
/// is one piece of memory.
pub const PIECE_BYTES: usize = 64 * 1024;

/// A request's body; clones share it.
#[derive(Clone)]
pub struct Body(Arc<Inner>);

struct Inner {
    content: Content,
    len: u64,
    hash: OnceLock<[u8; 32]>,
    layout: OnceLock<Result<Layout, Fault>>,
}

enum Content {
    /// Pieces of at most [`PIECE_BYTES`]; or one piece of any length.
    Memory {
        pieces: Vec<Bytes>,
        _held: Held,
    },
    File(Arc<BodyFile>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({} bytes)", self.0.len)
    }
}

impl Default for Body {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        let pieces = if bytes.is_empty() { Vec::new() } else { vec![bytes] };
        Body::in_memory(pieces, Held::default(), OnceLock::new())
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl Body {
    fn in_memory(pieces: Vec<Bytes>, held: Held, layout: OnceLock<Result<Layout, Fault>>) -> Self {
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        let content = Content::Memory { pieces, _held: held };
        Body(Arc::new(Inner { content, len, hash: OnceLock::new(), layout }))
    }

    fn in_file(file: BodyFile, hash: OnceLock<[u8; 32]>, layout: Result<Layout, Fault>) -> Self {
        let (len, layout) = (file.len(), OnceLock::from(layout));
        Body(Arc::new(Inner { content: Content::File(Arc::new(file)), len, hash, layout }))
    }

    /// Opens a stored file and reads it once, in small pieces: the caller compares the hash before a byte of it
    /// leaves. Blocks.
    pub fn open(dir: &Path, name: &str) -> io::Result<Body> {
        let file = BodyFile::open(dir, name)?;
        let (mut hasher, mut scan, mut offset) = (Sha256::new(), Scan::default(), 0);
        while offset < file.len() {
            let piece = file.read(offset, PIECE_BYTES)?;
            hasher.update(&piece);
            scan.feed(&piece);
            offset += piece.len() as u64;
        }
        Ok(Body::in_file(file, OnceLock::from(<[u8; 32]>::from(hasher.finalize())), scan.finish()))
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// SHA-256, computed once and only where it is needed: most bodies are passed on and never stored. It may read a file:
    /// await [`Body::hashed`] first on a thread that serves.
    pub fn hash(&self) -> [u8; 32] {
        if let Some(hash) = self.0.hash.get() {
            return *hash;
        }
        // Zeros for a file that cannot be read match no body, and are not remembered.
        self.compute_hash().map_or([0; 32], |hash| *self.0.hash.get_or_init(|| hash))
    }

    /// Has [`Body::hash`] ready; a large body is hashed off the threads that serve. An error where its file cannot be read.
    pub async fn hashed(&self) -> io::Result<()> {
        if self.0.hash.get().is_some() {
            return Ok(());
        }
        if self.len() <= PIECE_BYTES as u64 && self.file().is_none() {
            // Here rather than by whoever asks first: that is the one thread that writes the spool.
            self.hash();
            return Ok(());
        }
        let body = self.clone();
        let hash = tokio::task::spawn_blocking(move || body.compute_hash()).await.map_err(io::Error::other)??;
        // Somebody else may have been first, with the same.
        let _ = self.0.hash.set(hash);
        Ok(())
    }

    fn compute_hash(&self) -> io::Result<[u8; 32]> {
        let (mut hasher, mut at) = (Sha256::new(), 0);
        while at < self.len() {
            let piece = self.read(at, self.len())?;
            hasher.update(&piece);
            at += piece.len() as u64;
        }
        Ok(hasher.finalize().into())
    }

    /// What stands where in it.
    pub fn layout(&self) -> &Result<Layout, Fault> {
        self.0.layout.get_or_init(|| {
            let mut scan = Scan::default();
            self.pieces().iter().for_each(|piece| scan.feed(piece));
            scan.finish()
        })
    }

    /// Its file, where it is one.
    pub fn file(&self) -> Option<&Arc<BodyFile>> {
        match &self.0.content {
            Content::File(file) => Some(file),
            Content::Memory { .. } => None,
        }
    }

    /// Its bytes, where they are one piece of memory; small bodies always are.
    pub fn in_one_piece(&self) -> Option<Bytes> {
        match &self.0.content {
            Content::Memory { pieces, .. } if pieces.len() <= 1 => Some(pieces.first().cloned().unwrap_or_default()),
            _ => None,
        }
    }

    fn pieces(&self) -> &[Bytes] {
        match &self.0.content {
            Content::Memory { pieces, .. } => pieces,
            Content::File(_) => &[],
        }
    }

    /// Up to [`PIECE_BYTES`] from an offset, no further than `end`, where they are in memory: shared and not copied, or out
    /// of the kernel's cache of a file. Never waits for a disk.
    pub fn glance(&self, offset: u64, end: u64) -> Option<Bytes> {
        if let Content::File(file) = &self.0.content {
            return file.read_cached(offset, usize::try_from(end - offset).unwrap_or(0).min(PIECE_BYTES));
        }
        let mut at = 0;
        for piece in self.pieces() {
            let next = at + piece.len() as u64;
            if offset < next {
                let (from, to) = ((offset - at) as usize, (end.min(next) - at) as usize);
                return Some(piece.slice(from..to.min(from + PIECE_BYTES)));
            }
            at = next;
        }
        None
    }

    /// The same, waiting for the disk where it must.
    pub fn read(&self, offset: u64, end: u64) -> io::Result<Bytes> {
        match &self.0.content {
            Content::File(file) => file.read(offset, usize::try_from(end - offset).unwrap_or(0).min(PIECE_BYTES)),
            Content::Memory { .. } => Ok(self.glance(offset, end).unwrap_or_default()),
        }
    }

    /// Its bytes in order. Blocks where it is a file.
    pub fn reader(&self) -> impl Read + use<> {
        Reader { body: self.clone(), at: 0, piece: Bytes::new() }
    }

    /// No more than so many bytes of it: shared where they are one piece of memory. Blocks where it is a file.
    pub fn start(&self, bytes: usize) -> io::Result<Bytes> {
        if let Some(whole) = self.in_one_piece() {
            return Ok(whole.slice(..whole.len().min(bytes)));
        }
        let mut start = Vec::new();
        self.reader().take(bytes as u64).read_to_end(&mut start)?;
        Ok(start.into())
    }

    /// The same off the threads that serve.
    pub async fn start_off_thread(&self, bytes: usize) -> io::Result<Bytes> {
        if self.in_one_piece().is_some() {
            return self.start(bytes);
        }
        let body = self.clone();
        tokio::task::spawn_blocking(move || body.start(bytes)).await.map_err(io::Error::other)?
    }

    /// All of it in one piece of memory: only for whoever must reshape it, one at a time.
    pub async fn whole(&self) -> io::Result<Bytes> {
        if let Some(bytes) = self.in_one_piece() {
            return Ok(bytes);
        }
        let body = self.clone();
        let joined = tokio::task::spawn_blocking(move || {
            let mut joined = BytesMut::with_capacity(usize::try_from(body.len()).unwrap_or(0));
            while (joined.len() as u64) < body.len() {
                let piece = body.read(joined.len() as u64, body.len())?;
                joined.extend_from_slice(&piece);
            }
            Ok(joined.freeze())
        });
        joined.await.map_err(io::Error::other)?
    }
}

struct Reader {
    body: Body,
    at: u64,
    piece: Bytes,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.at < self.body.len() {
            self.piece = self.body.read(self.at, self.body.len())?;
            self.at += self.piece.len() as u64;
        }
        let part = self.piece.split_to(self.piece.len().min(buffer.len()));
        buffer[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}
