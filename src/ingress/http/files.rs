//! `/v1/files`: files of requests, kept here; whatever is no batch goes to an uplink as it came.
//!
//! Owns the shapes of OpenAI's file objects. Which files there are, and for how long, is `batch`'s.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::answer::{self, Origin};
use super::call::{self, forwardable, read_body};
use super::path::Named;
use super::refusal::Refusal;
use super::{App, multipart, passthrough};
use crate::batch::{FILE_PREFIX, FileMeta, LaterError};
use crate::body::PIECE_BYTES;

/// Largest upload: what OpenAI takes for a batch.
pub const UPLOAD_BYTES_MAX: u64 = 200 * 1024 * 1024;
/// Entries of one page of a list, where `limit` says nothing.
const PAGE: usize = 10_000;

/// What a list is asked for.
pub type Asked = Query<HashMap<String, String>>;

impl From<LaterError> for Refusal {
    fn from(error: LaterError) -> Self {
        let message = error.to_string();
        match error {
            LaterError::NoSuchFile(_) => Refusal::new(StatusCode::NOT_FOUND, "file_not_found", message),
            LaterError::NoSuchBatch(_) => Refusal::new(StatusCode::NOT_FOUND, "batch_not_found", message),
            LaterError::Field { param, .. } => Refusal::bad_field("invalid_value", Some(param), message),
            LaterError::KeyReused => Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", message),
            LaterError::InUse => {
                Refusal::new(StatusCode::CONFLICT, "file_in_use", message).header("x-should-retry", "false")
            }
            LaterError::Ended(_) => {
                Refusal::new(StatusCode::CONFLICT, "batch_ended", message).header("x-should-retry", "false")
            }
            LaterError::TooManyFiles | LaterError::TooManyBytes(_) => {
                Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "files_full", message).header("x-should-retry", "false")
            }
            LaterError::TooManyBatches => Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many_batches", message)
                .retry_after(30)
                .header("x-should-retry", "false"),
            LaterError::Disk(_) => Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", message).retry_after(30),
        }
    }
}

/// A value as an answer.
pub fn ok(value: &Value) -> Response {
    answer::json(StatusCode::OK, value.to_string(), &Origin::default())
}

fn object(meta: &FileMeta) -> Value {
    json!({
        "id": meta.id,
        "object": "file",
        "bytes": meta.bytes,
        "created_at": meta.created_at,
        "expires_at": null,
        "filename": meta.filename,
        "purpose": meta.purpose,
        "status": "processed",
        "status_details": null,
    })
}

