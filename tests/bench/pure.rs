//! What each request costs in decisions alone: reading its head, and control's turns.
//!
//! Owns no I/O: `cargo bench --bench pure`.

// A benchmark that cannot go on stops with the place where it could not.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::Criterion;
use holdfast::body::Body;
use holdfast::control::breaker::BreakerSettings;
use holdfast::control::drain::DrainSettings;
use holdfast::control::event::{Check, Effect, Event, Outcome, Route};
use holdfast::control::health::ProbeSettings;
use holdfast::control::retry::RetrySettings;
use holdfast::control::route::Strategy;
use holdfast::control::{Control, Settings, UplinkSettings};
use holdfast::uplink::body;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, bytes) in [("read a head of 1 KiB", 1 << 10), ("read a head of 1 MiB", 1 << 20)] {
        let text = "a".repeat(bytes);
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}],"stream":true}}"#);
        let body = Bytes::from(body);
        // A fresh body each time: one that was read remembers what stands where.
        let read = || body::read("/v1/chat/completions", &Body::from(black_box(body.clone()))).unwrap();
        criterion.bench_function(name, |b| b.iter(read));
    }
    let (mut control, mut effects, mut ask) = (online(), Vec::new(), 0);
    criterion.bench_function("control: ask, answering, ended", |b| {
        b.iter(|| {
            ask += 1;
            live_request(&mut control, ask, &mut effects);
        });
    });
    criterion.final_summary();
}

/// Control with one uplink that was found to be there.
fn online() -> Control {
    let uplink = UplinkSettings {
        priority: 1,
        weight: 1,
        max_in_flight: 32,
        keys: Vec::new(),
        probe: ProbeSettings { interval_ms: 60_000, timeout_ms: 1_000, fall: 3, rise: 1, degraded_above_ms: 1_500 },
        breaker: BreakerSettings { failures: 3, open_for_ms: 30_000 },
    };
    let settings = Settings {
        uplinks: vec![uplink],
        strategy: Strategy::Priority,
        retry: RetrySettings { attempts: 3, base_ms: 500, max_ms: 60_000, budget: 0.2 },
        hold_unknown: false,
        max_attempts: 8,
        drain: DrainSettings { max_in_flight: 4, start_delay_ms: 0 },
        seed: 1,
    };
    let mut control = Control::new(settings, 0);
    let mut effects = Vec::new();
    control.handle(Event::Tick, 0, &mut effects);
    control.handle(Event::Probed(0, 0, Check::Passed { latency_ms: 1, key_refused: false }), 1, &mut effects);
    assert!(control.is_available());
    control
}

/// The three events of a plain request that goes well and whose answer comes in pieces; one that is all there has no second one.
fn live_request(control: &mut Control, ask: u64, effects: &mut Vec<Effect>) {
    effects.clear();
    control.handle(Event::Asked(ask), 2, effects);
    let attempt = effects.iter().find_map(|effect| match effect {
        Effect::Answer(_, Route::Uplink { attempt, .. }) => Some(*attempt),
        _ => None,
    });
    let attempt = attempt.unwrap();
    control.handle(Event::Answering(attempt), 3, effects);
    control.handle(Event::Ended { attempt, outcome: Outcome::Delivered, latency_ms: 1, next: false }, 3, effects);
    black_box(effects);
}
