//! The list of metrics and the one place where they are counted.
//!
//! Owns names, units and label values (all from fixed lists or the configuration, so their number is
//! bounded); never reads the spool: gauges are set from counts that are already in memory.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::host::Host;

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
struct OfHealth {
    uplink: String,
    health: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

/// Upper bounds in seconds: from a cached answer to a slow local model.
const LATENCY_BUCKETS: [f64; 12] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
/// Of tokens: read, and written.
const DIRECTIONS: [&str; 2] = ["in", "out"];
/// Of a question to the local model.
const LOCAL_OUTCOMES: [&str; 2] = ["ok", "failed"];
/// The alias for latencies, in milliseconds.
const QUANTILES: &str = "ai_gateway_latency_ms";
/// Latest latencies kept for the quantiles of the alias metric; 8 KiB.
const RECENT: usize = 1024;

type Histograms<Label> = Family<Label, Histogram, fn() -> Histogram>;

/// All metrics of the gateway.
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    alias_requests: Counter,
    latency: Histograms<OfRoute>,
    local: Histograms<OfOutcome>,
    failovers: Family<OfUplink, Counter>,
    health: Family<OfHealth, Gauge>,
    temperature: Gauge<f64, AtomicU64>,
    memory: Gauge,
    disk_free: Gauge,
    disk_written: Counter,
    disk_accepted: Counter,
    throttled: Gauge<f64, AtomicU64>,
    undervoltage: Gauge<f64, AtomicU64>,
    card_wear: Gauge<f64, AtomicU64>,
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
    budget: Gauge<f64, AtomicU64>,
    spent_today: Gauge<f64, AtomicU64>,
    reserved: Gauge<f64, AtomicU64>,
    backlog_bytes: Gauge,
    oldest_age: Gauge,
    seconds_to_drain: Gauge,
    commits: Gauge,
    cache: Family<OfResult, Counter>,
    cache_entries: Gauge,
    cache_bytes: Gauge,
    local_state: Family<OfState, Gauge>,
    recent: Mutex<Recent>,
}

struct Recent {
    latencies_us: Vec<u64>,
    next: usize,
    /// Of all since start, not only the latest.
    count: u64,
    /// The same; many answers take less than a millisecond.
    sum_us: u64,
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
    /// Time until the backlog is sent; -1 while unknown or nothing is sent.
    pub seconds_to_drain: Option<u64>,
    /// Commits since start.
    pub commits: u64,
    /// Kept answers, and what they take on the disk.
    pub cache: (u64, u64),
    /// US dollars of today: the cap (0 is none), spent, reserved.
    pub budget: (f64, f64, f64),
    /// The uplinks.
    pub uplinks: Vec<UplinkReading>,
    /// Each state that the local model may be in, and whether it is; empty where there is none.
    pub local: Vec<(&'static str, bool)>,
    /// The board.
    pub host: Host,
}

/// One uplink as it stands.
#[derive(Debug)]
pub struct UplinkReading {
    /// Its name.
    pub name: String,
    /// Whether it takes requests.
    pub is_available: bool,
    /// Whether its circuit breaker is not closed.
    pub is_breaker_open: bool,
    /// Each state it may be in, and whether it is.
    pub health: [(&'static str, bool); 4],
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
            local: Family::new_with_constructor(histogram as fn() -> Histogram),
            failovers: Family::default(),
            health: Family::default(),
            temperature: Gauge::default(),
            memory: Gauge::default(),
            disk_free: Gauge::default(),
            disk_written: Counter::default(),
            disk_accepted: Counter::default(),
            throttled: Gauge::default(),
            undervoltage: Gauge::default(),
            card_wear: Gauge::default(),
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
            budget: Gauge::default(),
            spent_today: Gauge::default(),
            reserved: Gauge::default(),
            backlog_bytes: Gauge::default(),
            oldest_age: Gauge::default(),
            seconds_to_drain: Gauge::default(),
            commits: Gauge::default(),
            cache: Family::default(),
            cache_entries: Gauge::default(),
            cache_bytes: Gauge::default(),
            local_state: Family::default(),
            recent: Mutex::new(Recent { latencies_us: Vec::new(), next: 0, count: 0, sum_us: 0 }),
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
        r.register("holdfast_budget_usd", "[budget] usd_per_day; 0 is none", self.budget.clone());
        r.register(
            "holdfast_spent_today_usd",
            "Paid on this UTC day, or not known to be unpaid",
            self.spent_today.clone(),
        );
        r.register("holdfast_reserved_usd", "Set aside for what is under way", self.reserved.clone());
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
        r.register(
            "holdfast_local_duration_seconds",
            "Time until the local model's answer, or the first words of a stream",
            self.local.clone(),
        );
        r.register("holdfast_local_state", "1 for how the local model stands", self.local_state.clone());
        r.register(
            "holdfast_failovers",
            "Live requests that went on to another uplink, by the one that failed",
            self.failovers.clone(),
        );
        r.register("holdfast_uplink_health", "1 for the state that an uplink's probes found", self.health.clone());
        r.register(
            "holdfast_temperature_celsius",
            "The hottest sensor of the board; NaN where none tells",
            self.temperature.clone(),
        );
        r.register("holdfast_memory_resident_bytes", "Resident memory of the gateway", self.memory.clone());
        r.register("holdfast_disk_free_bytes", "Free space where the spool lives", self.disk_free.clone());
        r.register(
            "holdfast_disk_written_bytes",
            "What the gateway had written to disks since the last start or reload",
            self.disk_written.clone(),
        );
        r.register(
            "holdfast_disk_accepted_bytes",
            "Bodies of requests taken onto the disk since the last start or reload",
            self.disk_accepted.clone(),
        );
        r.register(
            "holdfast_throttled",
            "1 while the processor is slowed down by heat or voltage; NaN where the board does not tell",
            self.throttled.clone(),
        );
        r.register(
            "holdfast_undervoltage",
            "1 while the supply's voltage is too low; NaN where the board does not tell",
            self.undervoltage.clone(),
        );
        r.register(
            "holdfast_card_wear_percent",
            "How much of its life the eMMC has used, in tens; NaN where it does not tell",
            self.card_wear.clone(),
        );
    }

    /// Everything of these that can be counted begins at 0: a series that is not there yet hides its first event from
    /// `rate()` (Prometheus, instrumentation: avoid missing metrics).
    pub fn expect<'a>(&self, uplinks: impl Iterator<Item = &'a str>, final_states: impl Iterator<Item = &'static str>) {
        for uplink in uplinks {
            let label = OfUplink { uplink: uplink.to_owned() };
            drop(self.failovers.get_or_create(&label));
            drop(self.cost.get_or_create(&label));
            drop(self.attempts.get_or_create(&Attempted { uplink: uplink.to_owned(), outcome: "delivered" }));
            for direction in DIRECTIONS {
                drop(self.tokens.get_or_create(&OfTokens { uplink: uplink.to_owned(), direction }));
            }
        }
        for state in final_states {
            drop(self.settled.get_or_create(&OfState { state }));
        }
        for route in ["uplink", "local", "cache"] {
            drop(self.requests.get_or_create(&Answered { route, outcome: "ok" }));
            drop(self.latency.get_or_create(&OfRoute { route }));
        }
        for result in ["hit", "miss", "stale", "coalesced"] {
            drop(self.cache.get_or_create(&OfResult { result }));
        }
        for outcome in LOCAL_OUTCOMES {
            drop(self.local.get_or_create(&OfOutcome { outcome }));
        }
    }