/// `POST /v1/files`.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Response {
    match try_create(&app, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn try_create(app: &App, request: Request) -> Result<Response, Refusal> {
    let (source, path) = (call::source(&request), path_of(&request));
    let headers = request.headers().clone();
    let body = read_body(app.gateway.spool().bodies(), request, UPLOAD_BYTES_MAX).await?;
    let form = multipart::look(&headers, &body).await?;
    if form.purpose.as_deref() != Some("batch") {
        if body.len() > app.options.max_body {
            return Err(Refusal::too_large(app.options.max_body));
        }
        return Ok(passthrough::pass_on(app, &source, Method::POST, path, forwardable(&headers), body).await);
    }
    let missing = || Refusal::bad_field("missing_required_parameter", Some("file"), "the form has no part named file");
    let meta = multipart::keep(&app.later, &source, &headers, &body, form.file.ok_or_else(missing)?).await?;
    Ok(ok(&object(&meta)))
}

/// Path and query of a request, to be passed on.
pub fn path_of(request: &Request) -> String {
    request.uri().path_and_query().map_or_else(String::new, ToString::to_string)
}

/// `GET /v1/files`: those kept here; with another purpose than ours, an uplink's.
pub async fn list(State(app): State<Arc<App>>, Query(asked): Asked, request: Request) -> Response {
    let purpose = asked.get("purpose").map(String::as_str);
    if purpose.is_some_and(|purpose| !matches!(purpose, "batch" | "batch_output")) {
        return passthrough::any_v1(State(app), request).await;
    }
    let mut files = app.later.files(&call::source(&request));
    files.retain(|meta| purpose.is_none_or(|purpose| meta.purpose == purpose));
    if asked.get("order").is_none_or(|order| order != "asc") {
        files.reverse();
    }
    let all = files.iter().map(|meta| (meta.id.as_str(), object(meta))).collect();
    page(all, &asked, PAGE, PAGE).map_or_else(Refusal::into_response, |page| ok(&page))
}

/// One page of a list in OpenAI's shape.
pub fn page(
    all: Vec<(&str, Value)>,
    asked: &HashMap<String, String>,
    default: usize,
    most: usize,
) -> Result<Value, Refusal> {
    let wrong = |param: &'static str, message: String| Refusal::bad_field("invalid_value", Some(param), message);
    let limit = match asked.get("limit").map(|limit| limit.parse::<usize>()) {
        None => default,
        Some(Ok(limit)) if (1..=most).contains(&limit) => limit,
        Some(_) => return Err(wrong("limit", format!("limit must be a number from 1 to {most}"))),
    };
    let first = match asked.get("after") {
        None => 0,
        Some(after) => {
            let at = all.iter().position(|(id, _)| id == after);
            at.ok_or_else(|| wrong("after", "there is nothing with the id that after names".to_owned()))? + 1
        }
    };
    let has_more = all.len() > first + limit;
    let shown: Vec<(&str, Value)> = all.into_iter().skip(first).take(limit).collect();
    let id = |entry: Option<&(&str, Value)>| entry.map(|(id, _)| (*id).to_owned());
    let (first_id, last_id) = (id(shown.first()), id(shown.last()));
    let data: Vec<Value> = shown.into_iter().map(|(_, value)| value).collect();
    Ok(json!({"object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": has_more}))
}

/// `/v1/files/{id}`: one of ours, or an uplink's.
pub async fn one(State(app): State<Arc<App>>, Named(id): Named, request: Request) -> Response {
    if !id.starts_with(FILE_PREFIX) {
        return passthrough::any_v1(State(app), request).await;
    }
    let source = call::source(&request);
    let done = match *request.method() {
        Method::GET => app.later.file(&source, &id).map(|meta| object(&meta)),
        Method::DELETE => {
            app.later.remove_file(&source, &id).await.map(|()| json!({"id": id, "object": "file", "deleted": true}))
        }
        _ => return super::unknown_method().await,
    };
    done.map_or_else(|error| Refusal::from(error).into_response(), |value| ok(&value))
}

/// `GET /v1/files/{id}/content`.
pub async fn content(State(app): State<Arc<App>>, Named(id): Named, request: Request) -> Response {
    if !id.starts_with(FILE_PREFIX) {
        return passthrough::any_v1(State(app), request).await;
    }
    let meta = match app.later.file(&call::source(&request), &id) {
        Ok(meta) => meta,
        Err(error) => return Refusal::from(error).into_response(),
    };
    let Ok(file) = tokio::fs::File::open(app.later.path(&meta)).await else {
        return Refusal::unreadable_body().into_response();
    };
    let length = HeaderValue::from(meta.bytes);
    let reading = Reading { file, hasher: Sha256::new(), left: meta.bytes, meta };
    let mut response = Response::new(Body::from_stream(stream::try_unfold(reading, Reading::next)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, length);
    response
}

/// A file on its way out; its last piece leaves only if all of it is as it was written, so damage looks like a broken
/// connection and never like a whole file.
struct Reading {
    file: tokio::fs::File,
    hasher: Sha256,
    left: u64,
    meta: FileMeta,
}

impl Reading {
    async fn next(mut self) -> io::Result<Option<(Bytes, Reading)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(self.left).unwrap_or(PIECE_BYTES))];
        self.file.read_exact(&mut piece).await?;
        self.hasher.update(&piece);
        self.left -= piece.len() as u64;
        if self.left == 0 {
            let digest = std::mem::take(&mut self.hasher).finalize();
            if !self.meta.has_sum(&digest) {
                tracing::error!("a kept file is damaged: its content is not what was written");
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(Some((Bytes::from(piece), self)))
    }
}
