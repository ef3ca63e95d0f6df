//! Requests that are too dear for what is left of today: elsewhere, offline, or waiting; never dead.

use super::super::TOO_DEAR_MAX;
use super::super::event::Reason;
use super::*;

const WAITS: Verdict = Verdict::Requeue { counted: false, deferred: true, maybe_billed: false };
const GIVEN_BACK: Verdict = Verdict::Requeue { counted: false, deferred: false, maybe_billed: false };

#[test]
fn a_live_request_tries_every_uplink_and_is_offline_for_money_then() {
    let mut bench = Bench::up(settings(2));
    let first = bench.ask_for(1, 0);
    let effects = bench.end(first, Outcome::Unaffordable, true);
    let Some(Route::Uplink { attempt, uplink: 1, .. }) = answer(&effects, 1) else { panic!("{effects:?}") };
    let effects = bench.end(attempt, Outcome::Unaffordable, true);
    let broke = Route::Offline { reason: Reason::BudgetSpent, maybe_billed: false };
    assert_eq!(answer(&effects, 1), Some(broke));
    let view = bench.control.view();
    assert!(view.uplinks.iter().all(|u| u.available && u.in_flight == 0), "nothing is wrong with the uplinks");
    // A refusal of another uplink is not all there is to say.
    let first = bench.ask_for(2, 0);
    let effects = bench.end(first, Outcome::RateLimited { retry_after_ms: None }, true);
    let Some(Route::Uplink { attempt, .. }) = answer(&effects, 2) else { panic!("{effects:?}") };
    assert_eq!(answer(&bench.end(attempt, Outcome::Unaffordable, true), 2), Some(broke));
}

#[test]
fn a_stored_one_waits_at_no_cost_until_there_is_money() {
    let mut bench = Bench::up(settings(1));
    let last = Item { attempts: 7, ..item(1) };
    assert_eq!(one(&mut bench, last, Outcome::Unaffordable), WAITS);
    let effects = bench.advance(3_600_000);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Release(_))), 0);
    bench.tell(Event::Funds);
    let effects = bench.advance(1_000);
    assert!(effects.contains(&Effect::Release(vec![1])), "{effects:?}");
}

#[test]
fn it_goes_to_an_uplink_that_is_not_too_dear() {
    let mut bench = Bench::up(settings(2));
    assert_eq!(one(&mut bench, item(1), Outcome::Unaffordable), GIVEN_BACK);
    let sent = bench.lease(vec![item(1)]);
    assert!(sent.iter().any(|e| matches!(e, Effect::Send { seq: 1, uplink: 1, .. })), "{sent:?}");
}

#[test]
fn so_many_are_looked_at_for_a_cheap_one_and_then_the_drain_rests() {
    let mut bench = Bench::up(settings(1));
    for seq in 1..=u64::from(TOO_DEAR_MAX) {
        assert_eq!(one(&mut bench, item(seq), Outcome::Unaffordable), WAITS);
    }
    let mut effects = bench.tell(Event::Ready(9));
    effects.extend(bench.advance(3_600_000));
    assert_eq!(count(&effects, |e| matches!(e, Effect::Lease { .. })), 0);
    let effects = bench.tell(Event::Funds);
    assert_eq!(count(&effects, |e| matches!(e, Effect::Lease { .. })), 1, "{effects:?}");
}

/// Leases one request and ends its attempt like this.
fn one(bench: &mut Bench, item: Item, outcome: Outcome) -> Verdict {
    let sent = sends(&bench.lease(vec![item]));
    let ended = verdicts(&bench.end(sent[0].0, outcome, false));
    ended[0].1
}
