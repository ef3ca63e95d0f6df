//! T7: damaged spools: whole pages, headers, tails and single bits; every row comes out exact or is reported.
//!
//! The tests stand beside the salvage; this one gives them their counts.

use holdfast::plant::Fault;

use super::unit;
use crate::case::{Case, Effort, Outcome, Planted};

pub const CASE: Case = Case {
    id: "T7",
    what: "damaged files and flipped bits in the log",
    faults: &[Planted::In(Fault::TrustIntegrityCheck)],
    run,
};

fn run(effort: &Effort) -> Outcome {
    let (files, flips) = (effort.pick(3, 50), effort.pick(12, 200));
    for (test, count) in [("six_kinds_of_damage", files), ("flipped_bits_in_the_log", flips)] {
        let environment = [("HOLDFAST_SEED", effort.seed.to_string()), ("HOLDFAST_DAMAGE", count.to_string())];
        if let Err(outcome) =
            unit::tests(&format!("spool::salvage::tests::damage::salvage_holds_over_{test}"), &environment)
        {
            return outcome;
        }
    }
    Outcome::held(6 * files + flips, "damages", format!("6 kinds x {files} files, {flips} flips in the log"))
}