    /// The local model was asked and has answered, or failed.
    pub fn local_answered(&self, is_ok: bool, took: Duration) {
        let outcome = LOCAL_OUTCOMES[usize::from(!is_ok)];
        self.local.get_or_create(&OfOutcome { outcome }).observe(took.as_secs_f64());
    }

    /// A live request that this uplink failed goes on to another one.
    pub fn failed_over(&self, uplink: &str) {
        self.failovers.get_or_create(&OfUplink { uplink: uplink.to_owned() }).inc();
    }

    /// A caller got an answer.
    pub fn answered(&self, route: &'static str, outcome: &'static str, took: Duration) {
        self.requests.get_or_create(&Answered { route, outcome }).inc();
        self.alias_requests.inc();
        self.latency.get_or_create(&OfRoute { route }).observe(took.as_secs_f64());
        let latency_us = took.as_micros() as u64;
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.count += 1;
        recent.sum_us += latency_us;
        let next = recent.next;
        if recent.latencies_us.len() < RECENT {
            recent.latencies_us.push(latency_us);
        } else {
            recent.latencies_us[next] = latency_us;
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

    /// A request with a body of so many bytes is on the disk.
    pub fn accepted(&self, bytes: u64) {
        self.disk_accepted.inc_by(bytes);
    }

    /// Bytes of the bodies that were taken onto the disk since the start.
    pub fn accepted_bytes(&self) -> u64 {
        self.disk_accepted.get()
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
        for (direction, tokens) in DIRECTIONS.into_iter().zip([prompt, completion]) {
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
        self.budget.set(readings.budget.0);
        self.spent_today.set(readings.budget.1);
        self.reserved.set(readings.budget.2);
        self.backlog_bytes.set(readings.backlog_bytes as i64);
        self.oldest_age.set(readings.oldest_age_s as i64);
        self.seconds_to_drain.set(readings.seconds_to_drain.map_or(-1, |s| s as i64));
        self.commits.set(readings.commits as i64);
        self.cache_entries.set(readings.cache.0 as i64);
        self.cache_bytes.set(readings.cache.1 as i64);
        for uplink in &readings.uplinks {
            let label = OfUplink { uplink: uplink.name.clone() };
            self.uplink_up.get_or_create(&label).set(i64::from(uplink.is_available));
            self.breaker_open.get_or_create(&label).set(i64::from(uplink.is_breaker_open));
            for (health, is) in uplink.health {
                let label = OfHealth { uplink: uplink.name.clone(), health };
                self.health.get_or_create(&label).set(i64::from(is));
            }
        }
        for (state, is) in &readings.local {
            self.local_state.get_or_create(&OfState { state }).set(i64::from(*is));
        }
        self.set_host(&readings.host);
        let mut text = self.quantiles();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn set_host(&self, host: &Host) {
        self.temperature.set(host.temperature_c.map_or(f64::NAN, f64::from));
        self.memory.set(host.memory_rss_bytes as i64);
        self.disk_free.set(host.disk_free_bytes as i64);
        // The system's counter only grows; one that was not read is 0.
        self.disk_written.inc_by(host.disk_written_bytes.saturating_sub(self.disk_written.get()));
        let yes = |told: Option<bool>| told.map_or(f64::NAN, |is| f64::from(u8::from(is)));
        self.throttled.set(yes(host.strain.is_throttled));
        self.undervoltage.set(yes(host.strain.is_undervoltage));
        self.card_wear.set(host.strain.card_wear_percent.map_or(f64::NAN, f64::from));
    }

    /// The alias for latencies: a summary, which the library has not.
    fn quantiles(&self) -> String {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut sorted, count, sum_us) = (recent.latencies_us.clone(), recent.count, recent.sum_us);
        drop(recent);
        sorted.sort_unstable();
        let ms = |us: u64| us as f64 / 1000.0;
        let mut text =
            format!("# HELP {QUANTILES} Time to answer; quantiles of the latest.\n# TYPE {QUANTILES} summary\n");
        for (name, share) in [("0.5", 0.5), ("0.95", 0.95), ("0.99", 0.99)] {
            let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
            let value = ms(sorted.get(at).copied().unwrap_or(0));
            text += &format!("{QUANTILES}{{quantile=\"{name}\"}} {value}\n");
        }
        text + &format!("{QUANTILES}_sum {}\n{QUANTILES}_count {count}\n", ms(sum_us))
    }
}

/// The same in the older text format (version 0.0.4), for who does not ask for OpenMetrics: there a counter's family has its
/// samples' name, and nothing marks the end.
pub fn prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        if line.starts_with("# HELP ") {
            help = line;
        } else if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap_or((family, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let words =
                help.strip_prefix("# HELP ").and_then(|help| help.split_once(' ')).map_or("", |(_, words)| words);
            text += &format!("# HELP {name}{suffix} {words}\n# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with("# ") {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_counters_as_their_samples_are_named() {
        let open =
            "# HELP a Counted.\n# TYPE a counter\na_total 1\n# HELP b Seen.\n# TYPE b gauge\nb{x=\"y\"} 2\n# EOF\n";
        let old = "# HELP a_total Counted.\n# TYPE a_total counter\na_total 1\n# HELP b Seen.\n# TYPE b gauge\nb{x=\"y\"} 2\n";
        assert_eq!(prometheus_text(open), old);
    }

    #[test]
    fn counts_and_quantiles_show() {
        let metrics = Metrics::default();
        for ms in 0..2000 {
            metrics.answered("uplink", "ok", Duration::from_millis(ms));
        }
        metrics.attempted("main", "delivered");
        let text = metrics.render(&Readings { states: vec![("queued", 3)], ..Readings::default() });
        assert!(text.contains("holdfast_requests_total{route=\"uplink\",outcome=\"ok\"} 2000"), "{text}");
        assert!(text.contains("ai_gateway_requests_total 2000"));
        assert!(text.contains("ai_gateway_latency_ms{quantile=\"0.5\"} 1488"), "{text}");
        assert!(text.contains("holdfast_spool_requests{state=\"queued\"} 3"));
    }

    #[test]
    fn answers_of_less_than_a_millisecond_add_up() {
        let metrics = Metrics::default();
        for _ in 0..10 {
            metrics.answered("cache", "ok", Duration::from_micros(250));
        }
        let text = metrics.render(&Readings::default());
        let sum =
            text.lines().find_map(|line| line.strip_prefix("holdfast_request_duration_seconds_sum{route=\"cache\"} "));
        assert!((sum.unwrap().parse::<f64>().unwrap() - 0.0025).abs() < 1e-9, "{text}");
        assert!(text.contains("ai_gateway_latency_ms{quantile=\"0.5\"} 0.25\n"), "{text}");
        assert!(text.contains("ai_gateway_latency_ms_sum 2.5\n"), "{text}");
    }
}
