//! What the gateway takes while nobody asks: memory, wake-ups and processor time, its uplink probed as by default.
//!
//! Owns the counting over its threads; what the mock takes stands in no figure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::daemon::Place;
use crate::load::Target;
use crate::mock::{self, Offers};
use crate::online;

/// After the first request: threads of the start that have nothing to do any more are let go after ten seconds.
const SETTLE: Duration = Duration::from_secs(12);

pub(crate) async fn measure(long: Duration) {
    let place = Place::new("uplink = []\n");
    let mock = mock::start(&place.sockets.path().join("mock.sock"), Offers::Http1).await;
    let uplink = format!("[[uplink]]\nname = \"mock\"\nbase_url = \"http://{}/v1\"\n", mock.tcp);
    place.configure(&format!("{uplink}probe = {{ interval = \"2s\" }}\n"));
    let (daemon, _) = place.start().await;
    online::until_online(&Target::Unix(place.socket())).await;
    tokio::time::sleep(SETTLE).await;
    let before = threads(daemon.pid());
    tokio::time::sleep(long).await;
    let after = threads(daemon.pid());
    let taken = since(&before, &after);
    let a_second = |count: u64| count as f64 / long.as_secs_f64();
    println!("\n### Idle, one uplink probed every 2 s, over {} s\n", long.as_secs());
    println!("| threads | resident KiB | wake-ups a second | processor ms a second |\n| ---: | ---: | ---: | ---: |");
    let (wakes, cpu_ms) = (a_second(taken.wakes), a_second(taken.cpu_ns) / 1e6);
    println!("| {} | {} | {wakes:.1} | {cpu_ms:.2} |", after.len(), daemon.resident_kib());
    daemon.stop().await;
}

/// What one thread has taken so far.
#[derive(Clone, Copy)]
struct Taken {
    /// How often it gave up the processor by itself, and so was woken again.
    wakes: u64,
    /// Finer than the hundredths of a second of the process's own account.
    cpu_ns: u64,
}

/// All threads of a process, by number.
fn threads(pid: u32) -> BTreeMap<String, Taken> {
    let folders = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let each = folders.map(|thread| {
        let thread = thread.unwrap();
        let read = |name| std::fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        let (status, schedstat) = (read("status"), read("schedstat"));
        let wakes = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let wakes = wakes.and_then(|wakes| wakes.trim().parse().ok()).unwrap_or_default();
        let cpu_ns = schedstat.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or_default();
        (thread.file_name().to_string_lossy().into_owned(), Taken { wakes, cpu_ns })
    });
    each.collect()
}

/// What the threads that are there took since then; what one took that ended in between is not known.
fn since(before: &BTreeMap<String, Taken>, after: &BTreeMap<String, Taken>) -> Taken {
    after.iter().fold(Taken { wakes: 0, cpu_ns: 0 }, |sum, (thread, now)| {
        let then = before.get(thread).copied().unwrap_or(Taken { wakes: 0, cpu_ns: 0 });
        Taken { wakes: sum.wakes + now.wakes - then.wakes, cpu_ns: sum.cpu_ns + now.cpu_ns - then.cpu_ns }
    })
}
