//! A streaming request: the head held back, targets replaced silently until the first content, an honest end.
//!
//! One task walks the targets and sends parts over a bounded channel; the answer's body relays them and fills
//! silences. The choice of targets is control's.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use tokio::sync::{SemaphorePermit, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::{self, Finished, Origin};
use super::cached::{self, Followed, Landing};
use super::call::Call;
use super::offline::{self, Begun, Stored};
use super::plain::{uplink_call, wants_local};
use super::refusal::Refusal;
use super::relay::{Gist, Seen};
use crate::body::Body;
use crate::cache::flights::Follow;
use crate::clock;
use crate::control::event::{Fault, Outcome};
use crate::gateway::{LiveAttempt, Target};
use crate::uplink::classify;
use crate::uplink::cloud::{Reply, Whole};
use crate::uplink::local::{self, LocalError};
use crate::uplink::sse::{self, Splitter};
use crate::uplink::usage;

/// How long the head is held back, so that a target that fails early is replaced and an error has its status.
const COMMIT_AFTER: Duration = Duration::from_secs(2);
/// Silence after which the keep-alive line is sent; below the 15 s at which the first middleboxes cut.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// A client that states a shorter time-out gets the line that often, but no more often than this.
const KEEP_ALIVE_LEAST: Duration = Duration::from_millis(500);
/// A comment: clients skip it. No blank line follows, because some clients take that for an empty event.
pub const KEEP_ALIVE: Bytes = Bytes::from_static(b": hf\n");
/// Parts between the task and the caller; a slow caller slows the uplink down.
const PARTS: usize = 16;
/// Events held back before the first content: roles and empty chunks.
const HELD_MAX: usize = 64;
const HELD_BYTES_MAX: usize = 64 * 1024;
/// As much of an uplink's error as is passed on.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// When the head goes, and how often a silence is filled.
#[derive(Clone, Copy)]
struct Pace {
    commit_at: Instant,
    keep_alive: Duration,
}

impl Pace {
    /// Within its client's own time-out, where it stated one.
    fn of(call: &Call) -> Pace {
        // From here, not from the request's head: a body that took long to come must not cost the errors their status.
        let stated = call.wants.stated.unwrap_or(KEEP_ALIVE_EVERY);
        let commit_at = Instant::from_std(clock::now()) + COMMIT_AFTER.min(stated);
        Pace { commit_at, keep_alive: stated.clamp(KEEP_ALIVE_LEAST, KEEP_ALIVE_EVERY) }
    }
}

/// What the task tells the answer.
enum Part {
    /// Where the answer is being sought now.
    From(Origin),
    /// It is waiting for the uplink: a ticket needs its status, so the head stays back.
    Hold,
    /// One whole event.
    Event(Bytes),
    /// It ends without a (further) answer: as a response while the head is back, as an event after that.
    Failed(Box<Response>, Bytes),
}

type Parts = mpsc::Sender<Part>;

/// The caller is gone.
struct Gone;

/// Answers a streaming request.
pub async fn answer(call: Arc<Call>) -> Response {
    let (parts, inbox) = mpsc::channel(PARTS);
    let pace = Pace::of(&call);
    tokio::spawn(async move {
        let closed = parts.clone();
        tokio::select! {
            _ = walk(&call, &parts) => {}
            // Dropping the walk gives the attempt up and frees its slot.
            () = closed.closed() => {}
        }
    });
    head(inbox, pace).await
}

/// Answers a streaming request whose like is under way: with that one's whole answer once it is there.
pub async fn follow(call: Arc<Call>, follow: Follow<Landing>) -> Response {
    let (parts, inbox) = mpsc::channel(PARTS);
    let pace = Pace::of(&call);
    tokio::spawn(async move {
        let closed = parts.clone();
        tokio::select! {
            _ = following(&call, follow, &parts) => {}
            () = closed.closed() => {}
        }
    });
    head(inbox, pace).await
}

