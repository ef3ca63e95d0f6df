//! Taking a body in, piece by piece: memory first, a file once the memory for all is used up.
//!
//! Owns the choice between the two and the folder of the files. Never decides whether a request is taken.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::budget::{Budget, Held};
use super::file::Writing;
use super::scan::Scan;
use super::{Body, BodyFile, PIECE_BYTES};
use crate::clock;

/// Writes to body files at the same time: more would only queue inside the disk, and a disk that hangs must not take
/// every thread.
const WRITES_MAX: usize = 4;
/// Pieces that one write to a body file takes, as long as the memory for all has room for them meanwhile: each write is handed to
/// another thread and waited for, which costs more than copying a piece.
const WRITE_PIECES: usize = 4;
/// Of a piece that is kept as a connection hands it over at most a fourth is wasted: connections read no more than a piece at once.
const KEPT_BYTES_MIN: usize = PIECE_BYTES / 4 * 3;
/// A body has all of its memory for so long; the next bytes of a slower one give back what is not used, and it takes memory as it
/// comes.
const AHEAD_TIME: Duration = Duration::from_secs(2);
/// Free space is looked at again after this many bytes of one body.
const SPACE_LOOK_BYTES: u64 = 1024 * 1024;

/// Why a body could not be taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The memory for bodies is used up and the disk is full or takes no writes.
    #[error(
        "the memory for bodies is used up and the disk takes no more ({0}); free disk space, or send this again later"
    )]
    Disk(&'static str),
    /// The memory for bodies is used up and no file could be written, for another reason.
    #[error("the memory for bodies is used up and no file could be written ({0}); send this again in a moment")]
    Busy(String),
}

impl From<io::Error> for ReceiveError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        match error.kind() {
            StorageFull => ReceiveError::Disk("full"),
            QuotaExceeded => ReceiveError::Disk("quota"),
            ReadOnlyFilesystem => ReceiveError::Disk("read-only"),
            _ => ReceiveError::Busy(error.kind().to_string()),
        }
    }
}

/// Where bodies go; clones share the memory and the folder.
#[derive(Debug, Clone)]
pub struct Bodies(Arc<Place>);

#[derive(Debug)]
struct Place {
    dir: PathBuf,
    start: u64,
    min_free: u64,
    budget: Budget,
    writes: Arc<Semaphore>,
}

/// A body on its way in.
#[derive(Debug)]
pub struct Receiving {
    bodies: Bodies,
    /// Its length, where the client said it.
    declared: Option<u64>,
    pieces: Vec<Bytes>,
    held: Held,
    /// Of what is held, not yet used: the rest of a body whose length is known.
    ahead: u64,
    /// When that is given back.
    ahead_until: Instant,
    /// It was.
    is_slow: bool,
    current: BytesMut,
    file: Option<Writing>,
    scan: Scan,
    len: u64,
    looked_at: u64,
    paid: bool,
    stuck: bool,
    /// What it was given up for: its beginning is gone.
    failed: Option<ReceiveError>,
}

impl Bodies {
    /// Files go to `dir`, named by the number of this start; `min_free` bytes of its file system stay free.
    pub fn new(dir: PathBuf, start: u64, min_free: u64) -> Bodies {
        let writes = Arc::new(Semaphore::new(WRITES_MAX));
        Bodies(Arc::new(Place { dir, start, min_free, budget: Budget::default(), writes }))
    }

    /// The folder of the files.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Bytes of bodies in memory now.
    pub fn memory_used(&self) -> u64 {
        self.0.budget.used()
    }

    /// Begins to take one in; `declared` is its length where the client said it.
    pub fn receive(&self, declared: Option<u64>) -> Receiving {
        Receiving {
            bodies: self.clone(),
            declared,
            pieces: Vec::new(),
            held: self.0.budget.hold(),
            ahead: 0,
            ahead_until: clock::timers_now(),
            is_slow: false,
            current: BytesMut::new(),
            file: None,
            scan: Scan::default(),
            len: 0,
            looked_at: 0,
            paid: false,
            stuck: false,
            failed: None,
        }
    }

    /// The same for an answer that was paid for: it may use the disk's reserve, and where a disk takes nothing it is
    /// kept in memory whatever the others hold. The number of stored requests sent at once bounds that.
    pub fn receive_paid(&self, declared: Option<u64>) -> Receiving {
        Receiving { paid: true, ..self.receive(declared) }
    }

