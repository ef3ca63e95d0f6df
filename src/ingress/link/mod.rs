//! The device link: PLCs, sensors, cameras and microcontrollers on serial lines and sockets.
//!
//! Owns the lines and what is spoken on them. `core` has the rules, which are the same for every dialect.

pub mod lines;
