//! `/holdfast/v1/tasks`: canned prompts by number or name, for callers that send values and want a code back.
//!
//! Owns the shapes of call and answer. A call becomes an ordinary chat request and goes the way of all of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{self, Origin};
use super::call::{self, Arrived, Call};
use super::path::Named;
use super::refusal::Refusal;
use super::{App, late, offline, openai};
use crate::body::Body;
use crate::clock;
use crate::control::types::Policy;
use crate::spool::record::LocalAnswer;
use crate::task::{Args, Fault, Filled, Picture, Piece, Reading, Task, WHOLE_BYTES_MAX, said};
use crate::uplink::local::Content;

/// What a caller sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked<'a> {
    #[serde(default)]
    args: Given,
    #[serde(default, borrow)]
    images: Vec<Image<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Named(BTreeMap<String, Value>),
    Positional(Vec<Value>),
}

impl Default for Given {
    fn default() -> Self {
        Given::Positional(Vec::new())
    }
}

/// A data URL; borrowed, because it is most of the body.
#[derive(Deserialize)]
struct Image<'a>(#[serde(borrow)] Cow<'a, str>);

/// `GET /holdfast/v1/tasks`.
pub async fn list(State(app): State<Arc<App>>) -> Response {
    let shown = |task| shown(task, app.options.offline);
    let tasks: Vec<Value> = app.gateway.tasks().tasks().iter().map(shown).collect();
    answer::json(StatusCode::OK, json!({"object": "list", "data": tasks}).to_string(), &Origin::default())
}

fn shown(task: &Task, default: Policy) -> Value {
    let options = task.options();
    let args = task
        .args()
        .iter()
        .map(|arg| json!({"name": arg.name, "type": arg.kind.as_str(), "min": arg.min, "max": arg.max}));
    json!({
        "id": options.id,
        "name": options.name,
        "model": options.model,
        "args": args.collect::<Vec<_>>(),
        "pictures": options.pictures,
        "schema": task.has_schema(),
        "offline": options.offline.unwrap_or(default).as_str(),
        "max_answer": options.max_answer,
    })
}

/// `POST /holdfast/v1/tasks/{id or name}`.
pub async fn call(State(app): State<Arc<App>>, Named(which): Named, request: Request) -> Response {
    let Some(task) = app.gateway.tasks().find(&which).map(Task::id) else {
        call::discard(request.into_body());
        let message = "no task has this number or name; GET /holdfast/v1/tasks lists them";
        return Refusal::new(StatusCode::NOT_FOUND, "task_not_found", message).into_response();
    };
    match begin(app, task, request).await {
        Ok(call) => answered(Arc::new(call)).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Reads and checks a call, and makes the chat request of it.
async fn begin(app: Arc<App>, number: u16, request: Request) -> Result<Call, Refusal> {
    let received = clock::now();
    let task = app.gateway.tasks().get(number).ok_or_else(Refusal::stopping)?;
    let arrived = Arrived::read(&request, received, task.options().offline.unwrap_or(app.options.offline))?;
    call::require_json(request.headers())?;
    let sent = call::read_body(app.gateway.spool().bodies(), request, app.options.max_body).await?;
    let body = {
        // Its pictures are there three times for a moment: as sent, as read, as part of the new body.
        let _room = app.reshaping(sent.len()).await;
        let bytes = sent.whole().await.map_err(|_| Refusal::unreadable_body())?;
        fill(&app, task, &bytes).await?
    };
    Call::checked(app.clone(), "/v1/chat/completions", arrived, body, Some(number)).await
}

async fn fill(app: &App, task: &Task, bytes: &Bytes) -> Result<Body, Refusal> {
    let whole: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    let asked: Asked<'_> = serde_json::from_slice(whole).map_err(|error| {
        let at = format!("line {}, column {}", error.line(), error.column());
        let message = format!("send {{\"args\": {{…}} or […], \"images\": [data URLs]}}; this ends to be that at {at}");
        Refusal::bad_field("invalid_json", None::<&str>, message)
    })?;
    let images = asked.images.iter().map(|image| picture(&image.0)).collect::<Result<Vec<_>, _>>()?;
    let kinds: Vec<Picture> = images.iter().map(|(kind, _)| *kind).collect();
    let filled = match asked.args {
        Given::Named(args) => {
            let args = args.iter().map(|(name, value)| Ok((name.clone(), scalar(name, value)?)));
            let args: BTreeMap<String, String> = args.collect::<Result<_, Fault>>()?;
            task.fill(Args::Named(&args), &kinds)?
        }
        Given::Positional(args) => {
            let name = |index: usize| task.args().get(index).map_or("args", |arg| arg.name.as_str());
            let args = args.iter().enumerate().map(|(index, value)| scalar(name(index), value));
            let args: Vec<String> = args.collect::<Result<_, Fault>>()?;
            task.fill(Args::Positional(&args), &kinds)?
        }
    };
    joined(app, &filled, &images).await
}

