//! Second sends of what may have been billed: labelled, budgeted, never a dead letter for want of budget.

use super::super::resend::{ALLOWANCE, SUCCESSES_EACH};
use super::*;

const WAITS: Verdict = Verdict::Requeue { counted: false, deferred: true, maybe_billed: true };

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
    assert_eq!(count(&bench.advance(86_400_000), |e| matches!(e, Effect::Release(_))), 0, "time alone earns nothing");
    for seq in 200..200 + u64::from(SUCCESSES_EACH) {
        let effects = bench.lease(vec![item(seq)]);
        let effects = bench.end(sends(&effects)[0].0, Outcome::Delivered, false);
        let last = seq == 199 + u64::from(SUCCESSES_EACH);
        assert_eq!(effects.contains(&Effect::Release(vec![100])), last, "{seq}: {effects:?}");
    }
    assert_eq!(sends(&bench.lease(vec![labelled(100)])).len(), 1);
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
