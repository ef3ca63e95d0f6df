//! SIGHUP: a configuration that holds is taken over by the same process, and nobody is refused meanwhile; a faulty one
//! changes nothing and is named.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use holdfast::cli::simulate::Faults;
use serde_json::Value;

use crate::support::{Ask, Bench, Manager, Settings, listening, until, within};

const WATCHDOG: Duration = Duration::from_secs(30);
/// So often each caller asks at least: beside other work it gets hardly a turn between two reloads, and goes on after them.
const ENOUGH: usize = 4;

async fn managed(settings: Settings) -> (Bench, Manager) {
    let manager = Manager::new();
    let environment = manager.environment(Some(WATCHDOG));
    let bench = Bench::with(Settings { environment, ..settings }).await;
    manager.wait_for("READY=1", 1).await;
    (bench, manager)
}

/// Changes the file and tells the daemon.
fn reload(bench: &Bench, from: &str, to: &str) {
    let file = bench.daemon.folder().join("holdfast.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{from} is not in the configuration");
    std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
    bench.daemon.signal_reload();
}

async fn device_id(bench: &Bench) -> Value {
    bench.daemon.status().await["device_id"].clone()
}

/// Callers that ask without a pause, each time over a new connection.
fn callers(bench: &Bench, tcp: &str, stop: &Arc<AtomicBool>) -> Vec<tokio::task::JoinHandle<()>> {
    let mut all = Vec::new();
    for n in 0..3 {
        let (socket, tcp, stop) = (bench.daemon.socket(), tcp.to_owned(), stop.clone());
        all.push(tokio::spawn(async move {
            let mut answered = 0;
            while !stop.load(Ordering::Relaxed) || answered < ENOUGH {
                let ask = Ask::chat(&format!("caller {n}, {answered}"));
                let reply = if n == 0 {
                    ask.send_to_tcp(&tcp).await
                } else {
                    ask.send_to(&socket).await.unwrap_or_else(|error| panic!("caller {n} was refused: {error}"))
                };
                assert_eq!(reply.status, 200, "{}", reply.text());
                answered += 1;
            }
        }));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_file_is_taken_over_by_the_same_process_and_nobody_is_refused() {
    let (http, tcp) = listening();
    let (mut bench, manager) = managed(Settings { http, ..Settings::without_local() }).await;
    let pid = bench.daemon.pid();
    let stop = Arc::new(AtomicBool::new(false));
    let callers = callers(&bench, &tcp, &stop);
    for round in 1..=3 {
        let (old, new) = (format!("device_id = \"bench{}\"", "+".repeat(round - 1)), "+".repeat(round));
        reload(&bench, &old, &format!("device_id = \"bench{new}\""));
        manager.wait_for("READY=1", round + 1).await;
        assert_eq!(device_id(&bench).await, format!("bench{new}"));
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        within("the last answer", 30, caller).await.unwrap();
    }
    assert_eq!(bench.daemon.pid(), pid);
    assert!(bench.daemon.stop().await.success());
    let cycle = ["RELOADING=1", "READY=1"];
    let expected = [&["READY=1"][..], &cycle, &cycle, &cycle, &["STOPPING=1"]].concat();
    assert_eq!(manager.states(), expected);
    assert!(!bench.daemon.socket().exists(), "the socket of a stopped daemon");
}

#[tokio::test]
async fn a_faulty_file_changes_nothing_and_is_named() {
    let (bench, manager) = managed(Settings::without_local()).await;
    reload(&bench, "device_id = \"bench\"", "device_id = \"other\"\ndevise = 1");
    manager.wait_for("READY=1", 2).await;
    assert_eq!(device_id(&bench).await, "bench");
    let named =
        |line: &String| line.starts_with("STATUS=") && line.contains("holdfast.toml") && line.contains("devise");
    assert!(manager.heard().iter().any(named), "{:?}", manager.heard());
    let log = std::fs::read_to_string(bench.daemon.folder().join("daemon.log")).unwrap();
    assert!(log.lines().any(|line| line.contains("not taken over") && line.contains("devise")), "{log}");
    assert_eq!(manager.states(), ["READY=1", "RELOADING=1", "READY=1"]);
    let told = bench.daemon.status().await["configuration"].clone();
    assert!(
        told.as_str().is_some_and(|told| told.contains("the old one goes on") && told.contains("devise")),
        "{told}"
    );
    // Mended, it is taken over, and the notice is gone.
    let before = manager.heard().len();
    reload(&bench, "\ndevise = 1", "");
    manager.wait_for("READY=1", 3).await;
    assert_eq!(device_id(&bench).await, "other");
    assert!(bench.daemon.status().await["configuration"].is_null());
    until("a status line of the new image", 30, || async {
        let after = manager.heard().split_off(before);
        let at = after.iter().rposition(|line| line == "READY=1")?;
        after[at..].iter().any(|line| line.contains("uplinks available") && !line.contains("refused")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_holds_in_the_file_but_not_on_this_machine_is_refused_too() {
    let (bench, manager) = managed(Settings::without_local()).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = bench.daemon.folder().join("elsewhere.sock");
    let wrong = [
        ("[http]\n".to_owned(), format!("[http]\nlisten = [\"{}\"]\n", taken.local_addr().unwrap())),
        (format!("data_dir = \"{}\"", bench.daemon.data().display()), "data_dir = \"/tmp/another\"".to_owned()),
        (
            bench.daemon.socket().display().to_string(),
            format!("{}\"\nlisten = [\"{}\"]\ntoken_file = \"/none", elsewhere.display(), taken.local_addr().unwrap()),
        ),
    ];
    for (round, (from, to)) in wrong.iter().enumerate() {
        let file = bench.daemon.folder().join("holdfast.toml");
        let sound = std::fs::read_to_string(&file).unwrap();
        reload(&bench, from, to);
        manager.wait_for("READY=1", round + 2).await;
        assert_eq!(device_id(&bench).await, "bench");
        std::fs::write(&file, sound).unwrap();
    }
    assert!(!elsewhere.exists(), "a refused configuration leaves no socket behind");
}

#[tokio::test]
async fn a_file_that_breaks_in_the_middle_is_waited_for() {
    let (bench, manager) = managed(Settings::without_local()).await;
    let pid = bench.daemon.pid();
    bench.uplink.set_faults(Faults { delay_ms: 1_500, ..Faults::default() }).await;
    let socket = bench.daemon.socket();
    let live = tokio::spawn(async move { Ask::chat("keeps it busy").send_to(&socket).await });
    until("it to be under way", 10, || async { (bench.uplink.requests_total() >= 1).then_some(()) }).await;
    reload(&bench, "device_id = \"bench\"", "device_id = \"later\"");
    manager.wait_for("STATUS=taking over the new configuration", 1).await;
    let file = bench.daemon.folder().join("holdfast.toml");
    let sound = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, "no = table").unwrap();
    assert_eq!(live.await.unwrap().unwrap().status, 200);
    let log = bench.daemon.folder().join("daemon.log");
    until("the fault to be named", 20, || async {
        std::fs::read_to_string(&log).unwrap().contains("became faulty").then_some(())
    })
    .await;
    std::fs::write(&file, sound).unwrap();
    manager.wait_for("READY=1", 2).await;
    assert_eq!((device_id(&bench).await, bench.daemon.pid()), ("later".into(), pid));
}

#[tokio::test]
async fn sockets_come_and_go_with_the_configuration() {
    let (http, tcp) = listening();
    let (mut bench, manager) = managed(Settings { http: http.clone(), ..Settings::without_local() }).await;
    assert_eq!(Ask::get("/health").send_to_tcp(&tcp).await.status, 200);
    let (other, other_tcp) = listening();
    let old = bench.daemon.socket();
    let new = bench.daemon.folder().join("new.sock");
    let line = |path: &std::path::Path| format!("socket = \"{}\"", path.display());
    reload(&bench, &format!("{}\n{http}", line(&old)), &format!("{}\n{other}", line(&new)));
    manager.wait_for("READY=1", 2).await;
    let reply = within("an answer", 10, Ask::get("/health").send_to(&new)).await.unwrap();
    assert_eq!((reply.status, Ask::get("/health").send_to_tcp(&other_tcp).await.status), (200, 200));
    assert!(!old.exists(), "the socket that is no longer wanted");
    assert!(tokio::net::TcpStream::connect(&tcp).await.is_err(), "the port that is no longer wanted");
    assert!(bench.daemon.stop().await.success());
    assert!(!new.exists());
}

#[tokio::test]
async fn the_backlog_and_what_is_under_way_end_once() {
    const REQUESTS: usize = 12;
    let manager = Manager::new();
    let environment = manager.environment(Some(WATCHDOG));
    let settings = Settings { drain_in_flight: 2, environment, ..Settings::without_local() };
    let bench = Bench::offline(settings).await;
    let mut ids = Vec::new();
    for n in 0..REQUESTS {
        let reply = bench.daemon.send(Ask::chat(&format!("kept {n}")).header("prefer", "respond-async")).await;
        ids.push(reply.id());
    }
    bench.uplink.set_faults(Faults { delay_ms: 150, ..Faults::default() }).await;
    until("the drain to begin", 20, || async { (bench.uplink.requests_total() >= 3).then_some(()) }).await;
    let live = AtomicUsize::new(0);
    let asked = async {
        let reply = bench.daemon.send(Ask::chat("under way")).await;
        live.store(usize::from(reply.status), Ordering::Relaxed);
        reply
    };
    let reloaded = async {
        until("it to be under way", 10, || async {
            bench.uplink.log().iter().any(|entry| entry.user == "under way").then_some(())
        })
        .await;
        reload(&bench, "device_id = \"bench\"", "device_id = \"later\"");
        manager.wait_for("READY=1", 2).await;
    };
    let (reply, ()) = tokio::join!(asked, reloaded);
    assert_eq!((reply.status, reply.content().as_str()), (200, "uplink answer to: under way"));
    assert_eq!(device_id(&bench).await, "later");
    bench.recover().await;
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(bench.daemon.record(id).await["state"], "answered");
        assert_eq!(bench.uplink.log().iter().filter(|entry| entry.user == format!("kept {n}")).count(), 1, "{id}");
    }
    assert_eq!(bench.uplink.log().iter().filter(|entry| entry.user == "under way").count(), 1);
}