/// The body as one, in memory or in a file, as all bodies are.
async fn joined(app: &App, filled: &Filled, images: &[(Picture, &str)]) -> Result<Body, Refusal> {
    let texts = filled.pieces.iter().map(|piece| match piece {
        Piece::Json(json) => json.as_ref(),
        Piece::Picture(index) => images.get(*index).map_or("", |(_, data)| data).as_bytes(),
    });
    let texts: Vec<&[u8]> = texts.collect();
    let length = texts.iter().map(|text| text.len() as u64).sum();
    let mut receiving = app.gateway.spool().bodies().receive(Some(length));
    for text in texts {
        receiving.push(text).await?;
    }
    Ok(receiving.finish().await?)
}

fn scalar(name: &str, value: &Value) -> Result<String, Fault> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        _ => {
            let message = format!("\"{name}\" must be a text or a number");
            Err(Fault { argument: name.to_owned(), message })
        }
    }
}

/// Kind and base64 of a data URL. The base64 goes into JSON as it is, so nothing else is let through.
fn picture(url: &str) -> Result<(Picture, &str), Refusal> {
    let bad = || {
        let message = "each image is a data URL: data:image/jpeg;base64,… (or png, webp, gif)";
        Refusal::bad_field("invalid_argument", Some("images"), message)
    };
    let (mime, data) = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")).ok_or_else(bad)?;
    let kind = Picture::of_mime(mime).ok_or_else(bad)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    if data.is_empty() || !data.bytes().all(fits) {
        return Err(bad());
    }
    Ok((kind, data))
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Refusal::bad_field("invalid_argument", Some(fault.argument), fault.message)
    }
}

/// The chat's answer in the task's shape. One that does not fit is asked for once more.
async fn answered(call: Arc<Call>) -> Response {
    let first = TaskAnswer::of(openai::answer(call.clone()).await, &call).await;
    let came = match first {
        Ok(came) if came.reading.fits || came.is_settled => came,
        Ok(came) if came.source.starts_with("local:") => local_again(&call, came).await,
        Ok(_) => {
            // It was paid for: what becomes of it now is the last send.
            let again = Arc::new(Call { was_answered: true, ..Call::clone(&call) });
            match TaskAnswer::of(openai::answer(again.clone()).await, &again).await {
                Ok(came) => came,
                Err(response) => return ended(&call, *response).await,
            }
        }
        Err(response) => return ended(&call, *response).await,
    };
    came.into_response(&call)
}

/// An answer as far as it is one.
struct TaskAnswer {
    status: StatusCode,
    headers: HeaderMap,
    source: String,
    id: String,
    /// It is a record's: whether it is asked for again was decided there.
    is_settled: bool,
    words: String,
    reading: Reading,
}

