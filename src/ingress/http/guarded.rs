//! A connection that judges each head before the HTTP library sees it, and ends when nothing moves.
//!
//! Owns the time-outs of heads, of idle connections and of peers that do not read. Never answers by itself: a refused
//! head is replaced by a request whose only answer is the refusal.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::framing::{self, Chunks, Framing, HEAD_BYTES_MAX, HeadFault, TOO_LONG, TOO_SLOW};
use crate::clock;
use crate::plant::{self, Fault};

/// A request's head must be there by then.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(8);
/// A connection that is kept for the next request is closed after this: clients keep theirs for a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(65);
/// A peer that takes nothing of its answer for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// What is taken and thrown away behind a refused head: a client that writes a little more still reads why.
const REFUSED_BYTES_MAX: usize = 256 * 1024;
/// So often a peer that ended its side and waits for its answer is looked after.
const STILL_THERE: Duration = Duration::from_secs(1);
/// Bytes read at once while a head comes in.
const READ_BYTES: usize = 2 * 1024;

/// What the HTTP library reads in place of a refused head.
const STAND_IN: &[u8] = b"GET /refused HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// What a connection and its requests know of each other.
#[derive(Debug, Default)]
pub struct Line {
    /// Heads that were passed on and whose answers are not out.
    owed: AtomicUsize,
    fault: Mutex<Option<HeadFault>>,
    /// Who reads the connection, where its peer ended its side before its answer was out.
    ended: Mutex<Option<Waker>>,
}

impl Line {
    /// A request whose head was passed on is being answered until the guard is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        Busy(self.clone())
    }

    fn is_busy(&self) -> bool {
        self.owed.load(Ordering::Acquire) > 0
    }

    /// Why the head was refused, where it was.
    pub fn fault(&self) -> Option<HeadFault> {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives no time-out of heads runs. One for each head that was passed on.
#[derive(Debug)]
pub struct Busy(Arc<Line>);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.owed.fetch_update(Ordering::AcqRel, Ordering::Acquire, |owed| owed.checked_sub(1));
        let ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        ended.into_iter().for_each(Waker::wake);
    }
}

enum Part {
    Head,
    Length(u64),
    Chunked(Chunks),
    /// A head was refused: what comes now is thrown away, so many bytes more.
    Refused(usize),
    /// A body that cannot be followed; its reader refuses it and the connection ends.
    Lost,
}

/// Whether the peer of a connection that ended its side still takes an answer.
pub type ReadsOn<S> = fn(&S) -> bool;

/// The stream.
pub struct Guarded<S> {
    inner: S,
    reads_on: ReadsOn<S>,
    line: Arc<Line>,
    part: Part,
    /// Read, but not judged or not wanted yet.
    inbox: BytesMut,
    /// Bytes at the front of `inbox` that may be passed on.
    passed: usize,
    first: bool,
    read_wait: Wait,
    write_wait: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    /// Guards a new connection.
    pub fn new(inner: S, reads_on: ReadsOn<S>, line: Arc<Line>) -> Self {
        let (part, inbox, read_wait) = (Part::Head, BytesMut::new(), Wait::default());
        Guarded { inner, reads_on, line, part, inbox, passed: 0, first: true, read_wait, write_wait: None }
    }

    /// Whether the end of what comes must not end the answer: behind a refusal, and where a whole request came before it from
    /// one who only ended its own side, as small programs do that send, end and read.
    fn is_owed(&self) -> bool {
        match self.part {
            Part::Refused(_) => true,
            Part::Head => self.inbox.is_empty() && self.line.is_busy() && (self.reads_on)(&self.inner),
            _ => false,
        }
    }

    /// Has the connection read again when its answer is out, and now and then before: the peer may close it meanwhile.
    fn look_again(&mut self, cx: &mut Context<'_>) {
        *self.line.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        while self.read_wait.poll(STILL_THERE, cx) {
            self.read_wait.end();
        }
    }

