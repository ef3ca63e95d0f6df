//! Live requests: which uplink, how long a caller waits, what a failed attempt turns into.

use super::super::breaker::BreakerState;
use super::super::event::{Block, Notice, Reason};
use super::*;

const RESET: Outcome = Outcome::Unknown(Fault::Reset);
const BUSY: Outcome = Outcome::Transient(Fault::ServerError);
const REFUSED: Outcome = Outcome::Unreachable(Fault::Connect);

fn offline(reason: Reason) -> Route {
    Route::Offline { reason, maybe_billed: false }
}

#[test]
fn the_first_check_decides_for_those_who_came_before_it() {
    let mut bench = Bench::new(settings(1));
    assert_eq!(bench.ask(1), None);
    let effects = bench.probed(0, PASSED);
    assert!(matches!(answer(&effects, 1), Some(Route::Uplink { uplink: 0, .. })));

    let mut bench = Bench::new(settings(1));
    assert_eq!(bench.ask(1), None);
    let effects = bench.probed(0, NO_CONNECTION);
    assert_eq!(answer(&effects, 1), Some(offline(Reason::Unhealthy)));
}

#[test]
fn without_any_uplink_the_answer_is_immediate() {
    let mut bench = Bench::new(settings(0));
    assert_eq!(bench.ask(1), Some(offline(Reason::NoUplink)));
    assert_eq!(bench.control.deadline_ms(), None);
}

#[test]
fn a_failed_connection_is_checked_once_and_nobody_waits_again() {
    let mut bench = Bench::up(settings(1));
    let attempt = bench.ask_for(1, 0);
    bench.probes[0] = Probes::Silent;
    let before = bench.probed;
    assert_eq!(answer(&bench.end(attempt, REFUSED, true), 1), None);
    assert_eq!(bench.ask(2), None, "the check under way decides for the second too");
    assert_eq!(bench.probed - before, 1);
    let effects = bench.probed(0, NO_CONNECTION);
    assert_eq!(answer(&effects, 1), Some(offline(Reason::Unhealthy)));
    assert_eq!(answer(&effects, 2), Some(offline(Reason::Unhealthy)));
    assert_eq!(count(&effects, |e| *e == Effect::Reset(0)), 1);
    for ask in 3..100 {
        bench.advance(1_000);
        assert_eq!(bench.ask(ask), Some(offline(Reason::Unhealthy)));
    }
}

#[test]
fn a_silent_uplink_is_found_out_and_its_callers_are_taken_back() {
    let mut bench = Bench::up(settings(1));
    let (waiting, answering) = (bench.ask_for(1, 0), bench.ask_for(2, 0));
    bench.tell(Event::Answering(answering));
    bench.probes[0] = Probes::Silent;
    let effects = bench.advance(2_000 + 3 * 1_250 + 2 * 500);
    assert_eq!(count(&effects, |e| *e == Effect::Abandon(waiting)), 1);
    assert_eq!(count(&effects, |e| *e == Effect::Abandon(answering)), 0);
    let effects = bench.end(waiting, Outcome::Unknown(Fault::Outage), true);
    assert_eq!(answer(&effects, 1), Some(Route::Offline { reason: Reason::Unhealthy, maybe_billed: true }));
}

#[test]
fn attempts_taken_back_start_no_storm_of_probes() {
    let mut bench = Bench::up(settings(1));
    let attempts: Vec<_> = (0..8).map(|ask| bench.ask_for(ask, 0)).collect();
    bench.probes[0] = Probes::Are(NO_CONNECTION);
    bench.tell(Event::NetworkChanged);
    let before = bench.probed;
    for attempt in attempts {
        bench.end(attempt, Outcome::Unknown(Fault::Outage), true);
    }
    for _ in 0..100 {
        bench.tell(Event::NetworkChanged);
    }
    assert!(bench.probed - before <= 1, "{} probes at one instant", bench.probed - before);
}

#[test]
fn a_returning_network_is_checked_soon() {
    let mut bench = Bench::up(settings(1));
    bench.probes[0] = Probes::Are(NO_CONNECTION);
    bench.tell(Event::NetworkChanged);
    assert!(!bench.control.is_available());
    bench.probes[0] = Probes::Are(PASSED);
    bench.tell(Event::NetworkChanged);
    bench.advance(500);
    assert!(bench.control.is_available());
}

