//! T12: memory, log, folder and descriptors stay level, however many rows pass through and however many are refused.

use std::path::Path;
use std::time::Duration;

use holdfast::clock;
use holdfast::plant::Fault;

use crate::case::{Case, Effort, Outcome, Planted};
use crate::limit::Limit;
use crate::process;

const MEMORY: u64 = 96 << 20;
const RESIDENT_MAX_KIB: u64 = 64 << 10;
/// Twice what a checkpoint after 1,000 pages leaves.
const LOG_MAX_KIB: u64 = 8 << 10;
/// Between the first measure after the start and the last.
const DESCRIPTORS_MORE: u64 = 4;
/// A million rows at a thousand a second, and as much again.
const TIME_MAX: Duration = Duration::from_mins(40);

pub const CASE: Case = Case {
    id: "T12",
    what: "memory, log, disk and descriptors stay level",
    faults: &[Planted::In(Fault::ReaderLeftOpen)],
    run,
};

fn run(effort: &Effort) -> Outcome {
    // Not in memory: what is written there would count as the child's.
    let folder = tempfile::Builder::new().prefix("hfrig").tempdir().expect("a folder for the test");
    let limit = Limit::of(MEMORY);
    let rows = effort.pick(8_000, 1_000_000);
    let cap = effort.pick(8 << 20, 256 << 20);
    let mut notes = Vec::new();
    for (workload, disk_max) in [("bounds", 64 << 20), ("cap", cap + cap / 4 + (96 << 20))] {
        match measure(&limit, &folder.path().join(workload), workload, rows, cap) {
            Ok(measures) => match judge(&measures, disk_max >> 10) {
                Ok(note) => notes.push(format!("{workload}: {note}")),
                Err(fault) => return Outcome::Broken(format!("{workload}: {fault} (seed {})", effort.seed)),
            },
            Err(fault) => return Outcome::Broken(format!("{workload}: {fault}")),
        }
    }
    Outcome::held(rows * 2, "rows", format!("under 96 MB by {}; {}", limit.means, notes.join("; ")))
}

/// Resident KiB, log KiB, folder KiB, descriptors.
type Measure = [u64; 4];

fn measure(limit: &Limit, at: &Path, workload: &str, rows: u64, cap: u64) -> Result<Vec<Measure>, String> {
    std::fs::create_dir_all(at.join("root")).map_err(|e| e.to_string())?;
    let marks = at.join("marks");
    let mut command = limit.command(&std::env::current_exe().map_err(|e| e.to_string())?);
    command.args(["--drive", workload]).env("RIG_DIR", at.join("root")).env("RIG_MARKS", &marks);
    command.env("RIG_ROWS", rows.to_string()).env("RIG_CAP", cap.to_string());
    let child = command.spawn().map_err(|e| e.to_string())?;
    let status = process::wait(child, clock::now() + TIME_MAX).ok_or("still runs")?;
    if !status.success() {
        return Err(format!("the program ended with {status} under {} MB", MEMORY >> 20));
    }
    let text = std::fs::read_to_string(&marks).map_err(|e| e.to_string())?;
    let lines = text.lines().filter_map(|line| line.strip_prefix("b "));
    let numbers = |line: &str| line.split(' ').filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
    Ok(lines.filter_map(|line| numbers(line).try_into().ok()).collect())
}

fn judge(measures: &[Measure], disk_max_kib: u64) -> Result<String, String> {
    let (Some(first), Some(last)) = (measures.get(1), measures.last()) else {
        return Err("nothing was measured".into());
    };
    let most = |at: usize| measures.iter().map(|m| m[at]).max().unwrap_or(0);
    let bounds =
        [("resident", most(0), RESIDENT_MAX_KIB), ("log", most(1), LOG_MAX_KIB), ("disk", most(2), disk_max_kib)];
    for (what, kib, max) in bounds {
        if kib > max {
            return Err(format!("{what} reached {kib} KiB of {max}"));
        }
    }
    if last[3] > first[3] + DESCRIPTORS_MORE {
        return Err(format!("descriptors went from {} to {}", first[3], last[3]));
    }
    // The second half must not be larger than the first by more than its own noise.
    let (early, late) = measures.split_at(measures.len() / 2);
    let top = |part: &[Measure]| part.iter().map(|m| m[0]).max().unwrap_or(0);
    if top(late) > top(early) + top(early) / 4 + 4_096 {
        return Err(format!("memory went from {} to {} KiB", top(early), top(late)));
    }
    Ok(format!("RSS {} MiB, log {} MiB, disk {} MiB", most(0) >> 10, most(1) >> 10, most(2) >> 10))
}
