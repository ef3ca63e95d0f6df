//! Exit codes and the sentence that goes with one.
//!
//! The numbers are part of the outside; scripts rely on them.

use std::io;

/// It failed.
pub const FAILED: u8 = 1;
/// The command line was wrong; clap uses the same number.
pub const USAGE: u8 = 2;
/// No daemon answers.
pub const NO_DAEMON: u8 = 69;
/// A fault of ours.
pub const INTERNAL: u8 = 70;
/// Reading or writing failed.
pub const IO: u8 = 74;
/// Stored, no answer yet.
pub const STORED: u8 = 75;
/// Not allowed.
pub const PERMISSION: u8 = 77;
/// The configuration does not hold.
pub const CONFIG: u8 = 78;

/// Below `--help`.
pub const HELP: &str = "Exit codes: 0 done; 1 it failed; 2 usage; 69 no daemon answers; 70 internal; 74 I/O; \
75 stored, no answer yet; 77 permission; 78 configuration";

/// The exit code of a command that did what it was asked, or why it did not.
pub type Done = Result<u8, Failure>;

/// Why a command stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What is wrong and what to do; empty where nothing is left to say.
    pub message: String,
}

impl Failure {
    /// A failure with its own code.
    pub fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

/// Only standard output is written with `?`: a reader that has seen enough is no failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(0, ""),
            _ => Failure::new(IO, format!("cannot write: {error}")),
        }
    }
}
