//! The demo's serial cable: two pseudo-terminals, each one's bytes carried to the other.
//!
//! Owns both and the carrying; the gateway and the simulated device open them as the serial ports they take them for.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::pty::OpenptFlags;
use tokio::task::JoinSet;

/// How often bytes are carried. Waiting for readiness is of no use: tokio takes a hang-up for the end, and a terminal
/// that is closed is opened again.
const TICK: Duration = Duration::from_millis(2);

pub(super) struct Cable {
    device_end: PathBuf,
    _carrying: JoinSet<()>,
}

impl Cable {
    /// Lays it; the gateway's end gets this name.
    pub(super) fn lay(gateway_end: &Path) -> anyhow::Result<Cable> {
        let (gateway, port) = end()?;
        let (device, device_end) = end()?;
        std::os::unix::fs::symlink(port, gateway_end)?;
        let mut carrying = JoinSet::new();
        carrying.spawn(carry(gateway, device));
        Ok(Cable { device_end, _carrying: carrying })
    }

    /// The port for the device.
    pub(super) fn device_end(&self) -> PathBuf {
        self.device_end.clone()
    }
}

/// One terminal: its inner side and the name of its port.
fn end() -> anyhow::Result<(OwnedFd, PathBuf)> {
    let inner = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&inner)?;
    rustix::pty::unlockpt(&inner)?;
    let name = rustix::pty::ptsname(&inner, Vec::new())?;
    rustix::io::ioctl_fionbio(&inner, true)?;
    Ok((inner, PathBuf::from(OsStr::from_bytes(name.as_bytes()))))
}

async fn carry(gateway: OwnedFd, device: OwnedFd) {
    let (mut up, mut down) = (Vec::new(), Vec::new());
    loop {
        pass(&gateway, &device, &mut down);
        pass(&device, &gateway, &mut up);
        tokio::time::sleep(TICK).await;
    }
}

/// One step; what the other side has no room for waits, and nothing more is taken meanwhile.
fn pass(from: &OwnedFd, to: &OwnedFd, waiting: &mut Vec<u8>) {
    let mut bytes = [0; 1_024];
    if waiting.is_empty()
        && let Ok(length) = rustix::io::read(from, &mut bytes)
    {
        waiting.extend_from_slice(bytes.get(..length).unwrap_or_default());
    }
    match rustix::io::write(to, waiting) {
        Ok(written) => drop(waiting.drain(..written)),
        Err(rustix::io::Errno::AGAIN) => {}
        // A wire that leads nowhere takes everything.
        Err(_) => waiting.clear(),
    }
}
