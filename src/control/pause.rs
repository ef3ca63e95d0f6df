//! Routes that are shut although the line works: a bad key, a spent quota, an unknown model, a bad certificate.
//!
//! A pause belongs to a route (uplink and, for a configuration, that model), costs no request an attempt and ends by
//! one trial: a probe where probes tell, else one request. Owns the schedule of trials; makes none itself.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{Block, Shut, UplinkIndex};

/// Minutes until the next trial, the last one repeated: a key is mended by people, and each trial costs a call.
const TRIAL_MINUTES: [u64; 5] = [1, 2, 5, 15, 30];
/// Models remembered as shut; beyond this the whole uplink counts as shut.
const PAUSED_ROUTES_MAX: usize = 64;
const MINUTE_MS: u64 = 60_000;

/// The part of an uplink that is shut: all of it, or one model.
type RouteKey = (UplinkIndex, Option<String>);

/// One shut route.
#[derive(Debug)]
struct Pause {
    block: Block,
    step: usize,
    until_ms: u64,
    /// A request tries it now.
    trial: bool,
    /// A request was refused, not only a probe.
    proven: bool,
    /// Shut because it refused different requests alike.
    struck: bool,
    /// Probes that were refused while a request is the trial that is due.
    asked: usize,
}

/// What the probes of one uplink say about its key.
#[derive(Debug, Default)]
struct Word {
    refused: bool,
    /// A request got through while the probe was refused: some keys may not list models.
    lies: bool,
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

/// What a probe changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// The route is shut now; milliseconds to the next trial.
    Shut(u64),
    /// The route is open again.
    Opened,
}

/// All shut routes.
#[derive(Debug, Default)]
pub struct Pauses {
    routes: BTreeMap<RouteKey, Pause>,
    words: BTreeMap<UplinkIndex, Word>,
    changed: bool,
}

fn keys(uplink: UplinkIndex, model: &str) -> [RouteKey; 2] {
    [(uplink, None), (uplink, Some(model.to_owned()))]
}

impl Pauses {
    /// Whether this route may be used.
    pub fn gate(&self, uplink: UplinkIndex, model: &str, now_ms: u64) -> Gate {
        let pauses = keys(uplink, model).into_iter().filter_map(|key| self.routes.get(&key));
        let by_probe = self.told_by_probes(uplink);
        pauses.map(|pause| pause.gate(by_probe, now_ms)).max_by_key(Gate::severity).unwrap_or(Gate::Open)
    }

    /// Whether something else answers requests in the uplink's place, and no trial is due: for everybody, it is down.
    pub fn is_walled(&self, uplink: UplinkIndex, now_ms: u64) -> bool {
        let whole = self.routes.get(&(uplink, None)).filter(|pause| pause.block == Block::Portal);
        whole.is_some_and(|pause| pause.trial || now_ms < pause.until_ms)
    }

    /// A request is now trying this route: nobody else does until it ends.
    pub fn begin_trial(&mut self, uplink: UplinkIndex, model: &str) {
        for key in keys(uplink, model) {
            if let Some(pause) = self.routes.get_mut(&key) {
                pause.trial = true;
            }
        }
    }

    /// Why the whole of an uplink is shut.
    pub fn block_of(&self, uplink: UplinkIndex) -> Option<Block> {
        self.routes.get(&(uplink, None)).map(|pause| pause.block)
    }

    /// Whether this route is shut for refusing different requests alike.
    pub fn is_struck(&self, uplink: UplinkIndex, model: &str) -> bool {
        keys(uplink, model).iter().any(|key| self.routes.get(key).is_some_and(|pause| pause.struck))
    }

    /// The route is at fault. Returns milliseconds to the next trial if that is news: one alarm for each pause, not
    /// for each failed trial, nor for requests that were in flight together.
    pub fn shut(&mut self, uplink: UplinkIndex, model: &str, block: Block, now_ms: u64) -> Option<u64> {
        let mut key = (uplink, (block == Block::Configuration && !model.is_empty()).then(|| model.to_owned()));
        if self.routes.len() >= PAUSED_ROUTES_MAX && !self.routes.contains_key(&key) {
            key.1 = None;
        }
        let old = self.routes.get(&key);
        let news = old.is_none_or(|old| old.block != block);
        let tried = old.is_some_and(|old| old.trial);
        let step = old.map_or(0, |old| old.step + usize::from(old.trial)).min(TRIAL_MINUTES.len() - 1);
        let struck = old.is_some_and(|old| old.struck && old.block == block);
        // A trial of a shut key may end with an unknown model, and the other way round: both are over.
        self.trial_undecided(uplink, model);
        if let Some(known) = self.routes.get_mut(&key).filter(|_| !news && !tried) {
            known.proven = true;
            return None;
        }
        let wait_ms = TRIAL_MINUTES[step] * MINUTE_MS;
        let pause = Pause { block, step, until_ms: now_ms + wait_ms, trial: false, proven: true, struck, asked: 0 };
        self.routes.insert(key, pause);
        self.changed = true;
        news.then_some(wait_ms)
    }

