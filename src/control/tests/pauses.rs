//! Shut routes: a bad key, a spent quota, an unknown model, and how they are left.

use super::super::event::{Block, Notice};
use super::super::resend::ALLOWANCE;
use super::world::{Mode, World};
use super::*;

const DAY_MS: u64 = 24 * 3_600_000;
const MINUTE_MS: u64 = 60_000;

/// Sends one request of this model, which must leave at once, and reports its end.
fn one(bench: &mut Bench, seq: u64, model: &str, outcome: Outcome) -> Vec<Effect> {
    let effects = bench.lease(vec![of_model(seq, model)]);
    let sent = sends(&effects);
    assert_eq!(sent.len(), 1, "{effects:?}");
    bench.end(sent[0].0, outcome, false)
}

fn of_model(seq: u64, model: &str) -> Item {
    Item { model: model.to_owned(), ..item(seq) }
}

fn paused(effects: &[Effect]) -> usize {
    count(effects, |e| matches!(e, Effect::Notice(Notice::RoutePaused { .. })))
}

#[test]
fn ten_thousand_requests_survive_a_day_of_a_bad_key() {
    let mut world = World::new(settings(1), 1).faultless();
    for _ in 0..10_000 {
        world.store("m");
    }
    world.set_mode(0, Mode::BadKey);
    world.run_until(DAY_MS);
    let (sent, dead) = (world.sends(), world.dead());
    assert_eq!((dead, world.waiting()), (0, 10_000));
    assert!((10..=60).contains(&sent), "{sent} sends");

    world.set_mode(0, Mode::Good);
    world.run_until(DAY_MS + 31 * MINUTE_MS + 2 * 3_600_000);
    assert_eq!((world.dead(), world.waiting()), (0, 0));
    assert_eq!(world.sends(), sent + 10_000);
}

/// The same where probes are refused too: after the first refusal no request is spent at all.
#[test]
fn where_probes_tell_of_the_key_they_are_the_trials() {
    let mut world = World::new(settings(1), 1).faultless();
    for _ in 0..10_000 {
        world.store("m");
    }
    world.set_mode(0, Mode::BadKeySeen);
    world.run_until(DAY_MS);
    let (sent, probes) = (world.sends(), world.probes());
    assert_eq!((world.dead(), world.waiting()), (0, 10_000));
    assert!(sent <= 1 && sent + probes <= 60, "{sent} sends, {probes} probes");

    world.set_mode(0, Mode::Good);
    world.run_until(DAY_MS + 31 * MINUTE_MS + 2 * 3_600_000);
    assert_eq!((world.dead(), world.waiting()), (0, 0));
}

#[test]
fn an_unknown_model_leaves_the_others_flowing() {
    let mut world = World::new(settings(1), 2).faultless();
    world.set_mode(0, Mode::BadModel("old"));
    for _ in 0..500 {
        world.store("old");
        world.store("new");
    }
    world.run_until(600_000);
    assert_eq!((world.dead(), world.waiting()), (0, 500));
    world.set_mode(0, Mode::Good);
    world.run_until(600_000 + 31 * MINUTE_MS);
    assert_eq!((world.dead(), world.waiting()), (0, 0));
}

#[test]
fn one_alarm_for_many_requests_in_flight() {
    let mut bench = Bench::up(settings(1));
    for seq in 1..=3 {
        one(&mut bench, seq, "m", Outcome::Delivered);
    }
    let mut running = vec![sends(&bench.lease((4..8).map(item).collect()))[0].0];
    for _ in 0..3 {
        bench.tell(Event::BodyOut(running[running.len() - 1]));
        let sent = sends(&bench.advance(5));
        running.push(sent[0].0);
    }
    let alarms: usize =
        running.into_iter().map(|attempt| paused(&bench.end(attempt, Outcome::Blocked(Block::Key), false))).sum();
    assert_eq!(alarms, 1);
}

/// The trial of a shut key may end with "no such model": the key's pause must not wait for that trial for ever.
#[test]
fn a_trial_that_shuts_another_route_is_over_for_the_first() {
    for (first, second) in [(Block::Key, Block::Configuration), (Block::Configuration, Block::Key)] {
        let mut bench = Bench::up(settings(1));
        one(&mut bench, 1, "a", Outcome::Blocked(first));
        bench.advance(MINUTE_MS);
        one(&mut bench, 1, "a", Outcome::Blocked(second));
        bench.advance(MINUTE_MS);
        let model = if second == Block::Configuration { "b" } else { "a" };
        one(&mut bench, 2, model, Outcome::Delivered);
        bench.advance(30 * MINUTE_MS);
        let effects = one(&mut bench, 1, "a", Outcome::Delivered);
        assert_eq!(verdicts(&effects), [(1, Verdict::Answered)], "{first:?} then {second:?}");
        assert_eq!(bench.control.view().uplinks[0].paused, None);
    }
}

#[test]
fn a_trial_that_decides_nothing_is_made_again() {
    let mut bench = Bench::up(settings(1));
    one(&mut bench, 1, "m", Outcome::Blocked(Block::Quota));
    assert_eq!(bench.tell(Event::Ready(1)), []);
    bench.tell(Event::Ready(0));
    bench.advance(MINUTE_MS);
    one(&mut bench, 1, "m", Outcome::GivenUp);
    one(&mut bench, 1, "m", Outcome::Delivered);
}

