//! Starting: what a dead process left, who may open what, how long it takes.

use super::*;
use crate::control::types::State;
use crate::spool::{SpoolError, accept, change, device, lease, read, schema, sources, sweep};

#[tokio::test]
async fn a_send_cut_off_is_repeated_once_and_says_so() {
    let (dir, spool) = fresh();
    take(&spool, NewRequest { leased: true, ..request("a") }).await;
    assert!(leased(&spool, 1).await.is_empty(), "born sending");
    drop(spool);
    let spool = open(options(dir.path())).unwrap();
    let lease = spool.lease(1).await.unwrap().remove(0);
    assert!(lease.maybe_billed);
    drop(spool);
    let spool = open(options(dir.path())).unwrap();
    let record = spool.get("a".into()).await.unwrap().unwrap();
    assert_eq!((record.state, record.reason.as_deref()), (State::Dead, Some("unknown")));
    assert_eq!(spool.sweep().await.unwrap(), [(1, "a".to_owned(), State::Dead)]);
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_send_cut_off_can_be_held_instead() {
    let (dir, spool) = fresh();
    take(&spool, NewRequest { leased: true, ..request("a") }).await;
    spool.close().await;
    assert_eq!(spool.commit_probe().await, Err(SpoolError::Closed));
    let mut options = options(dir.path());
    options.hold_unknown = true;
    let spool = open(options).unwrap();
    assert_eq!(spool.tally().in_state(State::Dead), 1);
}

/// Overwrites the front of the page on which a tree begins.
fn spoil_root(dir: &Path, tree: &str) {
    let conn = rusqlite::Connection::open(files::database(dir)).unwrap();
    let text = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
    let page = conn.query_row(text, [tree], |r| r.get::<_, i64>(0)).unwrap() as usize;
    drop(conn);
    let mut bytes = std::fs::read(files::database(dir)).unwrap();
    bytes[(page - 1) * PAGE..][..64].fill(0xff);
    std::fs::write(files::database(dir), bytes).unwrap();
}

#[tokio::test]
async fn damage_that_the_look_at_the_file_did_not_come_to_stops_no_start() {
    for tree in ["device_key_until", "request", "pause"] {
        let (dir, spool) = fresh();
        take(&spool, request("a")).await;
        spool.close().await;
        drop(spool);
        spoil_root(dir.path(), tree);
        let spool = crate::spool::open::open_unchecked(options(dir.path())).expect(tree);
        assert_eq!(spool.load_pauses().await.expect(tree), [], "{tree}");
        assert_eq!(spool.load_floor().await.unwrap(), 0);
        assert!(dir.path().join("quarantine/1/spool.db").exists(), "{tree}");
        take(&spool, request("new")).await;
        assert!(spool.salvaged().await.unwrap());
        // Of the request itself nothing may be left but its name.
        let state = spool.get("a".into()).await.unwrap().map(|record| record.state);
        assert!(tree == "request" || state == Some(State::Queued), "{tree}: {state:?}");
        assert_counted(&spool).await;
    }
}

#[tokio::test]
async fn deferrals_end_with_the_process() {
    let (dir, spool) = fresh();
    let seq = take(&spool, request("a")).await.seq;
    spool.lease(1).await.unwrap();
    spool.settle(seq, requeue(true, true, false)).await.unwrap();
    drop(spool);
    let spool = open(options(dir.path())).unwrap();
    assert_eq!(leased(&spool, 1).await, ["a"]);
}

#[tokio::test]
async fn powered_on_time_goes_on() {
    let (dir, spool) = fresh();
    spool.advance(5_000_000);
    spool.commit_probe().await.unwrap();
    let before = spool.powered_ms();
    drop(spool);
    let spool = open(options(dir.path())).unwrap();
    // The skew exists in this process only, so the same boot seems to have gone back: nothing is added.
    assert!(spool.powered_ms() >= before);
}

#[tokio::test]
async fn one_owner_at_a_time() {
    let (dir, spool) = fresh();
    assert_eq!(open(options(dir.path())).unwrap_err(), SpoolError::Busy);
    drop(spool);
    open(options(dir.path())).unwrap();
}

#[tokio::test]
async fn a_newer_spool_is_refused_untouched() {
    let (dir, spool) = fresh();
    take(&spool, request("a")).await;
    spool.look(|store| Ok(store.conn.execute_batch("PRAGMA user_version=7; CREATE TABLE later (x)")?)).await.unwrap();
    spool.close().await;
    let path = files::database(dir.path());
    let before = std::fs::read(&path).unwrap();
    assert_eq!(open(options(dir.path())).unwrap_err(), SpoolError::Newer { found: 7, known: 3 });
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// A later program may change nothing but what its rows mean.
#[tokio::test]
async fn a_newer_spool_with_the_same_tables_is_refused_untouched() {
    for found in [4, 5, 99, 300, 1000] {
        let (dir, spool) = fresh();
        spool.look(move |store| Ok(store.conn.pragma_update(None, "user_version", found)?)).await.unwrap();
        spool.close().await;
        let path = files::database(dir.path());
        let before = std::fs::read(&path).unwrap();
        assert_eq!(open(options(dir.path())).unwrap_err(), SpoolError::Newer { found, known: 3 });
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}

#[tokio::test]
async fn a_newer_version_in_the_log_alone_is_refused_too() {
    let (dir, spool) = fresh();
    spool.close().await;
    let path = files::database(dir.path());
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    conn.execute_batch("PRAGMA user_version=7; CREATE TABLE later (x)").unwrap();
    drop(conn);
    let wal = dir.path().join("spool.db-wal");
    let before = (std::fs::read(&path).unwrap(), std::fs::read(&wal).unwrap());
    assert_eq!(open(options(dir.path())).unwrap_err(), SpoolError::Newer { found: 7, known: 3 });
    assert_eq!((std::fs::read(&path).unwrap(), std::fs::read(&wal).unwrap()), before);
}

#[test]
fn a_foreign_database_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = files::database(dir.path());
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version=1; CREATE TABLE t (x)").unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(open(options(dir.path())).unwrap_err(), SpoolError::Storage(_)));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// The shape of version 1 on devices in the field. Never edit this; add a version instead.
const FROZEN_V1: &str = "\
answer: seq INTEGER, local INTEGER, uplink TEXT, model TEXT, status INTEGER, content_type TEXT, latency_ms INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER, at_unix_ms INTEGER, size INTEGER, hash BLOB, bytes BLOB, file TEXT
body: seq INTEGER, bytes BLOB
lane: priority INTEGER, source_id INTEGER, ready INTEGER, served INTEGER
request: seq INTEGER, id TEXT, source_id INTEGER, state INTEGER, priority INTEGER, deferred INTEGER, attempts INTEGER, maybe_billed INTEGER, accepted_at INTEGER, expires_at INTEGER, ended_at INTEGER, created_unix_ms INTEGER, ttl_ms INTEGER, policy INTEGER, endpoint TEXT, model TEXT, label TEXT, idempotency_key TEXT, body_bytes INTEGER, body_hash BLOB, body_kept INTEGER, body_file TEXT, reason TEXT, error_kind TEXT, error_message TEXT
service: one INTEGER, boot_id TEXT, boot_ms INTEGER, powered_ms INTEGER, starts INTEGER, next_seq INTEGER, turn INTEGER, queued INTEGER, sending INTEGER, unknown INTEGER, answered INTEGER, expired INTEGER, cancelled INTEGER, evicted INTEGER, dead INTEGER, ready INTEGER, backlog_bytes INTEGER, kept_bytes INTEGER, answer_bytes INTEGER
source: source_id INTEGER, name TEXT, unfinished INTEGER
";

/// What version 2 added. Never edit this either.
const FROZEN_V2: [(&str, &str); 7] = [
    ("hash BLOB, bytes BLOB, file TEXT", ", sum BLOB"),
    (
        "reason TEXT, error_kind TEXT, error_message TEXT",
        ", content BLOB, handover INTEGER, task INTEGER, max_reply INTEGER, version INTEGER, sum BLOB",
    ),
    (
        "body: seq INTEGER, bytes BLOB\n",
        "device_epoch: source_id INTEGER, uid TEXT, epoch INTEGER, highest INTEGER, at_ms INTEGER\n\
        device_key: source_id INTEGER, key TEXT, until_ms INTEGER\n",
    ),
    (
        "ready INTEGER, served INTEGER\n",
        "mailbox: source_id INTEGER, uid TEXT, slot INTEGER, last INTEGER, turn INTEGER, request INTEGER\n",
    ),
    ("kept_bytes INTEGER, answer_bytes INTEGER", ", unix_floor INTEGER"),
    ("name TEXT, unfinished INTEGER", ", sum BLOB"),
    ("turn INTEGER, request INTEGER\n", "pause: uplink TEXT, model TEXT, block TEXT, step INTEGER, until_ms INTEGER\n"),
];

/// What version 3 took away. Nor this.
const FROZEN_V3: [(&str, &str); 2] = [
    ("lane: priority INTEGER, source_id INTEGER, ready INTEGER, served INTEGER\n", ""),
    ("name TEXT, unfinished INTEGER", "name TEXT"),
];

#[test]
fn versions_are_frozen() {
    let conn = rusqlite::Connection::open_in_memory().unwrap();
    conn.execute_batch(schema::V1).unwrap();
    assert_eq!(shape(&conn), FROZEN_V1);
    conn.execute_batch(schema::V2).unwrap();
    let v2 = FROZEN_V2.iter().fold(FROZEN_V1.to_owned(), |text, (after, new)| {
        assert_eq!(text.matches(after).count(), 1, "{after}");
        text.replace(after, &format!("{after}{new}"))
    });
    assert_eq!(shape(&conn), v2);
    conn.execute_batch(schema::V3).unwrap();
    let v3 = FROZEN_V3.iter().fold(v2, |text, (gone, left)| {
        assert_eq!(text.matches(gone).count(), 1, "{gone}");
        text.replace(gone, left)
    });
    assert_eq!(shape(&conn), v3);
    assert_eq!(crate::spool::codes::FIRST_FINAL, crate::spool::codes::state_code(State::Answered));
}

fn shape(conn: &rusqlite::Connection) -> String {
    let text = "SELECT group_concat(line, '') FROM (SELECT m.name || ': ' || group_concat(c.name || ' ' || c.type, ', '
        ORDER BY c.cid) || char(10) AS line FROM sqlite_schema m, pragma_table_info(m.name) c
        WHERE m.type = 'table' GROUP BY m.name ORDER BY m.name)";
    conn.query_row(text, [], |r| r.get(0)).unwrap()
}

#[test]
fn no_question_reads_the_whole_backlog() {
    let conn = rusqlite::Connection::open_in_memory().unwrap();
    for text in schema::MIGRATIONS {
        conn.execute_batch(text).unwrap();
    }
    let mut texts: Vec<String> = [
        lease::NEXT_IN_LANE,
        accept::VICTIM,
        change::IN_STATE,
        sweep::DUE,
        sweep::OLDEST_ENDED,
        sweep::OLDEST_UNDELIVERED,
        device::OLDEST_KEYS,
        sweep::STALE_DEFERRED,
        sweep::NAMED,
        read::BEFORE,
        read::BEHIND,
        read::BETWEEN,
        read::OLDEST_IN_STATE,
        read::OLDEST_QUEUED,
        read::NEWEST,
        sources::HIGHEST,
    ]
    .map(str::to_owned)
    .into();
    for state in [None, Some(State::Queued), Some(State::Dead)] {
        texts.push(read::plain_list(state));
        texts.push(read::source_list(state));
    }
    for text in texts {
        let plan = plan(&conn, &text);
        for line in plan.lines().filter(|line| line.contains("SCAN")) {
            let few = line.contains("json_each") || line.starts_with("SCAN (") || line.starts_with("SCAN CONSTANT");
            assert!(
                few || line.contains("USING INDEX request_ended")
                    || line.contains("USING INDEX request_undelivered")
                    || line.contains("device_key_until"),
                "{text}\n{plan}"
            );
        }
        let sorts = plan.contains("TEMP B-TREE FOR ORDER BY") && !text.contains("UNION ALL");
        assert!(!sorts, "{text}\n{plan}");
    }
}

fn plan(conn: &rusqlite::Connection, text: &str) -> String {
    let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {text}")).unwrap();
    let rows = statement.raw_query().mapped(|r| r.get::<_, String>(3)).map(Result::unwrap).collect::<Vec<_>>();
    rows.join("\n")
}

#[tokio::test]
async fn a_large_backlog_does_not_slow_the_start() {
    let (dir, spool) = fresh_with(|o| o.max_requests = 200_000);
    take(&spool, request("template")).await;
    spool.close().await;
    drop(spool);
    multiply(&files::database(dir.path()), 100_000);
    let start = crate::clock::now();
    let spool = open(options(dir.path())).unwrap();
    let took = start.elapsed();
    assert_eq!(spool.tally().in_state(State::Queued), 100_000);
    let start = crate::clock::now();
    assert_eq!(spool.lease(100).await.unwrap().len(), 100);
    println!("100,000 rows: open {took:?}, lease of 100 {:?}", start.elapsed());
    assert_counted(&spool).await;
}

/// Numbers, not a promise: `cargo test --release --lib spool -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn a_start_after_a_kill() {
    let (dir, spool) = fresh_with(|o| o.max_requests = 200_000);
    take(&spool, request("template")).await;
    spool.close().await;
    drop(spool);
    multiply(&files::database(dir.path()), 100_000);
    let large = |dir: &Path| Options { max_requests: 200_000, per_source_backlog: 200_000, ..options(dir) };
    let spool = open(large(dir.path())).unwrap();
    take(&spool, from("another", "last")).await;
    // As a kill leaves them: the database and a log that was not folded in.
    let killed = tempfile::tempdir().unwrap();
    for name in ["spool.db", "spool.db-wal"] {
        std::fs::copy(dir.path().join(name), killed.path().join(name)).unwrap();
    }
    let bytes = std::fs::metadata(killed.path().join("spool.db")).unwrap().len();
    let start = crate::clock::now();
    let spool = open(large(killed.path())).unwrap();
    println!("100,001 rows, {bytes} bytes: open after a kill {:?}", start.elapsed());
    assert_eq!(spool.tally().in_state(State::Queued), 100_001);
}

