//! `/v1/responses`: with `background` stored first and fetched later; anything else goes to an uplink as it came.
//!
//! Owns the shape of a response that is not there yet. Its id follows from the stored request's, so nothing is kept twice.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::answer::{self, Finished, Origin};
use super::call::{self, Arrived, Call, forwardable, read_body};
use super::files::{ok, path_of};
use super::path::Named;
use super::refusal::Refusal;
use super::{App, passthrough};
use crate::body::Body;
use crate::clock;
use crate::control::types::{Policy, State as RequestState};
use crate::spool::record::Record;
use crate::uplink::body::Spliced;
use crate::uplink::classify;

/// The path that these requests are stored under.
const ENDPOINT: &str = "/v1/responses";
/// So far into a response its first brace is looked for, behind blanks.
const START_BYTES_MAX: usize = 4096;
/// What our ids begin with; the stored request's digits follow.
pub const PREFIX: &str = "resp_hf_";

type Asked = Query<HashMap<String, String>>;

/// `POST /v1/responses`.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Response {
    match try_create(app, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn try_create(app: Arc<App>, request: Request) -> Result<Response, Refusal> {
    let received = clock::now();
    let (parts, content) = request.into_parts();
    let head = Request::from_parts(parts.clone(), HttpBody::empty());
    let bodies = app.gateway.spool().bodies();
    let body = read_body(bodies, Request::from_parts(parts, content), app.options.max_body).await?;
    let is_background = body.layout().as_ref().is_ok_and(|layout| {
        layout.get("background").is_some_and(|member| member.is_whole() && member.start == b"true")
    });
    if !is_background {
        let (source, path) = (call::source(&head), path_of(&head));
        return Ok(passthrough::pass_on(&app, &source, Method::POST, path, forwardable(head.headers()), body).await);
    }
    call::require_json(head.headers())?;
    let arrived = Arrived::read(&head, received, app.options.offline)?;
    store(&Call::checked(app, ENDPOINT, arrived, body, None).await?).await
}

async fn store(call: &Call) -> Result<Response, Refusal> {
    if call.head.stream {
        let message = "a background response is not streamed here; leave stream out and fetch the response by its id";
        return Err(Refusal::bad_field("unsupported_value", Some("stream"), message));
    }
    if call.head.store == Some(false) {
        let message = "a background response must be stored to be fetched; leave store out";
        return Err(Refusal::bad_field("unsupported_value", Some("store"), message));
    }
    let mut new = call.to_store(false, false);
    // Its caller comes back for it: nothing is to be answered by another model meanwhile.
    new.policy = Policy::Queue;
    let accepted = call.app.gateway.store(new.clone()).await?;
    let record = if accepted.existing {
        call.app.gateway.spool().get(accepted.id.clone()).await?.ok_or_else(|| no_such(&accepted.id))?
    } else {
        new.into_record(&accepted, clock::unix_ms(), 0)
    };
    let origin = Origin { route: None, id: Some(record.id.clone()), state: Some(record.state), ..Origin::default() };
    call.app.answered(call, &origin, "accepted");
    shown(&call.app, record).await
}

fn no_such(id: &str) -> Refusal {
    let message = format!("Response with id '{id}' not found; it may have been deleted, or pruned after its time.");
    Refusal::new(StatusCode::NOT_FOUND, "response_not_found", message)
}

fn our_id(request_id: &str) -> String {
    format!("{PREFIX}{}", request_id.trim_start_matches("req_"))
}

async fn find(app: &App, source: &str, id: &str) -> Result<Record, Refusal> {
    let digits = id.strip_prefix(PREFIX).unwrap_or_default();
    let found = app.gateway.spool().get(format!("req_{digits}")).await?;
    found.filter(|r| r.source == source && r.endpoint == ENDPOINT).ok_or_else(|| no_such(id))
}

/// A batch's lines have ids of the same kind, and are the batch's to end.
pub async fn keep_lines(app: &App, record: &Record) -> Result<(), Refusal> {
    if !app.later.is_line(&record.source, &record.id).await {
        return Ok(());
    }
    let message = "it is a line of a batch that has not ended; cancel the batch, or wait for its end";
    Err(Refusal::new(StatusCode::CONFLICT, "batch_line", message).header("x-should-retry", "false"))
}

/// `/v1/responses/{id}`: one of ours, or an uplink's.
pub async fn one(State(app): State<Arc<App>>, Named(id): Named, Query(asked): Asked, request: Request) -> Response {
    if !id.starts_with(PREFIX) {
        return passthrough::any_v1(State(app), request).await;
    }
    let source = call::source(&request);
    let done = match *request.method() {
        Method::GET if asked.get("stream").is_some_and(|stream| stream == "true") => {
            let message = "a background response is not streamed here; ask again without stream";
            Err(Refusal::bad_field("unsupported_value", Some("stream"), message))
        }
        Method::GET => match find(&app, &source, &id).await {
            Ok(record) => shown(&app, record).await,
            Err(refusal) => Err(refusal),
        },
        Method::DELETE => delete(&app, &source, &id).await,
        _ => return super::unknown_method().await,
    };
    done.unwrap_or_else(Refusal::into_response)
}

/// `POST /v1/responses/{id}/cancel`.
pub async fn cancel(State(app): State<Arc<App>>, Named(id): Named, request: Request) -> Response {
    if !id.starts_with(PREFIX) {
        return passthrough::any_v1(State(app), request).await;
    }
    try_cancel(&app, &call::source(&request), &id).await.unwrap_or_else(Refusal::into_response)
}

async fn try_cancel(app: &App, source: &str, id: &str) -> Result<Response, Refusal> {
    let record = find(app, source, id).await?;
    keep_lines(app, &record).await?;
    match app.gateway.cancel(&record.id).await?.ok_or_else(|| no_such(id))? {
        RequestState::Cancelled => shown(app, find(app, source, id).await?).await,
        RequestState::Sending => Err(Refusal::request_sending()),
        state => Err(Refusal::not_cancellable(state)),
    }
}

async fn delete(app: &App, source: &str, id: &str) -> Result<Response, Refusal> {
    let record = find(app, source, id).await?;
    keep_lines(app, &record).await?;
    if app.gateway.cancel(&record.id).await? == Some(RequestState::Sending) {
        return Err(Refusal::request_sending());
    }
    if !app.gateway.spool().forget(record.id).await? {
        return Err(no_such(id));
    }
    Ok(ok(&json!({"id": id, "object": "response", "deleted": true})))
}

/// A record as the response it is, or is to become.
async fn shown(app: &App, record: Record) -> Result<Response, Refusal> {
    let id = our_id(&record.id);
    let open = object(&id, &record);
    let status = match record.state {
        RequestState::Queued => "queued",
        RequestState::Sending | RequestState::Unknown => "in_progress",
        RequestState::Cancelled => "cancelled",
        _ => return ended(app, id, open, record).await,
    };
    Ok(said(open, status, &record))
}

fn said(mut object: Value, status: &str, record: &Record) -> Response {
    object["status"] = json!(status);
    let origin = Origin { route: None, id: Some(record.id.clone()), state: Some(record.state), ..Origin::default() };
    answer::json(StatusCode::OK, object.to_string(), &origin)
}

/// What every response has, with nothing in it yet.
fn object(id: &str, record: &Record) -> Value {
    json!({
        "id": id,
        "object": "response",
        "created_at": record.created_unix_ms / 1000,
        "background": true,
        "error": null,
        "incomplete_details": null,
        "instructions": null,
        "metadata": {},
        "model": record.model,
        "output": [],
        "parallel_tool_calls": true,
        "temperature": null,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": null,
        "usage": null,
    })
}

async fn ended(app: &App, id: String, mut open: Value, record: Record) -> Result<Response, Refusal> {
    let (code, message) = match answer::finished(record.clone()) {
        Finished::Answer(body, origin) => {
            return Ok(answer::spliced(StatusCode::OK, renamed(&body, &id).await, &origin));
        }
        Finished::Refused(_, body, _) => {
            let _room = app.reshaping(body.len()).await;
            let words = body.whole().await.ok().and_then(|text| classify::message(&text));
            ("invalid_prompt", words.unwrap_or_else(|| "the uplink refused it".to_owned()))
        }
        Finished::Ended(refusal) => (refusal.code(), refusal.message().to_owned()),
    };
    open["error"] = json!({"code": code, "message": message});
    Ok(said(open, "failed", &record))
}

/// The uplink's own response under our id. Its other values leave as they came, in slices: they may be megabytes. What the
/// scanner does not take (a deciding field twice) leaves as it is.
async fn renamed(body: &Body, id: &str) -> Spliced {
    let mut spliced = Spliced::from(body.clone());
    let Ok(layout) = body.layout() else { return spliced };
    let mut missing = String::new();
    for (name, value) in [("id", Value::from(id).to_string()), ("background", "true".to_owned())] {
        match layout.get(name) {
            Some(member) => spliced.edits.push((member.at.clone(), value.into())),
            None => missing += &format!("\"{name}\":{value},"),
        }
    }
    if !missing.is_empty() {
        let start = body.start_off_thread(START_BYTES_MAX).await.unwrap_or_default();
        if let Some(brace) = start.iter().position(|byte| *byte == b'{') {
            let behind = brace as u64 + 1;
            if start[brace + 1..].trim_ascii_start().starts_with(b"}") {
                missing.pop();
            }
            spliced.edits.push((behind..behind, missing.into()));
        }
    }
    spliced.edits.sort_by_key(|(at, _)| at.start);
    spliced
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::uplink::outgoing::Outgoing;

    #[tokio::test]
    async fn a_response_gets_our_id_and_keeps_its_other_bytes() {
        for (came, shown) in [
            (r#" {"id":"r", "background": false,"n":1e0}"#, r#" {"id":"ours", "background": true,"n":1e0}"#),
            (r#"{"background":false,"id":"r"}"#, r#"{"background":true,"id":"ours"}"#),
            (r#"{"id":"r","n":{"id":1}}"#, r#"{"background":true,"id":"ours","n":{"id":1}}"#),
            (r#"{"id":"r","id":"s"}"#, r#"{"background":true,"id":"r","id":"ours"}"#),
            (r#" {"n":1}"#, r#" {"id":"ours","background":true,"n":1}"#),
            ("{ }", r#"{"id":"ours","background":true }"#),
            ("[1]", "[1]"),
        ] {
            let body = Body::from(came.as_bytes().to_vec());
            let sent = Outgoing::new(renamed(&body, "ours").await, None).0.collect().await.unwrap().to_bytes();
            assert_eq!(String::from_utf8_lossy(&sent), shown);
        }
    }
}
