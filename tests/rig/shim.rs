//! Builds the libraries that stand between a program and the system (`shims/*.c`), once per run of the rig.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::case::Outcome;

/// Compiles `shims/<name>.c` into `folder`.
pub fn build(name: &str, folder: &Path) -> Result<PathBuf, Outcome> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/rig/shims/{name}.c"));
    let library = folder.join(format!("{name}.so"));
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).args(["-ldl", "-lpthread"]);
    match command.output() {
        Ok(output) if output.status.success() => Ok(library),
        Ok(output) => Err(Outcome::Missing(format!(
            "cc could not build {name}.c: {}",
            String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default()
        ))),
        Err(error) => Err(Outcome::Missing(format!("cc ({error}): apt-get install gcc libc6-dev"))),
    }
}

/// A folder in memory that goes with the value: what a test writes there costs no flash and little time.
pub fn memory_folder() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let place = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("hfrig").tempdir_in(place).expect("a folder for the test")
}
