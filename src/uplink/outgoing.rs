//! A body on its way out, a request's or a long answer's: handed over in slices, and able to say how far it got.
//!
//! Whether a body had begun to leave decides between "nothing was sent" and "it may have been billed"; whether it
//! still moves, between a slow line and a dead one.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

use super::body::Spliced;
use crate::body::{Body as StoredBody, PIECE_BYTES};
use crate::clock;

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const OUT: u8 = 2;
const TAKEN_BACK: u8 = 3;

/// How much of a body had left when it was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing; and nothing will.
    Nothing,
    /// Not all of it; and the last of it never will.
    Part,
    /// All of it.
    All,
}

/// How far a body got, and when it last moved.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: AtomicU8,
    began: Instant,
    /// Milliseconds from `began` to the latest slice that was handed over, or part of one that left, and one; 0 before the first.
    moved_ms: AtomicU64,
    /// Bytes that were handed over and have not left.
    in_hand: AtomicU64,
    /// Told when there are none of those.
    empty_handed: AtomicWaker,
}

impl Default for Progress {
    fn default() -> Self {
        Progress(Arc::new(Shared {
            state: AtomicU8::new(WAITING),
            began: clock::timers_now(),
            moved_ms: AtomicU64::new(0),
            in_hand: AtomicU64::new(0),
            empty_handed: AtomicWaker::new(),
        }))
    }
}

impl Progress {
    /// Whether any byte of the request was handed to a connection.
    pub fn has_begun(&self) -> bool {
        self.0.state.load(Ordering::Acquire) != WAITING
    }

    /// Whether its last byte was.
    pub fn is_out(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == OUT
    }

    /// A body without a byte is never asked for one.
    pub fn assume_out(&self) {
        self.0.state.store(OUT, Ordering::Release);
    }

    /// When it was made.
    pub fn began(&self) -> Instant {
        self.0.began
    }

    /// When the latest slice was handed over, or a part of one left. To be looked at when a time is up: waking somebody for each
    /// slice would cost more than handing it over.
    pub fn moved_at(&self) -> Option<Instant> {
        let ms = self.0.moved_ms.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.0.began + Duration::from_millis(ms))
    }

    /// From here on nothing more is handed over, so that the last byte never leaves. A connection lives on for a moment after its
    /// request was dropped, one of HTTP/2 for long: without this, what counts as never sent might still be.
    pub fn take_back(&self) -> Left {
        let stop = |state| (state != OUT).then_some(TAKEN_BACK);
        match self.0.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, stop) {
            Ok(WAITING) => Left::Nothing,
            Ok(_) => {
                self.0.empty_handed.wake();
                Left::Part
            }
            Err(_) => Left::All,
        }
    }

    /// So many bytes were handed over to leave together.
    pub(super) fn handed(&self, bytes: usize) {
        self.0.in_hand.fetch_add(bytes as u64, Ordering::AcqRel);
    }

    /// So many of them left just now.
    pub(super) fn left(&self, bytes: usize) {
        self.moved();
        if self.0.in_hand.fetch_sub(bytes as u64, Ordering::AcqRel) == bytes as u64 {
            self.0.empty_handed.wake();
        }
    }

    /// Waits until all that was handed over has left.
    pub(super) fn poll_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        let is_over =
            || self.0.in_hand.load(Ordering::Acquire) == 0 || self.0.state.load(Ordering::Acquire) == TAKEN_BACK;
        if is_over() {
            return Poll::Ready(());
        }
        self.0.empty_handed.register(cx.waker());
        if is_over() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn moved(&self) {
        let ms = clock::timers_now().duration_since(self.0.began).as_millis() as u64;
        self.0.moved_ms.store(ms + 1, Ordering::Release);
    }

    /// False where it was taken back.
    fn reach(&self, state: u8) -> bool {
        let on = |before| (before != TAKEN_BACK).then_some(state);
        // Before the state: with the last slice gone and an older time, an answer would be late at once.
        self.moved();
        self.0.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, on).is_ok()
    }
}

/// One stretch of what is sent.
#[derive(Debug)]
enum Stretch {
    /// So much of the body.
    Own(Range<u64>),
    /// Something else in its place.
    Other(Bytes),
}

/// A body on its way out; of a file at most one slice is in memory.
#[derive(Debug)]
pub struct Outgoing {
    body: StoredBody,
    stretches: VecDeque<Stretch>,
    left: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    progress: Progress,
    on_out: Option<oneshot::Sender<()>>,
}

