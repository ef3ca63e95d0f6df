//! One budget over live and stored retries, over random scripts with explicit time; and what it may never do.
//!
//! The rule is written down a second time as what an onlooker counts: sends, ends, and the time between them.

use std::collections::{BTreeMap, BTreeSet};

use super::super::retry::{Budget, Chance, TRICKLE_MS};
use super::*;

const SEEDS: u64 = 60;
const SHARE: f64 = 0.2;
/// What may be retried at once without having been earned, and the one that trickles just then.
const AT_ONCE: f64 = 10.0 + 1.0;
/// Live retries that were let go and wait for their back-off: as many as two uplinks have places.
const ON_THEIR_WAY: f64 = 16.0;
/// Second sends of what may have been billed have their own budget, and count here on credit.
const CREDIT: f64 = 10.0;

/// A spool, callers and uplinks around control, and the count of its retries.
struct Script {
    bench: Bench,
    chance: Chance,
    /// One in so many attempts fails.
    bad: u64,
    unknowns: bool,
    /// The mistake: the budget is as full as ever whenever it is asked.
    never_spent: bool,
    queue: BTreeMap<u64, Item>,
    sending: BTreeMap<u64, Item>,
    aside: BTreeMap<u64, Item>,
    live: BTreeMap<AttemptId, (AskId, UplinkIndex)>,
    stored: BTreeMap<AttemptId, (u64, bool)>,
    /// Whose last send failed, and where a live one's did.
    failed: BTreeSet<u64>,
    /// Who of those was let go again, and counted.
    let_go: BTreeSet<u64>,
    failed_at: BTreeSet<(AskId, UplinkIndex)>,
    excess: f64,
    worst: f64,
    counted_ms: u64,
    retries: u64,
}

impl Script {
    fn new(told: f64, never_spent: bool, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let mut settings = settings(1 + chance.up_to(1) as u32);
        settings.retry.budget = told;
        settings.seed = seed;
        for uplink in &mut settings.uplinks {
            uplink.breaker.failures = if seed.is_multiple_of(3) { 3 } else { u32::MAX };
        }
        Self {
            bench: Bench::up(settings),
            bad: 2,
            unknowns: seed.is_multiple_of(2),
            chance,
            never_spent,
            queue: BTreeMap::new(),
            sending: BTreeMap::new(),
            aside: BTreeMap::new(),
            live: BTreeMap::new(),
            stored: BTreeMap::new(),
            failed: BTreeSet::new(),
            let_go: BTreeSet::new(),
            failed_at: BTreeSet::new(),
            excess: 0.0,
            worst: 0.0,
            counted_ms: JITTER_MS,
            retries: 0,
        }
    }

    fn waiting(&self) -> usize {
        self.queue.len() + self.sending.len() + self.aside.len()
    }

    fn tell(&mut self, event: Event) {
        if self.never_spent {
            self.bench.control.budget = Budget::new(SHARE);
        }
        let effects = self.bench.tell(event);
        self.carry_out(effects);
    }

