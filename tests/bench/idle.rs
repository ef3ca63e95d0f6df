//! What the gateway takes while nobody asks: memory, wake-ups and processor time, its uplink probed as by default.
//!
//! Owns the counting over its threads; what the mock takes stands in no figure.

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
    let before = Taken::by(daemon.pid());
    tokio::time::sleep(long).await;
    let after = Taken::by(daemon.pid());
    let a_second = |after: u64, before: u64| after.saturating_sub(before) as f64 / long.as_secs_f64();
    println!("\n### Idle, one uplink probed every 2 s, over {} s\n", long.as_secs());
    println!("| threads | resident KiB | wake-ups a second | processor ms a second |\n| ---: | ---: | ---: | ---: |");
    let wakes = a_second(after.wakes, before.wakes);
    let cpu_ms = a_second(after.cpu_ns, before.cpu_ns) / 1e6;
    println!("| {} | {} | {wakes:.1} | {cpu_ms:.2} |", after.threads, daemon.resident_kib());
    daemon.stop().await;
}

/// The sums over a process's threads; one that ended in between is missing.
#[derive(Default)]
struct Taken {
    threads: u64,
    /// How often one gave up the processor by itself, and so was woken again.
    wakes: u64,
    /// Finer than the hundredths of a second of the process's own account.
    cpu_ns: u64,
}

impl Taken {
    fn by(pid: u32) -> Taken {
        let mut sum = Taken::default();
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let thread = thread.unwrap().path();
            let read = |name| std::fs::read_to_string(thread.join(name)).unwrap_or_default();
            let (status, schedstat) = (read("status"), read("schedstat"));
            let wakes = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sum.threads += 1;
            sum.wakes += wakes.and_then(|wakes| wakes.trim().parse::<u64>().ok()).unwrap_or_default();
            let cpu_ns = schedstat.split_whitespace().next();
            sum.cpu_ns += cpu_ns.and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
        }
        sum
    }
}
