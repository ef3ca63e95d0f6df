//! From an older version of the schema to the newest: a copy first, then everything in one transaction.
//!
//! Owns the copy that makes a step back possible; never touches a database that is new or up to date.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::schema::{APPLICATION_ID, FIRST_WITH_SUMS, KNOWN, MIGRATIONS};
use super::{SpoolError, files, sum};
use crate::plant::{self, Fault};

/// Brings the database at `path` to the newest version.
pub(super) fn run(conn: &mut Connection, path: &Path) -> Result<(), SpoolError> {
    let version: u32 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    if version == KNOWN {
        return Ok(());
    }
    if version > 0 {
        look(conn)?;
        // Without room for a copy the step is still safe: it happens as a whole or not at all.
        let kept =
            has_room(path).and_then(|has| if has { keep(conn, path, version) } else { Err(SpoolError::DiskFull) });
        if let Err(error) = kept {
            tracing::warn!(%error, version, "no copy of the older spool could be kept; it is migrated without one");
        }
    }
    if plant::is(Fault::MigrateWithoutTransaction) {
        return steps(conn, version);
    }
    let tx = conn.transaction()?;
    steps(&tx, version)?;
    Ok(tx.commit()?)
}

/// A copy takes as much as the file; the step's log may take as much again, and the start after it some.
const ROOM: u64 = 3;

fn has_room(path: &Path) -> Result<bool, SpoolError> {
    let free = files::free_bytes(path.parent().unwrap_or(path))?;
    Ok(free / ROOM >= std::fs::metadata(path)?.len())
}

/// Whether each page is where the trees say and each row as its table wants it: dropping an index through a flipped pointer would wipe
/// pages of another tree, and no column comes to a table with a row that cannot be.
fn look(conn: &Connection) -> Result<(), SpoolError> {
    let said: String = conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
    if said == "ok" { Ok(()) } else { Err(SpoolError::Damaged(said)) }
}

fn steps(conn: &Connection, version: u32) -> Result<(), SpoolError> {
    for (before, text) in (0u32..).zip(MIGRATIONS).skip(version as usize) {
        conn.execute_batch(text)?;
        // Once only: what has sums already may be damaged, and a new sum would make that true.
        if before + 1 == FIRST_WITH_SUMS {
            sum::fill(conn)?;
        }
    }
    conn.execute_batch(&format!("PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={KNOWN}"))?;
    Ok(())
}

/// Writes `spool.db.v<version>`, complete and synced before it has that name; older copies go.
fn keep(conn: &Connection, path: &Path, version: u32) -> Result<(), SpoolError> {
    forget(path)?;
    let temp = path.with_extension("db.copy");
    // Private from its first byte; SQLite takes an empty file.
    let file = files::private().create(true).truncate(true).open(&temp)?;
    let name = temp.to_str().ok_or_else(|| SpoolError::Storage("the data folder's name is not UTF-8".into()))?;
    let copied = conn.execute("VACUUM INTO ?1", [name]).map_err(SpoolError::from);
    let done =
        copied.and_then(|_| Ok(file.sync_all()?)).and_then(|()| Ok(std::fs::rename(&temp, copy(path, version))?));
    if done.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
    done.and_then(|()| files::sync_dir(path.parent().unwrap_or(path)))
}

/// Removes the copies of older versions: this one has run and stopped well.
pub(super) fn forget(path: &Path) -> Result<(), SpoolError> {
    for version in 1..KNOWN {
        match std::fs::remove_file(copy(path, version)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    Ok(())
}

fn copy(path: &Path, version: u32) -> PathBuf {
    path.with_extension(format!("db.v{version}"))
}
