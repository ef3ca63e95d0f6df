//! How many requests per second are on disk and acknowledged, beside plain appends of as many bytes, Redis and PostgreSQL.
//!
//! Owns the stored requests' bytes; the daemon has no uplink, so nothing else happens to them.

use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};

use crate::daemon::{Daemon, Place};
use crate::disk::{self, Disk};
use crate::load::{self, Caller, Job, Target};
use crate::postgres::Postgres;
use crate::redis::Redis;
use crate::stats::{self, Cell};
use crate::{Plan, append, online};

const FEW: usize = 16;
const MANY: usize = 64;
const BODY_BYTES: usize = 1024;
const PICTURE_BYTES: usize = 256 << 10;

pub(crate) const CHAT: Job = Job { request: chat, is_right: is_ticket, ..online::CHAT };
const PICTURE: Job = Job { request: picture, warm_up: load::WARM_UP_BIG, ..CHAT };

/// Where a row's bytes go, and what counts them.
struct Side {
    place: Place,
    disk: Option<Disk>,
    target: Target,
    daemon: Daemon,
}

impl Side {
    async fn start() -> Side {
        let place = Place::new("uplink = []\n");
        let (daemon, _) = place.start().await;
        Side { disk: Disk::named(), target: Target::Unix(place.socket()), place, daemon }
    }

    /// One cell of the daemon's row.
    async fn ask(&self, row: &mut Row, job: Job, plan: &Plan) {
        let pid = self.daemon.pid();
        let before = self.commits().await;
        row.add(self, pid, load::run(&self.target, job, row.callers, plan.cell, Some(pid))).await;
        let done = row.cells.last().map_or(0, |cell| cell.done);
        row.a_commit.push(done as f64 / (self.commits().await - before) as f64);
    }

    /// So many the daemon has made since it started.
    async fn commits(&self) -> u64 {
        let mut caller = Caller::connect(&self.target).await.unwrap();
        let request = Request::get("/metrics").header("host", "hf").body(Full::new(Bytes::new())).unwrap();
        let (_, body) = caller.call(request).await.unwrap();
        let text = String::from_utf8_lossy(&body);
        let commits = text.lines().find_map(|line| line.strip_prefix("holdfast_spool_commits "));
        commits.expect("a count of commits").parse().unwrap()
    }
}

/// A row of the table and what was written for it.
struct Row {
    callers: usize,
    name: &'static str,
    body_bytes: usize,
    cells: Vec<Cell>,
    /// Bytes written for each byte accepted, by the process's account and by the disk's.
    process: Vec<f64>,
    disk: Vec<f64>,
    /// Requests of a commit; of the daemon only.
    a_commit: Vec<f64>,
}

impl Row {
    fn new(callers: usize, name: &'static str, body_bytes: usize) -> Row {
        Row { callers, name, body_bytes, cells: vec![], process: vec![], disk: vec![], a_commit: vec![] }
    }

    /// Lets `run` run and keeps what it came to.
    async fn add(&mut self, side: &Side, pid: u32, run: impl Future<Output = Cell>) {
        let written = || (disk::written_by(pid), side.disk.as_ref().map(Disk::written));
        let before = written();
        let cell = run.await;
        let after = written();
        let accepted = cell.done as f64 * self.body_bytes as f64;
        self.process.push((after.0 - before.0) as f64 / accepted);
        self.disk.extend(after.1.zip(before.1).map(|(after, before)| (after - before) as f64 / accepted));
        self.cells.push(cell);
    }
}

pub(crate) async fn measure(plan: &Plan) {
    chats(plan).await;
    pictures(plan).await;
}

