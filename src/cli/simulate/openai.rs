//! Answers in OpenAI's shapes: chat, completions, embeddings, errors; whole or as stream pieces.
//!
//! Owns what an answer says, made from the request alone; never sends anything.

use bytes::Bytes;
use serde_json::{Value, json};

use super::faults::{Faults, Mode};
use super::{text, tools};
use crate::clock;

/// What a simulated model says to a chat.
pub(super) struct Reply {
    pub(super) content: String,
    /// Name and arguments of a tool call, instead of content.
    pub(super) tool: Option<(String, Value)>,
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    /// Cut by `max_tokens`.
    pub(super) cut: bool,
}

impl Reply {
    fn finish_reason(&self) -> &'static str {
        match (&self.tool, self.cut) {
            (Some(_), _) => "tool_calls",
            (None, true) => "length",
            (None, false) => "stop",
        }
    }

    fn usage(&self) -> Value {
        let total = self.prompt_tokens + self.completion_tokens;
        json!({"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total})
    }

    /// The content in pieces that keep their spaces.
    pub(super) fn words(&self) -> Vec<String> {
        self.content.split_inclusive(' ').map(str::to_owned).collect()
    }
}

/// The text of one message, whatever its form.
fn text_of(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join(" "),
        _ => String::new(),
    }
}

/// Pictures in a message: OpenAI's parts and Ollama's list.
fn images_of(message: &Value) -> usize {
    let parts = message["content"].as_array().map_or(0, |parts| {
        parts.iter().filter(|part| part["type"] == "image_url" || part["type"] == "input_image").count()
    });
    parts + message["images"].as_array().map_or(0, Vec::len)
}

fn messages(body: &Value) -> &[Value] {
    body["messages"].as_array().map_or(&[], Vec::as_slice)
}

/// The last user message of a chat, or the prompt, or the input.
pub(super) fn last_user_text(body: &Value) -> String {
    if let Some(message) = messages(body).iter().rev().find(|message| message["role"] == "user") {
        return text_of(message);
    }
    let plain = ["prompt", "input"].iter().find_map(|key| match &body[key] {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => list.first().map(|first| first.as_str().map_or(first.to_string(), str::to_owned)),
        _ => None,
    });
    plain.unwrap_or_default()
}

/// Answers a chat: `<voice> answer to: <the last user text, or a tool's result, 40 characters>`.
pub(super) fn reply(body: &Value, voice: &str, schema: Option<&Value>, limit: Option<u64>) -> Reply {
    let user = last_user_text(body);
    let images: usize = messages(body).iter().map(images_of).sum::<usize>() + images_of(body);
    let words = |text: &str| text.split_whitespace().count();
    let prompt_tokens = messages(body).iter().map(|m| words(&text_of(m))).sum::<usize>().max(words(&user)).max(1);
    let result = messages(body).last().filter(|message| message["role"] == "tool").map(text_of);
    if result.is_none()
        && let Some(tool) = tools::called(body, &user)
    {
        let tool = Some(tool);
        return Reply { content: String::new(), tool, prompt_tokens, completion_tokens: 1, cut: false };
    }
    let mut content = match schema {
        Some(schema) => instance(schema).to_string(),
        None => format!("{voice} answer to: {}", text::first(result.as_deref().unwrap_or(&user), 40)),
    };
    if images > 0 && schema.is_none() {
        content = format!("{content} ({images} images)");
    }
    let full = words(&content);
    let allowed = limit.map_or(full, |limit| full.min(limit as usize));
    if allowed < full {
        let kept: String = content.split_inclusive(' ').take(allowed).collect();
        kept.trim_end().clone_into(&mut content);
    }
    Reply { content, tool: None, prompt_tokens, completion_tokens: allowed, cut: allowed < full }
}

/// The smallest value that fits a JSON schema, as far as simple schemas go; `{"ok":true}` for none.
pub(super) fn instance(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("string") => json!("ok"),
        Some("integer") => json!(1),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        Some("array") => json!([]),
        Some("null") => Value::Null,
        _ => match schema["properties"].as_object() {
            Some(properties) => properties.iter().map(|(name, inner)| (name.clone(), instance(inner))).collect(),
            None => json!({"ok": true}),
        },
    }
}

/// The schema an OpenAI request asks for, if it wants JSON.
pub(super) fn wanted_schema(body: &Value) -> Option<Value> {
    match body["response_format"]["type"].as_str()? {
        "json_object" => Some(json!({})),
        "json_schema" => Some(body["response_format"]["json_schema"]["schema"].clone()),
        _ => None,
    }
}

/// `max_completion_tokens`, or the older `max_tokens`.
pub(super) fn token_limit(body: &Value) -> Option<u64> {
    body["max_completion_tokens"].as_u64().or_else(|| body["max_tokens"].as_u64())
}

fn tool_calls(tool: Option<&(String, Value)>) -> Value {
    tool.map_or(Value::Null, |(name, arguments)| {
        json!([{"index": 0, "id": "call_1", "type": "function",
            "function": {"name": name, "arguments": arguments.to_string()}}])
    })
}

