//! A plain request whose caller's own time is up before its answer is there: it goes on without that caller, on disk.
//!
//! Owns that step. How long a caller waits stands in `wants`; what is stored, and a ticket's words, are `offline`'s.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use tokio::time::timeout_at;

use super::cached::{self, Followers};
use super::call::Call;
use super::kept;
use super::offline::{self, Stored};
use super::onward::Came;
use super::plain::try_uplink;
use super::refusal::Refusal;
use crate::control::event::Outcome;
use crate::control::types::State;
use crate::gateway::{Grip, LiveAttempt, Received};

/// How one try went.
type Tried = (Outcome, Option<Came>);
type Trying = Pin<Box<dyn Future<Output = (LiveAttempt, Tried)> + Send>>;

/// Waits for it, but not beyond that instant.
pub async fn by<T>(until: Option<Instant>, waiting: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => timeout_at(until.into(), waiting).await.ok(),
        None => Some(waiting.await),
    }
}

/// One try. Where its caller's time is up before it ends, what that caller gets: the try itself goes on.
pub async fn tried(
    call: &Arc<Call>,
    mut attempt: LiveAttempt,
    until: Option<Instant>,
) -> Result<(LiveAttempt, Tried), Box<Response>> {
    if until.is_none() {
        let tried = try_uplink(call, &mut attempt).await;
        return Ok((attempt, tried));
    }
    let grip = attempt.grip();
    let mut trying: Trying = Box::pin(one_try(call.clone(), attempt));
    if let Some(tried) = by(until, &mut trying).await {
        return Ok(tried);
    }
    if !call.stores_offline() {
        if let Some(followers) = cached::outlive_its_caller(call) {
            tokio::spawn(for_others(call.clone(), trying, followers));
        }
        return Err(Box::new(call.app.refused(call, Refusal::too_late(true))));
    }
    // By itself: once it is on disk somebody has to finish it, whoever goes away meanwhile.
    let handing_over = tokio::spawn(hand_over(call.clone(), grip, trying));
    match handing_over.await {
        Err(_) => Err(Box::new(call.app.refused(call, Refusal::stopping().after_a_send(true)))),
        Ok(Handed::Over(stored)) => {
            let ticket = offline::ticket_for(&stored, State::Sending, offline::NO_ANSWER);
            Err(Box::new(call.app.refused(call, ticket)))
        }
        // Nothing was accepted, and the send may be billed: late is better than twice.
        Ok(Handed::Back(trying)) => Ok(trying.await),
    }
}

async fn one_try(call: Arc<Call>, mut attempt: LiveAttempt) -> (LiveAttempt, Tried) {
    let tried = try_uplink(&call, &mut attempt).await;
    (attempt, tried)
}

/// Goes on for those who wait for the same, while there are any.
async fn for_others(call: Arc<Call>, trying: Trying, mut followers: Followers) {
    tokio::select! {
        (mut attempt, (outcome, came)) = trying => {
            if let Some(Came::Whole(_, said)) = &came {
                attempt.spent(&call.head.model, said);
            }
            let result = whole(&call, outcome, came).await;
            attempt.end(result.as_ref().ok().and_then(|came| came.failed).unwrap_or(outcome));
            followers.get(call, result).await;
        }
        () = followers.gone() => {}
    }
}

/// All of what came.
async fn whole(call: &Call, outcome: Outcome, came: Option<Came>) -> Result<Received, Outcome> {
    match came {
        Some(came) => Ok(came.read_on(call.app.gateway.spool().bodies()).await),
        None => Err(outcome),
    }
}

/// What became of a try whose caller's time is up.
enum Handed {
    /// It is the stored request's.
    Over(Stored),
    /// The disk or the queue does not take the request.
    Back(Trying),
}

/// Stores it as one that is being sent, then lets the try go on as that one's.
async fn hand_over(call: Arc<Call>, grip: Grip, trying: Trying) -> Handed {
    let Ok(stored) = offline::store_as(&call, call.to_store(true, false)).await else { return Handed::Back(trying) };
    let (asked, followers) = (call.clone(), cached::outlive_its_caller(&call));
    let rest = Box::pin(async move {
        let (attempt, (outcome, came)) = trying.await;
        let result = whole(&asked, outcome, came).await;
        if let Some(followers) = followers {
            // Beside it: the record waits for nobody.
            tokio::spawn(followers.get(asked, result.clone()));
        }
        (attempt, result)
    });
    call.app.gateway.hand_over(grip, kept::leased(&call, &stored.id, stored.seq), rest);
    Handed::Over(stored)
}

/// What a caller gets whose time is up between two tries: a ticket where its policy stores.
pub async fn ticket(call: Arc<Call>, maybe_billed: bool) -> Response {
    let held = maybe_billed && call.app.options.hold_unknown;
    cached::give_up_lead(&call, maybe_billed);
    let refusal = if !call.stores_offline() || held {
        Refusal::too_late(maybe_billed || call.was_answered)
    } else {
        let stored = offline::store(&call, maybe_billed).await;
        match stored {
            Ok(stored) => offline::ticket_for(&stored, State::Queued, offline::NO_ANSWER),
            Err(refusal) => refusal.after_a_send(maybe_billed || call.was_answered),
        }
    };
    call.app.refused(&call, refusal)
}
