//! The composition root: builds every part from the configuration, starts them, stops them in order.
//!
//! The only place that sees both the configuration and the parts. Contains no behaviour of its own.

mod doors;
mod handover;
mod links;
pub mod offline;
mod parts;
mod reload;
pub mod reset;
mod running;
mod signals;

use std::path::Path;
use std::time::Duration;

use crate::config::{Loaded, Settings};
use crate::spool::SpoolError;
use crate::systemd;
use crate::telemetry::log;

use self::doors::Doors;
pub use self::handover::{Handover, is_taking_over};
pub use self::reload::Again;
use self::running::Running;
use self::signals::{Signals, Told};

/// How long the next image may take to open the spool before the watchdog may doubt it: one of an older version is copied.
const OPENING_MAX: Duration = Duration::from_mins(10);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The configuration holds by itself, but not on this machine.
    #[error("{0}")]
    Configuration(String),
    /// A file or socket belongs to somebody else.
    #[error("{0}")]
    Permission(String),
    /// A socket cannot be bound.
    #[error("{0}")]
    Io(String),
    /// The spool cannot be opened.
    #[error("the spool cannot be opened: {0}")]
    Spool(SpoolError),
    /// The same, and in which folder.
    #[error("the spool in {dir} (gateway.data_dir) cannot be opened: {error}")]
    Folder {
        /// The data folder.
        dir: String,
        /// What is wrong there.
        error: SpoolError,
    },
}

impl SupervisorError {
    /// The same with the data folder that it is about.
    fn at(self, data_dir: &Path) -> Self {
        match self {
            SupervisorError::Permission(what) => SupervisorError::Permission(format!("{}: {what}", data_dir.display())),
            SupervisorError::Spool(error) => SupervisorError::Folder { dir: data_dir.display().to_string(), error },
            other => other,
        }
    }

    /// Why the spool cannot be opened; a folder of somebody else is a matter of permission.
    pub fn of_spool(error: SpoolError) -> Self {
        match error {
            SpoolError::Permission(_) => SupervisorError::Permission(error.to_string()),
            other => SupervisorError::Spool(other),
        }
    }
}

/// Runs until SIGTERM or SIGINT, or until SIGHUP finds a configuration that holds: then what is given back runs it.
pub async fn run(loaded: Loaded, again: Again<'_>) -> Result<Option<Handover>, SupervisorError> {
    let settings = loaded.settings;
    // From here on a signal is remembered, however early it comes.
    let mut signals = Signals::listen()?;
    let _last_lines = log::start(parts::level(settings.log.level), parts::form(settings.log.format));
    more_descriptors();
    // Where it was started from: after an update that is the new program.
    let executable = std::env::current_exe().map_err(|e| SupervisorError::Io(format!("the own program: {e}")))?;
    let (running, doors) = start(&settings).await?;
    let mut next = wait(&mut signals, &settings, &doors, &running, again).await;
    let own_path = doors.own_path();
    // Whoever connects from now on waits for the next image.
    let old = next.is_some().then_some(doors);
    running.leave_doors().await;
    let waiting = next.is_some().then(|| tokio::spawn(systemd::patience(running.closing_max())));
    finish(running.end(), &mut signals, &mut next).await;
    if let Some(waiting) = waiting {
        waiting.abort();
    }
    drop(old);
    let kept = next.as_ref().and_then(Doors::own_path);
    if let Some(path) = own_path.filter(|path| Some(path) != kept.as_ref()) {
        doors::leave_socket(&path);
    }
    Ok(next.map(|doors| Handover::new(executable, doors)))
}

/// Starts all of it and says so.
async fn start(settings: &Settings) -> Result<(Running, Doors), SupervisorError> {
    let handed = handover::take();
    let opening = handed.is_some().then(|| tokio::spawn(systemd::patience(OPENING_MAX)));
    let started = Running::start(settings, handed.unwrap_or_default()).await?;
    if let Some(opening) = opening {
        opening.abort();
    }
    tracing::info!("holdfast {} serves {}", env!("CARGO_PKG_VERSION"), settings.http.socket.display());
    systemd::ready();
    Ok(started)
}

/// Serves until told to stop (`None`) or to become a configuration that holds.
async fn wait(
    signals: &mut Signals,
    settings: &Settings,
    doors: &Doors,
    running: &Running,
    again: Again<'_>,
) -> Option<Doors> {
    loop {
        match signals.next().await {
            Told::Stop => {
                systemd::stopping();
                return None;
            }
            Told::Reload => systemd::reloading(),
        }
        match reload::prepare(settings, doors, running.floor(), again) {
            Ok(next) => {
                tracing::info!("the new configuration holds and is taken over");
                systemd::status("taking over the new configuration");
                return Some(next);
            }
            Err(refused) => {
                refused.log();
                systemd::status(&refused.status());
                running.note(refused.status());
                systemd::ready();
            }
        }
    }
}

/// Waits until all is closed. SIGTERM turns a reload into a stop, and a stop into an end at once.
async fn finish(ended: impl Future<Output = ()>, signals: &mut Signals, next: &mut Option<Doors>) {
    tokio::pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => return,
            () = signals.stop() => match next.take() {
                Some(doors) => {
                    if let Some(path) = doors.own_path() {
                        doors::remove_socket(&path);
                    }
                    systemd::stopping();
                }
                None => return tracing::warn!("told twice to stop: stopping at once"),
            }
        }
    }
}

/// As many descriptors as the system allows: each connection and each large body on its way is one.
fn more_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}
