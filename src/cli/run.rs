//! `holdfast run`: configuration to supervisor.
//!
//! Owns nothing but the way from the command line to the daemon and its exit code.

use std::time::Duration;

use super::Global;
use super::exit::{self, Done, Failure};
use crate::config::{self, Faults, Level, Loaded};
use crate::supervisor::{self, SupervisorError};

/// How often a file that broke in the wrong moment is read again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to stop.
pub async fn run(global: &Global) -> Done {
    let load = || {
        let mut loaded = config::load(global.config(), config::environment())?;
        let asked = [Level::Error, Level::Debug, Level::Trace][usize::from(global.verbose.min(2))];
        let log = &mut loaded.settings.log;
        log.level = log.level.max(asked);
        Ok(loaded)
    };
    let loaded = match load() {
        Ok(loaded) => loaded,
        Err(faults) if supervisor::is_taking_over() => mended(&load, &faults).await,
        Err(faults) => return Err(Failure::new(exit::CONFIG, faults.to_string())),
    };
    match supervisor::run(loaded, &load).await {
        Ok(None) => Ok(0),
        // Nothing is open any more; the same process goes on as the program that is installed now.
        Ok(Some(handover)) => Err(Failure::new(exit::IO, format!("the program cannot be run anew: {}", handover.go()))),
        Err(error) => Err(Failure::new(code(&error), error.to_string())),
    }
}

/// The file held when it was checked, and was broken before this image read it: callers wait at the sockets until it is
/// mended, or until the watchdog ends this.
async fn mended(load: &(dyn Fn() -> Result<Loaded, Faults> + Sync), faults: &Faults) -> Loaded {
    eprintln!("the configuration became faulty while it was taken over; mend it:\n{faults}");
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        if let Ok(loaded) = load() {
            return loaded;
        }
    }
}

fn code(error: &SupervisorError) -> u8 {
    match error {
        SupervisorError::Configuration(_) => exit::CONFIG,
        SupervisorError::Permission(_) => exit::PERMISSION,
        SupervisorError::Io(_) | SupervisorError::Spool(_) | SupervisorError::Folder { .. } => exit::IO,
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
