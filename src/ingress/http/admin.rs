//! `/holdfast/v1/*`: the gateway itself: status, stored requests, live events, switches.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::response::Response;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use futures_util::{Stream, stream};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

use super::App;
use super::answer::{self, Finished, Origin};
use super::call;
use super::health::unable;
use super::path::Named;
use super::places::Lent;
use super::record_json::{self, RecordJson};
use super::refusal::Refusal;
use super::responses;
use crate::clock;
use crate::control::event::{Block, Fault};
use crate::control::health::Health;
use crate::control::types::State as RequestState;
use crate::control::{KeyView, UplinkView, View};
use crate::gateway::Agreed;
use crate::spool::record::{Filter, Record};
use crate::telemetry::feed;
use crate::uplink::cloud::{ApiKey, Cloud};

/// Records of one page of a listing, unless `limit` says less.
const PAGE: u32 = 100;
/// Silence after which an event stream sends a comment.
const EVENTS_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest long-poll.
const WAIT_MAX: Duration = Duration::from_secs(280);

type Query1 = Query<HashMap<String, String>>;

fn ok(value: &Value) -> Response {
    answer::json(StatusCode::OK, value.to_string(), &Origin::default())
}

/// `GET /holdfast/v1/status`.
pub async fn status(State(app): State<Arc<App>>) -> Response {
    let Some(view) = app.gateway.view().await else { return Refusal::stopping().into_response() };
    let host = app.board.latest().await;
    let now_s = clock::unix_ms() / 1000;
    let unable = unable(&app);
    ok(&json!({
        "device_id": app.options.device_id,
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": app.started_unix_s,
        "uptime_s": app.gateway.now_ms() / 1000,
        "time": now_s,
        "state": overall(&view),
        "paused": view.paused,
        "reason": unable,
        "configuration": *app.refused.borrow(),
        "storage": storage(&view, unable),
        "uplinks": uplinks(&app, &view),
        "local": local(&app),
        "agreement": agreement(&app),
        "backlog": backlog(&app, &view),
        "budget": super::spend::budget(&app.gateway.money().view()),
        "cache": cache(&app),
        "links": super::links::json(&app.links),
        "host": {
            "temperature_c": host.temperature_c,
            "memory_rss_bytes": host.memory_rss_bytes,
            "memory_available_bytes": host.memory_available_bytes,
            "disk_free_bytes": host.disk_free_bytes,
            "disk_written_bytes": host.disk_written_bytes,
            "disk_accepted_bytes": app.gateway.metrics().accepted_bytes(),
            "disk_written_bytes_per_day": per_day(host.disk_written_bytes, app.gateway.now_ms()),
            "throttled": host.strain.is_throttled,
            "throttled_since_boot": host.strain.was_throttled,
            "undervoltage": host.strain.is_undervoltage,
            "card_wear_percent": host.strain.card_wear_percent,
            "card_spare": host.strain.card_spare,
        },
    }))
}

/// Bytes written since this gateway began, as bytes a day; none in its first hour.
fn per_day(bytes: u64, lived_ms: u64) -> Option<u64> {
    const HOUR_MS: u64 = 3_600_000;
    let per_day = u128::from(bytes) * u128::from(24 * HOUR_MS) / u128::from(lived_ms.max(1));
    (lived_ms >= HOUR_MS).then(|| u64::try_from(per_day).unwrap_or(u64::MAX))
}

/// The on-site model as the steward last saw it: nothing is asked in the request.
fn local(app: &App) -> Value {
    let (look, load) = (app.gateway.local().last_look(), app.gateway.local().load());
    let seen = look.as_ref();
    json!({
        "enabled": look.is_some(),
        "api": app.options.local_api,
        "model": app.options.local_model,
        "state": seen.map(|l| l.state.as_str()),
        "used": seen.is_some_and(|l| l.state.is_used()),
        "reachable": seen.and_then(|l| l.reachable),
        "loaded": seen.and_then(|l| l.loaded),
        "fits": seen.and_then(|l| l.fits),
        "temperature_c": seen.and_then(|l| l.temperature_c),
        "in_flight": load.in_flight,
        "waiting": load.waiting,
        "reason": seen.and_then(|l| l.reason.clone()),
    })
}

