//! T5: the n-th change on disk fails, once or from then on: while serving, while recovering, while migrating.
//!
//! A failed sync forgets what it was to keep, and half of the runs end in a power cut. Then the folder is opened without
//! faults and compared with what the driver had been told.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast::clock;
use holdfast::plant::Fault;

use super::t02_replay::judge;
use crate::case::{Case, Effort, Outcome, Planted};
use crate::chance::Chance;
use crate::ledger::Ledger;
use crate::{process, shim};

/// Rows of a run: enough for each kind of call, few enough for sixty runs a second.
const ROWS: u64 = 24;
/// A driver that still runs then hangs; a run takes some tens of milliseconds.
const HANGS: Duration = Duration::from_secs(30);
const ERRORS: [(&str, i32); 3] = [("EIO", 5), ("ENOSPC", 28), ("EROFS", 30)];

pub const CASE: Case = Case {
    id: "T5",
    what: "EIO, ENOSPC, EROFS at the n-th change on disk",
    faults: &[Planted::In(Fault::FsyncRetriedAfterEio)],
    run,
};

fn run(effort: &Effort) -> Outcome {
    let folder = shim::memory_folder();
    let library = match shim::build("failing", folder.path()) {
        Ok(library) => library,
        Err(outcome) => return outcome,
    };
    let mut rig = Rig { library, folder: folder.path().to_path_buf(), calls: [0; 4], syncs: [0; 4], accepted: 0 };
    if let Err(fault) = rig.prepare() {
        return Outcome::Missing(fault);
    }
    let runs = effort.pick(150, 3_200);
    for n in 0..runs {
        let mut chance = Chance::new(effort.seed.wrapping_add(n));
        let plan = Plan::new(n, &mut chance, &rig);
        if let Err(fault) = rig.one(n, &plan) {
            return Outcome::Broken(format!("{plan:?}: {fault} (seed {}, run {n})", effort.seed));
        }
    }
    Outcome::held(runs, "runs", format!("{} acknowledged under faults", rig.accepted))
}

/// Where a run begins.
const FRESH: usize = 0;
/// On a folder whose process was killed, with a log to recover.
const KILLED: usize = 1;
/// The same, and only the first calls: the recovery itself.
const RECOVERY: usize = 2;
/// On a folder of the first released shape.
const OLD: usize = 3;

#[derive(Debug)]
struct Plan {
    start: usize,
    error: (&'static str, i32),
    at: u64,
    syncs_only: bool,
    ever: bool,
    cut: bool,
}

impl Plan {
    fn new(n: u64, chance: &mut Chance, rig: &Rig) -> Plan {
        let start = [FRESH, KILLED, RECOVERY, OLD][(n % 4) as usize];
        let error = ERRORS[(n / 4 % 3) as usize];
        // Only a sync that fails with EIO forgets; those are few among all calls.
        let syncs_only = error.0 == "EIO" && chance.one_in(2);
        let calls = if syncs_only { rig.syncs[start] } else { rig.calls[start] };
        let last = if matches!(start, RECOVERY | OLD) { 40.min(calls) } else { calls };
        Plan {
            start,
            error,
            at: 1 + chance.below(last.max(1)),
            syncs_only,
            ever: chance.one_in(3),
            cut: chance.one_in(2),
        }
    }
}

struct Rig {
    library: PathBuf,
    folder: PathBuf,
    /// Calls that a run without faults makes, by its start.
    calls: [u64; 4],
    syncs: [u64; 4],
    accepted: u64,
}

impl Rig {
    /// Makes the folders that runs begin with, and counts the calls of runs without a fault.
    fn prepare(&mut self) -> Result<(), String> {
        for name in ["killed", "old"] {
            std::fs::create_dir_all(self.folder.join(name)).map_err(|e| e.to_string())?;
        }
        let killed = self.folder.join("killed");
        self.drive(&killed, "accept", 1, &[("RIG_ABRUPT", "1".into())])?;
        crate::old::make(&self.folder.join("old"), 1).map_err(|e| format!("no old folder: {e}"))?;
        for start in [FRESH, KILLED, RECOVERY, OLD] {
            for syncs in [false, true] {
                let at = self.begin(start, "count")?;
                let count = at.join("count");
                let mut settings = vec![("RIG_COUNT", count.display().to_string())];
                if syncs {
                    settings.push(("RIG_FAIL_SYNCS", "1".into()));
                }
                self.drive(&at, "mixed", 1_000, &settings)?;
                let calls = std::fs::read_to_string(&count).map_err(|e| format!("no count: {e}"))?;
                let counts = if syncs { &mut self.syncs } else { &mut self.calls };
                counts[start] = calls.parse().map_err(|_| "no count".to_owned())?;
                let _ = std::fs::remove_dir_all(&at);
            }
        }
        Ok(())
    }

    fn begin(&self, start: usize, name: &str) -> Result<PathBuf, String> {
        let at = self.folder.join(name);
        let copy = |from: &str| process::copy_folder(&self.folder.join(from), &at);
        let made = match start {
            FRESH => std::fs::create_dir(&at),
            OLD => copy("old"),
            _ => copy("killed"),
        };
        made.map(|()| at).map_err(|e| format!("a folder for the run: {e}"))
    }

    fn one(&mut self, n: u64, plan: &Plan) -> Result<(), String> {
        let at = self.begin(plan.start, &format!("run{n}"))?;
        let mut settings = vec![("RIG_FAIL_AT", plan.at.to_string()), ("RIG_FAIL_ERRNO", plan.error.1.to_string())];
        for (name, on) in [("RIG_FAIL_SYNCS", plan.syncs_only), ("RIG_FAIL_EVER", plan.ever), ("RIG_CUT", plan.cut)] {
            if on {
                settings.push((name, "1".into()));
            }
        }
        settings.push(("RIG_ABRUPT", "1".into()));
        self.drive(&at, "mixed", 1_000, &settings)?;
        let marks = std::fs::read_to_string(at.join("marks")).map_err(|e| e.to_string())?;
        let ledger = Ledger::read(&marks);
        self.accepted += ledger.accepted;
        // Opened under the fault or not: if it was opened and the fault is over, it must be served again.
        if !plan.ever && ledger.ended && !ledger.alive {
            return Err("one failed call, and nothing was accepted any more".into());
        }
        judge(&at.join("root/data"), &ledger)?;
        std::fs::remove_dir_all(&at).map_err(|e| e.to_string())
    }

    fn drive(&self, at: &Path, workload: &str, first: u64, settings: &[(&str, String)]) -> Result<(), String> {
        let root = at.join("root");
        std::fs::create_dir_all(&root).map_err(|e| e.to_string())?;
        let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
        command.args(["--drive", workload]).env("RIG_ROWS", ROWS.to_string()).env("RIG_FIRST", first.to_string());
        command.env("LD_PRELOAD", &self.library).env("RIG_DIR", &root).env("RIG_MARKS", at.join("marks"));
        command.envs(settings.iter().map(|(name, value)| (*name, value))).stderr(Stdio::null());
        let child = command.spawn().map_err(|e| e.to_string())?;
        match process::wait(child, clock::now() + HANGS) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("the driver ended with {status}")),
            None => Err(format!("the driver still runs after {} s", HANGS.as_secs())),
        }
    }
}
