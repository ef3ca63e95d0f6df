//! `/v1/batches`: many requests in one file, answered in another.
//!
//! Owns the shapes of OpenAI's batch objects. What a batch does is `batch`'s; one of an uplink's file goes to that uplink.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::response::Response;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{self, forwardable, read_body};
use super::files::{Asked, ok, page, path_of};
use super::path::Named;
use super::refusal::Refusal;
use super::wants::Wants;
use super::{App, kept, passthrough};
use crate::batch::{BATCH_PREFIX, ENDPOINTS, FILE_PREFIX, NewBatch, Standing, Status};
use crate::control::types::Priority;

/// Entries of one page where `limit` says nothing, and at most.
const PAGE: usize = 20;
const PAGE_MAX: usize = 100;
/// The only window that OpenAI knows.
const WINDOW: &str = "24h";
const WINDOW_TIME: Duration = Duration::from_hours(24);
/// What OpenAI takes as metadata: pairs, and bytes of names and values.
const METADATA_MAX: (usize, usize, usize) = (16, 64, 512);
/// Largest body that asks for a batch.
const BODY_BYTES_MAX: u64 = 64 * 1024;

/// Whose batch it is to be.
#[derive(Deserialize)]
struct Of {
    input_file_id: String,
}

#[derive(Deserialize)]
struct New {
    input_file_id: String,
    endpoint: String,
    completion_window: String,
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
}

/// `POST /v1/batches`.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Response {
    match try_create(&app, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn try_create(app: &App, request: Request) -> Result<Response, Refusal> {
    let (source, path, headers) = (call::source(&request), path_of(&request), request.headers().clone());
    call::require_json(&headers)?;
    let body = read_body(app.gateway.spool().bodies(), request, BODY_BYTES_MAX).await?;
    let text = body.whole().await.map_err(|_| Refusal::unreadable_body())?;
    let of = serde_json::from_slice::<Of>(&text);
    // An uplink's file makes an uplink's batch, and what it thinks of a strange body is its own matter.
    if !of.is_ok_and(|of| of.input_file_id.starts_with(FILE_PREFIX)) && app.gateway.is_online() {
        return Ok(passthrough::pass_on(app, &source, Method::POST, path, forwardable(&headers), body).await);
    }
    let new = serde_json::from_slice::<New>(&text).map_err(|_| {
        let message =
            "a batch needs input_file_id, endpoint and completion_window as strings, and in metadata nothing but strings";
        Refusal::bad_field("missing_required_parameter", None::<&str>, message)
    })?;
    check(&new)?;
    let wants = Wants::read(&headers, app.options.offline)?;
    let priority = if headers.contains_key("x-holdfast-priority") { wants.priority } else { Priority::Low };
    let made = app.later.create(NewBatch {
        source,
        endpoint: new.endpoint,
        input_file_id: new.input_file_id,
        idempotency_key: wants.idempotency_key,
        metadata: new.metadata,
        priority,
        ttl: wants.ttl.unwrap_or(WINDOW_TIME),
    });
    let (standing, existing) = made.await?;
    let mut response = ok(&object(&standing));
    if existing {
        kept::replayed(&mut response);
    }
    Ok(response)
}

fn check(new: &New) -> Result<(), Refusal> {
    let wrong = |param: &'static str, message: String| Err(Refusal::bad_field("invalid_value", Some(param), message));
    if !ENDPOINTS.contains(&new.endpoint.as_str()) {
        return wrong("endpoint", format!("endpoint must be one of {}", ENDPOINTS.join(", ")));
    }
    if new.completion_window != WINDOW {
        return wrong("completion_window", format!("completion_window must be {WINDOW}"));
    }
    let (pairs, name, value) = METADATA_MAX;
    let is_long = |metadata: &BTreeMap<String, String>| {
        metadata.len() > pairs || metadata.iter().any(|(k, v)| k.len() > name || v.len() > value)
    };
    if new.metadata.as_ref().is_some_and(is_long) {
        return wrong("metadata", format!("metadata has at most {pairs} pairs of at most {name} and {value} bytes"));
    }
    Ok(())
}

fn object(standing: &Standing) -> Value {
    let batch = &standing.manifest;
    let at = |status: Status| batch.since(status);
    let has_ended = batch.status.is_final();
    let errors = (!batch.faults.is_empty()).then(|| json!({"object": "list", "data": batch.faults}));
    json!({
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": errors,
        "input_file_id": batch.input_file_id,
        "completion_window": WINDOW,
        "status": batch.status.as_str(),
        "output_file_id": (has_ended && standing.completed > 0).then_some(&batch.output_file_id),
        "error_file_id": (has_ended && standing.failed > 0).then_some(&batch.error_file_id),
        "created_at": batch.created_at,
        "in_progress_at": at(Status::InProgress),
        "expires_at": if batch.status.is_final() { batch.created_at + batch.ttl_ms / 1000 } else { standing.expires_at },
        "finalizing_at": at(Status::Finalizing),
        "completed_at": at(Status::Completed),
        "failed_at": at(Status::Failed),
        "expired_at": at(Status::Expired),
        "cancelling_at": at(Status::Cancelling),
        "cancelled_at": at(Status::Cancelled),
        "request_counts": {"total": batch.total, "completed": standing.completed, "failed": standing.failed},
        "metadata": batch.metadata,
    })
}

/// `GET /v1/batches`: those kept here, newest first.
pub async fn list(State(app): State<Arc<App>>, Query(asked): Asked, request: Request) -> Response {
    let batches = app.later.batches(&call::source(&request));
    let all = batches.iter().map(|standing| (standing.manifest.id.as_str(), object(standing))).collect();
    page(all, &asked, PAGE, PAGE_MAX).map_or_else(Refusal::into_response, |page| ok(&page))
}

/// `/v1/batches/{id}`: one of ours, or an uplink's.
pub async fn one(State(app): State<Arc<App>>, Named(id): Named, request: Request) -> Response {
    if !id.starts_with(BATCH_PREFIX) {
        return passthrough::any_v1(State(app), request).await;
    }
    if request.method() != Method::GET {
        return super::unknown_method().await;
    }
    shown(app.later.batch(&call::source(&request), &id))
}

/// `POST /v1/batches/{id}/cancel`.
pub async fn cancel(State(app): State<Arc<App>>, Named(id): Named, request: Request) -> Response {
    if !id.starts_with(BATCH_PREFIX) {
        return passthrough::any_v1(State(app), request).await;
    }
    shown(app.later.cancel(&call::source(&request), &id).await)
}

fn shown(found: Result<Standing, crate::batch::LaterError>) -> Response {
    found.map_or_else(|error| Refusal::from(error).into_response(), |standing| ok(&object(&standing)))
}
