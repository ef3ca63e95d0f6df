//! The checksum every row carries, and the triggers that keep it true.
//!
//! Owns which columns are summed and how. No change of a row can leave its sum or its version behind: each connection of the
//! spool has triggers of its own. Only a new request's sum is its writer's duty (`accept.rs`, `adopt.rs`).

use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension};
use sha2::{Digest, Sha256};

use super::SpoolError;
use super::codes::sql;
use crate::plant::{self, Fault};

/// Columns of `request` before `sum`, in the table's order; all of them are summed.
pub(super) const REQUEST: [&str; 30] = [
    "seq",
    "id",
    "source_id",
    "state",
    "priority",
    "deferred",
    "attempts",
    "maybe_billed",
    "accepted_at",
    "expires_at",
    "ended_at",
    "created_unix_ms",
    "ttl_ms",
    "policy",
    "endpoint",
    "model",
    "label",
    "idempotency_key",
    "body_bytes",
    "body_hash",
    "body_kept",
    "body_file",
    "reason",
    "error_kind",
    "error_message",
    "content",
    "handover",
    "task",
    "max_reply",
    "version",
];
/// Summed columns of `answer`; its `bytes` are not, because their hash is.
pub(super) const ANSWER: [&str; 13] = [
    "seq",
    "local",
    "uplink",
    "model",
    "status",
    "content_type",
    "latency_ms",
    "prompt_tokens",
    "completion_tokens",
    "at_unix_ms",
    "size",
    "hash",
    "file",
];
/// All columns of `answer` before `sum`, in the table's order.
pub(super) const ANSWER_VALUES: [&str; 14] = [
    ANSWER[0], ANSWER[1], ANSWER[2], ANSWER[3], ANSWER[4], ANSWER[5], ANSWER[6], ANSWER[7], ANSWER[8], ANSWER[9],
    ANSWER[10], ANSWER[11], "bytes", "file",
];
/// Summed columns of `source`.
pub(super) const SOURCE: [&str; 2] = ["source_id", "name"];

/// Bytes of a row's sum.
const SUM_BYTES: usize = 8;
/// What most rows take with tags and lengths.
const ROW_BYTES: usize = 512;

/// The first 8 bytes of SHA-256 over each value as type tag (0 null, 1 integer, 2 real, 3 text, 4 blob), length
/// in bytes (u32, little endian) and bytes (numbers as 8 bytes, little endian). A row's own key comes as its
/// number, although SQLite keeps none in the record.
pub(super) fn of<'a>(values: impl Iterator<Item = ValueRef<'a>>) -> [u8; SUM_BYTES] {
    // Together first: the hash takes one long piece much faster than a hundred short ones.
    let mut row = Vec::with_capacity(ROW_BYTES);
    for value in values {
        match value {
            ValueRef::Null => add(&mut row, 0, &[]),
            ValueRef::Integer(n) => add(&mut row, 1, &n.to_le_bytes()),
            ValueRef::Real(x) => add(&mut row, 2, &x.to_bits().to_le_bytes()),
            ValueRef::Text(bytes) => add(&mut row, 3, bytes),
            ValueRef::Blob(bytes) => add(&mut row, 4, bytes),
        }
    }
    let mut sum = [0; SUM_BYTES];
    sum.copy_from_slice(&Sha256::digest(&row)[..SUM_BYTES]);
    sum
}

fn add(row: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    row.push(tag);
    row.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    row.extend_from_slice(bytes);
}

/// Makes `row_sum(…)` known to a connection.
pub(super) fn register(conn: &Connection) -> Result<(), SpoolError> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    conn.create_scalar_function("row_sum", -1, flags, |values| {
        Ok(of((0..values.len()).map(|at| values.get_raw(at))).to_vec())
    })?;
    Ok(())
}

