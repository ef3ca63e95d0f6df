//! The real daemon as a child process: its configuration, its start, its memory, its end.
//!
//! Owns the folders it works in and removes them with itself.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use bytes::Bytes;
use holdfast::clock;
use http_body_util::Full;
use hyper::Request;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::load::{Caller, Target};
use crate::{disk, flush, wait};

/// Nothing here takes this long; beyond it the daemon is not coming.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks whether it answers: the resolution of the start-up times.
const LOOK: Duration = Duration::from_millis(1);

/// Limits out of the way, no local model: what is measured is the path, not a refusal.
const ROOM: &str = r#"
[http]
socket = "SOCKET"
max_in_flight = 1024
[gateway]
data_dir = "DATA"
[local]
base_url = ""
[queue]
max_bytes = "64GiB"
max_requests = 100000000
min_disk_free = "0B"
[limits]
rate = 0
per_source_backlog = 100000000
"#;

/// Where daemons keep their files, one after the other.
pub(crate) struct Place {
    /// On a disk: a temporary folder is often none at all.
    pub(crate) data: TempDir,
    /// A short path: a socket's name has 107 bytes.
    pub(crate) sockets: TempDir,
    config: PathBuf,
}

impl Place {
    /// `uplinks` is what the configuration says about them.
    pub(crate) fn new(uplinks: &str) -> Place {
        let data = tempfile::tempdir_in(disk::folder()).unwrap();
        let sockets = tempfile::tempdir().unwrap();
        let config = sockets.path().join("holdfast.toml");
        let place = Place { data, sockets, config };
        place.configure(uplinks);
        place
    }

    /// Writes the configuration anew, for the next start.
    pub(crate) fn configure(&self, uplinks: &str) {
        let room = ROOM.replace("SOCKET", &self.socket().to_string_lossy());
        let room = room.replace("DATA", &self.spool().to_string_lossy());
        // A key of the whole file must stand before the first table, a table may follow.
        let text = if uplinks.starts_with('[') { room + uplinks } else { uplinks.to_owned() + &room };
        std::fs::write(&self.config, text).unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.sockets.path().join("holdfast.sock")
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.data.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.sockets.path().join("log")
    }

    /// Starts a daemon and waits until `/health` answers; says how long that took from exec.
    pub(crate) async fn start(&self) -> (Daemon, Duration) {
        self.start_under(&[]).await
    }

    /// The same under another program, whose command line goes before the daemon's.
    pub(crate) async fn start_under(&self, under: &[String]) -> (Daemon, Duration) {
        let log = std::fs::File::create(self.log()).unwrap();
        let started = clock::now();
        // Another build of the daemon may be named: two are compared that way.
        let program = std::env::var_os("BENCH_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_holdfast").into());
        let child = flush::slow(&mut wait::command(under, program.as_ref()))
            .args(["run", "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Daemon { child };
        let target = Target::Unix(self.socket());
        while !answers(&target).await {
            let ended = daemon.child.try_wait().unwrap();
            if ended.is_some() || started.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                panic!("the daemon does not answer ({ended:?}): {log}");
            }
            tokio::time::sleep(LOOK).await;
        }
        let took = started.elapsed();
        flush::check(daemon.pid());
        (daemon, took)
    }
}

async fn answers(target: &Target) -> bool {
    let request = Request::get("/health").header("host", "hf").body(Full::new(Bytes::new())).unwrap();
    let Ok(mut caller) = Caller::connect(target).await else { return false };
    caller.call(request).await.is_ok_and(|(answer, _)| answer.status() == 200)
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.status("VmRSS:").parse().unwrap()
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory now and at its highest.
    pub(crate) fn memory(&self) -> Memory {
        Memory::of_family(self.child.id())
    }

    /// Ends it as the system would.
    pub(crate) async fn stop(mut self) {
        // It may answer an instant before it listens to signals, and would then die of this one.
        while !self.catches(Signal::TERM) {
            tokio::time::sleep(LOOK).await;
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the daemon ended badly: {status}");
    }

    fn catches(&self, signal: Signal) -> bool {
        let caught = u64::from_str_radix(&self.status("SigCgt:"), 16).unwrap();
        caught & (1 << (signal.as_raw() - 1)) != 0
    }

    fn status(&self, name: &str) -> String {
        field(self.child.id(), name).expect("a field of a running process")
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One field of a process's status, without its unit; `None` where it has ended.
fn field(pid: u32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.split_whitespace().next()?.to_owned())
}

/// Resident memory of a process and its children.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) now_kib: u64,
    /// The sum of their highest, which need not have been at one time.
    pub(crate) peak_kib: u64,
}

impl Memory {
    pub(crate) fn of_family(pid: u32) -> Memory {
        let each = family(pid).into_iter().map(|pid| {
            let kib = |name| field(pid, name).and_then(|kib| kib.parse().ok()).unwrap_or_default();
            Memory { now_kib: kib("VmRSS:"), peak_kib: kib("VmHWM:") }
        });
        each.fold(Memory::default(), |sum, one| Memory {
            now_kib: sum.now_kib + one.now_kib,
            peak_kib: sum.peak_kib + one.peak_kib,
        })
    }
}

fn family(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// Processor time that a process and its children took since they started, to a hundredth of a second (proc(5)).
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let ticks = family(pid).into_iter().filter_map(|pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // User and system time are the 14th and 15th field; the second, a name, may hold spaces.
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        Some(fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?)
    });
    Duration::from_millis(ticks.sum::<u64>() * 10)
}