    fn advance(&mut self, ms: u64) {
        let end_ms = self.bench.now_ms + ms;
        while self.bench.now_ms < end_ms {
            let due_ms = self.bench.control.deadline_ms().unwrap_or(end_ms);
            self.bench.now_ms = due_ms.clamp(self.bench.now_ms + 1, end_ms);
            self.tell(Event::Tick);
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Answer(ask, Route::Uplink { attempt, uplink, .. }) => {
                    if self.failed_at.contains(&(ask, uplink)) {
                        self.see_retry();
                    }
                    self.live.insert(attempt, (ask, uplink));
                }
                Effect::Send { attempt, seq, .. } => {
                    let again = self.failed.remove(&seq);
                    if again && !self.let_go.remove(&seq) {
                        let item = &self.sending[&seq];
                        assert!(item.maybe_billed, "request {seq} is sent again although nobody let it go");
                        self.see_retry();
                    }
                    self.stored.insert(attempt, (seq, again));
                    self.tell(Event::BodyOut(attempt));
                }
                Effect::Lease { max, labelled, .. } => self.lease(max, labelled),
                Effect::Settle { seq, attempt, verdict } => self.settle(seq, attempt, verdict),
                Effect::Release(seqs) => {
                    for seq in seqs {
                        let item = self.aside.remove(&seq).expect("only what is set aside is released");
                        self.let_go(seq);
                        self.queue.insert(seq, item);
                    }
                    self.tell(Event::Ready(self.queue.len() as u64));
                }
                _ => {}
            }
        }
    }

    fn lease(&mut self, max: u32, labelled: Option<u32>) {
        let mut labelled_left = labelled.unwrap_or(max);
        let mut items = Vec::new();
        for (seq, item) in &self.queue {
            if items.len() < max as usize && (!item.maybe_billed || labelled_left > 0) {
                labelled_left -= u32::from(item.maybe_billed && labelled_left > 0);
                items.push((*seq, item.clone()));
            }
        }
        for (seq, _) in &items {
            self.queue.remove(seq);
        }
        self.sending.extend(items.clone());
        self.tell(Event::Leased(items.into_iter().map(|(_, item)| item).collect()));
        self.tell(Event::Ready(self.queue.len() as u64));
    }

    fn settle(&mut self, seq: u64, attempt: Option<AttemptId>, verdict: Verdict) {
        let mut item = self.sending.remove(&seq).expect("only what is being sent is settled");
        match verdict {
            Verdict::Answered => {}
            Verdict::Dead(why) => assert!(matches!(why, "attempts_exhausted" | "unknown"), "{why}"),
            Verdict::Requeue { counted, deferred, maybe_billed } => {
                assert!(!counted || attempt.is_some(), "waiting costs no attempt");
                item.attempts += u32::from(counted);
                item.maybe_billed |= maybe_billed;
                if !deferred && !item.maybe_billed {
                    self.let_go(seq);
                }
                if deferred { &mut self.aside } else { &mut self.queue }.insert(seq, item);
                self.tell(Event::Ready(self.queue.len() as u64));
            }
        }
    }

    /// A stored request may leave: if its last send failed, this is a retry.
    fn let_go(&mut self, seq: u64) {
        if self.failed.contains(&seq) && self.let_go.insert(seq) {
            self.see_retry();
        }
    }

    fn see_retry(&mut self) {
        let trickled = (self.bench.now_ms - self.counted_ms) as f64 / TRICKLE_MS as f64;
        self.counted_ms = self.bench.now_ms;
        self.excess = (self.excess - trickled).max(0.0) + 1.0;
        self.retries += 1;
        self.worst = self.worst.max(self.excess);
    }

    fn earned(&mut self, retries: f64) {
        self.excess = (self.excess - retries).max(0.0);
    }

    /// Ends the attempt that has run the longest.
    fn end_one(&mut self) {
        let outcome = match self.chance.up_to(5) {
            _ if self.bad == 0 || self.chance.up_to(self.bad) == 0 => Outcome::Delivered,
            0 => Outcome::Unreachable(Fault::Connect),
            1 if self.unknowns => Outcome::Unknown(Fault::Reset),
            2 => Outcome::RateLimited { retry_after_ms: Some(self.chance.up_to(500)) },
            _ => Outcome::Transient(Fault::ServerError),
        };
        let fails = matches!(outcome, Outcome::Unreachable(_) | Outcome::Unknown(_) | Outcome::Transient(_));
        let (live, stored) = (self.live.first_key_value(), self.stored.first_key_value());
        let Some(attempt) = live.map(|(id, _)| *id).into_iter().chain(stored.map(|(id, _)| *id)).min() else { return };
        let mut next = false;
        if let Some((ask, uplink)) = self.live.remove(&attempt) {
            next = outcome != Outcome::Delivered;
            if fails {
                self.failed_at.insert((ask, uplink));
            }
        } else if let Some((seq, again)) = self.stored.remove(&attempt) {
            if fails {
                self.failed.insert(seq);
            } else if outcome == Outcome::Delivered {
                self.earned(SHARE + f64::from(u8::from(again)));
            }
        }
        self.tell(Event::Ended { attempt, outcome, latency_ms: 20, next });
    }
}

