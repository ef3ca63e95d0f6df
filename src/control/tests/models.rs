//! Strategies, breaker, retry budget and drain window against rules written down a second time, over random scripts.
//!
//! Each check is a function that takes what it checks, so that a wrong one can be given to it: a check that accepts
//! that one would prove nothing.

use super::super::breaker::Breaker;
use super::super::drain::Pace;
use super::super::retry::{Budget, Chance};
use super::super::route::{Candidate, Turns, choose};
use super::*;

const SEEDS: u64 = 200;

fn holds(check: impl Fn(u64) -> Result<(), String>) {
    for seed in 0..SEEDS {
        if let Err(why) = check(seed) {
            panic!("seed {seed}: {why}");
        }
    }
}

fn is_caught(check: impl Fn(u64) -> Result<(), String>) -> bool {
    (0..SEEDS).any(|seed| check(seed).is_err())
}

/// Sets of uplinks that change; within each, every uplink gets its share to within two turns.
fn shares_hold(
    mut pick: impl FnMut(&[Candidate]) -> Option<UplinkIndex>,
    weighted: bool,
    seed: u64,
) -> Result<(), String> {
    let mut chance = Chance::new(seed);
    let weights: Vec<u32> = (0..4).map(|_| 1 + chance.up_to(9) as u32).collect();
    for _ in 0..20 {
        let up: Vec<usize> = (0..4).filter(|_| chance.up_to(2) > 0).collect();
        let slow = chance.up_to(7) as usize;
        let candidate = |uplink: &usize| Candidate {
            uplink: *uplink,
            priority: 1,
            weight: weights[*uplink],
            degraded: *uplink == slow,
            in_flight: 0,
            latency_ms: None,
        };
        let pool: Vec<Candidate> = up.iter().map(candidate).collect();
        // A slow one gets nothing while another is there.
        let served: Vec<usize> = up.iter().copied().filter(|uplink| *uplink != slow || up.len() == 1).collect();
        let share = |uplink: usize| if weighted { f64::from(weights[uplink]) } else { 1.0 };
        let total: f64 = served.iter().map(|uplink| share(*uplink)).sum();
        let rounds = 1 + chance.up_to(200);
        let mut counts = [0.0; 4];
        for _ in 0..rounds {
            match pick(&pool) {
                Some(uplink) => counts[uplink] += 1.0,
                None if up.is_empty() => {}
                None => return Err(format!("nobody of {up:?}")),
            }
        }
        for (uplink, count) in counts.iter().enumerate() {
            let is_served = served.contains(&uplink);
            let due = if is_served { rounds as f64 * share(uplink) / total } else { 0.0 };
            let slack = if is_served { 2.0 } else { 0.0 };
            if (count - due).abs() > slack {
                return Err(format!("{uplink} of {served:?} was chosen {count} times, {due:.1} are due"));
            }
        }
    }
    Ok(())
}

#[test]
fn turns_are_shared_by_weight() {
    let by = |strategy| {
        let mut turns = Turns::default();
        move |pool: &[Candidate]| choose(strategy, pool, &mut turns)
    };
    holds(|seed| shares_hold(by(Strategy::Weighted), true, seed));
    holds(|seed| shares_hold(by(Strategy::RoundRobin), false, seed));
    assert!(is_caught(|seed| shares_hold(by(Strategy::RoundRobin), true, seed)), "weights that are not looked at");
    assert!(is_caught(|seed| shares_hold(by(Strategy::Priority), false, seed)), "no turns at all");
    let slow_too = |pool: &[Candidate]| pool.iter().min_by_key(|c| c.in_flight).map(|c| c.uplink);
    assert!(is_caught(|seed| shares_hold(slow_too, true, seed)), "slow ones as good as others");
}

/// The same of an uplink as an onlooker counts it.
#[derive(Clone, Default)]
struct Seen {
    in_flight: u32,
    latency_ms: Option<f64>,
}

