//! What a caller gets while no uplink is available: stored first, then the local model's answer or a ticket.
//!
//! Owns the order of those steps, the hold and the ticket. Whether something is stored is control's table.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use hyper::StatusCode;

use super::answer::{self, Finished, Origin};
use super::attach::Handing;
use super::cached;
use super::call::Call;
use super::late;
use super::refusal::Refusal;
use crate::body::Body;
use crate::clock;
use crate::control::event::Reason;
use crate::control::route::{Now, offline};
use crate::control::types::{Policy, State};
use crate::spool::SpoolError;
use crate::spool::record::{self, NewRequest, Record};
use crate::uplink::local::{self, LocalError};

/// `Retry-After` of a ticket: an outage that ends sooner than this is covered by the hold.
const TICKET_RETRY_S: u64 = 5;

const NO_UPLINK: &str = "no uplink is available";
/// Why a ticket is given while an uplink is there.
pub const NO_ANSWER: &str = "no answer came in the time that this caller waits";

/// A request on disk whose caller is still here.
pub struct Stored {
    /// Its id.
    pub id: String,
    /// Its sequence number.
    pub seq: u64,
    /// Keeps a repeat from making a second request.
    pub handing: Option<Handing>,
}

impl Stored {
    /// The caller has its answer.
    pub fn delivered(self) {
        if let Some(handing) = self.handing {
            handing.delivered();
        }
    }
}

/// What an offline caller gets, in the shape that plain and streaming answers share.
pub enum Begun {
    /// The local model's answer.
    Local(local::LocalAnswer, Option<Stored>),
    /// The answer that was kept of an earlier request like this one: nothing is stored.
    Kept(Body, Origin),
    /// The local answer that is already on record for a repeated request.
    Recorded(Body, Origin, Stored),
    /// Nothing local: wait for the uplink, then give a ticket.
    Hold(Stored),
    /// The local model has not answered in the time that the caller waits: give a ticket.
    Late(Stored),
}

/// A kept answer where there is one; else stores where the policy says so, then asks the local model where the policy says so.
/// Whoever's request was sent before and gets none of this is told so: "send it again" would be a second bill.
pub async fn begin(call: &Arc<Call>, why: &str, maybe_billed: bool) -> Result<Begun, Refusal> {
    let begun = try_begin(call, why, maybe_billed).await;
    begun.map_err(|refusal| refusal.after_a_send(maybe_billed || call.was_answered))
}

async fn try_begin(call: &Arc<Call>, why: &str, maybe_billed: bool) -> Result<Begun, Refusal> {
    if let Some((body, origin)) = cached::while_offline(call).await {
        return Ok(Begun::Kept(body, origin));
    }
    let plan = offline(call.wants.policy, call.is_health_probe());
    let hold_unknown = maybe_billed && call.app.options.hold_unknown;
    let stored = if plan.store && !hold_unknown { Some(store(call, maybe_billed).await?) } else { None };
    go_on(call, plan.now, (why, maybe_billed), stored, true).await
}

/// The same for a request that is on disk already.
pub async fn resume(call: &Arc<Call>, why: &str, stored: Stored) -> Result<Begun, Refusal> {
    let plan = offline(call.wants.policy, false);
    let now = if plan.store { plan.now } else { Now::LocalThenTicket };
    let record = call.app.gateway.spool().get(stored.id.clone()).await?.ok_or_else(Refusal::no_such_request)?;
    if record.state.is_final() {
        return Ok(Begun::Hold(stored));
    }
    if let Some((answer, _)) = record.local {
        let origin = local_origin(&answer.model, Some(&stored));
        return Ok(Begun::Recorded(answer.body.into(), origin, stored));
    }
    go_on(call, now, (why, false), Some(stored), false).await
}

/// Makes the request durable and remembers its body, so that a repeat is recognised. A caller who goes away in
/// the middle stops neither: the request may be on disk already.
pub async fn store(call: &Call, maybe_billed: bool) -> Result<Stored, Refusal> {
    store_as(call, call.to_store(false, maybe_billed)).await
}

/// The same for a request that is stored as this.
pub async fn store_as(call: &Call, new: NewRequest) -> Result<Stored, Refusal> {
    call.body.hashed().await.map_err(SpoolError::from)?;
    let app = call.app.clone();
    let handing = call.app.attach.begin(&call.source, call.hash(), &new.id, super::attach_now);
    let storing = tokio::spawn(async move {
        match app.gateway.store(new).await {
            Ok(accepted) => Ok(Stored { id: accepted.id, seq: accepted.seq, handing: Some(handing) }),
            Err(error) => {
                // Nothing is on disk, so there is nothing to attach to.
                handing.delivered();
                Err(error.into())
            }
        }
    });
    storing.await.unwrap_or_else(|_| Err(Refusal::stopping()))
}

