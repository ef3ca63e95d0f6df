//! A plain request: one body in, one body out.
//!
//! Asks for a target, tries it, asks for the next. The choice is control's, the offline steps are `offline`'s.

use std::sync::Arc;

use axum::response::Response;
use hyper::Method;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::answer::{self, Origin};
use super::call::Call;
use super::kept;
use super::late;
use super::offline;
use super::onward::{self, Came};
use super::refusal::Refusal;
use crate::control::event::Outcome;
use crate::control::types::Policy;
use crate::gateway::{LiveAttempt, Target};
use crate::uplink::body;
use crate::uplink::cloud::{self, Cloud, Whole};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Answers a plain request.
pub async fn answer(call: Arc<Call>) -> Response {
    let until = call.deadline();
    let mut live = call.app.gateway.live(until).of(&call.source);
    let mut target = late::by(until, live.target()).await;
    let mut last: Option<(Whole, Origin)> = None;
    let mut maybe_billed = false;
    loop {
        target = match target {
            None => {
                drop(live);
                return late::ticket(call, maybe_billed).await;
            }
            Some(Target::Uplink(attempt)) => {
                let origin = Origin::uplink(attempt.cloud().name());
                let (mut attempt, tried) = match late::tried(&call, attempt, until).await {
                    Ok(tried) => tried,
                    Err(response) => return *response,
                };
                match tried {
                    (_, Some(Came::Begun(begun))) => return onward::pass(call, begun, attempt, origin),
                    (outcome @ (Outcome::Delivered | Outcome::Permanent(_)), Some(Came::Whole(whole, said))) => {
                        attempt.spent(&call.head.model, &said);
                        live.end(attempt, outcome);
                        call.app.answered(&call, &origin, class(&whole));
                        return answer::from_uplink(whole, &origin);
                    }
                    (Outcome::NoAnswer, _) => {
                        live.end(attempt, Outcome::NoAnswer);
                        return call.app.refused(&call, Refusal::no_answer());
                    }
                    (outcome, Some(Came::Whole(whole, _))) if outcome.is_refusal() => {
                        last = Some((whole, origin));
                        late::by(until, live.next(attempt, outcome)).await
                    }
                    (outcome, _) => {
                        maybe_billed |= matches!(outcome, Outcome::Unknown(_));
                        late::by(until, live.next(attempt, outcome)).await
                    }
                }
            }
            Some(Target::Offline { reason, maybe_billed }) => {
                drop(live);
                // In boxes: without them the future of each request, most of which are answered above, had room for these, too.
                return Box::pin(kept::unkept(call, reason.as_str(), maybe_billed)).await;
            }
            Some(Target::Unsure) => return Box::pin(unsure(call)).await,
            Some(Target::LastAnswer) => {
                let Some((whole, origin)) = last else {
                    return call.app.refused(&call, Refusal::upstream_timeout());
                };
                call.app.answered(&call, &origin, class(&whole));
                return answer::from_uplink(whole, &origin);
            }
            Some(Target::Stopping) => {
                return call.app.refused(&call, Refusal::stopping().after_a_send(maybe_billed || call.was_answered));
            }
        };
    }
}

/// How a caller was answered, as a metric label.
fn class(whole: &Whole) -> &'static str {
    if whole.status.is_success() { "ok" } else { "refused" }
}

/// One try; the answer is there wherever the uplink gave one, or began to.
pub async fn try_uplink(call: &Call, attempt: &mut LiveAttempt) -> (Outcome, Option<Came>) {
    let cloud = attempt.cloud();
    let reply = match attempt.send(uplink_call(call, &cloud)).await {
        Ok(reply) => reply,
        Err(outcome) => return (outcome, None),
    };
    attempt.answered_by(onward::begin(reply)).await
}

/// The call towards one uplink: the client's bytes, under that uplink's name for the model.
pub fn uplink_call(call: &Call, cloud: &Cloud) -> cloud::Call {
    let mut headers: HeaderMap = call.forward.clone();
    // The second try of a task is another request: it must not get the first one's answer again.
    if call.may_be_handed_over()
        && !call.was_answered
        && let Ok(id) = HeaderValue::from_str(&call.id)
    {
        // Its second send, if there is one, has the same.
        headers.insert(IDEMPOTENCY_KEY, id);
    }
    let sent = body::for_uplink(&call.body, &call.head, cloud.alias(&call.head.model), true);
    // What does not say its tokens costs all that is reserved for it.
    let sent = if call.app.gateway.money().is_capped() { body::with_usage(sent, &call.head) } else { sent };
    cloud::Call { method: Method::POST, path: call.endpoint.to_owned(), headers, body: sent, on_out: None }
}

/// Sent and not answered while the uplink is there: the local model costs nothing, a second send might.
async fn unsure(call: Arc<Call>) -> Response {
    if wants_local(&call)
        && let Some(Ok(local)) = late::by(call.deadline(), offline::ask_local(&call)).await
    {
        return offline::answer_plain(call, offline::Begun::Local(local, None)).await;
    }
    call.app.refused(&call, Refusal::upstream_timeout())
}

/// Whether the policy allows a local answer.
pub fn wants_local(call: &Call) -> bool {
    matches!(call.wants.policy, Policy::Both | Policy::Local) && call.app.gateway.local().is_enabled()
}
