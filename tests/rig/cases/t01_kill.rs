//! T1: kill -9 on the real program, again and again: at an acknowledgement, at any time, within 50 ms of its start.
//!
//! Callers keep the ids they were given; after some cycles the folder is opened and each id must be there, with no more
//! sends than promised.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::cli::simulate::{Faults, Mode, Simulator, UplinkOptions, serve_uplink};
use holdfast::plant::Fault;
use holdfast::spool::Options;
use holdfast::spool::record::{Filter, Record};

use crate::case::{Case, Effort, Outcome, Planted};
use crate::chance::Chance;
use crate::daemon::{self, Line};
use crate::{driver, process, shim};

/// Callers at the same time: enough to share commits, and to have some answers under way at any kill.
const CALLERS: u64 = 16;
/// After so many cycles the folder is judged and a new one begun, so that starts stay short.
const CYCLES_PER_FOLDER: u64 = 30;
/// A cycle that has not come to its kill by then never will.
const CYCLE_MAX: Duration = Duration::from_secs(15);

pub const CASE: Case = Case {
    id: "T1",
    what: "kill -9 of the real program, also while it starts",
    faults: &[Planted::In(Fault::AckBeforeCommit)],
    run,
};

fn run(effort: &Effort) -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let key = Some(daemon::KEY.to_owned());
    let uplink = runtime.block_on(serve_uplink(UplinkOptions { key, ..UplinkOptions::default() })).expect("an uplink");
    let cycles = effort.pick(60, 2_000);
    let mut rig = Rig { runtime, uplink, chance: Chance::new(effort.seed), sends: BTreeMap::new(), acks: 0, early: 0 };
    let mut done = 0;
    while done < cycles {
        let folder = shim::memory_folder();
        let turns = CYCLES_PER_FOLDER.min(cycles - done);
        if let Err(fault) = rig.folder(folder.path(), turns) {
            return Outcome::Broken(format!("{fault} (seed {}, cycles {done} to {})", effort.seed, done + turns));
        }
        done += turns;
    }
    Outcome::held(done, "cycles", format!("{} acknowledged, {} kills within 50 ms of the start", rig.acks, rig.early))
}

/// What callers were told: the id and the text of each stored request.
type Told = BTreeMap<String, String>;

struct Rig {
    runtime: tokio::runtime::Runtime,
    uplink: Simulator,
    chance: Chance,
    /// How often each text reached the uplink.
    sends: BTreeMap<String, u64>,
    acks: u64,
    early: u64,
}

/// When a cycle's kill falls.
#[derive(Debug, Clone, Copy)]
enum Kill {
    /// This long after the start, whatever the gateway is doing then.
    Early(Duration),
    /// The moment the n-th acknowledgement arrives.
    AtAck(u64),
    /// This long after the first one.
    Later(Duration),
}

impl Rig {
    fn folder(&mut self, dir: &Path, cycles: u64) -> Result<(), String> {
        daemon::configure(dir, &self.uplink.base_url(), "").map_err(|e| e.to_string())?;
        self.sends.clear();
        self.uplink.clear_log();
        let told = Arc::new(Mutex::new(Told::new()));
        for cycle in 0..cycles {
            // In a third of them the uplink is there, but slow: the kill meets a drain and lost answers.
            let fail = if cycle % 3 == 2 { Mode::None } else { Mode::Refuse };
            self.runtime.block_on(self.uplink.set_faults(Faults { fail, delay_ms: 10, ..Faults::default() }));
            let kill = match self.chance.below(8) {
                0 | 1 => Kill::Early(Duration::from_micros(self.chance.below(50_000))),
                2 => Kill::Later(Duration::from_micros(self.chance.below(60_000))),
                _ => Kill::AtAck(1 + self.chance.below(160)),
            };
            // Large bodies make a commit long: what is told before its end is lost with it.
            let large = self.chance.one_in(3);
            self.cycle(dir, cycle, kill, large, &told)?;
            self.gather();
        }
        let told = std::mem::take(&mut *told.lock().expect("what was told"));
        self.acks += told.len() as u64;
        self.judge(dir, &told)
    }

    fn cycle(
        &mut self,
        dir: &Path,
        cycle: u64,
        kill: Kill,
        large: bool,
        told: &Arc<Mutex<Told>>,
    ) -> Result<(), String> {
        let mut child = daemon::start(dir).map_err(|e| e.to_string())?;
        let shot = Arc::new(Shot::new(child.id(), kill));
        let callers: Vec<_> = (0..CALLERS)
            .map(|n| {
                let (shot, told, socket) = (Arc::clone(&shot), Arc::clone(told), daemon::socket(dir));
                std::thread::spawn(move || call(&socket, &format!("c{cycle}-{n}"), large, &shot, &told))
            })
            .collect();
        if let Kill::Early(after) = kill {
            self.early += 1;
            process::pause(after);
            shot.fire();
        }
        let status = process::wait_for(&mut child, CYCLE_MAX);
        shot.over.store(true, Ordering::SeqCst);
        callers.into_iter().try_for_each(|caller| caller.join().map_err(|_| "a caller panicked".to_owned()))?;
        match status {
            None => Err(format!("cycle {cycle}: nothing was acknowledged in {} s: {}", CYCLE_MAX.as_secs(), log(dir))),
            Some(status) if status.code().is_some() => {
                Err(format!("cycle {cycle}: the gateway ended by itself with {status}: {}", log(dir)))
            }
            Some(_) => shot.odd.lock().expect("an odd answer").take().map_or(Ok(()), Err),
        }
    }

