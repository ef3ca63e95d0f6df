//! The real daemon as a child process of the demo, in a temporary folder of its own.
//!
//! Owns the folder, the configuration file and the process; removes all of them when dropped.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::client;
use crate::clock;

/// A daemon that does not answer by then will not.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// The gateway's own grace is 10 s.
const STOPPED_WITHIN: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_millis(20);

pub(super) struct Gateway {
    dir: PathBuf,
    child: Child,
}

impl Gateway {
    /// Starts the daemon between an uplink and a local model server; returns once it answers.
    pub(super) async fn start(uplink: &str, ollama: &str) -> anyhow::Result<Gateway> {
        let dir = std::env::temp_dir().join(format!("holdfast-demo-{:08x}", clock::random_u64() as u32));
        std::fs::DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("creating {}", dir.display()))?;
        std::fs::write(dir.join("holdfast.toml"), config(&dir, uplink, ollama)?)?;
        let child = spawn(&dir)?;
        let mut gateway = Gateway { dir, child };
        gateway.wait_ready().await?;
        Ok(gateway)
    }

    /// kill -9, and start again in the same folder: what a power cut does to a process.
    pub(super) async fn crash_and_restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.dir)?;
        self.wait_ready().await
    }

    /// SIGTERM; true if it ended by itself with exit code 0.
    pub(super) async fn stop(&mut self) -> anyhow::Result<bool> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let started = clock::now();
        while started.elapsed() < STOPPED_WITHIN {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(false)
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let started = clock::now();
        while started.elapsed() < READY_WITHIN {
            if let Some(status) = self.child.try_wait()? {
                bail!("the gateway ended at once ({status}):\n{}", self.log());
            }
            if client::get(&self.socket(), "/health").await.is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("the gateway did not answer within {READY_WITHIN:?}:\n{}", self.log())
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("holdfast.sock")
    }

    /// The name of its serial port.
    pub(super) fn serial_port(&self) -> PathBuf {
        self.dir.join("serial")
    }

    /// The id of the request that a device knows by this number.
    pub(super) async fn id_of(&self, request: u64) -> anyhow::Result<String> {
        let list = client::get(&self.socket(), "/holdfast/v1/requests?source=link:line").await?.json();
        let records = list["data"].as_array().context("no list of requests")?;
        let record = records.iter().find(|record| record["seq"].as_u64() == Some(request));
        let id = record.and_then(|record| record["id"].as_str());
        Ok(id.with_context(|| format!("request {request} is not on record"))?.to_owned())
    }

    /// How many stored requests wait.
    pub(super) async fn backlog(&self) -> anyhow::Result<u64> {
        let status = client::get(&self.socket(), "/holdfast/v1/status").await?.json();
        status["backlog"]["count"].as_u64().context("no backlog.count in /holdfast/v1/status")
    }

    /// How many health checks in a row have failed.
    pub(super) async fn failed_checks(&self) -> anyhow::Result<u64> {
        let health = client::get(&self.socket(), "/v1/health").await?.json();
        Ok(health["providers"]["cloud"]["consecutive_failures"].as_u64().unwrap_or(0))
    }

    /// One stored request as it stands.
    pub(super) async fn record(&self, id: &str) -> anyhow::Result<Value> {
        Ok(client::get(&self.socket(), &format!("/holdfast/v1/requests/{id}")).await?.json())
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("gateway.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Usually it has ended already; nothing of this can be mended here.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn spawn(dir: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("gateway.log"))?;
    let mut command = Command::new(std::env::current_exe().context("finding this program's own file")?);
    // The demo's configuration is its own: what somebody set for a real gateway must not reach this one.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HOLDFAST_")) {
        command.env_remove(name);
    }
    command.args(["run", "--config"]).arg(dir.join("holdfast.toml"));
    command.env("DEMO_UPLINK_KEY", "sk-demo").env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("starting the gateway")
}

/// Short waits, so that an outage fits into a few seconds.
fn config(dir: &Path, uplink: &str, ollama: &str) -> anyhow::Result<String> {
    let dir = dir.to_str().context("the temporary folder's name is no text")?;
    Ok(format!(
        r#"[gateway]
data_dir = "{dir}/data"
device_id = "demo"

[http]
socket = "{dir}/holdfast.sock"

[[uplink]]
name = "cloud"
base_url = "{uplink}/v1"
api_keys = [{{ env = "DEMO_UPLINK_KEY" }}]
probe = {{ path = "/models", interval = "200ms", timeout = "500ms", fall = 2, rise = 1 }}
breaker = {{ failures = 3, open_for = "500ms" }}

[local]
base_url = "{ollama}"
model = "llama3.2:latest"
vision_model = "llava:latest"

[[link]]
name = "line"
device = "{dir}/serial"

# A board's /tmp is often a piece of memory, smaller than what a real gateway keeps free.
[queue]
min_disk_free = "1MiB"

[drain]
max_in_flight = 1
start_jitter = "0s"

[retry]
base = "50ms"
max = "500ms"
"#
    ))
}
