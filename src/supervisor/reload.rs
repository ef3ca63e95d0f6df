//! SIGHUP: is the configuration on the disk one that this process could become?
//!
//! Owns the whole check, before anything is stopped: the files themselves, everything they name, and the sockets they want,
//! which are bound here. Applies nothing: that is the next image's start.

use std::sync::Arc;

use super::doors::{self, Doors};
use super::parts::{local_client, server_tls, tasks, uplinks};
use super::{SupervisorError, links};
use crate::clock::Floor;
use crate::config::{Faults, Loaded, Settings};

/// Reads the configuration anew, from wherever the first one came.
pub type Again<'a> = &'a (dyn Fn() -> Result<Loaded, Faults> + Sync);

/// So many faults are told one by one.
const FAULTS_TOLD: usize = 10;
/// `systemctl status` shows one line.
const STATUS_CHARS_MAX: usize = 200;

/// Why a configuration is not taken over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(Vec<String>);

impl Refused {
    /// Logs the first faults, one line each.
    pub(super) fn log(&self) {
        for fault in self.0.iter().take(FAULTS_TOLD) {
            tracing::error!(HOLDFAST_REASON = "configuration", "the new configuration is not taken over: {fault}");
        }
        if let Some(more) = self.0.len().checked_sub(FAULTS_TOLD).filter(|more| *more > 0) {
            tracing::error!(HOLDFAST_REASON = "configuration", "and {more} more: holdfast config check names them all");
        }
    }

    /// The same for `systemctl status`.
    pub(super) fn status(&self) -> String {
        let first = self.0.first().map_or("", |fault| fault.lines().next().unwrap_or(""));
        let more = self.0.len().saturating_sub(1);
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        let first: String = first.chars().filter(|c| !c.is_control()).take(STATUS_CHARS_MAX).collect();
        format!("new configuration refused, the old one goes on: {first}{more}")
    }
}

impl From<SupervisorError> for Refused {
    fn from(error: SupervisorError) -> Refused {
        Refused(error.to_string().lines().map(str::to_owned).collect())
    }
}

/// The sockets that the configuration on the disk wants, where it holds as a whole.
pub(super) fn prepare(old: &Settings, doors: &Doors, floor: &Arc<Floor>, again: Again<'_>) -> Result<Doors, Refused> {
    let new = again().map_err(|faults| Refused(faults.0.iter().map(ToString::to_string).collect()))?.settings;
    if new.gateway.data_dir != old.gateway.data_dir {
        let message = "gateway.data_dir: what is stored lies in the old folder; restart to use another one";
        return Err(Refused(vec![message.to_owned()]));
    }
    tasks(&new)?;
    links::options(&new)?;
    uplinks(&new, floor)?;
    local_client(&new)?;
    doors::tokens(&new.http)?;
    server_tls(&new.http)?;
    Ok(doors.for_other(&new.http)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_fits_into_one_line() {
        let refused = Refused(vec![format!("a.toml:1: {}\u{1b}[31m", "x".repeat(500)), "second".to_owned()]);
        let status = refused.status();
        assert!(status.chars().count() < 300 && !status.contains('\u{1b}'), "{status}");
        assert!(status.ends_with("(and 1 more)"), "{status}");
        assert_eq!(Refused(vec!["b".into()]).status(), "new configuration refused, the old one goes on: b");
    }
}
