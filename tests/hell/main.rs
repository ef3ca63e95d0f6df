//! The line from hell: the real daemon on a pseudo-terminal behind a cable that loses, doubles, delays, flips and splits
//! frames, with both sides killed at random.
//!
//! Short by default; `HOLDFAST_HELL_REQUESTS=1000 HOLDFAST_HELL_PICTURES=100 HOLDFAST_HELL_KILLS=60` is the long form. The
//! seed is printed and `HOLDFAST_HELL_SEED` replays the same chance. With the feature `planted` each of the mistakes that
//! were found to matter has to make the test fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../promises/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "each test uses its part of what all share")]
mod support;

mod cable;
#[path = "../../src/wire/tests/device/chance.rs"]
#[allow(dead_code, reason = "each test program uses its part of what all share")]
mod chance;
mod clients;
mod firmware;
mod picture;
mod run;

use run::{Plan, run};
use support::rounds;

fn seed() -> u64 {
    let seed = rounds("HOLDFAST_HELL_SEED", (holdfast::clock::random_u64() >> 40) as usize) as u64;
    println!("HOLDFAST_HELL_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acked_request_ends_in_one_result() {
    let requests = rounds("HOLDFAST_HELL_REQUESTS", 40);
    let plan = Plan {
        requests,
        pictures: rounds("HOLDFAST_HELL_PICTURES", 4),
        kills: rounds("HOLDFAST_HELL_KILLS", 3),
        bad: 25,
        seed: seed(),
        give_up_s: 120 + 3 * requests as u64,
        ..Plan::default()
    };
    let seen = run(&plan, None).await;
    println!("{}", seen.summary());
    seen.check().unwrap();
}

/// Power cuts of both sides right after an acknowledgement, on a disk that takes its time: what was said was true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_power_cut_at_once() {
    for quiet in [false, true] {
        let seed = seed();
        let plan = Plan { requests: 12, pictures: 2, kills: 3, bad: 25, seed, give_up_s: 120, power_cuts: true, quiet };
        let seen = run(&plan, None).await;
        println!("{}", seen.summary());
        seen.check().unwrap();
    }
}

/// Each in the short form, on up to four lines: one that is not seen on any of them proves that the test is blind.
#[cfg(feature = "planted")]
async fn all_are_seen(mistakes: &[run::Mistake]) {
    let seed = seed();
    let mut unseen = Vec::new();
    for mistake in mistakes {
        let mut caught = None;
        for line in 0..4 {
            let seen = run(&mistake.plan(seed + line), Some(*mistake)).await;
            // One that is only slow proves nothing.
            caught = seen.check().err().filter(|_| seen.is_finished());
            if caught.is_some() {
                break;
            }
        }
        println!("{mistake:?}: {}", caught.as_deref().unwrap_or("NOT SEEN"));
        if caught.is_none() {
            unseen.push(mistake);
        }
    }
    assert!(unseen.is_empty(), "not seen: {unseen:?}");
}

#[cfg(feature = "planted")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mistake_is_seen() {
    all_are_seen(&run::Mistake::PLAIN).await;
}

#[cfg(feature = "planted")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_before_the_commit_is_seen() {
    all_are_seen(&run::Mistake::NARROW).await;
}
