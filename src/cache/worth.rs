//! Which requests may be answered from the cache, and which answers are worth keeping.
//!
//! Two pure questions over what was asked and what came. Owns neither keys nor files.

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Largest answer that is kept or shared: a long chat answer is some 100 KiB, a batch of fifty embeddings below 1 MiB.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// What the caller's headers say about the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: what is deterministic may come from it.
    #[default]
    Usual,
    /// Whatever is asked, the same answer will do.
    On,
    /// A new answer; it may be kept for the next one.
    Anew,
    /// Neither from it nor into it.
    Off,
}

/// What decides whether a request has a place in the cache.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The path.
    pub endpoint: &'a str,
    /// `temperature` is given and exactly 0.
    pub temperature_is_zero: bool,
    /// Somebody's question whether we live.
    pub is_health_probe: bool,
    /// The headers' word.
    pub wish: Wish,
}

/// Whether the same request is answered the same, so that one answer will do.
pub fn is_cacheable(asked: &Asked<'_>) -> bool {
    let deterministic = asked.endpoint == "/v1/embeddings" || asked.temperature_is_zero;
    match asked.wish {
        Wish::Off => false,
        _ if asked.is_health_probe => false,
        Wish::On => true,
        Wish::Usual | Wish::Anew => deterministic,
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    error: Option<IgnoredAny>,
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    data: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    message: Option<Said>,
    #[serde(default)]
    delta: Option<Said>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    tool_calls: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    function_call: Option<IgnoredAny>,
}

impl Choice {
    /// A tool's answer changes the world, and its ids are for one conversation.
    fn calls_a_tool(&self) -> bool {
        [&self.message, &self.delta]
            .into_iter()
            .flatten()
            .any(|said| said.function_call.is_some() || said.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty()))
    }

    /// Only the ordinary end: neither cut (`length`) nor filtered, and none of the reasons that services make up.
    fn ended_well(&self) -> bool {
        self.finish_reason.as_deref() == Some("stop")
    }
}

/// Whether a whole answer of an uplink, status 200, is kept.
pub fn is_worth(endpoint: &str, stream: bool, body: &[u8]) -> bool {
    if body.len() > ANSWER_BYTES_MAX {
        return false;
    }
    if stream && endpoint != "/v1/embeddings" {
        return is_worth_stream(body);
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return false };
    if answer.error.is_some() {
        return false;
    }
    if endpoint == "/v1/embeddings" {
        return !answer.data.is_empty();
    }
    !answer.choices.is_empty() && answer.choices.iter().all(|choice| choice.ended_well() && !choice.calls_a_tool())
}

/// Events as they were passed on: each `data:` line one event, `[DONE]` the last.
fn is_worth_stream(body: &[u8]) -> bool {
    // How each choice ended, by its index.
    let mut choices: std::collections::BTreeMap<u32, bool> = std::collections::BTreeMap::new();
    let mut done = false;
    for data in body.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(b"data: ")) {
        if done {
            return false;
        }
        if data == b"[DONE]" {
            done = true;
            continue;
        }
        let Ok(event) = serde_json::from_slice::<Answer>(data) else { return false };
        if event.error.is_some() {
            return false;
        }
        for choice in event.choices {
            if choice.calls_a_tool() || (choice.finish_reason.is_some() && !choice.ended_well()) {
                return false;
            }
            *choices.entry(choice.index).or_default() |= choice.ended_well();
        }
    }
    done && !choices.is_empty() && choices.values().all(|ended| *ended)
}
