//! What stands in for systemd: the socket that the daemon tells its state to.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::UnixDatagram;

use super::until;

/// Listens to one daemon.
pub struct Manager {
    _folder: tempfile::TempDir,
    path: PathBuf,
    socket: UnixDatagram,
    heard: Mutex<Vec<String>>,
}

impl Manager {
    /// Nothing has been heard yet.
    pub fn new() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager { _folder: folder, path, socket, heard: Mutex::default() }
    }

    /// What the daemon is told about it.
    pub fn environment(&self, watchdog: Option<Duration>) -> Vec<(&'static str, String)> {
        let mut all = vec![("NOTIFY_SOCKET", self.path.display().to_string())];
        all.extend(watchdog.map(|limit| ("WATCHDOG_USEC", limit.as_micros().to_string())));
        all
    }

    /// Every line so far, oldest first.
    pub fn heard(&self) -> Vec<String> {
        let mut heard = self.heard.lock().unwrap();
        let mut buffer = [0u8; 4096];
        while let Ok(length) = self.socket.try_recv(&mut buffer) {
            heard.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        }
        heard.clone()
    }

    /// How often this line came.
    pub fn count(&self, line: &str) -> usize {
        self.heard().iter().filter(|heard| *heard == line).count()
    }

    /// Waits until this line has come so often.
    pub async fn wait_for(&self, line: &str, times: usize) {
        until(line, 30, || async { (self.count(line) >= times).then_some(()) }).await;
    }

    /// Changes of state in their order, without times, status lines and pets.
    pub fn states(&self) -> Vec<String> {
        let states = ["READY=1", "RELOADING=1", "STOPPING=1"];
        self.heard().into_iter().filter(|line| states.contains(&line.as_str())).collect()
    }
}