/// How far the local model can be trusted: what it said offline against what uplinks said later.
fn agreement(app: &App) -> Vec<Value> {
    let one = |a: Agreed| {
        let rate = a.rate();
        json!({"task": a.task, "model": a.model, "same": a.same, "differs": a.differs, "unknown": a.unknown, "rate": rate})
    };
    app.gateway.agreements().into_iter().map(one).collect()
}

/// `online` while an uplink answers in time, `degraded` while only slow ones do, else `offline`.
pub fn overall(view: &View) -> &'static str {
    let available = || view.uplinks.iter().filter(|u| u.available);
    if available().any(|u| u.health == Health::Healthy) {
        "online"
    } else if available().next().is_some() {
        "degraded"
    } else {
        "offline"
    }
}

fn uplinks(app: &App, view: &View) -> Vec<Value> {
    let now_ms = app.gateway.now_ms();
    let one = |(index, (cloud, u)): (usize, (&Arc<Cloud>, &UplinkView))| {
        json!({
            "name": cloud.name(),
            "health": u.health.as_str(),
            "available": u.available,
            "reason": u.fault.map(|fault| reason(cloud, fault)),
            "rung": app.gateway.broken_rung(index).map(|rung| super::uplinks::rung_json(&rung)),
            "breaker": u.breaker.as_str(),
            "latency_ms": u.latency_ms,
            "in_flight": u.in_flight,
            "consecutive_failures": u.failures,
            "last_check": u.last_check_ms.map(|at| clock::unix_ms().saturating_sub(now_ms.saturating_sub(at)) / 1000),
            "paused": u.paused.map(|(block, until)| json!({
                "reason": block.as_str(),
                "sentence": pause_sentence(block, u.fault, until.saturating_sub(now_ms)),
                "retry_in_s": until.saturating_sub(now_ms) / 1000,
            })),
            "keys": keys(cloud, u, now_ms),
        })
    };
    app.gateway.uplinks().iter().zip(&view.uplinks).enumerate().map(one).collect()
}

/// What a technician can do about it, with the key's name where one is missing: `/health` tells everybody less.
fn reason(cloud: &Cloud, fault: Fault) -> String {
    let missing = cloud.missing_keys().filter(|_| fault == Fault::NoKey);
    missing.map_or_else(|| sentence(fault).to_owned(), |why| format!("no key: {why}"))
}

/// The keys of an uplink that has several, by number and source.
fn keys(cloud: &Cloud, u: &UplinkView, now_ms: u64) -> Vec<Value> {
    let one = |(index, (key, view)): (usize, (&ApiKey, &KeyView))| {
        let wait_ms = |until: u64| until.saturating_sub(now_ms);
        let resting_ms = wait_ms(view.limited_until_ms);
        let (state, reason, retry_ms) = match view.paused {
            Some((block, until)) => ("paused", Some(block.as_str()), Some(wait_ms(until))),
            None if resting_ms > 0 => ("limited", Some("rate_limited"), Some(resting_ms)),
            None => ("good", None, None),
        };
        json!({
            "number": key.number,
            "source": key.source,
            "state": state,
            "reason": reason,
            "sentence": view.paused.map(|(block, until)| {
                let name = cloud.key_name(index);
                format!("{name}: {}; next trial in {} min", block.key_sentence(), wait_ms(until).div_ceil(60_000))
            }),
            "retry_in_s": retry_ms.map(|ms| ms / 1000),
            "in_flight": view.in_flight,
        })
    };
    cloud.keys().iter().zip(&u.keys).enumerate().map(one).collect()
}

/// What is wrong, what to do and when it is tried next, in one plain sentence.
pub fn pause_sentence(block: Block, fault: Option<Fault>, wait_ms: u64) -> String {
    if fault == Some(Fault::WaitingForTime) {
        return sentence(Fault::WaitingForTime).to_owned();
    }
    format!("paused: {block}: {}; next trial in {} min", block.sentence(), wait_ms.div_ceil(60_000))
}

