//! "What an attempt's end means", row by row, in the specification's order and words.
//!
//! Time to live is not here: the spool ends what is over, in powered-on time, and control never hears of it.

use super::super::breaker::BreakerState;
use super::super::event::{Block, Notice};
use super::*;

const MINUTE_MS: u64 = 60_000;
const QUEUED: Verdict = Verdict::Requeue { counted: false, deferred: false, maybe_billed: false };
const COUNTED: Verdict = Verdict::Requeue { counted: true, deferred: true, maybe_billed: false };
const UNKNOWN: Verdict = Verdict::Requeue { counted: true, deferred: false, maybe_billed: true };

struct Row {
    event: &'static str,
    ends: &'static [Outcome],
    /// What probes say from then on.
    probe: Probes,
    billed: &'static str,
    request: Verdict,
    drain: &'static str,
}

const fn failing(fault: Fault) -> Probes {
    Probes::Are(Check::Failed(fault))
}

const GREEN: Probes = Probes::Are(PASSED);

const ROWS: [Row; 18] = [
    Row {
        event: "DNS, no route, refused, connect time-out",
        ends: &[Outcome::Unreachable(Fault::Dns), Outcome::Unreachable(Fault::Connect)],
        probe: failing(Fault::Connect),
        billed: "no",
        request: QUEUED,
        drain: "offline",
    },
    Row {
        event: "TLS: unknown issuer, name, expired",
        ends: &[Outcome::Unreachable(Fault::Tls)],
        probe: failing(Fault::Tls),
        billed: "no",
        request: QUEUED,
        drain: "paused: tls",
    },
    Row {
        event: "TLS: not yet valid",
        ends: &[Outcome::Unreachable(Fault::Clock)],
        probe: failing(Fault::Clock),
        billed: "no",
        request: QUEUED,
        drain: "paused: clock",
    },
    Row {
        event: "clock below the floor",
        ends: &[Outcome::Unreachable(Fault::WaitingForTime)],
        probe: failing(Fault::WaitingForTime),
        billed: "no",
        request: QUEUED,
        drain: "paused: clock",
    },
    Row {
        event: "captive portal, 3xx, 407, 511, HTML where JSON belongs",
        ends: &[Outcome::Unreachable(Fault::Portal), Outcome::Unreachable(Fault::Redirect)],
        probe: failing(Fault::Portal),
        billed: "no",
        request: QUEUED,
        drain: "offline",
    },
    Row {
        event: "write failed before the body was out; HTTP/2 REFUSED_STREAM, GOAWAY below our stream",
        ends: &[Outcome::Transient(Fault::Write)],
        probe: GREEN,
        billed: "no",
        request: COUNTED,
        drain: "backoff",
    },
    Row {
        event: "body out, then time-out, reset or end before a status",
        ends: &[Outcome::Unknown(Fault::Timeout), Outcome::Unknown(Fault::Reset)],
        probe: Probes::Silent,
        billed: "maybe",
        request: UNKNOWN,
        drain: "probe",
    },
    Row {
        event: "200 complete",
        ends: &[Outcome::Delivered],
        probe: GREEN,
        billed: "yes",
        request: Verdict::Answered,
        drain: "run",
    },
    Row {
        event: "200 with a body that is no answer",
        ends: &[Outcome::NoAnswer],
        probe: GREEN,
        billed: "yes",
        request: Verdict::Dead("no_answer"),
        drain: "run",
    },
    Row {
        event: "200 with an answer that is not what its task asks for",
        ends: &[Outcome::Misfit],
        probe: GREEN,
        billed: "maybe",
        request: UNKNOWN,
        drain: "run",
    },
    Row {
        event: "200 cut short",
        ends: &[Outcome::Unknown(Fault::Truncated)],
        probe: Probes::Silent,
        billed: "maybe",
        request: UNKNOWN,
        drain: "probe",
    },
    Row {
        event: "400, 413, 415, 422",
        ends: &[Outcome::Permanent(Fault::Refused)],
        probe: GREEN,
        billed: "no",
        request: Verdict::Dead("refused"),
        drain: "run",
    },
    Row {
        event: "402, 429 insufficient_quota, spend limits",
        ends: &[Outcome::Blocked(Block::Quota)],
        probe: GREEN,
        billed: "no",
        request: QUEUED,
        drain: "paused: quota",
    },
    Row {
        event: "401",
        ends: &[Outcome::Blocked(Block::Key)],
        probe: GREEN,
        billed: "no",
        request: QUEUED,
        drain: "paused: key",
    },
    Row {
        event: "403, 404 (model, path)",
        ends: &[Outcome::Blocked(Block::Configuration)],
        probe: GREEN,
        billed: "no",
        request: QUEUED,
        drain: "paused: configuration",
    },
    Row {
        event: "408, 425",
        ends: &[Outcome::Transient(Fault::TryAgain)],
        probe: GREEN,
        billed: "no",
        request: COUNTED,
        drain: "backoff",
    },
    Row {
        event: "429 rate",
        ends: &[Outcome::RateLimited { retry_after_ms: Some(90_000) }],
        probe: GREEN,
        billed: "no",
        request: QUEUED,
        drain: "slower",
    },
    Row {
        event: "502, 504, 52x from something between, after the body was out",
        ends: &[Outcome::Unknown(Fault::BadGateway)],
        probe: Probes::Silent,
        billed: "maybe",
        request: UNKNOWN,
        drain: "probe",
    },
];

