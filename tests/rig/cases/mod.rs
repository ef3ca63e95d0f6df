//! The list of tests; each has a file of its own.

mod t07_damage;
mod t08_network;
mod t09_statuses;
mod t10_simulation;
mod t11_clock;
mod t13_fuzz;
mod t14_abuse;
mod t15_tls;
mod t16_secrets;
mod t17_access;
mod unit;

use crate::case::Case;

/// In the order of the table.
pub const ALL: &[Case] = &[
    t07_damage::CASE,
    t08_network::CASE,
    t09_statuses::CASE,
    t10_simulation::CASE,
    t11_clock::CASE,
    t13_fuzz::CASE,
    t14_abuse::CASE,
    t15_tls::CASE,
    t16_secrets::CASE,
    t17_access::CASE,
];
