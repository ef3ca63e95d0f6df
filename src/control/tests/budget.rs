//! Requests that are too dear for what is left of today: elsewhere, offline, or waiting; never dead.

use super::super::TOO_DEAR_MAX;
use super::super::event::{Block, Reason};
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

/// The other uplink has no such model: nobody waits for it, and nobody waits behind.
#[test]
fn what_is_too_dear_here_and_refused_there_waits_and_holds_up_nobody() {
    let mut bench = Bench::up(settings(2));
    let rare = || Item { model: "rare".to_owned(), ..item(1) };
    assert_eq!(one(&mut bench, rare(), Outcome::Unaffordable), GIVEN_BACK);
    assert_eq!(one(&mut bench, rare(), Outcome::Blocked(Block::Configuration)), GIVEN_BACK);
    let mut effects = bench.lease(vec![rare(), item(2)]);
    let first = sends(&effects);
    assert_eq!((first.len(), first[0].1, first[0].2), (1, 1, 0), "{effects:?}");
    effects = bench.end(first[0].0, Outcome::Unaffordable, false);
    assert_eq!(verdicts(&effects), [(1, WAITS)]);
    effects.extend(bench.advance(1_000));
    assert!(sends(&effects).iter().any(|(_, seq, uplink)| (*seq, *uplink) == (2, 1)), "{effects:?}");
}

/// A trial that is due is none for what cannot be paid: the other uplink's slot is waited for.
#[test]
fn a_trial_that_is_too_dear_is_not_made_again_and_again() {
    let mut settings = settings(2);
    settings.uplinks[1].max_in_flight = 1;
    let mut bench = Bench::up(settings);
    assert_eq!(one(&mut bench, item(1), Outcome::Blocked(Block::Quota)), GIVEN_BACK);
    bench.advance(120_000);
    let Some(Route::Uplink { attempt: busy, uplink: 1, .. }) = bench.ask(1) else { panic!("the other one is open") };
    let adopted = || Event::Adopted(Item { urgent: true, ..item(2) });
    let trial = sends(&bench.tell(adopted()));
    assert_eq!((trial[0].1, trial[0].2), (2, 0));
    assert_eq!(verdicts(&bench.end(trial[0].0, Outcome::Unaffordable, false)), [(2, GIVEN_BACK)]);
    assert_eq!(sends(&bench.tell(adopted())), []);
    let sent = sends(&bench.end(busy, Outcome::Delivered, false));
    assert_eq!((sent[0].1, sent[0].2), (2, 1));
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
