//! The simulated Ollama: its native API, one request at a time, loading and unloading models.
//!
//! Owns its routes, its loaded models and its queue; what a chat says comes from `ollama_chat`. The sentences are
//! Ollama's own, because clients look for them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::faults;
use super::server::{Call, Shared};
use super::{OllamaOptions, ollama_chat, openai, text, uplink};
use crate::clock;

/// How long a model stays loaded when nobody says anything else.
const KEEP_ALIVE_MS: u64 = 300_000;
/// What a model's file takes: it is to fit wherever the simulator runs.
const MODEL_BYTES: u64 = 64 * 1024 * 1024;
/// "For ever": a hundred years.
const FOREVER_MS: u64 = 100 * 365 * 86_400_000;

/// The state of a simulated Ollama.
#[derive(Debug)]
pub(super) struct Ollama {
    models: Vec<String>,
    queue_max: usize,
    waiting: AtomicUsize,
    turn: Semaphore,
    /// Unix milliseconds at which each loaded model is unloaded.
    loaded: Mutex<BTreeMap<String, u64>>,
}

/// Counts a waiting request for as long as it waits, also when its connection is closed.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ollama {
    pub(super) fn new(options: &OllamaOptions) -> Ollama {
        Ollama {
            models: options.models.clone(),
            queue_max: options.queue_max,
            waiting: AtomicUsize::new(0),
            turn: Semaphore::new(1),
            loaded: Mutex::default(),
        }
    }

    /// Answers one request.
    pub(super) async fn answer(&self, shared: &Shared, call: &Call) -> Response<Body> {
        if let Some(status) = call.faults.status_for(call.is_post()) {
            shared.note(call, status.as_u16());
            call.faults.delay().await;
            return refuse(call, status, &format!("simulated error {}", status.as_u16()));
        }
        let ok = |answer: Value| faults::json(&call.faults, &answer);
        match (call.method.as_str(), call.path.as_str()) {
            ("GET" | "HEAD", "/") => faults::whole(StatusCode::OK, "text/plain; charset=utf-8", "Ollama is running"),
            ("GET" | "HEAD", "/api/version") => ok(json!({"version": "0.12.6"})),
            ("GET" | "HEAD", "/api/tags") => ok(json!({"models": self.tags(call)})),
            ("GET", "/api/ps") => ok(json!({"models": self.running(call)})),
            ("GET", "/v1/models") => ok(json!({"object": "list", "data": self.openai_models()})),
            ("POST", "/api/show") => self.show(call),
            ("POST", path) if is_model_path(path) => self.run(shared, call).await,
            _ => faults::whole(StatusCode::NOT_FOUND, "text/plain", "404 page not found"),
        }
    }

    /// A request for a model: looked up, queued, loaded, answered.
    async fn run(&self, shared: &Shared, call: &Call) -> Response<Body> {
        let Some(model) = self.find(call.model()) else {
            let status = not_found(call);
            shared.note(call, status.status().as_u16());
            return status;
        };
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue_max {
            drop(Waiting(&self.waiting));
            shared.note(call, 503);
            let sentence = "server busy, please try again.  maximum pending requests exceeded";
            return refuse(call, StatusCode::SERVICE_UNAVAILABLE, sentence);
        }
        let waiting = Waiting(&self.waiting);
        shared.note(call, 200);
        let turn = self.turn.acquire().await;
        self.load(&model, call).await;
        drop(waiting);
        call.faults.delay().await;
        let response = model_answer(call, &model);
        drop(turn);
        response
    }

    /// Loads the model unless it is; dropping this future (a closed connection) aborts the load.
    async fn load(&self, model: &str, call: &Call) {
        let now = clock::unix_ms();
        let is_loaded = self.loaded().get(model).is_some_and(|until| *until > now);
        if !is_loaded {
            faults::pause(call.faults.load_ms).await;
        }
        self.loaded().insert(model.to_owned(), clock::unix_ms() + keep_alive_ms(&call.json["keep_alive"]));
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u64>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The full name of a model it has; `llama3.2` means `llama3.2:latest`.
    fn find(&self, name: Option<&str>) -> Option<String> {
        let name = name?;
        let full = if name.contains(':') { name.to_owned() } else { format!("{name}:latest") };
        self.models.iter().find(|model| **model == name || **model == full).cloned()
    }

    fn show(&self, call: &Call) -> Response<Body> {
        let Some(model) = self.find(call.model()) else { return not_found(call) };
        let mut capabilities = vec!["completion", "tools"];
        if model.starts_with("llava") {
            capabilities.push("vision");
        }
        let answer = json!({"modelfile": format!("FROM {model}\n"), "parameters": "", "template": "{{ .Prompt }}",
            "details": details(), "capabilities": capabilities, "modified_at": text::rfc3339(1_700_000_000_000),
            "model_info": {"general.architecture": "llama", "llama.context_length": 4096}});
        faults::json(&call.faults, &answer)
    }

    fn tags(&self, call: &Call) -> Vec<Value> {
        self.models.iter().map(|model| description(call, model, "modified_at", 1_700_000_000_000)).collect()
    }

    fn running(&self, call: &Call) -> Vec<Value> {
        let now = clock::unix_ms();
        let loaded = self.loaded();
        let mut list: Vec<Value> = Vec::new();
        for (model, until) in loaded.iter().filter(|(_, until)| **until > now) {
            let mut entry = description(call, model, "expires_at", *until);
            entry["size_vram"] = json!(0);
            entry["context_length"] = json!(4096);
            list.push(entry);
        }
        list
    }

    fn openai_models(&self) -> Vec<Value> {
        let entry = |id: &String| json!({"id": id, "object": "model", "created": 1_700_000_000, "owned_by": "library"});
        self.models.iter().map(entry).collect()
    }
}

