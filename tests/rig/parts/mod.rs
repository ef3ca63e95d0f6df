//! What several tests share: the daemon as a child, a small HTTP client, an uplink that remembers, namespaces.
//!
//! All of it waits for conditions, with a bound; owns no test itself.

pub mod config;
pub mod gateway;
pub mod http;
pub mod network;
pub mod uplink;

use std::process::Command;
use std::time::Duration;

use holdfast::clock;

use crate::case::Outcome;

/// How often a condition is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Asks again and again until there is something; `None` after `seconds`.
pub fn until<T>(seconds: u64, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let started = clock::now();
    loop {
        if let Some(found) = ask() {
            return Some(found);
        }
        if started.elapsed() >= Duration::from_secs(seconds) {
            return None;
        }
        rest(LOOK_EVERY);
    }
}

/// Lets time pass: between two looks at a condition, or where the fault is that nothing happens for a while.
pub fn rest(time: Duration) {
    let end = clock::now() + time;
    while let Some(left) = end.checked_duration_since(clock::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// A program that must succeed; its output.
pub fn tool(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// `Missing` unless each of these programs is there.
pub fn needs(programs: &[&str], from: &str) -> Result<(), Outcome> {
    let path = std::env::var("PATH").unwrap_or_default();
    let there = |name: &&&str| path.split(':').any(|folder| std::path::Path::new(folder).join(name).exists());
    let missing: Vec<&&str> = programs.iter().filter(|name| !there(name)).collect();
    if missing.is_empty() { Ok(()) } else { Err(Outcome::Missing(format!("no {missing:?}: apt-get install {from}"))) }
}

/// `Missing` unless this runs as root: namespaces and other users need it.
pub fn needs_root() -> Result<(), Outcome> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(Outcome::Missing("root".to_owned())) }
}

/// xorshift: the same again from the same seed.
pub struct Chance(pub u64);

impl Chance {
    /// From 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
