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
}

impl Body for Bundled {
    type Data = Bundle;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bundle>>>> {
        let outgoing = &mut self.get_mut().0;
        let mut slices = [const { Bytes::new() }; SLICES];
        for (n, place) in slices.iter_mut().enumerate() {
            // What is not the first is there at once. The last one of a body goes by itself: with it all counts as out.
            if n > 0 && !outgoing.has_more_at_hand() {
                break;
            }
            match ready!(Pin::new(&mut *outgoing).poll_frame(cx)) {
                Some(Ok(frame)) => *place = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if n == 0 => return Poll::Ready(None),
                None => break,
            }
        }
        let progress = outgoing.progress();
        Poll::Ready(Some(Ok(Frame::data(Bundle { slices, progress }))))
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

    fn advance(&mut self, mut bytes: usize) {
        for slice in &mut self.slices {
            let gone = bytes.min(slice.len());
            slice.advance(gone);
            bytes -= gone;
        }
        assert_eq!(bytes, 0, "more was taken than there is");
        self.progress.moved();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{Body as StoredBody, PIECE_BYTES};
    use crate::clock;
    use crate::uplink::outgoing::Left;
    use http_body_util::BodyExt;
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

    #[tokio::test(start_paused = true)]
    async fn each_part_of_a_bundle_that_leaves_is_a_move() {
        let (mut body, progress, _) = bundled((SLICES + 5) * PIECE_BYTES);
        let mut bundle = body.frame().await.unwrap().unwrap().into_data().unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        bundle.advance(3 * PIECE_BYTES + 1);
        assert_eq!(progress.moved_at(), Some(clock::timers_now()));
    }
}
