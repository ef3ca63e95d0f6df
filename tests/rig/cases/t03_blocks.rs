//! T3: every state that a power cut could leave of a disk with a cache, below a real file system.
//!
//! A virtual machine runs the driver; each write and flush of its disk is recorded. What was flushed by some point and a part
//! of what was not become a disk again, which is mounted here after the file system's own recovery and judged.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast::clock;
use holdfast::plant::Fault;

use super::t02_replay::judge;
use crate::case::{Case, Effort, Outcome, Planted, environment};
use crate::chance::Chance;
use crate::ledger::Ledger;
use crate::machine::{DISK_BYTES, Machine};
use crate::mount::Mount;
use crate::replay::blocks::{Damage, Disk, Event, Log};
use crate::{process, shim};

/// The file system asks for no flush.
const NO_BARRIERS: &str = "barrier=0";
/// Workloads with their rows: the short form has the first, smaller.
const WORKLOADS: [(&str, u64); 3] = [("mixed", 160), ("accept", 240), ("drain", 200)];
const ROWS_SHORT: u64 = 40;
/// Points of one recording at which the power goes, each with every damage.
const POINTS: u64 = 280;
const POINTS_SHORT: u64 = 6;
/// A recording that takes longer hangs; it takes about 10 s on an idle machine.
const RECORDING_MAX: Duration = Duration::from_mins(3);
const LOOK: Duration = Duration::from_millis(20);

pub const CASE: Case = Case {
    id: "T3",
    what: "power cut of a disk with a cache, rebuilt from its writes",
    faults: &[Planted::Around(NO_BARRIERS), Planted::In(Fault::SynchronousNormal)],
    run,
};

fn run(effort: &Effort) -> Outcome {
    let folder = shim::memory_folder();
    let machine = match Machine::build(folder.path()) {
        Ok(machine) => machine,
        Err(outcome) => return outcome,
    };
    let (mut states, mut writes, mut flushes, mut told) = (0, 0, 0, 0);
    for (workload, rows) in WORKLOADS.into_iter().take(effort.pick(1, WORKLOADS.len() as u64) as usize) {
        let recorded = record(&machine, folder.path(), workload, effort.pick(ROWS_SHORT, rows));
        let (log, image) = match recorded {
            Ok(recorded) => recorded,
            Err(outcome) => return outcome,
        };
        let count = |is: fn(&Event) -> bool| log.events.iter().filter(|event| is(event)).count();
        writes += count(|event| matches!(event, Event::Write { .. }));
        flushes += count(|event| matches!(event, Event::Flush));
        told += count(|event| matches!(event, Event::Mark(text) if text.starts_with("a! ")));
        match replay(effort, &log, &image) {
            Ok(more) => states += more,
            Err(Outcome::Broken(fault)) => {
                return Outcome::Broken(format!("{workload}, {fault} (seed {})", effort.seed));
            }
            Err(outcome) => return outcome,
        }
    }
    Outcome::held(states, "states", format!("{told} acknowledged, {writes} writes, {flushes} flushes"))
}

/// Lets the driver work in a machine until it is done; the log of its disk and the disk as it was before.
fn record(machine: &Machine, folder: &Path, workload: &str, rows: u64) -> Result<(Log, PathBuf), Outcome> {
    let missing = |what: &str, error: std::io::Error| Outcome::Missing(format!("{what}: {error}"));
    let (disk, image, log) = (folder.join("disk"), folder.join("image"), folder.join("log"));
    Machine::disk(&disk).map_err(|e| missing("no data disk", e))?;
    std::fs::copy(&disk, &image).map_err(|e| missing("no copy of the disk", e))?;
    let mount = environment().filter(|name| name == NO_BARRIERS).unwrap_or_else(|| "rw".to_owned());
    let running = machine.record(&disk, &log, workload, (rows, &mount));
    let mut running = running.map_err(|e| missing("the machine does not start", e))?;
    let end = clock::now() + RECORDING_MAX;
    while !running.over() {
        if clock::now() > end {
            return Err(Outcome::Missing(format!("the machine hangs: {}", running.last_words())));
        }
        process::pause(LOOK);
    }
    let log = Log::read(&log, DISK_BYTES).map_err(|e| missing("no recording", e))?;
    let ended = log.events.iter().any(|event| matches!(event, Event::Mark(text) if text == "end"));
    if ended {
        Ok((log, image))
    } else {
        Err(Outcome::Missing(format!("the driver did not end: {}", running.last_words())))
    }
}

/// Cuts the power at points spread over the recording; how many states were judged.
fn replay(effort: &Effort, log: &Log, image: &Path) -> Result<u64, Outcome> {
    let no_disk = |error: std::io::Error| Outcome::Missing(format!("no disk in memory: {error}"));
    let mut chance = Chance::new(effort.seed);
    // The driver begins after the file system's first writes; what stands before it is nobody's promise.
    let begun = log.events.iter().position(|event| matches!(event, Event::Mark(_))).unwrap_or(0);
    let step = ((log.events.len() - begun) as u64 / effort.pick(POINTS_SHORT, POINTS)).max(1);
    let (mut disk, mut ledger, mut states) = (Disk::new(log, image).map_err(no_disk)?, Ledger::default(), 0);
    let mut next = begun as u64 + chance.below(step);
    for (at, event) in log.events.iter().enumerate() {
        disk.apply(event).map_err(no_disk)?;
        if let Event::Mark(text) = event {
            ledger.take(text);
        }
        if at as u64 != next {
            continue;
        }
        // One in each step, anywhere in it.
        next = (next - begun as u64) / step * step + begun as u64 + step + chance.below(step);
        for damage in Damage::ALL {
            let copy = image.with_extension(format!("{at}-{damage:?}"));
            let judged = state(&disk, image, &copy, damage, &mut chance, &ledger)?;
            let of = log.events.len();
            judged.map_err(|fault| Outcome::Broken(format!("event {at} of {of}, {damage:?}: {fault}")))?;
            states += 1;
        }
    }
    Ok(states)
}

fn state(
    disk: &Disk<'_>,
    image: &Path,
    copy: &Path,
    damage: Damage,
    chance: &mut Chance,
    ledger: &Ledger,
) -> Result<Result<(), String>, Outcome> {
    let copied = Command::new("cp").arg(image).arg(copy).status();
    if !copied.is_ok_and(|status| status.success()) {
        return Err(Outcome::Missing("a copy of the disk could not be made (cp)".into()));
    }
    disk.damage(copy, damage, chance).map_err(|e| Outcome::Missing(format!("no disk in memory: {e}")))?;
    let mount = Mount::image(copy.with_extension("mounted"), copy)?;
    let judged = judge(&mount.path().join("data"), ledger);
    let _ = std::fs::remove_file(copy);
    Ok(judged)
}