impl Outgoing {
    /// A body; `on_out` is told when its last byte was handed over.
    pub fn new(spliced: Spliced, on_out: Option<oneshot::Sender<()>>) -> (Self, Progress) {
        let progress = Progress::default();
        let Spliced { body, edits } = spliced;
        let (mut stretches, mut done) = (VecDeque::new(), 0);
        for (at, text) in edits {
            stretches.push_back(Stretch::Own(done..at.start));
            stretches.push_back(Stretch::Other(text));
            done = at.end;
        }
        stretches.push_back(Stretch::Own(done..body.len()));
        let length = |stretch: &Stretch| match stretch {
            Stretch::Own(range) => range.end - range.start,
            Stretch::Other(text) => text.len() as u64,
        };
        stretches.retain(|stretch| length(stretch) > 0);
        let left = stretches.iter().map(length).sum();
        (Self { body, stretches, left, reading: None, progress: progress.clone(), on_out }, progress)
    }

    /// How far it is, shared.
    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Whether it is in memory: then the next slice is there at once.
    pub(super) fn is_at_hand(&self) -> bool {
        self.body.file().is_none()
    }

    /// Whether the next slice may be the last one.
    pub(super) fn may_end(&self) -> bool {
        self.left <= PIECE_BYTES as u64
    }

    /// What its slices are part of.
    pub(super) fn body(&self) -> &StoredBody {
        &self.body
    }

    /// The next slice; what a disk must fetch is read off the threads that serve.
    fn poll_slice(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(reading) = &mut self.reading {
            let read = ready!(Pin::new(reading).poll(cx));
            self.reading = None;
            return Poll::Ready(Some(self.took(read.map_err(io::Error::other).flatten())));
        }
        let range = match self.stretches.front() {
            None => return Poll::Ready(None),
            Some(Stretch::Other(text)) => {
                let text = text.clone();
                self.stretches.pop_front();
                return Poll::Ready(Some(Ok(text)));
            }
            Some(Stretch::Own(range)) => range.clone(),
        };
        if let Some(slice) = self.body.glance(range.start, range.end) {
            return Poll::Ready(Some(self.took(Ok(slice))));
        }
        let body = self.body.clone();
        self.reading = Some(spawn_blocking(move || body.read(range.start, range.end)));
        self.poll_slice(cx)
    }

    /// Moves on in the first stretch. A file that ends early is an error: what was promised cannot be sent.
    fn took(&mut self, slice: io::Result<Bytes>) -> io::Result<Bytes> {
        let slice = slice?;
        if slice.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(Stretch::Own(range)) = self.stretches.front_mut() {
            range.start += slice.len() as u64;
            if range.start >= range.end {
                self.stretches.pop_front();
            }
        }
        Ok(slice)
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let slice = ready!(self.poll_slice(cx));
        match &slice {
            Some(Ok(part)) => self.left -= part.len() as u64,
            Some(Err(_)) => return Poll::Ready(slice.map(|read| read.map(Frame::data))),
            None => {}
        }
        if !self.progress.reach(if self.left == 0 { OUT } else { BEGUN }) {
            return Poll::Ready(Some(Err(io::ErrorKind::Interrupted.into())));
        }
        if self.left == 0
            && let Some(on_out) = self.on_out.take()
        {
            let _ = on_out.send(());
        }
        Poll::Ready(slice.map(|read| read.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn edits_come_out_in_place_and_the_length_is_exact() {
        let body: StoredBody = Bytes::from(vec![b'a'; 200_000]).into();
        let edits = vec![
            (0..1, Bytes::from_static(b"<")),
            (100_000..100_010, Bytes::new()),
            (199_999..200_000, Bytes::from_static(b">>")),
        ];
        let (outgoing, progress) = Outgoing::new(Spliced { body, edits }, None);
        let promised = outgoing.size_hint().exact().unwrap();
        assert!(!progress.has_begun());
        let sent = outgoing.collect().await.unwrap().to_bytes();
        assert!(progress.is_out());
        let expected = [b"<".to_vec(), vec![b'a'; 199_988], b">>".to_vec()].concat();
        assert_eq!((sent.len() as u64, &sent[..]), (promised, &expected[..]));
    }

    #[tokio::test]
    async fn what_is_taken_back_leaves_no_further() {
        let big: StoredBody = Bytes::from(vec![b'a'; 200_000]).into();
        for (slices, left) in [(0, Left::Nothing), (1, Left::Part)] {
            let (mut outgoing, progress) = Outgoing::new(big.clone().into(), None);
            for _ in 0..slices {
                assert!(outgoing.frame().await.unwrap().is_ok());
            }
            assert_eq!(progress.take_back(), left);
            assert!(outgoing.frame().await.unwrap().is_err() && !progress.is_out());
        }
        let (outgoing, progress) = Outgoing::new(big.into(), None);
        outgoing.collect().await.unwrap();
        assert_eq!(progress.take_back(), Left::All);
        assert!(progress.is_out());
    }

    #[tokio::test]
    async fn a_file_comes_out_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        std::fs::write(dir.path().join("1-00"), &bytes).unwrap();
        let body = StoredBody::open(dir.path(), "1-00").unwrap();
        let (outgoing, progress) = Outgoing::new(body.into(), None);
        assert_eq!(outgoing.collect().await.unwrap().to_bytes(), bytes);
        assert!(progress.is_out());
    }
}
