//! The real binary as a child process: start, kill, stop, restart, and what /proc says about it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use serde_json::Value;
use tokio::process::{Child, Command};

use super::http::{Ask, Reply};
use super::{KEY, until, within};

/// A running (or killed) daemon with its folder.
pub struct Daemon {
    dir: tempfile::TempDir,
    child: Child,
    environment: Vec<(&'static str, String)>,
}

impl Daemon {
    /// Starts it with this configuration, `@DIR@` being its folder; returns once it answers.
    pub async fn start(config: &str) -> Daemon {
        Daemon::start_with(config, Vec::new()).await
    }

    /// The same with more in its environment.
    pub async fn start_with(config: &str, environment: Vec<(&'static str, String)>) -> Daemon {
        let dir = tempfile::Builder::new().prefix("hf").tempdir().unwrap();
        let text = config.replace("@DIR@", dir.path().to_str().unwrap());
        std::fs::write(dir.path().join("holdfast.toml"), text).unwrap();
        let child = spawn(dir.path(), &environment);
        let mut daemon = Daemon { dir, child, environment };
        daemon.wait_ready().await;
        daemon
    }

    /// Starts it again in the same folder; returns once it answers.
    pub async fn restart(&mut self) {
        self.child = spawn(self.dir.path(), &self.environment);
        self.wait_ready().await;
    }

    /// Starts it again and does not wait.
    pub fn restart_unready(&mut self) {
        self.child = spawn(self.dir.path(), &self.environment);
    }

    async fn wait_ready(&mut self) {
        let (socket, log) = (self.socket(), self.dir.path().join("daemon.log"));
        let child = &mut self.child;
        let mut exited = || child.try_wait().unwrap();
        until("the daemon to answer /health", 20, || {
            let gone = exited();
            let (socket, log) = (socket.clone(), log.clone());
            async move {
                assert!(gone.is_none(), "the daemon ended with {gone:?}:\n{}", tail(&log));
                let reply = Ask::get("/health").send_to(&socket).await.ok()?;
                // A gateway that cannot store says so; it serves all the same.
                (reply.status == 200 || reply.text().starts_with("disk_")).then_some(())
            }
        })
        .await;
    }

    /// SIGKILL, and wait until it is gone.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends SIGTERM and does not wait.
    pub fn signal_stop(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends SIGHUP and does not wait.
    pub fn signal_reload(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and how it ended; the grace is 10 s.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal_stop();
        self.ended().await
    }

    /// How it ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = within("stopping", 13, self.child.wait()).await.unwrap();
        if !status.success() {
            eprintln!("{}", tail(&self.dir.path().join("daemon.log")));
        }
        status
    }

    /// The process's number, as long as it has not ended.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the daemon runs")
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Files of bodies in the data folder.
    pub fn body_files(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("data/bodies")).unwrap().count()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most that was ever resident, in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("hf.sock")
    }

    /// A request that must get some answer.
    pub async fn send(&self, ask: Ask) -> Reply {
        within("an answer", 60, ask.send_to(&self.socket())).await.unwrap_or_else(|error| {
            panic!("no answer: {error}\n{}", tail(&self.dir.path().join("daemon.log")));
        })
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(Ask::get(path)).await
    }

    /// The gateway's own status.
    pub async fn status(&self) -> Value {
        self.get("/holdfast/v1/status").await.json()
    }

    /// The gateway's own status, where it answers.
    pub async fn try_status(&self) -> Option<Value> {
        let reply = Ask::get("/holdfast/v1/status").send_to(&self.socket()).await.ok()?;
        (reply.status == 200).then(|| reply.json())
    }

    /// Its folder: configuration, log, data.
    pub fn folder(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// How many stored requests wait.
    pub async fn backlog(&self) -> u64 {
        let status = self.status().await;
        status["backlog"]["count"].as_u64().unwrap_or_else(|| panic!("no backlog.count in {status}"))
    }

    /// One stored request.
    pub async fn record(&self, id: &str) -> Value {
        let reply = self.get(&format!("/holdfast/v1/requests/{id}")).await;
        assert_eq!(reply.status, 200, "accepted, but not on record: {id}: {}", reply.text());
        reply.json()
    }

    /// The record and its events as one text, to look for a label in.
    pub async fn history(&self, id: &str) -> String {
        let events = self.get(&format!("/holdfast/v1/requests/{id}/events")).await;
        format!("{} {}", self.record(id).await, events.text())
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The tool beside it, with the same configuration: exit code and standard output.
    pub async fn tool(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = binary(self.dir.path());
        command.args(arguments).arg("--config").arg(self.dir.path().join("holdfast.toml"));
        let output = within("the tool", 60, command.output()).await.unwrap();
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// SQLite's own check of every database in the data folder. Only after the daemon has ended.
    pub fn check_databases(&self) {
        let databases = databases(&self.dir.path().join("data"));
        assert!(!databases.is_empty(), "no database in the data folder");
        for path in databases {
            let database = rusqlite::Connection::open(&path).unwrap();
            let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(verdict, "ok", "{}", path.display());
        }
    }
}

fn spawn(dir: &Path, environment: &[(&'static str, String)]) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("daemon.log")).unwrap();
    let mut command = under(environment, binary(dir));
    command.args(["run", "--config"]).arg(dir.join("holdfast.toml"));
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.spawn().unwrap()
}

/// `RUN_UNDER` is a line of shell that ends in running `"$@"`.
fn under(environment: &[(&'static str, String)], program: Command) -> Command {
    let Some((_, line)) = environment.iter().find(|(name, _)| *name == "RUN_UNDER") else { return program };
    let mut outer = Command::new("sh");
    outer.args(["-c", line, "sh"]).arg(program.as_std().get_program());
    for (name, value) in program.as_std().get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(folder) = program.as_std().get_current_dir() {
        outer.current_dir(folder);
    }
    outer.stdin(Stdio::null()).kill_on_drop(true);
    outer
}

fn binary(dir: &Path) -> Command {
    // Another build of the program, such as a board's under an emulator.
    let other = std::env::var_os("HOLDFAST_TEST_BINARY");
    let mut command = Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_holdfast").into()));
    // Every HOLDFAST_ variable is configuration to the daemon, also those that are meant for these tests.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HOLDFAST_")) {
        command.env_remove(name);
    }
    command.env("BENCH_UPLINK_KEY", KEY).env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS");
    command.current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Files that begin as SQLite databases do, quarantined copies left out.
fn databases(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file() && begins_as_database(path)).collect()
}

fn begins_as_database(path: &Path) -> bool {
    let mut head = [0u8; 16];
    let read = File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut head));
    read.is_ok() && head == *b"SQLite format 3\0"
}