    /// The same, because it refused different requests alike.
    pub fn strike(&mut self, uplink: UplinkIndex, model: &str, now_ms: u64) -> Option<u64> {
        let news = self.shut(uplink, model, Block::Configuration, now_ms);
        for key in keys(uplink, model) {
            if let Some(pause) = self.routes.get_mut(&key).filter(|pause| pause.block == Block::Configuration) {
                pause.struck = true;
            }
        }
        news
    }

    /// A request got through: the route is open. True if it was shut.
    pub fn open(&mut self, uplink: UplinkIndex, model: &str) -> bool {
        if let Some(word) = self.words.get_mut(&uplink) {
            word.lies |= word.refused;
        }
        let mut was_shut = false;
        for key in keys(uplink, model) {
            was_shut |= self.routes.remove(&key).is_some();
        }
        self.changed |= was_shut;
        was_shut
    }

    /// The whole of an uplink is open again, if it was shut for this. True if it was.
    pub fn open_block(&mut self, uplink: UplinkIndex, block: Block) -> bool {
        let shut = self.block_of(uplink) == Some(block);
        if shut {
            self.routes.remove(&(uplink, None));
            self.changed = true;
        }
        shut
    }

    /// A trial ended without telling anything about the route.
    pub fn trial_undecided(&mut self, uplink: UplinkIndex, model: &str) {
        for key in keys(uplink, model) {
            if let Some(pause) = self.routes.get_mut(&key) {
                pause.trial = false;
            }
        }
    }

    /// A probe was answered, with or without the key being refused.
    pub fn key_probed(&mut self, uplink: UplinkIndex, refused: bool, now_ms: u64) -> News {
        let word = self.words.entry(uplink).or_default();
        if word.lies {
            return News::None;
        }
        let was_refused = std::mem::replace(&mut word.refused, refused);
        match self.routes.get_mut(&(uplink, None)) {
            None if refused => {
                let wait_ms = self.shut(uplink, "", Block::Key, now_ms).unwrap_or(0);
                if let Some(pause) = self.routes.get_mut(&(uplink, None)) {
                    pause.proven = false;
                }
                News::Shut(wait_ms)
            }
            Some(pause) if pause.block == Block::Key && refused => {
                // Before a request was refused too, a request is the trial: the probe may be wrong.
                if pause.proven {
                    self.changed |= pause.fail_due(now_ms);
                } else if now_ms >= pause.until_ms {
                    pause.asked += 1;
                }
                News::None
            }
            Some(pause) if pause.block == Block::Key && was_refused => {
                self.open_block(uplink, Block::Key);
                News::Opened
            }
            _ => News::None,
        }
    }

    /// A probe met a certificate that is not accepted.
    pub fn tls_probed(&mut self, uplink: UplinkIndex, block: Block, now_ms: u64) -> News {
        match self.routes.get_mut(&(uplink, None)) {
            Some(pause) if pause.block == block => {
                self.changed |= pause.fail_due(now_ms);
                News::None
            }
            _ => self.shut(uplink, "", block, now_ms).map_or(News::None, News::Shut),
        }
    }

    /// When the next probe is due where it is the trial; the ordinary pace would ask a refusing uplink thousands of
    /// times a day.
    pub fn probe_at_ms(&self, uplink: UplinkIndex, now_ms: u64) -> Option<u64> {
        let pause = self.told_by_probe(uplink)?;
        let wait_ms = TRIAL_MINUTES[pause.asked.min(TRIAL_MINUTES.len() - 1)] * MINUTE_MS;
        Some(if pause.until_ms > now_ms { pause.until_ms } else { now_ms + wait_ms })
    }

