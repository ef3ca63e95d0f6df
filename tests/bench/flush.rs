//! A disk whose flush takes longer than this machine's: each one waits `BENCH_FLUSH_MS` first.
//!
//! Owns that wait, in the bench itself and, through `slow_flush.c`, in what it starts. Without the variable nothing differs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

const VARIABLE: &str = "BENCH_FLUSH_MS";
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/slow_flush.c");
const LIBRARY: &str = "slow_flush.so";

/// What each flush takes longer.
pub(crate) fn added() -> Option<Duration> {
    let given = std::env::var(VARIABLE).ok()?;
    Some(Duration::from_millis(given.parse().expect("BENCH_FLUSH_MS: a number of milliseconds")))
}

/// The bench's own flush.
#[expect(clippy::disallowed_methods, reason = "the time is what a slow disk takes")]
pub(crate) fn data(file: &File) {
    static ADDED: LazyLock<Option<Duration>> = LazyLock::new(added);
    if let Some(added) = *ADDED {
        std::thread::sleep(added);
    }
    file.sync_data().unwrap();
}

/// Lets the flushes of what is started wait, too; the variable itself is inherited.
pub(crate) fn slow(command: &mut Command) -> &mut Command {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(build);
    match added() {
        Some(_) => command.env("LD_PRELOAD", &*BUILT),
        None => command,
    }
}

/// A static program would run on without the wait, and its figures would say nothing.
pub(crate) fn check(pid: u32) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(added().is_none() || maps.contains(LIBRARY), "{VARIABLE} is for dynamically linked programs");
}

fn build() -> PathBuf {
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(LIBRARY);
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(SOURCE).status();
    assert!(built.is_ok_and(|status| status.success()), "{VARIABLE} wants a C compiler (Debian: gcc, libc6-dev)");
    library
}
