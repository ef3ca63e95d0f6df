//! T10: control against a model of spool and uplink, seeds of simulated hours, then a liveness phase.

use holdfast::plant::Fault;

use super::unit;
use crate::case::{Case, Effort, Outcome, Planted};

pub const CASE: Case = Case {
    id: "T10",
    what: "simulated outages with explicit time",
    faults: &[Planted::In(Fault::ResendWithoutLimit)],
    run,
};

fn run(effort: &Effort) -> Outcome {
    let seeds = effort.pick(20, 500);
    let environment = [("HOLDFAST_SEED", effort.seed.to_string()), ("HOLDFAST_SIMULATIONS", seeds.to_string())];
    match unit::tests("control::tests::simulation", &environment) {
        Ok(_) => Outcome::held(seeds, "seeds", "15 simulated hours each"),
        Err(outcome) => outcome,
    }
}
