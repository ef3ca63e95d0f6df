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

use self::shape::{Heading, Kind};
use super::flow::{pump, to_content, to_end};
use super::transport::Transport;
use super::{Ask, Content, Endpoint, LocalAnswer, LocalError};

pub(super) async fn answer(transport: &Transport, ask: Ask<'_>) -> Result<LocalAnswer, LocalError> {
    if ask.model.is_empty() {
        return Err(LocalError::ModelMissing { model: String::new() });
    }
    match ask.endpoint {
        Endpoint::Embeddings => embed::answer(transport, ask).await,
        Endpoint::Chat => talk(transport, "/api/chat", chat::translate(ask.model, ask.body)?, Kind::Chat, ask).await,
        Endpoint::Completions => {
            talk(transport, "/api/generate", generate::translate(ask.model, ask.body)?, Kind::Text, ask).await
        }
    }
}

/// A request in Ollama's words, and how its answer is wanted.
#[derive(Debug)]
struct Translated {
    body: Bytes,
    stream: bool,
    include_usage: bool,
}

async fn talk(
    transport: &Transport,
    path: &str,
    request: Translated,
    kind: Kind,
    ask: Ask<'_>,
) -> Result<LocalAnswer, LocalError> {
    let heading = Heading { kind, id: ask.id.to_owned(), created: ask.created, model: ask.model.to_owned() };
    let mut source = transport.post(path, request.body, ask.model, ask.limits).await?;
    if !request.stream {
        let mut whole = whole::Whole::new(heading);
        to_end(&mut source, &mut whole).await?;
        return whole.into_answer();
    }
    let mut stream = stream::Stream::new(heading, request.include_usage);
    to_content(&mut source, &mut stream).await?;
    let model = stream.model().to_owned();
    Ok(LocalAnswer { model, content: Content::Stream(pump(source, stream, ask.permit)) })
}

/// Our own shapes always serialise; an error here would be a fault of this program, not of the request.
fn to_json<T: Serialize>(value: &T) -> Result<Bytes, LocalError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|_| LocalError::Failed { status: 200 })
}
