//! Behaviour of the durable queue, through its handle.

mod behind;
mod bounds;
mod damage;
mod devices;
mod doubtful;
mod earlier;
mod life;
mod marks;
mod migrating;
mod model;
mod opening;
mod pauses;
mod sources;
mod storage;
mod sums;

use std::path::Path;

use bytes::Bytes;

use super::lanes::Lanes;
use super::record::{Accepted, LastError, LocalAnswer, NewRequest, Settlement, UplinkAnswer, Usage};
use super::schema::PAGE_SIZES;
use super::{Options, Spool, files, open, sum};
use crate::control::types::{Policy, Priority};

const HOUR: u64 = 3_600_000;
/// Bytes of a page of a new spool.
const PAGE: usize = PAGE_SIZES[0] as usize;

pub(super) fn options(dir: &Path) -> Options {
    Options {
        data_dir: dir.to_owned(),
        max_bytes: 64 << 20,
        max_requests: 100_000,
        min_disk_free: 0,
        evict_when_full: false,
        per_source_backlog: 100_000,
        keep_results_ms: HOUR,
        keep_results_bytes: 16 << 20,
        hold_unknown: false,
    }
}

fn fresh() -> (tempfile::TempDir, Spool) {
    fresh_with(|_| {})
}

fn fresh_with(change: impl FnOnce(&mut Options)) -> (tempfile::TempDir, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    change(&mut options);
    let spool = open(options).unwrap();
    (dir, spool)
}

fn request(id: &str) -> NewRequest {
    let body = Bytes::from(format!("{{\"prompt\":\"{id}\"}}"));
    NewRequest {
        id: id.to_owned(),
        source: "uid:1000".to_owned(),
        label: None,
        endpoint: "/v1/chat/completions".to_owned(),
        model: "m".to_owned(),
        priority: Priority::Normal,
        policy: Policy::Both,
        body: body.into(),
        idempotency_key: None,
        ttl_ms: HOUR,
        leased: false,
        maybe_billed: false,
        device: None,
        task: None,
    }
}

fn with_body(id: &str, body: Vec<u8>) -> NewRequest {
    NewRequest { body: body.into(), ..request(id) }
}

fn from(source: &str, id: &str) -> NewRequest {
    NewRequest { source: source.to_owned(), ..request(id) }
}

fn urgent(priority: Priority, id: &str) -> NewRequest {
    NewRequest { priority, ..request(id) }
}

fn answered(body: impl Into<Bytes>) -> Settlement {
    Settlement::Answered(answer(body))
}

fn answer(body: impl Into<Bytes>) -> UplinkAnswer {
    let body: Bytes = body.into();
    UplinkAnswer {
        uplink: "cloud".to_owned(),
        model: "big".to_owned(),
        status: 200,
        content_type: "application/json".to_owned(),
        latency_ms: 12,
        usage: Some(Usage { prompt_tokens: 3, completion_tokens: 5 }),
        body: body.into(),
    }
}

fn local(body: impl Into<Bytes>) -> LocalAnswer {
    LocalAnswer { model: "small".to_owned(), latency_ms: 34, body: body.into() }
}

fn error() -> LastError {
    LastError { kind: "connect".to_owned(), message: "refused".to_owned() }
}

fn requeue(counted: bool, deferred: bool, maybe_billed: bool) -> Settlement {
    Settlement::Requeue { counted, deferred, maybe_billed, error: Some(error()), came: None }
}

fn dead() -> Settlement {
    Settlement::Dead { reason: "refused".to_owned(), error: error(), answer: None }
}

async fn leased(spool: &Spool, max: u32) -> Vec<String> {
    spool.lease(max).await.unwrap().into_iter().map(|l| l.id).collect()
}

async fn take(spool: &Spool, new: NewRequest) -> Accepted {
    spool.accept(new).await.unwrap()
}

/// Unfinished requests by source and ready ones by lane, without any index.
fn plain_counts(conn: &rusqlite::Connection) -> super::lanes::Counted {
    let unfinished = "SELECT source_id, count(*) FROM request NOT INDEXED WHERE state < 3 GROUP BY 1";
    let ready = "SELECT priority, source_id, count(*) FROM request NOT INDEXED WHERE state = 0 AND deferred = 0
        GROUP BY 1, 2 ORDER BY 1, 2";
    let mut unfinished = conn.prepare(unfinished).unwrap();
    let unfinished = unfinished.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect();
    let mut ready = conn.prepare(ready).unwrap();
    let ready = ready.query_map([], |r| Ok(((r.get(0)?, r.get(1)?), r.get(2)?))).unwrap().map(Result::unwrap);
    (unfinished, ready.collect())
}

/// Holds the thread until all of these wait, so that they share a batch; they come when it is held.
async fn in_one_batch<F: Future>(spool: &Spool, writes: F) -> F::Output {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (begun, is_held) = tokio::sync::oneshot::channel();
    let held = spool.look(move |_| Ok((begun.send(()), wait.recv().is_ok())));
    let writes = async {
        is_held.await.unwrap();
        let release = async {
            tokio::task::yield_now().await;
            go.send(()).unwrap();
        };
        tokio::join!(writes, release).0
    };
    tokio::join!(held, writes).1
}

/// Every counter against a real count, every row against its sum; what the product itself never does.
async fn assert_counted(spool: &Spool) {
    let (counts, real, lanes, unsummed) = spool
        .look(|store| {
            let one = |text: &str| store.conn.query_row(text, [], |r| r.get::<_, i64>(0)).unwrap() as u64;
            let mut requests = [0; 8];
            for (state, n) in requests.iter_mut().enumerate() {
                *n = one(&format!("SELECT count(*) FROM request WHERE state = {state}"));
            }
            let bodies = one("SELECT coalesce(sum(body_bytes), 0) FROM request WHERE body_kept");
            let answers = one("SELECT coalesce(sum(size), 0) FROM answer");
            let real = super::store::Counts {
                requests,
                ready: one("SELECT count(*) FROM request WHERE state = 0 AND deferred = 0"),
                backlog_bytes: one("SELECT coalesce(sum(body_bytes), 0) FROM request WHERE state < 3"),
                kept_bytes: bodies + answers,
                answer_bytes: answers,
                ..store.counts
            };
            let lanes = [store.lanes.counts(), Lanes::count(&store.conn).unwrap().counts(), plain_counts(&store.conn)];
            let summed = [("request", &sum::REQUEST[..]), ("answer", &sum::ANSWER[..]), ("source", &sum::SOURCE[..])];
            let unsummed = summed.map(|(table, columns)| {
                one(&format!("SELECT count(*) FROM {table} WHERE sum IS NOT {}", sum::call("", columns)))
            });
            Ok((store.counts, real, lanes, unsummed))
        })
        .await
        .unwrap();
    assert_eq!(unsummed, [0; 3], "rows whose sum does not hold");
    assert_eq!(counts, real);
    assert_eq!(lanes[0], lanes[2], "lanes or sources that miscount");
    assert_eq!(lanes[1], lanes[2], "a start would miscount");
    let tally = spool.tally();
    assert_eq!((tally.requests, tally.ready), (counts.requests, counts.ready));
    assert_eq!((tally.backlog_bytes, tally.kept_bytes), (counts.backlog_bytes, counts.kept_bytes));
}
