//! The table of a run, for the terminal and as Markdown.

use std::fmt::Write as _;
use std::time::Duration;

use crate::case::{Effort, Outcome};

/// A planted mistake and whether the test saw it.
pub struct Plant {
    pub name: &'static str,
    pub caught: bool,
}

/// One test's result.
pub struct Line {
    pub id: &'static str,
    pub what: &'static str,
    pub seed: u64,
    pub took: Duration,
    pub outcome: Outcome,
    pub plants: Vec<Plant>,
}

impl Line {
    /// Whether this machine could not run it.
    pub fn is_missing(&self) -> bool {
        matches!(self.outcome, Outcome::Missing(_))
    }

    /// Whether nothing was broken and every planted mistake was caught.
    pub fn holds(&self) -> bool {
        matches!(self.outcome, Outcome::Held(_)) && self.plants.iter().all(|plant| plant.caught)
    }

    fn result(&self) -> String {
        match &self.outcome {
            Outcome::Held(figures) => join("held", &figures.note),
            Outcome::Broken(what) => format!("BROKEN: {what}"),
            Outcome::Missing(what) => format!("not run: {what}"),
            Outcome::Faulty(what) => format!("no result: {what}"),
        }
    }

    fn count(&self) -> String {
        match &self.outcome {
            Outcome::Held(figures) => format!("{} {}", figures.count, figures.unit),
            _ => "-".to_owned(),
        }
    }

    fn caught(&self) -> String {
        let name = |plant: &Plant| format!("{}{}", plant.name, if plant.caught { "" } else { " (NOT CAUGHT)" });
        self.plants.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

fn join(first: &str, note: &str) -> String {
    if note.is_empty() { first.to_owned() } else { format!("{first}: {note}") }
}

fn sum(lines: &[Line]) -> String {
    let plants = || lines.iter().flat_map(|line| &line.plants);
    let caught = plants().filter(|plant| plant.caught).count();
    let held = lines.iter().filter(|line| matches!(line.outcome, Outcome::Held(_))).count();
    format!("{held} of {} tests held, {caught} of {} planted mistakes caught", lines.len(), plants().count())
}

/// The table for a terminal.
pub fn table(lines: &[Line]) -> String {
    let mut out = String::new();
    for line in lines {
        let _ = writeln!(
            out,
            "{:4} {:52} {:>20} {:>7.1} s  {}\n     caught: {}",
            line.id,
            line.what,
            line.count(),
            line.took.as_secs_f64(),
            line.result(),
            line.caught(),
        );
    }
    let _ = writeln!(out, "{}", sum(lines));
    out
}

/// The table as a page of documentation.
pub fn markdown(lines: &[Line], effort: &Effort) -> String {
    let mut out = String::from(
        "# Durability, proven\n\nWhat a full run of the rig found: `cargo test --features planted --test rig -- --long --report docs/durability.md`.\n\
         Each test was also run with its mistakes planted into the program or its surroundings, and had to catch them.\n\n",
    );
    let form = if effort.long { "full" } else { "short" };
    let _ = writeln!(out, "holdfast {}, {form} form, seed {}.\n", env!("CARGO_PKG_VERSION"), effort.seed);
    out.push_str("| test | what | tried | seed | seconds | result | planted mistakes caught |\n| --- | --- | --- | --- | --- | --- | --- |\n");
    for line in lines {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {:.0} | {} | {} |",
            line.id,
            line.what,
            line.count(),
            line.seed,
            line.took.as_secs_f64(),
            line.result().replace('|', "/"),
            line.caught(),
        );
    }
    let _ = writeln!(out, "\n{}.", sum(lines));
    out
}
