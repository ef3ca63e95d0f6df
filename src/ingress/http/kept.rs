//! Requests that are stored whatever the uplink does: with an idempotency key, asked for later, or repeated.
//!
//! Owns the three ways to such a request; the offline steps and the answers' shapes are elsewhere.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};

use super::admin;
use super::answer::{self, Finished, Origin};
use super::attach::Handing;
use super::call::Call;
use super::offline::{self, Stored};
use super::owned::Owner;
use super::record_json::RecordJson;
use super::refusal::Refusal;
use super::stream;
use crate::clock;
use crate::control::types::State;
use crate::spool::record::{Accepted, Leased, Record};

/// While a caller waits for its keyed request, an outage is looked for this often.
const OUTAGE_LOOK: Duration = Duration::from_millis(250);

/// `Prefer: respond-async`: stored, then 202, at once or after `wait=N`.
pub async fn respond_async(call: Arc<Call>) -> Response {
    let (accepted, handing) = match accept(&call).await {
        Ok(accepted) => accepted,
        Err(refusal) => return call.app.refused(&call, refusal),
    };
    // "At once" is a promise of its own: only a repeated key or a stated wait looks for an answer first.
    let finished = match call.wants.wait {
        None if !accepted.existing => None,
        wait => {
            call.waits_aside();
            match call.app.gateway.wait_final(&accepted.id, wait.unwrap_or_default()).await {
                Ok(finished) => finished,
                Err(error) => return call.app.refused(&call, error.into()),
            }
        }
    };
    let mut response = match finished {
        Some(record) => deliver(call, record).await,
        None => pending(&call, &accepted).await,
    };
    handing.delivered();
    response
        .headers_mut()
        .insert(HeaderName::from_static("preference-applied"), HeaderValue::from_static("respond-async"));
    response
}

/// Stores it, so that its caller finds it again should the connection break before the ticket.
async fn accept(call: &Call) -> Result<(Accepted, Handing), Refusal> {
    if let Some(found) = left_behind(call).await? {
        return Ok(found);
    }
    let new = call.to_store(false, false);
    let handing = call.app.attach.begin(&call.source, call.hash(), &new.id, super::attach_now);
    match call.app.gateway.store(new).await {
        Ok(accepted) => Ok((accepted, handing)),
        Err(error) => {
            handing.delivered();
            Err(error.into())
        }
    }
}

/// The request that this caller's broken connection left behind; a key finds its own.
async fn left_behind(call: &Call) -> Result<Option<(Accepted, Handing)>, Refusal> {
    if call.wants.idempotency_key.is_some() || call.app.attach.is_empty() {
        return Ok(None);
    }
    let found = call.app.attach.find_left_behind(&call.source, call.hash(), super::attach_now);
    let Some(handing) = found else { return Ok(None) };
    match call.app.gateway.spool().get(handing.id().to_owned()).await? {
        Some(record) if is_worth_attaching(&record) => {
            let accepted = Accepted { id: record.id, seq: record.seq, existing: true, finished: false };
            Ok(Some((accepted, handing)))
        }
        _ => {
            handing.delivered();
            Ok(None)
        }
    }
}

/// The ticket of a request that waits. One just stored is known without asking the spool's thread again, which
/// has better things to do in an outage.
async fn pending(call: &Call, accepted: &Accepted) -> Response {
    let spool = call.app.gateway.spool();
    let record = if accepted.existing {
        match spool.get(accepted.id.clone()).await {
            Ok(Some(record)) => record,
            Ok(None) => return call.app.refused(call, Refusal::no_such_request()),
            Err(error) => return call.app.refused(call, error.into()),
        }
    } else {
        call.to_store(false, false).into_record(accepted, clock::unix_ms(), spool.tally().ready.saturating_sub(1))
    };
    let origin = Origin { route: None, id: Some(record.id.clone()), state: Some(record.state), ..Origin::default() };
    call.app.answered(call, &origin, "accepted");
    let mut response = if accepted.existing {
        admin::shown(&call.app, record, StatusCode::ACCEPTED, &origin).await
    } else {
        let text = RecordJson::of(&record, call.app.gateway.tasks(), call.app.gateway.prices()).text();
        answer::json(StatusCode::ACCEPTED, text, &origin)
    };
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(1));
    if let Ok(location) = HeaderValue::from_str(&offline::location(&accepted.id)) {
        response.headers_mut().insert(hyper::header::LOCATION, location);
    }
    response
}

/// A finished record in the shape the caller asked for.
async fn deliver(call: Arc<Call>, record: Record) -> Response {
    if !call.head.stream {
        return offline::finished(&call, record);
    }
    match answer::finished(record) {
        Finished::Answer(body, origin) => {
            let stored = Stored { id: String::new(), seq: 0, handing: None };
            stream::offline_parts(call, offline::Begun::Recorded(body, origin, stored)).await
        }
        Finished::Refused(status, body, origin) => answer::stored(status, body, &origin),
        Finished::Ended(refusal) => call.app.refused(&call, refusal),
    }
}

