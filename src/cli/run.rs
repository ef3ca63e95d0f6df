//! `holdfast run`: configuration to supervisor.
//!
//! Owns nothing but the way from the command line to the daemon and its exit code.

use super::Global;
use super::exit::{self, Done, Failure};
use crate::config;
use crate::supervisor::{self, SupervisorError};

/// Runs the daemon until it is told to stop.
pub async fn run(global: &Global) -> Done {
    let load = || config::load(global.config(), config::environment());
    let loaded = load().map_err(|faults| Failure::new(exit::CONFIG, faults.to_string()))?;
    match supervisor::run(loaded, &load).await {
        Ok(None) => Ok(0),
        // Nothing is open any more; the same process goes on as the program that is installed now.
        Ok(Some(handover)) => Err(Failure::new(exit::IO, format!("the program cannot be run anew: {}", handover.go()))),
        Err(error) => Err(Failure::new(code(&error), error.to_string())),
    }
}

fn code(error: &SupervisorError) -> u8 {
    match error {
        SupervisorError::Configuration(_) => exit::CONFIG,
        SupervisorError::Permission(_) => exit::PERMISSION,
        SupervisorError::Io(_) | SupervisorError::Spool(_) => exit::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_somebody_else_is_a_matter_of_permission() {
        let of = |kind: std::io::ErrorKind| code(&SupervisorError::of_spool(std::io::Error::from(kind).into()));
        assert_eq!(of(std::io::ErrorKind::PermissionDenied), exit::PERMISSION);
        assert_eq!(of(std::io::ErrorKind::ReadOnlyFilesystem), exit::IO);
    }
}