    fn refuse(&mut self, fault: HeadFault) {
        *self.line.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        self.line.owed.fetch_add(1, Ordering::AcqRel);
        self.part = Part::Refused(REFUSED_BYTES_MAX);
        self.inbox = BytesMut::from(STAND_IN);
        self.passed = STAND_IN.len();
        self.read_wait.end();
    }

    /// Finds out how much of the inbox may be passed on.
    fn judge(&mut self) {
        if self.passed > 0 || self.inbox.is_empty() {
            return;
        }
        match &mut self.part {
            Part::Head => match framing::head_end(&self.inbox) {
                None if self.inbox.len() > HEAD_BYTES_MAX => self.refuse(TOO_LONG),
                None => {}
                Some(end) if end > HEAD_BYTES_MAX => self.refuse(TOO_LONG),
                Some(end) => match framing::judge(&self.inbox[..end]) {
                    Err(fault) => self.refuse(fault),
                    Ok(framing) => {
                        self.passed = end;
                        self.first = false;
                        self.line.owed.fetch_add(1, Ordering::AcqRel);
                        self.read_wait.end();
                        self.part = match framing {
                            Framing::Length(0) => Part::Head,
                            Framing::Length(length) => Part::Length(length),
                            Framing::Chunked => Part::Chunked(Chunks::START),
                        };
                    }
                },
            },
            Part::Length(left) => {
                let now = self.inbox.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                self.passed = now;
                *left -= now as u64;
                if *left == 0 {
                    self.part = Part::Head;
                }
            }
            Part::Chunked(chunks) => match chunks.feed(&self.inbox) {
                Ok(None) => self.passed = self.inbox.len(),
                Ok(Some(end)) => (self.passed, self.part) = (end, Part::Head),
                Err(()) => (self.passed, self.part) = (self.inbox.len(), Part::Lost),
            },
            Part::Lost => self.passed = self.inbox.len(),
            Part::Refused(left) => {
                *left = left.saturating_sub(self.inbox.len());
                self.inbox.clear();
            }
        }
    }

    /// Hands over what may be passed on.
    fn pass(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let now = self.passed.min(buf.remaining());
        buf.put_slice(&self.inbox[..now]);
        self.inbox.advance(now);
        self.passed -= now;
        if self.inbox.is_empty() {
            // An idle connection keeps no buffer.
            self.inbox = BytesMut::new();
        }
        now > 0
    }

    /// Reads of a body whose length is known, no further than to its end.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncRead + Unpin,
    {
        let Part::Length(left) = &mut self.part else { return Poll::Ready(Ok(())) };
        let before = buf.filled().len();
        if *left >= buf.remaining() as u64 {
            // All that fits belongs to the body: nothing has to be zeroed first.
            ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        } else {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(*left as usize));
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
            let got = part.filled().len();
            buf.advance(got);
        }
        *left -= (buf.filled().len() - before) as u64;
        if *left == 0 {
            self.part = Part::Head;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the head, or the next request, has been waited for long enough.
    fn waited(&mut self, cx: &mut Context<'_>) -> bool {
        if !matches!(self.part, Part::Head) || self.line.is_busy() || plant::is(Fault::NoTimers) {
            self.read_wait.end();
            return false;
        }
        let limit = if self.first || !self.inbox.is_empty() { HEAD_TIMEOUT } else { IDLE_TIMEOUT };
        self.read_wait.poll(limit, cx)
    }
}

/// A wait that begins anew with each request. Its timer is left as it is and set again only when it is up too early or would be
/// too late: setting one costs as much as reading a head.
#[derive(Default)]
struct Wait {
    until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Wait {
    /// Begun or gone on with; true once it has taken `limit`.
    fn poll(&mut self, limit: Duration, cx: &mut Context<'_>) -> bool {
        let until = *self.until.get_or_insert_with(|| clock::timers_now() + limit);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= until {
                return true;
            }
            timer.as_mut().reset(until);
        }
        false
    }

