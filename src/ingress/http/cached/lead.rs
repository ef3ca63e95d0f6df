//! The send for identical requests: its answer goes to its caller as it comes, and is collected for the others and for later.
//!
//! Owns that one send and what is collected of it. Never decides who follows, nor what is worth keeping.

use std::io;
use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream as streams;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Body as _;
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use hyper::http::response::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{Landing, Shared, direct, is_stream, mark};
use crate::body::PIECE_BYTES;
use crate::cache::flights::Lead;
use crate::cache::key::Key;
use crate::cache::worth::{self, ANSWER_BYTES_MAX};
use crate::control::event::Outcome;
use crate::gateway::Received;
use crate::ingress::http::call::Call;
use crate::ingress::http::refusal::Refusal;
use crate::ingress::http::stream;
use crate::uplink::classify;

/// Pieces of an answer between the send and its caller: a caller who reads slowly holds up nobody who waits for the same,
/// as long as the answer is one that can be shared at all.
const PIECES_MAX: usize = 4096;
/// The event that ends a stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// Sends it, for itself and for all who ask the same meanwhile.
pub(super) async fn lead(call: Arc<Call>, leader: Option<Lead<Landing>>) -> Response {
    let (head, begun) = oneshot::channel();
    let (pieces, inbox) = mpsc::channel(PIECES_MAX);
    // By itself, so that a caller who goes away takes nothing from those who wait.
    tokio::spawn(carry(call.clone(), leader, head, pieces));
    let Ok(head) = begun.await else { return call.app.refused(&call, Refusal::truncated()) };
    let body = streams::unfold(inbox, |mut inbox| async move { Some((inbox.recv().await?, inbox)) });
    Response::from_parts(head, HttpBody::from_stream(body))
}

type Pieces = mpsc::Sender<io::Result<Bytes>>;

async fn carry(call: Arc<Call>, leader: Option<Lead<Landing>>, head: oneshot::Sender<Parts>, pieces: Pieces) {
    let (followers, mut landing_later) = oneshot::channel();
    if let (Some(keyed), Some(_)) = (&call.cache, &leader) {
        *keyed.followers() = Some(followers);
    }
    let mut sending = std::pin::pin!(send(&call, head, pieces.clone()));
    let nobody_left = async {
        pieces.closed().await;
        if let Some(leader) = &leader {
            leader.forsaken().await;
        }
    };
    let landed = tokio::select! {
        landed = &mut sending => Some(landed),
        // Dropping the send gives the attempt up and frees its slot.
        () = nobody_left => return,
        // No uplink answers it: what its own caller gets, and how long that one is held, is nobody else's matter.
        () = went_alone(&call) => None,
    };
    let is_over = landed.is_some();
    if let Some(leader) = leader {
        match landed {
            // Its caller's own time was up, and has what there was for that one: the body ends here.
            Some(_) if goes_on(&call) => {
                drop(pieces);
                return land_later(leader, &mut landing_later).await;
            }
            landed => match gave_up(&call) {
                Some(true) => leader.land(broken_off()),
                // Without a landing, one of those who wait leads.
                Some(false) => drop(leader),
                None => leader.land(landed.unwrap_or(Landing::Own)),
            },
        }
    }
    if !is_over {
        tokio::select! {
            _ = sending => {}
            () = pieces.closed() => {}
        }
    }
}

/// Whether the send goes on although its caller has its answer.
fn goes_on(call: &Call) -> bool {
    call.cache.as_ref().is_some_and(|keyed| keyed.followers().is_none())
}

fn gave_up(call: &Call) -> Option<bool> {
    call.cache.as_ref()?.gave_up.get().copied()
}

/// Lands when what goes on has ended, while somebody waits for that.
async fn land_later(leader: Lead<Landing>, landing_later: &mut oneshot::Receiver<Landing>) {
    tokio::select! {
        // Without one, the leader that is dropped leaves its followers to themselves: one of them leads.
        landing = landing_later => if let Ok(landing) = landing { leader.land(landing) },
        () = leader.forsaken() => {}
    }
}

/// What came of a send whose own caller had gone.
pub(super) async fn landing_of(call: &Arc<Call>, came: &Received) -> Landing {
    let Some(keyed) = &call.cache else { return Landing::Own };
    let is_good = came.failed.is_none() && came.head.status == StatusCode::OK;
    if !is_good || came.body.len() > ANSWER_BYTES_MAX as u64 {
        return Landing::Own;
    }
    let mut collected = Collected::new(call.app.cached.room.clone(), Some(came.body.len()));
    let whole = came.body.whole().await.unwrap_or_default();
    collected.push(&whole);
    if collected.too_much || classify::stored_answer(&came.body) != Outcome::Delivered {
        return Landing::Own;
    }
    let body = Bytes::from(collected.bytes);
    keep(call, keyed.key, &body).await;
    let (status, headers) = (came.head.status, HeaderMap::new());
    Landing::Shared(Arc::new(Shared { status, headers, body, is_good, outcome: "ok", _room: collected.held }))
}

/// It cannot be shared: whoever waits for it need not wait until its caller has read it all.
fn land_own(call: &Call) {
    if let Some(keyed) = &call.cache {
        keyed.went_alone.notify_one();
    }
}

async fn went_alone(call: &Call) {
    match &call.cache {
        Some(keyed) => keyed.went_alone.notified().await,
        None => std::future::pending().await,
    }
}

