//! `/v1/completions` to `/api/generate`.
//!
//! Owns the translation of the request; never of the answer.

use bytes::Bytes;
use serde::Serialize;

use super::options::{self, Options};
use super::{Kind, to_json};
use crate::uplink::local::dialect::{Completion, Prompt};
use crate::uplink::local::{Endpoint, LocalError, Reply};

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    prompt: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    suffix: Option<&'a str>,
    stream: bool,
    /// Never: left to itself Ollama cuts what is longer than the model's context, and answers half of the question.
    truncate: bool,
    options: Options,
}

pub(super) fn translate(model: &str, body: &Bytes) -> Result<(Bytes, Reply), LocalError> {
    let path = Endpoint::Completions.path();
    let asked: Completion<'_> = serde_json::from_slice(body).map_err(|e| LocalError::unreadable(path, &e))?;
    let wanted = options::read(path, body, None)?;
    let request = Request {
        model,
        prompt: one(&asked.prompt)?,
        suffix: asked.suffix.as_deref(),
        stream: true,
        truncate: false,
        options: wanted.options,
    };
    let reply = Reply::Lines { kind: Kind::Text, stream: wanted.stream, include_usage: wanted.include_usage };
    Ok((to_json(&request)?, reply))
}

fn one<'a>(prompt: &'a Prompt<'_>) -> Result<&'a str, LocalError> {
    match prompt {
        Prompt::Text(text) => Ok(text),
        Prompt::Texts(texts) => match texts.as_slice() {
            [text] => Ok(text),
            _ => Err(LocalError::unsupported("it completes one prompt per request; send `prompt` as a string")),
        },
        Prompt::Tokens(_) => Err(LocalError::unsupported("it takes no token numbers; send `prompt` as text")),
    }
}
