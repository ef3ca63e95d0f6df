//! A body on its way to an uplink, several slices at a time where they are in memory: each write wakes whoever reads at the other end,
//! and a picture is twenty slices.
//!
//! Owns how many go together. What a slice is, and whether it may still leave, is its body's own.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};

use super::outgoing::{Outgoing, Progress};
use crate::body::Body as StoredBody;

/// Slices that are handed over together: with 4 of them a picture of 1 MiB took a fifth more processor time.
const SLICES: usize = 8;

/// A body whose slices come in bundles.
#[derive(Debug)]
pub struct Bundled(pub Outgoing);

/// Slices that go together; it tells when some of it is on its way.
#[derive(Debug)]
pub struct Bundle {
    slices: [Bytes; SLICES],
    progress: Progress,
    /// Its memory counts until the last of them has left: a connection still writes what it was given when the request is gone.
    _body: StoredBody,
}

impl Body for Bundled {
    type Data = Bundle;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bundle>>>> {
        let outgoing = &mut self.get_mut().0;
        let progress = outgoing.progress();
        // What may be the end is given when all before it has left, and by itself: with it all counts as out. A connection of HTTP/2
        // asks for it long before there is room on the way.
        let is_end = outgoing.may_end();
        if is_end {
            ready!(progress.poll_left(cx));
        }
        let mut slices = [const { Bytes::new() }; SLICES];
        for (n, place) in slices.iter_mut().enumerate() {
            if n > 0 && (outgoing.may_end() != is_end || !outgoing.is_at_hand()) {
                break;
            }
            match ready!(Pin::new(&mut *outgoing).poll_frame(cx)) {
                Some(Ok(frame)) => *place = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if n == 0 => return Poll::Ready(None),
                None => break,
            }
        }
        let bundle = Bundle { slices, progress, _body: outgoing.body().clone() };
        bundle.progress.handed(bundle.remaining());
        Poll::Ready(Some(Ok(Frame::data(bundle))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Buf for Bundle {
    fn remaining(&self) -> usize {
        self.slices.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.slices.iter().find(|slice| !slice.is_empty()).map_or(&[], |slice| slice)
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let filled = self.slices.iter().filter(|slice| !slice.is_empty()).zip(into);
        filled.map(|(slice, place)| *place = IoSlice::new(slice)).count()
    }

    fn advance(&mut self, bytes: usize) {
        let mut rest = bytes;
        for slice in &mut self.slices {
            let gone = rest.min(slice.len());
            slice.advance(gone);
            rest -= gone;
        }
        assert_eq!(rest, 0, "more was taken than there is");
        self.progress.left(bytes);
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.has_remaining() {
            // The connection has ended: what is not out never will be.
            self.progress.take_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::PIECE_BYTES;
    use crate::clock;
    use crate::uplink::body::Spliced;
    use crate::uplink::outgoing::Left;
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use std::time::Duration;

    fn bundled(bytes: usize) -> (Bundled, Progress, Vec<u8>) {
        let content: Vec<u8> = (0..bytes).map(|n| (n / 7) as u8).collect();
        let (outgoing, progress) = Outgoing::new(StoredBody::from(content.clone()).into(), None);
        (Bundled(outgoing), progress, content)
    }

    #[tokio::test]
    async fn slices_go_together_and_the_last_one_by_itself() {
        for (bytes, lengths) in [
            (0, vec![]),
            (100, vec![100]),
            (PIECE_BYTES, vec![PIECE_BYTES]),
            (PIECE_BYTES + 1, vec![PIECE_BYTES, 1]),
            (3 * PIECE_BYTES, vec![2 * PIECE_BYTES, PIECE_BYTES]),
            ((SLICES + 2) * PIECE_BYTES + 9, vec![SLICES * PIECE_BYTES, 2 * PIECE_BYTES, 9]),
        ] {
            let (mut body, progress, content) = bundled(bytes);
            assert_eq!(body.size_hint().exact(), Some(bytes as u64));
            let (mut seen, mut sent) = (Vec::new(), Vec::new());
            while let Some(frame) = body.frame().await {
                let mut bundle = frame.unwrap().into_data().unwrap();
                seen.push(bundle.remaining());
                assert_eq!(progress.is_out(), seen.len() == lengths.len());
                let mut into = [IoSlice::new(&[]); 16];
                let filled = bundle.chunks_vectored(&mut into);
                assert_eq!(into[..filled].iter().map(|part| part.len()).sum::<usize>(), bundle.remaining());
                while bundle.has_remaining() {
                    // Writes end where they like.
                    let part = bundle.chunk().len().min(50_000);
                    sent.extend_from_slice(&bundle.chunk()[..part]);
                    bundle.advance(part);
                }
            }
            assert_eq!((seen, sent), (lengths, content));
        }
    }

    #[tokio::test]
    async fn what_is_taken_back_leaves_in_no_later_bundle() {
        let (mut body, progress, _) = bundled((SLICES + 5) * PIECE_BYTES);
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(progress.take_back(), Left::Part);
        assert!(body.frame().await.unwrap().is_err() && !progress.is_out());
    }

    #[tokio::test]
    async fn the_last_slice_waits_until_all_before_it_has_left() {
        for leaves in [true, false] {
            let (mut body, progress, _) = bundled(3 * PIECE_BYTES);
            let mut bundle = body.frame().await.unwrap().unwrap().into_data().unwrap();
            bundle.advance(bundle.remaining() - 1);
            assert!(body.frame().now_or_never().is_none() && !progress.is_out());
            let waiting = tokio::spawn(async move { body.frame().await.unwrap().is_ok() });
            tokio::task::yield_now().await;
            if leaves {
                bundle.advance(1);
            }
            drop(bundle);
            let given =
                tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("it waits for nothing any more");
            assert_eq!((given.unwrap(), progress.is_out()), (leaves, leaves), "what a connection drops never leaves");
        }
    }

    #[tokio::test]
    async fn who_takes_it_back_wakes_what_waits() {
        let (mut body, progress, _) = bundled(3 * PIECE_BYTES);
        let _bundle = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let waiting = tokio::spawn(async move { body.frame().await.unwrap().is_ok() });
        tokio::task::yield_now().await;
        assert_eq!(progress.take_back(), Left::Part);
        let given = tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("it waits for nothing any more");
        assert!(!given.unwrap() && !progress.is_out());
    }

    #[tokio::test]
    async fn the_end_of_an_edited_one_goes_together() {
        let edits = vec![(10..20, Bytes::from_static(b"another")), (30..40, Bytes::from_static(b"name"))];
        for (bytes, bundles) in [(2_000, 1), (3 * PIECE_BYTES, 2)] {
            let (outgoing, progress) =
                Outgoing::new(Spliced { body: vec![b' '; bytes].into(), edits: edits.clone() }, None);
            let (mut body, mut seen) = (Bundled(outgoing), 0);
            while let Some(frame) = body.frame().await {
                let mut bundle = frame.unwrap().into_data().unwrap();
                bundle.advance(bundle.remaining());
                seen += 1;
            }
            assert_eq!((seen, progress.is_out()), (bundles, true));
        }
    }

    /// A server whose windows hold one piece, and who reads nothing: what more is handed over waits in this process.
    #[tokio::test]
    async fn what_waits_for_room_on_a_connection_of_http2_is_not_out() {
        for pieces in [2, SLICES, SLICES + 1] {
            let (here, there) = tokio::io::duplex(1024 * 1024);
            let (asked, mut heads) = tokio::sync::mpsc::channel(1);
            let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let asked = asked.clone();
                async move {
                    let _ = asked.send(request).await;
                    std::future::pending::<Result<hyper::Response<String>, std::convert::Infallible>>().await
                }
            });
            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server
                .initial_stream_window_size(PIECE_BYTES as u32 - 1)
                .initial_connection_window_size(PIECE_BYTES as u32 - 1);
            tokio::spawn(server.serve_connection(TokioIo::new(there), service));
            let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (mut send, connection) = client.handshake(TokioIo::new(here)).await.unwrap();
            tokio::spawn(connection);
            let (body, progress, content) = bundled(pieces * PIECE_BYTES);
            let request = hyper::Request::post("http://x/").body(body).unwrap();
            tokio::spawn(send.send_request(request));
            let mut request = heads.recv().await.unwrap();
            // Everything that can move has moved by then.
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!progress.is_out(), "{pieces} pieces");
            let read = request.body_mut().collect().await.unwrap().to_bytes();
            assert!(progress.is_out() && read == content);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_part_of_a_bundle_that_leaves_is_a_move() {
        let (mut body, progress, _) = bundled((SLICES + 5) * PIECE_BYTES);
        let mut bundle = body.frame().await.unwrap().unwrap().into_data().unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        bundle.advance(3 * PIECE_BYTES + 1);
        assert_eq!(progress.moved_at(), Some(clock::timers_now()));
    }
}
