//! The real daemon as a child process with a folder of its own, which may be started in odd surroundings.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::http::{self, Reply};
use super::until;

/// How to start it.
#[derive(Default, Clone)]
pub struct Setup {
    /// Its configuration; `@DIR@` is its folder.
    pub config: String,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
    /// Words before its own command line, such as `ip netns exec NAME`.
    pub wrap: Vec<String>,
}

/// A running (or ended) daemon.
pub struct Gateway {
    dir: tempfile::TempDir,
    setup: Setup,
    child: Child,
}

impl Gateway {
    /// Starts it; returns once it answers `/health`.
    pub fn start(setup: Setup) -> Gateway {
        let mut gateway = Gateway::start_unready(setup);
        gateway.wait_ready();
        gateway
    }

    /// Starts it and does not wait.
    pub fn start_unready(setup: Setup) -> Gateway {
        let dir = tempfile::Builder::new().prefix("hfrig").tempdir().unwrap();
        let child = spawn(dir.path(), &setup);
        Gateway { dir, setup, child }
    }

    /// Starts it again in the same folder.
    pub fn restart(&mut self) {
        self.child = spawn(self.dir.path(), &self.setup);
        self.wait_ready();
    }

    /// Waits until it answers.
    pub fn wait_ready(&mut self) {
        let ready = until(40, || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}:\n{}", self.log_tail());
            }
            self.ask("GET", "/health", &[], b"").ok().filter(|reply| reply.status == 200)
        });
        assert!(ready.is_some(), "the daemon does not answer:\n{}", self.log_tail());
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and wait until it is gone; whether it ended well.
    pub fn stop(&mut self) -> bool {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let ended = until(30, || self.child.try_wait().unwrap());
        ended.is_some_and(|status| status.success())
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("hf.sock")
    }

    /// All it wrote to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// One request and its answer.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Reply> {
        http::ask(&self.socket(), method, path, headers, body)
    }

    /// GET of JSON; null where there is none.
    pub fn get(&self, path: &str) -> Value {
        self.ask("GET", path, &[], b"").map_or(Value::Null, |reply| reply.json())
    }

    /// The first uplink's line of the status.
    pub fn uplink(&self) -> Value {
        self.get("/holdfast/v1/status")["uplinks"][0].clone()
    }

    /// Waits until the first uplink is available, or is not.
    pub fn wait_available(&self, wanted: bool) -> bool {
        until(30, || (self.uplink()["available"] == wanted).then_some(())).is_some()
    }

    /// Stores a request and returns its id.
    pub fn store(&self, body: &[u8]) -> Result<String, String> {
        let headers = [("prefer", "respond-async"), ("x-holdfast-offline", "queue")];
        let reply = self.ask("POST", "/v1/chat/completions", &headers, body).map_err(|e| e.to_string())?;
        let id = reply.header("x-holdfast-id").to_owned();
        if reply.status == 202 && !id.is_empty() { Ok(id) } else { Err(format!("not stored: {}", reply.text())) }
    }

    /// Whether its record of what is being sent now, one at a time, says that it may have been billed.
    pub fn labels_what_it_sends(&self) -> bool {
        let list = self.get("/holdfast/v1/requests?state=sending");
        list["data"].as_array().is_some_and(|data| data.iter().any(|record| record["maybe_billed"] == true))
    }

    /// One stored request.
    pub fn record(&self, id: &str) -> Value {
        self.get(&format!("/holdfast/v1/requests/{id}"))
    }

    /// Waits for a final state; the record, or the last one seen.
    pub fn finished(&self, id: &str, seconds: u64) -> Value {
        let is_final = |record: &Value| {
            matches!(record["state"].as_str(), Some("answered" | "expired" | "cancelled" | "evicted" | "dead"))
        };
        until(seconds, || Some(self.record(id)).filter(is_final)).unwrap_or_else(|| self.record(id))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(dir: &Path, setup: &Setup) -> Child {
    let text = setup.config.replace("@DIR@", dir.to_str().unwrap());
    std::fs::write(dir.join("holdfast.toml"), text).unwrap();
    let log = File::options().create(true).append(true).open(dir.join("daemon.log")).unwrap();
    let binary = env!("CARGO_BIN_EXE_holdfast").to_owned();
    let mut words = setup.wrap.clone();
    words.push(binary);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["run", "--config"]).arg(dir.join("holdfast.toml"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        // Every other HOLDFAST_ variable is configuration to the daemon.
        if text.starts_with("HOLDFAST_") && text != "HOLDFAST_PLANT" {
            command.env_remove(&name);
        }
    }
    command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").envs(setup.environment.iter().cloned());
    command.current_dir(dir).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap()
}
