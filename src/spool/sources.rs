//! Who asked: the names of sources, found, added, and mended where a stored one is damaged.
//!
//! Owns the rule which copy of a name is believed. Each name stands twice, in its row and in the index of names; the
//! row's sum says which of them is right. Never ends a request because of its source.

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::store::Store;
use super::sum::{self, SOURCE};
use super::{SpoolError, codes};
use crate::plant::{self, Fault};

/// What the name begins with that stands for one nobody can tell any more. No client's name does.
pub(super) const LOST: &str = "lost:";
/// The end of the range of such names: the letter after `:`.
const LOST_END: &str = "lost;";

/// The name under which the requests of a source live on whose own is lost.
pub(super) fn lost_name(id: i64) -> String {
    format!("{LOST}{id}")
}

/// Which copy of a name is to be believed: the one that the sum proves, else the one on which row and index agree. A
/// name that is in doubt is no name: the requests of one must not become those of another.
pub(super) fn believed<'a>(id: i64, in_row: Option<&'a str>, sum: &[u8], in_index: Option<&'a str>) -> Option<&'a str> {
    let proven = |name: &&str| sum::of_source(id, name)[..] == *sum;
    [in_row, in_index].into_iter().flatten().find(proven).or(in_row.filter(|_| in_row == in_index))
}

/// The number of a source, made where it is new. A damaged name is mended before one is taken for new: or its keys
/// would be forgotten, or become another's.
pub(super) fn number(store: &mut Store, name: &str) -> Result<i64, SpoolError> {
    for _ in 0..2 {
        match find(&store.conn, name)? {
            Some((id, Some(true))) => return Ok(id),
            None if !is_wrong(&store.conn)? => {
                let id = unused(store)?;
                store.conn.execute("INSERT INTO source (source_id, name) VALUES (?1, ?2)", params![id, name])?;
                return Ok(id);
            }
            _ => store.mend_sources()?,
        }
    }
    Err(gone())
}

/// The highest number that anything names but what waits.
pub(super) const HIGHEST: &str = "SELECT max(coalesce((SELECT max(source_id) FROM source), 0),
    coalesce((SELECT max(source_id) FROM request INDEXED BY request_source WHERE state > 0), 0),
    coalesce((SELECT max(source_id) FROM device_key), 0), coalesce((SELECT max(source_id) FROM device_epoch), 0),
    coalesce((SELECT max(source_id) FROM mailbox), 0))";

/// A number that nothing names, not even what is left of a source whose row is gone: or one's requests would become another's.
fn unused(store: &Store) -> Result<i64, SpoolError> {
    let named: i64 = store.conn.query_row(HIGHEST, [], |r| r.get(0))?;
    // What waits is counted in memory.
    let used = store.lanes.sources().fold(named, i64::max);
    used.checked_add(1).ok_or_else(gone)
}

/// The number of a source that is there and whose row and index agree.
pub(super) fn known(conn: &Connection, name: &str) -> Result<Option<i64>, SpoolError> {
    Ok(find(conn, name)?.filter(|(_, is_whole)| *is_whole == Some(true)).map(|(id, _)| id))
}

/// By the index of names, and whether the row there says the same.
fn find(conn: &Connection, name: &str) -> Result<Option<(i64, Option<bool>)>, SpoolError> {
    let text = format!(
        "SELECT i.source_id, (SELECT r.name = ?1 AND {} FROM source r NOT INDEXED WHERE r.source_id = i.source_id)
        FROM source i INDEXED BY sqlite_autoindex_source_1 WHERE i.name = ?1",
        proof("r.")
    );
    Ok(conn.prepare_cached(&text)?.query_row([name], |r| Ok((r.get(0)?, r.get(1)?))).optional()?)
}

/// Whether a source's row is as it was written; one that is not there at all is damage of the whole file.
pub(super) fn holds(conn: &Connection, id: i64) -> Result<bool, SpoolError> {
    let text = format!("SELECT {} FROM source NOT INDEXED WHERE source_id = ?1", proof(""));
    conn.prepare_cached(&text)?.query_row([id], |r| r.get(0)).optional()?.ok_or_else(gone)
}

fn proof(prefix: &str) -> String {
    let call = sum::call(prefix, &SOURCE);
    if plant::is(Fault::TrustIntegrityCheck) { "1".to_owned() } else { format!("{prefix}sum = {call}") }
}

/// A request with this key and body whose source's name is lost: most likely the same one, and a second send costs more
/// than a shared answer.
pub(super) fn keyed_by_nobody(conn: &Connection, key: &str, hash: &[u8]) -> Result<Option<(u64, String)>, SpoolError> {
    let text = "SELECT seq, id FROM request WHERE source_id IN (SELECT source_id FROM source WHERE name >= ?3
        AND name < ?4) AND idempotency_key = ?1 AND body_hash = ?2";
    let found = |r: &Row<'_>| Ok((codes::num(r.get(0)?), r.get(1)?));
    Ok(conn.prepare_cached(text)?.query_row(params![key, hash, LOST, LOST_END], found).optional()?)
}