async fn chats(plan: &Plan) {
    let side = Side::start().await;
    let (redis, postgres) = (Redis::start(&side.place).await, Postgres::start(&side.place).await);
    let rows = |callers, floor| {
        let names = [floor, "Redis, append always", "PostgreSQL, a commit each", "holdfast"];
        names.map(|name| Row::new(callers, name, BODY_BYTES))
    };
    let mut alone = rows(1, "append, fdatasync");
    let mut many = rows(MANY, "appends in groups, fdatasync per group");
    let folder = side.place.data.path();
    for _ in 0..plan.rounds {
        alone[0].add(&side, std::process::id(), append::alone(folder, body(0), plan.cell)).await;
        many[0].add(&side, std::process::id(), append::grouped(folder, body(0), MANY, plan.cell)).await;
        for [_, of_redis, of_postgres, ours] in [&mut alone, &mut many] {
            if let Some(redis) = &redis {
                of_redis.add(&side, redis.pid(), redis.run(of_redis.callers, plan.cell)).await;
            }
            if let Some(postgres) = &postgres {
                // A process for each connection, gone with it: nobody's account has all that was written.
                of_postgres.cells.push(postgres.run(of_postgres.callers, plan.cell).await);
            }
            side.ask(ours, CHAT, plan).await;
        }
    }
    println!("\n### Acknowledged stored requests: 1 KiB, `Prefer: respond-async`\n\n{}", stats::HEAD);
    print(&[&alone[..], &many[..]]);
    println!("Resident after this load: {} KiB.", side.daemon.resident_kib());
    side.daemon.stop().await;
}

async fn pictures(plan: &Plan) {
    let side = Side::start().await;
    let bytes = picture_body(0);
    let grouped = Row::new(FEW, "appends in groups, fdatasync per group", bytes.len());
    let mut rows = [grouped, Row::new(FEW, "holdfast", bytes.len())];
    let folder = side.place.data.path();
    for _ in 0..plan.rounds {
        rows[0].add(&side, std::process::id(), append::grouped(folder, bytes.clone(), FEW, plan.cell)).await;
        side.ask(&mut rows[1], PICTURE, plan).await;
    }
    println!("\n### Acknowledged stored pictures: 256 KiB, `Prefer: respond-async`\n\n{}", stats::HEAD);
    print(&[&rows]);
    println!("Resident after this load: {} KiB.", side.daemon.resident_kib());
    side.daemon.stop().await;
}

/// Each block's ratios are to its first row. One that was never measured, where its program is not installed, is left out.
fn print(blocks: &[&[Row]]) {
    for rows in blocks {
        for (index, row) in rows.iter().enumerate().filter(|(_, row)| !row.cells.is_empty()) {
            println!("{}", stats::row(row.callers, row.name, &row.cells, (index > 0).then_some(&rows[0].cells)));
        }
    }
    println!("\n| callers | path | written for each byte, the process | the disk | requests a commit |");
    println!("| ---: | --- | --- | --- | --- |");
    let or_none = |numbers: &[f64]| if numbers.is_empty() { "-".to_owned() } else { stats::spread(numbers) };
    for row in blocks.iter().copied().flatten().filter(|row| !row.process.is_empty()) {
        let [process, disk, a_commit] = [&row.process, &row.disk, &row.a_commit].map(|numbers| or_none(numbers));
        println!("| {} | {} | {process} | {disk} | {a_commit} |", row.callers, row.name);
    }
    println!();
}

/// A chat request of exactly [`BODY_BYTES`]; a different one for each number.
pub(crate) fn body(n: u64) -> Bytes {
    let head = r#"{"model":"bench","messages":[{"role":"user","content":""#;
    let tail = format!(r#"{n:020}"}}]}}"#);
    let text = "a".repeat(BODY_BYTES - head.len() - tail.len());
    Bytes::from([head, text.as_str(), tail.as_str()].concat())
}

fn chat(n: u64) -> Request<Full<Bytes>> {
    to_store(body(n))
}

fn picture(n: u64) -> Request<Full<Bytes>> {
    to_store(picture_body(n))
}

fn picture_body(n: u64) -> Bytes {
    static SAME: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![b'Q'; PICTURE_BYTES]));
    online::with_picture(&SAME, n)
}

fn to_store(body: Bytes) -> Request<Full<Bytes>> {
    let request = Request::post("/v1/chat/completions").header("host", "hf").header("content-type", "application/json");
    request.header("prefer", "respond-async").body(Full::new(body)).unwrap()
}

fn is_ticket(answer: &Response<Incoming>) -> bool {
    answer.status() == StatusCode::ACCEPTED
}
