//! The client of the on-site model server: Ollama's native API, or an OpenAI-compatible server.
//!
//! Owns the translation, the slots in front of the server and its time-outs; never decides whether a request
//! goes there, never fetches a picture, never pulls a model, never logs what is asked or answered.

mod dialect;
mod error;
mod flow;
mod ndjson;
mod ollama;
mod openai;
mod sight;
mod slots;
mod sse;
mod steward;
#[cfg(test)]
mod tests;
mod transport;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tower_http::timeout::TimeoutBody;

use crate::body::Body;
use crate::uplink::outgoing::Outgoing;

pub use error::LocalError;
pub use sight::is_here;
pub use slots::Load;
use slots::Slots;
use steward::Steward;
pub use steward::{Look, Reading, Settings as StewardSettings, State, Warm};
use transport::{Limits, Transport, after};

/// How long [`Local::probe`] waits: a server that lists its models more slowly is of no use for answers.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// From this size on a body is translated on a thread of its own: tens of milliseconds on a small board.
const BIG_BODY_BYTES: usize = 256 * 1024;

/// What the model server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// Ollama's native API.
    Ollama,
    /// OpenAI's API, as llama.cpp's llama-server, vLLM and LocalAI offer it.
    OpenAi,
}

/// How long the model server may take.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// To accept a connection.
    pub connect: Duration,
    /// From sending a request to the first content, loading the model included.
    pub first_token: Duration,
    /// Between two pieces of an answer.
    pub idle: Duration,
    /// For everything, waiting in line included.
    pub total: Duration,
}

/// What this room needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server's address, `http://host:port`, with or without `/v1`; `None` turns the room off.
    pub base_url: Option<String>,
    /// What the server speaks.
    pub api: Api,
    /// The model that answers.
    pub model: String,
    /// The model that answers requests with a picture; empty where there is none.
    pub vision_model: String,
    /// A client's model name to a local model: the only way for embeddings to be answered locally, since
    /// vectors of different models must not be mixed up.
    pub models: BTreeMap<String, String>,
    /// How many requests the server works on at a time.
    pub max_in_flight: usize,
    /// How long the server may take.
    pub timeouts: Timeouts,
    /// When the model is loaded and when it is left alone.
    pub steward: StewardSettings,
}

/// An answer of the local model, in OpenAI's shape.
#[derive(Debug)]
pub struct LocalAnswer {
    /// The model that answered.
    pub model: String,
    /// The answer.
    pub content: Content,
}

/// A whole answer or one that is still coming.
#[derive(Debug)]
pub enum Content {
    /// A complete JSON answer.
    Whole(Bytes),
    /// Each item is one whole event (`data: …` and a blank line), the last one `data: [DONE]`. An `Err` means that
    /// the answer failed midway; nothing follows it. Dropping the receiver stops the model server.
    Stream(mpsc::Receiver<Result<Bytes, LocalError>>),
}

/// The client of the on-site model server. Clones share its slots and connections.
#[derive(Clone)]
pub struct Local {
    inner: Option<Arc<Inner>>,
}

struct Inner {
    options: Options,
    transport: Transport,
    slots: Slots,
    steward: Mutex<Steward>,
    watch: sight::Watch,
}

/// A request in the model server's own words, ready to be sent.
struct Prepared {
    path: &'static str,
    body: Bytes,
    /// The local model that it names.
    model: String,
    reply: Reply,
}

/// How the server will answer, and what is to become of it.
#[derive(Clone, Copy)]
enum Reply {
    /// Ollama's lines, to be put together or turned into chunks.
    Lines { kind: ollama::Kind, stream: bool, include_usage: bool },
    /// Ollama's vectors.
    Vectors { base64: bool, count: usize },
    /// OpenAI's own shape.
    Same { stream: bool },
}

/// Whose request it is, and its place in front of the server.
struct Turn {
    /// The request's id without its `req_`.
    id: String,
    created: u64,
    limits: Limits,
    permit: OwnedSemaphorePermit,
}

/// The endpoints that a local model can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Chat,
    Completions,
    Embeddings,
}

impl Endpoint {
    fn from_path(path: &str) -> Result<Self, LocalError> {
        match path {
            "/v1/chat/completions" => Ok(Self::Chat),
            "/v1/completions" => Ok(Self::Completions),
            "/v1/embeddings" => Ok(Self::Embeddings),
            _ => Err(LocalError::unsupported("a local model serves chat, completions and embeddings only")),
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }
}

impl Local {
    /// Builds the client; no connection is made. `Invalid` if the address cannot be one.
    pub fn new(options: Options) -> Result<Self, LocalError> {
        let Some(base_url) = options.base_url.as_deref() else { return Ok(Self { inner: None }) };
        let transport = Transport::new(base_url, &options.timeouts)?;
        let slots = Slots::new(options.max_in_flight);
        let steward = Mutex::new(Steward::new(options.steward.clone(), &options.model));
        let watch = sight::Watch::new();
        Ok(Self { inner: Some(Arc::new(Inner { options, transport, slots, steward, watch })) })
    }

    /// Whether a model server is configured.
    pub fn is_enabled(&self) -> bool {
        self.inner.is_some()
    }