/// What is wrong with the disk and what to do about it. `unable` is `/health`'s word for why nothing is accepted.
pub fn storage(view: &View, unable: Option<&str>) -> Option<&'static str> {
    if !view.storage_works {
        return Some(
            "paused: storage: an outcome cannot be written; make room on the disk or replace it; tried again each second",
        );
    }
    match unable? {
        "disk_full" => Some("the disk is full: nothing new is stored; make room, or lower [queue] min_disk_free"),
        "disk_read_only" => {
            Some("the disk is read-only: nothing new is stored; see dmesg, then mount it anew or replace it")
        }
        "disk_failing" => Some("the disk fails: nothing new is stored; see dmesg, then replace it"),
        _ => None,
    }
}

/// What a technician can do about it, in one sentence.
pub fn sentence(fault: Fault) -> &'static str {
    match fault {
        Fault::Dns => "the name cannot be resolved: check DNS and the line",
        Fault::Connect => "no connection: check the line, the firewall and base_url",
        Fault::Tls => "TLS failed: check the clock, ca_file and whether something inspects the traffic",
        Fault::Clock => "its certificate is not valid yet: the clock here is behind, set the time",
        Fault::WaitingForTime => {
            "waiting for time: the clock is behind, so no certificate can be checked; set the time"
        }
        Fault::Portal => "a web page answers in its place: a log-in page or a proxy stands in the way",
        Fault::Redirect => "it redirects: check base_url, or a log-in page stands in the way",
        Fault::NoKey => "the key cannot be read: set the variable, file or credential that api_keys names",
        Fault::Timeout => "it does not answer in time",
        Fault::ServerError | Fault::BadGateway => "it answers, but with server errors",
        _ => "the connection breaks",
    }
}

fn cache(app: &App) -> Value {
    let cache = app.cached.cache();
    let (entries, bytes) = cache.size();
    json!({"enabled": cache.is_on(), "entries": entries, "bytes": bytes})
}

fn backlog(app: &App, view: &View) -> Value {
    let tally = app.gateway.spool().tally();
    let age_s = tally.oldest_powered_ms.map(|at| app.gateway.spool().powered_ms().saturating_sub(at) / 1000);
    json!({
        "count": tally.backlog(),
        "bytes": tally.backlog_bytes,
        "oldest_age_s": age_s,
        "seconds_to_drain": view.seconds_to_drain,
        "queued": tally.in_state(RequestState::Queued),
        "sending": tally.in_state(RequestState::Sending),
        "unknown": tally.in_state(RequestState::Unknown),
        "answered": tally.in_state(RequestState::Answered),
        "dead": tally.in_state(RequestState::Dead),
        "window": view.window,
    })
}

fn filter(query: &HashMap<String, String>) -> Result<Filter, Refusal> {
    let bad = |name: &str, what: String| Refusal::bad_field("invalid_query", None::<&str>, format!("{name}: {what}"));
    let given = |name: &str| query.get(name).filter(|v| !v.is_empty());
    let number = |name: &str| {
        given(name).map(|v| v.parse::<u64>().map_err(|_| bad(name, "use a number".to_owned()))).transpose()
    };
    let state =
        given("state").map(|v| v.parse::<RequestState>().map_err(|e| bad("state", e.to_string()))).transpose()?;
    Ok(Filter {
        state,
        source: given("source").cloned(),
        after: number("after")?.unwrap_or(0),
        limit: number("limit")?.map_or(PAGE, |n| n.min(1000) as u32),
    })
}

/// `GET /holdfast/v1/requests`.
pub async fn list(State(app): State<Arc<App>>, Query(query): Query1) -> Response {
    let filter = match filter(&query) {
        Ok(filter) => filter,
        Err(refusal) => return refusal.into_response(),
    };
    let limit = filter.limit;
    // One more than is shown tells whether there are more.
    let asked = Filter { limit: limit.saturating_add(u32::from(limit > 0)), ..filter };
    match app.gateway.spool().list(asked).await {
        Err(error) => Refusal::from(error).into_response(),
        Ok(mut records) => {
            let has_more = records.len() > limit as usize;
            records.truncate(limit as usize);
            let next = records.last().filter(|_| has_more).map(|r| r.seq.to_string());
            let (tasks, prices) = (app.gateway.tasks(), app.gateway.prices());
            let data: Vec<_> = records.iter().map(|record| RecordJson::of(record, tasks, prices)).collect();
            ok(&json!({"object": "list", "data": data, "has_more": has_more, "next": next}))
        }
    }
}