/// What the record says of money.
fn billed(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Requeue { maybe_billed: true, .. } => "maybe",
        Verdict::Answered | Verdict::Dead("no_answer") => "yes",
        Verdict::Requeue { .. } | Verdict::Dead(_) => "no",
    }
}

/// What the drain does, seen from outside: what is shown, what is asked for, what leaves.
fn drain(bench: &mut Bench, window: u32, effects: &[Effect]) -> String {
    let view = bench.control.view();
    if let Some((block, _)) = view.uplinks[0].paused {
        return format!("paused: {block}");
    }
    if !view.uplinks[0].available {
        let probing = effects.iter().any(|e| matches!(e, Effect::Probe(0, _)));
        return if probing && view.uplinks[0].fault.is_none() { "probe" } else { "offline" }.to_owned();
    }
    let mut leased = bench.tell(Event::Ready(1));
    leased.extend(effects.iter().cloned());
    if leased.iter().any(|e| matches!(e, Effect::Lease { .. })) {
        return if bench.control.view().window < window { "backoff" } else { "run" }.to_owned();
    }
    let later = bench.advance(80_000);
    let early = later.iter().any(|e| matches!(e, Effect::Lease { .. }));
    if early { "too early" } else { "slower" }.to_owned()
}

#[test]
fn every_row_of_the_table() {
    for row in ROWS {
        for end in row.ends {
            let mut bench = Bench::up(settings(1));
            for seq in 1..=3 {
                finish(&mut bench, item(seq), Outcome::Delivered);
            }
            let window = bench.control.view().window;
            let (attempt, ..) = sends(&bench.lease(vec![item(4)]))[0];
            bench.tell(Event::BodyOut(attempt));
            bench.probes[0] = row.probe;
            let mut effects = bench.end(attempt, *end, false);
            let verdict = verdicts(&effects)[0].1;
            assert_eq!(verdict, row.request, "{}: {end:?}", row.event);
            assert_eq!(billed(verdict), row.billed, "{}: {end:?}", row.event);
            effects.extend(bench.advance(50));
            assert_eq!(drain(&mut bench, window, &effects), row.drain, "{}: {end:?}", row.event);
        }
    }
}

/// Sends one request and reports its end.
fn finish(bench: &mut Bench, item: Item, outcome: Outcome) -> Vec<Effect> {
    let effects = bench.lease(vec![item]);
    let sent = sends(&effects);
    assert_eq!(sent.len(), 1, "{effects:?}");
    bench.end(sent[0].0, outcome, false)
}

fn alarms(effects: &[Effect]) -> usize {
    count(effects, |e| matches!(e, Effect::Notice(Notice::RoutePaused { .. })))
}

#[test]
fn the_services_own_500_503_529_is_tried_again_and_opens_the_breaker() {
    let mut bench = Bench::up(settings(1));
    for seq in 1..=3 {
        let effects = finish(&mut bench, item(seq), Outcome::Transient(Fault::ServerError));
        assert!(matches!(verdicts(&effects)[0].1, Verdict::Requeue { deferred: true, maybe_billed: false, .. }));
    }
    assert_eq!(bench.control.view().uplinks[0].breaker, BreakerState::Open);
}

