//! What is known of the on-site model: whether it is there, loaded, fits and may be used, and when it is to be warmed up.
//!
//! A pure value with explicit time (milliseconds since any fixed instant). Never talks to the server, never reads a
//! clock or a sensor: it is told what was seen.

use super::LocalError;

/// From one look to the next while no uplink is healthy: a change is seen while somebody may still be waiting for it.
const LOOK_STRAINED_MS: u64 = 5_000;
/// From one look to the next while everything is well: nobody uses it, and each look wakes the board.
const LOOK_IDLE_MS: u64 = 60_000;
/// A look that is younger answers a question without another look.
pub(super) const FRESH_MS: u64 = 5_000;
/// Uplinks count as less than healthy after this long: a start, or one lost probe, loads nothing.
const SURE_AFTER_MS: u64 = 2_000;
/// How long the server is asked to keep a model that was warmed up.
pub(super) const KEEP_ALIVE: &str = "10m";
/// A warm-up is repeated after this: Ollama forgets our time with the next answer and goes back to its own five minutes.
const RENEW_MS: u64 = 240_000;
/// A model that was pushed out by another one is not loaded again sooner: two models must not chase each other.
const AGAIN_MS: u64 = 60_000;
/// The first wait after a failed warm-up; it doubles up to [`BACK_OFF_MAX_MS`].
const BACK_OFF_MS: u64 = 30_000;
/// The longest wait after a failed warm-up: a server that was mended is warm again soon enough.
const BACK_OFF_MAX_MS: u64 = 900_000;
/// Too hot ends this far below the limit, or the model would go on and off with each answer.
const COOLER_C: f32 = 5.0;
/// Memory that a model takes beyond its file, for its context and the server itself.
const FIT_MARGIN_BYTES: u64 = 256 * 1024 * 1024;

/// When the model is loaded without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warm {
    /// Never.
    Never,
    /// While no uplink is healthy.
    Degraded,
    /// Always.
    Always,
}

/// What is configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// When the model is loaded without being asked.
    pub warm: Warm,
    /// Above this many °C there is no new work.
    pub max_temperature_c: u32,
    /// Whether the server's memory is this board's main memory, so that a size can be held against it.
    pub shares_memory: bool,
}

/// What the board tells.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    /// The hottest sensor, in °C, where one tells.
    pub temperature_c: Option<f32>,
    /// Memory that could still be used, in bytes; 0 where it cannot be read.
    pub memory_available_bytes: u64,
}

/// A model that the server has.
#[derive(Debug, Clone, Default)]
pub(super) struct Installed {
    /// Its name, with its tag.
    pub name: String,
    /// Its file, in bytes, where the server tells.
    pub size: Option<u64>,
    /// Main memory that it takes now, in bytes; `None` where it is not loaded.
    pub loaded: Option<u64>,
}

/// What a look at the server found.
#[derive(Debug, Clone)]
pub(super) enum Sight {
    /// It does not answer as it should.
    Failed(LocalError),
    /// It answers; what it has loaded it does not tell.
    Answers,
    /// It answers and has these models.
    Models(Vec<Installed>),
}

/// How the local model stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not looked at yet.
    Unknown,
    /// The server does not answer.
    Unreachable,
    /// The server has no such model.
    Missing,
    /// The board is too hot.
    TooHot,
    /// It does not fit into memory.
    DoesNotFit,
    /// It can be asked and is not in memory, or does not say whether it is.
    Ready,
    /// It is being loaded.
    Loading,
    /// It is in memory.
    Loaded,
}

impl State {
    /// Every state there is.
    pub const ALL: [State; 8] = [
        State::Unknown,
        State::Unreachable,
        State::Missing,
        State::TooHot,
        State::DoesNotFit,
        State::Ready,
        State::Loading,
        State::Loaded,
    ];

    /// Its name in status, log and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Unreachable => "unreachable",
            State::Missing => "missing",
            State::TooHot => "too_hot",
            State::DoesNotFit => "does_not_fit",
            State::Ready => "ready",
            State::Loading => "loading",
            State::Loaded => "loaded",
        }
    }

    /// Whether requests go to it.
    pub fn is_used(self) -> bool {
        matches!(self, State::Unknown | State::Ready | State::Loading | State::Loaded)
    }
}