    /// A body in memory as a durable file. One that is a file already is used as it is, unless a row names it: then
    /// the next row gets a file of its own.
    pub async fn durable(&self, body: &Body) -> io::Result<Arc<BodyFile>> {
        let permit = self.0.writes.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (place, body) = (self.0.clone(), body.clone());
        let written = tokio::task::spawn_blocking(move || {
            let _until_written = permit;
            let file = match body.file() {
                Some(file) if !file.is_kept() => file.clone(),
                _ => Arc::new(copy(&place, &body)?),
            };
            file.make_durable()?;
            Ok(file)
        });
        written.await.map_err(io::Error::other)?
    }

    /// What keeps requests from being stored, as far as the file system says it: a stable word.
    pub fn trouble(&self) -> Option<&'static str> {
        match self.check_space() {
            Ok(()) => None,
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => Some("disk_read_only"),
            Err(e) if e.kind() == io::ErrorKind::StorageFull => Some("disk_full"),
            Err(_) => Some("disk_failing"),
        }
    }

    fn check_space(&self) -> io::Result<()> {
        let fs = rustix::fs::statvfs(&self.0.dir)?;
        if fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        if free < self.0.min_free { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

fn copy(place: &Place, body: &Body) -> io::Result<BodyFile> {
    let mut writing = Writing::begin(&place.dir, place.start)?;
    let mut offset = 0;
    while offset < body.len() {
        let piece = body.read(offset, body.len())?;
        writing.write(&piece)?;
        offset += piece.len() as u64;
    }
    Ok(writing.finish())
}

impl Receiving {
    /// Bytes taken in so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next bytes, as a connection hands them over. What fills most of a piece is kept as it is; of less a copy is taken, as it may
    /// be a small part of a large buffer, and would keep all of it.
    pub async fn push_bytes(&mut self, data: Bytes) -> Result<(), ReceiveError> {
        if !(KEPT_BYTES_MIN..=PIECE_BYTES).contains(&data.len()) {
            return self.push(&data).await;
        }
        self.begin(&data).await?;
        self.seal_current().await?;
        self.seal(data).await
    }

    /// The next bytes; they are copied.
    pub async fn push(&mut self, mut data: &[u8]) -> Result<(), ReceiveError> {
        self.begin(data).await?;
        while !data.is_empty() {
            if self.current.is_empty() {
                self.current.reserve(self.next_piece(self.len - data.len() as u64));
            }
            let room = PIECE_BYTES - self.current.len();
            let (part, rest) = data.split_at(room.min(data.len()));
            self.current.put_slice(part);
            data = rest;
            if self.current.len() == PIECE_BYTES {
                self.seal_current().await?;
            }
        }
        Ok(())
    }

    /// Looks at the next bytes. With the first of them memory is taken for all that are to come, where that is known: taken piece by
    /// piece, many bodies at once would each have a part of it and each end as a file.
    async fn begin(&mut self, data: &[u8]) -> Result<(), ReceiveError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        if let Some(declared) = self.declared.filter(|_| self.is_empty() && !data.is_empty() && self.is_longer())
            && self.held.grow_soon(declared).await
        {
            (self.ahead, self.ahead_until) = (declared, clock::timers_now() + AHEAD_TIME);
        }
        if self.ahead > 0 && clock::timers_now() > self.ahead_until {
            self.held.give_back(std::mem::take(&mut self.ahead));
            self.is_slow = true;
        }
        self.scan.feed(data);
        self.len += data.len() as u64;
        Ok(())
    }

    /// Whether it is no longer than one piece, as far as is known: such a one is always taken.
    fn is_small(&self) -> bool {
        !self.is_longer() && self.pieces.iter().map(Bytes::len).sum::<usize>() <= PIECE_BYTES
    }

    /// Whether it is known to be longer than one piece.
    fn is_longer(&self) -> bool {
        self.declared.is_some_and(|declared| declared > PIECE_BYTES as u64)
    }

    fn has_room(&mut self, bytes: u64) -> bool {
        if bytes <= self.ahead {
            self.ahead -= bytes;
            return true;
        }
        // One that should have been taken whole does not begin again by pieces, unless it is so slow that it gave that up.
        (self.file.is_some() || self.is_slow || !self.is_longer()) && self.held.grow(bytes)
    }

    /// The whole body.
    pub async fn finish(mut self) -> Result<Body, ReceiveError> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        self.seal_current().await?;
        if self.file.is_some() && !self.pieces.is_empty() {
            self.spill().await?;
        }
        // Of an answer that broke off, less came than was said.
        self.held.give_back(self.ahead);
        let layout = std::mem::take(&mut self.scan).finish();
        match self.file {
            None => {
                if self.len <= PIECE_BYTES as u64 && self.pieces.len() > 1 {
                    self.pieces = vec![self.pieces.concat().into()];
                }
                Ok(Body::in_memory(self.pieces, self.held, OnceLock::from(layout)))
            }
            Some(writing) => {
                let body = Body::in_file(writing.finish(), OnceLock::new(), layout);
                if self.paid {
                    // It will be stored: what cannot be read must be known before that.
                    body.hashed().await?;
                }
                Ok(body)
            }
        }
    }

    /// Room for the piece that begins there: a buffer that grows is copied at each step and ends up to twice as large as what is in it,
    /// and only that counts against the memory for all. Of a body of unknown length the first piece alone grows, as few are
    /// longer.
    fn next_piece(&self, at: u64) -> usize {
        let left = match self.declared {
            Some(declared) => declared.saturating_sub(at),
            None if at == 0 => 0,
            None => PIECE_BYTES as u64,
        };
        usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES))
    }

    async fn seal_current(&mut self) -> Result<(), ReceiveError> {
        let mut piece = std::mem::take(&mut self.current);
        if piece.is_empty() {
            return Ok(());
        }
        if piece.capacity() > piece.len() {
            // The room that was left for more would be kept with it.
            piece = BytesMut::from(&piece[..]);
        }
        self.seal(piece.freeze()).await
    }

    /// Puts a piece where it belongs.
    async fn seal(&mut self, piece: Bytes) -> Result<(), ReceiveError> {
        let bytes = piece.len() as u64;
        let fits = self.has_room(bytes);
        self.pieces.push(piece);
        let stays = match self.file {
            None => fits || self.stuck || self.is_small(),
            Some(_) => fits && self.pieces.len() < WRITE_PIECES,
        };
        if !stays {
            return self.spill().await;
        }
        if !fits {
            self.held.grow_anyway(bytes);
        }
        Ok(())
    }

    /// Writes what is in memory so far, off the threads that serve.
    async fn spill(&mut self) -> Result<(), ReceiveError> {
        let spilled = self.write().await;
        self.failed = spilled.clone().err();
        spilled
    }

    async fn write(&mut self) -> Result<(), ReceiveError> {
        let permit = self.bodies.0.writes.clone().acquire_owned().await;
        let permit = permit.map_err(|_| ReceiveError::Busy("stopping".to_owned()))?;
        let (begun, pieces) = (self.file.take(), std::mem::take(&mut self.pieces));
        let look = !self.paid && (self.looked_at == 0 || self.len - self.looked_at >= SPACE_LOOK_BYTES);
        if look {
            self.looked_at = self.len;
        }
        let (place, paid) = (self.bodies.clone(), self.paid);
        // A caller that goes away takes neither the memory nor the place of what is still being written.
        let until_written = (permit, std::mem::take(&mut self.held));
        self.ahead = 0;
        let writing = tokio::task::spawn_blocking(move || (write_to(&place, look, begun, pieces, paid), until_written));
        let (written, (_permit, held)) = writing.await.map_err(|e| ReceiveError::Busy(e.to_string()))?;
        self.held = held;
        match written? {
            Written::File(writing) => {
                self.held = self.bodies.0.budget.hold();
                self.file = Some(writing);
            }
            Written::Memory(pieces) => {
                self.held = self.bodies.0.budget.hold();
                self.held.grow_anyway(pieces.iter().map(|piece| piece.len() as u64).sum());
                (self.pieces, self.stuck) = (pieces, true);
            }
        }
        Ok(())
    }
}

