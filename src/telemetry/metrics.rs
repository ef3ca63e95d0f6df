//! The list of metrics and the one place where they are counted.
//!
//! Owns names, units and label values (all from fixed lists or the configuration, so their number is
//! bounded); never reads the spool: gauges are set from counts that are already in memory.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Where a request was answered and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempted {
    uplink: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfUplink {
    uplink: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTokens {
    uplink: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Agreed {
    task: u32,
    model: String,
    agreement: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfQuantile {
    quantile: &'static str,
}

/// Upper bounds in seconds: from a cached answer to a slow local model.
const LATENCY_BUCKETS: [f64; 12] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
/// Latest latencies kept for the quantiles of the alias metric; 8 KiB.
const RECENT: usize = 1024;

type Histograms = Family<OfRoute, Histogram, fn() -> Histogram>;

/// All metrics of the gateway.
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    alias_requests: Counter,
    latency: Histograms,
    attempts: Family<Attempted, Counter>,
    uplink_up: Family<OfUplink, Gauge>,
    breaker_open: Family<OfUplink, Gauge>,
    states: Family<OfState, Gauge>,
    settled: Family<OfState, Counter>,
    limited: Counter,
    agreements: Family<Agreed, Counter>,
    tokens: Family<OfTokens, Counter>,
    cost: Family<OfUplink, Counter<f64, AtomicU64>>,
    alias_cost: Gauge<f64, AtomicU64>,
    backlog_bytes: Gauge,
    oldest_age: Gauge,
    seconds_to_drain: Gauge,
    commits: Gauge,
    quantiles: Family<OfQuantile, Gauge<f64, AtomicU64>>,
    cache: Family<OfResult, Counter>,
    cache_entries: Gauge,
    cache_bytes: Gauge,
    recent: Mutex<Recent>,
}

struct Recent {
    latencies_ms: Vec<f64>,
    next: usize,
}

/// What the gauges are set from just before they are shown.
#[derive(Debug, Default)]
pub struct Readings {
    /// Requests per state.
    pub states: Vec<(&'static str, u64)>,
    /// Body bytes that wait.
    pub backlog_bytes: u64,
    /// Age of the oldest waiting request.
    pub oldest_age_s: u64,
    /// Time until the backlog is sent; -1 while unknown.
    pub seconds_to_drain: Option<u64>,
    /// Commits since start.
    pub commits: u64,
    /// Kept answers, and what they take on the disk.
    pub cache: (u64, u64),
    /// Name, whether it takes requests, whether its breaker is open.
    pub uplinks: Vec<(String, bool, bool)>,
}

fn histogram() -> Histogram {
    Histogram::new(LATENCY_BUCKETS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            alias_requests: Counter::default(),
            latency: Family::new_with_constructor(histogram as fn() -> Histogram),
            attempts: Family::default(),
            uplink_up: Family::default(),
            breaker_open: Family::default(),
            states: Family::default(),
            settled: Family::default(),
            limited: Counter::default(),
            agreements: Family::default(),
            tokens: Family::default(),
            cost: Family::default(),
            alias_cost: Gauge::default(),
            backlog_bytes: Gauge::default(),
            oldest_age: Gauge::default(),
            seconds_to_drain: Gauge::default(),
            commits: Gauge::default(),
            quantiles: Family::default(),
            cache: Family::default(),
            cache_entries: Gauge::default(),
            cache_bytes: Gauge::default(),
            recent: Mutex::new(Recent { latencies_ms: Vec::new(), next: 0 }),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("holdfast_requests", "Answers given to callers, by route and outcome", self.requests.clone());
        r.register("ai_gateway_requests", "Answers given to callers", self.alias_requests.clone());
        r.register("holdfast_request_duration_seconds", "From a request's head to its answer", self.latency.clone());
        r.register("ai_gateway_latency_ms", "Quantiles of the latest answers, in milliseconds", self.quantiles.clone());
        r.register("holdfast_attempts", "Attempts at uplinks, by outcome", self.attempts.clone());
        r.register("holdfast_uplink_available", "1 while requests go to the uplink", self.uplink_up.clone());
        r.register("holdfast_breaker_open", "1 while the circuit breaker is not closed", self.breaker_open.clone());
        r.register("holdfast_spool_requests", "Stored requests, by state", self.states.clone());
        r.register("holdfast_settled", "Stored requests that reached a final state", self.settled.clone());
        r.register("holdfast_limited_requests", "Requests refused by [limits] rate", self.limited.clone());
        r.register(
            "holdfast_agreement",
            "Requests answered locally and later by an uplink, by whether both say the same",
            self.agreements.clone(),
        );
        r.register("holdfast_tokens", "Tokens of uplinks' answers, as they state them", self.tokens.clone());
        r.register("holdfast_cost_usd", "Price of uplinks' answers, where it is known", self.cost.clone());
        r.register("ai_gateway_cost_usd", "Price of all uplinks' answers since start", self.alias_cost.clone());
        r.register("holdfast_backlog_bytes", "Body bytes that wait for an uplink", self.backlog_bytes.clone());
        r.register("holdfast_backlog_oldest_seconds", "Age of the oldest waiting request", self.oldest_age.clone());
        r.register(
            "holdfast_backlog_drain_seconds",
            "Time until the backlog is sent; -1 unknown",
            self.seconds_to_drain.clone(),
        );
        r.register("holdfast_spool_commits", "Commits since start", self.commits.clone());
        r.register("holdfast_cache", "Requests that may come from the cache, by what came of it", self.cache.clone());
        r.register("holdfast_cache_entries", "Answers that are kept", self.cache_entries.clone());
        r.register("holdfast_cache_bytes", "What kept answers take on the disk", self.cache_bytes.clone());
    }

    /// A caller got an answer.
    pub fn answered(&self, route: &'static str, outcome: &'static str, latency_ms: u64) {
        self.requests.get_or_create(&Answered { route, outcome }).inc();
        self.alias_requests.inc();
        self.latency.get_or_create(&OfRoute { route }).observe(latency_ms as f64 / 1000.0);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let next = recent.next;
        if recent.latencies_ms.len() < RECENT {
            recent.latencies_ms.push(latency_ms as f64);
        } else {
            recent.latencies_ms[next] = latency_ms as f64;
        }
        recent.next = (next + 1) % RECENT;
    }

    /// An attempt at an uplink ended.
    pub fn attempted(&self, uplink: &str, outcome: &'static str) {
        self.attempts.get_or_create(&Attempted { uplink: uplink.to_owned(), outcome }).inc();
    }

    /// A stored request reached a final state.
    pub fn settled(&self, state: &'static str) {
        self.settled.get_or_create(&OfState { state }).inc();
    }

    /// A request was refused because its source sends too many.
    pub fn limited(&self) {
        self.limited.inc();
    }

    /// A request that may come from the cache was a `hit`, a `miss`, `stale`, or `coalesced` with an identical one.
    pub fn cache(&self, result: &'static str) {
        self.cache.get_or_create(&OfResult { result }).inc();
    }

    /// An uplink's answer took so many tokens.
    pub fn spent(&self, uplink: &str, prompt: u64, completion: u64, usd: Option<f64>) {
        for (direction, tokens) in [("in", prompt), ("out", completion)] {
            self.tokens.get_or_create(&OfTokens { uplink: uplink.to_owned(), direction }).inc_by(tokens);
        }
        if let Some(usd) = usd {
            self.cost.get_or_create(&OfUplink { uplink: uplink.to_owned() }).inc_by(usd);
            self.alias_cost.inc_by(usd);
        }
    }

    /// A request that the local model had answered was answered by an uplink, too. Tasks and local models come from the
    /// configuration; no task is 0.
    pub fn agreed(&self, task: Option<u16>, model: &str, agreement: &'static str) {
        let label = Agreed { task: task.unwrap_or_default().into(), model: model.to_owned(), agreement };
        self.agreements.get_or_create(&label).inc();
    }

    /// Everything as Prometheus text.
    pub fn render(&self, readings: &Readings) -> String {
        for (state, count) in &readings.states {
            self.states.get_or_create(&OfState { state }).set(*count as i64);
        }
        self.backlog_bytes.set(readings.backlog_bytes as i64);
        self.oldest_age.set(readings.oldest_age_s as i64);
        self.seconds_to_drain.set(readings.seconds_to_drain.map_or(-1, |s| s as i64));
        self.commits.set(readings.commits as i64);
        self.cache_entries.set(readings.cache.0 as i64);
        self.cache_bytes.set(readings.cache.1 as i64);
        for (uplink, up, open) in &readings.uplinks {
            let label = OfUplink { uplink: uplink.clone() };
            self.uplink_up.get_or_create(&label).set(i64::from(*up));
            self.breaker_open.get_or_create(&label).set(i64::from(*open));
        }
        self.set_quantiles();
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn set_quantiles(&self) {
        let mut sorted = self.recent.lock().unwrap_or_else(PoisonError::into_inner).latencies_ms.clone();
        sorted.sort_by(f64::total_cmp);
        for (name, share) in [("0.5", 0.5), ("0.95", 0.95), ("0.99", 0.99)] {
            let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
            let value = sorted.get(at).copied().unwrap_or(0.0);
            self.quantiles.get_or_create(&OfQuantile { quantile: name }).set(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_quantiles_show() {
        let metrics = Metrics::default();
        for ms in 0..2000 {
            metrics.answered("uplink", "ok", ms);
        }
        metrics.attempted("main", "delivered");
        let text = metrics.render(&Readings { states: vec![("queued", 3)], ..Readings::default() });
        assert!(text.contains("holdfast_requests_total{route=\"uplink\",outcome=\"ok\"} 2000"), "{text}");
        assert!(text.contains("ai_gateway_requests_total 2000"));
        assert!(text.contains("ai_gateway_latency_ms{quantile=\"0.5\"} 1488"), "{text}");
        assert!(text.contains("holdfast_spool_requests{state=\"queued\"} 3"));
    }
}