/// Copies the one row there is, counters included.
fn multiply(path: &std::path::Path, rows: u32) {
    let conn = rusqlite::Connection::open(path).unwrap();
    crate::spool::sum::register(&conn).unwrap();
    conn.execute_batch(&format!(
        "BEGIN;
        CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
            SELECT i FROM n;
        CREATE TEMP TABLE t AS SELECT * FROM request;
        INSERT INTO request SELECT n.i, t.id || n.i, t.source_id, t.state, t.priority, t.deferred, t.attempts,
            t.maybe_billed, t.accepted_at, t.expires_at, t.ended_at, t.created_unix_ms, t.ttl_ms, t.policy,
            t.endpoint, t.model, t.label, t.idempotency_key, t.body_bytes, t.body_hash, 1, NULL, NULL, NULL, NULL,
            NULL, 0, NULL, 0, 0, x'' FROM t, n;
        UPDATE request SET sum = {};
        INSERT INTO body SELECT n.i, b.bytes FROM body b, n WHERE b.seq = 1;
        UPDATE service SET queued = {rows}, ready = {rows}, backlog_bytes = backlog_bytes * {rows},
            kept_bytes = kept_bytes * {rows}, next_seq = {rows} + 1;
        COMMIT;",
        crate::spool::sum::call("", &crate::spool::sum::REQUEST)
    ))
    .unwrap();
}

