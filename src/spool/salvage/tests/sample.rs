//! A spool with requests in every state, its files as bytes, and what SQLite itself reads from them.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::types::Value;

use crate::control::types::{Policy, Priority};
use crate::spool::record::{LastError, LocalAnswer, NewRequest, Settlement, UplinkAnswer};
use crate::spool::salvage::rows::{ANSWER_COLUMNS, BODY_KEPT, REQUEST_COLUMNS};
use crate::spool::schema::PAGE_SIZES;
use crate::spool::{Options, Spool, files, open};

/// A chance that replays from its seed.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// What SQLite reads of one request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Known {
    pub(super) values: Vec<Value>,
    pub(super) source: String,
    pub(super) body: Option<Vec<u8>>,
    pub(super) answers: Vec<Vec<Value>>,
}

impl Known {
    pub(super) fn keeps_body(&self) -> bool {
        self.values[BODY_KEPT] == Value::Integer(1)
    }
}

/// Bytes of a page of a new spool.
pub(super) const PAGE: usize = PAGE_SIZES[0] as usize;

/// Bytes of a page of this database.
pub(super) fn page_size(db: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([db[16], db[17]]))
}

/// A spool's files.
pub(super) struct Sample {
    pub(super) dir: tempfile::TempDir,
    pub(super) db: Vec<u8>,
    pub(super) wal: Vec<u8>,
    /// The log of outcomes.
    pub(super) ends: Vec<u8>,
    pub(super) known: BTreeMap<i64, Known>,
}

pub(super) fn options(dir: &Path) -> Options {
    Options {
        data_dir: dir.to_owned(),
        max_bytes: 256 << 20,
        max_requests: 100_000,
        min_disk_free: 0,
        evict_when_full: false,
        per_source_backlog: 100_000,
        keep_results_ms: 3_600_000,
        keep_results_bytes: 64 << 20,
        hold_unknown: false,
    }
}

pub(super) fn request(n: u64, size: usize, chance: &mut Chance) -> NewRequest {
    let body: Bytes = (0..size).map(|_| chance.next() as u8).collect::<Vec<u8>>().into();
    NewRequest {
        id: format!("req_{:016x}{n:016x}", chance.next()),
        source: format!("uid:{}", 1000 + n % 3),
        label: n.is_multiple_of(4).then(|| format!("press {n}")),
        endpoint: "/v1/chat/completions".to_owned(),
        model: "m".repeat(1 + chance.below(20) as usize),
        priority: [Priority::Normal, Priority::High, Priority::Low][(n % 3) as usize],
        policy: Policy::Both,
        body: body.into(),
        idempotency_key: n.is_multiple_of(5).then(|| format!("key {n}")),
        ttl_ms: 3_600_000,
        leased: false,
        maybe_billed: false,
        device: None,
        task: None,
    }
}

/// Small bodies mostly, some over several pages, a few that are files.
fn size(n: u64, chance: &mut Chance) -> usize {
    match n % 16 {
        3 => 70_000,
        5 | 9 => 9_000 + chance.below(20_000) as usize,
        _ => 20 + chance.below(900) as usize,
    }
}

fn answer(chance: &mut Chance) -> UplinkAnswer {
    let size = if chance.below(8) == 0 { 9_000 } else { 40 + chance.below(400) };
    UplinkAnswer {
        uplink: "cloud".to_owned(),
        model: "big".to_owned(),
        status: 200,
        content_type: "application/json".to_owned(),
        latency_ms: chance.below(1000),
        usage: None,
        body: (0..size).map(|_| chance.next() as u8).collect::<Vec<u8>>().into(),
    }
}

/// `count` requests; a third is answered, some fail, some get a local answer, some are cancelled.
async fn fill(spool: &Spool, count: u64, chance: &mut Chance) {
    for from in (0..count).step_by(32) {
        // One after the other: with their order and commits left to chance, the files would be others each time.
        for n in from..(from + 32).min(count) {
            let size = size(n, chance);
            let new = request(n, size, chance);
            let id = new.id.clone();
            let seq = spool.accept(new).await.unwrap().seq;
            if seq.is_multiple_of(10) {
                spool.cancel(id).await.unwrap();
            } else if seq.is_multiple_of(7) {
                let local = LocalAnswer {
                    model: "small".into(),
                    latency_ms: 3,
                    body: answer(chance).body.in_one_piece().unwrap(),
                };
                spool.record_local(seq, local).await.unwrap();
            }
        }
        for leased in spool.lease(12).await.unwrap() {
            let how = match leased.seq % 6 {
                0 => Settlement::Dead { reason: "refused".into(), error: error(), answer: None },
                1 => Settlement::Requeue {
                    counted: true,
                    deferred: true,
                    maybe_billed: true,
                    error: Some(error()),
                    came: None,
                },
                _ => Settlement::Answered(answer(chance)),
            };
            spool.settle(leased.seq, how).await.unwrap();
        }
    }
    // Some are on their way when it ends.
    spool.lease(2).await.unwrap();
}

