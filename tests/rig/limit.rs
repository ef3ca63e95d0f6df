//! A bound on a child's memory, by whatever this machine has: control groups of either version, else its data segment.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A limit that goes with the value.
pub struct Limit {
    group: Option<PathBuf>,
    bytes: u64,
    /// How it is held, for the table.
    pub means: &'static str,
}

impl Limit {
    /// A bound of this many bytes.
    pub fn of(bytes: u64) -> Limit {
        let name = format!("holdfast-rig-{}", std::process::id());
        let kinds = [
            ("/sys/fs/cgroup", "memory.max", "cgroup v2"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "cgroup v1"),
        ];
        for (root, file, means) in kinds {
            let group = Path::new(root).join(&name);
            // A new group has its files at once, or it is a plain folder.
            if std::fs::create_dir(&group).is_ok() {
                if group.join(file).exists() && std::fs::write(group.join(file), bytes.to_string()).is_ok() {
                    return Limit { group: Some(group), bytes, means };
                }
                let _ = std::fs::remove_dir(&group);
            }
        }
        Limit { group: None, bytes, means: "RLIMIT_DATA" }
    }

    /// A command that runs `program` under the limit; arguments and environment are the caller's.
    pub fn command(&self, program: &Path) -> Command {
        let enter = match &self.group {
            Some(group) => format!("echo $$ > '{}'", group.join("cgroup.procs").display()),
            None => format!("ulimit -d {}", self.bytes >> 10),
        };
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{enter} && exec \"$0\" \"$@\"")).arg(program);
        command
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some(group) = &self.group {
            let _ = std::fs::remove_dir(group);
        }
    }
}