#[test]
fn a_shut_models_requests_stay_in_the_queue_until_its_trial() {
    let mut bench = Bench::up(settings(1));
    one(&mut bench, 1, "old", Outcome::Blocked(Block::Configuration));
    let asked = bench.tell(Event::Ready(5));
    let except = vec!["old".to_owned()];
    assert!(asked.contains(&Effect::Lease { max: 1, except, labelled: None }), "{asked:?}");
    bench.tell(Event::Leased(Vec::new()));
    // What waits is all of that model: only more of it is worth another look soon.
    assert_eq!(count(&bench.tell(Event::Ready(5)), |e| matches!(e, Effect::Lease { .. })), 0);
    assert_eq!(count(&bench.advance(9_999), |e| matches!(e, Effect::Lease { .. })), 0);
    assert_eq!(count(&bench.tell(Event::Ready(6)), |e| matches!(e, Effect::Lease { .. })), 1);
    bench.tell(Event::Leased(Vec::new()));
    bench.tell(Event::Ready(6));
    let effects = bench.tell(Event::DrainNow);
    assert_eq!(count(&effects, |e| leases(e, 1)), 1, "told to drain, its trial is due: {effects:?}");
    let effects = bench.tell(Event::Leased(vec![of_model(1, "old")]));
    bench.end(sends(&effects)[0].0, Outcome::Delivered, false);
    assert_eq!(bench.control.view().uplinks[0].paused, None);
}

/// A list of files says nothing of the quota that answers are paid from.
#[test]
fn what_is_passed_through_opens_no_pause_and_earns_no_second_send() {
    let mut bench = Bench::up(settings(1));
    let labelled = |seq| Item { maybe_billed: true, ..item(seq) };
    for seq in 0..u64::from(ALLOWANCE) {
        let effects = bench.lease(vec![labelled(seq)]);
        bench.end(sends(&effects)[0].0, Outcome::Delivered, false);
    }
    one(&mut bench, 50, "m", Outcome::Blocked(Block::Quota));
    for ask in 0..100 {
        let effects = bench.tell(Event::AskedAside(ask));
        let Some(Route::Uplink { attempt, .. }) = answer(&effects, ask) else { panic!("{effects:?}") };
        bench.end(attempt, Outcome::Delivered, false);
    }
    assert_eq!(bench.control.view().uplinks[0].paused.map(|(block, _)| block), Some(Block::Quota));
    let attempt = bench.ask_for(200, 0);
    bench.end(attempt, Outcome::Delivered, false);
    assert_eq!(bench.control.view().uplinks[0].paused, None, "a question that was answered tells");
    assert_eq!(verdicts(&bench.lease(vec![labelled(60)])).len(), 1, "what cost nothing earns nothing");
}

/// Some services answer downloads with a redirect.
#[test]
fn what_is_passed_through_shuts_nobody_out() {
    let mut bench = Bench::up(settings(1));
    for ask in 0..5 {
        let effects = bench.tell(Event::AskedAside(ask));
        let Some(Route::Uplink { attempt, .. }) = answer(&effects, ask) else { panic!("{effects:?}") };
        bench.end(attempt, Outcome::Unreachable(Fault::Redirect), false);
        bench.advance(40_000);
    }
    assert_eq!(bench.control.view().uplinks[0].paused, None);
}

/// Probes are refused, but nobody has asked yet: a request is the trial, and after it the probes are.
#[test]
fn a_mended_key_is_found_as_soon_as_the_next_trial_is_due() {
    let refused = Probes::Are(Check::Passed { latency_ms: 10, key_refused: true });
    for asked in [false, true] {
        let mut bench = Bench::up(settings(1));
        bench.probes[0] = refused;
        bench.advance(2 * MINUTE_MS);
        assert_eq!(bench.control.view().uplinks[0].paused.map(|(block, _)| block), Some(Block::Key));
        if asked {
            one(&mut bench, 1, "m", Outcome::Blocked(Block::Key));
        }
        bench.probes[0] = Probes::Are(PASSED);
        bench.advance(2 * MINUTE_MS + 1);
        assert_eq!(bench.control.view().uplinks[0].paused, None, "asked: {asked}");
    }
}

#[test]
fn a_key_that_stays_refused_is_asked_about_ever_more_rarely() {
    let mut bench = Bench::up(settings(1));
    bench.probes[0] = Probes::Are(Check::Passed { latency_ms: 10, key_refused: true });
    bench.advance(10_000);
    let before = bench.probed;
    bench.advance(DAY_MS);
    assert!((10..=60).contains(&(bench.probed - before)), "{} probes in a day", bench.probed - before);
}

#[test]
fn an_open_uplink_is_used_before_a_shut_one_is_tried() {
    let mut bench = Bench::up(settings(2));
    one(&mut bench, 1, "m", Outcome::Blocked(Block::Key));
    for seq in 2..5 {
        let (attempt, _, uplink) = sends(&bench.lease(vec![item(seq)]))[0];
        assert_eq!(uplink, 1);
        bench.end(attempt, Outcome::Delivered, false);
    }
}
