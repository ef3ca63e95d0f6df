//! `[cache]`, `[limits]`, `[budget]`, `[[model]]`, `[log]`.

use std::time::Duration;

use super::units::quoted;
use super::walk::Table;
use crate::control::price::OUTPUT_TOKENS_MAX;
use crate::control::types::words;

/// `[cache]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// How long an answer is fresh; zero turns the cache off.
    pub ttl: Duration,
    /// How old an answer may be while offline.
    pub offline_stale: Duration,
    /// Its largest size in bytes.
    pub max_bytes: u64,
    /// What one source asked may answer another.
    pub shared: bool,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Requests per client and second; 0 is no limit.
    pub rate: u32,
    /// How many may come at once.
    pub burst: u32,
    /// How many requests of one source may wait.
    pub per_source_backlog: u64,
}

/// The smallest cap: a billionth of a US dollar is what money is counted in.
const USD_MIN: f64 = 1e-9;

/// `[budget]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// 0 is no cap.
    pub usd_per_day: f64,
}

/// One `[[model]]`: an entry of the price table.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The model's name.
    pub name: String,
    /// USD for a million tokens in.
    pub usd_per_mtok_in: f64,
    /// USD for a million tokens out.
    pub usd_per_mtok_out: f64,
    /// The most tokens one of its answers has; what a request may cost is reserved by it.
    pub max_output_tokens: u64,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What needs somebody.
    Error,
    /// What may need somebody.
    Warn,
    /// One line per change of state.
    Info,
    /// For looking into a problem.
    Debug,
    /// Everything.
    Trace,
}
words!(Level { Error => "error", Warn => "warn", Info => "info", Debug => "debug", Trace => "trace" });

/// What the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// journald under systemd, else text.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
    /// Fields in the journal.
    Journald,
}
words!(Format { Auto => "auto", Text => "text", Json => "json", Journald => "journald" });

/// `[log]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// How much.
    pub level: Level,
    /// What it looks like.
    pub format: Format,
}

pub(super) fn cache(t: &mut Table<'_>) -> Cache {
    Cache {
        ttl: t.duration("ttl", "5m", "0s"),
        offline_stale: t.duration("offline_stale", "24h", "0s"),
        max_bytes: t.size("max_bytes", "64MiB", 0),
        shared: t.flag("shared", false),
    }
}

pub(super) fn limits(t: &mut Table<'_>) -> Limits {
    Limits {
        rate: t.count("rate", 10, 0..=1_000_000),
        burst: t.count("burst", 50, 1..=1_000_000),
        per_source_backlog: t.count("per_source_backlog", 10_000, 1..=u32::MAX).into(),
    }
}

pub(super) fn budget(t: &mut Table<'_>) -> Budget {
    let usd_per_day = t.number("usd_per_day", 0.0, 0.0..=1e9);
    if usd_per_day > 0.0 && usd_per_day < USD_MIN {
        let message = "less than 0.000000001, the smallest amount that is counted; 0 is no cap";
        t.fault("usd_per_day", message);
    }
    Budget { usd_per_day }
}

pub(super) fn log(t: &mut Table<'_>) -> Log {
    Log { level: t.word("level", Level::Info), format: t.word("format", Format::Auto) }
}

pub(super) fn models(root: &mut Table<'_>) -> Vec<Model> {
    let models = root.tables("model", 0, model);
    unique(root, "model", "name", models.iter().map(|model| model.name.clone()));
    models
}

fn model(t: &mut Table<'_>) -> Model {
    let model = Model {
        name: t.required("name", "write the model's name"),
        usd_per_mtok_in: t.number("usd_per_mtok_in", 0.0, 0.0..=1e6),
        usd_per_mtok_out: t.number("usd_per_mtok_out", 0.0, 0.0..=1e6),
        max_output_tokens: t.count("max_output_tokens", OUTPUT_TOKENS_MAX as u32, 0..=100_000_000).into(),
    };
    // A line that was forgotten would make half of each request free, and the cap would not hold.
    for (given, missing) in [("usd_per_mtok_in", "usd_per_mtok_out"), ("usd_per_mtok_out", "usd_per_mtok_in")] {
        if t.given(given) && !t.given(missing) {
            t.fault(missing, "missing; write both prices, 0 for embeddings' tokens out");
        }
    }
    model
}

pub(super) fn unique(root: &mut Table<'_>, section: &'static str, name: &str, values: impl Iterator<Item = String>) {
    let values: Vec<String> = values.collect();
    for (index, value) in values.iter().enumerate().filter(|(_, value)| !value.is_empty()) {
        if let Some(first) = values.iter().take(index).position(|earlier| earlier == value) {
            let value = quoted(value);
            let message = format!("{section}[{first}] has the {name} {value} too; give each its own");
            root.member_fault(section, index, name, message);
        }
    }
}
