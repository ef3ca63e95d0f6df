//! Routes that are shut although the line works: a bad key, a spent quota, an unknown model, a bad certificate.
//!
//! A pause belongs to a route (uplink and, for a configuration, that model), costs no request an attempt and ends by
//! one trial: a probe where probes tell, else one request. Where an uplink has several keys, what is said of a key shuts
//! that key alone, and the uplink with the last of them. Owns the schedule of trials; makes none itself.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{Block, KeyIndex, Shut, UplinkIndex};

/// Minutes until the next trial, the last one repeated: a key is mended by people, and each trial costs a call.
const TRIAL_MINUTES: [u64; 5] = [1, 2, 5, 15, 30];
/// Routes remembered as shut; beyond this a whole key or uplink counts as shut for a model.
const PAUSED_ROUTES_MAX: usize = 64;
const MINUTE_MS: u64 = 60_000;

/// An uplink, and the key it is asked with.
pub type Way = (UplinkIndex, KeyIndex);

/// The part of an uplink that is shut: all of it, one of several keys, one model, one model with one of several keys.
type Part = (UplinkIndex, Option<KeyIndex>, Option<String>);

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

/// What the probes with one key say about it.
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

/// What opened when a request got through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opened {
    /// The uplink, or the model there.
    pub route: bool,
    /// One of several keys.
    pub key: bool,
}

/// All shut routes.
#[derive(Debug, Default)]
pub struct Pauses {
    /// Uplinks with several keys, and how many.
    several: BTreeMap<UplinkIndex, usize>,
    routes: BTreeMap<Part, Pause>,
    words: BTreeMap<Way, Word>,
    changed: bool,
}

impl Pauses {
    /// Nothing is shut; `keys` has the number of keys of each uplink.
    pub fn new(keys: impl Iterator<Item = usize>) -> Self {
        Self { several: keys.enumerate().filter(|(_, count)| *count > 1).collect(), ..Self::default() }
    }

    /// What a word about this key shuts: the key, or the uplink where it has no other.
    fn part(&self, (uplink, key): Way) -> Part {
        (uplink, self.several.contains_key(&uplink).then_some(key), None)
    }

    /// Everything that a request would meet on this way.
    fn parts(&self, way: Way, model: &str) -> impl Iterator<Item = Part> + use<> {
        let (uplink, key) = (way.0, self.part(way).1);
        let model = Some(model.to_owned());
        let keyed = key.map(|key| [(uplink, Some(key), None), (uplink, Some(key), model.clone())]);
        [(uplink, None, None), (uplink, None, model)].into_iter().chain(keyed.into_iter().flatten())
    }

    /// Whether this route may be used, with whichever key.
    pub fn gate(&self, uplink: UplinkIndex, model: &str, now_ms: u64) -> Gate {
        let count = self.several.get(&uplink).copied().unwrap_or(1);
        let gates = (0..count).map(|key| self.gate_with((uplink, key), model, now_ms));
        gates.min_by_key(Gate::severity).unwrap_or(Gate::Open)
    }

    /// Whether this route may be used with this key.
    pub fn gate_with(&self, way: Way, model: &str, now_ms: u64) -> Gate {
        let by_probe = !self.several.contains_key(&way.0) && self.told_by_probes(way);
        let pauses = self.parts(way, model).filter_map(|part| self.routes.get(&part));
        pauses.map(|pause| pause.gate(by_probe, now_ms)).max_by_key(Gate::severity).unwrap_or(Gate::Open)
    }

    /// Why one of several keys is shut, and until when.
    pub fn of_key(&self, way: Way) -> Option<(Block, u64)> {
        let part = self.part(way);
        part.1.and_then(|_| self.routes.get(&part)).map(|pause| (pause.block, pause.until_ms))
    }

    /// The key that the next probe is made with: the first one that is not shut, else the one whose trial is next.
    pub fn probe_key(&self, uplink: UplinkIndex) -> KeyIndex {
        let count = self.several.get(&uplink).copied().unwrap_or(1);
        (0..count).min_by_key(|key| self.of_key((uplink, *key)).map(|(_, until_ms)| until_ms)).unwrap_or(0)
    }