async fn following(call: &Arc<Call>, follow: Follow<Landing>, parts: &Parts) -> Result<(), Gone> {
    match cached::followed(call, follow).await {
        Followed::Own | Followed::Lost => {
            call.app.gateway.metrics().cache("miss");
            walk(call, parts).await
        }
        Followed::Late(refusal) => fail(call, parts, refusal).await,
        Followed::Shared(shared) if shared.is_stream() => {
            let origin = shared.origin();
            call.app.answered(call, &origin, shared.outcome());
            say(parts, Part::From(origin)).await?;
            say(parts, Part::Event(shared.body())).await
        }
        Followed::Shared(shared) => {
            let event = error_event(&shared.body());
            say(parts, Part::Failed(Box::new(shared.response(call)), event)).await
        }
    }
}

/// Waits for the first event, an error, or the time to commit.
async fn head(mut inbox: mpsc::Receiver<Part>, pace: Pace) -> Response {
    let mut origin = Origin::default();
    let mut holding = false;
    loop {
        let part = if holding { Ok(inbox.recv().await) } else { timeout_at(pace.commit_at, inbox.recv()).await };
        match part {
            Ok(Some(Part::From(new))) => (origin, holding) = (new, false),
            Ok(Some(Part::Hold)) => holding = true,
            Ok(Some(Part::Event(event))) => return commit(&origin, event, inbox, pace),
            Ok(Some(Part::Failed(response, _))) => return *response,
            Ok(None) => return Refusal::upstream_timeout().into_response(),
            Err(_) => return commit(&origin, KEEP_ALIVE, inbox, pace),
        }
    }
}

fn commit(origin: &Origin, first: Bytes, inbox: mpsc::Receiver<Part>, pace: Pace) -> Response {
    let body = stream::unfold((Some(first), inbox), move |(first, mut inbox)| async move {
        if let Some(first) = first {
            return Some((Ok::<_, Infallible>(first), (None, inbox)));
        }
        loop {
            let bytes = match timeout(pace.keep_alive, inbox.recv()).await {
                Err(_) => KEEP_ALIVE,
                Ok(None) => return None,
                Ok(Some(Part::Event(event) | Part::Failed(_, event))) => event,
                Ok(Some(Part::From(_) | Part::Hold)) => continue,
            };
            return Some((Ok(bytes), (None, inbox)));
        }
    });
    let mut response = Response::new(HttpBody::from_stream(body));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    origin.write(headers);
    response
}

async fn say(parts: &Parts, part: Part) -> Result<(), Gone> {
    parts.send(part).await.map_err(|_| Gone)
}

/// Ends with a refusal.
async fn fail(call: &Call, parts: &Parts, refusal: Refusal) -> Result<(), Gone> {
    let event = error_event(&refusal.json());
    let response = call.app.refused(call, refusal);
    say(parts, Part::Failed(Box::new(response), event)).await
}

fn error_event(json: &[u8]) -> Bytes {
    let mut event = b"data: ".to_vec();
    // An error's JSON may be laid out over lines; an event's data may not.
    event.extend(json.iter().copied().filter(|b| !matches!(b, b'\n' | b'\r')));
    event.extend_from_slice(b"\n\ndata: [DONE]\n\n");
    event.into()
}

async fn walk(call: &Arc<Call>, parts: &Parts) -> Result<(), Gone> {
    let mut live = call.app.gateway.live(call.deadline()).of(&call.source);
    let mut target = live.target().await;
    let mut last: Option<(Whole, Origin)> = None;
    let mut maybe_billed = false;
    loop {
        target = match target {
            Target::Uplink(mut attempt) => {
                let origin = Origin::uplink(attempt.cloud().name());
                say(parts, Part::From(origin.clone())).await?;
                match try_uplink(call, &mut attempt, parts).await? {
                    Tried::Done(outcome) => {
                        live.end(attempt, outcome);
                        let how = if outcome == Outcome::Delivered { "ok" } else { outcome.class() };
                        call.app.answered(call, &origin, how);
                        return Ok(());
                    }
                    Tried::Refused(outcome @ Outcome::Permanent(_), whole) => {
                        live.end(attempt, outcome);
                        return pass_refusal(call, parts, whole, &origin).await;
                    }
                    Tried::Refused(outcome, whole) => {
                        last = Some((whole, origin));
                        live.next(attempt, outcome).await
                    }
                    // It was paid for, and a second one would be no better.
                    Tried::Failed(Outcome::NoAnswer) => {
                        live.end(attempt, Outcome::NoAnswer);
                        return fail(call, parts, Refusal::no_answer()).await;
                    }
                    Tried::Failed(outcome) => {
                        maybe_billed |= matches!(outcome, Outcome::Unknown(_));
                        live.next(attempt, outcome).await
                    }
                }
            }
            Target::Offline { reason, maybe_billed } => {
                drop(live);
                return match offline::begin(call, reason.as_str(), maybe_billed).await {
                    Ok(begun) => offline_stream(call, begun, parts).await,
                    Err(refusal) => fail(call, parts, refusal).await,
                };
            }
            Target::Unsure => return unsure(call, parts).await,
            Target::LastAnswer => {
                return match last {
                    Some((whole, origin)) => pass_refusal(call, parts, whole, &origin).await,
                    None => fail(call, parts, Refusal::upstream_timeout()).await,
                };
            }
            Target::Stopping => {
                return fail(call, parts, Refusal::stopping().after_a_send(maybe_billed || call.was_answered)).await;
            }
        };
    }
}