#[test]
fn a_portal_is_an_outage() {
    let mut bench = Bench::up(settings(1));
    let attempt = bench.ask_for(1, 0);
    bench.probes[0] = Probes::Are(Check::Failed(Fault::Portal));
    let effects = bench.end(attempt, Outcome::Unreachable(Fault::Portal), true);
    assert_eq!(answer(&effects, 1), Some(offline(Reason::Unhealthy)));
}

#[test]
fn failing_posts_open_the_breaker_although_probes_pass() {
    let mut bench = Bench::up(settings(1));
    let mut attempt = bench.ask_for(1, 0);
    for _ in 0..2 {
        assert_eq!(answer(&bench.end(attempt, BUSY, true), 1), None, "a back-off comes first");
        let effects = bench.advance(1_000);
        let Some(Route::Uplink { attempt: again, .. }) = answer(&effects, 1) else { panic!("{effects:?}") };
        attempt = again;
    }
    let effects = bench.end(attempt, BUSY, true);
    assert_eq!(answer(&effects, 1), Some(offline(Reason::BreakerOpen)));
    assert_eq!(bench.ask(2), Some(offline(Reason::BreakerOpen)));

    let effects = bench.advance(32_000);
    assert_eq!(count(&effects, |e| is_breaker(e, BreakerState::HalfOpen)), 1);
    assert_eq!(count(&effects, |e| is_breaker(e, BreakerState::Closed)), 1);
    let attempt = bench.ask_for(3, 0);
    let effects = bench.end(attempt, BUSY, true);
    assert_eq!(answer(&effects, 3), Some(offline(Reason::BreakerOpen)), "on probation one failure is enough");
}

fn is_breaker(effect: &Effect, wanted: BreakerState) -> bool {
    matches!(effect, Effect::Notice(Notice::Breaker { state, .. }) if *state == wanted)
}

#[test]
fn a_late_success_closes_the_breaker_and_says_so() {
    let mut bench = Bench::up(settings(1));
    let attempts: Vec<_> = (0..4).map(|ask| bench.ask_for(ask, 0)).collect();
    for attempt in &attempts[..3] {
        bench.end(*attempt, BUSY, false);
    }
    assert!(!bench.control.is_available());
    let effects = bench.end(attempts[3], Outcome::Delivered, false);
    assert!(bench.control.is_available());
    assert_eq!(count(&effects, |e| is_breaker(e, BreakerState::Closed)), 1);
}

#[test]
fn retries_stop_when_the_budget_is_spent() {
    let mut numbers = settings(1);
    (numbers.retry.budget, numbers.uplinks[0].breaker.failures) = (0.0, 1_000);
    let mut bench = Bench::up(numbers);
    let attempt = bench.ask_for(1, 0);
    let effects = bench.end(attempt, BUSY, true);
    assert_eq!(answer(&effects, 1), Some(offline(Reason::AllTried)));
}

#[test]
fn a_back_off_does_not_outlive_its_uplink() {
    let mut numbers = settings(1);
    (numbers.retry.base_ms, numbers.seed) = (60_000, 3);
    let mut bench = Bench::up(numbers);
    let attempt = bench.ask_for(1, 0);
    assert_eq!(answer(&bench.end(attempt, BUSY, true), 1), None);
    bench.probes[0] = Probes::Are(NO_CONNECTION);
    let effects = bench.tell(Event::NetworkChanged);
    assert_eq!(answer(&effects, 1), Some(offline(Reason::Unhealthy)));
}

#[test]
fn sent_without_an_answer_is_offline_or_unsure() {
    for (check, wanted) in
        [(PASSED, Route::Unsure), (NO_CONNECTION, Route::Offline { reason: Reason::Unhealthy, maybe_billed: true })]
    {
        let mut bench = Bench::up(settings(1));
        let attempt = bench.ask_for(1, 0);
        bench.probes[0] = Probes::Silent;
        assert_eq!(answer(&bench.end(attempt, RESET, true), 1), None);
        let effects = bench.probed(0, check);
        assert_eq!(answer(&effects, 1), Some(wanted));
    }
}

#[test]
fn nothing_is_paid_for_twice_at_another_uplink() {
    let mut bench = Bench::up(settings(2));
    let attempt = bench.ask_for(1, 0);
    let effects = bench.end(attempt, RESET, true);
    assert_eq!(answer(&effects, 1), Some(Route::Unsure));
    assert_eq!(count(&effects, |e| matches!(e, Effect::Answer(_, Route::Uplink { .. }))), 0);
}