async fn go_on(
    call: &Arc<Call>,
    now: Now,
    (why, maybe_billed): (&str, bool),
    stored: Option<Stored>,
    is_first: bool,
) -> Result<Begun, Refusal> {
    match (now, stored) {
        (Now::Ticket, Some(stored)) => Ok(Begun::Hold(stored)),
        (Now::Refuse | Now::Ticket, _) if why == Reason::BudgetSpent.as_str() => {
            Err(Refusal::budget_spent(&call.app.gateway.money().why()))
        }
        (Now::Refuse | Now::Ticket, _) => {
            Err(Refusal::unavailable(&format!("this request is not to be stored or answered locally ({why})")))
        }
        (Now::Local | Now::LocalThenTicket, stored) => {
            let came = tokio::select! {
                biased;
                came = ask_in_time(call, stored.as_ref().filter(|_| is_first)) => came,
                // The uplink was quicker: its answer is on record.
                () = answered(call, stored.as_ref()) => return stored.map(Begun::Hold).ok_or_else(Refusal::stopping),
                () = call.app.gateway.grace_over() => return stored.map(Begun::Late).ok_or_else(Refusal::stopping),
            };
            match came {
                None => stored.map(Begun::Late).ok_or_else(|| Refusal::too_late(maybe_billed)),
                Some(Ok(answer)) => Ok(Begun::Local(answer, stored)),
                Some(Err(error)) => match stored {
                    Some(stored) => {
                        tracing::info!(
                            HOLDFAST_REQUEST_ID = stored.id,
                            HOLDFAST_REASON = error.kind(),
                            "no local answer: {error}"
                        );
                        Ok(Begun::Hold(stored))
                    }
                    None if why == Reason::BudgetSpent.as_str() => {
                        Err(Refusal::budget_spent(&call.app.gateway.money().why()))
                    }
                    None => Err(error.into()),
                },
            }
        }
    }
}

/// Resolves when the stored request has its answer from an uplink that is back.
async fn answered(call: &Call, stored: Option<&Stored>) {
    match stored {
        Some(stored) => call.app.gateway.answered(&stored.id).await,
        None => std::future::pending().await,
    }
}

/// Asks the local model for no longer than its caller waits. What comes later is kept beside `stored`; a repeat asks for
/// itself, and in vain if its time is as short. A stream says that it goes on, so it has no such end.
async fn ask_in_time(call: &Arc<Call>, stored: Option<&Stored>) -> Option<Result<local::LocalAnswer, LocalError>> {
    let until = call.deadline().filter(|_| !call.head.stream);
    let asked = call.clone();
    let mut asking = Box::pin(async move { ask_local(&asked).await });
    let came = late::by(until, &mut asking).await;
    if let (None, Some(stored)) = (&came, stored) {
        let (call, seq) = (call.clone(), stored.seq);
        // Their number is that of the local model's slots and of its line.
        tokio::spawn(async move {
            if let Ok(local::LocalAnswer { model, content: local::Content::Whole(body), .. }) = asking.await {
                record_local(&call, seq, &model, body);
            }
        });
    }
    came
}

/// Asks the local model.
pub async fn ask_local(call: &Call) -> Result<local::LocalAnswer, LocalError> {
    let created = clock::unix_ms() / 1000;
    call.app.gateway.ask_local(call.endpoint, &call.body, &call.id, created).await
}

/// Where a local answer comes from.
pub fn local_origin(model: &str, stored: Option<&Stored>) -> Origin {
    Origin {
        route: Some(format!("local:{model}")),
        id: stored.map(|s| s.id.clone()),
        state: stored.map(|_| State::Queued),
        ..Origin::default()
    }
}

/// Keeps the local answer beside the request; the caller does not wait for it.
pub fn record_local(call: &Call, seq: u64, model: &str, body: Bytes) {
    let spool = call.app.gateway.spool().clone();
    let answer = record::LocalAnswer { model: model.to_owned(), latency_ms: call.elapsed().as_millis() as u64, body };
    tokio::spawn(async move {
        if let Err(error) = spool.record_local(seq, answer).await {
            tracing::warn!(HOLDFAST_REASON = error.kind(), "a local answer was given but not recorded: {error}");
        }
    });
}

