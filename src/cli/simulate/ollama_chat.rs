//! Answers of the simulated Ollama's `/api/chat`, `/api/generate` and `/api/embed`.
//!
//! Owns the native shapes, whole and as NDJSON lines; never looks at models or queues.

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::faults::{self, Mode};
use super::openai::{self, Reply};
use super::server::Call;
use super::text;
use crate::clock;

/// A chat or a generated text; loads only, where there is nothing to answer.
pub(super) fn answer(call: &Call, model: &str) -> Response<Body> {
    let chat = call.path == "/api/chat";
    if asks_nothing(&call.json, chat) {
        return faults::json(&call.faults, &last_line(model, chat, &Reply::empty(), load_reason(&call.json)));
    }
    if let Some(answer) = &call.faults.answer {
        return faults::text(&call.faults, answer.clone());
    }
    let reply = openai::reply(&call.json, "local", schema(&call.json).as_ref(), limit(&call.json));
    if call.json["stream"] == false {
        if call.faults.fail == Mode::ErrorEvent {
            return faults::json(&call.faults, &json!({"error": "an error was encountered while running the model"}));
        }
        let mut whole = last_line(model, chat, &reply, done_reason(&reply));
        put_content(&mut whole, chat, &reply, &reply.content);
        return faults::json(&call.faults, &whole);
    }
    faults::stream(&call.faults, "application/x-ndjson", lines(call, model, chat, &reply))
}

/// `/api/embed` (a list) and the older `/api/embeddings` (one).
pub(super) fn embed(call: &Call, model: &str) -> Response<Body> {
    let answer = if call.path == "/api/embeddings" {
        json!({"embedding": text::embedding(call.json["prompt"].as_str().unwrap_or_default())})
    } else {
        let inputs: Vec<&str> = match &call.json["input"] {
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
            other => other.as_str().into_iter().collect(),
        };
        let embeddings: Vec<Vec<f32>> = inputs.iter().map(|input| text::embedding(input)).collect();
        json!({"model": model, "embeddings": embeddings, "total_duration": 1_000_000, "load_duration": 1_000,
            "prompt_eval_count": inputs.iter().map(|input| input.split_whitespace().count()).sum::<usize>()})
    };
    faults::json(&call.faults, &answer)
}

impl Reply {
    fn empty() -> Reply {
        Reply { content: String::new(), tool: None, prompt_tokens: 0, completion_tokens: 0, cut: false }
    }
}

fn asks_nothing(body: &Value, chat: bool) -> bool {
    if chat {
        body["messages"].as_array().is_none_or(Vec::is_empty)
    } else {
        body["prompt"].as_str().unwrap_or_default().is_empty()
    }
}

fn load_reason(body: &Value) -> &'static str {
    if body["keep_alive"] == 0 || body["keep_alive"] == "0" { "unload" } else { "load" }
}

fn done_reason(reply: &Reply) -> &'static str {
    if reply.cut { "length" } else { "stop" }
}

/// `format`: the word `json`, or a schema.
fn schema(body: &Value) -> Option<Value> {
    match &body["format"] {
        Value::String(word) if word == "json" => Some(json!({})),
        Value::Object(_) => Some(body["format"].clone()),
        _ => None,
    }
}

fn limit(body: &Value) -> Option<u64> {
    // Negative means no limit, as in Ollama.
    body["options"]["num_predict"].as_i64().and_then(|limit| u64::try_from(limit).ok())
}

fn line(model: &str, chat: bool, content: &str, done: bool) -> Value {
    let mut line = json!({"model": model, "created_at": text::rfc3339(clock::unix_ms()), "done": done});
    if chat {
        line["message"] = json!({"role": "assistant", "content": content});
    } else {
        line["response"] = json!(content);
    }
    line
}

fn last_line(model: &str, chat: bool, reply: &Reply, reason: &str) -> Value {
    let mut last = line(model, chat, "", true);
    last["done_reason"] = json!(reason);
    if reply.prompt_tokens > 0 {
        last["total_duration"] = json!(2_000_000);
        last["load_duration"] = json!(1_000);
        last["prompt_eval_count"] = json!(reply.prompt_tokens);
        last["prompt_eval_duration"] = json!(500_000);
        last["eval_count"] = json!(reply.completion_tokens);
        last["eval_duration"] = json!(1_000_000);
    }
    last
}

fn put_content(line: &mut Value, chat: bool, reply: &Reply, content: &str) {
    if !chat {
        line["response"] = json!(content);
        return;
    }
    line["message"]["content"] = json!(content);
    if let Some((name, arguments)) = &reply.tool {
        line["message"]["tool_calls"] = json!([{"function": {"name": name, "arguments": arguments}}]);
    }
}

fn lines(call: &Call, model: &str, chat: bool, reply: &Reply) -> Vec<Bytes> {
    let mut values: Vec<Value> = reply.words().iter().map(|word| line(model, chat, word, false)).collect();
    if reply.tool.is_some() {
        let mut first = line(model, chat, "", false);
        put_content(&mut first, chat, reply, "");
        values.push(first);
    }
    match call.faults.fail {
        Mode::NoDone => {}
        Mode::ErrorEvent => {
            values.truncate(1);
            values.push(json!({"error": "an error was encountered while running the model"}));
        }
        _ => values.push(last_line(model, chat, reply, done_reason(reply))),
    }
    values.iter().map(|value| Bytes::from(format!("{value}\n"))).collect()
}
