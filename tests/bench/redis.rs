//! Redis as a store that loses nothing it acknowledged: each command is appended to its file and flushed before the answer.
//!
//! Owns its process, and of its protocol the one command and the one answer; a row where Debian's `redis-server` is installed.

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

const PROGRAM: &str = "/usr/bin/redis-server";
/// No snapshots and no rewriting of the file beside the load: the settings that are kindest to it.
const SETTINGS: &str = "\
port 0
appendonly yes
appendfsync always
auto-aof-rewrite-percentage 0
save \"\"
";

/// One that runs; killed when dropped.
pub(crate) struct Redis {
    child: Child,
    socket: PathBuf,
}

impl Redis {
    /// `None` where it is not installed. Its file lies on the disk of the daemon's.
    pub(crate) async fn start(place: &Place) -> Option<Redis> {
        if !Path::new(PROGRAM).exists() {
            return None;
        }
        let folder = place.data.path().join("redis");
        std::fs::create_dir(&folder).unwrap();
        let socket = place.sockets.path().join("redis.sock");
        let (config, log) = (place.sockets.path().join("redis.conf"), place.sockets.path().join("redis.log"));
        let settings = format!("{SETTINGS}unixsocket {}\ndir {}\n", socket.display(), folder.display());
        std::fs::write(&config, settings).unwrap();
        let child = flush::slow(&mut Command::new(PROGRAM))
            .arg(config)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let redis = Redis { child, socket };
        let log = || std::fs::read_to_string(&log).unwrap_or_default();
        assert!(wait::until_listening(&redis.socket).await, "redis-server does not start: {}", log());
        flush::check(redis.pid());
        Some(redis)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets `callers` store bodies for `long`, each under a key of its own.
    pub(crate) async fn run(&self, callers: usize, long: Duration) -> Cell {
        let mut all = Vec::new();
        for n in load::first_numbers(callers) {
            all.push(Setting { stream: UnixStream::connect(&self.socket).await.unwrap(), n });
        }
        load::together(all, load::WARM_UP, long, Some(self.pid())).await
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One caller.
struct Setting {
    stream: UnixStream,
    n: u64,
}

impl Again for Setting {
    async fn once(&mut self, timings: &mut Vec<Duration>) {
        let command = set(self.n);
        self.n += 1;
        let started = clock::now();
        self.stream.write_all(&command).await.unwrap();
        let mut answer = [0; 5];
        self.stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+OK\r\n", "a wrong answer");
        timings.push(started.elapsed());
    }
}

/// `SET`, in the form of Redis's protocol (RESP): an array of three strings, each with its length.
fn set(n: u64) -> Vec<u8> {
    let (key, body) = (n.to_string(), stored::body(n));
    let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), body.len());
    [head.as_bytes(), &body, b"\r\n"].concat()
}
