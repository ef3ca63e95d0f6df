//! Live events for `tap` and the server-sent streams: one JSON line per change; beginnings of bodies only to who asks for them.
//!
//! Owns the shape of an event; keeps nothing. A listener that is too slow loses events and is told so.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::broadcast;

use crate::clock;

/// Events a slow listener may fall behind before it loses some.
const FEED_EVENTS: usize = 1024;

/// The same where events hold up to 4 KiB of a body each.
const BODY_EVENTS: usize = 256;

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Unix seconds, as the wall clock says.
    pub at: u64,
    /// The same in milliseconds.
    pub at_ms: u64,
    /// `request`, `uplink`, `breaker`, `route`, `drain`, `link`, `agreement`, `local`,
    /// `request_body`, `answer_body`.
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
    /// The beginning of a body, without pictures; of the two events about bodies only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

impl Event {
    /// An event of this kind, now, with nothing else said yet.
    pub fn new(event: &'static str) -> Self {
        let at_ms = clock::unix_ms();
        Self {
            at: at_ms / 1000,
            at_ms,
            event,
            id: None,
            source: None,
            state: None,
            reason: None,
            route: None,
            latency_ms: None,
            body: None,
        }
    }
}

/// Where events are published.
#[derive(Debug, Clone)]
pub struct Feed {
    events: broadcast::Sender<Arc<Event>>,
    /// The same events, and the bodies between them.
    with_bodies: broadcast::Sender<Arc<Event>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { events: broadcast::channel(FEED_EVENTS).0, with_bodies: broadcast::channel(BODY_EVENTS).0 }
    }
}

impl Feed {
    /// Publishes; costs nothing where nobody listens.
    pub fn publish(&self, event: Event) {
        if self.events.receiver_count() == 0 && !self.has_body_listener() {
            return;
        }
        let event = Arc::new(event);
        let _ = self.with_bodies.send(event.clone());
        let _ = self.events.send(event);
    }

    /// Publishes the beginning of a body, to those who asked for bodies alone.
    pub fn publish_body(&self, event: Event) {
        if self.has_body_listener() {
            let _ = self.with_bodies.send(Arc::new(event));
        }
    }

    /// Whether anybody asked for bodies.
    pub fn has_body_listener(&self) -> bool {
        self.with_bodies.receiver_count() > 0
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// Listens from now on, to bodies too.
    pub fn subscribe_with_bodies(&self) -> broadcast::Receiver<Arc<Event>> {
        self.with_bodies.subscribe()
    }
}
