//! No busy loops: what control asks for, and how often it wants to be woken, while nothing can be done.

use super::*;

const HOUR_MS: u64 = 3_600_000;
/// A probe every two seconds is two turns: its start and its end.
const TURNS_PER_HOUR: u64 = 2 * 1_800 + 100;

fn turns_in_an_hour(bench: &mut Bench) -> u64 {
    let before = bench.turns;
    bench.advance(HOUR_MS);
    bench.turns - before
}

#[test]
fn an_idle_gateway_turns_for_its_probes_alone() {
    let mut bench = Bench::up(settings(1));
    let turns = turns_in_an_hour(&mut bench);
    assert!(turns <= TURNS_PER_HOUR, "{turns}");
}

#[test]
fn work_that_may_not_leave_wakes_nobody() {
    let mut paused = Bench::up(settings(1));
    paused.tell(Event::Paused(true));
    paused.tell(Event::Ready(9));
    let turns = turns_in_an_hour(&mut paused);
    assert!(turns <= TURNS_PER_HOUR, "paused: {turns}");

    let mut busy = Bench::up(settings(1));
    busy.lease(vec![item(1), item(2)]);
    busy.tell(Event::Ready(9));
    let turns = turns_in_an_hour(&mut busy);
    assert!(turns <= TURNS_PER_HOUR, "an upload that takes an hour: {turns}");
}

#[test]
fn a_trial_that_nobody_makes_wakes_nobody() {
    let mut bench = Bench::up(settings(1));
    let (attempt, ..) = sends(&bench.lease(vec![item(1)]))[0];
    bench.end(attempt, Outcome::Blocked(super::super::event::Block::Configuration), false);
    let effects = bench.lease(vec![item(2)]);
    assert_eq!(sends(&effects), []);
    bench.tell(Event::Paused(true));
    bench.tell(Event::Ready(9));
    let turns = turns_in_an_hour(&mut bench);
    assert!(turns <= TURNS_PER_HOUR, "{turns}");
}

#[test]
fn an_open_breaker_turns_for_its_trials_alone() {
    let mut bench = Bench::up(settings(1));
    for ask in 0..3 {
        let attempt = bench.ask_for(ask, 0);
        bench.end(attempt, Outcome::Transient(Fault::ServerError), false);
    }
    bench.probes[0] = Probes::Silent;
    let turns = turns_in_an_hour(&mut bench);
    assert!(turns <= TURNS_PER_HOUR + 300, "{turns}");
}

/// A count that promises what the spool does not have must not turn into a loop through the disk.
#[test]
fn a_spool_that_hands_out_nothing_is_asked_once_a_second() {
    let mut bench = Bench::up(settings(1));
    let (end_ms, mut leases) = (bench.now_ms + 60_000, 0);
    let mut effects = bench.tell(Event::Ready(3));
    while bench.now_ms < end_ms {
        if effects.iter().any(|e| matches!(e, Effect::Lease { .. })) {
            leases += 1;
            effects = bench.tell(Event::Ready(3));
            effects.extend(bench.tell(Event::Leased(Vec::new())));
        } else {
            effects = bench.advance(10);
        }
    }
    assert!((10..=70).contains(&leases), "{leases} leases in a minute");
}

#[test]
fn work_that_arrives_while_an_empty_lease_is_under_way_is_not_forgotten() {
    let mut bench = Bench::up(settings(1));
    assert_eq!(count(&bench.tell(Event::Ready(1)), |e| matches!(e, Effect::Lease { .. })), 1);
    bench.tell(Event::Ready(1));
    let effects = bench.tell(Event::Leased(Vec::new()));
    assert_eq!(count(&effects, |e| matches!(e, Effect::Lease { .. })), 1);
}

#[test]
fn a_spool_that_fails_is_asked_again_later() {
    let mut bench = Bench::up(settings(1));
    bench.tell(Event::Ready(1));
    assert_eq!(count(&bench.tell(Event::LeaseFailed), |e| matches!(e, Effect::Lease { .. })), 0);
    assert_eq!(count(&bench.advance(999), |e| matches!(e, Effect::Lease { .. })), 0);
    assert_eq!(count(&bench.advance(1), |e| matches!(e, Effect::Lease { .. })), 1);
}
