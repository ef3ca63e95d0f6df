//! Looking after the on-site model while nobody asks it: one task that looks when a look is due, tells what changed and
//! has the model loaded when it is time.
//!
//! Decides nothing: when, whether and why is `uplink::local`'s pure steward.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use crate::telemetry::feed;
use crate::uplink::local::{Reading, State};

/// Until the process ends.
pub(super) async fn keep(shared: Arc<Shared>) {
    if !shared.local.is_enabled() {
        return;
    }
    while shared.accepting.load(Ordering::Acquire) {
        let host = shared.board.latest().await;
        let board = Reading { temperature_c: host.temperature_c, memory_available_bytes: host.memory_available_bytes };
        let news = shared.local.look(board, shared.strained.load(Ordering::Acquire)).await;
        if let Some(model) = shared.local.to_warm() {
            tokio::spawn(warm(shared.clone(), model));
        }
        if let Some(state) = news {
            tell(&shared, state);
        }
        shared.local.until_due().await;
    }
}

async fn warm(shared: Arc<Shared>, model: String) {
    tracing::debug!("the local model {model} is being loaded");
    if let Err(error) = shared.local.warm(&model).await {
        tracing::warn!(HOLDFAST_REASON = error.kind(), "the local model was not loaded: {error}; tried again later");
    }
}

/// One line in the journal and one live event.
fn tell(shared: &Shared, state: State) {
    let Some(look) = shared.local.last_look() else { return };
    let word = state.as_str();
    if let Some(reason) = &look.reason {
        tracing::warn!(HOLDFAST_STATE = word, "the local model is not used: {reason}");
    } else {
        tracing::info!(HOLDFAST_STATE = word, "the local model is {word}");
    }
    let mut event = feed::Event::new("local");
    event.state = Some(word);
    event.reason = look.reason;
    shared.feed.publish(event);
}