/// `DELETE /holdfast/v1/requests?state=dead`.
pub async fn purge(State(app): State<Arc<App>>, Query(query): Query1) -> Response {
    // Left out, a condition would delete more than was asked for.
    if let Some(other) = query.keys().find(|name| *name != "state") {
        let message = "only whole states are deleted; write ?state= and nothing else";
        return Refusal::bad_field("invalid_query", Some(other.clone()), message).into_response();
    }
    let state = match filter(&query).map(|f| f.state) {
        Ok(Some(state)) if state.is_final() => state,
        Ok(_) => {
            let message = "name a final state: answered, expired, cancelled, evicted or dead";
            return Refusal::bad_field("invalid_query", Some("state"), message).into_response();
        }
        Err(refusal) => return refusal.into_response(),
    };
    match app.gateway.spool().purge(state).await {
        Ok(purged) => ok(&json!({"purged": purged})),
        Err(error) => Refusal::from(error).into_response(),
    }
}

/// `POST /holdfast/v1/cache/purge`.
pub async fn purge_cache(State(app): State<Arc<App>>) -> Response {
    let purged = app.cached.cache().purge().await;
    tracing::info!("the cache was emptied: {purged} answers");
    ok(&json!({"purged": purged}))
}

async fn find(app: &App, id: &str) -> Result<Record, Refusal> {
    app.gateway.spool().get(id.to_owned()).await?.ok_or_else(Refusal::no_such_request)
}

