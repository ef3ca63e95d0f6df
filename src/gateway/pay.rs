//! What an attempt may cost before it is sent, and what it cost by the way it ended.
//!
//! Owns the bridge between a call on its way out and the purse: the one place through which everything that is sent has
//! to go. Keeps no amounts itself.

use std::time::Instant;

use hyper::Method;
use serde::Deserialize;
use tokio::task::spawn_blocking;

use super::Shared;
use crate::body::{Body, PIECE_BYTES};
use crate::control::event::Outcome;
use crate::control::price::Usage;
use crate::money::bound::{self, TokensMax};
use crate::money::{End, Order, Refused, Reservation};
use crate::uplink::body::Spliced;
use crate::uplink::cloud::{Call, Cloud};

/// Paths below which nothing is paid for what is sent, whatever is said of a model.
const FREE_PATHS: [&str; 3] = ["/v1/files", "/v1/models", "/v1/moderations"];

/// Sets money aside for one attempt, waiting no longer than its caller; `None` for what is never paid for.
pub(super) async fn reserve(
    shared: &Shared,
    cloud: &Cloud,
    call: &Call,
    source: &str,
    caller: Option<Instant>,
) -> Result<Option<Reservation>, Outcome> {
    let path = call.path.split('?').next().unwrap_or_default();
    if call.method.is_safe() || call.method == Method::DELETE || is_free(path) {
        return Ok(None);
    }
    let model = renamed(&call.body).unwrap_or_else(|| {
        let asked = model(&call.body.body).unwrap_or_default();
        cloud.alias(&asked).unwrap_or(&asked).to_owned()
    });
    let need = if shared.money.is_capped() { need(shared, cloud, path, &call.body.body, &model).await? } else { 0 };
    let order = Order { uplink: cloud.name().to_owned(), model, source: source.to_owned(), need };
    match shared.money.reserve(order, caller).await {
        Ok(reservation) => Ok(Some(reservation)),
        Err(refused) => {
            let why = match refused {
                Refused::Spent => "it may cost more than is left of today",
                Refused::Busy => "it may cost more than what is under way leaves of today",
                Refused::Disk => "what it costs cannot be written down",
            };
            tracing::debug!(HOLDFAST_UPLINK = cloud.name(), HOLDFAST_REASON = "budget_spent", "not sent: {why}");
            Err(Outcome::Unaffordable)
        }
    }
}

/// Whether nothing is paid at this path. One with steps up or escaped bytes may be another one to who reads it there:
/// `/v1/files/../chat/completions`.
fn is_free(path: &str) -> bool {
    let is_plain = |part: &str| {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
        part.bytes().all(is_word) && !part.bytes().all(|byte| byte == b'.')
    };
    FREE_PATHS
        .iter()
        .filter_map(|free| path.strip_prefix(free))
        .any(|rest| rest.is_empty() || rest.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_plain)))
}

/// What an attempt that was sent cost, by its end and by what its answer said.
pub(super) fn end(outcome: Outcome, said: Option<(Option<String>, Usage)>) -> End {
    match (outcome, said) {
        (
            Outcome::Unreachable(_)
            | Outcome::Transient(_)
            | Outcome::Later { .. }
            | Outcome::RateLimited { .. }
            | Outcome::Blocked(_)
            | Outcome::Permanent(_)
            | Outcome::GivenUp
            | Outcome::Unaffordable,
            _,
        ) => End::Nothing,
        (Outcome::Delivered | Outcome::Misfit | Outcome::NoAnswer, Some((model, usage))) => End::Usage(model, usage),
        (Outcome::Delivered | Outcome::Misfit | Outcome::NoAnswer | Outcome::Unknown(_), _) => End::Unknown,
    }
}

/// A large body is read off the threads that serve. What cannot be read is not sent.
async fn need(shared: &Shared, cloud: &Cloud, path: &str, body: &Body, model: &str) -> Result<u64, Outcome> {
    let (price, _) = shared.money.price(cloud.name(), model);
    if price.usd_per_mtok_in == 0.0 && price.usd_per_mtok_out == 0.0 {
        return Ok(0);
    }
    let most: Option<TokensMax> = if body.len() <= PIECE_BYTES as u64 && body.file().is_none() {
        bound::tokens_max(path, body).ok()
    } else {
        let (path, body) = (path.to_owned(), body.clone());
        spawn_blocking(move || bound::tokens_max(&path, &body).ok()).await.ok().flatten()
    };
    most.map(|most| most.nano_max(&price).max(1)).ok_or(Outcome::Unaffordable)
}

/// The model that is put in the place of what the client wrote.
fn renamed(body: &Spliced) -> Option<String> {
    let at = &body.body.layout().as_ref().ok()?.get("model")?.at;
    let (_, name) = body.edits.iter().find(|(edited, _)| edited == at)?;
    serde_json::from_slice(name).ok()
}

/// The model that a body names, as its client wrote it.
fn model(body: &Body) -> Option<String> {
    let member = body.layout().as_ref().ok()?.get("model").filter(|member| member.is_whole())?;
    String::deserialize(&mut serde_json::Deserializer::from_slice(&member.start)).ok()
}

#[cfg(test)]
mod tests {
    use super::is_free;

    #[test]
    fn only_what_can_be_no_other_path_is_free() {
        for free in ["/v1/files", "/v1/files/file-1/content", "/v1/moderations", "/v1/models/ft:gpt-4o:a"] {
            assert!(is_free(free), "{free}");
        }
        for paid in [
            "/v1/chat/completions",
            "/v1/filesystem",
            "/v1/files/../chat/completions",
            "/v1/files/x/../../chat/completions",
            "/v1/models/%2e%2e/chat/completions",
            "/v1/models/..%2fchat/completions",
            "/v1/files/.//../chat/completions",
            "/v1/files/..\\chat/completions",
            "/v1/files/..;/chat/completions",
        ] {
            assert!(!is_free(paid), "{paid}");
        }
    }
}