/// The last look, for showing.
#[derive(Debug, Clone)]
pub struct Look {
    /// How the model stands.
    pub state: State,
    /// Whether the server answers; `None` before the first look.
    pub reachable: Option<bool>,
    /// Whether the model is in memory, where the server tells.
    pub loaded: Option<bool>,
    /// Whether it fits into memory, where that can be known.
    pub fits: Option<bool>,
    /// The hottest sensor, in °C, where one tells.
    pub temperature_c: Option<f32>,
    /// Why the model is not used, in one sentence.
    pub reason: Option<String>,
}

/// The steward of one local model.
#[derive(Debug)]
pub(super) struct Steward {
    settings: Settings,
    /// The model for ordinary requests: the one that is warmed up and shown.
    model: String,
    sight: Option<Sight>,
    board: Reading,
    is_hot: bool,
    looked_ms: Option<u64>,
    strained_since_ms: Option<u64>,
    is_warming: bool,
    /// The latest warm-up that worked.
    warmed_ms: Option<u64>,
    failures: u32,
    /// No warm-up sooner.
    warm_after_ms: u64,
    told: State,
}

impl Steward {
    pub(super) fn new(settings: Settings, model: &str) -> Self {
        Self {
            settings,
            model: model.to_owned(),
            sight: None,
            board: Reading::default(),
            is_hot: false,
            looked_ms: None,
            strained_since_ms: None,
            is_warming: false,
            warmed_ms: None,
            failures: 0,
            warm_after_ms: 0,
            told: State::Unknown,
        }
    }

    /// Takes what was seen.
    pub(super) fn saw(&mut self, sight: Sight, board: Reading, strained: bool, now_ms: u64) {
        (self.sight, self.looked_ms) = (Some(sight), Some(now_ms));
        self.felt(board);
        self.strained_since_ms = strained.then(|| self.strained_since_ms.unwrap_or(now_ms));
    }

    /// A board without a sensor is never too hot, nor is one whose sensor went silent: it would be so for ever.
    fn felt(&mut self, board: Reading) {
        let limit = self.settings.max_temperature_c as f32;
        let bound = if self.is_hot { limit - COOLER_C } else { limit };
        self.is_hot = board.temperature_c.is_some_and(|t| if self.is_hot { t >= bound } else { t > bound });
        self.board = board;
    }

    /// Whether what is known is too old to answer by.
    pub(super) fn is_stale(&self, now_ms: u64) -> bool {
        self.looked_ms.is_none_or(|at| now_ms.saturating_sub(at) >= FRESH_MS)
    }

    /// When to look again, unless somebody asks before.
    pub(super) fn next_look_ms(&self) -> u64 {
        let Some(looked) = self.looked_ms else { return 0 };
        match self.strained_since_ms {
            // By then it is known whether to warm up.
            Some(since) if looked < since + SURE_AFTER_MS => since + SURE_AFTER_MS,
            Some(_) => looked + LOOK_STRAINED_MS,
            None => looked + LOOK_IDLE_MS,
        }
    }

    /// Why this model may not be asked: it is as if there were none.
    pub(super) fn bar(&self, model: &str) -> Option<LocalError> {
        self.heat().or_else(|| self.no_room(model))
    }

    /// Why nothing new may begin, whatever the model.
    pub(super) fn heat(&self) -> Option<LocalError> {
        self.is_hot.then(|| LocalError::TooHot {
            temperature_c: self.board.temperature_c.unwrap_or_default().round() as i32,
            limit_c: self.settings.max_temperature_c,
            again_c: self.settings.max_temperature_c as i32 - COOLER_C as i32,
        })
    }

    fn models(&self) -> &[Installed] {
        match &self.sight {
            Some(Sight::Models(models)) => models,
            _ => &[],
        }
    }

    fn find(&self, name: &str) -> Option<&Installed> {
        self.models().iter().find(|m| is_named(&m.name, name))
    }

