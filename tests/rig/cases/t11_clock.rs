//! T11: a clock that jumps by years in each state of a request, and a board that boots in 1970.
//!
//! libfaketime moves the wall clock of the real daemon only; its monotonic clocks go on, as a board's do.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast::plant::Fault;

use crate::case::{Case, Effort, Outcome, Planted};
use crate::parts::gateway::{Gateway, Setup};
use crate::parts::http::chat;
use crate::parts::uplink::{Answer, Uplink, own_certificate};
use crate::parts::{rest, until};

pub const CASE: Case = Case {
    id: "T11",
    what: "clock steps of years in each state, and a boot in 1970",
    faults: &[Planted::In(Fault::WallClockTimers)],
    run,
};

/// As libfaketime reads them; leap days do not matter.
const STEPS: [&str; 5] = ["-3652d", "-1h", "+1h", "+30d", "+3652d"];
/// Probes of the test's gateways come this often.
const PROBE_MS: u64 = 200;
/// How long the gateway is watched after a step: its sweep comes every second.
const WATCH: Duration = Duration::from_millis(2_500);

/// Variables that give a daemon the clock that stands in a file.
pub(super) fn clock_environment(library: &Path, clock: &Path) -> Vec<(String, String)> {
    let variables = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
    ];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

/// `None` where libfaketime is not installed.
pub(super) fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

fn run(effort: &Effort) -> Outcome {
    let Some(library) = library() else {
        return Outcome::Missing("libfaketime: apt-get install faketime".to_owned());
    };
    let rounds = effort.pick(1, 6);
    for _ in 0..rounds {
        let steps = STEPS.iter().map(|step| {
            let library = library.clone();
            std::thread::spawn(move || stepped(&library, step).map_err(|what| format!("clock {step}: {what}")))
        });
        let mut workers: Vec<_> = steps.collect();
        let library = library.clone();
        workers.push(std::thread::spawn(move || boot_in_1970(&library).map_err(|what| format!("1970: {what}"))));
        for worker in workers {
            if let Err(broken) = worker.join().unwrap() {
                return Outcome::Broken(broken);
            }
        }
    }
    Outcome::held(rounds * (STEPS.len() as u64 + 1), "clocks", "each with requests queued, sending, answered, expiring")
}

/// A gateway whose wall clock stands where a file says.
struct Clocked {
    gateway: Gateway,
    uplink: Arc<Uplink>,
    clock: PathBuf,
    _folder: tempfile::TempDir,
}

impl Clocked {
    fn start(library: &Path, at: &str, over_tls: bool) -> Clocked {
        let folder = tempfile::tempdir().unwrap();
        let (clock, ca_file) = (folder.path().join("clock"), folder.path().join("ca.pem"));
        std::fs::write(&clock, at).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (pem, server) = own_certificate("localhost");
        std::fs::write(&ca_file, pem).unwrap();
        let uplink = Uplink::serve(listener, over_tls.then_some(server));
        let scheme = if over_tls { "https" } else { "http" };
        let setup = Setup {
            config: config(&format!("{scheme}://localhost:{port}/v1"), ca_file.to_str().unwrap()),
            environment: clock_environment(library, &clock),
            wrap: Vec::new(),
        };
        Clocked { gateway: Gateway::start(setup), uplink, clock, _folder: folder }
    }

    /// The clock jumps while the daemon runs.
    fn step(&self, to: &str) {
        let new = self.clock.with_extension("new");
        std::fs::write(&new, to).unwrap();
        std::fs::rename(new, &self.clock).unwrap();
    }

    /// What the daemon takes for the time, in seconds since 1970.
    fn time(&self) -> i64 {
        self.gateway.get("/holdfast/v1/status")["time"].as_i64().unwrap_or(-1)
    }

    fn switch(&self, word: &str) {
        self.gateway.ask("POST", &format!("/holdfast/v1/{word}"), &[], b"").unwrap();
    }

    fn store(&self, user: &str, ttl: &str) -> Result<String, String> {
        let headers = [("prefer", "respond-async"), ("x-holdfast-ttl", ttl)];
        let reply =
            self.gateway.ask("POST", "/v1/chat/completions", &headers, &chat(user)).map_err(|e| e.to_string())?;
        let id = reply.header("x-holdfast-id").to_owned();
        if reply.status == 202 { Ok(id) } else { Err(format!("not stored: {}", reply.text())) }
    }

    fn state(&self, id: &str) -> String {
        self.gateway.record(id)["state"].as_str().unwrap_or("none").to_owned()
    }

    fn expect(&self, id: &str, state: &str, when: &str) -> Result<(), String> {
        let found = self.state(id);
        if found == state {
            Ok(())
        } else {
            Err(format!("{when}: {found} instead of {state}: {}", self.gateway.record(id)))
        }
    }
}

