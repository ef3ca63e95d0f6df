//! What can go wrong between the gateway and the on-site model server.
//!
//! Owns the one error type of this room and the reading of the server's own error answers. Never carries
//! text of a prompt, a picture or an answer: what the server said is matched against known words and dropped.

use serde::Deserialize;

/// Why the on-site model server gave no (complete) answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// No model server is configured.
    #[error("no local model server is configured: set base_url under [local]")]
    Off,
    /// Every slot is taken and the line is full, or the server itself says that it is busy or still loading.
    #[error("the local model is busy: try again in a moment")]
    Busy,
    /// No connection, or it broke before the server answered.
    #[error("the local model server does not answer: check that it runs and that base_url under [local] is right")]
    Unreachable,
    /// One of the configured time-outs ran out.
    #[error("the local model took too long: see timeouts under [local]")]
    Timeout,
    /// The server runs but does not have the model.
    #[error("the local model server has no model `{model}`: pull it there or name another one under [local]")]
    ModelMissing {
        /// The model asked of the server.
        model: String,
    },
    /// The board is too hot for new work.
    #[error(
        "the board is too hot for the local model: {temperature_c} °C, and {limit_c} is the limit; it is asked again below \
         {again_c} °C: see to the cooling, or raise max_temperature_c under [local]"
    )]
    TooHot {
        /// The hottest sensor, in °C.
        temperature_c: i32,
        /// `max_temperature_c`.
        limit_c: u32,
        /// Below this, in °C, the model is asked again.
        again_c: i32,
    },
    /// The model is not in memory and does not fit into what is free of it.
    #[error(
        "the local model `{model}` does not fit into memory: it needs {needs_mib} MiB and {available_mib} MiB are free: end \
         other programs or name a smaller model under [local]"
    )]
    DoesNotFit {
        /// The model asked of the server.
        model: String,
        /// What it needs, in MiB.
        needs_mib: u64,
        /// What there is for it, in MiB.
        available_mib: u64,
    },
    /// The request asks for something that the local model or its server cannot do.
    #[error("not possible with the local model: {what}")]
    Unsupported {
        /// A sentence that says what, and what to do instead.
        what: String,
    },
    /// The request is longer than the model's context.
    #[error("the request is longer than the local model's context: shorten it")]
    ContextLength,
    /// The request (or, from [`super::Local::new`], an option) is malformed.
    #[error("{what}")]
    Invalid {
        /// A sentence that says what.
        what: String,
    },
    /// The server answered with an error, or (status 200) with something that is not its protocol.
    #[error("the local model server failed with status {status}")]
    Failed {
        /// The HTTP status.
        status: u16,
    },
    /// The answer ended, or was cut at its size limit, before it was complete.
    #[error("the local model's answer ended before it was complete")]
    Truncated,
}

impl LocalError {
    /// A stable name, used as a log field, a metric label and an error code.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::ModelMissing { .. } => "model_missing",
            Self::TooHot { .. } => "too_hot",
            Self::DoesNotFit { .. } => "does_not_fit",
            Self::Unsupported { .. } => "unsupported_by_local_model",
            Self::ContextLength => "context_length",
            Self::Invalid { .. } => "invalid",
            Self::Failed { .. } => "failed",
            Self::Truncated => "truncated",
        }
    }

    pub(super) fn unsupported(what: &str) -> Self {
        Self::Unsupported { what: what.to_owned() }
    }

    pub(super) fn invalid(what: &str) -> Self {
        Self::Invalid { what: what.to_owned() }
    }

    /// A body that does not parse. Serde's own words are left out: they may quote the request.
    pub(super) fn unreadable(endpoint: &str, error: &serde_json::Error) -> Self {
        let place = match error.line() {
            0 => String::new(),
            line => format!(" (line {line}, column {})", error.column()),
        };
        Self::Invalid { what: format!("the body is not a request that {endpoint} understands{place}") }
    }
}

/// `error` as model servers write it: a bare string (Ollama) or an object (OpenAI's shape).
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Fault {
    Text(String),
    Object {
        #[serde(default)]
        message: String,
        #[serde(default)]
        code: serde_json::Value,
    },
    Other(serde::de::IgnoredAny),
}

impl Fault {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Object { message, .. } => message,
            Self::Other(_) => "",
        }
    }

    /// An error told inside an answer that began with status 200.
    pub(super) fn midway(&self, model: &str) -> LocalError {
        let status = match self {
            Self::Object { code, .. } => code.as_u64().and_then(|c| u16::try_from(c).ok()),
            _ => None,
        };
        classify(status.filter(|s| (400..600).contains(s)).unwrap_or(500), self.text(), model)
    }
}

/// An answer with an error status.
pub(super) fn from_answer(status: u16, body: &[u8], model: &str) -> LocalError {
    #[derive(Deserialize)]
    struct Body {
        error: Fault,
    }
    match serde_json::from_slice::<Body>(body) {
        Ok(body) => classify(status, body.error.text(), model),
        Err(_) => classify(status, &String::from_utf8_lossy(body), model),
    }
}

/// What a status and the server's words mean. The words are those of Ollama, llama-server, vLLM and LocalAI.
fn classify(status: u16, text: &str, model: &str) -> LocalError {
    let text = text.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if says(&["context length", "context size", "context window", "available context", "n_ctx"]) {
        return LocalError::ContextLength;
    }
    if says(&["does not support", "not multimodal", "mmproj"]) {
        return LocalError::unsupported(capability(&text));
    }
    match status {
        // Go's router says "404 page not found": a wrong base_url, not a missing model.
        404 if text.is_empty() || says(&["model"]) => LocalError::ModelMissing { model: model.to_owned() },
        429 | 503 => LocalError::Busy,
        _ if says(&["server busy", "loading model"]) => LocalError::Busy,
        _ => LocalError::Failed { status },
    }
}

/// Fixed sentences, so that nothing of the server's text (which may quote the request) passes on.
fn capability(text: &str) -> &'static str {
    if text.contains("tools") {
        "the model does not call tools; leave `tools` out or configure a model that does"
    } else if text.contains("image")
        || text.contains("vision")
        || text.contains("multimodal")
        || text.contains("mmproj")
    {
        "the model does not read pictures; set vision_model under [local]"
    } else if text.contains("embed") {
        "the model makes no embeddings; map the name to an embedding model in models under [local]"
    } else if text.contains("insert") {
        "the model does not fill in text; leave `suffix` out"
    } else {
        "the model lacks a capability that the request needs"
    }
}
