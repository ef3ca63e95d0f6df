//! T2: every state that a power cut could leave between two system calls, rebuilt and opened.
//!
//! The driver runs under the recorder; the trace is replayed into folders in memory, and each is opened by the library
//! and compared with what the driver had been told by then.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::plant::Fault;

use crate::case::{Case, Effort, Outcome, Planted, environment};
use crate::chance::Chance;
use crate::ledger::Ledger;
use crate::replay::disk::{Damage, Disk};
use crate::replay::trace::{self, Event};
use crate::{driver, shim};

const LOST_SYNCS: &str = "one-in-100-fsyncs-dropped";
/// Workloads with the rows of the short and of the long form. The short one opens some states of each call, the long one
/// every damage at every call: some 30,000 states.
const WORKLOADS: [(&str, u64, u64); 3] = [("accept", 240, 150), ("drain", 60, 64), ("prune", 40, 24)];
/// Threads that open states: the machine's two cores.
const THREADS: u64 = 2;

/// A spool of some hundred rows is read in milliseconds.
const SALVAGE_MAX: Duration = Duration::from_secs(20);

pub const CASE: Case = Case {
    id: "T2",
    what: "power cut at each system call, rebuilt",
    faults: &[
        Planted::In(Fault::SynchronousNormal),
        Planted::In(Fault::AckBeforeCommit),
        Planted::In(Fault::SendingNotSynced),
        Planted::Around(LOST_SYNCS),
    ],
    run,
};

fn run(effort: &Effort) -> Outcome {
    let folder = shim::memory_folder();
    let recorder = match shim::build("recorder", folder.path()) {
        Ok(recorder) => recorder,
        Err(outcome) => return outcome,
    };
    let (mut states, mut accepted) = (0, 0);
    for (workload, short, long) in WORKLOADS {
        let at = folder.path().join(workload);
        std::fs::create_dir(&at).expect("a folder for the workload");
        let events = match record(&recorder, &at, workload, effort.pick(short, long)) {
            Ok(events) => events,
            Err(fault) => return Outcome::Missing(fault),
        };
        accepted += events.iter().filter(|e| matches!(e, Event::Mark { text } if text.starts_with("a!"))).count();
        let replay = Replay::new(effort, workload, events, at);
        states += match replay.all() {
            Ok(states) => states,
            Err(fault) => return Outcome::Broken(format!("{fault} (seed {})", effort.seed)),
        };
    }
    Outcome::held(states, "states", format!("{accepted} acknowledged, {} damages", Damage::ALL.len()))
}

/// Runs the workload on an empty folder under the recorder and reads what it recorded.
fn record(recorder: &Path, at: &Path, workload: &str, rows: u64) -> Result<Vec<Event>, String> {
    std::fs::create_dir(at.join("root")).map_err(|e| e.to_string())?;
    record_in(recorder, at, workload, rows)
}

/// The same on the folder `at/root` as it stands.
pub fn record_in(recorder: &Path, at: &Path, workload: &str, rows: u64) -> Result<Vec<Event>, String> {
    let root = at.join("root");
    let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    command.args(["--drive", workload]).env("RIG_ROWS", rows.to_string());
    // A sync as slow as a card's: what is told too early is told before it.
    command.env("LD_PRELOAD", recorder).env("RIG_DIR", &root).env("RIG_SYNC_US", "700");
    command.env("RIG_MARKS", at.join("marks")).env("RIG_TRACE", at.join("trace"));
    if environment().as_deref() == Some(LOST_SYNCS) {
        command.env("RIG_DROP_SYNCS", "100");
    }
    let status = command.status().map_err(|e| e.to_string())?;
    let events = trace::read(&at.join("trace")).map_err(|e| format!("no trace of {workload} ({status}): {e}"))?;
    let ended = events.iter().any(|e| matches!(e, Event::Mark { text } if text.trim() == "end"));
    if status.success() && ended { Ok(events) } else { Err(format!("{workload} ended with {status}")) }
}

/// One trace and the states that are made of it.
pub struct Replay {
    /// Every damage at every call.
    all: bool,
    /// What the disk held before, and what had been told of it.
    before: Option<std::path::PathBuf>,
    told: Ledger,
    seed: u64,
    workload: &'static str,
    events: Vec<Event>,
    at: std::path::PathBuf,
    states: AtomicU64,
    /// Looks at each state before anything has opened it.
    untouched: fn(&Path) -> Result<(), String>,
    fault: Mutex<Option<String>>,
    stop: AtomicBool,
}