#[tokio::test]
async fn an_index_out_of_order_is_damage_and_no_lane_without_an_end() {
    // The lane of all others comes twice; or the last of them makes a lane of its own.
    for entry in [58, 59] {
        let (dir, spool) = fresh();
        for n in 0..60 {
            take(&spool, request(&format!("req_{n:032x}"))).await;
        }
        spool.close().await;
        drop(spool);
        let path = files::database(dir.path());
        let conn = rusqlite::Connection::open(&path).unwrap();
        let text = "SELECT rootpage FROM sqlite_schema WHERE name = 'request_ready'";
        let at = (conn.query_row(text, [], |r| r.get::<_, i64>(0)).unwrap() as usize - 1) * PAGE;
        drop(conn);
        let mut bytes = std::fs::read(&path).unwrap();
        // The priority, the first value behind the header.
        let place = at + 8 + 2 * entry;
        let cell = at + usize::from(u16::from_be_bytes([bytes[place], bytes[place + 1]]));
        let value = cell + 1 + usize::from(bytes[cell + 1]);
        assert_eq!((bytes[at], bytes[value]), (0x0a, 2));
        bytes[value] = 0;
        std::fs::write(&path, bytes).unwrap();
        let spool = crate::spool::open::open_unchecked(options(dir.path())).unwrap();
        let _ = spool.lease(1).await;
        assert!(spool.salvaged().await.unwrap());
        assert_eq!(leased(&spool, 99).await.len(), 60);
        assert_counted(&spool).await;
    }
}
