//! The signals that the daemon takes, and what each says.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::SupervisorError;

/// What a signal says.
pub(super) enum Told {
    Stop,
    Reload,
}

/// The signals that the daemon takes.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Signals, SupervisorError> {
        let listen = |kind| signal(kind).map_err(|e| SupervisorError::Io(format!("signals: {e}")));
        Ok(Signals {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
            hup: listen(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Stop,
            _ = self.int.recv() => Told::Stop,
            _ = self.hup.recv() => Told::Reload,
        }
    }

    /// Resolves at the next SIGTERM or SIGINT. What SIGHUP asks for meanwhile is under way, or comes too late.
    pub(super) async fn stop(&mut self) {
        while let Told::Reload = self.next().await {}
    }
}
