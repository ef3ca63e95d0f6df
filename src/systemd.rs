//! The service manager: READY, STATUS, WATCHDOG, STOPPING, and sockets it hands over.
//!
//! Pets the watchdog only on proof of progress: control has turned and the spool has committed since.

use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::gateway::Gateway;

/// Without a watchdog nothing is petted, but the status line is still kept fresh this often.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Says that sockets accept and the spool is open.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Says that the process is ending.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager was not told: {error}");
    }
}

/// The UNIX socket that systemd already bound, where it did.
pub fn inherited_socket() -> io::Result<Option<UnixListener>> {
    ListenFd::from_env().take_unix_listener(0)
}

/// Keeps the status line and the watchdog, for as long as there is progress.
pub async fn keep(gateway: Gateway) {
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(STATUS_EVERY, |limit| limit / 3);
    let mut turns = gateway.turns();
    loop {
        tokio::time::sleep(every).await;
        let status = status_line(&gateway).await;
        notify(&[NotifyState::Status(&status)]);
        if watchdog.is_none() {
            continue;
        }
        // A commit that returns proves that thread, SQLite and disk are alive; without a watchdog to pet it would
        // only wear the flash.
        let committed = gateway.spool().commit_probe().await.is_ok();
        let now = gateway.turns();
        if committed && now != turns {
            notify(&[NotifyState::Watchdog]);
        }
        turns = now;
    }
}

async fn status_line(gateway: &Gateway) -> String {
    let tally = gateway.spool().tally();
    let Some(view) = gateway.view().await else { return "stopping".to_owned() };
    let up = view.uplinks.iter().filter(|u| u.available).count();
    format!("{up} of {} uplinks available, {} requests waiting", view.uplinks.len(), tally.backlog())
}