/// `GET /holdfast/v1/requests/{id}`.
pub async fn show(State(app): State<Arc<App>>, Named(id): Named) -> Response {
    match find(&app, &id).await {
        Ok(record) => shown(&app, record, StatusCode::OK, &Origin::default()).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// A record with its answers, which may be long.
pub async fn shown(app: &App, record: Record, status: StatusCode, origin: &Origin) -> Response {
    let _room = app.reshaping(record_json::reshaped_bytes(&record)).await;
    let next = next_attempt_at(app, &record).await;
    let gateway = app.gateway.clone();
    let text = move || record_json::spliced(&record, gateway.tasks(), gateway.prices(), next);
    match tokio::task::spawn_blocking(text).await {
        Ok(text) => answer::spliced(status, text, origin),
        Err(_) => Refusal::unreadable_body().into_response(),
    }
}

/// When it is sent at the earliest, in Unix seconds. One that is too dear waits for money, and nobody knows when that is there.
async fn next_attempt_at(app: &App, record: &Record) -> Option<u64> {
    let is_too_dear = record.last_error.as_ref().is_some_and(|error| error.kind == "budget_spent");
    if record.state != RequestState::Queued || is_too_dear {
        return None;
    }
    app.gateway.next_attempt_unix_ms(record.seq, &record.model).await.map(|ms| ms.div_ceil(1000))
}

/// `DELETE /holdfast/v1/requests/{id}`: cancels.
pub async fn cancel(State(app): State<Arc<App>>, Named(id): Named) -> Response {
    match try_cancel(&app, &id).await {
        Err(refusal) => refusal.into_response(),
        Ok(_) => show(State(app), Named(id)).await,
    }
}

/// Where it stands then: `cancelled`, or the final state that it had before.
async fn try_cancel(app: &App, id: &str) -> Result<RequestState, Refusal> {
    match app.gateway.cancel(id).await?.ok_or_else(Refusal::no_such_request)? {
        RequestState::Sending => Err(Refusal::request_sending()),
        RequestState::Cancelled => Ok(RequestState::Cancelled),
        state => Err(Refusal::not_cancellable(state)),
    }
}

/// `POST /holdfast/v1/requests/{id}/retry`.
pub async fn retry(State(app): State<Arc<App>>, Named(id): Named) -> Response {
    match app.gateway.retry(&id).await {
        Err(error) => Refusal::from(error).into_response(),
        Ok(None) => Refusal::no_such_request().into_response(),
        Ok(Some(RequestState::Queued)) => show(State(app), Named(id)).await,
        Ok(Some(state)) => {
            let message = format!("it is {state}; only expired, cancelled, evicted and dead requests can be retried");
            Refusal::new(StatusCode::CONFLICT, "not_retryable", message).into_response()
        }
    }
}

/// `?wait=S`: seconds, also parts of one.
fn wait(query: &HashMap<String, String>) -> Result<Duration, Refusal> {
    let Some(asked) = query.get("wait").filter(|asked| !asked.is_empty()) else { return Ok(Duration::ZERO) };
    let seconds = asked.parse::<f64>().ok().filter(|seconds| *seconds >= 0.0);
    let message = format!("wait: use a number of seconds, at most {}", WAIT_MAX.as_secs());
    let seconds = seconds.ok_or_else(|| Refusal::bad_field("invalid_query", Some("wait"), message))?;
    Ok(Duration::from_secs_f64(seconds.min(WAIT_MAX.as_secs_f64())))
}

/// `GET /v1/chat/completions/{id}`: a stored request's answer; `?wait=S` long-polls.
pub async fn completion(
    State(app): State<Arc<App>>,
    Named(id): Named,
    Query(query): Query1,
    request: Request,
) -> Response {
    if let Some(place) = request.extensions().get::<Lent>() {
        place.give_back();
    }
    if let Err(refusal) = find(&app, &id).await {
        return refusal.into_response();
    }
    let wait = match wait(&query) {
        Ok(wait) => wait,
        Err(refusal) => return refusal.into_response(),
    };
    match app.gateway.wait_final(&id, wait).await {
        Err(error) => Refusal::from(error).into_response(),
        Ok(Some(record)) => match answer::finished(record) {
            Finished::Answer(body, origin) => answer::stored(StatusCode::OK, body, &origin),
            Finished::Refused(status, body, origin) => answer::stored(status, body, &origin),
            Finished::Ended(refusal) => refusal.into_response(),
        },
        Ok(None) => {
            let message = "the request waits for an uplink; ask again";
            Refusal::new(StatusCode::CONFLICT, "request_pending", message)
                .retry_after(1)
                .header("x-should-retry", "true")
                .into_response()
        }
    }
}

/// `DELETE /v1/chat/completions/{id}`, in OpenAI's shape: cancels what waits, and its record says so; forgets what has ended, if it
/// was the same source's.
pub async fn delete_completion(State(app): State<Arc<App>>, Named(id): Named, request: Request) -> Response {
    match try_delete(&app, &call::source(&request), &id).await {
        Err(refusal) => refusal.into_response(),
        Ok(()) => ok(&json!({"object": "chat.completion.deleted", "id": id, "deleted": true})),
    }
}

async fn try_delete(app: &App, source: &str, id: &str) -> Result<(), Refusal> {
    let record = find(app, id).await?;
    responses::keep_lines(app, &record).await?;
    match app.gateway.cancel(id).await?.ok_or_else(Refusal::no_such_request)? {
        RequestState::Sending => Err(Refusal::request_sending()),
        RequestState::Cancelled => Ok(()),
        state if record.source != source => Err(Refusal::not_cancellable(state)),
        _ => {
            app.gateway.spool().forget(record.id).await?;
            Ok(())
        }
    }
}

/// `POST /holdfast/v1/drain`.
pub async fn drain(State(app): State<Arc<App>>) -> Response {
    app.gateway.drain_now();
    let is_paused = app.gateway.view().await.is_some_and(|view| view.paused);
    ok(&json!({"draining": !is_paused, "waiting": app.gateway.spool().tally().backlog()}))
}

/// `POST /holdfast/v1/pause`.
pub async fn pause(State(app): State<Arc<App>>) -> Response {
    app.gateway.pause(true).await;
    ok(&json!({"paused": true}))
}

/// `POST /holdfast/v1/resume`.
pub async fn resume(State(app): State<Arc<App>>) -> Response {
    app.gateway.pause(false).await;
    ok(&json!({"paused": false}))
}

type EventStream = Pin<Box<dyn Stream<Item = Result<SseEvent, Infallible>> + Send>>;
type Events = Sse<axum::response::sse::KeepAliveStream<EventStream>>;

/// `GET /holdfast/v1/events`.
///
/// With `bodies=1` the beginnings of requests and answers, too: over the UNIX socket only, whose mode says who may read them.
pub async fn events(State(app): State<Arc<App>>, Query(query): Query1, request: Request) -> Result<Events, Response> {
    let feed = app.gateway.feed();
    let with_bodies = query.get("bodies").is_some_and(|wish| wish == "1");
    let source = call::source(&request);
    if with_bodies && !source.starts_with("uid:") {
        let message = "bodies are shown over the UNIX socket only";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "bodies_forbidden", message).into_response());
    }
    if with_bodies {
        tracing::warn!(HOLDFAST_SOURCE = source, "bodies of requests and answers are shown to {source} (tap --bodies)");
    }
    let feed = if with_bodies { feed.subscribe_with_bodies() } else { feed.subscribe() };
    Ok(Follow { feed, stop: app.stop.clone(), only: None, first: None }.stream())
}

