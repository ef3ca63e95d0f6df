//! Instructions that the daemon takes for one request, counted by callgrind (Debian: valgrind).
//!
//! Owns the counting. A machine's noise moves it by a percent or two, where times move by half: what a change costs shows
//! here. System calls count as the instruction that makes them; what the kernel does in them is not in it.

use std::path::Path;
use std::process::Command;

use crate::daemon::Place;
use crate::load::{self, Job, Target};
use crate::mock::{self, Offers};
use crate::proxy::Proxy;
use crate::{online, stored};

/// Counted requests: the work that goes on beside them, probes and clocks, weighs little in so many.
const COUNTED: u64 = 400;
const COUNTED_PICTURES: u64 = 20;
/// Before them, so that connections are open and every buffer is there.
const WARM_UP: u64 = 50;

/// Dumps that are looked for: more than one run of the section makes.
const DUMPS_MAX: usize = 100;

/// What is counted: a name, the request, how many of it.
type Row = (&'static str, Job, u64);

const CHAT: Row = ("a chat, 600 bytes back", online::CHAT, COUNTED);
const ONLINE: [Row; 3] = [
    CHAT,
    ("a stream of ten events", online::FIRST_BYTE, COUNTED),
    ("a picture of 1 MiB", online::PICTURE, COUNTED_PICTURES),
];
const STORED: Row = ("1 KiB stored, alone in its commit", stored::CHAT, COUNTED);

pub(crate) async fn measure() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("\nInstructions: not counted, there is no valgrind here.");
        return;
    }
    let place = Place::new("uplink = []\n");
    let mock = mock::start(&place.sockets.path().join("mock.sock"), Offers::Http1).await;
    place.configure(&online::configuration(&format!("base_url = \"http://{}/v1\"", mock.tcp)));
    println!("\n### Instructions for each request\n\n| request | path | instructions |\n| --- | --- | ---: |");
    let proxy = Proxy::start_under(&counted_by_callgrind(place.data.path()), mock.tcp).await;
    count(CHAT, "plain proxy", &Target::Unix(proxy.socket()), proxy.pid(), place.data.path()).await;
    let (daemon, _) = place.start_under(&counted_by_callgrind(place.data.path())).await;
    let target = Target::Unix(place.socket());
    online::until_online(&target).await;
    for row in ONLINE {
        count(row, "holdfast", &target, daemon.pid(), place.data.path()).await;
    }
    daemon.stop().await;
    // Without an uplink, so that nothing is sent beside.
    place.configure("uplink = []\n");
    let (daemon, _) = place.start_under(&counted_by_callgrind(place.data.path())).await;
    count(STORED, "holdfast", &target, daemon.pid(), place.data.path()).await;
    daemon.stop().await;
}

/// What stands before a program's own command line.
fn counted_by_callgrind(folder: &Path) -> Vec<String> {
    let out = folder.join("callgrind.%p");
    ["valgrind", "--quiet", "--tool=callgrind", &format!("--callgrind-out-file={}", out.display())]
        .map(str::to_owned)
        .into()
}

async fn count((name, job, counted): Row, path: &str, target: &Target, pid: u32, folder: &Path) {
    load::one_by_one(target, job, 0..WARM_UP).await;
    tell_callgrind("--zero", pid);
    load::one_by_one(target, job, WARM_UP..WARM_UP + counted).await;
    tell_callgrind("--dump", pid);
    println!("| {name} | {path} | {} |", newest_count(folder, pid) / counted);
}

fn tell_callgrind(what: &str, pid: u32) {
    let done = Command::new("callgrind_control").arg(what).arg(pid.to_string()).output().unwrap();
    assert!(done.status.success(), "callgrind_control {what}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Each dump is a file with a number of its own, from 1; its sum stands in a line `totals:`.
fn newest_count(folder: &Path, pid: u32) -> u64 {
    let name = |number: usize| folder.join(format!("callgrind.{pid}.{number}"));
    let dumps = (1..=DUMPS_MAX).take_while(|number| name(*number).exists()).count();
    let text = std::fs::read_to_string(name(dumps)).expect("a dump of callgrind");
    let sum = text.lines().find_map(|line| line.strip_prefix("totals: "));
    sum.and_then(|sum| sum.trim().parse().ok()).expect("a sum of instructions")
}
