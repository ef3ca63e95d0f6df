//! A request body on its way out: handed over in slices, and able to say how far it got.
//!
//! Whether a body had begun to leave decides between "nothing was sent" and "it may have been billed"; whether it
//! still moves, between a slow line and a dead one.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, oneshot};

/// Bytes handed to the connection at once, so that a slow line is noticed.
const SLICE_BYTES: usize = 64 * 1024;

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const OUT: u8 = 2;

/// How far a body got.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: AtomicU8,
    moved: Notify,
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

    /// Resolves when a slice was handed over since the last look.
    pub async fn moved(&self) {
        self.0.moved.notified().await;
    }

    fn tell(&self, state: u8) {
        self.0.state.store(state, Ordering::Release);
        self.0.moved.notify_one();
    }
}

/// A whole body, sent in slices without being copied.
#[derive(Debug)]
pub struct Outgoing {
    rest: Bytes,
    progress: Progress,
    on_out: Option<oneshot::Sender<()>>,
}

impl Outgoing {
    /// A body; `on_out` is told when its last byte was handed over.
    pub fn new(body: Bytes, on_out: Option<oneshot::Sender<()>>) -> (Self, Progress) {
        let progress = Progress::default();
        (Self { rest: body, progress: progress.clone(), on_out }, progress)
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let slice = self.rest.len().min(SLICE_BYTES);
        let part = self.rest.split_to(slice);
        self.progress.tell(if self.rest.is_empty() { OUT } else { BEGUN });
        if self.rest.is_empty()
            && let Some(on_out) = self.on_out.take()
        {
            let _ = on_out.send(());
        }
        if part.is_empty() { Poll::Ready(None) } else { Poll::Ready(Some(Ok(Frame::data(part)))) }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
