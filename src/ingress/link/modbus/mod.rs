//! Modbus RTU and TCP for PLCs that can only be a master.
//!
//! `frame` has the bytes, `unit` the registers; the rules are those of the link.

pub mod frame;
mod serve;
pub(super) mod tcp;
#[cfg(test)]
mod tests;
pub mod unit;

pub use serve::Registers;
pub(super) use serve::serve;
