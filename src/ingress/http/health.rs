//! Whether the gateway lives, what it counts, and a page for a browser.
//!
//! `/health` answers from memory: it must stay true and quick while every uplink and the local model are down.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::{Map, json};

use super::App;
use super::admin::{overall, pause_sentence, sentence, storage};
use super::answer::{Origin, json};
use super::openai::ENDPOINTS;
use super::refusal::Refusal;
use crate::clock;
use crate::control::UplinkView;
use crate::control::breaker::BreakerState;
use crate::control::health::Health;
use crate::control::types::State as RequestState;
use crate::spool::Condition;
use crate::telemetry::metrics::{self, Readings, UplinkReading};
use crate::uplink::cloud::Cloud;
use crate::uplink::local::State as LocalState;

fn text(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// `GET /health` and `/readyz`.
pub async fn health(State(app): State<Arc<App>>, request: Request) -> Response {
    let wants_json =
        request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("application/json"));
    if wants_json {
        return providers(State(app)).await;
    }
    match unable(&app) {
        None => text(StatusCode::OK, "text/plain; charset=utf-8", "healthy\n"),
        Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", format!("{why}\n")),
    }
}

/// Why the gateway cannot accept, where it cannot. What is answered at once goes on all the same.
pub fn unable(app: &App) -> Option<&'static str> {
    if !app.gateway.is_accepting() {
        return Some("stopping");
    }
    match app.gateway.spool().condition() {
        Condition::Fine => app.gateway.spool().bodies().trouble(),
        Condition::Full => Some("disk_full"),
        Condition::ReadOnly => Some("disk_read_only"),
        Condition::Failing => Some("disk_failing"),
    }
}

/// `GET /livez`: the process answers.
pub async fn live() -> Response {
    text(StatusCode::OK, "text/plain; charset=utf-8", "alive\n")
}

/// `GET /v1/health`.
pub async fn providers(State(app): State<Arc<App>>) -> Response {
    let Some(view) = app.gateway.view().await else { return Refusal::stopping().into_response() };
    let now_ms = app.gateway.now_ms();
    let unix_ms = clock::unix_ms();
    let mut providers = Map::new();
    for (cloud, u) in app.gateway.uplinks().iter().zip(&view.uplinks) {
        let last_check = u.last_check_ms.map(|at| unix_ms.saturating_sub(now_ms.saturating_sub(at)) / 1000);
        providers.insert(
            cloud.name().to_owned(),
            json!({
                "status": u.health.as_str(),
                "latency_ms": u.latency_ms,
                "consecutive_failures": u.failures,
                "last_check": last_check,
                "note": note(u, now_ms),
            }),
        );
    }
    let overall = match overall(&view) {
        "online" => "healthy",
        "degraded" => "degraded",
        _ => "unhealthy",
    };
    let unable = unable(&app);
    let status = if unable.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "timestamp": unix_ms / 1000,
        "overall_status": if unable.is_none() { overall } else { "unhealthy" },
        "reason": unable,
        "providers": providers,
        "budget": super::spend::paused(&app.gateway.money().view()),
        "storage": storage(&view, unable),
    });
    json(status, body.to_string(), &Origin::default())
}

/// One plain sentence where something keeps requests from an uplink.
fn note(u: &UplinkView, now_ms: u64) -> Option<String> {
    let paused = u.paused.map(|(block, until)| pause_sentence(block, u.fault, until.saturating_sub(now_ms)));
    paused.or_else(|| u.fault.map(|fault| sentence(fault).to_owned()))
}

/// `GET /metrics`.
pub async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let tally = app.gateway.spool().tally();
    let mut readings = Readings {
        states: RequestState::ALL.iter().map(|s| (s.as_str(), tally.in_state(*s))).collect(),
        backlog_bytes: tally.backlog_bytes,
        oldest_age_s: tally
            .oldest_powered_ms
            .map_or(0, |at| app.gateway.spool().powered_ms().saturating_sub(at) / 1000),
        commits: tally.commits,
        budget: {
            let view = app.gateway.money().view();
            (view.cap_usd.unwrap_or(0.0), view.spent_usd, view.reserved_usd)
        },
        cache: app.cached.cache().size(),
        ..Readings::default()
    };
    if let Some(look) = app.gateway.local().last_look() {
        readings.local = LocalState::ALL.map(|state| (state.as_str(), state == look.state)).to_vec();
    }
    readings.host = app.board.latest().await;
    if let Some(view) = app.gateway.view().await {
        readings.seconds_to_drain = view.seconds_to_drain;
        let uplinks = app.gateway.uplinks().iter().zip(&view.uplinks);
        let one = |(cloud, u): (&Arc<Cloud>, &UplinkView)| UplinkReading {
            name: cloud.name().to_owned(),
            is_available: u.available,
            is_breaker_open: u.breaker != BreakerState::Closed,
            health: Health::ALL.map(|health| (health.as_str(), health == u.health)),
        };
        readings.uplinks = uplinks.map(one).collect();
    }
    let mut body = app.gateway.metrics().render(&readings);
    super::links::metrics(&app.links, &mut body);
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("application/openmetrics-text") {
        return text(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body);
    }
    text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics::prometheus_text(&body))
}

/// `GET /`: what there is, for a person with a browser.
pub async fn page(State(app): State<Arc<App>>) -> Response {
    let Some(view) = app.gateway.view().await else { return Refusal::stopping().into_response() };
    let tally = app.gateway.spool().tally();
    let mut rows = String::new();
    for (cloud, u) in app.gateway.uplinks().iter().zip(&view.uplinks) {
        rows += &format!("<tr><td>{}<td>{}<td>{}", escape(cloud.name()), u.health, u.breaker);
    }
    let page = format!(
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=5><title>holdfast</title>\
         <style>body{{font:16px sans-serif;margin:2em}}td,th{{padding:.2em 1em;text-align:left}}</style>\
         <h1>{}: {}</h1><table><tr><th>uplink<th>health<th>breaker{rows}</table>\
         <p>{} waiting, {} answered, {} dead letters</p>\
         <p>ask by POST to {}</p>\
         <p><a href=/holdfast/v1/status>status</a> <a href=/holdfast/v1/requests>requests</a> \
         <a href=/metrics>metrics</a> <a href=/v1/models>models</a> <a href=/health>health</a></p>",
        escape(&app.options.device_id),
        overall(&view),
        tally.backlog(),
        tally.in_state(RequestState::Answered),
        tally.in_state(RequestState::Dead),
        ENDPOINTS.join(", "),
    );
    text(StatusCode::OK, "text/html; charset=utf-8", page)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