impl TaskAnswer {
    /// Anything but a whole answer goes back as it is.
    async fn of(response: Response, call: &Call) -> Result<TaskAnswer, Box<Response>> {
        if response.status() != StatusCode::OK {
            return Err(Box::new(response));
        }
        let (parts, body) = response.into_parts();
        let bytes = match Limited::new(body, WHOLE_BYTES_MAX as usize).collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => Bytes::new(),
            Err(_) => return Err(Box::new(call.app.refused(call, Refusal::truncated()))),
        };
        let text = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let (source, id, state) = (text("x-holdfast-route"), text("x-holdfast-id"), text("x-holdfast-state"));
        let id = if id.is_empty() { call.id.clone() } else { id };
        let words = said(&*bytes).unwrap_or_default();
        let is_settled = state == "answered";
        let reading = call.reading(&words);
        Ok(TaskAnswer { status: parts.status, headers: parts.headers, source, id, is_settled, words, reading })
    }

    fn into_response(self, call: &Call) -> Response {
        if let Some(why) = &self.reading.why {
            tracing::warn!(HOLDFAST_REQUEST_ID = call.id, HOLDFAST_REASON = "misfit", "task answered twice: {why}");
        }
        let mut response = Response::new(HttpBody::from(shape(call, &self).to_string()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response.headers_mut().remove(CONTENT_LENGTH);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

fn shape(call: &Call, came: &TaskAnswer) -> Value {
    let reading = &came.reading;
    json!({
        "id": came.id,
        "task": call.task,
        "status": if reading.fits { "ok" } else { "failed" },
        "code": reading.code,
        "value": reading.value,
        "text": reading.text,
        "source": came.source,
        "answer": reading.json.clone().unwrap_or_else(|| json!(came.words)),
    })
}

impl Call {
    /// Whether an answer is what its task asks for; without a task every answer is.
    pub fn fits(&self, answer: &[u8]) -> bool {
        self.task.is_none() || self.reading(&said(answer).unwrap_or_default()).fits
    }

    fn reading(&self, words: &str) -> Reading {
        let task = self.task.and_then(|task| self.app.gateway.tasks().get(task));
        task.map_or_else(Reading::default, |task| task.read(words))
    }
}

/// The local model costs nothing but time: it is asked directly. What fits is the stored request's local answer from then on.
async fn local_again(call: &Call, came: TaskAnswer) -> TaskAnswer {
    let Some(Ok(answer)) = late::by(call.deadline(), offline::ask_local(call)).await else { return came };
    let Content::Whole(body) = answer.content else { return came };
    let words = said(&*body).unwrap_or_default();
    let reading = call.reading(&words);
    if reading.fits && came.headers.contains_key("x-holdfast-id") {
        record(call, &came.id, answer.model, body).await;
    }
    TaskAnswer { words, reading, ..came }
}

/// On record before its caller has it: a repeat gets the same, and the uplink's answer is held against it.
async fn record(call: &Call, id: &str, model: String, body: Bytes) {
    let spool = call.app.gateway.spool();
    let Ok(Some(stored)) = spool.get(id.to_owned()).await else { return };
    let answer = LocalAnswer { model, latency_ms: call.elapsed().as_millis() as u64, body };
    if let Err(error) = spool.record_local_first(stored.seq, answer).await {
        tracing::warn!(HOLDFAST_REASON = error.kind(), "a local answer was given but not recorded: {error}");
    }
}

/// A stored task that was tried twice has its words on record; anything else is an error as everywhere.
async fn ended(call: &Call, response: Response) -> Response {
    let id = response.headers().get("x-holdfast-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    if response.headers().get("x-holdfast-state").is_none_or(|state| state != "dead") {
        return response;
    }
    let Ok(Some(record)) = call.app.gateway.spool().get(id.clone()).await else { return response };
    let (Some("misfit"), Some((answer, _))) = (record.reason.as_deref(), record.uplink) else { return response };
    let start = answer.body.start_off_thread(WHOLE_BYTES_MAX as usize).await.unwrap_or_default();
    let words = said(&*start).unwrap_or_default();
    let source = format!("uplink:{}", answer.uplink);
    let origin =
        Origin { route: Some(source.clone()), id: Some(id.clone()), state: Some(record.state), ..Origin::default() };
    let mut headers = HeaderMap::new();
    origin.write(&mut headers);
    let reading = Reading { fits: false, ..call.reading(&words) };
    TaskAnswer { status: StatusCode::OK, headers, source, id, is_settled: true, words, reading }.into_response(call)
}
