//! How fast the real daemon is, beside the plainest way to do the same in the same run:
//! `cargo bench --bench gateway [-- --quick]`.
//!
//! Owns the order of the measurements and what is printed. Asserts that answers are right, and never a time:
//! on a shared machine only ratios between interleaved rounds mean anything.

// A benchmark that cannot go on stops with the place where it could not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod append;
mod daemon;
mod disk;
mod drain;
mod flush;
mod idle;
mod instructions;
mod links;
mod load;
mod mock;
mod nginx;
mod online;
mod postgres;
mod proxy;
mod redis;
mod rivals;
mod startup;
mod stats;
mod stored;
mod wait;
mod ways;

use std::time::Duration;

/// How long and how often.
pub(crate) struct Plan {
    /// Interleaved rounds; a ratio is taken within each.
    pub(crate) rounds: usize,
    /// Time given to one cell of one round.
    pub(crate) cell: Duration,
    /// Requests that wait when the start of a full gateway is measured.
    pub(crate) waiting: u64,
    /// How long an idle daemon is watched.
    pub(crate) idle: Duration,
    /// Requests that are drained into a token bucket.
    pub(crate) drained: u64,
}

const FULL: Plan =
    Plan { rounds: 5, cell: Duration::from_secs(1), waiting: 100_000, idle: Duration::from_secs(30), drained: 50_000 };
const QUICK: Plan =
    Plan { rounds: 3, cell: Duration::from_millis(300), waiting: 5_000, idle: Duration::from_secs(5), drained: 5_000 };

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| given.iter().any(|argument| argument == word);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let [flag, socket, to] = &given[..]
        && flag == proxy::FLAG
    {
        return runtime.block_on(proxy::run(socket.as_ref(), to));
    }
    if !has("--bench") {
        // `cargo test --all-targets` builds and starts benches too; it wants to know that they build.
        println!("not measured; run: cargo bench --bench gateway");
        return;
    }
    let plan = if has("--quick") { QUICK } else { FULL };
    println!("{} rounds of {:?}; medians over the rounds, ratios as min / median / max.", plan.rounds, plan.cell);
    if let Some(added) = flush::added() {
        println!("Each flush takes {added:?} longer than the disk's own.");
    }
    // The drain takes minutes, callgrind cannot run every build, and others' gateways are seldom there: they run where they are named.
    let sections =
        ["chats", "pictures", "streams", "stored", "startup", "idle", "links", "drain", "instructions", "rivals"];
    let alone = ["drain", "instructions", "rivals"];
    // A section may be named to run alone; other words are cargo's.
    let named = sections.into_iter().any(has);
    for section in sections.into_iter().filter(|section| has(section) || (!named && !alone.contains(section))) {
        match section {
            "chats" => runtime.block_on(online::chats(&plan)),
            "pictures" => runtime.block_on(online::pictures(&plan)),
            "streams" => runtime.block_on(online::streams(&plan)),
            "stored" => runtime.block_on(stored::measure(&plan)),
            "startup" => runtime.block_on(startup::measure(&plan)),
            "idle" => runtime.block_on(idle::measure(plan.idle)),
            "instructions" => runtime.block_on(instructions::measure()),
            "rivals" => runtime.block_on(rivals::measure(&plan)),
            "drain" => runtime.block_on(drain::measure(plan.drained)),
            _ => runtime.block_on(links::measure(&plan)),
        }
    }
}