    /// Answers a request of OpenAI's API. Failures before the first content are returned here, so that the
    /// caller can answer in another way; dropping the future gives the request up.
    pub async fn answer(
        &self,
        endpoint: &str,
        body: &Body,
        id: &str,
        created_unix_s: u64,
    ) -> Result<LocalAnswer, LocalError> {
        let inner = self.on()?;
        let endpoint = Endpoint::from_path(endpoint)?;
        let total = after(inner.options.timeouts.total);
        inner.cool().await?;
        // Before the line: what cannot be served is to be known at once. A big body is made into one piece, and that
        // into another, only by who has a slot: in the line it stays the file that it may be.
        let early = match body.in_one_piece() {
            Some(bytes) if bytes.len() < BIG_BODY_BYTES => Some(inner.prepare(endpoint, &bytes)?),
            _ => None,
        };
        if let Some(prepared) = &early {
            inner.fits(&prepared.model)?;
        }
        let permit = inner.slots.take(total).await?;
        let prepared = match early {
            Some(prepared) => prepared,
            None => prepare(inner, endpoint, body).await?,
        };
        // Again: while it stood in the line, the board may have become hot.
        inner.fits(&prepared.model)?;
        let limits = Limits::begin(&inner.options.timeouts, total);
        let id = id.strip_prefix("req_").unwrap_or(id).to_owned();
        let turn = Turn { id, created: created_unix_s, limits, permit };
        match prepared.reply {
            Reply::Same { stream } => openai::answer(&inner.transport, prepared, stream, turn).await,
            Reply::Vectors { base64, count } => {
                ollama::vectors(&inner.transport, prepared, (base64, count), turn).await
            }
            Reply::Lines { kind, stream, include_usage } => {
                let heading = ollama::heading(kind, &prepared, &turn);
                let include_usage = stream.then_some(include_usage);
                ollama::lines(&inner.transport, prepared, heading, include_usage, turn).await
            }
        }
    }

    /// Passes a request of the server's own API on as it is; the path is relative to the base address.
    /// It takes no slot: the server queues such requests itself. An answer in which nothing moves for the time of a whole
    /// answer is broken off.
    pub async fn proxy(
        &self,
        req: hyper::Request<Outgoing>,
    ) -> Result<hyper::Response<TimeoutBody<hyper::body::Incoming>>, LocalError> {
        let inner = self.on()?;
        if *req.method() == hyper::Method::POST && sight::is_work(req.uri().path()) {
            inner.cool().await?;
        }
        let patience = inner.options.timeouts.total;
        let answer = inner.transport.forward(req, after(patience)).await?;
        Ok(answer.map(|body| TimeoutBody::new(patience, body)))
    }

    /// The names of the models that the server has.
    pub async fn probe(&self) -> Result<Vec<String>, LocalError> {
        let inner = self.on()?;
        let path = match inner.options.api {
            Api::Ollama => "/api/tags",
            Api::OpenAi => "/v1/models",
        };
        model_names(&inner.transport.get(path, after(PROBE_LIMIT)).await?)
    }

    /// How busy the server is with our requests.
    pub fn load(&self) -> Load {
        self.inner.as_ref().map_or(Load { in_flight: 0, waiting: 0 }, |inner| inner.slots.load())
    }

    fn on(&self) -> Result<&Arc<Inner>, LocalError> {
        self.inner.as_ref().ok_or(LocalError::Off)
    }
}

/// A door for the fuzz targets: the whole lines of these pieces, up to one that is too long.
#[cfg(feature = "planted")]
#[doc(hidden)]
pub fn fuzz_lines<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Bytes> {
    let (mut lines, mut whole) = (ndjson::Lines::default(), Vec::new());
    for piece in pieces {
        lines.push(piece);
        while let Ok(Some(line)) = lines.next_line() {
            whole.push(line);
        }
    }
    whole.extend(lines.rest());
    whole
}

/// Prepares a request; a big one (pictures) off the threads that serve everybody else.
async fn prepare(inner: &Arc<Inner>, endpoint: Endpoint, body: &Body) -> Result<Prepared, LocalError> {
    let whole = body.whole().await.map_err(|_| LocalError::Busy)?;
    let inner = Arc::clone(inner);
    let preparing = tokio::task::spawn_blocking(move || inner.prepare(endpoint, &whole));
    // Only a runtime that is shutting down does not run it.
    preparing.await.unwrap_or(Err(LocalError::Busy))
}

impl Inner {
    fn steward(&self) -> MutexGuard<'_, Steward> {
        self.steward.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepare(&self, endpoint: Endpoint, body: &Bytes) -> Result<Prepared, LocalError> {
        let glance = dialect::Glance::at(endpoint, body)?;
        let model = self.model_for(endpoint, &glance)?;
        match self.options.api {
            Api::Ollama => ollama::prepare(endpoint, model, body),
            Api::OpenAi => openai::prepare(endpoint, model, body, &glance),
        }
    }

    fn model_for(&self, endpoint: Endpoint, glance: &dialect::Glance) -> Result<String, LocalError> {
        let options = &self.options;
        // Before the mapping: one made for text must not give a picture to a model that ignores it and answers all the same.
        if glance.has_picture() && !options.vision_model.is_empty() {
            return Ok(options.vision_model.clone());
        }
        if let Some(mapped) = options.models.get(glance.model()) {
            return Ok(mapped.clone());
        }
        if endpoint == Endpoint::Embeddings {
            return Err(LocalError::unsupported(
                "embeddings of different models do not mix; map this model name in models under [local] to allow it",
            ));
        }
        Ok(options.model.clone())
    }
}

/// The names in an answer of `/api/tags` (`models`) or `/v1/models` (`data`).
fn model_names(body: &[u8]) -> Result<Vec<String>, LocalError> {
    #[derive(Deserialize)]
    struct Listing {
        models: Option<Vec<Named>>,
        // llama-server sends both lists, so this is no mere alias.
        data: Option<Vec<Named>>,
    }
    #[derive(Deserialize)]
    struct Named {
        // Where there are both, `name` is for people.
        id: Option<String>,
        name: Option<String>,
    }
    let listing: Listing = serde_json::from_slice(body).map_err(|_| LocalError::Failed { status: 200 })?;
    Ok(listing.data.or(listing.models).unwrap_or_default().into_iter().filter_map(|m| m.id.or(m.name)).collect())
}