    /// When the trial of this uplink is due, where a probe makes it.
    pub fn probe_due_ms(&self, uplink: UplinkIndex) -> Option<u64> {
        self.told_by_probe(uplink).map(|pause| pause.until_ms)
    }

    /// The pause that an answered probe would end.
    fn told_by_probe(&self, uplink: UplinkIndex) -> Option<&Pause> {
        let pause = self.routes.get(&(uplink, None))?;
        let by_probe = match pause.block {
            Block::Tls | Block::Clock => true,
            Block::Key => self.told_by_probes(uplink),
            _ => false,
        };
        by_probe.then_some(pause)
    }

    fn told_by_probes(&self, uplink: UplinkIndex) -> bool {
        self.words.get(&uplink).is_some_and(|word| word.refused && !word.lies)
    }

    /// Try everything again at once: the operator says that something was mended.
    pub fn hurry(&mut self, now_ms: u64) {
        for pause in self.routes.values_mut() {
            pause.until_ms = pause.until_ms.min(now_ms);
        }
    }

    /// The line of this uplink is back: what was found through the old one is tried at once.
    pub fn hurry_wall(&mut self, uplink: UplinkIndex, now_ms: u64) {
        if let Some(pause) = self.routes.get_mut(&(uplink, None)).filter(|pause| pause.block == Block::Portal) {
            pause.until_ms = pause.until_ms.min(now_ms);
        }
    }

    /// Models that are shut somewhere.
    pub fn models(&self) -> BTreeSet<String> {
        self.routes.keys().filter_map(|(_, model)| model.clone()).collect()
    }

    /// Why an uplink, or else some model of it, is shut, and until when.
    pub fn of_uplink(&self, uplink: UplinkIndex) -> Option<(Block, u64)> {
        let whole = self.routes.get(&(uplink, None));
        let any = || self.routes.iter().find(|(key, _)| key.0 == uplink).map(|(_, pause)| pause);
        whole.or_else(any).map(|pause| (pause.block, pause.until_ms))
    }

    /// When the trials are due that nobody has begun.
    pub fn trials_ms(&self) -> impl Iterator<Item = u64> {
        self.routes.values().filter(|pause| !pause.trial).map(|pause| pause.until_ms)
    }

    /// All of them to be kept over a restart, if anything changed since the last time.
    pub fn to_keep(&mut self) -> Option<Vec<Shut>> {
        std::mem::take(&mut self.changed).then(|| self.list())
    }

    /// Every shut route.
    pub fn list(&self) -> Vec<Shut> {
        let one = |(key, pause): (&RouteKey, &Pause)| Shut {
            uplink: key.0,
            model: key.1.clone().unwrap_or_default(),
            block: pause.block,
            step: pause.step as u32,
            until_ms: pause.until_ms,
        };
        self.routes.iter().map(one).collect()
    }

    /// What an earlier process knew. No wait is longer than the longest there is.
    pub fn restore(&mut self, shut: Vec<Shut>, now_ms: u64) {
        for old in shut.into_iter().take(PAUSED_ROUTES_MAX) {
            let step = (old.step as usize).min(TRIAL_MINUTES.len() - 1);
            let until_ms = old.until_ms.min(now_ms + TRIAL_MINUTES[step] * MINUTE_MS);
            let pause =
                Pause { block: old.block, step, until_ms, trial: false, proven: false, struck: false, asked: 0 };
            self.routes.insert((old.uplink, Some(old.model).filter(|model| !model.is_empty())), pause);
        }
    }
}

impl Pause {
    fn gate(&self, told_by_probes: bool, now_ms: u64) -> Gate {
        let by_probe = match self.block {
            Block::Tls | Block::Clock => true,
            Block::Key => self.proven && told_by_probes,
            _ => false,
        };
        if self.trial || (by_probe && now_ms >= self.until_ms) {
            // Its end is what everybody waits for; a minute later they look again.
            Gate::Shut { until_ms: self.until_ms.max(now_ms + TRIAL_MINUTES[0] * MINUTE_MS) }
        } else if now_ms >= self.until_ms {
            Gate::Trial
        } else {
            Gate::Shut { until_ms: self.until_ms }
        }
    }

