//! How many requests per second are on disk and acknowledged, beside plain appends of as many bytes.
//!
//! Owns the stored request's bytes; the daemon has no uplink, so nothing else happens to them.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};

use crate::daemon::Place;
use crate::load::{self, Job, Target, Timed};
use crate::stats::{self, Cell};
use crate::{Plan, append};

const MANY: usize = 64;
const BODY_BYTES: usize = 1024;

pub(crate) async fn measure(plan: &Plan) {
    let place = Place::new("uplink = []\n");
    let (daemon, _) = place.start().await;
    let target = Target::Unix(place.socket());
    let job = Job { request: stored, is_right: is_ticket, timed: Timed::Whole, warm_up: load::WARM_UP };
    let (mut cells, mut written): ([Vec<Cell>; 4], _) = (Default::default(), Vec::new());
    for _ in 0..plan.rounds {
        let folder = place.data.path().to_owned();
        let (body, long) = (body(0), plan.cell);
        let alone = tokio::task::spawn_blocking(move || append::alone(&folder, &body, long));
        cells[0].push(alone.await.unwrap());
        cells[1].push(load::run(&target, job, 1, plan.cell, Some(daemon.pid())).await);
        cells[2].push(append::grouped(place.data.path(), &self::body(0), MANY, plan.cell).await);
        let before = daemon.written();
        let cell = load::run(&target, job, MANY, plan.cell, Some(daemon.pid())).await;
        written.push((daemon.written() - before) as f64 / job.sent_bytes(&cell, MANY, BODY_BYTES));
        cells[3].push(cell);
    }
    println!("\n### Acknowledged stored requests: 1 KiB, `Prefer: respond-async`\n\n{}", stats::HEAD);
    println!("{}", stats::row(1, "append, fdatasync", &cells[0], None));
    println!("{}", stats::row(1, "holdfast", &cells[1], Some(&cells[0])));
    println!("{}", stats::row(MANY, "appends in groups, fdatasync per group", &cells[2], None));
    println!("{}", stats::row(MANY, "holdfast", &cells[3], Some(&cells[2])));
    println!("\nWritten to the disk for each byte accepted, {MANY} callers: {}.", stats::spread(&written));
    println!("Resident after this load: {} KiB.", daemon.resident_kib());
    daemon.stop().await;
}

/// A chat request of exactly [`BODY_BYTES`]; a different one for each number.
pub(crate) fn body(n: u64) -> Bytes {
    let head = r#"{"model":"bench","messages":[{"role":"user","content":""#;
    let tail = format!(r#"{n:020}"}}]}}"#);
    let text = "a".repeat(BODY_BYTES - head.len() - tail.len());
    Bytes::from([head, text.as_str(), tail.as_str()].concat())
}

fn stored(n: u64) -> Request<Full<Bytes>> {
    let request = Request::post("/v1/chat/completions").header("host", "hf").header("content-type", "application/json");
    request.header("prefer", "respond-async").body(Full::new(body(n))).unwrap()
}

fn is_ticket(answer: &Response<Incoming>) -> bool {
    answer.status() == StatusCode::ACCEPTED
}
