//! The device's side of the rules on the line from hell: loss, repeats, flips, delays, restarts on both sides.
//!
//! The gateway here is a model of the rules, as small as they allow, with a disk that survives its restarts. Its
//! mistakes can be switched on one by one, and each has to be seen. `HOLDFAST_SEED=n` replays one line.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::panic
)]

mod chance;
mod firmware;
mod gateway;
mod line;
mod machine;
mod others;
mod piped;
mod words;

use chance::Chance;
use firmware::Firmware;
use gateway::{Gateway, Mistake};
use line::Line;
use machine::{Machine, Rust};

const REQUESTS: u64 = 12;
const SEEDS: u64 = 60;
/// Simulated time of one step.
const STEP_MS: u64 = 5;
/// The device looks at its clock this often where nothing comes in.
const TURN_MS: u64 = 20;
/// Bad times end here; everything must be finished long before the end of the run.
const BAD_MS: u64 = 120_000;
const END_MS: u64 = 400_000;

/// What was seen from outside.
fn run(machine: impl Machine, seed: u64, mistake: Option<Mistake>, badness: u64) -> Result<(), String> {
    let mut chance = Chance::new(seed);
    let mut gateway = Gateway::new(mistake);
    let forgets = mistake == Some(Mistake::DeviceForgetsAtTheAck);
    let mut firmware = Firmware::new(machine, REQUESTS, forgets, &mut chance);
    let (mut up, mut down) = (Line::default(), Line::default());
    let mut now_ms = 0;
    while now_ms < END_MS && !(firmware.is_done() && now_ms > BAD_MS) {
        let bad = if now_ms < BAD_MS { badness } else { 0 };
        if bad > 0 && chance.one_in(2_500) {
            firmware.restart(now_ms);
            (up, down) = (Line::default(), Line::default());
        }
        if bad > 0 && chance.one_in(2_500) {
            gateway.restart();
        }
        for bytes in up.arrived(now_ms) {
            gateway.receive(&bytes, now_ms);
        }
        gateway.step(now_ms, &mut chance, |bytes, chance| down.send(bytes, now_ms, bad, chance));
        let bytes = down.arrived(now_ms).concat();
        if !bytes.is_empty() || now_ms % TURN_MS == 0 {
            firmware.step(&bytes, now_ms, |bytes| up.send(bytes, now_ms, bad, &mut chance));
        }
        now_ms += STEP_MS;
    }
    firmware.check()?;
    gateway.check(firmware.acked())
}

fn seeds() -> Vec<u64> {
    let replay = std::env::var("HOLDFAST_SEED").ok().and_then(|seed| seed.parse().ok());
    replay.map_or_else(|| (1..=SEEDS).collect(), |seed| vec![seed])
}

#[test]
fn every_acked_request_ends_in_one_result_on_any_line() {
    for seed in seeds() {
        let badness = [0, 10, 25, 40][(seed % 4) as usize];
        if let Err(what) = run(Rust::new(), seed, None, badness) {
            panic!("{what}: replay with HOLDFAST_SEED={seed}");
        }
    }
}

#[test]
fn each_word_of_the_gateway_has_its_end() {
    words::all(Rust::new);
    words::a_bus(Rust::new());
}

#[test]
fn each_mistake_is_seen() {
    for mistake in Mistake::ALL {
        let caught = seeds().into_iter().filter(|seed| run(Rust::new(), *seed, Some(mistake), 25).is_err()).count();
        assert!(caught * 3 > seeds().len(), "{mistake:?} was seen in {caught} of {} runs only", seeds().len());
    }
}
