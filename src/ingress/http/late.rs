//! A plain request whose caller's own time is up before its answer is there: it goes on without that caller, on disk.
//!
//! Owns that step. How long a caller waits stands in `wants`; what is stored, and a ticket's words, are `offline`'s.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use tokio::time::timeout_at;

use super::cached;
use super::call::Call;
use super::kept;
use super::offline::{self, Stored};
use super::onward::Came;
use super::plain::try_uplink;
use super::refusal::Refusal;
use crate::control::event::Outcome;
use crate::control::types::State;
use crate::gateway::{Grip, LiveAttempt};

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
        return Err(Box::new(call.app.refused(call, Refusal::too_late())));
    }
    cached::go_alone(call);
    // By itself: once it is on disk somebody has to finish it, whoever goes away meanwhile.
    let handing_over = tokio::spawn(hand_over(call.clone(), grip, trying));
    let handed = handing_over.await.unwrap_or_else(|_| Err(Refusal::stopping()));
    let refusal = handed
        .map_or_else(|refusal| refusal, |stored| offline::ticket_for(&stored, State::Sending, offline::NO_ANSWER));
    Err(Box::new(call.app.refused(call, refusal)))
}

async fn one_try(call: Arc<Call>, mut attempt: LiveAttempt) -> (LiveAttempt, Tried) {
    let tried = try_uplink(&call, &mut attempt).await;
    (attempt, tried)
}

/// Stores it as one that is being sent, then lets the try go on as that one's.
async fn hand_over(call: Arc<Call>, grip: Grip, trying: Trying) -> Result<Stored, Refusal> {
    let stored = offline::store_as(&call, call.to_store(true, false)).await?;
    let bodies = call.app.gateway.spool().bodies().clone();
    let rest = Box::pin(async move {
        let (attempt, (outcome, came)) = trying.await;
        match came {
            Some(came) => (attempt, Ok(came.read_on(&bodies).await)),
            None => (attempt, Err(outcome)),
        }
    });
    call.app.gateway.hand_over(grip, kept::leased(&call, &stored.id, stored.seq), rest);
    Ok(stored)
}

/// What a caller gets whose time is up between two tries: a ticket where its policy stores.
pub async fn ticket(call: Arc<Call>, maybe_billed: bool) -> Response {
    let held = maybe_billed && call.app.options.hold_unknown;
    let refusal = if !call.stores_offline() || held {
        Refusal::too_late()
    } else {
        cached::go_alone(&call);
        let stored = offline::store(&call, maybe_billed).await;
        stored.map_or_else(|refusal| refusal, |stored| offline::ticket_for(&stored, State::Queued, offline::NO_ANSWER))
    };
    call.app.refused(&call, refusal)
}
