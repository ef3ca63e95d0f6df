//! The backlog: when it starts, in which order it leaves, how fast, and what each end makes of a request.

use super::super::event::{Block, Notice};
use super::*;

const GIVEN_BACK: Verdict = Verdict::Requeue { counted: false, deferred: false, maybe_billed: false };
const COUNTED: Verdict = Verdict::Requeue { counted: true, deferred: true, maybe_billed: false };

/// Sends one request and reports its end.
fn one(bench: &mut Bench, item: Item, outcome: Outcome) -> Verdict {
    let seq = item.seq;
    let effects = bench.lease(vec![item]);
    let sent = sends(&effects);
    assert_eq!(sent.len(), 1, "{effects:?}");
    let effects = bench.end(sent[0].0, outcome, false);
    let found = verdicts(&effects);
    assert_eq!((found.len(), found[0].0), (1, seq));
    found[0].1
}

#[test]
fn it_starts_after_the_jitter_and_never_before() {
    let mut bench = Bench::new(settings(1));
    bench.probes.fill(Probes::Are(PASSED));
    let effects = bench.tell(Event::Ready(5));
    assert_eq!(count(&effects, |e| *e == Effect::Notice(Notice::DrainScheduled { delay_ms: JITTER_MS })), 1);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Lease { .. })), 0);
    let effects = bench.advance(JITTER_MS - 1);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Lease { .. })), 0);
    let effects = bench.advance(1);
    assert_eq!(count(&effects, |e| leases(e, 1)), 1);
}

#[test]
fn drain_now_waits_for_no_jitter() {
    let mut bench = Bench::new(settings(1));
    bench.probes.fill(Probes::Are(PASSED));
    bench.tell(Event::Ready(5));
    assert_eq!(count(&bench.tell(Event::DrainNow), |e| leases(e, 1)), 1);
}

#[test]
fn the_next_one_leaves_when_the_body_before_it_is_out() {
    let mut bench = Bench::up(settings(1));
    for seq in 1..=3 {
        one(&mut bench, item(seq), Outcome::Delivered);
    }
    let first = sends(&bench.lease(vec![item(4), item(5), item(6)]));
    assert_eq!(first.len(), 1);
    assert_eq!(sends(&bench.tell(Event::BodyOut(99))), []);
    assert_eq!(sends(&bench.tell(Event::BodyOut(first[0].0))), [], "a moment keeps them in order on two connections");
    let second = sends(&bench.advance(5));
    assert_eq!((second.len(), second[0].1), (1, 5));
    let third = sends(&bench.end(second[0].0, Outcome::GivenUp, false));
    assert_eq!((third.len(), third[0].1), (1, 6), "an end without BodyOut opens the way too");
}

#[test]
fn the_window_grows_with_success_and_halves_when_pushed_back() {
    let mut bench = Bench::up(settings(1));
    for (seq, window) in [(1, 2), (2, 3), (3, 4), (4, 4)] {
        one(&mut bench, item(seq), Outcome::Delivered);
        assert_eq!(bench.control.view().window, window);
    }
    one(&mut bench, item(5), Outcome::Transient(Fault::ServerError));
    assert_eq!(bench.control.view().window, 2);
    assert_eq!(count(&bench.tell(Event::Ready(9)), |e| leases(e, 2)), 1);
}

#[test]
fn retry_after_is_a_floor_even_over_a_short_outage() {
    let mut bench = Bench::up(settings(1));
    let limited = Outcome::RateLimited { retry_after_ms: Some(120_000) };
    assert_eq!(one(&mut bench, item(1), limited), GIVEN_BACK);
    assert_eq!(bench.control.next_attempt_ms(1, "m", bench.now_ms), Some(bench.now_ms + 120_000));
    bench.probes[0] = Probes::Are(NO_CONNECTION);
    bench.tell(Event::NetworkChanged);
    bench.probes[0] = Probes::Are(PASSED);
    bench.tell(Event::Ready(1));
    let effects = bench.advance(119_999);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Lease { .. })), 0);
    let effects = bench.advance(1);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Lease { .. })), 1);
}