/// Control under random callers: each goes to an uplink that is up and has room, and to the best of those.
fn best_is_chosen(strategy: Strategy, weight_of_new: f64, is_best: Best, seed: u64) -> Result<(), String> {
    let mut chance = Chance::new(seed);
    let mut settings = settings(3);
    settings.strategy = strategy;
    for uplink in &mut settings.uplinks {
        uplink.max_in_flight = 1 + chance.up_to(4) as u32;
        uplink.weight = 1 + chance.up_to(3) as u32;
        uplink.priority = chance.up_to(2) as u32;
    }
    let mut bench = Bench::up(settings.clone());
    let mut seen = vec![Seen { in_flight: 0, latency_ms: Some(10.0) }; 3];
    let mut running: Vec<(AttemptId, UplinkIndex)> = Vec::new();
    for ask in 0..300 {
        if running.is_empty() || chance.up_to(2) > 0 {
            let view = bench.control.view();
            let Some(Route::Uplink { attempt, uplink, .. }) = bench.ask(ask) else {
                bench.tell(Event::Withdrawn(ask));
                continue;
            };
            let room = |i: usize| view.uplinks[i].available && seen[i].in_flight < settings.uplinks[i].max_in_flight;
            if !room(uplink) {
                return Err(format!("{uplink} is down or full"));
            }
            let better = |i: &usize| room(*i) && is_best(&settings.uplinks, &seen, *i, uplink);
            if let Some(better) = (0..3).find(better) {
                return Err(format!("{uplink} was chosen before {better}"));
            }
            seen[uplink].in_flight += 1;
            running.push((attempt, uplink));
        } else {
            let (attempt, uplink) = running.swap_remove(chance.up_to(running.len() as u64 - 1) as usize);
            seen[uplink].in_flight -= 1;
            let latency_ms = 1 + chance.up_to(1_000);
            let old = seen[uplink].latency_ms.unwrap_or(latency_ms as f64);
            seen[uplink].latency_ms = Some(weight_of_new * latency_ms as f64 + (1.0 - weight_of_new) * old);
            bench.tell(Event::Ended { attempt, outcome: Outcome::Delivered, latency_ms, next: false });
        }
    }
    Ok(())
}

/// Whether the first of two is to be preferred; among equals the one that is configured first.
type Best = fn(&[UplinkSettings], &[Seen], usize, usize) -> bool;

fn by_priority(uplinks: &[UplinkSettings], _: &[Seen], a: usize, b: usize) -> bool {
    (uplinks[a].priority, a) < (uplinks[b].priority, b)
}

fn by_latency(_: &[UplinkSettings], seen: &[Seen], a: usize, b: usize) -> bool {
    let ms = |i: usize| seen[i].latency_ms.unwrap_or(0.0);
    ms(a) + 1e-6 < ms(b)
}

fn by_connections(uplinks: &[UplinkSettings], seen: &[Seen], a: usize, b: usize) -> bool {
    // a/b < c/d without division.
    let (left, right) = (seen[a].in_flight * uplinks[b].weight, seen[b].in_flight * uplinks[a].weight);
    (left, a) < (right, b)
}

#[test]
fn the_best_uplink_with_room_is_chosen() {
    holds(|seed| best_is_chosen(Strategy::Priority, 0.3, by_priority, seed));
    holds(|seed| best_is_chosen(Strategy::LeastLatency, 0.3, by_latency, seed));
    holds(|seed| best_is_chosen(Strategy::LeastConnections, 0.3, by_connections, seed));
    holds(|seed| best_is_chosen(Strategy::Weighted, 0.3, |_, _, _, _| false, seed));
    assert!(is_caught(|seed| best_is_chosen(Strategy::LeastLatency, 0.5, by_latency, seed)), "another average");
    assert!(is_caught(|seed| best_is_chosen(Strategy::LeastConnections, 0.3, by_priority, seed)));
    assert!(is_caught(|seed| best_is_chosen(Strategy::RoundRobin, 0.3, by_connections, seed)));
}

