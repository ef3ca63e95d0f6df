//! Data folders as released versions left them, made from their frozen SQL and not by the present program.
//!
//! Owns `v1.sql`, `v2.sql`, the rows in them and their sums; never changes with the program.

use std::fmt::Write as _;
use std::path::Path;

use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use crate::{chance, driver};

const V1: &str = include_str!("v1.sql");
const V2: &str = include_str!("v2.sql");
/// The versions there are folders of.
pub const VERSIONS: [u32; 2] = [1, 2];
const APPLICATION_ID: u32 = 0x6866_7374;
/// Requests of an old folder.
pub const ROWS: u64 = 24;
/// What of them is larger than a row of the database.
const LARGE: usize = 70 << 10;

/// Makes `at/root/data` in one of [`VERSIONS`], and `at/marks`, the promises that stand in it.
pub fn make(at: &Path, version: u32) -> Result<(), Box<dyn std::error::Error>> {
    let data = at.join("root/data");
    std::fs::create_dir_all(data.join("bodies"))?;
    let conn = Connection::open(data.join("spool.db"))?;
    conn.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA page_size=4096; PRAGMA journal_mode=WAL;")?;
    conn.execute_batch(V1)?;
    conn.execute_batch(&format!("PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={version}"))?;
    conn.execute("INSERT INTO source VALUES (1, 'uid:1', ?1)", [ROWS as i64 * 3 / 4])?;
    conn.execute("INSERT INTO lane VALUES (2, 1, ?1, 0)", [ROWS as i64 / 2])?;
    let mut marks = String::new();
    for n in 1..=ROWS {
        row(&conn, &data, n, &mut marks)?;
    }
    let quarter = ROWS as i64 / 4;
    conn.execute(
        "UPDATE service SET starts = 1, next_seq = ?1, queued = ?2, sending = ?3, answered = ?3, ready = ?2,
         backlog_bytes = (SELECT sum(body_bytes) FROM request WHERE state < 3), answer_bytes = 300 * ?3,
         kept_bytes = (SELECT sum(body_bytes) FROM request WHERE body_kept = 1) + 300 * ?3",
        params![ROWS as i64 + 1, quarter * 2, quarter],
    )?;
    if version == 2 {
        conn.execute_batch(V2)?;
        sum(&conn)?;
    }
    std::fs::write(at.join("marks"), marks)?;
    Ok(())
}

/// Sums each row as version 2 did: the first 8 bytes of SHA-256 over its values, but an answer's own bytes, as tag (0 null,
/// 1 integer, 3 text, 4 blob), length (u32, little endian) and bytes (a number's 8, little endian).
fn sum(conn: &Connection) -> rusqlite::Result<()> {
    conn.create_scalar_function("sum_of", -1, FunctionFlags::SQLITE_UTF8, |values| {
        let mut row = Vec::new();
        for at in 0..values.len() {
            let (tag, bytes) = match values.get_raw(at) {
                ValueRef::Null => (0, vec![]),
                ValueRef::Integer(n) => (1, n.to_le_bytes().to_vec()),
                ValueRef::Text(text) => (3, text.to_vec()),
                ValueRef::Blob(bytes) => (4, bytes.to_vec()),
                ValueRef::Real(_) => unreachable!("no column is one"),
            };
            row.push(tag);
            row.extend((bytes.len() as u32).to_le_bytes());
            row.extend(bytes);
        }
        Ok(Sha256::digest(&row)[..8].to_vec())
    })?;
    conn.execute_batch("UPDATE request SET version = 1")?;
    let columns = "SELECT group_concat(name, ', ') FROM
        (SELECT name FROM pragma_table_info(?1) WHERE name NOT IN ('bytes', 'sum', 'unfinished') ORDER BY cid)";
    for table in ["request", "answer", "source"] {
        let columns: String = conn.query_row(columns, [table], |row| row.get(0))?;
        conn.execute_batch(&format!("UPDATE {table} SET sum = sum_of({columns})"))?;
    }
    Ok(())
}

/// One in four: small and waiting, large and waiting, on its way, answered.
fn row(conn: &Connection, data: &Path, n: u64, marks: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let (state, size) = [(0, 500), (0, LARGE), (1, 800), (3, 400)][(n % 4) as usize];
    let new = driver::request(n, size);
    let (large, answered) = (size == LARGE, state == 3);
    let file = large.then(|| format!("1-{n:032x}"));
    conn.execute(
        "INSERT INTO request VALUES (?1, ?2, 1, ?3, 2, 0, 0, 0, 1, 1099511627776, ?4, 1700000000000, 1099511627776, 2, ?5,
         'm', NULL, ?6, ?7, ?8, ?9, ?10, NULL, NULL, NULL)",
        params![
            n as i64,
            new.id,
            state,
            i64::from(answered),
            new.endpoint,
            new.idempotency_key,
            size as i64,
            new.body.hash().as_slice(),
            !answered,
            file
        ],
    )?;
    let body = crate::ledger::bytes(&new.body)?;
    match &file {
        Some(name) => std::fs::write(data.join("bodies").join(name), &body)?,
        None if answered => answer(conn, n)?,
        None => drop(conn.execute("INSERT INTO body VALUES (?1, ?2)", params![n as i64, &body[..]])?),
    }
    writeln!(marks, "a? {n} {size}\na! {n}")?;
    match state {
        1 => writeln!(marks, "l! {n}")?,
        3 => writeln!(marks, "l! {n}\ns? {n} A300\ns! {n}")?,
        _ => {}
    }
    Ok(())
}

fn answer(conn: &Connection, n: u64) -> Result<(), Box<dyn std::error::Error>> {
    let bytes = driver::answer(n, 300);
    let hash: [u8; 32] = Sha256::digest(&bytes).into();
    conn.execute(
        "INSERT INTO answer VALUES (?1, 0, 'u', 'm', 200, 'application/json', 1, NULL, NULL, 1700000000000, 300, ?2, ?3, NULL)",
        params![n as i64, hash.as_slice(), bytes],
    )?;
    debug_assert_eq!(chance::body(n | 1 << 40, 300), bytes);
    Ok(())
}
