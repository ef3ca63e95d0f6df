//! A device's own program: what it still has to hand over and what it got, over its restarts.

use std::collections::{BTreeMap, BTreeSet};

use super::chance::Chance;
use super::machine::{Machine, Told};

/// A third of the requests only have to arrive.
fn wants_result(key: u64) -> bool {
    !key.is_multiple_of(3)
}

pub struct Firmware<M> {
    machine: M,
    boot_id: u32,
    unfinished: BTreeSet<u64>,
    forgets_at_the_ack: bool,
    acked: BTreeSet<u64>,
    results: BTreeMap<u64, u32>,
    text: BTreeMap<u64, Vec<u8>>,
    /// An answer was put together wrongly.
    torn: bool,
    /// Finished, as the gateway says, and without a result.
    lost: BTreeSet<u64>,
}

impl<M: Machine> Firmware<M> {
    pub fn new(mut machine: M, requests: u64, forgets_at_the_ack: bool, chance: &mut Chance) -> Self {
        for key in 1..=requests {
            let length = if key % 4 == 0 { 200 + chance.below(1_500) } else { 0 };
            let picture: Vec<u8> = (0..length).map(|_| chance.next() as u8).collect();
            machine.keep(key, wants_result(key), &picture);
        }
        Self {
            machine,
            boot_id: 1,
            unfinished: (1..=requests).collect(),
            forgets_at_the_ack,
            acked: BTreeSet::new(),
            results: BTreeMap::new(),
            text: BTreeMap::new(),
            torn: false,
            lost: BTreeSet::new(),
        }
    }

    /// A power cut: everything but the memory is gone.
    pub fn restart(&mut self, now_ms: u64) {
        self.boot_id += 1;
        self.machine.start(self.boot_id, now_ms);
        self.text.clear();
    }

    /// Takes what came and says what there is to say.
    pub fn step(&mut self, bytes: &[u8], now_ms: u64, mut send: impl FnMut(&[u8])) {
        let turn = self.machine.turn(bytes, now_ms);
        for told in turn.told {
            self.told(told);
        }
        turn.sent.iter().for_each(|frame| send(frame));
        let forgotten = |key: &&u64| self.forgets_at_the_ack && self.acked.contains(key);
        for key in self.unfinished.iter().filter(|key| !forgotten(key)) {
            self.machine.submit(*key, wants_result(*key), now_ms);
        }
    }

    fn told(&mut self, told: Told) {
        match told {
            Told::Stored(key) => {
                self.acked.insert(key);
                if !wants_result(key) {
                    self.unfinished.remove(&key);
                }
                if self.forgets_at_the_ack || !wants_result(key) {
                    self.machine.forget(key);
                }
            }
            Told::Answer { key, last, text } => {
                let whole = self.text.entry(key).or_default();
                whole.extend(text);
                if last {
                    self.torn |= *whole != super::gateway::answer(key);
                    self.text.remove(&key);
                    *self.results.entry(key).or_default() += 1;
                    self.unfinished.remove(&key);
                    self.machine.forget(key);
                }
            }
            Told::Gone(key) => {
                self.lost.insert(key);
                self.unfinished.remove(&key);
                self.machine.forget(key);
            }
            Told::Refused(_) => {}
        }
    }

    pub fn is_done(&self) -> bool {
        self.unfinished.is_empty()
    }

    pub fn acked(&self) -> &BTreeSet<u64> {
        &self.acked
    }

    pub fn check(&self) -> Result<(), String> {
        if !self.is_done() {
            return Err(format!("without a result: {:?}", self.unfinished));
        }
        if self.torn {
            return Err("the parts of an answer do not make it".to_owned());
        }
        if !self.lost.is_empty() {
            return Err(format!("results that were never handed over: {:?}", self.lost));
        }
        match self.results.iter().find(|(_, count)| **count != 1) {
            Some((key, count)) => Err(format!("result of {key} handed over {count} times")),
            None => Ok(()),
        }
    }
}