    /// A probe that was the trial failed; false if none was due.
    fn fail_due(&mut self, now_ms: u64) -> bool {
        let due = !self.trial && now_ms >= self.until_ms;
        if due {
            self.step = (self.step + 1).min(TRIAL_MINUTES.len() - 1);
            self.until_ms = now_ms + TRIAL_MINUTES[self.step] * MINUTE_MS;
        }
        due
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
        assert_eq!(pauses.shut(0, "a", Block::Key, 0), Some(60_000));
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
            pauses.shut(0, "a", Block::Key, now);
            let Gate::Shut { until_ms } = pauses.gate(0, "a", now) else { panic!("it is open") };
            minutes.push((until_ms - now) / 60_000);
            now = until_ms;
            pauses.begin_trial(0, "a");
        }
        assert_eq!(minutes, [1, 2, 5, 15, 30, 30, 30]);
    }

    #[test]
    fn an_unknown_model_shuts_only_itself() {
        let mut pauses = Pauses::default();
        pauses.shut(0, "a", Block::Configuration, 0);
        assert_eq!(pauses.gate(0, "b", 1), Gate::Open);
        assert!(matches!(pauses.gate(0, "a", 1), Gate::Shut { .. }));
    }

    #[test]
    fn a_trial_that_fails_for_another_reason_is_over_all_the_same() {
        let mut pauses = Pauses::default();
        pauses.shut(0, "a", Block::Key, 0);
        pauses.begin_trial(0, "a");
        pauses.shut(0, "a", Block::Configuration, 60_000);
        assert_eq!(pauses.gate(0, "b", 60_001), Gate::Trial);
        pauses.begin_trial(0, "a");
        pauses.shut(0, "a", Block::Key, 120_000);
        assert!(pauses.open(0, "b"));
        assert_eq!(pauses.gate(0, "a", 240_000), Gate::Trial);
    }

    #[test]
    fn one_alarm_for_a_pause_whatever_its_trials_say() {
        let mut pauses = Pauses::default();
        let mut now = 0;
        let mut alarms = 0;
        for _ in 0..7 {
            alarms += u32::from(pauses.shut(0, "a", Block::Quota, now).is_some());
            now += 1_800_000;
            pauses.begin_trial(0, "a");
        }
        assert_eq!(alarms, 1);
        assert!(pauses.shut(0, "a", Block::Key, now).is_some(), "another reason is news");
    }

    #[test]
    fn a_refused_probe_shuts_the_key_and_a_good_one_opens_it() {
        let mut pauses = Pauses::default();
        assert_eq!(pauses.key_probed(0, true, 0), News::Shut(60_000));
        assert_eq!(pauses.gate(0, "a", 60_000), Gate::Trial, "one request proves it: the probe may be wrong");
        pauses.begin_trial(0, "a");
        assert_eq!(pauses.shut(0, "a", Block::Key, 60_000), None);
        assert!(matches!(pauses.gate(0, "a", 500_000), Gate::Shut { .. }), "from then on probes tell");
        assert_eq!(pauses.key_probed(0, false, 500_000), News::Opened);
        assert_eq!(pauses.gate(0, "a", 500_000), Gate::Open);
    }

    #[test]
    fn a_probe_that_lies_about_the_key_is_not_believed_again() {
        let mut pauses = Pauses::default();
        pauses.key_probed(0, true, 0);
        pauses.begin_trial(0, "a");
        assert!(pauses.open(0, "a"));
        assert_eq!(pauses.key_probed(0, true, 90_000), News::None);
        assert_eq!(pauses.gate(0, "a", 90_000), Gate::Open);
    }

    #[test]
    fn pauses_survive_a_restart_and_wait_no_longer_than_before() {
        let mut pauses = Pauses::default();
        pauses.shut(0, "a", Block::Configuration, 5_000);
        pauses.shut(1, "a", Block::Quota, 5_000);
        let kept = pauses.to_keep().unwrap();
        assert_eq!(pauses.to_keep(), None);
        let mut after = Pauses::default();
        after.restore(kept, 0);
        assert_eq!(after.gate(0, "a", 59_999), Gate::Shut { until_ms: 60_000 });
        assert_eq!(after.gate(0, "b", 0), Gate::Open);
        assert_eq!(after.gate(1, "b", 60_000), Gate::Trial);
        assert_eq!(after.shut(1, "b", Block::Quota, 70_000), None, "its alarm was raised before");
    }

    #[test]
    fn the_list_of_models_is_bounded() {
        let mut pauses = Pauses::default();
        for n in 0..1000 {
            pauses.shut(0, &format!("m{n}"), Block::Configuration, 0);
        }
        assert!(pauses.routes.len() <= PAUSED_ROUTES_MAX + 1);
    }
}
