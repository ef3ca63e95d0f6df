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

/// Where the page of a tree begins.
fn root(path: &Path, name: &str) -> usize {
    let conn = rusqlite::Connection::open(path).unwrap();
    let page: i64 = conn.query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [name], |r| r.get(0)).unwrap();
    (page as usize - 1) * 4096
}

#[tokio::test]
async fn a_tree_is_looked_at_before_an_index_is_dropped_through_it() {
    let dir = tempfile::tempdir().unwrap();
    older(dir.path(), 2).await;
    let path = files::database(dir.path());
    let conn = rusqlite::Connection::open(&path).unwrap();
    // Enough entries for an index of two levels; they are finished, so that each stands in it.
    conn.execute_batch(
        "WITH n(n) AS (SELECT 10 UNION ALL SELECT n + 1 FROM n WHERE n < 2000)
        INSERT INTO request (seq, id, source_id, state, priority, deferred, attempts, maybe_billed, accepted_at, expires_at,
            ended_at, created_unix_ms, ttl_ms, policy, endpoint, model, body_bytes, body_hash, body_kept)
        SELECT n, 'n' || n, 1, 5, 2, 0, 0, 0, 1, 2, 3, 4, 5, 0, '/v1', 'm', 0, x'', 0 FROM n",
    )
    .unwrap();
    drop(conn);
    let mut bytes = std::fs::read(&path).unwrap();
    let (index, table) = (root(&path, "request_state"), root(&path, "body"));
    assert_eq!((bytes[index], bytes[table]), (0x02, 0x0d), "an index of two levels, a table of one");
    // Its last child becomes the page with the bodies of those that wait.
    let page = u32::try_from(table / 4096 + 1).unwrap();
    bytes[index + 8..index + 12].copy_from_slice(&page.to_be_bytes());
    std::fs::write(&path, bytes).unwrap();
    // No other look comes before the step where that one's time is up.
    let refused = crate::spool::open::open_unchecked(options(dir.path())).unwrap_err();
    assert!(matches!(refused, crate::spool::SpoolError::Damaged(_)), "{refused:?}");
    let spool = open(options(dir.path())).unwrap();
    assert!(spool.salvaged().await.unwrap());
    assert_eq!(leased(&spool, 9).await, ["b", "c"]);
}

#[tokio::test]
async fn a_row_that_cannot_be_is_no_reason_to_refuse_every_start() {
    let dir = tempfile::tempdir().unwrap();
    older(dir.path(), 1).await;
    let path = files::database(dir.path());
    // Without a sum a row is known by what an id looks like.
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute_batch("UPDATE request SET id = printf('req_%032x', seq)").unwrap();
    drop(conn);
    let mut bytes = std::fs::read(&path).unwrap();
    // Of the first row in the table a zero becomes NULL, where none may be: its type is 8, one bit from it.
    let at = root(&path, "request");
    assert_eq!(bytes[at], 0x0d);
    let cell = at + usize::from(u16::from_be_bytes([bytes[at + 8], bytes[at + 9]]));
    let header = cell + if bytes[cell] & 0x80 == 0 { 2 } else { 3 };
    let zero = (header..header + usize::from(bytes[header])).find(|at| bytes[*at] == 8).unwrap();
    bytes[zero] = 0;
    std::fs::write(&path, bytes).unwrap();
    let spool = open(options(dir.path())).unwrap();
    assert!(spool.salvaged().await.unwrap());
    let waiting = [2, 3].map(|seq| format!("req_{seq:032x}"));
    assert_eq!(leased(&spool, 9).await, waiting, "the first was answered");
}
