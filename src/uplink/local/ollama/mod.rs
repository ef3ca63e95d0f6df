//! Ollama's native API: which call serves which endpoint, and how its answers are read.
//!
//! Owns the conversation with Ollama. Upstream it always streams, because only a stream shows that the model is
//! still alive; a plain request gets the pieces put together.

mod chat;
mod embed;
mod generate;
mod options;
mod shape;
mod stream;
mod whole;
mod wire;

use bytes::Bytes;
use serde::Serialize;

use self::shape::Heading;
pub(super) use self::shape::Kind;
use super::flow::{pump, to_content, to_end};
use super::transport::Transport;
use super::{Content, Endpoint, LocalAnswer, LocalError, Prepared, Turn};

/// The request in Ollama's words.
pub(super) fn prepare(endpoint: Endpoint, model: String, body: &Bytes) -> Result<Prepared, LocalError> {
    if model.is_empty() {
        return Err(LocalError::ModelMissing { model });
    }
    let (path, (body, reply)) = match endpoint {
        Endpoint::Chat => ("/api/chat", chat::translate(&model, body)?),
        Endpoint::Completions => ("/api/generate", generate::translate(&model, body)?),
        Endpoint::Embeddings => ("/api/embed", embed::translate(&model, body)?),
    };
    Ok(Prepared { path, body, model, reply })
}

pub(super) fn heading(kind: Kind, prepared: &Prepared, turn: &Turn) -> Heading {
    Heading { kind, id: turn.id.clone(), created: turn.created, model: prepared.model.clone() }
}

/// Asks for text. It is streamed to the client if `include_usage` is given, with or without the usage.
pub(super) async fn lines(
    transport: &Transport,
    request: Prepared,
    heading: Heading,
    include_usage: Option<bool>,
    turn: Turn,
) -> Result<LocalAnswer, LocalError> {
    let mut source = transport.post(request.path, request.body, &request.model, turn.limits).await?;
    let Some(include_usage) = include_usage else {
        let mut whole = whole::Whole::new(heading);
        to_end(&mut source, &mut whole).await?;
        return whole.into_answer();
    };
    let mut stream = stream::Stream::new(heading, include_usage);
    to_content(&mut source, &mut stream).await?;
    let model = stream.model().to_owned();
    Ok(LocalAnswer { model, content: Content::Stream(pump(source, stream, turn.permit)) })
}

/// Asks for vectors.
pub(super) async fn vectors(
    transport: &Transport,
    request: Prepared,
    (base64, count): (bool, usize),
    turn: Turn,
) -> Result<LocalAnswer, LocalError> {
    let limits = turn.limits.in_one_piece();
    let mut source = transport.post(request.path, request.body, &request.model, limits).await?;
    embed::reshape(&source.whole().await?, request.model, base64, count)
}

/// Our own shapes always serialise; an error here would be a fault of this program, not of the request.
fn to_json<T: Serialize>(value: &T) -> Result<Bytes, LocalError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|_| LocalError::Failed { status: 200 })
}
