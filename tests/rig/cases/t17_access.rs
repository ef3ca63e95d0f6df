//! T17: five users at the socket and at the files: the exact matrix; and a socket that nobody can reach early.
//!
//! The daemon runs as a user of its own; the others are numbers that `setpriv` takes on.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use holdfast::plant::Fault;

use crate::case::{Case, Effort, Outcome, Planted};
use crate::parts::gateway::{Gateway, Setup};
use crate::parts::http::picture;
use crate::parts::{needs, needs_root, tool};

pub const CASE: Case = Case {
    id: "T17",
    what: "five users at the socket and the files, sizes, quotas",
    faults: &[Planted::In(Fault::ChmodAfterListen)],
    run,
};

/// The daemon's own user and group.
const SERVICE: u32 = 7_700;

/// A user: a name for the table, uid, gid and one more group.
struct User {
    name: &'static str,
    uid: u32,
    gid: u32,
    group: Option<u32>,
}

const USERS: [User; 5] = [
    User { name: "root", uid: 0, gid: 0, group: None },
    User { name: "the service", uid: SERVICE, gid: SERVICE, group: None },
    User { name: "a member of its group", uid: 7_701, gid: 7_701, group: Some(SERVICE) },
    User { name: "another user", uid: 7_702, gid: 7_702, group: None },
    User { name: "nobody", uid: 65_534, gid: 65_534, group: None },
];

/// Who may use the socket in each mode, in the order of [`USERS`].
const SOCKET: [(&str, [bool; 5]); 3] = [
    ("0660", [true, true, true, false, false]),
    ("0600", [true, true, false, false, false]),
    ("0666", [true, true, true, true, true]),
];

/// Who may read what the daemon keeps.
const FILES: [bool; 5] = [true, true, false, false, false];

fn run(_: &Effort) -> Outcome {
    let ready = needs(&["setpriv", "cc"], "util-linux gcc").and_then(|()| needs_root());
    if let Err(missing) = ready {
        return missing;
    }
    let folder = tempfile::Builder::new().prefix("hfrig").tempdir().unwrap();
    open_to_all(folder.path());
    let shim = folder.path().join("bind.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rig/shims/bind.c");
    let built = tool("cc", &["-shared", "-fPIC", "-O1", "-o", shim.to_str().unwrap(), source, "-ldl"]);
    if let Err(why) = built {
        return Outcome::Missing(why);
    }
    // The other users need a program that they can reach.
    let program = folder.path().join("holdfast");
    std::fs::copy(env!("CARGO_BIN_EXE_holdfast"), &program).unwrap();
    let mut checks = 0;
    for (mode, socket) in SOCKET {
        let yard = Yard { mode, shim: shim.clone(), program: program.clone() };
        match yard.check(socket) {
            Ok(count) => checks += count,
            Err(what) => return Outcome::Broken(format!("socket_mode {mode}: {what}")),
        }
    }
    Outcome::held(checks, "checks", "5 users, 3 socket modes, every file of the data folder, a size and a quota")
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

struct Yard {
    mode: &'static str,
    shim: PathBuf,
    program: PathBuf,
}

impl Yard {
    fn check(&self, socket: [bool; 5]) -> Result<u64, String> {
        let log = self.shim.with_file_name(format!("bind-{}.log", self.mode));
        let setup = Setup { config: config(self.mode), environment: Vec::new(), wrap: self.wrap(&log) };
        let gateway = Gateway::start(setup);
        bound_right(&log, self.mode)?;
        let mut checks = 2;
        for (user, allowed) in USERS.iter().zip(socket) {
            let code = self.tool(user, &gateway, &["status", "--json"]);
            let expected = if allowed { 0 } else { 77 };
            if code != expected {
                return Err(format!("{}: status ends with {code} instead of {expected}", user.name));
            }
            checks += 1;
        }
        gateway.store(&picture("kept as a file", 200_000))?;
        checks += files(&gateway.dir().join("data"))?;
        if self.mode == "0666" {
            checks += self.quotas(&gateway)?;
        }
        Ok(checks)
    }

    /// Gives the folder to the service's user and becomes that user, with the shim before the daemon.
    fn wrap(&self, log: &Path) -> Vec<String> {
        let script = format!(
            "chown {SERVICE}:{SERVICE} . && chmod 0711 . && touch {log} && chown {SERVICE} {log} && umask 022 && \
             exec setpriv --reuid {SERVICE} --regid {SERVICE} --clear-groups \
             env RIG_BIND_LOG={log} LD_PRELOAD={shim} \"$@\"",
            log = log.display(),
            shim = self.shim.display(),
        );
        ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }

    /// The exit code of the tool as that user.
    fn tool(&self, user: &User, gateway: &Gateway, words: &[&str]) -> i32 {
        let mut command = become_user(user);
        command.arg(&self.program).arg("--socket").arg(gateway.socket()).args(words);
        command.env_remove("HOLDFAST_PLANT").current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().code().unwrap_or(-1)
    }

    /// One user's backlog and one request's size have bounds; another user is not touched by them.
    fn quotas(&self, gateway: &Gateway) -> Result<u64, String> {
        let ask = |user: &User, n: u32| {
            self.tool(user, gateway, &["ask", &format!("question {n}"), "--offline", "queue", "--wait", "0"])
        };
        let stored: Vec<i32> = (0..5).map(|n| ask(&USERS[3], n)).collect();
        if stored != [75, 75, 75, 1, 1] {
            return Err(format!("per_source_backlog = 3: five requests of one user end with {stored:?}"));
        }
        let other = ask(&USERS[2], 9);
        if other != 75 {
            return Err(format!("another user pays for it: {other}"));
        }
        let reply = gateway.ask("POST", "/v1/chat/completions", &[], &picture("too large", 2_000_000));
        let status = reply.map(|reply| reply.status).map_err(|e| e.to_string())?;
        if status == 413 { Ok(7) } else { Err(format!("2 MB where 1 MiB is allowed: {status}")) }
    }
}

fn become_user(user: &User) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user.uid.to_string(), "--regid", &user.gid.to_string()]);
    match user.group {
        Some(group) => command.args(["--groups", &group.to_string()]),
        None => command.arg("--clear-groups"),
    };
    command
}