#[test]
fn an_uplink_that_asked_for_peace_is_left_alone_and_another_one_drains() {
    const WAIT_MS: u64 = 600_000;
    for outcome in [
        Outcome::Later { fault: Fault::ServerError, wait_ms: WAIT_MS },
        Outcome::RateLimited { retry_after_ms: Some(WAIT_MS) },
    ] {
        let mut bench = Bench::up(settings(2));
        one(&mut bench, item(1), outcome);
        let end_ms = bench.now_ms + WAIT_MS - 1;
        // The one that met it waits for no longer than any other that failed.
        let released = |effects: &[Effect]| effects.contains(&Effect::Release(vec![1]));
        assert!(matches!(outcome, Outcome::RateLimited { .. }) || released(&bench.advance(60_000)), "{outcome:?}");
        for seq in 2..5 {
            let effects = bench.lease(vec![item(seq)]);
            let sent = sends(&effects);
            assert_eq!((sent.len(), sent[0].2), (1, 1), "{outcome:?}: {effects:?}");
            bench.end(sent[0].0, Outcome::Delivered, false);
        }
        bench.advance(end_ms + 1 - bench.now_ms);
        let sent = sends(&bench.lease(vec![item(5)]));
        assert_eq!(sent[0].2, 0, "{outcome:?}: its time is over");
    }
}

#[test]
fn the_only_uplink_is_left_alone_by_the_backlog_whoever_was_told() {
    const WAIT_MS: u64 = 600_000;
    let mut bench = Bench::up(settings(1));
    let live = bench.ask_for(1, 0);
    bench.end(live, Outcome::Later { fault: Fault::ServerError, wait_ms: WAIT_MS }, false);
    let leases = |effects: &[Effect]| count(effects, |e| matches!(e, Effect::Lease { .. }));
    assert_eq!(leases(&bench.tell(Event::Ready(1))), 0);
    assert_eq!(bench.control.next_attempt_ms(1, "m", bench.now_ms), Some(bench.now_ms + WAIT_MS));
    assert_eq!(leases(&bench.advance(WAIT_MS - 1)), 0);
    assert_eq!(leases(&bench.advance(1)), 1);
    // Live requests ask all the same, and an answer ends it; so does the operator.
    let again = bench.ask_for(2, 0);
    bench.end(again, Outcome::Later { fault: Fault::ServerError, wait_ms: WAIT_MS }, false);
    assert_eq!(sends(&bench.tell(Event::Leased(vec![item(1)]))), [], "what was leased before goes back");
    assert_eq!(leases(&bench.tell(Event::Ready(1))), 0);
    assert_eq!(leases(&bench.tell(Event::DrainNow)), 1);
}

#[test]
fn rate_limits_without_retry_after_are_met_ever_more_slowly() {
    let mut bench = Bench::up(settings(1));
    let end_ms = bench.now_ms + 3_600_000;
    let mut sent = 0;
    let mut effects = bench.tell(Event::Ready(1));
    while bench.now_ms < end_ms {
        if effects.iter().any(|e| matches!(e, Effect::Lease { .. })) {
            let (attempt, ..) = sends(&bench.tell(Event::Leased(vec![item(1)])))[0];
            sent += 1;
            bench.end(attempt, Outcome::RateLimited { retry_after_ms: None }, false);
            bench.tell(Event::Ready(1));
        }
        effects = bench.advance(1_000);
    }
    assert!((30..300).contains(&sent), "{sent} sends in an hour");
}

#[test]
fn every_end_has_its_verdict() {
    let dead = |word| Verdict::Dead(word);
    for (outcome, wanted) in [
        (Outcome::Delivered, Verdict::Answered),
        (Outcome::Unreachable(Fault::Dns), GIVEN_BACK),
        (Outcome::Unreachable(Fault::Tls), GIVEN_BACK),
        (Outcome::Unreachable(Fault::Portal), GIVEN_BACK),
        (Outcome::Transient(Fault::Write), COUNTED),
        (Outcome::Transient(Fault::TryAgain), COUNTED),
        (Outcome::RateLimited { retry_after_ms: None }, GIVEN_BACK),
        (Outcome::Blocked(Block::Key), GIVEN_BACK),
        (Outcome::Blocked(Block::Quota), GIVEN_BACK),
        (Outcome::Blocked(Block::Configuration), GIVEN_BACK),
        (Outcome::Blocked(Block::Configuration), GIVEN_BACK),
        (Outcome::Permanent(Fault::Refused), dead("refused")),
        (Outcome::Permanent(Fault::TooLarge), dead("too_large")),
        (Outcome::NoAnswer, dead("no_answer")),
        (Outcome::Misfit, Verdict::Requeue { counted: true, deferred: false, maybe_billed: true }),
        (Outcome::GivenUp, GIVEN_BACK),
        (Outcome::Unknown(Fault::Reset), Verdict::Requeue { counted: true, deferred: false, maybe_billed: true }),
    ] {
        assert_eq!(one(&mut Bench::up(settings(1)), item(1), outcome), wanted, "{outcome:?}");
    }
}