async fn pass_refusal(call: &Call, parts: &Parts, whole: Whole, origin: &Origin) -> Result<(), Gone> {
    call.app.answered(call, origin, "refused");
    let event = error_event(&whole.body);
    say(parts, Part::Failed(Box::new(answer::from_uplink(whole, origin)), event)).await
}

async fn unsure(call: &Arc<Call>, parts: &Parts) -> Result<(), Gone> {
    if wants_local(call)
        && let Ok(local) = offline::ask_local(call).await
    {
        return offline_stream(call, Begun::Local(local, None), parts).await;
    }
    fail(call, parts, Refusal::upstream_timeout()).await
}

/// How one try went.
enum Tried {
    /// The caller has what there is to have, the end included.
    Done(Outcome),
    /// The uplink answered with an error of its own.
    Refused(Outcome, Whole),
    /// Nothing of it reached the caller.
    Failed(Outcome),
}

async fn try_uplink(call: &Call, attempt: &mut LiveAttempt, parts: &Parts) -> Result<Tried, Gone> {
    let cloud = attempt.cloud();
    let mut reply = match attempt.send(uplink_call(call, &cloud)).await {
        Ok(reply) => reply,
        Err(outcome) => return Ok(Tried::Failed(outcome)),
    };
    attempt.answering();
    let kind = reply.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if reply.status.is_success() && kind.starts_with("text/event-stream") {
        return relay(call, attempt, reply, parts).await;
    }
    if reply.status.is_success() {
        return unstreamed(call, attempt, &mut reply, parts).await;
    }
    let whole = match reply.beginning(ERROR_BYTES_MAX).await {
        Ok((words, _)) => reply.with_body(words),
        Err(error) => return Ok(Tried::Failed(error.outcome)),
    };
    match classify::attempt(&whole) {
        outcome if outcome.is_refusal() || matches!(outcome, Outcome::Permanent(_)) => {
            Ok(Tried::Refused(outcome, whole))
        }
        outcome => Ok(Tried::Failed(outcome)),
    }
}

/// A service that ignores `stream` still answered.
async fn unstreamed(call: &Call, attempt: &mut LiveAttempt, reply: &mut Reply, parts: &Parts) -> Result<Tried, Gone> {
    let bodies = call.app.gateway.spool().bodies();
    let (body, failed) = reply.receive(Bytes::new(), bodies, sse::EVENT_BYTES_MAX as u64).await;
    let start = reply.with_body(body.start_off_thread(ERROR_BYTES_MAX).await.unwrap_or_default());
    match classify::attempt(&start) {
        Outcome::Delivered => {}
        outcome => return Ok(Tried::Failed(outcome)),
    }
    if let Some(failed) = failed {
        return Ok(Tried::Failed(failed));
    }
    let counted = body.clone();
    let summary = spawn_blocking(move || usage::read_from(counted.reader())).await;
    attempt.spent(&call.head.model, &summary.unwrap_or_default());
    let Some((events, _room)) = reshaped(call, &body).await else {
        return Ok(Tried::Failed(Outcome::Unknown(Fault::Truncated)));
    };
    for event in events {
        say(parts, Part::Event(event)).await?;
    }
    Ok(Tried::Done(Outcome::Delivered))
}

