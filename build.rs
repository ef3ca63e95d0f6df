//! Hands the linker the order of functions for a release build; everything else Cargo does alone.
//!
//! `cross/orderfile.ld` names the functions that a running gateway executes. Together at the front they are fewer pages that are
//! read from the card and kept in memory; the program does the same without. `HOLDFAST_ORDERFILE=off` leaves it away, for a
//! linker that knows no such scripts (mold).

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=cross/orderfile.ld");
    println!("cargo::rerun-if-env-changed=HOLDFAST_ORDERFILE");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let is_wanted = is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") && !is("HOLDFAST_ORDERFILE", "off");
    if let (true, Ok(root)) = (is_wanted, env::var("CARGO_MANIFEST_DIR")) {
        println!("cargo::rustc-link-arg-bin=holdfast=-Wl,--script={root}/cross/orderfile.ld");
    }
}
