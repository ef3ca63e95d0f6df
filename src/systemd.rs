//! The service manager: READY, STATUS, RELOADING, WATCHDOG, STOPPING, and sockets it hands over.
//!
//! Pets the watchdog only on proof of progress: control has turned and the spool has committed since, and the second thread that
//! serves, where there is one, has run something. While a configuration is taken over there is nothing of it; there a bounded
//! time is granted instead.

use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

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

/// Says that a configuration is read and, where it holds, taken over; `ready` ends it. The time is what systemd from
/// version 253 on tells an old message from a new one by.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Sets the line that `systemctl status` shows.
pub fn status(line: &str) {
    notify(&[NotifyState::Status(line)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager was not told: {error}");
    }
}

/// The UNIX socket that systemd already bound, where it did. Others that it bound are not served, and said to be.
pub fn inherited_socket() -> io::Result<Option<UnixListener>> {
    let mut offered = ListenFd::from_env();
    if offered.len() > 1 {
        tracing::error!(
            HOLDFAST_REASON = "sockets_left_over",
            "{} sockets were handed over (LISTEN_FDS) and only the first is served: whoever connects to another waits for \
             nothing; leave one ListenStream= in the socket unit, and name TCP addresses in [http] listen",
            offered.len()
        );
    }
    offered.take_unix_listener(0)
}

/// Keeps the status line and the watchdog, for as long as there is progress. A `notice` comes before the line; `second` is the
/// second thread that serves, once it has begun.
pub async fn keep(gateway: Gateway, notice: watch::Receiver<Option<String>>, second: impl Fn() -> Option<Handle>) {
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(STATUS_EVERY, |limit| limit / 3);
    let mut turns = gateway.turns();
    loop {
        let line = status_line(&gateway).await;
        let notice = notice.borrow().clone();
        status(&notice.map_or(line.clone(), |notice| format!("{notice}; {line}")));
        if watchdog.is_some() {
            // With a short WatchdogSec an idle gateway might not turn between two looks.
            gateway.nudge();
        }
        tokio::time::sleep(every).await;
        if watchdog.is_none() {
            continue;
        }
        // A commit that returns proves that thread, SQLite and disk are alive; without a watchdog to pet it would
        // only wear the flash.
        let committed = gateway.spool().commit_probe().await.is_ok();
        let serves = match second() {
            Some(second) => timeout(every, second.spawn(async {})).await.is_ok(),
            None => true,
        };
        let now = gateway.turns();
        if committed && serves && now != turns {
            notify(&[NotifyState::Watchdog]);
        }
        turns = now;
    }
}

/// Grants itself this long without progress: running answers end, or a damaged spool is read as a whole.
pub async fn patience(limit: Duration) {
    let Some(watchdog) = sd_notify::watchdog_enabled() else { return };
    let pets = async {
        loop {
            notify(&[NotifyState::Watchdog]);
            tokio::time::sleep(watchdog / 3).await;
        }
    };
    let _ = tokio::time::timeout(limit, pets).await;
}

async fn status_line(gateway: &Gateway) -> String {
    let tally = gateway.spool().tally();
    let Some(view) = gateway.view().await else { return "stopping".to_owned() };
    let up = view.uplinks.iter().filter(|u| u.available).count();
    format!("{up} of {} uplinks available, {} requests waiting", view.uplinks.len(), tally.backlog())
}