    /// Whether something else answers requests in the uplink's place, and no trial is due: for everybody, it is down.
    pub fn is_walled(&self, uplink: UplinkIndex, now_ms: u64) -> bool {
        let whole = self.routes.get(&(uplink, None, None)).filter(|pause| pause.block == Block::Portal);
        whole.is_some_and(|pause| pause.trial || now_ms < pause.until_ms)
    }

    /// A request is now trying this route: nobody else does until it ends.
    pub fn begin_trial(&mut self, way: Way, model: &str) {
        for part in self.parts(way, model) {
            if let Some(pause) = self.routes.get_mut(&part) {
                pause.trial = true;
            }
        }
    }

    /// Why the whole of an uplink is shut.
    pub fn block_of(&self, uplink: UplinkIndex) -> Option<Block> {
        self.routes.get(&(uplink, None, None)).map(|pause| pause.block)
    }

    /// Whether this route is shut for refusing different requests alike.
    pub fn is_struck(&self, uplink: UplinkIndex, model: &str) -> bool {
        self.parts((uplink, 0), model).any(|part| self.routes.get(&part).is_some_and(|pause| pause.struck))
    }

    /// The route is at fault. Returns milliseconds to the next trial if that is news: one alarm for each pause, not
    /// for each failed trial, nor for requests that were in flight together.
    pub fn shut(&mut self, way: Way, model: &str, block: Block, now_ms: u64) -> Option<u64> {
        let mut part = match block {
            Block::Key | Block::Quota | Block::Configuration => self.part(way),
            Block::Tls | Block::Clock | Block::Portal => (way.0, None, None),
        };
        part.2 = (block == Block::Configuration && !model.is_empty()).then(|| model.to_owned());
        self.shut_part(part, way, model, block, now_ms)
    }

    fn shut_part(&mut self, mut part: Part, way: Way, model: &str, block: Block, now_ms: u64) -> Option<u64> {
        if self.routes.len() >= PAUSED_ROUTES_MAX && !self.routes.contains_key(&part) {
            part.2 = None;
        }
        let old = self.routes.get(&part);
        let news = old.is_none_or(|old| old.block != block);
        let tried = old.is_some_and(|old| old.trial);
        let step = old.map_or(0, |old| old.step + usize::from(old.trial)).min(TRIAL_MINUTES.len() - 1);
        let struck = old.is_some_and(|old| old.struck && old.block == block);
        // A trial of a shut key may end with an unknown model, and the other way round: both are over.
        self.trial_undecided(way, model);
        if let Some(known) = self.routes.get_mut(&part).filter(|_| !news && !tried) {
            known.proven = true;
            return None;
        }
        let wait_ms = TRIAL_MINUTES[step] * MINUTE_MS;
        let pause = Pause { block, step, until_ms: now_ms + wait_ms, trial: false, proven: true, struck, asked: 0 };
        self.routes.insert(part, pause);
        self.changed = true;
        news.then_some(wait_ms)
    }

    /// The same, because it refused different requests alike: with any key.
    pub fn strike(&mut self, way: Way, model: &str, now_ms: u64) -> Option<u64> {
        let part = (way.0, None, (!model.is_empty()).then(|| model.to_owned()));
        let news = self.shut_part(part, way, model, Block::Configuration, now_ms);
        for part in self.parts(way, model) {
            if let Some(pause) = self.routes.get_mut(&part).filter(|pause| pause.block == Block::Configuration) {
                pause.struck = true;
            }
        }
        news
    }

    /// A request got through: the route is open. Says what was shut.
    pub fn open(&mut self, way: Way, model: &str) -> Opened {
        if let Some(word) = self.words.get_mut(&way) {
            word.lies |= word.refused;
        }
        let mut opened = Opened::default();
        for part in self.parts(way, model) {
            let was_shut = self.routes.remove(&part).is_some();
            opened.route |= was_shut && part.1.is_none();
            opened.key |= was_shut && part.1.is_some();
        }
        self.changed |= opened != Opened::default();
        opened
    }

    /// The whole of an uplink is open again, if it was shut for this. True if it was.
    pub fn open_block(&mut self, uplink: UplinkIndex, block: Block) -> bool {
        let shut = self.block_of(uplink) == Some(block);
        if shut {
            self.routes.remove(&(uplink, None, None));
            self.changed = true;
        }
        shut
    }