fn not_found(call: &Call) -> Response<Body> {
    match call.model() {
        Some(name) if !name.is_empty() => {
            let sentence = format!("model \"{name}\" not found, try pulling it first");
            refuse(call, StatusCode::NOT_FOUND, &sentence)
        }
        _ => refuse(call, StatusCode::BAD_REQUEST, "model is required"),
    }
}

fn is_model_path(path: &str) -> bool {
    matches!(
        path,
        "/api/chat"
            | "/api/generate"
            | "/api/embed"
            | "/api/embeddings"
            | "/v1/chat/completions"
            | "/v1/completions"
            | "/v1/embeddings"
    )
}

fn model_answer(call: &Call, model: &str) -> Response<Body> {
    match call.path.as_str() {
        "/v1/chat/completions" => uplink::openai_answer(call, "local", true),
        "/v1/completions" => uplink::openai_answer(call, "local", false),
        "/v1/embeddings" => faults::json(&call.faults, &openai::embeddings(&call.json)),
        "/api/embed" | "/api/embeddings" => ollama_chat::embed(call, model),
        _ => ollama_chat::answer(call, model),
    }
}

/// An error in the shape of the API that was asked: Ollama's, or OpenAI's under `/v1`.
fn refuse(call: &Call, status: StatusCode, sentence: &str) -> Response<Body> {
    let body = if call.path.starts_with("/v1") {
        openai::error(sentence, "api_error", call.faults.error_code.as_deref())
    } else {
        json!({"error": sentence})
    };
    faults::refusal(&call.faults, status, &body)
}

fn details() -> Value {
    json!({"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
        "parameter_size": "3.2B", "quantization_level": "Q4_K_M"})
}

fn description(call: &Call, model: &str, time_key: &str, unix_ms: u64) -> Value {
    json!({"name": model, "model": model, time_key: text::rfc3339(unix_ms), "size": call.faults.model_bytes.unwrap_or(MODEL_BYTES),
        "digest": text::sha256_hex(model.as_bytes()), "details": details()})
}

/// `keep_alive` as Ollama reads it: seconds, or text like `5m`; negative means for ever.
fn keep_alive_ms(value: &Value) -> u64 {
    match value {
        Value::Number(seconds) => seconds.as_i64().map_or(KEEP_ALIVE_MS, |seconds| {
            u64::try_from(seconds).map_or(FOREVER_MS, |seconds| seconds.saturating_mul(1_000).min(FOREVER_MS))
        }),
        Value::String(text) if text.starts_with('-') => FOREVER_MS,
        Value::String(text) if text == "0" => 0,
        Value::String(text) => text::duration_ms(text).unwrap_or(KEEP_ALIVE_MS),
        _ => KEEP_ALIVE_MS,
    }
}
