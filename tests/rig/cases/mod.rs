//! The list of tests; each has a file of its own.

mod t01_kill;
mod t02_replay;
mod t05_failing;
mod t06_full;
mod t10_simulation;
mod t12_bounds;
mod t18_upgrade;
mod unit;

use crate::case::Case;

/// In the order of the table.
pub const ALL: &[Case] = &[
    t01_kill::CASE,
    t02_replay::CASE,
    t05_failing::CASE,
    t06_full::CASE,
    t10_simulation::CASE,
    t12_bounds::CASE,
    t18_upgrade::CASE,
];