#[test]
fn retry_after_of_a_500_503_529_is_a_floor() {
    let mut bench = Bench::up(settings(1));
    let wait_ms = 90_000;
    let effects = finish(&mut bench, item(1), Outcome::Later { fault: Fault::ServerError, wait_ms });
    assert_eq!(verdicts(&effects), [(1, COUNTED)]);
    assert!(!bench.advance(wait_ms - 1).contains(&Effect::Release(vec![1])), "not before");
    assert!(bench.advance(1).contains(&Effect::Release(vec![1])), "and then at once");
}

#[test]
fn a_crash_while_sending_is_unknown_and_leaves_labelled() {
    let mut bench = Bench::up(settings(1));
    let crashed = Item { maybe_billed: true, ..item(1) };
    let effects = finish(&mut bench, crashed, Outcome::Unknown(Fault::Reset));
    assert_eq!(verdicts(&effects), [(1, Verdict::Dead("unknown"))], "its second send was its last");
}

#[test]
fn the_same_refusal_of_three_different_requests_pauses_the_route_and_loses_none() {
    let mut bench = Bench::up(settings(1));
    let mut effects = bench.lease((1..=4).map(item).collect());
    let refused = Outcome::Permanent(Fault::Refused);
    for seq in 1..=3 {
        let (attempt, at, _) = sends(&effects)[0];
        assert_eq!(at, seq);
        effects = bench.end(attempt, refused, false);
        let verdict = verdicts(&effects)[0].1;
        assert_eq!(verdict, Verdict::Requeue { counted: false, deferred: true, maybe_billed: false }, "{seq}");
    }
    assert_eq!(bench.control.view().uplinks[0].paused.map(|(block, _)| block), Some(Block::Configuration));
    assert_eq!((alarms(&effects), verdicts(&effects).contains(&(4, QUEUED))), (1, true));

    // The first two come back into the queue; the third comes back behind the next trial.
    let effects = bench.advance(1_000);
    assert!(effects.contains(&Effect::Release(vec![1, 2])), "{effects:?}");
    bench.advance(MINUTE_MS);
    let effects = finish(&mut bench, item(4), refused);
    assert!(matches!(verdicts(&effects)[0].1, Verdict::Requeue { counted: false, .. }));
    assert_eq!(alarms(&effects), 0, "one alarm, not one for each failed trial");
    bench.advance(2 * MINUTE_MS);
    finish(&mut bench, item(1), Outcome::Delivered);
    assert_eq!(bench.control.view().uplinks[0].paused, None);
}

#[test]
fn a_success_between_refusals_makes_them_dead_letters() {
    let mut bench = Bench::up(settings(1));
    let refused = Outcome::Permanent(Fault::Unprocessable);
    let effects = bench.lease(vec![item(1), item(2)]);
    let effects = bench.end(sends(&effects)[0].0, refused, false);
    assert!(matches!(verdicts(&effects)[0].1, Verdict::Requeue { deferred: true, .. }), "another one may tell");
    bench.end(sends(&effects)[0].0, Outcome::Delivered, false);
    assert!(bench.advance(1_000).contains(&Effect::Release(vec![1])));
    let effects = finish(&mut bench, item(1), refused);
    assert_eq!(verdicts(&effects), [(1, Verdict::Dead("unprocessable"))]);
    assert_eq!(bench.control.view().uplinks[0].paused, None);
}

#[test]
fn a_caller_who_waits_hears_of_its_refusal_at_once() {
    let mut bench = Bench::up(settings(1));
    bench.tell(Event::Paused(true));
    bench.tell(Event::Ready(5));
    for seq in 1..=5 {
        let effects = bench.tell(Event::Adopted(Item { urgent: true, ..item(seq) }));
        let effects = bench.end(sends(&effects)[0].0, Outcome::Permanent(Fault::Refused), false);
        assert_eq!(verdicts(&effects), [(seq, Verdict::Dead("refused"))]);
    }
    assert_eq!(bench.control.view().uplinks[0].paused, None);
}

