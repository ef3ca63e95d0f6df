//! State changes as people see them: one line in the journal and one live event each.
//!
//! Owns their words. Decides nothing.

use super::super::Shared;
use super::Driver;
use crate::control::breaker::BreakerState;
use crate::control::event::{Block, Fault, KeyIndex, Notice, UplinkIndex};
use crate::control::health::Health;
use crate::money::News;
use crate::telemetry::feed;

impl Driver {
    pub(super) fn notice(&self, notice: &Notice) {
        let name = |uplink: usize| self.shared.uplinks.get(uplink).map_or("?", |cloud| cloud.name()).to_owned();
        self.shared.feed.publish(match notice {
            Notice::Health { uplink, health, fault } => health_changed(&name(*uplink), *health, *fault),
            Notice::Breaker { uplink, state } => breaker_changed(&name(*uplink), *state),
            Notice::RoutePaused { uplink, block, retry_in_s } => route_paused(&name(*uplink), *block, *retry_in_s),
            Notice::RouteResumed { uplink } => route_resumed(&name(*uplink)),
            Notice::KeyPaused { uplink, key, block, retry_in_s, left } => {
                key_paused(&name(*uplink), &self.key_name(*uplink, *key), *block, *retry_in_s, *left)
            }
            Notice::KeyResumed { uplink, key } => key_resumed(&name(*uplink), &self.key_name(*uplink, *key)),
            Notice::Storage { works } => storage_changed(*works),
            Notice::DrainScheduled { delay_ms } => drain_scheduled(*delay_ms),
        });
    }

    fn key_name(&self, uplink: UplinkIndex, key: KeyIndex) -> String {
        self.shared.uplinks.get(uplink).map_or_else(|| "?".to_owned(), |cloud| cloud.key_name(key))
    }
}

fn health_changed(uplink: &str, health: Health, fault: Option<Fault>) -> feed::Event {
    let reason = fault.map(Fault::as_str);
    let line = format!("uplink {uplink} is {health}");
    if health == Health::Unhealthy {
        tracing::warn!(HOLDFAST_UPLINK = uplink, HOLDFAST_STATE = health.as_str(), HOLDFAST_REASON = reason, "{line}");
    } else {
        tracing::info!(HOLDFAST_UPLINK = uplink, HOLDFAST_STATE = health.as_str(), "{line}");
    }
    change("uplink", uplink, Some(health.as_str()), reason.map(str::to_owned))
}

fn breaker_changed(uplink: &str, state: BreakerState) -> feed::Event {
    tracing::warn!(HOLDFAST_UPLINK = uplink, HOLDFAST_STATE = state.as_str(), "circuit breaker of {uplink} is {state}");
    change("breaker", uplink, Some(state.as_str()), None)
}

fn route_paused(uplink: &str, block: Block, retry_in_s: u64) -> feed::Event {
    tracing::error!(
        HOLDFAST_UPLINK = uplink,
        HOLDFAST_REASON = block.as_str(),
        "backlog to {uplink} paused: {block}: {}; next try in {retry_in_s} s",
        block.sentence()
    );
    change("route", uplink, Some("paused"), Some(block.as_str().to_owned()))
}

fn key_paused(uplink: &str, key: &str, block: Block, retry_in_s: u64, left: usize) -> feed::Event {
    let others = match left {
        0 => "no good key is left".to_owned(),
        1 => "1 key serves on".to_owned(),
        _ => format!("{left} keys serve on"),
    };
    tracing::error!(
        HOLDFAST_UPLINK = uplink,
        HOLDFAST_REASON = block.as_str(),
        "{key} of {uplink} set aside: {block}: {}; {others}; next try in {retry_in_s} s",
        block.key_sentence()
    );
    change("key", uplink, Some("paused"), Some(format!("{key}: {block}")))
}

fn key_resumed(uplink: &str, key: &str) -> feed::Event {
    tracing::warn!(HOLDFAST_UPLINK = uplink, "{key} of {uplink} serves again");
    change("key", uplink, Some("resumed"), Some(key.to_owned()))
}

fn route_resumed(uplink: &str) -> feed::Event {
    tracing::warn!(HOLDFAST_UPLINK = uplink, "backlog to {uplink} goes on");
    change("route", uplink, Some("resumed"), None)
}

fn storage_changed(works: bool) -> feed::Event {
    if works {
        tracing::warn!("outcomes can be written again; the backlog goes on");
        return change("storage", "", Some("resumed"), None);
    }
    tracing::error!(
        HOLDFAST_REASON = "storage",
        "backlog paused: storage: an outcome cannot be written; make room on the disk or replace it"
    );
    change("storage", "", Some("paused"), Some("storage".to_owned()))
}

fn drain_scheduled(delay_ms: u64) -> feed::Event {
    tracing::info!("an uplink is available; the backlog follows in {delay_ms} ms");
    let mut event = feed::Event::new("drain");
    event.latency_ms = Some(delay_ms);
    event
}

/// What changed in the purse.
pub(super) fn money(shared: &Shared, news: News) {
    let view = shared.money.view();
    match news {
        News::Spent => {
            tracing::error!(HOLDFAST_REASON = "budget_spent", "backlog paused: budget: {}", view.sentence());
            shared.feed.publish(change("budget", "", Some("paused"), Some("budget_spent".to_owned())));
        }
        News::Eased if view.spent_until_s.is_none() && view.cap_usd.is_some() => {
            tracing::info!("there is money again: the backlog goes on under [budget] usd_per_day");
            shared.feed.publish(change("budget", "", Some("resumed"), None));
        }
        News::Eased => {}
    }
}

fn change(kind: &'static str, uplink: &str, state: Option<&'static str>, reason: Option<String>) -> feed::Event {
    let mut event = feed::Event::new(kind);
    event.route = Some(format!("uplink:{uplink}"));
    event.state = state;
    event.reason = reason;
    event
}
