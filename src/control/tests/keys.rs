//! Several keys of one uplink: who is asked next, what is remembered, what it costs.

use super::super::event::Block;
use super::*;

/// One uplink with so many keys, and one without a key behind it.
fn keyed(keys: usize) -> Settings {
    let mut settings = settings(2);
    settings.uplinks[0].keys = vec![KeySettings { max_in_flight: u32::MAX }; keys];
    settings
}

fn way(route: Option<Route>) -> (AttemptId, UplinkIndex, KeyIndex) {
    let Some(Route::Uplink { attempt, uplink, key }) = route else { panic!("{route:?}") };
    (attempt, uplink, key)
}

/// Each send as uplink and key, with its attempt.
fn ways(effects: &[Effect]) -> Vec<(AttemptId, UplinkIndex, KeyIndex)> {
    let one = |effect: &Effect| match effect {
        Effect::Send { attempt, uplink, key, .. } => Some((*attempt, *uplink, *key)),
        _ => None,
    };
    effects.iter().filter_map(one).collect()
}

const LIMITED: Outcome = Outcome::RateLimited { retry_after_ms: Some(5_000) };
const REFUSALS: [Outcome; 4] =
    [Outcome::Blocked(Block::Key), Outcome::Blocked(Block::Quota), Outcome::Blocked(Block::Configuration), LIMITED];

#[test]
fn a_caller_gets_the_next_key_and_then_the_next_uplink() {
    for outcome in REFUSALS {
        let mut bench = Bench::up(keyed(3));
        let mut route = bench.ask(1);
        for key in 0..3 {
            let (attempt, uplink, with) = way(route);
            assert_eq!((uplink, with), (0, key), "{outcome:?}");
            let effects = bench.end(attempt, outcome, true);
            route = answer(&effects, 1);
        }
        let (attempt, uplink, _) = way(route);
        assert_eq!(uplink, 1, "{outcome:?}");
        let effects = bench.end(attempt, outcome, true);
        assert_eq!(answer(&effects, 1), Some(Route::LastAnswer), "{outcome:?}");
    }
}

#[test]
fn a_refused_key_costs_no_retry_and_is_known_from_then_on() {
    let mut settings = keyed(2);
    settings.retry = RetrySettings { attempts: 1, base_ms: 500, max_ms: 60_000, budget: 0.0 };
    let mut bench = Bench::up(settings);
    let (attempt, ..) = way(bench.ask(1));
    let effects = bench.end(attempt, Outcome::Blocked(Block::Key), true);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Notice(Notice::KeyPaused { key: 0, left: 1, .. }))), 1);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Notice(Notice::RoutePaused { .. }))), 0);
    let kept = effects.iter().find_map(|e| if let Effect::Keep(shut) = e { Some(shut.clone()) } else { None });
    assert_eq!(kept.unwrap()[0].key, Some(0));
    let (second, uplink, key) = way(answer(&effects, 1));
    assert_eq!((uplink, key), (0, 1));
    bench.end(second, Outcome::Delivered, false);
    for ask in 2..50 {
        let (attempt, uplink, key) = way(bench.ask(ask));
        assert_eq!((uplink, key), (0, 1));
        bench.end(attempt, Outcome::Delivered, false);
    }
}

#[test]
fn a_shut_key_is_tried_at_the_pauses_pace_while_another_serves() {
    let mut bench = Bench::up(keyed(2));
    let mut trials = 0;
    // One caller a second for three hours.
    for ask in 0..10_800 {
        let mut route = bench.ask(ask);
        loop {
            let (attempt, uplink, key) = way(route);
            assert_eq!(uplink, 0);
            trials += u32::from(key == 0);
            let outcome = if key == 0 { Outcome::Blocked(Block::Key) } else { Outcome::Delivered };
            let effects = bench.end(attempt, outcome, key == 0);
            if key == 1 {
                break;
            }
            route = answer(&effects, ask);
        }
        bench.advance(1_000);
    }
    // At once, then after 1, 2, 5, 15, 30, 30 … minutes.
    assert_eq!(trials, 1 + 4 + (180 - 23) / 30);
    assert_eq!(bench.control.view().uplinks[0].paused, None);
    assert!(bench.control.view().uplinks[0].keys[0].paused.is_some());
}

#[test]
fn a_trial_that_succeeds_opens_the_key() {
    let mut bench = Bench::up(keyed(2));
    let (attempt, ..) = way(bench.ask(1));
    let effects = bench.end(attempt, Outcome::Blocked(Block::Key), true);
    bench.end(way(answer(&effects, 1)).0, Outcome::Delivered, false);
    bench.advance(60_000);
    let (attempt, _, key) = way(bench.ask(2));
    assert_eq!(key, 0, "the trial");
    assert_eq!(way(bench.ask(3)).2, 1, "one trial at a time");
    let effects = bench.end(attempt, Outcome::Delivered, false);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Notice(Notice::KeyResumed { key: 0, .. }))), 1);
    assert_eq!(way(bench.ask(4)).2, 0);
}