/// `GET /holdfast/v1/requests/{id}/events`: where it stands, then its changes; ends with its final state.
pub async fn request_events(State(app): State<Arc<App>>, Named(id): Named) -> Result<Events, Response> {
    // Listening begins before the look, so that no change falls between the two.
    let feed = app.gateway.feed().subscribe();
    let record = find(&app, &id).await.map_err(Refusal::into_response)?;
    let mut now = feed::Event::new("request");
    now.source = Some(record.source);
    now.state = Some(record.state.as_str());
    now.reason = record.reason.or(record.maybe_billed.then(|| "maybe_billed".to_owned()));
    now.id = Some(id.clone());
    let follow = Follow { feed, stop: app.stop.clone(), only: Some(id), first: Some(now) };
    Ok(follow.stream())
}

/// A listener to live events; one that fell behind is told how many it lost.
struct Follow {
    feed: broadcast::Receiver<Arc<feed::Event>>,
    stop: watch::Receiver<bool>,
    only: Option<String>,
    first: Option<feed::Event>,
}

impl Follow {
    fn stream(self) -> Events {
        let events = stream::unfold(Some(self), |follow| async move {
            let mut follow = follow?;
            let (event, ends) = follow.next().await?;
            Some((Ok(event), (!ends).then_some(follow)))
        });
        let events: EventStream = Box::pin(events);
        Sse::new(events).keep_alive(KeepAlive::new().interval(EVENTS_KEEP_ALIVE))
    }

    /// The next event, and whether the stream ends with it.
    async fn next(&mut self) -> Option<(SseEvent, bool)> {
        if let Some(first) = self.first.take() {
            return Some((sse(&first), is_final(&first)));
        }
        loop {
            let next = tokio::select! {
                next = self.feed.recv() => next,
                () = super::listen::stopped(&mut self.stop) => return None,
            };
            match next {
                Ok(event) if self.only.is_some() && event.id != self.only => {}
                Ok(event) => return Some((sse(&event), self.only.is_some() && is_final(&event))),
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    let data = json!({"event": "lost", "count": lost}).to_string();
                    return Some((SseEvent::default().event("lost").data(data), false));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

fn is_final(event: &feed::Event) -> bool {
    event.state.and_then(|s| s.parse().ok()).is_some_and(RequestState::is_final)
}

fn sse(event: &feed::Event) -> SseEvent {
    let data = serde_json::to_string(event).unwrap_or_default();
    SseEvent::default().event(event.event).data(data)
}

#[cfg(test)]
mod tests {
    use super::per_day;

    #[test]
    fn what_is_written_in_a_day_is_told_after_an_hour() {
        assert_eq!(per_day(1000, 3_599_999), None);
        assert_eq!(per_day(1000, 3_600_000), Some(24_000));
        assert_eq!(per_day(1000, 48 * 3_600_000), Some(500));
        assert_eq!(per_day(u64::MAX, 3_600_000), Some(u64::MAX));
    }
}
