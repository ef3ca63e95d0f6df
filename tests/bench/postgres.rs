//! PostgreSQL as it is installed, a row and a commit for each body: on disk before the answer (`synchronous_commit`).
//!
//! Owns its process, and of its protocol what one prepared statement takes; a row where Debian's `postgresql` is installed.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use holdfast::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::daemon::Place;
use crate::load::{self, Again};
use crate::stats::Cell;
use crate::{flush, stored, wait};

/// Debian's place of it: a folder for each version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// It does not run as root; Debian's package makes this user.
const USER: &str = "postgres";
const SOCKET: &str = ".s.PGSQL.5432";
/// Version 3.0 of the protocol.
const PROTOCOL: i32 = 3 << 16;

/// One that runs; ended when dropped.
pub(crate) struct Postgres {
    child: Child,
    socket: PathBuf,
}

impl Postgres {
    /// `None` where it is not installed. Its files lie on the disk of the daemon's.
    pub(crate) async fn start(place: &Place) -> Option<Postgres> {
        let programs = std::fs::read_dir(VERSIONS).ok()?.map(|version| version.unwrap().path().join("bin"));
        let programs = programs.filter(|bin| bin.join("initdb").exists()).max()?;
        let folder = place.data.path().join("postgres");
        std::fs::create_dir(&folder).unwrap();
        hand_over(&folder);
        let made = as_its_user(&programs.join("initdb"))
            .args(["--auth", "trust", "--username", USER, "--pgdata"])
            .arg(&folder)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let log = std::fs::File::create(place.sockets.path().join("postgres.log")).unwrap();
        let child = flush::slow(&mut as_its_user(&programs.join("postgres")))
            .arg("-D")
            .arg(&folder)
            .args(["-c", "listen_addresses="])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", folder.display()))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let postgres = Postgres { child, socket: folder.join(SOCKET) };
        let log = || std::fs::read_to_string(place.sockets.path().join("postgres.log")).unwrap_or_default();
        assert!(wait::until_listening(&postgres.socket).await, "postgres does not start: {}", log());
        flush::check(postgres.child.id());
        let mut session = postgres.session().await;
        session.query("CREATE TABLE request (id bigserial PRIMARY KEY, body bytea NOT NULL)").await;
        Some(postgres)
    }

    /// Lets `callers` store bodies for `long`, each as a row with a number.
    pub(crate) async fn run(&self, callers: usize, long: Duration) -> Cell {
        let mut all = Vec::new();
        for n in load::first_numbers(callers) {
            let mut session = self.session().await;
            session.send(&[message(b'P', &[b"s\0INSERT INTO request (body) VALUES ($1)\0", &[0, 0]])]).await;
            all.push(Inserting { session, n });
        }
        load::together(all, load::WARM_UP, long, None).await
    }

    async fn session(&self) -> Session {
        let mut session = loop {
            let mut session = Session(UnixStream::connect(&self.socket).await.unwrap());
            let names = format!("user\0{USER}\0database\0{USER}\0\0");
            let len = i32::try_from(8 + names.len()).unwrap();
            let start = [&len.to_be_bytes(), &PROTOCOL.to_be_bytes(), names.as_bytes()].concat();
            session.0.write_all(&start).await.unwrap();
            match session.until_ready().await {
                Ok(()) => break session,
                // It listens before it is ready.
                Err(text) if text.contains("starting up") => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(text) => panic!("PostgreSQL: {text}"),
            }
        };
        session.query("SET synchronous_commit = on").await;
        session
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Asked for a fast end it takes its processes with it.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let _ = self.child.wait();
    }
}

/// As root: the folder belongs to its user, and it may come that far.
fn hand_over(folder: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let id = |flag| {
        let output = Command::new("id").args([flag, USER]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("PostgreSQL's user")
    };
    chown(folder, Some(id("-u")), Some(id("-g"))).unwrap();
    let above = folder.parent().unwrap();
    std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o711)).unwrap();
}

fn as_its_user(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(program);
    command
}

/// One connection.
struct Session(UnixStream);

impl Session {
    async fn query(&mut self, text: &str) {
        self.0.write_all(&message(b'Q', &[text.as_bytes(), b"\0"])).await.unwrap();
        self.until_ready().await.unwrap();
    }

    /// Messages of the extended protocol, and the end of their transaction.
    async fn send(&mut self, messages: &[Vec<u8>]) {
        let bytes = [&messages.concat(), &message(b'S', &[])[..]].concat();
        self.0.write_all(&bytes).await.unwrap();
        self.until_ready().await.unwrap();
    }

    /// Reads to "ready for query", or to what went wrong.
    async fn until_ready(&mut self) -> Result<(), String> {
        loop {
            let kind = self.0.read_u8().await.map_err(|error| error.to_string())?;
            let len = self.0.read_u32().await.map_err(|error| error.to_string())?;
            let mut body = vec![0; len as usize - 4];
            self.0.read_exact(&mut body).await.map_err(|error| error.to_string())?;
            match kind {
                b'Z' => return Ok(()),
                b'E' => return Err(String::from_utf8_lossy(&body).into_owned()),
                _ => {}
            }
        }
    }
}

/// Its kind, its length and its parts.
fn message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let len = i32::try_from(4 + body.len()).unwrap();
    [&[kind][..], &len.to_be_bytes(), &body].concat()
}

/// One caller.
struct Inserting {
    session: Session,
    n: u64,
}

impl Again for Inserting {
    async fn once(&mut self, timings: &mut Vec<Duration>) {
        let body = stored::body(self.n);
        self.n += 1;
        let len = i32::try_from(body.len()).unwrap().to_be_bytes();
        // All parameters in binary; one; its length and bytes; no results.
        let bind = message(b'B', &[b"\0s\0", &[0, 1, 0, 1, 0, 1], &len, &body, &[0, 0]]);
        let execute = message(b'E', &[b"\0", &[0; 4]]);
        let started = clock::now();
        self.session.send(&[bind, execute]).await;
        timings.push(started.elapsed());
    }
}