/// Good times and bad ones, callers and a backlog: what is sent again stays within the budget at every step, and in the end
/// everything is over.
fn retries_keep_to_one_budget(told: f64, never_spent: bool, seed: u64) -> Result<u64, String> {
    let mut script = Script::new(told, never_spent, seed);
    let callers = !seed.is_multiple_of(5);
    let mut serial = 0;
    for _ in 0..1_500 {
        serial += 1;
        match script.chance.up_to(9) {
            0 if script.chance.up_to(9) == 0 => script.bad = [0, 1, 8, 1_000_000][script.chance.up_to(3) as usize],
            0 | 1 if callers => {
                script.earned(SHARE);
                script.tell(Event::Asked(serial));
            }
            2 if script.waiting() < 200 => {
                script.queue.insert(serial, item(serial));
                script.tell(Event::Ready(script.queue.len() as u64));
            }
            3 | 4 => {
                let ms = script.chance.up_to(2_000);
                script.advance(ms);
            }
            _ => script.end_one(),
        }
    }
    let most = AT_ONCE + ON_THEIR_WAY + if script.unknowns { CREDIT } else { 0.0 } + 1e-6;
    if script.worst > most {
        return Err(format!("{} retries more than the share allows", script.worst));
    }
    (script.bad, script.unknowns) = (0, false);
    for _ in 0..5_000 {
        if script.waiting() == 0 {
            return Ok(script.retries);
        }
        (0..16).for_each(|_| script.end_one());
        serial += 1;
        // Answers pay for second sends.
        script.tell(Event::Asked(serial));
        script.advance(500);
    }
    Err(format!("{} wait for ever, {} of them aside", script.waiting(), script.aside.len()))
}

#[test]
fn live_and_stored_retries_share_one_budget() {
    let mut retries = 0;
    for seed in 0..SEEDS {
        match retries_keep_to_one_budget(SHARE, false, seed) {
            Ok(more) => retries += more,
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    assert!(retries > 20 * SEEDS, "{retries} retries are too few to say anything");
    let is_caught = |told, never| (0..SEEDS).any(|seed| retries_keep_to_one_budget(told, never, seed).is_err());
    assert!(is_caught(0.6, false), "three times the share");
    assert!(is_caught(SHARE, true), "a budget that nothing is taken from");
}

/// What live requests have used up a stored one must wait for, and it is neither dead nor counted for it.
#[test]
fn a_spent_budget_delays_a_stored_retry_and_never_kills_it() {
    let mut numbers = settings(1);
    numbers.uplinks[0].breaker.failures = u32::MAX;
    let mut bench = Bench::up(numbers);
    while bench.control.budget.spend() {}
    assert!(bench.control.budget.spend_stored(bench.now_ms), "the first one trickles");
    let sent = sends(&bench.lease(vec![Item { attempts: 6, ..item(1) }]));
    let ended = bench.end(sent[0].0, Outcome::Transient(Fault::ServerError), false);
    assert_eq!(verdicts(&ended), [(1, Verdict::Requeue { counted: true, deferred: true, maybe_billed: false })]);
    let effects = bench.advance(TRICKLE_MS - 1_000);
    assert_eq!((count(&effects, |e| matches!(e, Effect::Release(_))), verdicts(&effects)), (0, vec![]));
    assert_eq!(count(&bench.advance(1_000), |e| *e == Effect::Release(vec![1])), 1, "in the end it leaves");
}

#[test]
fn an_answer_makes_room_for_the_next_stored_retry() {
    let mut numbers = settings(1);
    numbers.uplinks[0].breaker.failures = u32::MAX;
    let mut bench = Bench::up(numbers);
    while bench.control.budget.spend() {}
    for seq in [1, 2] {
        let sent = sends(&bench.lease(vec![item(seq)]));
        bench.end(sent[0].0, Outcome::Transient(Fault::ServerError), false);
    }
    let released = |effects: &[Effect]| count(effects, |e| matches!(e, Effect::Release(_)));
    assert_eq!(released(&bench.advance(2_000)), 1, "one of them finds out that the outage is over");
    let sent = sends(&bench.lease(vec![Item { attempts: 1, ..item(1) }]));
    assert_eq!(released(&bench.end(sent[0].0, Outcome::Delivered, false)), 1);
}