#[test]
fn money_refused_once_shuts_no_key_for_all_callers() {
    let mut bench = Bench::up(keyed(2));
    for ask in 0..3 {
        let (attempt, _, key) = way(bench.ask(ask));
        assert_eq!(key, 0);
        let effects = bench.end(attempt, Outcome::Blocked(Block::Quota), true);
        bench.end(way(answer(&effects, ask)).0, Outcome::Delivered, false);
    }
    assert_eq!(way(bench.ask(4)).2, 1);
}

#[test]
fn a_stored_request_goes_out_with_the_next_key_and_loses_no_attempt() {
    for outcome in REFUSALS {
        let mut bench = Bench::up(keyed(2));
        let effects = bench.lease(vec![item(7)]);
        let [(attempt, 0, 0)] = ways(&effects)[..] else { panic!("{effects:?}") };
        let effects = bench.end(attempt, outcome, false);
        let given_back = Verdict::Requeue { counted: false, deferred: false, maybe_billed: false };
        assert_eq!(verdicts(&effects), [(7, given_back)], "{outcome:?}");
        // It is in the queue again, and nothing slows the drain down.
        let mut effects = bench.tell(Event::Ready(1));
        effects.extend(bench.advance(10));
        assert_eq!(count(&effects, |e| matches!(e, Effect::Lease { .. })), 1, "{outcome:?}: {effects:?}");
        let effects = bench.tell(Event::Leased(vec![item(7)]));
        let [(attempt, 0, 1)] = ways(&effects)[..] else { panic!("{outcome:?}: {effects:?}") };
        let effects = bench.end(attempt, Outcome::Delivered, false);
        assert_eq!(verdicts(&effects), [(7, Verdict::Answered)]);
    }
}

#[test]
fn with_its_last_key_the_uplink_is_shut_and_one_request_tries() {
    let mut settings = keyed(2);
    settings.uplinks.truncate(1);
    let mut bench = Bench::up(settings);
    for key in 0..2 {
        let effects = bench.lease(vec![item(1)]);
        let [(attempt, 0, with)] = ways(&effects)[..] else { panic!("{effects:?}") };
        assert_eq!(with, key);
        bench.end(attempt, Outcome::Blocked(Block::Quota), false);
    }
    let paused = bench.control.view().uplinks[0].paused;
    assert!(matches!(paused, Some((Block::Quota, _))), "{paused:?}");
    let effects = bench.tell(Event::Ready(5));
    assert_eq!(count(&effects, |e| matches!(e, Effect::Lease { .. })), 0);
    let effects = bench.advance(60_000);
    assert!(effects.iter().any(|e| leases(e, 1)), "{effects:?}");
    let effects = bench.tell(Event::Leased(vec![item(1)]));
    assert_eq!(ways(&effects).len(), 1);
}

#[test]
fn keys_have_bounds_of_their_own() {
    let mut settings = keyed(2);
    settings.uplinks.truncate(1);
    settings.uplinks[0].keys = vec![KeySettings { max_in_flight: 1 }, KeySettings { max_in_flight: 2 }];
    let mut bench = Bench::up(settings);
    let taken: Vec<_> = (0..3).map(|ask| way(bench.ask(ask))).collect();
    assert_eq!(taken.iter().map(|way| way.2).collect::<Vec<_>>(), [0, 1, 1]);
    assert_eq!(bench.ask(3), None, "all are full");
    let effects = bench.end(taken[1].0, Outcome::Delivered, false);
    assert_eq!(way(answer(&effects, 3)).2, 1);
}

#[test]
fn who_waits_for_a_full_key_does_not_wait_for_one_that_was_shut_meanwhile() {
    let mut settings = keyed(2);
    settings.uplinks.truncate(1);
    settings.uplinks[0].keys = vec![KeySettings { max_in_flight: 1 }; 2];
    let mut bench = Bench::up(settings);
    let (first, second) = (way(bench.ask(1)), way(bench.ask(2)));
    assert_eq!((first.2, second.2), (0, 1));
    let effects = bench.end(first.0, LIMITED, true);
    assert_eq!(answer(&effects, 1), None, "the other key is full");
    let effects = bench.end(second.0, Outcome::Blocked(Block::Key), true);
    assert_eq!(answer(&effects, 1), Some(Route::LastAnswer));
    assert_eq!(answer(&effects, 2), Some(Route::LastAnswer), "the first key rests");
}

#[test]
fn probes_leave_a_refused_key_alone() {
    let mut bench = Bench::up(keyed(2));
    bench.probes[0] = Probes::Silent;
    let effects = bench.advance(10_000);
    assert!(effects.contains(&Effect::Probe(0, 0)));
    bench.tell(Event::Probed(0, 0, Check::Passed { latency_ms: 10, key_refused: true }));
    let effects = bench.advance(30_000);
    assert!(effects.contains(&Effect::Probe(0, 1)) && !effects.contains(&Effect::Probe(0, 0)), "{effects:?}");
}