/// Tokens in and out that a request is billed with when it arrives; nothing for one that is refused.
pub(super) fn billed(path: &str, body: &Value, status: u16) -> (u64, u64) {
    if !matches!(status, 0 | 200) {
        return (0, 0);
    }
    if path.ends_with("/embeddings") {
        let tokens = embeddings(body)["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
        return (tokens, 0);
    }
    let reply = reply(body, "uplink", wanted_schema(body).as_ref(), token_limit(body));
    (reply.prompt_tokens as u64, reply.completion_tokens as u64)
}

/// A whole chat completion.
pub(super) fn chat(model: &Value, reply: &Reply) -> Value {
    let mut message = json!({"role": "assistant", "content": reply.content, "refusal": null});
    if reply.tool.is_some() {
        message["content"] = Value::Null;
        message["tool_calls"] = tool_calls(reply.tool.as_ref());
    }
    json!({"id": fresh_id("chatcmpl-"), "object": "chat.completion", "created": clock::unix_ms() / 1_000,
        "model": model, "system_fingerprint": "fp_simulator",
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": reply.finish_reason()}],
        "usage": reply.usage()})
}

/// A whole response of the responses API.
pub(super) fn response(body: &Value) -> Value {
    let said = reply(body, "uplink", None, None);
    let text = json!({"type": "output_text", "text": said.content, "annotations": []});
    let message = json!({"id": fresh_id("msg_"), "type": "message", "role": "assistant", "status": "completed",
        "content": [text]});
    let (read, written) = (said.prompt_tokens, said.completion_tokens);
    json!({"id": fresh_id("resp_"), "object": "response", "created_at": clock::unix_ms() / 1_000,
        "status": "completed", "background": body["background"] == true, "model": body["model"], "error": null,
        "output": [message], "parallel_tool_calls": true, "tool_choice": "auto", "tools": [],
        "usage": {"input_tokens": read, "output_tokens": written, "total_tokens": read + written,
            "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}})
}

/// The pieces of a streamed chat completion, as server-sent events.
pub(super) fn chat_stream(body: &Value, reply: &Reply, faults: &Faults) -> Vec<Bytes> {
    let (id, created) = (fresh_id("chatcmpl-"), clock::unix_ms() / 1_000);
    let wants_usage = body["stream_options"]["include_usage"] == true;
    let chunk = |choices: Value, usage: Option<Value>| {
        let mut chunk = json!({"id": id, "object": "chat.completion.chunk", "created": created,
            "model": body["model"], "system_fingerprint": "fp_simulator", "choices": choices});
        if wants_usage {
            chunk["usage"] = usage.unwrap_or(Value::Null);
        }
        event(&chunk)
    };
    let delta = |delta: Value, finish: Value| {
        chunk(json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]), None)
    };
    let mut pieces = vec![delta(json!({"role": "assistant", "content": ""}), Value::Null)];
    if reply.tool.is_some() {
        pieces.push(delta(json!({"tool_calls": tool_calls(reply.tool.as_ref())}), Value::Null));
    }
    pieces.extend(reply.words().into_iter().map(|word| delta(json!({"content": word}), Value::Null)));
    match faults.fail {
        Mode::NoDone => return pieces,
        Mode::ErrorEvent => {
            pieces.truncate(2);
            pieces.push(event(&error("The server had an error while processing your request", "server_error", None)));
            return pieces;
        }
        Mode::HalfJson => {
            pieces.truncate(2);
            pieces.push(Bytes::from_static(b"data: {\"id\":\"chatcmpl-"));
            return pieces;
        }
        _ => {}
    }
    pieces.push(delta(json!({}), json!(reply.finish_reason())));
    if wants_usage {
        pieces.push(chunk(json!([]), Some(reply.usage())));
    }
    pieces.push(Bytes::from_static(b"data: [DONE]\n\n"));
    pieces
}

/// A legacy completion, whole or as stream pieces.
pub(super) fn completion(body: &Value, reply: &Reply) -> Value {
    json!({"id": fresh_id("cmpl-"), "object": "text_completion", "created": clock::unix_ms() / 1_000,
        "model": body["model"], "usage": reply.usage(),
        "choices": [{"index": 0, "text": reply.content, "logprobs": null, "finish_reason": reply.finish_reason()}]})
}

/// The pieces of a streamed legacy completion.
pub(super) fn completion_stream(body: &Value, reply: &Reply, faults: &Faults) -> Vec<Bytes> {
    let template = completion(body, reply);
    let piece = |text: &str, finish: Value| {
        let mut chunk = template.clone();
        chunk["usage"] = Value::Null;
        chunk["choices"] = json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]);
        event(&chunk)
    };
    let mut pieces: Vec<Bytes> = reply.words().iter().map(|word| piece(word, Value::Null)).collect();
    if faults.fail != Mode::NoDone {
        pieces.push(piece("", json!(reply.finish_reason())));
        pieces.push(Bytes::from_static(b"data: [DONE]\n\n"));
    }
    pieces
}

/// Embeddings of a string, a list of strings or tokens; floats or base64.
pub(super) fn embeddings(body: &Value) -> Value {
    let inputs: Vec<String> = match &body["input"] {
        Value::Array(list) if list.iter().all(Value::is_number) => vec![body["input"].to_string()],
        Value::Array(list) => list.iter().map(|v| v.as_str().map_or(v.to_string(), str::to_owned)).collect(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    };
    let as_base64 = body["encoding_format"] == "base64";
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let floats = text::embedding(input);
            let bytes: Vec<u8> = floats.iter().flat_map(|number| number.to_le_bytes()).collect();
            let embedding = if as_base64 { json!(text::base64(&bytes)) } else { json!(floats) };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let tokens: usize = inputs.iter().map(|input| input.split_whitespace().count()).sum();
    json!({"object": "list", "data": data, "model": body["model"],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
}

/// An error as OpenAI writes it.
pub(super) fn error(message: &str, kind: &str, code: Option<&str>) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn fresh_id(prefix: &str) -> String {
    format!("{prefix}{:016x}", clock::random_u64())
}
