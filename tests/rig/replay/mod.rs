//! Crash states: what a recorded run would have left on a disk that lost its power at any point.

pub mod blocks;
pub mod disk;
pub mod trace;