impl Replay {
    /// States of a run that began with an empty folder: all of them in the long form.
    fn new(effort: &Effort, workload: &'static str, events: Vec<Event>, at: std::path::PathBuf) -> Replay {
        Replay {
            all: effort.long,
            before: None,
            told: Ledger::default(),
            seed: effort.seed,
            workload,
            events,
            at,
            states: AtomicU64::new(0),
            untouched: |_| Ok(()),
            fault: Mutex::new(None),
            stop: AtomicBool::new(false),
        }
    }

    /// Every state of an upgrade that began with this folder, of which this had been told.
    pub fn upgrade(
        effort: &Effort,
        events: Vec<Event>,
        at: std::path::PathBuf,
        (before, told): (&Path, Ledger),
        untouched: fn(&Path) -> Result<(), String>,
    ) -> Replay {
        let before = Some(before.to_path_buf());
        Replay { all: true, before, told, untouched, ..Replay::new(effort, "upgrade", events, at) }
    }

    /// Opens every state; how many there were, or the first fault.
    pub fn all(self) -> Result<u64, String> {
        let shared = Arc::new(self);
        let threads: Vec<_> = (0..THREADS)
            .map(|part| {
                let replay = Arc::clone(&shared);
                std::thread::spawn(move || replay.part(part))
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "the replay itself ended".to_owned())?;
        }
        let fault = shared.fault.lock().map_err(|e| e.to_string())?.take();
        fault.map_or(Ok(shared.states.load(Ordering::Relaxed)), Err)
    }

    fn part(&self, part: u64) {
        let (mut disk, mut ledger) = (Disk::default(), self.told.clone());
        if let Some(before) = &self.before {
            disk.load(before).expect("what the disk held before");
        }
        for (at, event) in self.events.iter().enumerate() {
            disk.apply(event);
            if let Event::Mark { text } = event {
                ledger.take(text.trim());
            }
            let mut chance = Chance::new(self.seed ^ (at as u64) << 8);
            let damages = self.damages(at, &mut chance);
            if self.stop.load(Ordering::Relaxed) || at as u64 % THREADS != part {
                continue;
            }
            for damage in damages {
                if let Err(fault) = self.state(at, damage, &disk, &ledger) {
                    self.stop.store(true, Ordering::Relaxed);
                    *self.fault.lock().expect("the first fault") = Some(fault);
                    return;
                }
                self.states.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whatever the long form: all of them. In the short one what was just told is always tried without its cache, and
    /// something else now and then.
    fn damages(&self, at: usize, chance: &mut Chance) -> Vec<Damage> {
        if matches!(self.events[at], Event::Open { .. } | Event::Close { .. }) {
            return Vec::new();
        }
        if self.all {
            return Damage::ALL.to_vec();
        }
        // Of marks in a row the last one holds what the others hold.
        let is_mark = |at: usize| matches!(self.events.get(at), Some(Event::Mark { .. }));
        match (is_mark(at) && !is_mark(at + 1), chance.below(24)) {
            (true, _) => vec![Damage::Dropped],
            (false, 0) => vec![Damage::ALL[chance.below(5) as usize], Damage::Subset],
            _ => Vec::new(),
        }
    }

    fn state(&self, at: usize, damage: Damage, disk: &Disk, ledger: &Ledger) -> Result<(), String> {
        let mut chance = Chance::new(self.seed ^ (at as u64) << 8 ^ (1 + damage as u64));
        let target = self.at.join(format!("{at}-{damage:?}"));
        std::fs::create_dir(&target).map_err(|e| e.to_string())?;
        let written = disk.write(&target, damage, &mut chance).map_err(|e| e.to_string());
        let data = target.join("data");
        let judged = written.and_then(|()| (self.untouched)(&data)).and_then(|()| judge(&data, ledger));
        let _ = std::fs::remove_dir_all(&target);
        judged.map_err(|fault| format!("{} at call {at} of {}, {damage:?}: {fault}", self.workload, self.events.len()))
    }
}

/// Opens the folder and compares it with what was told.
pub fn judge(data_dir: &Path, ledger: &Ledger) -> Result<(), String> {
    let judged = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let spool = holdfast::spool::open(driver::options(data_dir)).map_err(|e| format!("does not open: {e}"))?;
        runtime.block_on(async {
            // What was set aside comes back while the service runs: rows stand still only after that.
            let salvaged = tokio::time::timeout(SALVAGE_MAX, spool.salvaged()).await;
            let whole = salvaged.map_err(|_| format!("the salvage is not over after {} s", SALVAGE_MAX.as_secs()))?;
            if !whole.map_err(|e| e.to_string())? {
                return Err("the salvage stopped".to_owned());
            }
            ledger.judge(&spool).await
        })
    }));
    judged.unwrap_or_else(|_| Err("opening it panicked".to_owned()))
}