fn write_to(place: &Bodies, look: bool, begun: Option<Writing>, pieces: Vec<Bytes>, paid: bool) -> io::Result<Written> {
    if look {
        place.check_space()?;
    }
    write(&place.0, begun, pieces).or_else(|failed| {
        let (error, begun, left) = *failed;
        if paid { Ok(Written::Memory(read_back(begun, left)?)) } else { Err(error) }
    })
}

enum Written {
    File(Writing),
    /// The disk takes nothing: what was written is back in memory.
    Memory(Vec<Bytes>),
}

/// Why, what is in the file, and what is not.
type Failed = Box<(io::Error, Option<Writing>, Vec<Bytes>)>;

fn write(place: &Place, begun: Option<Writing>, mut pieces: Vec<Bytes>) -> Result<Written, Failed> {
    let mut writing = match begun.map_or_else(|| Writing::begin(&place.dir, place.start), Ok) {
        Ok(writing) => writing,
        Err(error) => return Err(Box::new((error, None, pieces))),
    };
    let written = pieces.iter().map(|piece| writing.write(piece));
    match written.enumerate().find_map(|(n, done)| Some((n, done.err()?))) {
        None => Ok(Written::File(writing)),
        Some((n, error)) => Err(Box::new((error, Some(writing), pieces.split_off(n)))),
    }
}