/// What a breaker may get wrong.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    SuccessesForgotten,
    OpensTooShort,
    TrialsWithoutEnd,
}

/// A script of requests and trials against the breaker's rules, told from the script alone.
fn breaker_keeps_its_rules(wrong: Wrong, seed: u64) -> Result<(), String> {
    let mut chance = Chance::new(seed);
    let limit = 1 + chance.up_to(4) as u32;
    let open_for_ms = if wrong == Wrong::OpensTooShort { 900 } else { 1_000 };
    let mut breaker = Breaker::new(BreakerSettings { failures: limit, open_for_ms });
    let (mut now_ms, mut in_a_row, mut opened_ms, mut trial) = (0, 0, None::<u64>, false);
    for _ in 0..500 {
        now_ms += chance.up_to(300);
        let may_pass = opened_ms.is_none();
        if breaker.is_closed() != may_pass {
            return Err(format!("at {now_ms} ms requests pass: {}, they may: {may_pass}", breaker.is_closed()));
        }
        match chance.up_to(3) {
            0 if may_pass => {
                if wrong != Wrong::SuccessesForgotten {
                    breaker.success();
                }
                in_a_row = 0;
            }
            1 if may_pass => {
                breaker.failure(now_ms);
                in_a_row += 1;
                opened_ms = (in_a_row >= limit).then_some(now_ms);
            }
            2 => {
                let due = opened_ms.is_some_and(|at| now_ms >= at + 1_000) && !trial;
                let made = breaker.start_trial(now_ms) || (wrong == Wrong::TrialsWithoutEnd && trial);
                if made != due {
                    return Err(format!("at {now_ms} ms a trial is made: {made}, one is due: {due}"));
                }
                trial |= due;
            }
            3 if trial => {
                let passed = chance.up_to(1) == 0;
                breaker.trial_ended(passed, now_ms);
                // On probation: the next failure opens it again.
                (trial, opened_ms, in_a_row) = (false, (!passed).then_some(now_ms), limit - 1);
            }
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn the_breaker_keeps_its_rules() {
    holds(|seed| breaker_keeps_its_rules(Wrong::Nothing, seed));
    for wrong in [Wrong::SuccessesForgotten, Wrong::OpensTooShort, Wrong::TrialsWithoutEnd] {
        assert!(is_caught(|seed| breaker_keeps_its_rules(wrong, seed)));
    }
}

/// Retries in any stretch of a random script are no more than the share of its requests and the burst.
fn budget_bounds_every_stretch(told: f64, share: f64, seed: u64) -> Result<(), String> {
    let mut chance = Chance::new(seed);
    let mut budget = Budget::new(told);
    // How many retries above the share the worst stretch has that ends here.
    let mut excess = 0.0_f64;
    for _ in 0..2_000 {
        if chance.up_to(1) == 0 {
            budget.earn();
            excess = (excess - share).max(0.0);
        } else if budget.spend() {
            excess += 1.0;
        }
        if excess > RETRY_BURST + 1e-6 {
            return Err(format!("{excess} retries above the share"));
        }
    }
    Ok(())
}

/// What a gateway may retry at once without having earned it.
const RETRY_BURST: f64 = 10.0;

#[test]
fn retries_stay_within_their_budget() {
    holds(|seed| budget_bounds_every_stretch(0.2, 0.2, seed));
    assert!(is_caught(|seed| budget_bounds_every_stretch(0.4, 0.2, seed)), "twice the share");
}

/// The window grows by one to its bound, halves, and nothing leaves before it may.
fn window_keeps_its_rules(halves: bool, seed: u64) -> Result<(), String> {
    let mut chance = Chance::new(seed);
    let max = 1 + chance.up_to(15) as u32;
    let mut pace = Pace::new(&super::super::drain::DrainSettings { max_in_flight: max, start_delay_ms: 0 });
    let (mut window, mut not_before_ms, mut now_ms) = (1, 0, 0);
    for _ in 0..500 {
        now_ms += chance.up_to(50);
        match chance.up_to(4) {
            0 => {
                let wait_ms = chance.up_to(500);
                if halves {
                    pace.slower(now_ms + wait_ms);
                }
                (window, not_before_ms) = ((window / 2).max(1), not_before_ms.max(now_ms + wait_ms));
            }
            1 if chance.up_to(9) == 0 => {
                pace.restart(now_ms);
                (window, not_before_ms) = (1, not_before_ms.max(now_ms));
            }
            _ => {
                pace.success(now_ms);
                window = (window + 1).min(max);
            }
        }
        if (pace.window(), pace.not_before_ms()) != (window, not_before_ms) {
            return Err(format!("window {} not {window}, from {}", pace.window(), pace.not_before_ms()));
        }
    }
    Ok(())
}

#[test]
fn the_window_keeps_its_rules() {
    holds(|seed| window_keeps_its_rules(true, seed));
    assert!(is_caught(|seed| window_keeps_its_rules(false, seed)), "a window that never halves");
}

/// 503 to every caller while the probes stay green and no breaker helps: how often the uplink is asked.
fn sends_in_an_outage(requests: u64, budget: f64) -> u64 {
    let mut settings = settings(1);
    settings.retry.budget = budget;
    settings.uplinks[0].breaker.failures = u32::MAX;
    let mut bench = Bench::up(settings);
    let mut sends = 0;
    for ask in 0..requests {
        let mut effects = bench.tell(Event::Asked(ask));
        while let Some(Route::Uplink { attempt, .. }) = answer(&effects, ask) {
            sends += 1;
            effects = bench.end(attempt, Outcome::Transient(Fault::ServerError), true);
            if answer(&effects, ask).is_none() {
                effects = bench.advance(2_000);
            }
        }
    }
    sends
}

#[test]
fn an_outage_of_503s_is_not_multiplied() {
    const REQUESTS: u64 = 10_000;
    let most = |budget: f64| REQUESTS as f64 * (1.0 + budget) + RETRY_BURST;
    let sends = sends_in_an_outage(REQUESTS, 0.2) as f64;
    assert!(sends <= most(0.2) && sends > most(0.2) - 2.0 * RETRY_BURST, "{sends}");
    assert_eq!(sends_in_an_outage(100, 0.0), 100);
    assert!(sends_in_an_outage(REQUESTS, 0.5) as f64 > most(0.2), "a larger budget would be seen");
}

#[test]
fn a_backlog_meets_an_outage_of_503s_at_the_breakers_pace() {
    let mut bench = Bench::up(settings(1));
    let mut sends = 0;
    let mut waiting: Vec<u64> = (0..10_000).collect();
    let mut effects = bench.tell(Event::Ready(10_000));
    let end_ms = bench.now_ms + 3_600_000;
    while bench.now_ms < end_ms {
        let mut then = Vec::new();
        for effect in std::mem::take(&mut effects) {
            match effect {
                Effect::Lease { max, .. } => {
                    let items = waiting.drain(..waiting.len().min(max as usize)).map(item).collect();
                    then.extend(bench.tell(Event::Leased(items)));
                }
                Effect::Send { attempt, .. } => {
                    sends += 1;
                    then.extend(bench.end(attempt, Outcome::Transient(Fault::ServerError), false));
                }
                Effect::Settle { seq, verdict: Verdict::Requeue { deferred: false, .. }, .. } => waiting.push(seq),
                Effect::Release(seqs) => waiting.extend(seqs),
                Effect::Settle { verdict: Verdict::Dead(why), .. } => panic!("an outage kills nobody: {why}"),
                _ => {}
            }
        }
        then.extend(bench.tell(Event::Ready(waiting.len() as u64)));
        if then.iter().all(|effect| matches!(effect, Effect::Probe(..) | Effect::Notice(_))) {
            then.extend(bench.advance(1_000));
        }
        effects = then;
    }
    // Three failures open it, then one request for each passed trial.
    assert!((10..=3 + 3_600 / 30).contains(&sends), "{sends} sends in an hour");
}