fn stepped(library: &Path, step: &str) -> Result<(), String> {
    let mut bench = Clocked::start(library, "+0", false);
    if !bench.gateway.wait_available(true) {
        return Err("the uplink is not seen".to_owned());
    }
    let answered = bench.store("answered before", "30m")?;
    let record = bench.gateway.finished(&answered, 20);
    if record["state"] != "answered" {
        return Err(format!("not answered: {record}"));
    }
    // One under way over the step, then a pause that keeps the others queued.
    bench.uplink.set(Answer::Late(3_000));
    let sending = bench.store("under way", "30m")?;
    until(10, || (!bench.uplink.sent("under way").is_empty()).then_some(())).ok_or("it does not leave")?;
    bench.switch("pause");
    bench.uplink.set(Answer::Text(20));
    let queued = bench.store("queued", "30m")?;
    let soon = bench.store("expires soon", "8s")?;
    let (before, probes) = (bench.time(), bench.uplink.requests());
    bench.step(step);
    let jumped = until(10, || ((bench.time() - before).abs() > 1_800).then_some(()));
    jumped
        .ok_or_else(|| format!("the clock did not move: libfaketime does nothing here, {before} {}", bench.time()))?;
    rest(WATCH);
    let burst = bench.uplink.requests() - probes;
    let expected = WATCH.as_millis() as u64 / PROBE_MS;
    if burst > expected * 3 {
        return Err(format!("{burst} requests within {WATCH:?} of the step, {expected} were due"));
    }
    bench.expect(&queued, "queued", "after the step")?;
    bench.expect(&answered, "answered", "after the step")?;
    bench.expect(&soon, "queued", "seconds before its time")?;
    if bench.gateway.finished(&sending, 20)["state"] != "answered" || bench.uplink.sent("under way").len() != 1 {
        return Err(format!("under way over the step: {}", bench.gateway.record(&sending)));
    }
    if bench.gateway.finished(&soon, 20)["state"] != "expired" {
        return Err(format!("its time is over: {}", bench.gateway.record(&soon)));
    }
    // A crash and a start under the new clock.
    bench.gateway.kill();
    bench.gateway.restart();
    bench.expect(&answered, "answered", "after a restart")?;
    // A pause may last over the restart, or not; either way it ends here.
    bench.switch("resume");
    let record = bench.gateway.finished(&queued, 20);
    if record["state"] != "answered" || bench.uplink.sent("queued").len() != 1 {
        return Err(format!("queued over the step and a restart: {record}"));
    }
    Ok(())
}

/// Accepts without a clock, sends nothing where a certificate cannot be judged, and loses nothing when time comes.
fn boot_in_1970(library: &Path) -> Result<(), String> {
    let plain = Clocked::start(library, "@1970-01-02 00:00:00", false);
    let over_tls = Clocked::start(library, "@1970-01-02 00:00:00", true);
    if plain.time() > 10_000_000 {
        return Err(format!("the daemon knows the time: libfaketime does nothing here, {}", plain.time()));
    }
    let first = plain.store("in 1970", "30m")?;
    if plain.gateway.finished(&first, 20)["state"] != "answered" {
        return Err(format!("plain HTTP needs no clock: {}", plain.gateway.record(&first)));
    }
    let waiting = over_tls.store("in 1970 over TLS", "30m")?;
    let word = until(15, || {
        let uplink = over_tls.gateway.uplink();
        let said = format!("{} {}", uplink["reason"], uplink["paused"]).to_lowercase().replace('_', " ");
        (uplink["available"] == false && said.contains("waiting for time")).then_some(said)
    });
    word.ok_or_else(|| format!("it does not say that it waits for time: {}", over_tls.gateway.uplink()))?;
    over_tls.expect(&waiting, "queued", "below the clock's floor")?;
    if over_tls.uplink.requests() > 0 {
        return Err("it sent over TLS below the clock's floor".to_owned());
    }
    // The time is known now: half a century passes in an instant.
    plain.step("+0");
    over_tls.step("+0");
    let record = over_tls.gateway.finished(&waiting, 90);
    if record["state"] != "answered" {
        return Err(format!("after the time came: {record}, {}", over_tls.gateway.uplink()));
    }
    rest(Duration::from_millis(1_500));
    plain.expect(&first, "answered", "after the time came")
}

fn config(address: &str, ca_file: &str) -> String {
    format!(
        r#"
[gateway]
data_dir = "@DIR@/data"
[http]
socket = "@DIR@/hf.sock"
[[uplink]]
name = "clocked"
base_url = "{address}"
ca_file = "{ca_file}"
probe = {{ interval = "{PROBE_MS}ms", timeout = "1s", fall = 2, rise = 1 }}
[local]
base_url = ""
[drain]
max_in_flight = 1
start_jitter = "0s"
[cache]
ttl = "0s"
[limits]
rate = 0
"#
    )
}