#[test]
fn an_answer_that_does_not_fit_is_asked_for_once_more_without_a_budget() {
    let again = |seq| Item { maybe_billed: true, attempts: 1, ..item(seq) };
    assert_eq!(one(&mut Bench::up(settings(1)), again(1), Outcome::Misfit), Verdict::Dead("misfit"));
    let unknown = Outcome::Unknown(Fault::Timeout);
    assert_eq!(one(&mut Bench::up(settings(1)), again(1), unknown), Verdict::Dead("unknown"));
    // More of them than second sends are free.
    let mut bench = Bench::up(settings(1));
    for seq in 1..20 {
        assert!(matches!(one(&mut bench, item(seq), Outcome::Misfit), Verdict::Requeue { maybe_billed: true, .. }));
        assert_eq!(one(&mut bench, again(seq), Outcome::Misfit), Verdict::Dead("misfit"), "{seq}");
    }
}

#[test]
fn unknown_is_sent_once_more_at_most() {
    let again = Item { maybe_billed: true, attempts: 1, ..item(1) };
    let unknown = Outcome::Unknown(Fault::Timeout);
    assert_eq!(one(&mut Bench::up(settings(1)), again.clone(), unknown), Verdict::Dead("unknown"));
    assert_eq!(one(&mut Bench::up(settings(1)), again, Outcome::Delivered), Verdict::Answered);
    let hold = Settings { hold_unknown: true, ..settings(1) };
    assert_eq!(one(&mut Bench::up(hold), item(1), unknown), Verdict::Dead("unknown"));
}

#[test]
fn the_last_attempt_ends_in_a_dead_letter_and_blocks_nothing() {
    let mut bench = Bench::up(settings(1));
    let last = Item { attempts: 7, ..item(1) };
    let effects = bench.lease(vec![last, item(2)]);
    let (attempt, ..) = sends(&effects)[0];
    let effects = bench.end(attempt, Outcome::Transient(Fault::ServerError), false);
    assert_eq!(verdicts(&effects), [(1, Verdict::Dead("attempts_exhausted"))]);
    assert_eq!(sends(&effects)[0].1, 2);
}

#[test]
fn a_request_set_aside_is_released_in_time() {
    let mut bench = Bench::up(settings(1));
    let began_ms = bench.now_ms;
    one(&mut bench, item(1), Outcome::Transient(Fault::ServerError));
    let next = |bench: &Bench, seq| bench.control.next_attempt_ms(seq, "m", bench.now_ms);
    let due_ms = next(&bench, 1).expect("it has an instant of its own");
    assert!((began_ms..=began_ms + 500).contains(&due_ms));
    assert_eq!(next(&bench, 2), None, "another waits for nothing but its turn");
    let effects = bench.advance(500);
    assert_eq!(count(&effects, |e| *e == Effect::Release(vec![1])), 1);
    assert_eq!(count(&bench.advance(60_000), |e| matches!(e, Effect::Release(_))), 0);
}

#[test]
fn a_retry_has_no_instant_while_no_uplink_takes_it() {
    let mut bench = Bench::up(settings(1));
    one(&mut bench, item(1), Outcome::Transient(Fault::ServerError));
    bench.probes[0] = Probes::Are(NO_CONNECTION);
    bench.tell(Event::NetworkChanged);
    bench.advance(60_000);
    assert_eq!(bench.control.next_attempt_ms(1, "m", bench.now_ms), None);
}

/// Each would be tried to its end else: an hour of 408 would kill what stands first.
#[test]
fn the_backlog_rests_where_all_are_told_to_try_again() {
    let mut bench = Bench::up(settings(1));
    let ends: Vec<_> = (1..=3).map(|seq| one(&mut bench, item(seq), Outcome::Transient(Fault::TryAgain))).collect();
    let not_its_own = Verdict::Requeue { counted: false, deferred: true, maybe_billed: false };
    assert_eq!(ends, [COUNTED, COUNTED, not_its_own]);
    assert!(!bench.control.view().uplinks[0].available, "the breaker is open");
}

#[test]
fn an_operators_pause_keeps_the_backlog_and_lets_waiting_callers_through() {
    let mut bench = Bench::up(settings(1));
    one(&mut bench, item(1), Outcome::Delivered);
    bench.lease(vec![item(2), item(3)]);
    let effects = bench.tell(Event::Paused(true));
    assert_eq!(verdicts(&effects), [(3, GIVEN_BACK)]);
    let effects = bench.tell(Event::Adopted(Item { urgent: true, ..item(4) }));
    assert_eq!(sends(&effects)[0].1, 4);
    bench.tell(Event::Ready(2));
    assert_eq!(count(&bench.advance(600_000), |e| matches!(e, Effect::Lease { .. })), 0);
    assert_eq!(count(&bench.tell(Event::Paused(false)), |e| matches!(e, Effect::Lease { .. })), 1);
}

