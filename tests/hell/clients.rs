//! The first device of each language, as its page says, against the real daemon: one question, its answer.
//!
//! Over a pair of pseudo-terminals where the client wants a serial port, over the link's UNIX socket else. Fails where
//! cc or python3 are missing: a client that was not tried is not a client that works.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::pty::OpenptFlags;

use super::support::{Bench, Settings, until};

const QUESTION: &str = "Bearing 7 is at 71 C. Normal?";

fn wire() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire")
}

/// A terminal's inner side and the name of its port.
fn terminal() -> (File, PathBuf) {
    let inner = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&inner).unwrap();
    rustix::pty::unlockpt(&inner).unwrap();
    let name = rustix::pty::ptsname(&inner, Vec::new()).unwrap();
    (File::from(inner), PathBuf::from(name.to_str().unwrap()))
}

/// Carries bytes one way as long as the test lives; an end that nobody has opened is tried again.
fn carry(mut from: File, mut to: File) {
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        loop {
            match from.read(&mut bytes) {
                Ok(length) => drop(to.write_all(&bytes[..length])),
                Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
            }
        }
    });
}

/// Two serial ports that are wired to each other.
fn wired() -> (PathBuf, PathBuf) {
    let ((one, left), (other, right)) = (terminal(), terminal());
    carry(one.try_clone().unwrap(), other.try_clone().unwrap());
    carry(other, one);
    (left, right)
}

async fn said(mut command: Command) -> String {
    let shown = format!("{command:?}");
    let output: Output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}: {complained}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A daemon whose link has this place.
async fn bench(place: &str) -> Bench {
    let extra = format!("[[link]]\nname = \"line\"\n{place}\n");
    let bench = Bench::with(Settings { extra, ..Settings::default() }).await;
    until("the link to be open", 30, || async {
        let status = bench.daemon.status().await;
        (status["links"][0]["state"] == "open").then_some(())
    })
    .await;
    bench
}

async fn by_port(command: impl FnOnce(&Path) -> Command) {
    let (gateway, device) = wired();
    let bench = bench(&format!("device = \"{}\"", gateway.display())).await;
    let text = said(command(&device)).await;
    assert!(text.contains(QUESTION), "{text}");
    assert_eq!(bench.answered(QUESTION), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_device_in_c() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("example-{}", std::process::id()));
    let mut compile = Command::new("cc");
    compile.args(["-std=c99", "-Wall", "-Werror", "-o"]).arg(&program).arg(wire().join("c/example.c"));
    said(compile).await;
    by_port(|port| {
        let mut command = Command::new(&program);
        command.arg(port).arg(QUESTION);
        command
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_simulated_device() {
    by_port(|port| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command
            .args(["simulate", "device", "--chat", QUESTION, "--loss", "10", "--duplicate", "10", "--port"])
            .arg(port);
        command
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_device_in_python() {
    // The UNIX socket needs nothing but the standard library.
    let bench = bench("socket = \"@DIR@/link.sock\"").await;
    let folder = bench.daemon.folder();
    let mut command = Command::new("python3");
    command.args(["-B", "-m", "holdfast_link", "--chat", QUESTION, "--state"]).arg(folder.join("python.state"));
    command.arg(format!("unix:{}", folder.join("link.sock").display())).env("PYTHONPATH", wire().join("python"));
    let text = said(command).await;
    assert!(text.contains(QUESTION), "{text}");
    assert_eq!(bench.answered(QUESTION), 1);
}
