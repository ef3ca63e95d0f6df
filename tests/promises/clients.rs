//! Unmodified clients, and a real model server, in virtual environments under `target/tmp`.
//!
//! These tests need `python3` with `venv` and a package index. They fail when those are missing: a client that was
//! not tried is not a client that works.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use holdfast::cli::simulate::{Faults, Mode};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::{Ask, Bench, Settings, free_port, wired, within};

const HINT: &str = "this test needs python3 with venv and pip, and a package index that pip can reach \
                    (Debian: apt-get install python3-venv python3-pip)";
/// Slow links and two busy cores; the largest set takes three minutes.
const INSTALL_S: u64 = 900;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// One environment is made at a time: two tests may want the same one.
static MAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The python of a virtual environment with these packages, made at the first use.
async fn python(name: &str, packages: &[&str]) -> PathBuf {
    let _making = MAKING.lock().await;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("venv-{name}"));
    let (python, complete) = (folder.join("bin/python"), folder.join("complete"));
    let wanted = packages.join(" ");
    if std::fs::read_to_string(&complete).is_ok_and(|installed| installed == wanted) {
        return python;
    }
    let mut venv = Command::new("python3");
    finish(venv.args(["-m", "venv", "--clear"]).arg(&folder)).await;
    finish(Command::new(&python).args(["-m", "pip", "install", "-q"]).args(packages)).await;
    std::fs::write(complete, wanted).unwrap();
    python
}

/// Runs a command to its end; fails the test with everything it said.
async fn finish(command: &mut Command) -> String {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = within("a python command", INSTALL_S, running).await;
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}; {HINT}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed; {HINT}\n{said}\n{complained}");
    said
}

async fn openai_python(version: u32) -> PathBuf {
    python(&format!("openai{version}"), &[&format!("openai=={version}.*")]).await
}

/// Does these steps of a client's program of `tests/clients`; all that it said.
async fn steps(python: &Path, program: &str, bench: &Bench, steps: &[&str]) -> String {
    let mut command = Command::new(python);
    command.arg(script("clients/python").join(program)).arg(bench.daemon.socket()).args(steps);
    let said = finish(command.env("PYTHONDONTWRITEBYTECODE", "1")).await;
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), steps.len(), "{said}");
    said
}

async fn openai(version: u32) {
    let python = openai_python(version).await;
    let bench = Bench::start().await;
    let run = async |names: &[&str]| steps(&python, "openai_client.py", &bench, names).await;
    run(&["plain", "stream", "tools", "json", "embeddings", "models", "error"]).await;
    bench.outage(Faults::failing(Mode::Refuse)).await;
    let said = run(&["offline", "offline_stream", "queued"]).await;
    let id = said.lines().find_map(|line| line.strip_prefix("id ")).expect("the ticket's id").to_owned();
    assert_eq!(bench.daemon.backlog().await, 3, "two offline answers and one ticket: nothing twice");
    let said = run(&["begin"]).await;
    let later =
        said.lines().find_map(|line| line.strip_prefix("later ")).expect("a batch's and a response's id").to_owned();
    bench.recover().await;
    run(&[&format!("fetch={later}")]).await;
    assert_eq!((bench.answered("python line 0"), bench.answered("python background")), (1, 1));
    assert_eq!(bench.answered("python doomed"), 0);
    assert_eq!(bench.daemon.record(&id).await["state"], "answered");
    assert_eq!(bench.answered("python queued"), 1);
}

#[tokio::test]
async fn openai_python_reads_kept_answers() {
    let bench = Bench::with(Settings { cache: "ttl = \"5m\"".to_owned(), ..Settings::default() }).await;
    steps(&openai_python(2).await, "openai_client.py", &bench, &["kept"]).await;
    assert_eq!((bench.answered("python kept"), bench.answered("python kept stream")), (1, 1));
}

#[tokio::test]
async fn openai_python_1() {
    openai(1).await;
}

#[tokio::test]
async fn openai_python_2() {
    openai(2).await;
}

#[tokio::test]
async fn openai_python_3() {
    openai(3).await;
}

#[tokio::test]
async fn ollama_python() {
    let python = python("ollama", &["ollama"]).await;
    let bench = Bench::start().await;
    let names = ["chat", "stream", "generate", "picture", "tools", "schema", "embed", "lists", "refused"];
    steps(&python, "ollama_client.py", &bench, &names).await;
}