    /// A trial ended without telling anything about the route.
    pub fn trial_undecided(&mut self, way: Way, model: &str) {
        for part in self.parts(way, model) {
            if let Some(pause) = self.routes.get_mut(&part) {
                pause.trial = false;
            }
        }
    }

    /// A probe was answered, with or without its key being refused.
    pub fn key_probed(&mut self, way: Way, refused: bool, now_ms: u64) -> News {
        let word = self.words.entry(way).or_default();
        if word.lies {
            return News::None;
        }
        let was_refused = std::mem::replace(&mut word.refused, refused);
        let part = self.part(way);
        let one_of_several = part.1.is_some();
        match self.routes.get_mut(&part) {
            None if refused => {
                let wait_ms = self.shut(way, "", Block::Key, now_ms).unwrap_or(0);
                if let Some(pause) = self.routes.get_mut(&part) {
                    pause.proven = false;
                }
                News::Shut(wait_ms)
            }
            Some(pause) if pause.block == Block::Key && refused => {
                // Before a request was refused too, a request is the trial: the probe may be wrong. Of several keys a
                // request always tries the shut one, since another key is there if it is refused.
                if pause.proven && !one_of_several {
                    self.changed |= pause.fail_due(now_ms);
                } else if now_ms >= pause.until_ms {
                    pause.asked += 1;
                }
                News::None
            }
            Some(pause) if pause.block == Block::Key && was_refused => {
                self.routes.remove(&part);
                self.changed = true;
                News::Opened
            }
            _ => News::None,
        }
    }

    /// A probe met a certificate that is not accepted.
    pub fn tls_probed(&mut self, uplink: UplinkIndex, block: Block, now_ms: u64) -> News {
        match self.routes.get_mut(&(uplink, None, None)) {
            Some(pause) if pause.block == block => {
                self.changed |= pause.fail_due(now_ms);
                News::None
            }
            _ => self.shut((uplink, 0), "", block, now_ms).map_or(News::None, News::Shut),
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
        let way = (uplink, self.probe_key(uplink));
        let pause = self.routes.get(&(uplink, None, None)).or_else(|| self.routes.get(&self.part(way)))?;
        let by_probe = match pause.block {
            Block::Tls | Block::Clock => true,
            Block::Key => self.told_by_probes(way),
            _ => false,
        };
        by_probe.then_some(pause)
    }

    fn told_by_probes(&self, way: Way) -> bool {
        self.words.get(&way).is_some_and(|word| word.refused && !word.lies)
    }

    /// Try everything again at once: the operator says that something was mended.
    pub fn hurry(&mut self, now_ms: u64) {
        for pause in self.routes.values_mut() {
            pause.until_ms = pause.until_ms.min(now_ms);
        }
    }

    /// The line of this uplink is back: what was found through the old one is tried at once.
    pub fn hurry_wall(&mut self, uplink: UplinkIndex, now_ms: u64) {
        if let Some(pause) = self.routes.get_mut(&(uplink, None, None)).filter(|pause| pause.block == Block::Portal) {
            pause.until_ms = pause.until_ms.min(now_ms);
        }
    }

    /// Models that are shut somewhere.
    pub fn models(&self) -> BTreeSet<String> {
        self.routes.keys().filter_map(|(_, _, model)| model.clone()).collect()
    }

    /// Why an uplink, or else some model of it, is shut, and until when. With several keys: once all of them are.
    pub fn of_uplink(&self, uplink: UplinkIndex) -> Option<(Block, u64)> {
        let keyless = |part: &Part| part.0 == uplink && part.1.is_none();
        // The whole uplink stands before its models.
        let whole = self.routes.iter().find(|(part, _)| keyless(part)).map(|(_, p)| (p.block, p.until_ms));
        whole.or_else(|| self.of_key((uplink, self.probe_key(uplink))))
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
        let one = |(part, pause): (&Part, &Pause)| Shut {
            uplink: part.0,
            key: part.1,
            model: part.2.clone().unwrap_or_default(),
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
            self.routes.insert((old.uplink, old.key, Some(old.model).filter(|model| !model.is_empty())), pause);
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
mod tests;