/// Events held back until the first content.
#[derive(Default)]
struct HeldBack {
    events: Vec<Bytes>,
    bytes: usize,
    /// Something has gone to the caller: from here on no other target can take over silently.
    flowing: bool,
}

impl HeldBack {
    async fn pass(&mut self, event: Bytes, has_content: bool, parts: &Parts) -> Result<(), Gone> {
        let room = self.events.len() < HELD_MAX && self.bytes + event.len() <= HELD_BYTES_MAX;
        self.bytes += event.len();
        self.events.push(event);
        if has_content || self.flowing || !room { self.flush(parts).await } else { Ok(()) }
    }

    async fn flush(&mut self, parts: &Parts) -> Result<(), Gone> {
        self.flowing = true;
        for event in self.events.drain(..) {
            say(parts, Part::Event(event)).await?;
        }
        Ok(())
    }
}

/// Passes events on; nothing reaches the caller before the first content.
async fn relay(call: &Call, attempt: &mut LiveAttempt, mut reply: Reply, parts: &Parts) -> Result<Tried, Gone> {
    let mut splitter = Splitter::default();
    let mut gist = Gist::new(call.head.include_usage);
    let mut held = HeldBack::default();
    let mut ended = false;
    let failure = loop {
        while let Some(data) = splitter.next_event() {
            match gist.see(&data) {
                Seen::Drop => {}
                // What was torn off is not passed on as if it were an event.
                Seen::Unreadable if ended => break,
                Seen::Keep | Seen::Unreadable => held.pass(sse::event(&data), gist.has_content(), parts).await?,
                Seen::Error if !held.flowing => return Ok(Tried::Failed(Outcome::Transient(Fault::ServerError))),
                Seen::Error => {
                    say(parts, Part::Event(error_event(&data))).await?;
                    return Ok(Tried::Done(Outcome::Unknown(Fault::Truncated)));
                }
                Seen::Done => {
                    attempt.spent(&call.head.model, gist.summary());
                    return finish(parts, held).await;
                }
            }
        }
        if ended {
            if gist.is_finished() {
                attempt.spent(&call.head.model, gist.summary());
                return finish(parts, held).await;
            }
            break Outcome::Unknown(Fault::Truncated);
        }
        match reply.next().await {
            Some(Ok(bytes)) if splitter.push(&bytes).is_ok() => {}
            Some(Ok(_)) => break Outcome::Unknown(Fault::TooLarge),
            Some(Err(error)) if !gist.is_finished() => break error.outcome,
            // The model's last word has come: an error now would make callers ask, and pay, again.
            Some(Err(_)) | None => {
                // Some services leave out the blank line after their last event.
                ended = true;
                let _ = splitter.push(b"\n\n");
            }
        }
    };
    if held.flowing { say_failure(failure, parts).await } else { Ok(Tried::Failed(failure)) }
}

/// The honest end of a stream that broke after its first content.
async fn say_failure(failure: Outcome, parts: &Parts) -> Result<Tried, Gone> {
    let (code, message) = match failure {
        Outcome::Unknown(Fault::Timeout) => {
            ("upstream_timeout", "the uplink stopped sending in the middle of its answer")
        }
        _ => ("upstream_truncated", "the uplink's answer ended early; what came is not the whole answer"),
    };
    let refusal = Refusal::new(StatusCode::BAD_GATEWAY, code, message);
    say(parts, Part::Event(error_event(&refusal.json()))).await?;
    Ok(Tried::Done(failure))
}

async fn finish(parts: &Parts, mut held: HeldBack) -> Result<Tried, Gone> {
    held.flush(parts).await?;
    say(parts, Part::Event(sse::event(sse::DONE))).await?;
    Ok(Tried::Done(Outcome::Delivered))
}

/// The offline steps as a stream.
pub async fn offline_parts(call: Arc<Call>, begun: Begun) -> Response {
    let (parts, inbox) = mpsc::channel(PARTS);
    let pace = Pace::of(&call);
    tokio::spawn(async move {
        let closed = parts.clone();
        tokio::select! {
            _ = offline_stream(&call, begun, &parts) => {}
            () = closed.closed() => {}
        }
    });
    head(inbox, pace).await
}

