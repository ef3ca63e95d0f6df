//! T4: the power of a virtual machine is cut while the driver works in it; then its disk is opened and judged.
//!
//! Each disk lives through two cuts, so that the second machine recovers what the first one left. What is judged is a copy,
//! mounted here after the file system's own recovery: the machine goes on with what it had.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use holdfast::clock;
use holdfast::plant::Fault;

use super::t02_replay::judge;
use crate::case::{Case, Effort, Outcome, Planted};
use crate::chance::Chance;
use crate::ledger::Ledger;
use crate::machine::{Machine, Running};
use crate::mount::Mount;
use crate::{process, shim};

const WORKLOADS: [&str; 3] = ["accept", "mixed", "drain"];
/// A machine that has not come to its cut by then never will; it takes about 8 s on an idle machine.
const CYCLE_MAX: Duration = Duration::from_mins(2);
/// How often the marks are looked at: the time from an acknowledgement to the cut.
const LOOK: Duration = Duration::from_millis(1);

pub const CASE: Case =
    Case { id: "T4", what: "power cut of a virtual machine", faults: &[Planted::In(Fault::SynchronousNormal)], run };

fn run(effort: &Effort) -> Outcome {
    let folder = shim::memory_folder();
    let machine = match Machine::build(folder.path()) {
        Ok(machine) => machine,
        Err(outcome) => return outcome,
    };
    let mut rig = Rig { machine, chance: Chance::new(effort.seed), told: Told::default(), tally: Tally::default() };
    let cycles = effort.pick(2, 30);
    for n in 0..cycles {
        match rig.cycle(n, folder.path()) {
            Ok(()) => {}
            Err(Outcome::Broken(fault)) => {
                return Outcome::Broken(format!("cycle {n}: {fault} (seed {})", effort.seed));
            }
            Err(outcome) => return outcome,
        }
    }
    let Tally { acks, leases, starting, again } = rig.tally;
    let note = format!("{acks} acknowledged, {leases} cuts at a lease, {starting} of a start, {again} disks cut twice");
    Outcome::held(cycles, "cycles", note)
}

/// When the power goes.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// As the n-th acknowledgement of this machine arrives.
    AtAck(usize),
    /// As the n-th lease of this machine arrives: the request is as good as sent.
    AtLease(usize),
    /// This long after the first acknowledgement.
    Later(Duration),
    /// This long after the driver was started, whatever it is doing.
    Starting(Duration),
}

/// What one disk has promised.
#[derive(Default)]
struct Told {
    ledger: Ledger,
    /// The highest number offered.
    last: u64,
}

#[derive(Default)]
struct Tally {
    acks: u64,
    leases: u64,
    starting: u64,
    again: u64,
}

struct Rig {
    machine: Machine,
    chance: Chance,
    told: Told,
    tally: Tally,
}

impl Rig {
    fn cycle(&mut self, n: u64, folder: &Path) -> Result<(), Outcome> {
        let disk = folder.join("disk");
        if n.is_multiple_of(2) {
            self.told = Told::default();
            Machine::disk(&disk).map_err(|e| Outcome::Missing(format!("no data disk: {e}")))?;
        } else {
            self.tally.again += 1;
        }
        let workload = WORKLOADS[(n % 3) as usize];
        let cut = self.when(n, workload);
        let name = folder.join(format!("cycle{n}"));
        let running = self.machine.start(&disk, workload, self.told.last + 1, &name);
        let mut running = running.map_err(|e| Outcome::Missing(format!("the machine does not start: {e}")))?;
        wait_for(cut, &mut running)?;
        running.cut();
        let before = self.told.ledger.accepted;
        self.told.take(&running.marks());
        self.tally.acks += self.told.ledger.accepted - before;
        let judged = judge_copy(&disk, &name, &self.told.ledger)?;
        judged.map_err(|fault| Outcome::Broken(format!("{workload}, {cut:?}: {fault}")))
    }

    /// The gate's two cuts meet a fresh acknowledgement and a fresh lease: those it must not miss.
    fn when(&mut self, n: u64, workload: &str) -> Cut {
        let leases = workload != "accept";
        match self.chance.below(8) {
            0 if n > 1 => {
                self.tally.starting += 1;
                Cut::Starting(Duration::from_micros(self.chance.below(900_000)))
            }
            1 | 2 if n > 1 => Cut::Later(Duration::from_micros(self.chance.below(3_000_000))),
            3..=5 if n > 1 && leases => self.at_lease(),
            _ if n == 1 => self.at_lease(),
            _ => Cut::AtAck(1 + self.chance.below(120) as usize),
        }
    }

    fn at_lease(&mut self) -> Cut {
        self.tally.leases += 1;
        Cut::AtLease(1 + self.chance.below(40) as usize)
    }
}

impl Told {
    fn take(&mut self, marks: &str) {
        for line in marks.lines() {
            self.ledger.take(line);
            let offered = line.strip_prefix("a? ").and_then(|rest| rest.split(' ').next()?.parse().ok());
            self.last = self.last.max(offered.unwrap_or(0));
        }
    }
}

/// Returns when the power is to go.
fn wait_for(cut: Cut, running: &mut Running) -> Result<(), Outcome> {
    let end = clock::now() + CYCLE_MAX;
    while !due(cut, running) {
        let over = running.over();
        if over || clock::now() > end {
            let what = if over { "switched itself off" } else { "hangs" };
            let said = format!("the machine {what} before its cut, {cut:?}: {}", running.last_words());
            // Once the driver runs, what it does on this disk is the program's doing.
            return Err(if running.begun() { Outcome::Broken(said) } else { Outcome::Missing(said) });
        }
        process::pause(LOOK);
    }
    match cut {
        Cut::AtAck(_) | Cut::AtLease(_) => {}
        Cut::Later(after) | Cut::Starting(after) => process::pause(after),
    }
    Ok(())
}

fn due(cut: Cut, running: &Running) -> bool {
    let told = |mark: &str| running.marks().lines().filter(|line| line.starts_with(mark)).count();
    match cut {
        Cut::AtAck(n) => told("a! ") >= n,
        Cut::AtLease(n) => told("l! ") >= n,
        Cut::Later(_) => told("a! ") >= 1,
        Cut::Starting(_) => running.begun(),
    }
}

/// Mounts a copy, which makes the file system recover, and compares it with what was told.
fn judge_copy(disk: &Path, name: &Path, ledger: &Ledger) -> Result<Result<(), String>, Outcome> {
    // A name of its own each time: the last one may still be let go of, and must not change below its mount.
    let copy = name.with_extension("copy");
    let copied = Command::new("cp").arg("--sparse=always").arg(disk).arg(&copy).status();
    if !copied.is_ok_and(|status| status.success()) {
        return Err(Outcome::Missing("a copy of the disk could not be made (cp)".into()));
    }
    let mount = Mount::image(name.with_extension("mounted"), &copy)?;
    let judged = judge(&mount.path().join("data"), ledger);
    let _ = std::fs::remove_file(&copy);
    Ok(judged)
}
