//! The simulated uplink: an OpenAI-compatible service, under `/v1` and bare.
//!
//! Owns its routes and its model list; what an answer says comes from `openai`, how it leaves from `faults`.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode};
use bytes::Bytes;
use serde_json::{Value, json};

use super::faults::{self, Mode};
use super::server::{Call, Shared};
use super::{UplinkOptions, openai};

/// The state of a simulated uplink.
#[derive(Debug)]
pub(super) struct Uplink {
    models: Vec<String>,
    strict: bool,
    key: Option<String>,
    answers: AtomicU64,
}

impl Uplink {
    pub(super) fn new(options: &UplinkOptions) -> Uplink {
        let (models, key) = (options.models.clone(), options.key.clone());
        Uplink { models, strict: options.strict, key, answers: AtomicU64::new(0) }
    }

    /// Answers one request, with the headers a real uplink sends.
    pub(super) async fn answer(&self, shared: &Shared, call: &Call) -> Response<Body> {
        let refused = self.refuse(call);
        shared.note(call, refused.as_ref().map_or(200, |refused| refused.status().as_u16()));
        call.faults.delay().await;
        let mut response = refused.unwrap_or_else(|| self.model_answer(call));
        let n = self.answers.fetch_add(1, Ordering::Relaxed) + 1;
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(&format!("req-simulated-{n}")) {
            headers.insert("x-request-id", id);
        }
        headers.insert("x-ratelimit-limit-requests", HeaderValue::from_static("1000"));
        headers.insert("x-ratelimit-remaining-requests", HeaderValue::from_static("999"));
        response
    }

    /// Everything that ends in an error answer.
    fn refuse(&self, call: &Call) -> Option<Response<Body>> {
        if let Some(status) = call.faults.status_for(call.is_post()) {
            return Some(faults::refusal(&call.faults, status, &injected(call, status)));
        }
        let (status, message, code) = self.mistake(call)?;
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        Some(faults::refusal(&call.faults, status, &openai::error(&message, kind, code)))
    }

    /// What is wrong with the request itself.
    fn mistake(&self, call: &Call) -> Option<(StatusCode, String, Option<&'static str>)> {
        if self.key.as_ref().is_some_and(|key| !bears(call, key)) {
            let message = "Incorrect API key provided.".to_owned();
            return Some((StatusCode::UNAUTHORIZED, message, Some("invalid_api_key")));
        }
        let path = bare(&call.path);
        if let Some(model) = path.strip_prefix("/models/") {
            return self.unknown(Some(model));
        }
        let needs: &[&str] = match path {
            "/models" => return (call.method != "GET").then(|| wrong_method(call)),
            "/chat/completions" => &["model", "messages"],
            "/completions" => &["model", "prompt"],
            "/embeddings" | "/responses" => &["model", "input"],
            _ => {
                let message = format!("Invalid URL ({} {})", call.method, call.path);
                return Some((StatusCode::NOT_FOUND, message, None));
            }
        };
        if !call.is_post() {
            return Some(wrong_method(call));
        }
        bad_field(call, needs).or_else(|| if self.strict { self.unknown(call.model()) } else { None })
    }

    fn unknown(&self, model: Option<&str>) -> Option<(StatusCode, String, Option<&'static str>)> {
        let model = model.unwrap_or_default();
        let known = self.models.iter().any(|known| known == model);
        let message = format!("The model `{model}` does not exist or you do not have access to it.");
        (!known).then_some((StatusCode::NOT_FOUND, message, Some("model_not_found")))
    }

    fn model_answer(&self, call: &Call) -> Response<Body> {
        let path = bare(&call.path);
        let body = &call.json;
        if path == "/models" {
            let data: Vec<Value> = self.models.iter().map(|model| model_object(model)).collect();
            return faults::json(&call.faults, &json!({"object": "list", "data": data}));
        }
        if let Some(model) = path.strip_prefix("/models/") {
            return faults::json(&call.faults, &model_object(model));
        }
        if path == "/embeddings" {
            return faults::json(&call.faults, &openai::embeddings(body));
        }
        if path == "/responses" {
            let answer = call.faults.answer.clone();
            return faults::text(&call.faults, answer.unwrap_or_else(|| openai::response(body).to_string()));
        }
        openai_answer(call, "uplink", path == "/chat/completions")
    }
}

/// A chat or a legacy completion, whole or streamed; also used by the simulated Ollama's `/v1`.
pub(super) fn openai_answer(call: &Call, voice: &str, chat: bool) -> Response<Body> {
    let (body, faults) = (&call.json, &call.faults);
    let schema = openai::wanted_schema(body);
    let reply = openai::reply(body, voice, schema.as_ref(), openai::token_limit(body));
    if body["stream"] == true {
        let pieces: Vec<Bytes> = if chat {
            openai::chat_stream(body, &reply, faults)
        } else {
            openai::completion_stream(body, &reply, faults)
        };
        return faults::stream(faults, "text/event-stream; charset=utf-8", pieces);
    }
    if faults.fail == Mode::ErrorEvent {
        return faults::json(faults, &openai::error("The server had an error", "server_error", None));
    }
    let answer = if chat { openai::chat(&body["model"], &reply) } else { openai::completion(body, &reply) };
    faults::text(faults, faults.answer.clone().unwrap_or_else(|| answer.to_string()))
}

/// The path without `/v1`.
pub(super) fn bare(path: &str) -> &str {
    path.strip_prefix("/v1").unwrap_or(path)
}

fn model_object(model: &str) -> Value {
    json!({"id": model, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"})
}

fn wrong_method(call: &Call) -> (StatusCode, String, Option<&'static str>) {
    (StatusCode::METHOD_NOT_ALLOWED, format!("Not allowed to {} on {}", call.method, call.path), None)
}

fn bad_field(call: &Call, needs: &[&str]) -> Option<(StatusCode, String, Option<&'static str>)> {
    if !call.json.is_object() {
        let message = "We could not parse the JSON body of your request.".to_owned();
        return Some((StatusCode::BAD_REQUEST, message, None));
    }
    if let Some(missing) = needs.iter().find(|field| call.json[**field].is_null()) {
        let message = format!("Missing required parameter: '{missing}'.");
        return Some((StatusCode::BAD_REQUEST, message, Some("missing_required_parameter")));
    }
    let temperature = call.json["temperature"].as_f64().unwrap_or(1.0);
    if !(0.0..=2.0).contains(&temperature) {
        let message =
            format!("Invalid 'temperature': expected a value between 0 and 2, but got {temperature} instead.");
        return Some((StatusCode::BAD_REQUEST, message, Some("decimal_out_of_range")));
    }
    None
}

fn bears(call: &Call, key: &str) -> bool {
    let header = |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok());
    header("authorization").and_then(|value| value.strip_prefix("Bearer ")) == Some(key)
        || header("api-key") == Some(key)
}

/// The body of an error that the fault switch asked for.
fn injected(call: &Call, status: StatusCode) -> Value {
    let (kind, code) = match status.as_u16() {
        401 => ("invalid_request_error", Some("invalid_api_key")),
        402 => ("insufficient_quota", Some("insufficient_quota")),
        429 => ("requests", Some("rate_limit_exceeded")),
        400..=499 => ("invalid_request_error", None),
        _ => ("server_error", None),
    };
    let code = call.faults.error_code.as_deref().or(code);
    openai::error(&format!("Simulated error {}.", status.as_u16()), kind, code)
}