    /// What was waited for has come.
    fn end(&mut self) {
        self.until = None;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        loop {
            me.judge();
            if me.pass(buf) {
                return Poll::Ready(Ok(()));
            }
            // A body's bytes go straight through where none were read ahead.
            if matches!(me.part, Part::Length(_)) && me.inbox.is_empty() {
                return me.poll_body(cx, buf);
            }
            if matches!(me.part, Part::Refused(0)) {
                // Whoever goes on writing reads no refusal. The connection ends when that is out.
                return Poll::Pending;
            }
            let mut scratch = [0; READ_BYTES];
            let mut part = ReadBuf::new(&mut scratch);
            match Pin::new(&mut me.inner).poll_read(cx, &mut part) {
                Poll::Ready(Ok(())) if part.filled().is_empty() => {
                    if !me.is_owed() {
                        return Poll::Ready(Ok(()));
                    }
                    me.look_again(cx);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => {
                    if me.inbox.is_empty() && !me.first {
                        // The next head has begun: from here it has a head's time.
                        me.read_wait.end();
                    }
                    me.inbox.extend_from_slice(part.filled());
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if me.waited(cx) => {
                    if me.inbox.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                    me.refuse(TOO_SLOW);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Bounds how long nothing may move.
fn bounded<T>(
    wait: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
    result: Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    if result.is_ready() || plant::is(Fault::NoTimers) {
        *wait = None;
        return result;
    }
    let wait = wait.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
    if wait.as_mut().poll(cx).is_ready() { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let result = Pin::new(&mut me.inner).poll_write(cx, bytes);
        bounded(&mut me.write_wait, cx, result)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let result = Pin::new(&mut me.inner).poll_flush(cx);
        bounded(&mut me.write_wait, cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let result = Pin::new(&mut me.inner).poll_shutdown(cx);
        bounded(&mut me.write_wait, cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let result = Pin::new(&mut me.inner).poll_write_vectored(cx, slices);
        bounded(&mut me.write_wait, cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn is_up(wait: &mut Wait, limit: Duration) -> bool {
        poll_fn(|cx| Poll::Ready(wait.poll(limit, cx))).await
    }

    /// A peer that writes as fast as it is read, and how much of it was.
    struct Endless(usize);

    impl AsyncRead for Endless {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let room = buf.remaining();
            buf.put_slice(&vec![b'a'; room]);
            self.0 += room;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn behind_a_refused_head_only_so_much_is_taken() {
        let mut guarded = Guarded::new(Endless(0), |_| false, Arc::default());
        let mut bytes = [0; 1024];
        let mut read = ReadBuf::new(&mut bytes);
        poll_fn(|cx| Pin::new(&mut guarded).poll_read(cx, &mut read)).await.unwrap();
        assert_eq!(read.filled(), STAND_IN);
        let waits = poll_fn(|cx| Poll::Ready(Pin::new(&mut guarded).poll_read(cx, &mut read).is_pending())).await;
        assert!(waits && guarded.inner.0 <= HEAD_BYTES_MAX + REFUSED_BYTES_MAX + 2 * READ_BYTES, "{}", guarded.inner.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_counts_from_its_own_beginning_whatever_the_timer_was_set_for() {
        let (pass, second) = (|s| tokio::time::advance(Duration::from_secs(s)), Duration::from_secs);
        let mut wait = Wait::default();
        assert!(!is_up(&mut wait, second(65)).await);
        pass(60).await;
        wait.end();
        assert!(!is_up(&mut wait, second(65)).await, "begun anew");
        pass(64).await;
        assert!(!is_up(&mut wait, second(65)).await, "the first one's time is up, not this one's");
        pass(2).await;
        assert!(is_up(&mut wait, second(65)).await);
        wait.end();
        assert!(!is_up(&mut wait, second(65)).await);
        wait.end();
        assert!(!is_up(&mut wait, second(8)).await);
        pass(9).await;
        assert!(is_up(&mut wait, second(8)).await, "a shorter one");
    }
}