/// Whether anybody has a request with this key and body: asked for one that comes back without its source's name.
pub(super) fn keyed_by_anybody(conn: &Connection, key: &str, hash: &[u8]) -> Result<bool, SpoolError> {
    let text = "SELECT 1 FROM request WHERE source_id IN (SELECT source_id FROM source)
        AND idempotency_key = ?1 AND body_hash = ?2";
    Ok(conn.prepare_cached(text)?.exists(params![key, hash])?)
}

/// One source as it stands.
struct Stored {
    id: i64,
    in_row: Option<String>,
    in_index: Option<String>,
    sum: Vec<u8>,
}

impl Stored {
    fn is_whole(&self) -> bool {
        self.is_listed() && believed(self.id, self.in_row.as_deref(), &self.sum, None).is_some()
    }

    /// The index says of it what its row says.
    fn is_listed(&self) -> bool {
        self.in_row.is_some() && self.in_row == self.in_index
    }

    /// The name it is to have from now on.
    fn name(&self) -> String {
        let name = believed(self.id, self.in_row.as_deref(), &self.sum, self.in_index.as_deref());
        name.map_or_else(|| lost_name(self.id), str::to_owned)
    }
}

/// Every source; there are as many as users, tokens and device links ever asked.
fn all(conn: &Connection) -> Result<Vec<Stored>, SpoolError> {
    // A flipped bit may have made a name something that is no text.
    let name = |r: &Row<'_>, at: usize| -> rusqlite::Result<Option<String>> {
        Ok(r.get_ref(at)?.as_str().ok().map(str::to_owned))
    };
    let mut rows = conn.prepare("SELECT source_id, name, sum FROM source NOT INDEXED ORDER BY source_id")?;
    let stored = |r: &Row<'_>| {
        let sum = r.get_ref(2)?.as_bytes().unwrap_or_default().to_vec();
        Ok(Stored { id: r.get(0)?, in_row: name(r, 1)?, in_index: None, sum })
    };
    let mut all: Vec<Stored> = rows.query_map([], stored)?.collect::<rusqlite::Result<_>>()?;
    let mut entries = conn.prepare("SELECT source_id, name FROM source INDEXED BY sqlite_autoindex_source_1")?;
    let entries = entries.query_map([], |r| Ok((r.get::<_, i64>(0)?, name(r, 1)?)))?;
    for entry in entries {
        let (id, name) = entry?;
        let at = all.binary_search_by_key(&id, |stored| stored.id).map_err(|_| gone())?;
        all[at].in_index = name;
    }
    Ok(all)
}

/// Whether any source is not as it was written, in its row or in the index of names.
pub(super) fn is_wrong(conn: &Connection) -> Result<bool, SpoolError> {
    Ok(!plant::is(Fault::TrustIntegrityCheck) && all(conn)?.iter().any(|stored| !stored.is_whole()))
}

/// Gives every damaged source its name back, or one that says that it is lost; as a whole or not at all.
pub(super) fn mend(conn: &Connection) -> Result<(), SpoolError> {
    if !is_wrong(conn)? {
        return Ok(());
    }
    conn.execute_batch("SAVEPOINT sources")?;
    let done = leniently(conn, || mend_all(conn, &all(conn)?));
    if done.is_ok() {
        conn.execute_batch("RELEASE sources")?;
    } else if !conn.is_autocommit() {
        conn.execute_batch("ROLLBACK TO sources; RELEASE sources")?;
    }
    // Names that stand in each other's way need more than this: then the file goes as a whole.
    done.map_err(|error| match error {
        SpoolError::Storage(what) => SpoolError::Damaged(what),
        other => other,
    })
}

/// SQLite changes no row whose entry an index does not have, unless it is told that the schema is being worked on.
fn leniently(conn: &Connection, work: impl FnOnce() -> Result<(), SpoolError>) -> Result<(), SpoolError> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
    let done = conn.execute_batch("PRAGMA writable_schema=ON").map_err(SpoolError::from).and_then(|()| work());
    let strict = conn.execute_batch("PRAGMA writable_schema=OFF");
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    done.and(strict.map_err(SpoolError::from))
}

fn mend_all(conn: &Connection, all: &[Stored]) -> Result<(), SpoolError> {
    for bad in all.iter().filter(|stored| !stored.is_whole()) {
        let name = bad.name();
        if name.starts_with(LOST) {
            tracing::error!(
                source = bad.id,
                "a source's name is damaged beyond mending; its requests live on as {name}"
            );
        } else {
            tracing::warn!(
                source = bad.id,
                "a source's row was damaged; it is mended and its requests are not touched"
            );
        }
        if bad.in_row.as_deref() == Some(&name) {
            let text = format!("UPDATE source SET sum = {} WHERE source_id = ?1", sum::call("", &SOURCE));
            conn.execute(&text, [bad.id])?;
        } else {
            conn.execute("UPDATE source SET name = ?2 WHERE source_id = ?1", params![bad.id, name])?;
        }
    }
    Ok(conn.execute_batch("REINDEX main.source")?)
}

pub(super) fn gone() -> SpoolError {
    SpoolError::Damaged("a source that requests or an index name is not in its table".into())
}
