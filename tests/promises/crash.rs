//! kill -9 again and again under mixed load: each acknowledged id reaches exactly one final state.
//!
//! `HOLDFAST_CRASH_ROUNDS=200` for a long run; the seed is printed and `HOLDFAST_CRASH_SEED` replays it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::cli::simulate::{Faults, Mode};
use holdfast::clock;

use crate::support::{Ask, Bench, Reply, Settings, rounds, until};

const CALLERS: usize = 8;
/// The most this load makes in a round on a fast machine, so that a long run stays in the log's bounds.
const REQUESTS_PER_CALLER: usize = 40;

/// Acknowledged ids and the prompt of each.
type Ledger = Arc<Mutex<BTreeMap<String, String>>>;

/// xorshift: the same rounds again from the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn ask(user: &str, n: usize) -> Ask {
    let priority = ["critical", "high", "normal", "low"][n % 4];
    let ask = Ask::chat(user).header("x-holdfast-priority", priority);
    match n % 4 {
        0 => ask.offline("queue").header("x-stainless-read-timeout", "1"),
        1 => ask.offline("both"),
        _ => ask.header("prefer", "respond-async"),
    }
}

/// The id, where the answer says that the request is stored.
fn acknowledged(reply: &Reply) -> Option<String> {
    let queued = match reply.status {
        202 => true,
        200 => reply.header("x-holdfast-state") == "queued",
        503 => reply.json()["error"]["code"] == "request_queued",
        status => panic!("unexpected {status}: {}", reply.text()),
    };
    queued.then(|| reply.id())
}

/// Asks until the daemon is gone. Answers that do not arrive acknowledge nothing.
async fn caller(socket: PathBuf, name: String, ledger: Ledger) {
    for n in 0..REQUESTS_PER_CALLER {
        let user = format!("{name} request {n}");
        let Ok(reply) = ask(&user, n + name.len()).send_to(&socket).await else { return };
        if let Some(id) = acknowledged(&reply) {
            let before = ledger.lock().unwrap().insert(id.clone(), user);
            assert_eq!(before, None, "{id} was given to two requests");
        }
    }
}

async fn load_until_killed(bench: &mut Bench, round: usize, ledger: &Ledger, life_ms: u64) {
    let socket = bench.daemon.socket();
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..CALLERS {
        callers.spawn(caller(socket.clone(), format!("round {round} caller {n}"), Arc::clone(ledger)));
    }
    tokio::time::sleep(Duration::from_millis(life_ms)).await;
    bench.daemon.kill().await;
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
}

/// Every fifth restart is killed within 50 ms, in the middle of its own recovery.
async fn restart(bench: &mut Bench, chance: &mut Chance) {
    if chance.below(5) == 0 {
        bench.daemon.restart_unready();
        tokio::time::sleep(Duration::from_millis(chance.below(50))).await;
        bench.daemon.kill().await;
    }
    bench.daemon.restart().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_loses_nothing() {
    let seed = rounds("HOLDFAST_CRASH_SEED", (clock::random_u64() >> 1 | 1) as usize) as u64;
    println!("HOLDFAST_CRASH_SEED={seed}");
    let (mut chance, ledger) = (Chance(seed), Ledger::default());
    let settings = Settings { drain_in_flight: 4, ..Settings::default() };
    let mut bench = Bench::with(settings).await;
    for round in 0..rounds("HOLDFAST_CRASH_ROUNDS", 20) {
        // Every fourth round the uplink is there, but slow: the kill meets a drain and lost answers.
        let online = round % 4 == 3;
        let fail = if online { Mode::None } else { Mode::Refuse };
        bench.uplink.set_faults(Faults { fail, delay_ms: 30, ..Faults::default() }).await;
        load_until_killed(&mut bench, round, &ledger, 100 + chance.below(1_400)).await;
        restart(&mut bench, &mut chance).await;
    }
    bench.uplink.set_faults(Faults::default()).await;
    until("the backlog to drain", 300, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    let ledger = ledger.lock().unwrap().clone();
    println!("{} acknowledged, {} sent", ledger.len(), bench.uplink.requests_total());
    assert!(ledger.len() > 20, "the load hardly reached the daemon");
    balance(&bench, &ledger).await;
    assert!(bench.daemon.stop().await.success());
    bench.daemon.check_databases();
}

/// One outcome each, and no send more than promised.
async fn balance(bench: &Bench, ledger: &BTreeMap<String, String>) {
    let mut sends: BTreeMap<String, usize> = BTreeMap::new();
    for entry in bench.uplink.log() {
        // By prompt, which is unique: that also counts a send that was tried before the request was stored.
        *sends.entry(entry.user).or_default() += 1;
    }
    let mut unsure = 0;
    for (id, user) in ledger {
        let record = bench.daemon.record(id).await;
        // Two kills in the middle of both permitted sends end as a dead letter that says so; nothing else may.
        if record["state"] == "dead" && record["reason"] == "unknown" {
            unsure += 1;
        } else {
            assert_eq!(record["state"], "answered", "{user}: {record}");
        }
        match sends.get(user).copied().unwrap_or(0) {
            0 if record["state"] == "dead" => {}
            1 => {}
            2 => assert_labelled(&bench.daemon.history(id).await),
            n => panic!("{user} was sent {n} times: {record}"),
        }
    }
    println!("{unsure} dead letters whose two sends were both cut off");
    assert!(unsure * 50 <= ledger.len(), "{unsure} of {} ended unsure", ledger.len());
    let prompts: BTreeSet<&String> = ledger.values().collect();
    assert_eq!(prompts.len(), ledger.len(), "one prompt was acknowledged under two ids");
}

fn assert_labelled(history: &str) {
    assert!(history.contains("maybe_billed") || history.contains("unknown"), "sent twice without a label: {history}");
}
