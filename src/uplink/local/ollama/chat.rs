//! `/v1/chat/completions` to `/api/chat`.
//!
//! Owns the translation of the request; never of the answer.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::options::{self, Options};
use super::{Kind, to_json};
use crate::uplink::local::dialect::{Chat, Content, Message, Part, ResponseFormat, ToolCall, ToolChoice};
use crate::uplink::local::{Endpoint, LocalError, Reply};

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: Vec<Said<'a>>,
    stream: bool,
    /// Never: left to itself Ollama cuts what is longer than the model's context, and answers half of the question.
    truncate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    think: Option<bool>,
    options: Options,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Format<'a> {
    Json(&'static str),
    Schema(&'a RawValue),
}

#[derive(Serialize)]
struct Said<'a> {
    role: &'static str,
    content: Cow<'a, str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Call<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    function: CallFunction<'a>,
}

#[derive(Serialize)]
struct CallFunction<'a> {
    name: &'a str,
    arguments: &'a RawValue,
}

pub(super) fn translate(model: &str, body: &Bytes) -> Result<(Bytes, Reply), LocalError> {
    let path = Endpoint::Chat.path();
    let chat: Chat<'_> = serde_json::from_slice(body).map_err(|e| LocalError::unreadable(path, &e))?;
    let wanted = options::read(path, body, chat.max_completion_tokens)?;
    refuse(&chat)?;
    let drop_tools = matches!(&chat.tool_choice, Some(ToolChoice::Mode(mode)) if mode == "none");
    let request = Request {
        model,
        messages: messages(&chat.messages)?,
        stream: true,
        truncate: false,
        tools: chat.tools.filter(|_| !drop_tools),
        format: chat.response_format.as_ref().map(format).transpose()?.flatten(),
        // Any other effort is only a hint, and a model that cannot think refuses to be asked.
        think: (chat.reasoning_effort.as_deref() == Some("none")).then_some(false),
        options: wanted.options,
    };
    let reply = Reply::Lines { kind: Kind::Chat, stream: wanted.stream, include_usage: wanted.include_usage };
    Ok((to_json(&request)?, reply))
}

fn refuse(chat: &Chat<'_>) -> Result<(), LocalError> {
    if chat.messages.is_empty() {
        return Err(LocalError::invalid("`messages` must not be empty"));
    }
    if chat.modalities.iter().flatten().any(|m| m != "text") {
        return Err(LocalError::unsupported("it answers in text only; leave `modalities` out"));
    }
    if chat.functions.is_some() {
        return Err(LocalError::unsupported("`functions` is not understood; send `tools` instead"));
    }
    Ok(())
}

fn format<'a>(wanted: &ResponseFormat<'a>) -> Result<Option<Format<'a>>, LocalError> {
    match wanted.r#type.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(Format::Json("json"))),
        "json_schema" => {
            let schema = wanted.json_schema.as_ref().and_then(|s| s.schema);
            let missing = || LocalError::invalid("`response_format.json_schema.schema` is missing");
            schema.map(|s| Some(Format::Schema(s))).ok_or_else(missing)
        }
        _ => Err(LocalError::unsupported("`response_format` may be text, json_object or json_schema")),
    }
}

fn messages<'a>(all: &'a [Message<'a>]) -> Result<Vec<Said<'a>>, LocalError> {
    all.iter().enumerate().map(|(at, message)| said(message, &all[..at])).collect()
}

fn said<'a>(message: &'a Message<'a>, before: &'a [Message<'a>]) -> Result<Said<'a>, LocalError> {
    let role = role(&message.role)?;
    let (content, images) = content(message.content.as_ref())?;
    let tool_calls = message.tool_calls.iter().flatten().map(call).collect::<Result<_, _>>()?;
    let tool_call_id = message.tool_call_id.as_deref().filter(|_| role == "tool");
    let tool_name = tool_call_id.and_then(|id| called(id, before)).or(message.name.as_deref());
    Ok(Said { role, content, images, tool_calls, tool_name: tool_name.filter(|_| role == "tool"), tool_call_id })
}

fn role(role: &str) -> Result<&'static str, LocalError> {
    match role {
        "system" | "developer" => Ok("system"),
        "user" => Ok("user"),
        "assistant" => Ok("assistant"),
        "tool" => Ok("tool"),
        "function" => Err(LocalError::unsupported("the role `function` is not understood; send `tool` instead")),
        _ => Err(LocalError::invalid("a message's `role` must be system, developer, user, assistant or tool")),
    }
}

fn content<'a>(content: Option<&'a Content<'a>>) -> Result<(Cow<'a, str>, Vec<&'a str>), LocalError> {
    let parts = match content {
        None => return Ok((Cow::Borrowed(""), Vec::new())),
        Some(Content::Text(text)) => return Ok((Cow::Borrowed(text), Vec::new())),
        Some(Content::Parts(parts)) => parts,
    };
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    for part in parts {
        match part.r#type.as_str() {
            "text" | "refusal" => {
                texts.push(part.text.as_ref().or(part.refusal.as_ref()).ok_or_else(no_text)?.as_str());
            }
            "image_url" => images.push(picture(part)?),
            "input_audio" => {
                return Err(LocalError::unsupported("it does not listen; send text instead of `input_audio`"));
            }
            "file" => return Err(LocalError::unsupported("it reads no files; send their text instead of `file`")),
            _ => return Err(LocalError::unsupported("a content part must be `text` or `image_url`")),
        }
    }
    Ok((Cow::Owned(texts.join("\n")), images))
}

fn no_text() -> LocalError {
    LocalError::invalid("a content part of type `text` has no text")
}

fn picture<'a>(part: &'a Part<'a>) -> Result<&'a str, LocalError> {
    part.image_url.as_ref().ok_or_else(|| LocalError::invalid("an `image_url` part has no url"))?.data()
}

/// The name of the tool whose call has `id`; the latest one, as ids may repeat.
fn called<'a>(id: &str, before: &'a [Message<'a>]) -> Option<&'a str> {
    let calls = before.iter().rev().flat_map(|m| m.tool_calls.iter().flatten());
    calls.filter(|call| call.id == id).map(|call| call.function.name.as_str()).next()
}

fn call(call: &ToolCall) -> Result<Call<'_>, LocalError> {
    let text = match call.function.arguments.trim() {
        "" => "{}",
        text => text,
    };
    let arguments: &RawValue = serde_json::from_str(text).map_err(|_| not_an_object())?;
    if !arguments.get().starts_with('{') {
        return Err(not_an_object());
    }
    Ok(Call { id: &call.id, function: CallFunction { name: &call.function.name, arguments } })
}

fn not_an_object() -> LocalError {
    LocalError::invalid("the `arguments` of a tool call must be a JSON object in a string")
}