/// The send itself: its answer goes to its caller as it comes, and is collected for the others and for later.
async fn send(call: &Arc<Call>, head: oneshot::Sender<Parts>, pieces: Pieces) -> Landing {
    let (mut parts, mut body) = direct(call.clone()).await.into_parts();
    mark(call, &mut parts.headers);
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let (status, headers) = (parts.status, parts.headers.clone());
    let streamed = is_stream(&headers);
    // Callers who are gone are no reason to stop: somebody waits, or this would not run.
    let _ = head.send(parts);
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let mut collected = Collected::new(call.app.cached.room.clone(), length);
    let mut last = None;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            let _ = pieces.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
            return broken(call);
        };
        let Ok(piece) = frame.into_data() else { continue };
        if piece != stream::KEEP_ALIVE {
            collected.push(&piece);
        }
        if collected.too_much {
            land_own(call);
        }
        hand_on(&pieces, last.take(), &collected).await;
        // After the last byte its caller may ask again at once, and is to find it.
        if streamed && piece != DONE {
            hand_on(&pieces, Some(piece), &collected).await;
        } else {
            last = Some(piece);
        }
    }
    let landing = collected.end(call, status, headers).await;
    if let Some(last) = last {
        let _ = pieces.send(Ok(last)).await;
    }
    landing
}

/// What broke off for one broke off for all: it may have been billed.
fn broken(call: &Call) -> Landing {
    let keyed = call.cache.as_ref();
    if keyed.is_none_or(|keyed| keyed.is_alone()) {
        return Landing::Own;
    }
    broken_off()
}

pub(super) fn broken_off() -> Landing {
    let refusal = Refusal::truncated();
    let body = refusal.json();
    let headers = refusal.into_response().headers().clone();
    let status = StatusCode::BAD_GATEWAY;
    Landing::Shared(Arc::new(Shared { status, headers, body, is_good: false, outcome: "unknown", _room: None }))
}

/// Where an answer is too large to be kept, a slow caller slows its uplink down, as ever.
async fn hand_on(pieces: &Pieces, piece: Option<Bytes>, collected: &Collected) {
    let Some(piece) = piece else { return };
    if collected.too_much {
        let _ = pieces.reserve_many(PIECES_MAX - 1).await;
    }
    let _ = pieces.send(Ok(piece)).await;
}

/// An answer as it comes.
struct Collected {
    bytes: Vec<u8>,
    room: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    too_much: bool,
}

impl Collected {
    /// One of this length, where it is known: then there is room for all of it, or it is not begun. Grown on its way, many at once would
    /// each have a part of the room, and each be too much in the end.
    fn new(room: Arc<Semaphore>, length: Option<u64>) -> Self {
        let mut collected = Self { bytes: Vec::new(), room, held: None, too_much: false };
        let length = length.map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
        collected.grow(length);
        collected
    }

    /// One more piece, copied: what a connection hands over may be a small part of a large buffer.
    fn push(&mut self, piece: &[u8]) {
        if self.too_much {
            return;
        }
        let wanted = self.bytes.len() + piece.len();
        if wanted > self.bytes.capacity() {
            self.grow(wanted.max(ANSWER_BYTES_MAX.min(self.bytes.capacity() * 2)));
        }
        if !self.too_much {
            self.bytes.extend_from_slice(piece);
        }
    }

    /// Has memory for so many bytes, all of it counted; or forgets what there is.
    fn grow(&mut self, bytes: usize) {
        self.too_much |= bytes > ANSWER_BYTES_MAX || !self.hold(bytes);
        if self.too_much {
            (self.bytes, self.held) = (Vec::new(), None);
        } else {
            self.bytes.reserve_exact(bytes - self.bytes.len());
        }
    }

    fn hold(&mut self, bytes: usize) -> bool {
        let more = bytes.div_ceil(1024) - self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Ok(permit) = self.room.clone().try_acquire_many_owned(more as u32) else { return false };
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        true
    }

    /// All of it came: kept where it is worth it, and handed to those who wait.
    async fn end(self, call: &Arc<Call>, status: StatusCode, mut headers: HeaderMap) -> Landing {
        let Some(keyed) = &call.cache else { return Landing::Own };
        if self.too_much || keyed.is_alone() {
            return Landing::Own;
        }
        let (from_uplink, outcome) = keyed.how.get().copied().unwrap_or((false, "refused"));
        let is_good = status == StatusCode::OK && from_uplink && outcome == "ok";
        let body = Bytes::from(self.bytes);
        if is_good {
            keep(call, keyed.key, &body).await;
        }
        headers.remove(CONTENT_LENGTH);
        Landing::Shared(Arc::new(Shared { status, headers, body, is_good, outcome, _room: self.held }))
    }
}

/// Keeps an answer that is worth it. Of a large one, judging and summing is no work for the threads that serve.
async fn keep(call: &Arc<Call>, key: Key, body: &Bytes) {
    let (call, body) = (call.clone(), body.clone());
    let is_large = body.len() > PIECE_BYTES;
    let keep = move || {
        if worth::is_worth(call.endpoint, call.head.stream, &body) && call.fits(&body) {
            call.app.cached.cache.put(key, body);
        }
    };
    if is_large {
        // What panics there is not kept.
        let _ = tokio::task::spawn_blocking(keep).await;
    } else {
        keep();
    }
}
