//! `/v1/embeddings` over `/api/embed`, both ways.
//!
//! Owns the two encodings of a vector; never decides whether a model's vectors may be used.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::to_json;
use super::wire::or_default;
use crate::uplink::local::dialect::{Embeddings, Prompt};
use crate::uplink::local::{Content, Endpoint, LocalAnswer, LocalError, Reply};

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: Input<'a>,
    /// Never: left to itself Ollama cuts what is longer than the model's context, and gives half of the text's vector.
    truncate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<u32>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Input<'a> {
    One(&'a str),
    More(&'a [String]),
}

impl Input<'_> {
    fn count(&self) -> usize {
        match self {
            Input::One(_) => 1,
            Input::More(texts) => texts.len(),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, deserialize_with = "or_default")]
    model: String,
    embeddings: Vec<Vec<f32>>,
    #[serde(default, deserialize_with = "or_default")]
    prompt_eval_count: u64,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Item>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

pub(super) fn translate(model: &str, body: &Bytes) -> Result<(Bytes, Reply), LocalError> {
    let path = Endpoint::Embeddings.path();
    let asked: Embeddings<'_> = serde_json::from_slice(body).map_err(|e| LocalError::unreadable(path, &e))?;
    let base64 = in_base64(asked.encoding_format.as_deref())?;
    let input = input(&asked.input)?;
    let count = input.count();
    let request = Request { model, input, truncate: false, dimensions: asked.dimensions };
    Ok((to_json(&request)?, Reply::Vectors { base64, count }))
}

fn in_base64(encoding: Option<&str>) -> Result<bool, LocalError> {
    match encoding {
        None | Some("float") => Ok(false),
        Some("base64") => Ok(true),
        Some(_) => Err(LocalError::invalid("`encoding_format` must be float or base64")),
    }
}

fn input<'a>(input: &'a Prompt<'_>) -> Result<Input<'a>, LocalError> {
    match input {
        Prompt::Text(text) => Ok(Input::One(text)),
        Prompt::Texts(texts) if texts.is_empty() => Err(LocalError::invalid("`input` must not be empty")),
        Prompt::Texts(texts) => Ok(Input::More(texts)),
        Prompt::Tokens(_) => Err(LocalError::unsupported(
            "it takes no token numbers; send `input` as text (LangChain: check_embedding_ctx_length=False)",
        )),
    }
}

/// The answer in OpenAI's words, where it has a vector for each of `count` texts.
pub(super) fn reshape(body: &[u8], asked: String, base64: bool, count: usize) -> Result<LocalAnswer, LocalError> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| LocalError::Failed { status: 200 })?;
    if answer.embeddings.len() != count || answer.embeddings.iter().any(Vec::is_empty) {
        return Err(LocalError::Failed { status: 200 });
    }
    let model = if answer.model.is_empty() { asked } else { answer.model };
    let encode = |(index, vector)| Item { object: "embedding", index, embedding: encode(vector, base64) };
    let tokens = answer.prompt_eval_count;
    let list = List {
        object: "list",
        data: answer.embeddings.into_iter().enumerate().map(encode).collect(),
        model: &model,
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
    };
    let content = Content::Whole(to_json(&list)?);
    Ok(LocalAnswer { model, content })
}

fn encode(vector: Vec<f32>, base64: bool) -> Vector {
    if !base64 {
        return Vector::Float(vector);
    }
    let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
    Vector::Base64(STANDARD.encode(bytes))
}
