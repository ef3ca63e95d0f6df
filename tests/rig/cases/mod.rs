//! The list of tests; each has a file of its own.

mod read_only;
mod starts;
mod t01_kill;
mod t02_replay;
mod t03_blocks;
mod t04_machine;
mod t05_failing;
mod t06_full;
mod t07_damage;
mod t08_network;
mod t09_statuses;
mod t10_simulation;
mod t11_clock;
mod t12_bounds;
mod t13_fuzz;
mod t14_abuse;
mod t15_tls;
mod t16_secrets;
mod t17_access;
mod t18_upgrade;
mod t20_money;
mod t21_watchdog;
mod unit;

use crate::case::Case;

/// In the order of the table.
pub const ALL: &[Case] = &[
    t01_kill::CASE,
    t02_replay::CASE,
    t03_blocks::CASE,
    t04_machine::CASE,
    t05_failing::CASE,
    t06_full::CASE,
    t07_damage::CASE,
    t08_network::CASE,
    t09_statuses::CASE,
    t10_simulation::CASE,
    t11_clock::CASE,
    t12_bounds::CASE,
    t13_fuzz::CASE,
    t14_abuse::CASE,
    t15_tls::CASE,
    t16_secrets::CASE,
    t17_access::CASE,
    t18_upgrade::CASE,
    t20_money::CASE,
    t21_watchdog::CASE,
];