/// Starts llama.cpp's server with a tiny model of random weights.
async fn real_server(python: &Path, folder: &Path, port: u16) -> Child {
    let mut command = Command::new(python);
    command.arg(script("python/tiny_server.py")).arg(folder.join("tiny.gguf")).arg(port.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut server = command.spawn().unwrap_or_else(|error| panic!("{error}; {HINT}"));
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.starts_with("serving ") {
                return;
            }
        }
        panic!("the model server ended before it served");
    };
    within("the model server to start", 60, ready).await;
    // Whatever else it says must not fill the pipe and stop it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    server
}

#[tokio::test]
async fn a_real_model_server_behind_an_outage() {
    let python = python("llama", &["xllamacpp", "gguf", "numpy"]).await;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let _server = real_server(&python, folder.path(), port).await;
    let local = format!("base_url = \"http://127.0.0.1:{port}\"\napi = \"openai\"\nmodel = \"tiny-random\"");
    let bench = Bench::offline(Settings { local: Some(local), ..Settings::default() }).await;
    for stream in ["", "\"stream\":true,"] {
        let body = format!(
            "{{\"model\":\"gpt-4o\",{stream}\"max_tokens\":16,\"messages\":[{{\"role\":\"user\",\"content\":\"real{}\"}}]}}",
            stream.len()
        );
        let reply = bench.daemon.send(Ask::post("/v1/chat/completions", body)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.header("x-holdfast-route"), "local:tiny-random");
        assert_eq!(reply.header("x-holdfast-state"), "queued");
        assert!(reply.text().contains("tiny-random"), "{}", reply.text());
        assert!(stream.is_empty() || reply.text().trim_end().ends_with("data: [DONE]"), "{}", reply.text());
    }
    bench.recover().await;
    assert_eq!(bench.uplink.requests_total(), 2);
}

/// A Modbus master that knows nothing of holdfast, from the doorbell to the result over a restart of the gateway.
async fn pymodbus(link: &str, arguments: &[&str]) {
    let python = python("pymodbus", &["pymodbus[serial]>=3.10"]).await;
    let extra = format!(
        "[[task]]\nid = 13\nprompt = \"Speed {{rpm}}\"\n\n[[link]]\nname = \"press\"\n{link}\nprotocol = \"modbus\"\n\
         offline = \"queue\"\n"
    );
    let mut bench = Bench::offline(Settings { extra, ..Settings::without_local() }).await;
    let mut command = Command::new(python);
    command.arg(script("python/modbus_client.py")).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut master = command.spawn().unwrap_or_else(|error| panic!("{error}; {HINT}"));
    let mut lines = BufReader::new(master.stdout.take().unwrap()).lines();
    let stored = within("the request to be stored", 60, lines.next_line()).await.unwrap();
    let number = stored.as_deref().and_then(|line| line.strip_prefix("stored ")).expect("what the master said");
    assert_ne!(number, "0");
    assert_eq!(bench.daemon.backlog().await, 1, "written twice, stored once");
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    bench.uplink.set_faults(Faults::default()).await;
    let result = within("the result", 60, lines.next_line()).await.unwrap();
    assert_eq!(result.as_deref(), Some("result uplink answer to: Speed 1500"));
    assert!(within("the end", 60, master.wait()).await.unwrap().success());
    assert_eq!(bench.answered("Speed 1500"), 1);
}

#[tokio::test]
async fn pymodbus_rtu() {
    let (gateway, master) = wired();
    let link = format!("device = \"{}\"\nparity = \"none\"", gateway.display());
    pymodbus(&link, &["rtu", master.to_str().unwrap()]).await;
}

#[tokio::test]
async fn pymodbus_tcp() {
    let place = format!("127.0.0.1:{}", free_port());
    pymodbus(&format!("listen = \"{place}\""), &["tcp", &place]).await;
}

/// The device link's own client for cameras and PCs: it installs as any package does, and its own tests pass.
#[tokio::test]
async fn holdfast_link_python() {
    let python = python("link", &["pyserial", "setuptools>=77"]).await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire/python");
    let mut tests = Command::new(&python);
    tests.args(["-m", "unittest"]).current_dir(&folder).env("PYTHONDONTWRITEBYTECODE", "1");
    finish(&mut tests).await;
    // Installed from a copy: building a package leaves files beside its sources.
    let copy = tempfile::tempdir().unwrap();
    finish(Command::new("cp").arg("-r").arg(&folder).arg(copy.path())).await;
    let (from, to) = (copy.path().join("python"), copy.path().join("installed"));
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]).arg(&to).arg(from);
    finish(&mut install).await;
    let mut import = Command::new(&python);
    import.args(["-m", "holdfast_link", "--help"]).env("PYTHONPATH", &to).current_dir(copy.path());
    assert!(finish(&mut import).await.contains("--picture"));
}