    /// What the model needs and what there is for it, in bytes; `None` where that cannot be known.
    fn room(&self, model: &str) -> Option<(u64, u64)> {
        let found = self.find(model)?;
        if found.loaded.is_some() {
            return Some((0, self.board.memory_available_bytes));
        }
        let needs = found.size?.saturating_add(FIT_MARGIN_BYTES);
        if !self.settings.shares_memory || self.board.memory_available_bytes == 0 {
            return None;
        }
        // The server makes room by unloading others.
        let others: u64 = self.models().iter().filter_map(|m| m.loaded).sum();
        Some((needs, self.board.memory_available_bytes.saturating_add(others)))
    }

    fn no_room(&self, model: &str) -> Option<LocalError> {
        // It is on its way into memory: what is free now says nothing.
        if self.is_warming && is_named(model, &self.model) {
            return None;
        }
        let (needs, has) = self.room(model)?;
        let mib = |bytes: u64| bytes / (1024 * 1024);
        (needs > has).then(|| LocalError::DoesNotFit {
            model: model.to_owned(),
            needs_mib: mib(needs),
            available_mib: mib(has),
        })
    }

    /// The model to load now, if it is time; it counts as being loaded until [`Steward::warmed`]. Whoever is being
    /// answered (`is_busy`) has loaded what is needed.
    pub(super) fn warm_up(&mut self, is_busy: bool, now_ms: u64) -> Option<String> {
        let wanted = match self.settings.warm {
            Warm::Never => false,
            Warm::Degraded => self.strained_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= SURE_AFTER_MS),
            Warm::Always => true,
        };
        let found = self.find(&self.model)?;
        let is_due = match self.warmed_ms {
            Some(at) if found.loaded.is_some() => now_ms.saturating_sub(at) >= RENEW_MS,
            _ => true,
        };
        let can = !self.is_warming && !is_busy && now_ms >= self.warm_after_ms && self.bar(&self.model).is_none();
        self.is_warming |= wanted && is_due && can;
        (wanted && is_due && can).then(|| self.model.clone())
    }

    /// How a warm-up ended.
    pub(super) fn warmed(&mut self, is_ok: bool, now_ms: u64) {
        self.is_warming = false;
        if is_ok {
            (self.warmed_ms, self.failures) = (Some(now_ms), 0);
            self.warm_after_ms = now_ms + AGAIN_MS;
        } else {
            let doubled = BACK_OFF_MS.saturating_mul(1 << self.failures.min(16));
            self.warm_after_ms = now_ms + doubled.min(BACK_OFF_MAX_MS);
            self.failures = self.failures.saturating_add(1);
        }
    }

    pub(super) fn state(&self) -> State {
        match &self.sight {
            None => State::Unknown,
            Some(Sight::Failed(_)) => State::Unreachable,
            Some(Sight::Models(_)) if self.find(&self.model).is_none() => State::Missing,
            Some(_) if self.is_hot => State::TooHot,
            Some(_) if self.no_room(&self.model).is_some() => State::DoesNotFit,
            Some(_) if self.find(&self.model).is_some_and(|m| m.loaded.is_some()) => State::Loaded,
            Some(_) if self.is_warming => State::Loading,
            Some(_) => State::Ready,
        }
    }

    /// The state, if it is another one than the last time.
    pub(super) fn news(&mut self) -> Option<State> {
        let state = self.state();
        (std::mem::replace(&mut self.told, state) != state).then_some(state)
    }

    /// Everything for showing.
    pub(super) fn look(&self) -> Look {
        let missing = || LocalError::ModelMissing { model: self.model.clone() };
        let reason = match (&self.sight, self.state()) {
            (Some(Sight::Failed(error)), _) => Some(error.clone()),
            (_, State::Missing) => Some(missing()),
            _ => self.bar(&self.model),
        };
        let found = self.find(&self.model);
        Look {
            state: self.state(),
            reachable: self.sight.as_ref().map(|sight| !matches!(sight, Sight::Failed(_))),
            loaded: found.map(|model| model.loaded.is_some()),
            fits: self.room(&self.model).map(|(needs, has)| needs <= has),
            temperature_c: self.board.temperature_c,
            reason: reason.map(|error| error.to_string()),
        }
    }
}

/// Whether a model of the server is the one that is meant: no tag means `latest`.
fn is_named(full: &str, name: &str) -> bool {
    full == name || full.strip_suffix(":latest").unwrap_or(full) == name.strip_suffix(":latest").unwrap_or(name)
}

#[cfg(test)]
mod tests;
