//! The first device of each language, as its page says, against the real daemon: one question, its answer.
//!
//! Over a pair of pseudo-terminals where the client wants a serial port, over the link's UNIX socket else. Fails where
//! cc or python3 are missing: a client that was not tried is not a client that works.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::support::{Bench, Settings, until, wired};

const QUESTION: &str = "Bearing 7 is at 71 C. Normal?";

fn wire() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire")
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
