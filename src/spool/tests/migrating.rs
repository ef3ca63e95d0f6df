//! From a released schema to the newest: nothing lost, a copy kept, all or nothing.

use super::*;
use crate::spool::schema;

/// A spool as version 1 left it, with requests in several states.
pub(super) async fn version_1(dir: &Path) {
    let (old, spool) = fresh();
    for id in ["a", "b", "c"] {
        take(&spool, NewRequest { idempotency_key: Some(format!("key {id}")), ..request(id) }).await;
    }
    let seq = spool.lease(1).await.unwrap()[0].seq;
    spool.settle(seq, answered("yes")).await.unwrap();
    spool.close().await;
    let conn = rusqlite::Connection::open(files::database(dir)).unwrap();
    conn.execute_batch(schema::V1).unwrap();
    let from = files::database(old.path());
    conn.execute("ATTACH ?1 AS new", [from.to_str().unwrap()]).unwrap();
    for table in ["source", "request", "body", "answer", "lane"] {
        let columns: String = conn
            .query_row(&format!("SELECT group_concat(name, ', ') FROM pragma_table_info('{table}', 'main')"), [], |r| {
                r.get(0)
            })
            .unwrap();
        conn.execute_batch(&format!("INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")).unwrap();
    }
    conn.execute_batch(&format!(
        "UPDATE service SET next_seq = 4, queued = 2, answered = 1, ready = 2,
            backlog_bytes = (SELECT sum(body_bytes) FROM request WHERE state < 3),
            kept_bytes = (SELECT sum(body_bytes) FROM request WHERE state < 3) + 3, answer_bytes = 3;
        DETACH new; PRAGMA application_id={}; PRAGMA user_version=1;",
        schema::APPLICATION_ID
    ))
    .unwrap();
}

fn version_of(path: &Path) -> u32 {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.query_row("PRAGMA user_version", [], |r| r.get(0)).unwrap()
}

#[tokio::test]
async fn version_1_is_taken_over_whole() {
    let dir = tempfile::tempdir().unwrap();
    version_1(dir.path()).await;
    let spool = open(options(dir.path())).unwrap();
    assert_counted(&spool).await;
    let answer = spool.get("a".into()).await.unwrap().unwrap().uplink.unwrap().0;
    assert_eq!(&answer.body.in_one_piece().unwrap()[..], b"yes");
    assert_eq!(leased(&spool, 9).await, ["b", "c"], "their sums were made");
    let copy = dir.path().join("spool.db.v1");
    assert_eq!(version_of(&copy), 1);
    spool.close().await;
    assert!(!copy.exists(), "kept until the first clean stop");
    assert_eq!(version_of(&files::database(dir.path())), schema::KNOWN);
}
