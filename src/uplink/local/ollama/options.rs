//! The settings that chat and completions share, from OpenAI's names to Ollama's.
//!
//! Owns the refusal of what Ollama cannot do; never sets what the client left open: the model's own file does.

use serde::Serialize;
use serde_json::Number;

use crate::uplink::local::LocalError;
use crate::uplink::local::dialect::Common;

#[derive(Serialize, Debug, Default)]
pub(super) struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    num_predict: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<Vec<String>>,
}

/// How the answer is wanted.
pub(super) struct Wanted {
    pub(super) options: Options,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

/// Reads the shared settings of `body`; `max_tokens` is the endpoint's own newer name for the same, if given.
pub(super) fn read(endpoint: &str, body: &[u8], max_tokens: Option<i64>) -> Result<Wanted, LocalError> {
    let common: Common = serde_json::from_slice(body).map_err(|e| LocalError::unreadable(endpoint, &e))?;
    refuse(&common)?;
    let include_usage = common.stream_options.and_then(|o| o.include_usage).unwrap_or(false);
    let options = Options {
        num_predict: max_tokens.or(common.max_tokens),
        temperature: common.temperature,
        top_p: common.top_p,
        seed: common.seed,
        frequency_penalty: common.frequency_penalty,
        presence_penalty: common.presence_penalty,
        stop: common.stop.map(crate::uplink::local::dialect::OneOrMore::into_list),
    };
    Ok(Wanted { options, stream: common.stream.unwrap_or(false), include_usage })
}

fn refuse(common: &Common) -> Result<(), LocalError> {
    if common.n.is_some_and(|n| n > 1) || common.best_of.is_some_and(|n| n > 1) {
        return Err(LocalError::unsupported("it gives one answer per request; ask with `n` 1"));
    }
    if !matches!(common.logprobs, None | Some(serde_json::Value::Null | serde_json::Value::Bool(false))) {
        return Err(LocalError::unsupported("it gives no `logprobs`; leave them out"));
    }
    if common.echo == Some(true) {
        return Err(LocalError::unsupported("it does not `echo` the prompt; leave it out"));
    }
    Ok(())
}
