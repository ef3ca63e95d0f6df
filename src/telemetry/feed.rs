//! Live events for `tap` and the server-sent streams: one JSON line per change, no bodies.
//!
//! Owns the shape of an event; keeps nothing. A listener that is too slow loses events and is told so.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::broadcast;

use crate::clock;

/// Events a slow listener may fall behind before it loses some.
const FEED_EVENTS: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Unix milliseconds, as the wall clock says.
    pub at: u64,
    /// `request`, `uplink`, `breaker`, `route`, `drain`, `link`, `agreement`, `local`.
    pub event: &'static str,
    /// The request's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What it is now: a state, a health, a breaker's state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where it went: `uplink:<name>`, `local:<model>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
}

impl Event {
    /// An event of this kind, now, with nothing else said yet.
    pub fn new(event: &'static str) -> Self {
        Self {
            at: clock::unix_ms(),
            event,
            id: None,
            source: None,
            state: None,
            reason: None,
            route: None,
            latency_ms: None,
        }
    }
}

/// Where events are published.
#[derive(Debug, Clone)]
pub struct Feed(broadcast::Sender<Arc<Event>>);

impl Default for Feed {
    fn default() -> Self {
        Self(broadcast::channel(FEED_EVENTS).0)
    }
}

impl Feed {
    /// Publishes; costs nothing where nobody listens.
    pub fn publish(&self, event: Event) {
        if self.0.receiver_count() > 0 {
            let _ = self.0.send(Arc::new(event));
        }
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.subscribe()
    }
}