/// Waits for the uplink's answer as long as the caller may be held; `None` means a ticket is due.
pub async fn hold(call: &Call, stored: &Stored) -> Result<Option<Record>, Refusal> {
    call.waits_aside();
    let left = call.wants.hold.saturating_sub(call.waited());
    tokio::select! {
        record = call.app.gateway.wait_final(&stored.id, left) => Ok(record?),
        () = call.app.stopping() => Ok(None),
    }
}

/// 503 with everything a client needs to come back for its answer.
pub async fn ticket(call: &Call, stored: &Stored) -> Refusal {
    let gateway = &call.app.gateway;
    let why = match (gateway.money().is_spent(), gateway.is_online()) {
        (_, false) => NO_UPLINK.to_owned(),
        (true, true) => gateway.money().why(),
        (false, true) => {
            let record = gateway.spool().get(stored.id.clone()).await.ok().flatten();
            let is_sending = record.is_some_and(|record| record.state == State::Sending);
            let state = if is_sending { State::Sending } else { State::Queued };
            return ticket_for(stored, state, NO_ANSWER);
        }
    };
    let barred = gateway.local().last_look().and_then(|look| look.reason);
    let barred = barred.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let local = match call.wants.policy {
        Policy::Queue => String::new(),
        _ => format!(", and no local model can answer{barred}"),
    };
    ticket_for(stored, State::Queued, &format!("{why}{local}"))
}

/// The same for another reason. `state` is `queued` or `sending`.
pub fn ticket_for(stored: &Stored, state: State, why: &str) -> Refusal {
    let going = if state == State::Sending { "is being sent" } else { "will be sent" };
    let message = format!(
        "{why}; the request is stored and {going}: fetch /holdfast/v1/requests/{} later, or send the same body again within \
         10 minutes",
        stored.id
    );
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "request_queued", message)
        .retry_after(TICKET_RETRY_S)
        .header("location", &location(&stored.id))
        .header("x-should-retry", "false")
        .header("x-holdfast-id", &stored.id)
        .header("x-holdfast-state", state.as_str())
}

/// The same where the local model was asked and is late.
pub fn late_ticket(stored: &Stored) -> Refusal {
    let why = format!("{NO_UPLINK}, and the local model has not answered in the time that this caller waits");
    ticket_for(stored, State::Queued, &why)
}

/// Where a stored request is fetched.
pub fn location(id: &str) -> String {
    format!("/holdfast/v1/requests/{id}")
}

/// The whole offline answer to a plain request.
pub async fn answer_plain(call: Arc<Call>, begun: Begun) -> Response {
    match begun {
        Begun::Kept(body, origin) => {
            call.app.answered(&call, &origin, "ok");
            cached::kept(&call, body, &origin)
        }
        Begun::Local(answer, stored) => plain_local(&call, answer, stored),
        Begun::Recorded(body, origin, stored) => {
            stored.delivered();
            call.app.answered(&call, &origin, "ok");
            answer::stored(StatusCode::OK, body, &origin)
        }
        Begun::Late(stored) => call.app.refused(&call, late_ticket(&stored)),
        Begun::Hold(stored) => match hold(&call, &stored).await {
            Err(refusal) => call.app.refused(&call, refusal),
            Ok(None) => call.app.refused(&call, ticket(&call, &stored).await),
            Ok(Some(record)) => {
                stored.delivered();
                finished(&call, record)
            }
        },
    }
}

fn plain_local(call: &Call, answer: local::LocalAnswer, stored: Option<Stored>) -> Response {
    let origin = local_origin(&answer.model, stored.as_ref());
    let local::Content::Whole(body) = answer.content else {
        // A plain request is never answered by a stream.
        return call.app.refused(call, Refusal::unavailable("the local model answered in an unexpected form"));
    };
    if let Some(stored) = stored {
        record_local(call, stored.seq, &answer.model, body.clone());
        stored.delivered();
    }
    call.app.answered(call, &origin, "ok");
    answer::json(StatusCode::OK, body, &origin)
}

/// A finished record as a plain answer.
pub fn finished(call: &Call, record: Record) -> Response {
    match answer::finished(record) {
        Finished::Answer(body, origin) => {
            call.app.answered(call, &origin, "ok");
            answer::stored(StatusCode::OK, body, &origin)
        }
        Finished::Refused(status, body, origin) => {
            call.app.answered(call, &origin, "refused");
            answer::stored(status, body, &origin)
        }
        Finished::Ended(refusal) => call.app.refused(call, refusal),
    }
}
