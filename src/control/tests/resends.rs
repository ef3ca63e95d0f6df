//! Second sends of what may have been billed: labelled, budgeted, never a dead letter for want of budget.

use super::super::resend::{ALLOWANCE, SUCCESSES_EACH};
use super::world::World;
use super::*;

const HOUR_MS: u64 = 3_600_000;

/// Back in the queue, where the label stays on its record.
const WAITS: Verdict = Verdict::Requeue { counted: false, deferred: false, maybe_billed: false };

fn labelled(seq: u64) -> Item {
    Item { maybe_billed: true, attempts: 1, ..item(seq) }
}

#[test]
fn beyond_the_budget_they_wait_for_successes() {
    let mut bench = Bench::up(settings(1));
    let allowance = u64::from(ALLOWANCE);
    for seq in 1..=allowance {
        let effects = bench.lease(vec![labelled(seq)]);
        let effects = bench.end(sends(&effects)[0].0, Outcome::Unknown(Fault::Truncated), false);
        assert_eq!(verdicts(&effects), [(seq, Verdict::Dead("unknown"))]);
        bench.advance(40_000);
    }
    let effects = bench.lease(vec![labelled(100)]);
    assert_eq!((sends(&effects).len(), verdicts(&effects)), (0, vec![(100, WAITS)]));
    let none = |e: &Effect| matches!(e, Effect::Lease { labelled: Some(0), .. });
    let some = |e: &Effect| matches!(e, Effect::Lease { labelled: None | Some(1..), .. });
    assert_eq!(count(&bench.tell(Event::Ready(1)), none), 1);
    bench.tell(Event::Leased(Vec::new()));
    assert_eq!(count(&bench.advance(86_400_000), some), 0, "time alone earns nothing");
    bench.tell(Event::Leased(Vec::new()));
    for seq in 200..200 + u64::from(SUCCESSES_EACH) {
        assert_eq!(count(&bench.tell(Event::Ready(2)), none), 1, "the other one is not looked for");
        let effects = bench.tell(Event::Leased(vec![item(seq)]));
        let effects = bench.end(sends(&effects)[0].0, Outcome::Delivered, false);
        let last = seq == 199 + u64::from(SUCCESSES_EACH);
        // The lease that was under way by then finds nothing.
        let effects = [effects, bench.tell(Event::Leased(Vec::new())), bench.tell(Event::Ready(1))].concat();
        assert_eq!(count(&effects, some), usize::from(last), "{seq}: {effects:?}");
    }
    assert_eq!(sends(&bench.tell(Event::Leased(vec![labelled(100)]))).len(), 1);
}

#[test]
fn a_second_send_that_cost_nothing_is_given_back_to_the_budget() {
    let mut bench = Bench::up(settings(1));
    for _ in 0..3 * ALLOWANCE {
        let effects = bench.lease(vec![labelled(1)]);
        let (attempt, ..) = sends(&effects)[0];
        bench.end(attempt, Outcome::RateLimited { retry_after_ms: Some(1) }, false);
        bench.advance(120_000);
    }
}

/// More of them than control keeps in mind of anything.
#[test]
fn what_waits_for_the_budget_holds_up_nobody_behind_it() {
    let mut world = World::new(settings(1), 1).faultless();
    let labelled: Vec<u64> = (0..5_000).map(|_| world.store_labelled("m")).collect();
    let others: Vec<u64> = (0..200).map(|_| world.store("m")).collect();
    world.run_until(HOUR_MS);
    assert!(others.iter().all(|seq| world.is_over(*seq)), "{} wait", world.waiting());
    let left = labelled.iter().filter(|seq| world.is_over(**seq)).count();
    assert!((20..40).contains(&left), "{left} second sends for 200 successes, and those that they earned");
}

#[test]
fn what_was_cancelled_while_it_waited_costs_no_budget() {
    let mut world = World::new(settings(1), 1).faultless();
    let labelled: Vec<u64> = (0..100).map(|_| world.store_labelled("m")).collect();
    world.run_until(HOUR_MS);
    let left: Vec<u64> = labelled.into_iter().filter(|seq| !world.is_over(*seq)).collect();
    let (last, cancelled) = left.split_last().unwrap();
    for seq in cancelled {
        world.cancel(*seq);
    }
    for _ in 0..SUCCESSES_EACH {
        world.store("m");
    }
    world.run_until(2 * HOUR_MS);
    assert!(world.is_over(*last), "it waits behind what nobody wants any more");
}