fn read_back(begun: Option<Writing>, left: Vec<Bytes>) -> io::Result<Vec<Bytes>> {
    let mut pieces = Vec::new();
    if let Some(writing) = begun {
        let file = writing.finish();
        let mut offset = 0;
        while offset < file.len() {
            let piece = file.read(offset, PIECE_BYTES)?;
            offset += piece.len() as u64;
            pieces.push(piece);
        }
    }
    pieces.extend(left);
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::super::Content;
    use super::super::budget::MEMORY_BYTES_MAX;
    use super::*;

    #[tokio::test]
    async fn what_fills_a_piece_is_kept_and_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
        let parts =
            [vec![b' '; 300], vec![b' '; KEPT_BYTES_MIN], vec![b' '; PIECE_BYTES], vec![b' '; 20]].map(Bytes::from);
        let whole = parts.concat();
        for declared in [Some(whole.len() as u64), None] {
            let mut receiving = bodies.receive(declared);
            for part in &parts {
                receiving.push_bytes(part.clone()).await.unwrap();
            }
            let body = receiving.finish().await.unwrap();
            assert_eq!((body.whole().await.unwrap(), bodies.memory_used()), (whole.clone().into(), whole.len() as u64));
            let kept = |part: &Bytes| body.pieces().iter().any(|piece| piece.as_ptr() == part.as_ptr());
            assert_eq!(parts.each_ref().map(kept), [false, true, true, false], "declared: {declared:?}");
        }
        // A small one is in one piece however it came.
        let mut receiving = bodies.receive(Some(300 + KEPT_BYTES_MIN as u64));
        for part in &parts[..2] {
            receiving.push_bytes(part.clone()).await.unwrap();
        }
        assert_eq!(receiving.finish().await.unwrap().in_one_piece().unwrap(), whole[..300 + KEPT_BYTES_MIN]);
    }

    #[tokio::test]
    async fn a_small_one_stays_in_memory_however_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
        let mut others = bodies.0.budget.hold();
        assert!(others.grow(MEMORY_BYTES_MAX));
        let parts = [vec![b' '; 10_000], vec![b' '; KEPT_BYTES_MIN]].map(Bytes::from);
        for declared in [Some(10_000 + KEPT_BYTES_MIN as u64), None] {
            let mut receiving = bodies.receive(declared);
            for part in &parts {
                receiving.push_bytes(part.clone()).await.unwrap();
            }
            assert!(receiving.finish().await.unwrap().file().is_none(), "declared: {declared:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_one_gives_back_what_it_took_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
        let piece = Bytes::from(vec![b' '; PIECE_BYTES]);
        let mut receiving = bodies.receive(Some(4 * PIECE_BYTES as u64));
        receiving.push_bytes(piece.clone()).await.unwrap();
        assert_eq!(bodies.memory_used(), 4 * PIECE_BYTES as u64);
        tokio::time::advance(AHEAD_TIME * 2).await;
        for pieces in 2..=4 {
            receiving.push_bytes(piece.clone()).await.unwrap();
            assert_eq!(bodies.memory_used(), pieces * PIECE_BYTES as u64, "it takes it as it comes");
        }
        assert!(receiving.finish().await.unwrap().file().is_none());
    }

    #[tokio::test]
    async fn one_that_ends_early_holds_what_there_is_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
        let mut receiving = bodies.receive(Some(4 * PIECE_BYTES as u64));
        receiving.push(&[b' '; 1000]).await.unwrap();
        let _body = receiving.finish().await.unwrap();
        assert_eq!(bodies.memory_used(), 1000);
    }

    #[tokio::test]
    async fn a_piece_takes_no_more_memory_than_is_counted() {
        // Of a body of unknown length the first one grew while it came.
        let dir = tempfile::tempdir().unwrap();
        let bodies = Bodies::new(dir.path().to_owned(), 1, 0);
        let bytes = vec![b' '; 4 * PIECE_BYTES + 100];
        for (declared, grown) in [(Some(bytes.len() as u64), 0), (None, 1)] {
            let mut receiving = bodies.receive(declared);
            for part in bytes.chunks(10_000) {
                receiving.push(part).await.unwrap();
            }
            let body = Arc::into_inner(receiving.finish().await.unwrap().0).unwrap();
            let Content::Memory { pieces, .. } = body.content else { panic!("it fits into memory") };
            let taken = pieces.into_iter().map(|piece| piece.try_into_mut().unwrap().capacity());
            let wanted = [PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 100];
            assert_eq!(taken.collect::<Vec<_>>()[grown..], wanted[grown..], "declared: {declared:?}");
        }
    }
}