#[test]
fn a_rate_limit_goes_on_to_the_next_uplink_and_then_back_to_the_caller() {
    let limited = Outcome::RateLimited { retry_after_ms: Some(1_000) };
    let mut bench = Bench::up(settings(2));
    let attempt = bench.ask_for(1, 0);
    let effects = bench.end(attempt, limited, true);
    let Some(Route::Uplink { attempt, uplink: 1, .. }) = answer(&effects, 1) else { panic!("{effects:?}") };
    let effects = bench.end(attempt, limited, true);
    assert_eq!(answer(&effects, 1), Some(Route::LastAnswer));
}

#[test]
fn uplinks_are_tried_in_order_of_preference() {
    let mut bench = Bench::up(settings(3));
    let mut attempt = bench.ask_for(1, 0);
    for uplink in [1, 2] {
        let effects = bench.end(attempt, BUSY, true);
        let Some(Route::Uplink { attempt: next, uplink: at, .. }) = answer(&effects, 1) else { panic!("{effects:?}") };
        assert_eq!(at, uplink);
        attempt = next;
    }
    let effects = bench.end(attempt, Outcome::Blocked(super::super::event::Block::Key), true);
    assert_eq!(answer(&effects, 1), Some(offline(Reason::AllTried)));
}

#[test]
fn full_uplinks_are_waited_for_in_order() {
    let mut numbers = settings(1);
    numbers.uplinks[0].max_in_flight = 2;
    let mut bench = Bench::up(numbers);
    let mut running = vec![bench.ask_for(1, 0), bench.ask_for(2, 0)];
    for ask in 3..=6 {
        assert_eq!(bench.ask(ask), None);
    }
    bench.tell(Event::Withdrawn(4));
    for ask in [3, 5, 6] {
        let effects = bench.end(running.remove(0), Outcome::Delivered, false);
        let Some(Route::Uplink { attempt, .. }) = answer(&effects, ask) else { panic!("{ask}: {effects:?}") };
        assert_eq!(count(&effects, |e| matches!(e, Effect::Answer(..))), 1);
        running.push(attempt);
    }
    for attempt in running {
        bench.end(attempt, Outcome::GivenUp, false);
    }
    assert_eq!(bench.control.view().uplinks[0].in_flight, 0);
}

#[test]
fn stopping_answers_everybody_and_starts_nothing() {
    let mut numbers = settings(1);
    numbers.uplinks[0].max_in_flight = 1;
    let mut bench = Bench::up(numbers);
    let attempt = bench.ask_for(1, 0);
    assert_eq!(bench.ask(2), None);
    bench.tell(Event::Ready(9));
    let effects = bench.tell(Event::Stopping);
    assert_eq!(answer(&effects, 2), Some(Route::Stopping));
    assert_eq!(bench.ask(3), Some(Route::Stopping));
    let effects = bench.end(attempt, RESET, true);
    assert_eq!(answer(&effects, 1), Some(Route::Stopping));
    let effects = bench.tell(Event::Leased(vec![item(1)]));
    assert_eq!((sends(&effects).len(), verdicts(&effects).len()), (0, 1));
    let turns = bench.turns;
    let effects = bench.advance(3_600_000);
    assert!(effects.is_empty(), "{effects:?}");
    assert!(bench.turns - turns < 10, "{} turns while stopping", bench.turns - turns);
}

#[test]
fn a_refused_key_is_replaced_by_another_uplink_and_remembered() {
    for block in [Block::Key, Block::Quota] {
        let mut bench = Bench::up(settings(2));
        let refused = if block == Block::Quota { 3 } else { 1 };
        let mut effects = Vec::new();
        for ask in 100..100 + refused {
            assert_eq!(count(&effects, |e| matches!(e, Effect::Notice(Notice::RoutePaused { .. }))), 0);
            let first = bench.ask_for(ask, 0);
            effects = bench.end(first, Outcome::Blocked(block), true);
            assert!(matches!(answer(&effects, ask), Some(Route::Uplink { uplink: 1, .. })), "{block:?}");
        }
        assert_eq!(count(&effects, |e| matches!(e, Effect::Notice(Notice::RoutePaused { uplink: 0, .. }))), 1);
        let next = bench.ask_for(2, 1);
        bench.end(next, Outcome::Delivered, false);
        let both = bench.ask_for(3, 1);
        let effects = bench.end(both, Outcome::Blocked(block), true);
        let Some(Route::Uplink { attempt, uplink: 0, .. }) = answer(&effects, 3) else {
            panic!("{block:?}: {effects:?}")
        };
        assert_eq!(answer(&bench.end(attempt, Outcome::Blocked(block), true), 3), Some(Route::LastAnswer));
    }
}

