//! Control under explicit time: scenarios first, then whole virtual days on a model of spool and network.
//!
//! Owns the bench the scenarios share. Nothing here sleeps or reads a clock.

mod backlog;
mod budget;
mod keys;
mod live;
mod models;
mod pauses;
mod quiet;
mod resends;
mod retries;
mod simulation;
mod table;
mod world;

use super::event::{
    AskId, AttemptId, Check, Effect, Event, Fault, Item, KeyIndex, Notice, Outcome, Route, UplinkIndex, Verdict,
};
use super::keys::KeySettings;
use super::{
    BreakerSettings, Control, DrainSettings, ProbeSettings, RetrySettings, Settings, Strategy, UplinkSettings,
};

const PASSED: Check = Check::Passed { latency_ms: 10, key_refused: false };
const NO_CONNECTION: Check = Check::Failed(Fault::Connect);
const JITTER_MS: u64 = 5_000;

/// The contract's defaults, for this many uplinks of falling preference.
fn settings(uplinks: u32) -> Settings {
    let uplink = |priority| UplinkSettings {
        priority,
        weight: 1,
        max_in_flight: 8,
        keys: Vec::new(),
        probe: ProbeSettings { interval_ms: 2_000, timeout_ms: 1_000, fall: 3, rise: 1, degraded_above_ms: 1_500 },
        breaker: BreakerSettings { failures: 3, open_for_ms: 30_000 },
    };
    Settings {
        uplinks: (0..uplinks).map(uplink).collect(),
        strategy: Strategy::Priority,
        retry: RetrySettings { attempts: 3, base_ms: 500, max_ms: 60_000, budget: 0.2 },
        hold_unknown: false,
        max_attempts: 8,
        drain: DrainSettings { max_in_flight: 4, start_delay_ms: JITTER_MS },
        seed: 1,
    }
}

/// What answers an uplink's probes on the bench.
#[derive(Debug, Clone, Copy)]
enum Probes {
    Are(Check),
    /// Nothing; the test reports them itself, or lets them run out.
    Silent,
}

/// Control on a bench: time moves when the test says so.
struct Bench {
    control: Control,
    now_ms: u64,
    probes: Vec<Probes>,
    /// How often control was turned, and how many probes it asked for.
    turns: u64,
    probed: u64,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let probes = vec![Probes::Silent; settings.uplinks.len()];
        Self { control: Control::new(settings, 0), now_ms: 0, probes, turns: 0, probed: 0 }
    }

    /// All uplinks are up and the start jitter is over.
    fn up(settings: Settings) -> Self {
        let mut bench = Self::new(settings);
        bench.probes.fill(Probes::Are(PASSED));
        bench.tell(Event::Tick);
        bench.advance(JITTER_MS);
        assert!(bench.control.is_available());
        bench
    }

    /// One event now, and what the probes it asks for say.
    fn tell(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.turn(event, &mut effects);
        let mut seen = 0;
        while let Some(effect) = effects.get(seen).cloned() {
            seen += 1;
            let Effect::Probe(uplink, key) = effect else { continue };
            self.probed += 1;
            if let Probes::Are(check) = self.probes[uplink] {
                self.turn(Event::Probed(uplink, key, check), &mut effects);
            }
        }
        effects
    }

    fn turn(&mut self, event: Event, effects: &mut Vec<Effect>) {
        self.turns += 1;
        self.control.handle(event, self.now_ms, effects);
    }

    /// Lets time pass, from deadline to deadline as the driver does.
    fn advance(&mut self, ms: u64) -> Vec<Effect> {
        let end_ms = self.now_ms + ms;
        let mut effects = Vec::new();
        while let Some(due_ms) = self.control.deadline_ms().filter(|due| *due <= end_ms) {
            // The driver wakes a millisecond late at worst; a deadline in the past costs a turn per millisecond.
            self.now_ms = due_ms.max(self.now_ms + 1);
            if self.now_ms > end_ms {
                break;
            }
            effects.extend(self.tell(Event::Tick));
        }
        self.now_ms = end_ms;
        effects.extend(self.tell(Event::Tick));
        effects
    }

    fn ask(&mut self, ask: AskId) -> Option<Route> {
        let effects = self.tell(Event::Asked(ask));
        answer(&effects, ask)
    }

    /// Asks, and expects to be sent to this uplink.
    fn ask_for(&mut self, ask: AskId, uplink: UplinkIndex) -> AttemptId {
        let route = self.ask(ask);
        match route {
            Some(Route::Uplink { attempt, uplink: at, .. }) if at == uplink => attempt,
            other => panic!("ask {ask} should go to uplink {uplink}, not {other:?}"),
        }
    }

    fn end(&mut self, attempt: AttemptId, outcome: Outcome, next: bool) -> Vec<Effect> {
        self.tell(Event::Ended { attempt, outcome, latency_ms: 20, next })
    }

    fn probed(&mut self, uplink: UplinkIndex, check: Check) -> Vec<Effect> {
        self.tell(Event::Probed(uplink, 0, check))
    }

    /// The spool tells of work and hands it out; returns what control does with it.
    fn lease(&mut self, items: Vec<Item>) -> Vec<Effect> {
        let count = items.len() as u64;
        let asked = self.tell(Event::Ready(count));
        assert!(asked.iter().any(|e| matches!(e, Effect::Lease { .. })), "no lease was asked for: {asked:?}");
        self.tell(Event::Leased(items))
    }
}

fn item(seq: u64) -> Item {
    Item { seq, model: "m".to_owned(), attempts: 0, maybe_billed: false, urgent: false }
}

fn answer(effects: &[Effect], ask: AskId) -> Option<Route> {
    effects.iter().find_map(|effect| match effect {
        Effect::Answer(id, route) if *id == ask => Some(*route),
        _ => None,
    })
}

/// Attempt, request and uplink of each send.
fn sends(effects: &[Effect]) -> Vec<(AttemptId, u64, UplinkIndex)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { attempt, seq, uplink, .. } => Some((*attempt, *seq, *uplink)),
            _ => None,
        })
        .collect()
}

fn verdicts(effects: &[Effect]) -> Vec<(u64, Verdict)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Settle { seq, verdict, .. } => Some((*seq, *verdict)),
            _ => None,
        })
        .collect()
}

/// Whether this asks for so many requests of any model.
fn leases(effect: &Effect, wanted: u32) -> bool {
    matches!(effect, Effect::Lease { max, except, .. } if *max == wanted && except.is_empty())
}

fn count(effects: &[Effect], wanted: impl Fn(&Effect) -> bool) -> usize {
    effects.iter().filter(|effect| wanted(effect)).count()
}