fn error() -> LastError {
    LastError { kind: "refused".into(), message: "the uplink said no".into() }
}

impl Sample {
    /// Closed in order: everything stands in the database, the log is empty.
    pub(super) fn closed(count: u64, seed: u64) -> Sample {
        Sample::make(count, seed, true)
    }

    /// As a power cut leaves it: part of it in the log only.
    pub(super) fn cut(count: u64, seed: u64) -> Sample {
        Sample::make(count, seed, false)
    }

    /// The same as an earlier version made it, with the pages that it had.
    pub(super) fn earlier(count: u64, seed: u64) -> Sample {
        let sample = Sample::closed(count, seed);
        let path = sample.dir.path().join("spool.db");
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.execute_batch("PRAGMA journal_mode=DELETE; PRAGMA page_size=4096; VACUUM; PRAGMA journal_mode=WAL")
            .unwrap();
        drop(conn);
        let db = std::fs::read(path).unwrap();
        assert_eq!((page_size(&sample.db), page_size(&db)), (1024, 4096));
        Sample { db, ..sample }
    }

    fn make(count: u64, seed: u64, close: bool) -> Sample {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (db, wal, ends) = runtime.block_on(async {
            let spool = open(options(dir.path())).unwrap();
            fill(&spool, count, &mut Chance(seed)).await;
            if close {
                spool.close().await;
            }
            let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap_or_default();
            (read("spool.db"), read("spool.db-wal"), read("outcomes.log"))
        });
        let known = known(&db, &wal);
        // The process that went on has changed nothing but the log, which was copied before.
        Sample { dir, db, wal, ends, known }
    }

    /// A data folder with these two files and the bodies.
    pub(super) fn folder(&self, db: &[u8], wal: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bodies")).unwrap();
        for entry in std::fs::read_dir(files::bodies(self.dir.path())).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, files::bodies(dir.path()).join(from.file_name().unwrap())).unwrap();
        }
        std::fs::write(dir.path().join("outcomes.log"), &self.ends).unwrap();
        std::fs::write(dir.path().join("spool.db"), db).unwrap();
        std::fs::write(dir.path().join("spool.db-wal"), wal).unwrap();
        dir
    }
}

/// All requests as SQLite reads them.
fn known(db: &[u8], wal: &[u8]) -> BTreeMap<i64, Known> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.db"), db).unwrap();
    std::fs::write(dir.path().join("x.db-wal"), wal).unwrap();
    let conn = Connection::open(dir.path().join("x.db")).unwrap();
    let rows = all(&conn, "SELECT * FROM request ORDER BY seq", REQUEST_COLUMNS);
    let known = rows.into_iter().map(|values| {
        let Value::Integer(seq) = values[0] else { panic!("a key is a number") };
        let text = "SELECT name FROM source JOIN request USING (source_id) WHERE seq = ?1";
        let source = conn.query_row(text, [seq], |r| r.get(0)).unwrap();
        let body = conn.query_row("SELECT bytes FROM body WHERE seq = ?1", [seq], |r| r.get(0)).ok();
        let answers = all(&conn, &format!("SELECT * FROM answer WHERE seq = {seq} ORDER BY local"), ANSWER_COLUMNS);
        (seq, Known { values, source, body, answers })
    });
    known.collect()
}

fn all(conn: &Connection, text: &str, columns: usize) -> Vec<Vec<Value>> {
    let mut statement = conn.prepare(text).unwrap();
    let row = |r: &rusqlite::Row<'_>| (0..columns).map(|at| r.get(at)).collect::<Result<Vec<Value>, _>>();
    statement.query_map([], row).unwrap().map(Result::unwrap).collect()
}