/// Has the connection keep sums and versions from now on. Triggers of the connection and not of the file, so
/// that the file holds plain tables only. A new request brings its sum, and a row that comes back
/// is summed after it: with a trigger for that, SQLite would keep a copy of each page first, in case the trigger fails.
pub(super) fn watch(conn: &Connection) -> Result<(), SpoolError> {
    let changed = REQUEST[1..29].join(", ");
    let request = (call("", &REQUEST), "seq = new.seq");
    let answer = (call("", &ANSWER), "seq = new.seq AND local = new.local");
    let source = (call("", &SOURCE), "source_id = new.source_id");
    // With the version one higher, the row is summed as it will stand.
    // A row that was damaged before must not become whole by a change of another part of it.
    let before = call("old.", &REQUEST);
    let next = request.0.replace(" version)", " version + 1)");
    conn.execute_batch(&format!(
        "CREATE TEMP TRIGGER request_changed AFTER UPDATE OF {changed} ON main.request BEGIN
            UPDATE request SET version = version + 1, sum = iif(old.sum = {before}, {next}, x'') WHERE {}; END;
        CREATE TEMP TRIGGER answer_made AFTER INSERT ON main.answer BEGIN
            UPDATE answer SET sum = {} WHERE {}; END;
        CREATE TEMP TRIGGER answer_changed AFTER UPDATE OF {} ON main.answer BEGIN
            UPDATE answer SET sum = {} WHERE {}; END;
        CREATE TEMP TRIGGER source_made AFTER INSERT ON main.source BEGIN
            UPDATE source SET sum = {} WHERE {}; END;
        CREATE TEMP TRIGGER source_changed AFTER UPDATE OF name ON main.source BEGIN
            UPDATE source SET sum = {} WHERE {}; END;",
        request.1,
        answer.0,
        answer.1,
        ANSWER.join(", "),
        answer.0,
        answer.1,
        source.0,
        source.1,
        source.0,
        source.1,
    ))?;
    Ok(())
}

/// Sums every row of a database that had no sums before: part of the migration to version 2 and of no other.
pub(super) fn fill(conn: &Connection) -> Result<(), SpoolError> {
    for (table, columns) in [("request", &REQUEST[..]), ("answer", &ANSWER[..]), ("source", &SOURCE[..])] {
        conn.execute_batch(&format!("UPDATE {table} SET sum = {}", call("", columns)))?;
    }
    Ok(())
}

/// `row_sum(a, b, …)`, each column behind `prefix`.
pub(super) fn call(prefix: &str, columns: &[&str]) -> String {
    let names: Vec<String> = columns.iter().map(|name| format!("{prefix}{name}")).collect();
    format!("row_sum({})", names.join(", "))
}

/// Sums a row as it stands: one that comes back, or a damaged one, which is marked as such and whole again in that.
pub(super) fn renew(conn: &Connection, seq: u64) -> Result<(), SpoolError> {
    let text = format!("UPDATE request SET sum = {} WHERE seq = ?1", call("", &REQUEST));
    conn.prepare_cached(&text)?.execute([sql(seq)])?;
    Ok(())
}

/// The sum of a source.
pub(super) fn of_source(id: i64, name: &str) -> [u8; 8] {
    of([ValueRef::Integer(id), ValueRef::Text(name.as_bytes())].into_iter())
}

/// Whether a request's row is as it was written; its source's has a sum of its own.
pub(super) fn holds(conn: &Connection, seq: u64) -> Result<bool, SpoolError> {
    if plant::is(Fault::TrustIntegrityCheck) {
        return Ok(true);
    }
    let text = format!("SELECT sum = {} FROM request WHERE seq = ?1", call("", &REQUEST));
    let held = conn.prepare_cached(&text)?.query_row([sql(seq)], |r| r.get(0)).optional()?;
    Ok(held.unwrap_or(false))
}

/// Whether the answers of a request are as they were written.
pub(super) fn answers_hold(conn: &Connection, seq: u64) -> Result<bool, SpoolError> {
    if plant::is(Fault::TrustIntegrityCheck) {
        return Ok(true);
    }
    let text = format!("SELECT coalesce(min(sum = {}), 1) FROM answer WHERE seq = ?1", call("", &ANSWER));
    Ok(conn.prepare_cached(&text)?.query_row([sql(seq)], |r| r.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_frozen() {
        let values = [ValueRef::Null, ValueRef::Integer(-2), ValueRef::Text(b"ab"), ValueRef::Blob(b"ab")];
        // By hand: 00 00000000, 01 08000000 feffffffffffffff, 03 02000000 6162, 04 02000000 6162.
        assert_eq!(of(values.into_iter()), FROZEN);
        assert_ne!(of([ValueRef::Text(b"ab")].into_iter()), of([ValueRef::Blob(b"ab")].into_iter()));
        assert_ne!(
            of([ValueRef::Text(b"a"), ValueRef::Text(b"b")].into_iter()),
            of([ValueRef::Text(b"ab"), ValueRef::Text(b"")].into_iter())
        );
    }

    /// Computed apart from this program; what is on disk depends on it.
    const FROZEN: [u8; 8] = [0x97, 0x64, 0xf6, 0x7a, 0x5f, 0x69, 0x94, 0x58];
}
