//! `[local]`: the on-site model server.

use std::collections::BTreeMap;
use std::time::Duration;

use super::uplink::http_url;
use super::walk::Table;
use crate::control::types::words;

/// What the local server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalApi {
    /// Ollama's native API.
    Ollama,
    /// OpenAI's, as llama-server, LocalAI and vLLM speak it.
    OpenAi,
}
words!(LocalApi { Ollama => "ollama", OpenAi => "openai" });

/// When the local model is kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepWarm {
    /// Loaded when it is needed.
    Never,
    /// Loaded as soon as an uplink is less than healthy.
    Degraded,
    /// Loaded all the time.
    Always,
}
words!(KeepWarm { Never => "never", Degraded => "degraded", Always => "always" });

/// `[local]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// Without a trailing slash; `None` turns local answers off.
    pub base_url: Option<String>,
    /// What it speaks.
    pub api: LocalApi,
    /// The model for ordinary requests.
    pub model: String,
    /// The model for requests with a picture.
    pub vision_model: Option<String>,
    /// Client's model name to local model; the only way embeddings are answered locally.
    pub models: BTreeMap<String, String>,
    /// How many requests it is given at once.
    pub max_in_flight: u32,
    /// When the model is kept in memory.
    pub keep_warm: KeepWarm,
    /// Limits on waiting.
    pub timeouts: LocalTimeouts,
    /// Above this no new local work begins.
    pub max_temperature_c: u32,
}

/// Limits on waiting for the local model.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalTimeouts {
    /// Until the connection stands.
    pub connect: Duration,
    /// Until the first token, loading the model included.
    pub first_token: Duration,
    /// Between two tokens.
    pub idle: Duration,
    /// The whole answer.
    pub total: Duration,
}

pub(super) fn local(t: &mut Table<'_>) -> Local {
    let url = |text: &str| if text.is_empty() { Ok(None) } else { on_site(text).map(Some) };
    let local = Local {
        base_url: t.parsed("base_url", "http://127.0.0.1:11434", "a URL in quotes", url).flatten(),
        api: t.word("api", LocalApi::Ollama),
        model: t.text("model", "llama3.2:latest"),
        vision_model: Some(t.text("vision_model", "")).filter(|model| !model.is_empty()),
        models: t.map("models"),
        max_in_flight: t.count("max_in_flight", 1, 1..=1024),
        keep_warm: t.word("keep_warm", KeepWarm::Degraded),
        timeouts: t.table("timeouts", |t| LocalTimeouts {
            connect: t.duration("connect", "1s", "1ms"),
            first_token: t.duration("first_token", "120s", "1ms"),
            idle: t.duration("idle", "20s", "1ms"),
            total: t.duration("total", "300s", "1ms"),
        }),
        max_temperature_c: t.count("max_temperature_c", 80, 1..=200),
    };
    if local.base_url.is_some() && local.model.is_empty() {
        t.fault("model", "may not be empty; name a model, or turn local answers off with base_url = \"\"");
    }
    local
}

/// The on-site model is asked without TLS.
fn on_site(text: &str) -> Result<String, String> {
    if text.starts_with("https:") {
        let hint = "write http:// and its address here, or make it an [[uplink]]";
        return Err(format!("the local model is asked over plain HTTP; {hint}"));
    }
    http_url(text, "http://127.0.0.1:11434")
}
