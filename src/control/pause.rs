//! Routes that are shut although the uplink answers: a bad key, a spent quota, an unknown model.
//!
//! A pause belongs to a route (uplink and, for an unknown model, that model), costs no request an attempt and
//! ends by one trial. Owns the schedule of trials; makes none itself.

use std::collections::BTreeMap;

use super::event::{Block, UplinkIndex};

/// Minutes until the next trial, the last one repeated: a key is mended by people, and each trial costs a call.
const TRIAL_MINUTES: [u64; 5] = [1, 2, 5, 15, 30];
/// Models remembered as unknown; beyond this the whole uplink counts as shut.
const PAUSED_ROUTES_MAX: usize = 64;

/// The part of an uplink that is shut: all of it, or one model.
type RouteKey = (UplinkIndex, Option<String>);

/// One shut route.
#[derive(Debug)]
struct Pause {
    block: Block,
    step: usize,
    until_ms: u64,
    trial: bool,
}

/// Whether a route may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It works as far as is known.
    Open,
    /// It is shut; one request may try it now.
    Trial,
    /// It is shut until then.
    Shut {
        /// When the next trial is due.
        until_ms: u64,
    },
}

/// All shut routes.
#[derive(Debug, Default)]
pub struct Pauses {
    routes: BTreeMap<RouteKey, Pause>,
}

fn key(uplink: UplinkIndex, block: Block, model: &str) -> RouteKey {
    (uplink, (block == Block::Model).then(|| model.to_owned()))
}

impl Pauses {
    /// Whether this route may be used.
    pub fn gate(&self, uplink: UplinkIndex, model: &str, now_ms: u64) -> Gate {
        let whole = self.routes.get(&(uplink, None));
        let part = self.routes.get(&(uplink, Some(model.to_owned())));
        [whole, part]
            .into_iter()
            .flatten()
            .map(|pause| pause.gate(now_ms))
            .max_by_key(Gate::severity)
            .unwrap_or(Gate::Open)
    }

    /// A request is now trying this route: nobody else does until it ends.
    pub fn begin_trial(&mut self, uplink: UplinkIndex, model: &str) {
        for key in [(uplink, None), (uplink, Some(model.to_owned()))] {
            if let Some(pause) = self.routes.get_mut(&key) {
                pause.trial = true;
            }
        }
    }

    /// Whether this pause is on record already, with no trial under way.
    pub fn is_known(&self, uplink: UplinkIndex, model: &str, block: Block) -> bool {
        self.routes.get(&key(uplink, block, model)).is_some_and(|pause| !pause.trial)
    }

    /// The uplink refused the route. Returns milliseconds to the next trial.
    pub fn shut(&mut self, uplink: UplinkIndex, model: &str, block: Block, now_ms: u64) -> u64 {
        let mut key = key(uplink, block, model);
        if self.routes.len() >= PAUSED_ROUTES_MAX && !self.routes.contains_key(&key) {
            key.1 = None;
        }
        let step = self.routes.get(&key).map_or(0, |old| if old.trial { old.step + 1 } else { old.step });
        let step = step.min(TRIAL_MINUTES.len() - 1);
        // A trial of a shut key may end with an unknown model, and the other way round: both are over.
        self.trial_undecided(uplink, model);
        let wait_ms = TRIAL_MINUTES[step] * 60_000;
        self.routes.insert(key, Pause { block, step, until_ms: now_ms + wait_ms, trial: false });
        wait_ms
    }

    /// A request got through: the route is open. True if it was shut.
    pub fn open(&mut self, uplink: UplinkIndex, model: &str) -> bool {
        let whole = self.routes.remove(&(uplink, None)).is_some();
        let part = self.routes.remove(&(uplink, Some(model.to_owned()))).is_some();
        whole || part
    }

    /// A trial ended without telling anything about the route.
    pub fn trial_undecided(&mut self, uplink: UplinkIndex, model: &str) {
        for key in [(uplink, None), (uplink, Some(model.to_owned()))] {
            if let Some(pause) = self.routes.get_mut(&key) {
                pause.trial = false;
            }
        }
    }

    /// Try everything again at once: the operator says that something was mended.
    pub fn hurry(&mut self, now_ms: u64) {
        for pause in self.routes.values_mut() {
            pause.until_ms = pause.until_ms.min(now_ms);
        }
    }

    /// Why the whole of an uplink is shut, and until when.
    pub fn of_uplink(&self, uplink: UplinkIndex) -> Option<(Block, u64)> {
        let whole = self.routes.get(&(uplink, None));
        let any = || self.routes.iter().find(|(key, _)| key.0 == uplink).map(|(_, pause)| pause);
        whole.or_else(any).map(|pause| (pause.block, pause.until_ms))
    }

    /// When the trials are due that nobody has begun.
    pub fn trials_ms(&self) -> impl Iterator<Item = u64> {
        self.routes.values().filter(|pause| !pause.trial).map(|pause| pause.until_ms)
    }
}

impl Pause {
    fn gate(&self, now_ms: u64) -> Gate {
        if self.trial {
            // Its end is what everybody waits for; a minute later they look again.
            Gate::Shut { until_ms: self.until_ms.max(now_ms + TRIAL_MINUTES[0] * 60_000) }
        } else if now_ms >= self.until_ms {
            Gate::Trial
        } else {
            Gate::Shut { until_ms: self.until_ms }
        }
    }
}

impl Gate {
    fn severity(&self) -> u64 {
        match self {
            Gate::Open => 0,
            Gate::Trial => 1,
            Gate::Shut { until_ms } => 2 + until_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_key_shuts_the_uplink_and_one_trial_opens_it() {
        let mut pauses = Pauses::default();
        assert_eq!(pauses.shut(0, "a", Block::Key, 0), 60_000);
        assert_eq!(pauses.gate(0, "b", 59_999), Gate::Shut { until_ms: 60_000 });
        assert_eq!(pauses.gate(1, "a", 0), Gate::Open);
        assert_eq!(pauses.gate(0, "b", 60_000), Gate::Trial);
        pauses.begin_trial(0, "b");
        assert!(matches!(pauses.gate(0, "b", 60_000), Gate::Shut { .. }));
        assert!(pauses.open(0, "b"));
        assert_eq!(pauses.gate(0, "a", 60_001), Gate::Open);
    }

    #[test]
    fn trials_become_rarer() {
        let mut pauses = Pauses::default();
        let mut now = 0;
        let mut minutes = Vec::new();
        for _ in 0..7 {
            let wait = pauses.shut(0, "a", Block::Key, now);
            minutes.push(wait / 60_000);
            now += wait;
            pauses.begin_trial(0, "a");
        }
        assert_eq!(minutes, [1, 2, 5, 15, 30, 30, 30]);
    }

    #[test]
    fn an_unknown_model_shuts_only_itself() {
        let mut pauses = Pauses::default();
        pauses.shut(0, "a", Block::Model, 0);
        assert_eq!(pauses.gate(0, "b", 1), Gate::Open);
        assert!(matches!(pauses.gate(0, "a", 1), Gate::Shut { .. }));
    }

    #[test]
    fn the_list_of_models_is_bounded() {
        let mut pauses = Pauses::default();
        for n in 0..1000 {
            pauses.shut(0, &format!("m{n}"), Block::Model, 0);
        }
        assert!(pauses.routes.len() <= PAUSED_ROUTES_MAX + 1);
    }
}