    /// The uplink keeps a bounded log, so it is read after each cycle.
    fn gather(&mut self) {
        for entry in self.uplink.log() {
            *self.sends.entry(entry.user).or_default() += 1;
        }
        self.uplink.clear_log();
    }

    fn judge(&self, dir: &Path, told: &Told) -> Result<(), String> {
        let options = Options { max_bytes: 8 << 30, max_requests: 400_000, ..driver::options(&dir.join("data")) };
        let spool = holdfast::spool::open(options).map_err(|e| format!("the folder does not open: {e}"))?;
        let records = self.runtime.block_on(all(&spool))?;
        for (id, text) in told {
            let record = records.get(id).ok_or_else(|| format!("{id} ({}) was accepted and is gone", short(text)))?;
            let sends = self.sends.get(&text.chars().take(200).collect::<String>()).copied().unwrap_or(0);
            if sends > 2 || sends == 2 && !record.maybe_billed {
                return Err(format!("{id} was sent {sends} times, maybe_billed {}", record.maybe_billed));
            }
            if record.state.is_final() {
                continue;
            }
            let body = self.runtime.block_on(spool.body(id.clone())).map_err(|e| format!("{id}: {e}"))?;
            if !body.is_some_and(|body| String::from_utf8_lossy(&body).contains(text.as_str())) {
                return Err(format!("{id} ({}) has lost its body", short(text)));
            }
        }
        Ok(())
    }
}

/// The kill and what it waits for.
struct Shot {
    pid: u32,
    at: Kill,
    acks: AtomicU64,
    over: AtomicBool,
    odd: Mutex<Option<String>>,
}

impl Shot {
    fn new(pid: u32, at: Kill) -> Shot {
        Shot { pid, at, acks: AtomicU64::new(0), over: AtomicBool::new(false), odd: Mutex::new(None) }
    }

    fn fire(&self) {
        // The child is not waited for before this, so the number is still its own.
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid.cast_signed())
            && !self.over.swap(true, Ordering::SeqCst)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    fn acknowledged(&self) {
        let acks = self.acks.fetch_add(1, Ordering::SeqCst) + 1;
        match self.at {
            Kill::AtAck(n) if acks == n => self.fire(),
            Kill::Later(after) if acks == 1 => {
                process::pause(after);
                self.fire();
            }
            _ => {}
        }
    }
}

/// Asks until the gateway is gone. Answers that do not arrive acknowledge nothing.
fn call(socket: &Path, name: &str, large: bool, shot: &Shot, told: &Mutex<Told>) {
    let mut line = None;
    let mut n = 0;
    while !shot.over.load(Ordering::SeqCst) {
        let Some(open) = line.as_mut() else {
            line = Line::open(socket).ok();
            if line.is_none() {
                process::pause(Duration::from_millis(1));
            }
            continue;
        };
        n += 1;
        let text = format!("{name}-{n}-{}", "x".repeat(if large { 50_000 } else { 100 }));
        match open.store(&text) {
            Ok((202, answer)) => {
                let id = serde_json::from_str::<serde_json::Value>(&answer).ok();
                let id = id.and_then(|json| json["id"].as_str().map(str::to_owned)).unwrap_or_default();
                shot.acknowledged();
                told.lock().expect("what was told").insert(id, text);
            }
            Ok((503, _)) => {} // Not ready to take it: nothing was promised.
            Ok((status, answer)) => *shot.odd.lock().expect("an odd answer") = Some(format!("{status}: {answer}")),
            Err(_) => line = None,
        }
    }
}

async fn all(spool: &holdfast::spool::Spool) -> Result<BTreeMap<String, Record>, String> {
    let (mut found, mut after) = (BTreeMap::new(), 0);
    loop {
        let step = spool.list(Filter { after, limit: 1_000, ..Filter::default() }).await.map_err(|e| e.to_string())?;
        let Some(last) = step.last() else { return Ok(found) };
        after = last.seq;
        found.extend(step.into_iter().map(|record| (record.id.clone(), record)));
    }
}

fn short(text: &str) -> String {
    text.chars().take(20).collect()
}

fn log(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("daemon.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" / ")
}