/// `Idempotency-Key`: the same key, source and body is the same request, in flight or done.
pub async fn keyed(call: Arc<Call>, key: String) -> Response {
    let (gateway, stores) = (&call.app.gateway, call.stores_offline());
    let online = gateway.is_online();
    let new = call.to_store(online, false);
    let owner = (online && !stores).then(|| call.app.owned.begin(&new.id));
    let accepted =
        if online || stores { gateway.store(new).await.map(Some) } else { gateway.spool().find_keyed(new).await };
    let accepted = match accepted {
        Ok(Some(accepted)) => accepted,
        Ok(None) => return unkept(call, "offline", false).await,
        Err(error) => return call.app.refused(&call, error.into()),
    };
    if accepted.existing && !call.app.owned.join(&accepted.id) {
        return call.app.refused(&call, Refusal::unavailable("the request with this key is just being taken back"));
    }
    let owner = owner.filter(|_| !accepted.existing);
    if online && !accepted.existing {
        call.app.gateway.adopt(Leased { idempotency_key: key, ..leased(&call, &accepted.id, accepted.seq) });
    }
    let stored = Stored { id: accepted.id, seq: accepted.seq, handing: None };
    let mut response = attached(call, stored, owner).await;
    if accepted.existing && response.status() != StatusCode::SERVICE_UNAVAILABLE {
        replayed(&mut response);
    }
    response
}

/// Says that a key found what it made before.
pub fn replayed(response: &mut Response) {
    response.headers_mut().insert(HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("true"));
}

/// A request just stored as `sending`, as its attempt has it.
pub fn leased(call: &Call, id: &str, seq: u64) -> Leased {
    Leased {
        seq,
        id: id.to_owned(),
        source: call.source.clone(),
        endpoint: call.endpoint.to_owned(),
        model: call.head.model.clone(),
        priority: call.wants.priority,
        attempts: 0,
        maybe_billed: call.was_answered,
        idempotency_key: id.to_owned(),
        task: call.task,
        body: call.body.clone(),
    }
}

/// Its policy leaves nothing for later, so the copy that the key needed goes, and the key with it: it may come again. Unless it
/// was sent: then the key stays, and its caller is told.
async fn let_go(call: Arc<Call>, id: &str, why: &str) -> Response {
    let spool = call.app.gateway.spool();
    match spool.get(id.to_owned()).await {
        Ok(Some(record)) if record.maybe_billed => return call.app.refused(&call, Refusal::upstream_timeout()),
        Ok(Some(_)) => {
            if let Err(error) = spool.forget(id.to_owned()).await {
                return call.app.refused(&call, error.into());
            }
        }
        Ok(None) => {}
        Err(error) => return call.app.refused(&call, error.into()),
    }
    unkept(call, why, false).await
}

/// No uplink is there, and nothing that was stored before is its answer.
pub async fn unkept(call: Arc<Call>, why: &str, maybe_billed: bool) -> Response {
    match offline::begin(&call, why, maybe_billed).await {
        Err(refusal) => call.app.refused(&call, refusal),
        Ok(begun) => shaped(call, begun).await,
    }
}

async fn shaped(call: Arc<Call>, begun: offline::Begun) -> Response {
    if call.head.stream { stream::offline_parts(call, begun).await } else { offline::answer_plain(call, begun).await }
}

/// A body that repeats a stored request.
pub async fn repeated(call: Arc<Call>, handing: Handing) -> Response {
    let id = handing.id().to_owned();
    match call.app.gateway.spool().get(id.clone()).await {
        Err(error) => call.app.refused(&call, error.into()),
        Ok(Some(record)) if is_worth_attaching(&record) => {
            attached(call, Stored { id, seq: record.seq, handing: Some(handing) }, None).await
        }
        Ok(_) => {
            handing.delivered();
            super::openai::fresh(call).await
        }
    }
}

/// Whether a repeat belongs to it. Of what is pruned, never was on disk or is answered by nobody any more the repeat is a new request;
/// what may have been billed is not sent anew as if it were one.
fn is_worth_attaching(record: &Record) -> bool {
    let has_lapsed = matches!(record.state, State::Cancelled | State::Expired | State::Evicted);
    record.maybe_billed || !has_lapsed
}

/// Whether it was too dear for what is left of today: then its caller is as good as offline.
async fn waits_for_money(call: &Call, stored: &Stored) -> bool {
    if !call.app.gateway.money().is_spent() {
        return false;
    }
    let record = call.app.gateway.spool().get(stored.id.clone()).await.ok().flatten();
    record.and_then(|record| record.last_error).is_some_and(|error| error.kind == "budget_spent")
}

/// Waits for a stored request's outcome; once no uplink is available, what the policy gives meanwhile. What its owner alone counts on
/// is taken back then.
async fn attached(call: Arc<Call>, stored: Stored, owner: Option<Owner>) -> Response {
    loop {
        let left = call.wants.hold.saturating_sub(call.waited());
        match call.app.gateway.wait_final(&stored.id, OUTAGE_LOOK.min(left)).await {
            Err(error) => return call.app.refused(&call, error.into()),
            Ok(Some(record)) => {
                stored.delivered();
                return deliver(call, record).await;
            }
            Ok(None) => {}
        }
        let why = if call.app.gateway.is_online() { "budget_spent" } else { "offline" };
        if why == "offline" || waits_for_money(&call, &stored).await {
            if let Some(owner) = owner.as_ref().filter(|owner| owner.leaves()) {
                if call.app.gateway.cancel(&stored.id).await == Ok(Some(State::Cancelled)) {
                    return let_go(call, &stored.id, why).await;
                }
                owner.stays();
            }
            return match offline::resume(&call, why, stored).await {
                Err(refusal) => call.app.refused(&call, refusal),
                Ok(begun) => shaped(call, begun).await,
            };
        }
        if call.waited() >= call.wants.hold || call.app.gateway.is_waiting_over() {
            return call.app.refused(&call, offline::ticket(&call, &stored).await);
        }
    }
}