#[test]
fn three_answers_in_a_row_that_are_none_pause_the_route() {
    let mut bench = Bench::up(settings(1));
    for seq in 1..=3 {
        assert_eq!(bench.control.view().uplinks[0].paused, None);
        let effects = finish(&mut bench, item(seq), Outcome::NoAnswer);
        assert_eq!(verdicts(&effects), [(seq, Verdict::Dead("no_answer"))], "it was paid for");
    }
    assert_eq!(bench.control.view().uplinks[0].paused.map(|(block, _)| block), Some(Block::Configuration));
}

#[test]
fn an_answer_that_cannot_be_stored_stops_the_drain_until_it_can() {
    let mut bench = Bench::up(settings(1));
    let effects = bench.tell(Event::Storage(false));
    assert_eq!(count(&effects, |e| *e == Effect::Notice(Notice::Storage { works: false })), 1);
    assert_eq!(bench.tell(Event::Storage(false)), [], "one alarm");
    bench.tell(Event::Ready(3));
    assert_eq!(count(&bench.advance(MINUTE_MS), |e| matches!(e, Effect::Lease { .. })), 0);
    assert!(!bench.control.view().storage_works);
    let effects = bench.tell(Event::Storage(true));
    assert_eq!(count(&effects, |e| matches!(e, Effect::Lease { .. })), 1);
}

#[test]
fn a_page_that_answers_requests_behind_green_probes_is_an_outage_for_everybody() {
    let mut bench = Bench::up(settings(1));
    let portal = Outcome::Unreachable(Fault::Redirect);
    for seq in 1..=2 {
        finish(&mut bench, item(seq), portal);
        bench.advance(JITTER_MS);
    }
    assert_eq!(bench.control.view().uplinks[0].paused.map(|(block, _)| block), Some(Block::Portal));
    assert!(matches!(bench.ask(1), Some(Route::Offline { .. })), "a caller is not sent into it");
    bench.tell(Event::Ready(1));
    let (before, mut sent) = (bench.now_ms, 0);
    while bench.now_ms < before + 24 * 60 * MINUTE_MS {
        let effects = bench.advance(MINUTE_MS / 2);
        if effects.iter().any(|e| matches!(e, Effect::Lease { .. })) {
            let effects = bench.tell(Event::Leased(vec![item(3)]));
            sent += sends(&effects).len();
            for (attempt, ..) in sends(&effects) {
                bench.end(attempt, portal, false);
            }
            bench.tell(Event::Ready(1));
        }
    }
    assert!((10..=60).contains(&sent), "{sent} trials in a day");
    bench.advance(31 * MINUTE_MS);
    let route = bench.ask(2);
    let Some(Route::Uplink { attempt, .. }) = route else { panic!("a caller may make the trial: {route:?}") };
    assert!(matches!(bench.ask(3), Some(Route::Offline { .. })), "one at a time");
    bench.end(attempt, Outcome::Delivered, false);
    assert!(matches!(bench.ask(4), Some(Route::Uplink { .. })));
}

#[test]
fn a_refused_certificate_is_asked_for_on_the_pauses_schedule() {
    let mut bench = Bench::up(settings(1));
    bench.probes[0] = failing(Fault::Tls);
    let effects = bench.advance(10_000);
    assert_eq!(alarms(&effects), 1);
    let before = bench.probed;
    let effects = bench.advance(24 * 60 * MINUTE_MS);
    assert!((10..=60).contains(&(bench.probed - before)), "{} probes in a day", bench.probed - before);
    assert_eq!(alarms(&effects), 0);
    bench.probes[0] = GREEN;
    bench.tell(Event::DrainNow);
    assert_eq!(bench.control.view().uplinks[0].paused, None, "it is tried at once when told");
}

#[test]
fn below_the_floor_the_clock_is_looked_at_as_often_as_ever() {
    let mut bench = Bench::up(settings(1));
    bench.probes[0] = failing(Fault::WaitingForTime);
    assert_eq!(alarms(&bench.advance(3_600_000)), 1);
    bench.probes[0] = GREEN;
    bench.advance(2_000);
    assert_eq!(bench.control.view().uplinks[0].paused, None);
    assert!(bench.control.is_available());
}
