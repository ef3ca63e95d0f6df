//! Runs the tests, each in a child process, sound and with each mistake planted.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use holdfast::clock;
use serde_json::{Value, json};

use crate::case::{Case, Effort, Figures, Outcome, Planted};
use crate::cases;
use crate::report::{Line, Plant};

/// How a child's last line begins.
const RESULT: &str = "RIG-RESULT ";
/// A kill has to fall into the moment that a mistake opens, and on a quick disk it does not with every seed.
const SEEDS_MAX: u64 = 3;

/// Runs one test in this process and prints what came of it as one line.
pub fn child(id: &str, effort: &Effort) -> ExitCode {
    let Some(case) = cases::ALL.iter().find(|case| case.id == id) else {
        eprintln!("there is no test {id}");
        return ExitCode::from(2);
    };
    let result = match (case.run)(effort) {
        Outcome::Held(f) => json!({"is": "held", "count": f.count, "unit": f.unit, "note": f.note}),
        Outcome::Broken(what) => json!({"is": "broken", "what": what}),
        Outcome::Missing(what) => json!({"is": "missing", "what": what}),
        Outcome::Faulty(what) => json!({"is": "faulty", "what": what}),
    };
    println!("{RESULT}{result}");
    ExitCode::SUCCESS
}

/// Every test that was asked for, one after the other: the machine is theirs alone.
pub fn all(effort: &Effort, only: &[String], faults: bool) -> Vec<Line> {
    let wanted = |case: &&Case| only.is_empty() || only.iter().any(|id| id == case.id);
    cases::ALL.iter().filter(wanted).map(|case| one(case, effort, faults)).collect()
}

fn one(case: &Case, effort: &Effort, faults: bool) -> Line {
    eprintln!("{}: {} (seed {})", case.id, case.what, effort.seed);
    let (outcome, took) = spawn(case, effort, None);
    let planted = case.faults.iter().filter(|_| faults);
    let plants =
        planted.map(|fault| Plant { name: fault.name(), caught: catches(case, *fault, effort.seed) }).collect();
    eprintln!("{}: {}", case.id, said(&outcome, took));
    Line { id: case.id, what: case.what, seed: effort.seed, took, outcome, plants }
}

/// Whether it sees the mistake. In its short form: what only the long run sees, the gate would let through.
fn catches(case: &Case, fault: Planted, seed: u64) -> bool {
    (seed..seed + SEEDS_MAX).any(|seed| {
        let (outcome, took) = spawn(case, &Effort { long: false, seed }, Some(fault));
        eprintln!("{}: with {} planted: {}", case.id, fault.name(), said(&outcome, took));
        matches!(outcome, Outcome::Broken(_))
    })
}

fn said(outcome: &Outcome, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    match outcome {
        Outcome::Held(f) => format!("held in {seconds:.1} s: {} {} {}", f.count, f.unit, f.note),
        Outcome::Broken(what) => format!("BROKEN after {seconds:.1} s: {what}"),
        Outcome::Missing(what) => format!("NOT RUN: {what}"),
        Outcome::Faulty(what) => format!("NO RESULT: {what}"),
    }
}

fn spawn(case: &Case, effort: &Effort, fault: Option<Planted>) -> (Outcome, Duration) {
    let start = clock::now();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--case", case.id, "--seed", &effort.seed.to_string()]).stdout(Stdio::piped());
    if effort.long {
        command.arg("--long");
    }
    command.env_remove("HOLDFAST_PLANT").env_remove("HOLDFAST_RIG_AROUND");
    match fault {
        Some(Planted::In(fault)) => command.env("HOLDFAST_PLANT", fault.name()),
        Some(Planted::Around(name)) => command.env("HOLDFAST_RIG_AROUND", name),
        None => &mut command,
    };
    let output = command.spawn().and_then(std::process::Child::wait_with_output).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rev().find_map(|line| line.strip_prefix(RESULT));
    (read(last, output.status), start.elapsed())
}

/// A child that ended without a result is a fault of the test, never a mistake that was caught.
fn read(line: Option<&str>, status: std::process::ExitStatus) -> Outcome {
    let Some(value) = line.and_then(|line| serde_json::from_str::<Value>(line).ok()) else {
        return Outcome::Faulty(format!("the test itself ended with {status}"));
    };
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    match value["is"].as_str() {
        Some("held") => Outcome::Held(Figures {
            count: value["count"].as_u64().unwrap_or(0),
            unit: text("unit"),
            note: text("note"),
        }),
        Some("broken") => Outcome::Broken(text("what")),
        Some("missing") => Outcome::Missing(text("what")),
        _ => Outcome::Faulty(text("what")),
    }
}
