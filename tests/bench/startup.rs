//! How long a start takes and how much memory it needs, with nothing and with a full queue waiting.
//!
//! Owns the filling of the queue, through the spool's own door and before any daemon runs.

use holdfast::clock;
use holdfast::control::types::{Policy, Priority};
use holdfast::spool::record::NewRequest;
use holdfast::spool::{self, Options, Spool};
use tokio::task::JoinSet;

use crate::Plan;
use crate::daemon::Place;
use crate::stats::{median, spread};
use crate::stored;

/// Callers that fill the queue together.
const FILLERS: u64 = 64;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

#[derive(Default)]
struct Starts {
    ms: Vec<f64>,
    kib: Vec<f64>,
}

impl Starts {
    async fn once(&mut self, place: &Place, crash: bool) {
        let (daemon, took) = place.start().await;
        self.ms.push(took.as_secs_f64() * 1e3);
        self.kib.push(daemon.resident_kib() as f64);
        if crash { daemon.kill() } else { daemon.stop().await }
    }
}

pub(crate) async fn measure(plan: &Plan) {
    let empty = Place::new("uplink = []\n");
    let full = Place::new("uplink = []\n");
    fill(&full, plan.waiting).await;
    let mut starts: [Starts; 3] = Default::default();
    // The first start of each makes or reads files that the later ones find in memory.
    for place in [&empty, &full] {
        place.start().await.0.stop().await;
    }
    for _ in 0..plan.rounds {
        starts[0].once(&empty, false).await;
        // Ends in a crash, so that the next start finds an unclean stop.
        starts[1].once(&full, true).await;
        starts[2].once(&full, false).await;
    }
    println!("\n### Start-up: from exec to the answer to /health, and resident memory then\n");
    println!(
        "| waiting | stopped before by | ms | min / median / max ms | resident KiB |\n| ---: | --- | ---: | --- | ---: |"
    );
    let rows = [(0, "SIGTERM"), (plan.waiting, "SIGTERM"), (plan.waiting, "SIGKILL")];
    for ((waiting, how), starts) in rows.iter().zip(&starts) {
        let (ms, kib) = (median(&starts.ms), median(&starts.kib));
        println!("| {waiting} | {how} | {ms:.1} | {} | {kib:.0} |", spread(&starts.ms));
    }
}

async fn fill(place: &Place, waiting: u64) {
    let options = Options {
        data_dir: place.spool(),
        max_bytes: u64::MAX / 4,
        max_requests: waiting * 2,
        min_disk_free: 0,
        evict_when_full: false,
        per_source_backlog: waiting * 2,
        keep_results_ms: DAY_MS,
        keep_results_bytes: 1 << 30,
        hold_unknown: false,
    };
    let spool = tokio::task::spawn_blocking(move || spool::open(options)).await.unwrap().unwrap();
    let mut fillers = JoinSet::new();
    for first in 0..FILLERS {
        fillers.spawn(put(spool.clone(), first, waiting));
    }
    fillers.join_all().await;
    assert_eq!(spool.tally().backlog(), waiting);
    spool.close().await;
}

async fn put(spool: Spool, first: u64, waiting: u64) {
    for n in (first..waiting).step_by(FILLERS as usize) {
        let body = stored::body(n);
        let new = NewRequest {
            id: clock::request_id(),
            source: "uid:0".to_owned(),
            label: None,
            endpoint: "/v1/chat/completions".to_owned(),
            model: "bench".to_owned(),
            priority: Priority::Normal,
            policy: Policy::Queue,
            body: body.into(),
            idempotency_key: None,
            ttl_ms: 3 * DAY_MS,
            leased: false,
            maybe_billed: false,
            device: None,
            task: None,
        };
        spool.accept(new).await.unwrap();
    }
}
