//! OpenAI's answers, as this room writes them.
//!
//! Owns their shapes, whole and in chunks; never reads anything.

use serde::Serialize;

use super::wire::{End, ToolCall};

/// Which endpoint's shape.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::uplink::local) enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

/// What stands at the top of an answer and of each of its chunks.
pub(in crate::uplink::local) struct Heading {
    pub(super) kind: Kind,
    /// The request's id without its `req_`.
    pub(super) id: String,
    pub(super) created: u64,
    /// What really answered.
    pub(super) model: String,
}

/// An answer or a chunk of one.
#[derive(Serialize)]
pub(super) struct Envelope<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [Choice],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

impl Heading {
    pub(super) fn around<'a>(&'a self, chunk: bool, choices: &'a [Choice], usage: Option<Usage>) -> Envelope<'a> {
        let (prefix, object) = match (self.kind, chunk) {
            (Kind::Chat, false) => ("chatcmpl-", "chat.completion"),
            (Kind::Chat, true) => ("chatcmpl-", "chat.completion.chunk"),
            (Kind::Text, _) => ("cmpl-", "text_completion"),
        };
        Envelope {
            id: format!("{prefix}{}", self.id),
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
        }
    }
}

#[derive(Serialize, Default)]
pub(super) struct Choice {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    logprobs: (),
    finish_reason: Option<&'static str>,
}

impl Choice {
    pub(super) fn message(message: Message, finish: &'static str) -> Self {
        Self { message: Some(message), finish_reason: Some(finish), ..Self::default() }
    }

    pub(super) fn delta(delta: Message, finish: Option<&'static str>) -> Self {
        Self { delta: Some(delta), finish_reason: finish, ..Self::default() }
    }

    pub(super) fn text(text: String, finish: Option<&'static str>) -> Self {
        Self { text: Some(text), finish_reason: finish, ..Self::default() }
    }
}

/// A message or what a chunk adds to one. The outer `Option` of `content` leaves it out, the inner one is `null`.
#[derive(Serialize, Default)]
pub(super) struct Message {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[expect(clippy::option_option, reason = "absent and null differ")]
    pub(super) content: Option<Option<String>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<Call>,
}

#[derive(Serialize)]
pub(super) struct Call {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    r#type: &'static str,
    function: CallFunction,
}

#[derive(Serialize)]
struct CallFunction {
    name: String,
    arguments: String,
}

impl Call {
    /// The call `at` of the answer to request `id`; chunks carry the index, whole answers do not.
    pub(super) fn new(call: ToolCall, id: &str, at: usize, chunk: bool) -> Self {
        let arguments = call.function.arguments.map_or_else(|| "{}".to_owned(), |a| a.get().to_owned());
        Self {
            index: chunk.then_some(at),
            id: if call.id.is_empty() { format!("call_{id}_{at}") } else { call.id },
            r#type: "function",
            function: CallFunction { name: call.function.name, arguments },
        }
    }
}

#[derive(Serialize, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "they are OpenAI's")]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

impl From<End> for Usage {
    fn from(end: End) -> Self {
        Self {
            prompt_tokens: end.prompt_tokens,
            completion_tokens: end.answer_tokens,
            total_tokens: end.prompt_tokens.saturating_add(end.answer_tokens),
        }
    }
}

/// OpenAI's word for how the answer ended.
pub(super) fn finish_reason(end: End, called_tools: bool) -> &'static str {
    match (end.cut, called_tools) {
        (true, _) => "length",
        (false, true) => "tool_calls",
        (false, false) => "stop",
    }
}
