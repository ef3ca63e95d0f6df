//! Looking at the model server, loading a model, and holding requests back by what was seen.
//!
//! Owns the questions (`/api/tags`, `/api/ps`, `/v1/models`) and the warm-up request. What they mean is `steward`'s; when they
//! are asked is the gateway's. Never pulls a model.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Notify, watch};

use super::steward::{Installed, KEEP_ALIVE, Look, Reading, Sight, State};
use super::transport::{Limits, Transport, after};
use super::{Api, Inner, Local, LocalError, PROBE_LIMIT, model_names};
use crate::clock;

/// How long a request waits for a look when the last one is old. A server that is slower than this is asked all the same.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// The longest load: gigabytes from an SD card. Then it is given up, and tried again later.
const LOAD_LIMIT: Duration = Duration::from_mins(10);

/// Who wants a look, and who waits for one.
pub(super) struct Watch {
    started: Instant,
    wanted: Notify,
    /// Counts looks.
    looks: watch::Sender<u64>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { started: clock::now(), wanted: Notify::new(), looks: watch::channel(0).0 }
    }

    fn now_ms(&self) -> u64 {
        clock::now().duration_since(self.started).as_millis() as u64
    }
}

/// Whether the server runs on this board: only then its memory is the one that is read here.
pub fn is_here(base_url: &str) -> bool {
    let uri: Option<hyper::Uri> = base_url.parse().ok();
    let host = uri.as_ref().and_then(|uri| uri.host()).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Whether a POST to this path of the server makes a model work.
pub(super) fn is_work(path: &str) -> bool {
    matches!(path, "/api/chat" | "/api/generate" | "/api/embed" | "/api/embeddings") || path.starts_with("/v1/")
}

impl Local {
    /// Looks at the server; `strained` while no uplink is healthy. The new state, if it is another one.
    pub async fn look(&self, board: Reading, strained: bool) -> Option<State> {
        let inner = self.inner.as_ref()?;
        let sight = inner.sight().await;
        let news = {
            let mut steward = inner.steward();
            steward.saw(sight, board, strained, inner.watch.now_ms());
            steward.news()
        };
        inner.watch.looks.send_modify(|count| *count += 1);
        news
    }

    /// What the last look found; `None` where no server is configured. An old one makes a new one follow.
    pub fn last_look(&self) -> Option<Look> {
        let inner = self.inner.as_ref()?;
        let steward = inner.steward();
        if steward.is_stale(inner.watch.now_ms()) {
            inner.watch.wanted.notify_one();
        }
        Some(steward.look())
    }

    /// Returns when it is time to look again: nothing wakes before, unless somebody asks.
    pub async fn until_due(&self) {
        let Some(inner) = &self.inner else { return std::future::pending().await };
        let due = inner.steward().next_look_ms();
        let wait = Duration::from_millis(due.saturating_sub(inner.watch.now_ms()));
        let _ = tokio::time::timeout(wait, inner.watch.wanted.notified()).await;
    }

    /// Asks for a look now: something changed.
    pub fn look_soon(&self) {
        if let Some(inner) = &self.inner {
            inner.watch.wanted.notify_one();
        }
    }

    /// The model that is to be loaded now. Whoever gets a name calls [`Local::warm`].
    pub fn to_warm(&self) -> Option<String> {
        let inner = self.inner.as_ref()?;
        let load = inner.slots.load();
        let is_busy = load.in_flight + load.waiting > 0;
        inner.steward().warm_up(is_busy, inner.watch.now_ms())
    }

    /// Loads a model and keeps it for a while, on a connection of its own: closing it gives the load up, and no other
    /// request's end may do that.
    pub async fn warm(&self, model: &str) -> Result<(), LocalError> {
        let inner = self.on()?;
        let body = Bytes::from(json!({"model": model, "keep_alive": KEEP_ALIVE, "stream": false}).to_string());
        let until = after(LOAD_LIMIT);
        let limits = Limits { first: until, idle: LOAD_LIMIT, total: until };
        let loading = async {
            let base = inner.options.base_url.as_deref().unwrap_or_default();
            let own = Transport::new(base, &inner.options.timeouts)?;
            own.post("/api/generate", body, model, limits).await?.whole().await
        };
        let loaded = loading.await;
        inner.steward().warmed(loaded.is_ok(), inner.watch.now_ms());
        inner.watch.wanted.notify_one();
        loaded.map(|_| ())
    }
}

impl Inner {
    async fn sight(&self) -> Sight {
        match self.seen().await {
            Ok(sight) => sight,
            Err(error) => Sight::Failed(error),
        }
    }

    async fn seen(&self) -> Result<Sight, LocalError> {
        if self.options.api == Api::OpenAi {
            let list = self.transport.get("/v1/models", after(PROBE_LIMIT)).await?;
            return model_names(&list).map(|_| Sight::Answers);
        }
        let tags = self.transport.get("/api/tags", after(PROBE_LIMIT)).await?;
        let mut models = installed(&tags)?;
        // An old server has no such list; then nothing counts as loaded.
        if let Ok(running) = self.transport.get("/api/ps", after(PROBE_LIMIT)).await {
            note_loaded(&mut models, &running);
        }
        Ok(Sight::Models(models))
    }

    /// What is known is not old; nothing is worse than waiting long for it.
    async fn refresh(&self) {
        let mut looks = self.watch.looks.subscribe();
        // Before the first look nothing speaks against the model.
        if *looks.borrow_and_update() == 0 || !self.steward().is_stale(self.watch.now_ms()) {
            return;
        }
        self.watch.wanted.notify_one();
        let _ = tokio::time::timeout(LOOK_PATIENCE, looks.changed()).await;
    }

    /// Refuses new work while the board is too hot, by a fresh look.
    pub(super) async fn cool(&self) -> Result<(), LocalError> {
        self.refresh().await;
        self.steward().heat().map_or(Ok(()), Err)
    }

    /// Refuses what may not go to this model now.
    pub(super) fn fits(&self, model: &str) -> Result<(), LocalError> {
        self.steward().bar(model).map_or(Ok(()), Err)
    }
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    models: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    size: Option<u64>,
    #[serde(default)]
    size_vram: u64,
}

/// `/api/tags`: what the server has.
fn installed(tags: &[u8]) -> Result<Vec<Installed>, LocalError> {
    let listing: Listing = serde_json::from_slice(tags).map_err(|_| LocalError::Failed { status: 200 })?;
    let one = |entry: Entry| Installed { name: entry.name, size: entry.size, loaded: None };
    Ok(listing.models.into_iter().map(one).collect())
}

/// `/api/ps`: what of it is in memory, and what main memory it takes.
fn note_loaded(models: &mut [Installed], running: &[u8]) {
    let Ok(listing) = serde_json::from_slice::<Listing>(running) else { return };
    for entry in listing.models {
        if let Some(model) = models.iter_mut().find(|model| model.name == entry.name) {
            model.loaded = Some(entry.size.unwrap_or(0).saturating_sub(entry.size_vram));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_elsewhere_is_told_from_one_on_this_board() {
        assert!(["http://127.0.0.1:11434", "http://localhost:1/v1", "http://[::1]:8080"].into_iter().all(is_here));
        assert!(!["http://192.168.1.5:11434", "http://jetson.local:11434", ""].into_iter().any(is_here));
    }

    #[test]
    fn the_lists_of_a_real_server_are_read() {
        let tags =
            br#"{"models":[{"name":"llama3.2:latest","model":"llama3.2:latest","size":2019393189},{"name":"odd"}]}"#;
        let ps =
            br#"{"models":[{"name":"llama3.2:latest","size":3000000000,"size_vram":1000000000,"expires_at":"x"}]}"#;
        let mut models = installed(tags).unwrap();
        note_loaded(&mut models, ps);
        assert_eq!((models[0].size, models[0].loaded), (Some(2_019_393_189), Some(2_000_000_000)));
        assert_eq!((models[1].size, models[1].loaded), (None, None));
        assert!(installed(b"<html>").is_err());
        note_loaded(&mut models, b"404 page not found");
    }
}
