//! T20: the purse against a model of a service that bills, over random scripts of crashes, days and a failing disk.

use holdfast::plant::Fault;

use super::unit;
use crate::case::{Case, Effort, Outcome, Planted};

pub const CASE: Case = Case {
    id: "T20",
    what: "money under a cap, killed and restarted",
    faults: &[Planted::In(Fault::SpendBeforeEscrow)],
    run,
};

fn run(effort: &Effort) -> Outcome {
    let scripts = effort.pick(2_000, 100_000);
    let environment = [("HOLDFAST_SEED", effort.seed.to_string()), ("HOLDFAST_SIMULATIONS", scripts.to_string())];
    match unit::tests("control::money::", &environment) {
        Ok(_) => Outcome::held(scripts, "scripts", "400 steps each: sends, ends, crashes, days, clocks set back"),
        Err(outcome) => outcome,
    }
}
