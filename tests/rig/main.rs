//! The durability rig: every fault that a gateway meets, made on purpose, and a table of what came of it.
//!
//! `cargo test --features planted --test rig` is the short form; `-- --long --report docs/durability.md` the full one.
//! Each test runs once on the sound program and once with each of its mistakes planted, which it has to catch: a test
//! that was never seen failing proves nothing. Every run is a child process of this one, so that a mistake is planted in
//! nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod case;
mod cases;
mod chance;
mod daemon;
mod driver;
mod ledger;
mod limit;
mod machine;
mod marks;
mod mount;
mod old;
mod parts;
mod process;
mod replay;
mod report;
mod run;
mod shim;

use std::process::ExitCode;

use case::Effort;
use holdfast::clock;

const USAGE: &str = "\
usage: cargo test --features planted --test rig -- [--long] [--only T1,T2] [--seed N] [--no-faults] [--report FILE]
  --long       the full figures instead of the gate's
  --only       these tests only
  --seed       repeats a run
  --no-faults  the sound program only
  --report     writes the table as Markdown, too
  --allow-missing  what this machine lacks the tools or rights for is said and does not fail the run";

/// What was asked for.
struct Ask {
    effort: Effort,
    only: Vec<String>,
    faults: bool,
    allow_missing: bool,
    report: Option<String>,
    /// Set in a child: the one test to run.
    case: Option<String>,
    /// Set in a driver, see `driver.rs`.
    drive: Option<String>,
}

fn read_arguments() -> Result<Ask, String> {
    let mut ask = Ask {
        effort: Effort { long: false, seed: clock::random_u64() >> 16 },
        only: Vec::new(),
        faults: true,
        allow_missing: false,
        report: None,
        case: None,
        drive: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--long" => ask.effort.long = true,
            "--allow-missing" => ask.allow_missing = true,
            "--no-faults" => ask.faults = false,
            "--only" => ask.only = value()?.split(',').map(str::to_owned).collect(),
            "--seed" => ask.effort.seed = value()?.parse().map_err(|_| "--seed needs a number".to_owned())?,
            "--report" => ask.report = Some(value()?),
            "--case" => ask.case = Some(value()?),
            "--drive" => ask.drive = Some(value()?),
            other => return Err(format!("{other} is not known")),
        }
    }
    Ok(ask)
}

fn main() -> ExitCode {
    let ask = match read_arguments() {
        Ok(ask) => ask,
        Err(fault) => {
            eprintln!("{fault}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(workload) = &ask.drive {
        driver::drive(workload);
        return ExitCode::SUCCESS;
    }
    if let Some(id) = &ask.case {
        return run::child(id, &ask.effort);
    }
    if ask.faults && !cfg!(feature = "planted") {
        eprintln!("planting mistakes needs `--features planted`; without it say `--no-faults`");
        return ExitCode::from(2);
    }
    let lines = run::all(&ask.effort, &ask.only, ask.faults);
    print!("{}", report::table(&lines));
    if let Some(path) = &ask.report {
        std::fs::write(path, report::markdown(&lines, &ask.effort)).expect("the report must be written");
    }
    let fine = |line: &report::Line| line.holds() || (ask.allow_missing && line.is_missing());
    if lines.iter().all(fine) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
