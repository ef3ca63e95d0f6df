//! From a released schema to the newest: nothing lost, a copy kept, all or nothing.

use super::*;
use crate::control::types::State;
use crate::spool::record::Filter;
use crate::spool::schema;

/// A spool as an older version left it: "a" answered, "b" and "c" ready.
async fn older(dir: &Path, version: usize) {
    let (from, spool) = fresh();
    for id in ["a", "b", "c"] {
        take(&spool, NewRequest { idempotency_key: Some(format!("key {id}")), ..request(id) }).await;
    }
    let seq = spool.lease(1).await.unwrap()[0].seq;
    spool.settle(seq, answered("yes")).await.unwrap();
    spool.close().await;
    let conn = rusqlite::Connection::open(files::database(dir)).unwrap();
    schema::MIGRATIONS[..version].iter().for_each(|text| conn.execute_batch(text).unwrap());
    conn.execute("ATTACH ?1 AS new", [files::database(from.path()).to_str().unwrap()]).unwrap();
    for table in ["source", "request", "body", "answer"] {
        copy(&conn, table);
    }
    conn.execute_batch(&format!(
        "INSERT INTO lane SELECT priority, source_id, 2, 0 FROM main.request WHERE id = 'b';
        UPDATE service SET next_seq = 4, queued = 2, answered = 1, ready = 2,
            backlog_bytes = (SELECT sum(body_bytes) FROM main.request WHERE state < 3),
            kept_bytes = (SELECT sum(body_bytes) FROM main.request WHERE state < 3) + 3, answer_bytes = 3;
        DETACH new; PRAGMA application_id={}; PRAGMA user_version={version};",
        schema::APPLICATION_ID
    ))
    .unwrap();
}

/// What both versions of a table have; the counter of a source is no column any more.
fn copy(conn: &rusqlite::Connection, table: &str) {
    let shared = format!(
        "SELECT group_concat(name, ', ') FROM pragma_table_info('{table}', 'main')
        WHERE name IN (SELECT name FROM pragma_table_info('{table}', 'new'))"
    );
    let columns: String = conn.query_row(&shared, [], |r| r.get(0)).unwrap();
    let counter = if table == "source" { (", unfinished", ", 2") } else { ("", "") };
    let text =
        format!("INSERT INTO main.{table} ({columns}{}) SELECT {columns}{} FROM new.{table}", counter.0, counter.1);
    conn.execute_batch(&text).unwrap();
}

fn version_of(path: &Path) -> u32 {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.query_row("PRAGMA user_version", [], |r| r.get(0)).unwrap()
}

#[tokio::test]
async fn older_versions_are_taken_over_whole() {
    for version in 1..schema::KNOWN {
        let dir = tempfile::tempdir().unwrap();
        older(dir.path(), version as usize).await;
        let spool = open(options(dir.path())).unwrap();
        assert_counted(&spool).await;
        let answer = spool.get("a".into()).await.unwrap().unwrap().uplink.unwrap().0;
        assert_eq!(&answer.body.in_one_piece().unwrap()[..], b"yes");
        let queued = Filter { state: Some(State::Queued), source: Some(request("b").source), ..Filter::default() };
        let listed = spool.list(Filter { limit: 9, ..queued }).await.unwrap();
        assert_eq!(listed.iter().map(|record| &record.id[..]).collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(leased(&spool, 9).await, ["b", "c"], "their sums were made");
        let copy = dir.path().join(format!("spool.db.v{version}"));
        assert_eq!(version_of(&copy), version);
        spool.close().await;
        assert!(!copy.exists(), "kept until the first clean stop");
        assert_eq!(version_of(&files::database(dir.path())), schema::KNOWN);
    }
}

#[tokio::test]
async fn what_was_damaged_before_stays_so_and_a_name_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    older(dir.path(), 2).await;
    let conn = rusqlite::Connection::open(files::database(dir.path())).unwrap();
    conn.execute_batch("UPDATE request SET model = 'another' WHERE id = 'b'").unwrap();
    drop(conn);
    let source = request("c").source;
    super::sources::flip(dir.path(), &source, super::sources::In::Row, 1);
    let spool = open(options(dir.path())).unwrap();
    assert_eq!(leased(&spool, 9).await, ["c"]);
    assert_eq!(spool.get("b".into()).await.unwrap().unwrap().reason.as_deref(), Some("damaged"));
    assert_eq!(spool.get("c".into()).await.unwrap().unwrap().source, source);
}

#[tokio::test]
async fn an_older_file_that_is_called_the_newest_is_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    older(dir.path(), 2).await;
    let conn = rusqlite::Connection::open(files::database(dir.path())).unwrap();
    conn.execute_batch(&format!("PRAGMA user_version={}", schema::KNOWN)).unwrap();
    drop(conn);
    let spool = open(options(dir.path())).unwrap();
    assert!(spool.salvaged().await.unwrap());
    assert_eq!(leased(&spool, 9).await, ["b", "c"]);
    assert_counted(&spool).await;
}
