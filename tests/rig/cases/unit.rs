//! Tests that stand beside the code they test: the rig runs them by name, with the effort it was asked for.

use std::process::Command;

use crate::case::Outcome;

/// Runs the library's tests that match `filter`; `Ok` holds what they printed.
pub fn tests(filter: &str, environment: &[(&str, String)]) -> Result<String, Outcome> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["test", "--locked", "--lib"]);
    if cfg!(feature = "planted") {
        command.args(["--features", "planted"]);
    }
    command.args([filter, "--", "--include-ignored", "--nocapture"]);
    // What cargo tells this program of itself is another program's: build scripts that ask for it would build anew.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_this_program(name.as_encoded_bytes())) {
        command.env_remove(name);
    }
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    let output = command.output().map_err(|e| Outcome::Missing(format!("cargo: {e}")))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if said.contains("test result: FAILED") {
        let why = said.lines().find(|line| line.contains("panicked at")).unwrap_or("a test failed");
        let next = said.lines().skip_while(|line| !line.contains("panicked at")).nth(1).unwrap_or_default();
        return Err(Outcome::Broken(format!("{why} {next}")));
    }
    let ran = said.lines().any(|line| line.starts_with("test result: ok") && !line.contains(" 0 passed"));
    if ran { Ok(said) } else { Err(Outcome::Missing(format!("no test matches {filter}, or it does not build"))) }
}

fn is_of_this_program(name: &[u8]) -> bool {
    name.starts_with(b"CARGO_PKG_") || name.starts_with(b"CARGO_MANIFEST_")
}
