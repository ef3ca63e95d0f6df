//! Where damaged files go, so that new work is not stopped and nothing readable is thrown away.
//!
//! Owns `quarantine/<n>/` and the order in which names come and go there: a set is complete and synced before
//! anything is taken from the data folder. Never reads a row.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{SpoolError, files};

/// Sets kept; older ones go, but only those that were salvaged.
const SETS_MAX: usize = 2;
/// Says that a set was not salvaged yet.
const DUE: &str = "salvage.due";

/// How files get into a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// They leave the data folder.
    Move,
    /// They stay as well.
    Copy,
}

/// Puts the database and its log into a set of their own, due to be salvaged. Nothing may have them open.
pub(super) fn set_aside(data_dir: &Path, how: How) -> Result<PathBuf, SpoolError> {
    let next = sets(data_dir).last().map_or(1, |(n, _)| n + 1);
    let set = folder(data_dir).join(next.to_string());
    DirBuilder::new().recursive(true).mode(0o700).create(&set)?;
    files::private().create(true).truncate(false).open(set.join(DUE))?.sync_all()?;
    let (db, wal) = (files::database(data_dir), files::wal(data_dir));
    for (from, name) in [(&db, "spool.db"), (&wal, "spool.db-wal")] {
        put(from, &set.join(name), how)?;
    }
    for dir in [&set, &folder(data_dir), data_dir] {
        files::sync_dir(dir)?;
    }
    if how == How::Move {
        // The database first: a log without its database is known for what it is, the other way round is not.
        for path in [&db, &wal] {
            remove(path)?;
        }
        files::sync_dir(data_dir)?;
    }
    forget(data_dir);
    Ok(set)
}

fn put(from: &Path, to: &Path, how: How) -> Result<(), SpoolError> {
    if !from.exists() {
        return Ok(());
    }
    // A second name costs no room; where the file system has no such thing, a copy.
    if how == How::Copy || std::fs::hard_link(from, to).is_err() {
        std::fs::copy(from, to)?;
        std::fs::File::open(to)?.sync_all()?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), SpoolError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// Removes a database that was made a moment ago and never served from: it holds nothing of anybody.
pub(super) fn drop_unused(data_dir: &Path) -> Result<(), SpoolError> {
    remove(&files::database(data_dir))?;
    remove(&files::wal(data_dir))
}

/// Sets that wait to be salvaged, oldest first.
pub(super) fn due(data_dir: &Path) -> Vec<PathBuf> {
    sets(data_dir).into_iter().map(|(_, path)| path).filter(|path| path.join(DUE).exists()).collect()
}

/// A set was salvaged: it is kept to be looked at, and may go when newer ones come.
pub(super) fn done(data_dir: &Path, set: &Path) -> Result<(), SpoolError> {
    remove(&set.join(DUE))?;
    files::sync_dir(set)?;
    forget(data_dir);
    Ok(())
}

/// Removes the oldest sets beyond [`SETS_MAX`]. What was not salvaged stays, however old.
fn forget(data_dir: &Path) {
    let all = sets(data_dir);
    for (_, path) in all.iter().rev().skip(SETS_MAX).filter(|(_, path)| !path.join(DUE).exists()) {
        let _ = std::fs::remove_dir_all(path);
    }
}

fn sets(data_dir: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder(data_dir)) else { return Vec::new() };
    let number = |e: std::fs::DirEntry| Some((e.file_name().to_str()?.parse().ok()?, e.path()));
    let mut all: Vec<(u64, PathBuf)> = entries.flatten().filter_map(number).collect();
    all.sort();
    all
}

fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("quarantine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sets_are_kept_and_none_that_was_not_salvaged_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Vec::new();
        for n in 0..4u8 {
            std::fs::write(files::database(dir.path()), [n]).unwrap();
            std::fs::write(files::wal(dir.path()), [n, n]).unwrap();
            made.push(set_aside(dir.path(), How::Move).unwrap());
            assert!(!files::database(dir.path()).exists() && !files::wal(dir.path()).exists());
        }
        assert_eq!(due(dir.path()), made);
        for set in &made {
            done(dir.path(), set).unwrap();
        }
        assert!(due(dir.path()).is_empty());
        assert!(!made[0].exists() && !made[1].exists());
        assert_eq!(std::fs::read(made[2].join("spool.db")).unwrap(), [2]);
        assert_eq!(std::fs::read(made[3].join("spool.db-wal")).unwrap(), [3, 3]);
    }
}