async fn offline_stream(call: &Arc<Call>, begun: Begun, parts: &Parts) -> Result<(), Gone> {
    match begun {
        Begun::Kept(body, origin) => {
            let _room = call.app.reshaping(body.len()).await;
            let Ok(events) = body.whole().await else { return fail(call, parts, Refusal::upstream_timeout()).await };
            call.app.answered(call, &origin, "ok");
            say(parts, Part::From(origin)).await?;
            say(parts, Part::Event(events)).await
        }
        Begun::Local(answer, stored) => local_stream(call, answer, stored, parts).await,
        Begun::Recorded(body, origin, stored) => {
            whole_as_stream(call, &body, origin, parts).await?;
            stored.delivered();
            Ok(())
        }
        Begun::Late(stored) => fail(call, parts, offline::late_ticket(&stored)).await,
        Begun::Hold(stored) => {
            say(parts, Part::Hold).await?;
            match offline::hold(call, &stored).await {
                Err(refusal) => fail(call, parts, refusal).await,
                Ok(None) => fail(call, parts, offline::ticket(call, &stored).await).await,
                Ok(Some(record)) => {
                    match answer::finished(record) {
                        Finished::Answer(body, origin) => whole_as_stream(call, &body, origin, parts).await?,
                        Finished::Refused(status, body, origin) => {
                            call.app.answered(call, &origin, "refused");
                            let words = body.start_off_thread(ERROR_BYTES_MAX).await.unwrap_or_default();
                            let event = error_event(&words);
                            say(parts, Part::Failed(Box::new(answer::stored(status, body, &origin)), event)).await?;
                        }
                        Finished::Ended(refusal) => fail(call, parts, refusal).await?,
                    }
                    // Whatever the outcome is, the caller has it: the same body is a new request from now on.
                    stored.delivered();
                    Ok(())
                }
            }
        }
    }
}

/// The answer as the events of a stream; `None` where it is none. Its room in memory is held until they are gone.
async fn reshaped<'a>(call: &'a Call, body: &Body) -> Option<(Vec<Bytes>, Option<SemaphorePermit<'a>>)> {
    let room = call.app.reshaping(body.len()).await;
    let whole = body.whole().await.ok()?;
    Some((answer::as_events(&whole, call.head.include_usage)?, room))
}

async fn whole_as_stream(call: &Call, body: &Body, origin: Origin, parts: &Parts) -> Result<(), Gone> {
    let Some((events, _room)) = reshaped(call, body).await else {
        return fail(call, parts, Refusal::upstream_timeout()).await;
    };
    call.app.answered(call, &origin, "ok");
    say(parts, Part::From(origin)).await?;
    for event in events {
        say(parts, Part::Event(event)).await?;
    }
    Ok(())
}

async fn local_stream(
    call: &Arc<Call>,
    answer: local::LocalAnswer,
    stored: Option<Stored>,
    parts: &Parts,
) -> Result<(), Gone> {
    let origin = offline::local_origin(&answer.model, stored.as_ref());
    let mut events = match answer.content {
        local::Content::Stream(events) => events,
        local::Content::Whole(body) => {
            whole_as_stream(call, &body.into(), origin, parts).await?;
            stored.into_iter().for_each(Stored::delivered);
            return Ok(());
        }
    };
    say(parts, Part::From(origin.clone())).await?;
    let mut gist = Gist::new(true);
    while let Some(event) = events.recv().await {
        match event {
            Ok(event) => {
                let data = event.strip_prefix(b"data: ").unwrap_or(&event);
                gist.see(data.trim_ascii_end());
                say(parts, Part::Event(event)).await?;
            }
            Err(error) => return local_failed(call, &error, parts).await,
        }
    }
    call.app.answered(call, &origin, "ok");
    if let Some(stored) = stored {
        let body = gist.to_completion(&call.id, &answer.model, clock::unix_ms() / 1000);
        offline::record_local(call, stored.seq, &answer.model, body);
        stored.delivered();
    }
    Ok(())
}

async fn local_failed(call: &Call, error: &LocalError, parts: &Parts) -> Result<(), Gone> {
    let message = format!("the local model's answer ended early: {error}");
    fail(call, parts, Refusal::new(StatusCode::BAD_GATEWAY, "upstream_truncated", message)).await
}