#[test]
fn a_model_that_one_uplink_does_not_have_is_asked_of_the_next_and_shuts_nothing() {
    let mut bench = Bench::up(settings(2));
    let first = bench.ask_for(1, 0);
    let effects = bench.end(first, Outcome::Blocked(Block::Configuration), true);
    assert!(matches!(answer(&effects, 1), Some(Route::Uplink { uplink: 1, .. })));
    bench.ask_for(2, 0);
}

#[test]
fn with_one_uplink_its_refusal_is_each_callers_answer() {
    let mut bench = Bench::up(settings(1));
    for ask in 1..5 {
        let attempt = bench.ask_for(ask, 0);
        let effects = bench.end(attempt, Outcome::Blocked(Block::Key), true);
        assert_eq!(answer(&effects, ask), Some(Route::LastAnswer));
    }
    let mended = bench.ask_for(9, 0);
    let effects = bench.end(mended, Outcome::Delivered, false);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Notice(Notice::RouteResumed { uplink: 0 }))), 1);
}

#[test]
fn no_try_begins_that_cannot_end_while_its_caller_waits() {
    let mut settings = settings(2);
    settings.uplinks[1].priority = 2;
    // Until 2 s after it asked: the first uplink fails after 1,995 ms, and an answer takes 10 ms.
    for (after_ms, expected) in [(1_900, true), (1_995, false)] {
        let mut bench = Bench::up(settings.clone());
        let until_ms = bench.now_ms + 2_000;
        let effects = bench.tell(Event::AskedUntil(1, until_ms));
        let Some(Route::Uplink { attempt, .. }) = answer(&effects, 1) else { panic!("{effects:?}") };
        bench.advance(after_ms);
        let effects = bench.end(attempt, Outcome::Transient(Fault::ServerError), true);
        let goes_on = matches!(answer(&effects, 1), Some(Route::Uplink { uplink: 1, .. }));
        assert_eq!(goes_on, expected, "{effects:?}");
    }
}

#[test]
fn retry_after_of_a_failure_is_a_floor_and_nobody_waits_longer_than_max() {
    for (wait_ms, is_waited_for) in [(3_000, true), (60_000, true), (60_001, false)] {
        let mut bench = Bench::up(settings(1));
        let Some(Route::Uplink { attempt, .. }) = bench.ask(1) else { panic!("it is up") };
        let effects = bench.end(attempt, Outcome::Later { fault: Fault::ServerError, wait_ms }, true);
        if !is_waited_for {
            assert_eq!(answer(&effects, 1), Some(offline(Reason::AllTried)));
            continue;
        }
        assert_eq!(answer(&effects, 1), None, "{effects:?}");
        assert_eq!(answer(&bench.advance(wait_ms - 1), 1), None, "not before {wait_ms} ms");
        assert!(matches!(answer(&bench.advance(1), 1), Some(Route::Uplink { .. })), "{wait_ms}");
    }
}

#[test]
fn a_back_off_that_ends_too_late_is_not_begun() {
    let mut settings = settings(1);
    settings.retry.base_ms = 10_000;
    let mut told = 0;
    for seed in 0..50 {
        settings.seed = seed;
        let mut bench = Bench::up(settings.clone());
        let until_ms = bench.now_ms + 3_000;
        let effects = bench.tell(Event::AskedUntil(1, until_ms));
        let Some(Route::Uplink { attempt, .. }) = answer(&effects, 1) else { panic!("{effects:?}") };
        let effects = bench.end(attempt, Outcome::Transient(Fault::ServerError), true);
        if let Some(route) = answer(&effects, 1) {
            assert_eq!(route, Route::Offline { reason: Reason::AllTried, maybe_billed: false });
            told += 1;
            continue;
        }
        let effects = bench.advance(3_000);
        assert!(matches!(answer(&effects, 1), Some(Route::Uplink { .. })), "{effects:?}");
    }
    // A wait of up to 10 s is longer than 3 s in seven of ten cases.
    assert!((25..=45).contains(&told), "{told}");
}
