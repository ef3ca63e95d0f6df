//! T21: the service manager's watchdog is petted while control turns and the disk takes commits, however slowly, and by nothing
//! else.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use holdfast::clock;
use holdfast::plant::Fault;

use crate::case::{self, Case, Effort, Outcome, Planted};
use crate::{daemon, shim};

/// Three pets fall into it, each after a commit of [`SLOW_MS`].
const WATCHDOG: Duration = Duration::from_secs(6);
/// A card that collects its garbage.
const SLOW_MS: u64 = 1_500;
/// A card that has died without a word.
const HANGS_MS: u64 = 3_600_000;
/// Everything up to the first sign of life.
const START_MAX: Duration = Duration::from_secs(40);
const PETS: u32 = 4;
/// Connections that a second thread joins for. Where there is but one core none does, and its hang is not caught.
const MANY: usize = 8;
const DISK_HANGS: &str = "disk-hangs";

pub const CASE: Case = Case {
    id: "T21",
    what: "the watchdog: a hang is not petted, a slow disk is",
    faults: &[
        Planted::In(Fault::ControlHangs),
        Planted::In(Fault::SpoolHangs),
        Planted::In(Fault::SecondThreadHangs),
        Planted::Around(DISK_HANGS),
    ],
    run,
};

/// The daemon, ended with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(_: &Effort) -> Outcome {
    let folder = shim::memory_folder();
    let library = match shim::build("slow", folder.path()) {
        Ok(library) => library,
        Err(outcome) => return outcome,
    };
    match watch(folder.path(), &library) {
        Ok(Ok(pets)) => Outcome::held(pets.into(), "pets", format!("each after a commit of {SLOW_MS} ms")),
        Ok(Err(fault)) => Outcome::Broken(fault),
        Err(error) => Outcome::Faulty(error.to_string()),
    }
}

/// How often it was petted, or that it was not.
fn watch(dir: &Path, library: &Path) -> io::Result<Result<u32, String>> {
    let (notify, delay) = (dir.join("notify"), dir.join("delay"));
    let manager = UnixDatagram::bind(&notify)?;
    daemon::configure(dir, "http://127.0.0.1:9", "")?;
    let environment = [
        ("NOTIFY_SOCKET", notify.display().to_string()),
        ("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()),
        ("LD_PRELOAD", library.display().to_string()),
        ("RIG_SLOW_FILE", delay.display().to_string()),
    ];
    let _running = Running(daemon::start_with(dir, &environment)?);
    for line in ["READY=1", "WATCHDOG=1"] {
        if !told(&manager, line, START_MAX)? {
            return Err(io::Error::other(format!("{line} never came")));
        }
    }
    let ms = if case::environment().as_deref() == Some(DISK_HANGS) { HANGS_MS } else { SLOW_MS };
    std::fs::write(&delay, ms.to_string())?;
    let _many: Vec<_> = (0..MANY).map(|_| daemon::Line::open(&daemon::socket(dir))).collect::<io::Result<_>>()?;
    // Where control or the spool hangs, neither of these is answered.
    let socket = daemon::socket(dir);
    std::thread::spawn(move || daemon::Line::open(&socket)?.store("work for the spool"));
    let socket = daemon::socket(dir);
    std::thread::spawn(move || daemon::Line::open(&socket)?.post("/holdfast/v1/drain"));
    for pet in 0..PETS {
        if !told(&manager, "WATCHDOG=1", WATCHDOG)? {
            return Ok(Err(format!("after {pet} more there was no sign of life for {} s", WATCHDOG.as_secs())));
        }
    }
    Ok(Ok(PETS))
}

/// Whether this line comes within `limit`.
fn told(manager: &UnixDatagram, line: &str, limit: Duration) -> io::Result<bool> {
    let end = clock::now() + limit;
    let mut buffer = [0u8; 4096];
    loop {
        let left = end.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Ok(false);
        }
        manager.set_read_timeout(Some(left))?;
        match manager.recv(&mut buffer) {
            Ok(length) if String::from_utf8_lossy(&buffer[..length]).lines().any(|heard| heard == line) => {
                return Ok(true);
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
}