#[test]
fn waiting_callers_keep_their_order() {
    let mut numbers = settings(1);
    numbers.uplinks[0].max_in_flight = 1;
    let mut bench = Bench::up(numbers);
    let mut running = bench.ask_for(1, 0);
    for seq in [1, 2, 3] {
        bench.tell(Event::Adopted(Item { urgent: true, ..item(seq) }));
    }
    for seq in [1, 2, 3] {
        let sent = sends(&bench.end(running, Outcome::Delivered, false));
        assert_eq!(sent[0].1, seq);
        running = sent[0].0;
    }
}

#[test]
fn leases_go_back_when_the_uplink_goes_away() {
    let mut bench = Bench::up(settings(1));
    bench.lease(vec![item(1), item(2)]);
    bench.probes[0] = Probes::Are(NO_CONNECTION);
    assert_eq!(verdicts(&bench.tell(Event::NetworkChanged)), [(2, GIVEN_BACK)]);
    assert_eq!(verdicts(&bench.tell(Event::Leased(vec![item(3)]))), [(3, GIVEN_BACK)]);
}

#[test]
fn one_slot_stays_free_for_live_requests() {
    let mut numbers = settings(1);
    numbers.uplinks[0].max_in_flight = 2;
    let mut bench = Bench::up(numbers);
    one(&mut bench, item(1), Outcome::Delivered);
    let (attempt, ..) = sends(&bench.lease(vec![item(2), item(3)]))[0];
    assert_eq!(sends(&bench.tell(Event::BodyOut(attempt))), []);
    bench.ask_for(1, 0);
    assert_eq!(sends(&bench.end(attempt, Outcome::Delivered, false)), [], "the live request has the other slot");
}

#[test]
fn doubt_alone_does_not_start_the_drain_afresh() {
    let mut bench = Bench::up(settings(1));
    for seq in 1..=3 {
        one(&mut bench, item(seq), Outcome::Delivered);
    }
    let effects = bench.tell(Event::NetworkChanged);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Notice(Notice::DrainScheduled { .. }))), 0);
    assert_eq!(bench.control.view().window, 4);
    assert_eq!(count(&bench.tell(Event::Ready(5)), |e| leases(e, 4)), 1);
}

#[test]
fn a_live_attempt_that_is_handed_over_ends_as_the_stored_requests() {
    let mut bench = Bench::up(settings(1));
    let attempt = bench.ask_for(1, 0);
    assert_eq!(bench.tell(Event::HandedOver(attempt, Item { urgent: true, ..item(7) })), []);
    assert_eq!(bench.tell(Event::Withdrawn(1)), [], "its caller is gone");
    // An outage takes live attempts back; this one has a request on disk that may have been billed.
    bench.probes[0] = Probes::Are(NO_CONNECTION);
    let effects = bench.tell(Event::NetworkChanged);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Abandon(_))), 0, "{effects:?}");
    let verdict = |outcome| {
        let mut bench = Bench::up(settings(1));
        let attempt = bench.ask_for(1, 0);
        bench.tell(Event::HandedOver(attempt, Item { urgent: true, ..item(7) }));
        verdicts(&bench.end(attempt, outcome, false))
    };
    assert_eq!(verdict(Outcome::Delivered), [(7, Verdict::Answered)]);
    let again = Verdict::Requeue { counted: true, deferred: false, maybe_billed: true };
    assert_eq!(verdict(Outcome::Unknown(Fault::Timeout)), [(7, again)]);
    assert_eq!(verdict(Outcome::GivenUp), [(7, GIVEN_BACK)], "nothing of it had left");
    let gone = bench.tell(Event::HandedOver(99, item(8)));
    assert_eq!(verdicts(&gone), [(8, again)], "of an attempt that nobody knows anything may have left");
}

#[test]
fn what_an_open_breaker_put_off_leaves_after_the_request_that_is_tried_in_its_place() {
    let mut numbers = settings(2);
    numbers.uplinks[0].breaker.failures = 1;
    let mut bench = Bench::up(numbers);
    assert_eq!(bench.control.retries_deadline_ms(), None);
    let verdict = one(&mut bench, item(1), Outcome::Transient(Fault::ServerError));
    assert_eq!(verdict, Verdict::Requeue { counted: false, deferred: true, maybe_billed: false });
    let trial_ms = bench.control.uplinks[0].breaker.deadline_ms().unwrap() + JITTER_MS;
    let due_ms = bench.control.retries_deadline_ms().unwrap();
    assert!((trial_ms + 1_000..=trial_ms + 2_000).contains(&due_ms), "{due_ms} after {trial_ms}");
}