/// The socket had its mode when it was made and when it listened, so at no instant another.
fn bound_right(log: &Path, mode: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let wanted = mode.trim_start_matches('0');
    let right = |line: &str| line.split(' ').nth(1) == Some(wanted);
    let seen = text.contains("bind ") && text.contains("listen ");
    assert!(seen, "the shim saw no socket: {text:?}");
    if text.lines().all(right) { Ok(()) } else { Err(format!("the socket had another mode for an instant: {text:?}")) }
}

/// Each file and folder against each user, and the modes themselves.
fn files(data: &Path) -> Result<u64, String> {
    let mode = std::fs::metadata(data).map_err(|e| e.to_string())?.mode() & 0o7777;
    if mode != 0o700 {
        return Err(format!("data_dir has mode {mode:o}"));
    }
    let (mut paths, mut folders) = (vec![data.to_owned()], vec![data.to_owned()]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path.clone());
            }
            paths.push(path);
        }
    }
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    if !names.iter().any(|name| name.contains("/bodies/")) || !names.iter().any(|name| name.ends_with("spool.db")) {
        return Err(format!("no body and no database among {names:?}"));
    }
    for path in &paths {
        let found = std::fs::metadata(path).map_err(|e| e.to_string())?;
        if found.mode() & 0o077 != 0 || found.uid() != SERVICE {
            return Err(format!("{} has mode {:o} and owner {}", path.display(), found.mode() & 0o7777, found.uid()));
        }
        for (user, allowed) in USERS.iter().zip(FILES) {
            let read = become_user(user).args(["test", "-r"]).arg(path).status().unwrap().success();
            if read != allowed {
                return Err(format!("{} reads {}: {read}", user.name, path.display()));
            }
        }
    }
    Ok(paths.len() as u64 * USERS.len() as u64)
}

fn config(mode: &str) -> String {
    format!(
        r#"
[gateway]
data_dir = "@DIR@/data"
[http]
socket = "@DIR@/hf.sock"
socket_mode = "{mode}"
max_body = "1MiB"
[[uplink]]
name = "nowhere"
base_url = "http://127.0.0.1:9/v1"
[local]
base_url = ""
[limits]
rate = 0
per_source_backlog = 3
"#
    )
}
