//! `holdfast reset`: empties a stopped gateway's data folder, so that the device can be handed on.
//!
//! Owns the list of what the rooms keep there, and removes nothing else: a data folder that was set to a wrong place keeps
//! what others put there. The configuration lies elsewhere and stays.

use std::fs;
use std::path::{Path, PathBuf};

use super::SupervisorError;
use crate::config::Settings;
use crate::spool::{self, SpoolError};

/// Everything that is ever made in a data folder, and what it is to people. The lock stays: it is empty.
const KEPT: [(&str, &str); 19] = [
    ("bodies", "pictures and other large bodies"),
    ("spool.db", "requests and answers"),
    ("spool.db-wal", "the latest requests and answers"),
    ("spool.db-shm", "an index of those"),
    ("spool.db.v1", "requests and answers as an older version left them"),
    ("spool.db.v2", "requests and answers as an older version left them"),
    ("spool.db.copy", "a copy of those that was not finished"),
    ("outcomes.log", "how requests ended"),
    ("outcomes.log.1", "how older requests ended"),
    ("quarantine", "damaged files that were set aside"),
    ("ballast", "space that was set aside"),
    ("cache", "kept answers"),
    ("money", "the ledger of what was paid"),
    ("models", "the uplinks' lists of models"),
    ("uploads", "half-arrived pictures of devices"),
    ("links", "the names of devices"),
    ("batches", "batches"),
    ("files", "files of batches"),
    ("holdfast.sock", "the socket of a trial"),
];
/// The lock's name in the folder.
const LOCK: &str = "holdfast.lock";

/// One thing in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where.
    pub path: PathBuf,
    /// What it is, for people; `None` where it is none of ours and stays.
    pub what: Option<&'static str>,
    /// How much it takes on the disk, in bytes.
    pub bytes: u64,
}

/// What is there; with `really` everything of ours is removed. Refuses beside a live daemon.
pub fn reset(settings: &Settings, really: bool) -> Result<Vec<Item>, SupervisorError> {
    let folder = &settings.gateway.data_dir;
    let _held = spool::hold(folder).map_err(SupervisorError::of_spool)?;
    let failed = |error: std::io::Error| SupervisorError::of_spool(SpoolError::from(error));
    let items = items(folder).map_err(failed)?;
    if really {
        for item in items.iter().filter(|item| item.what.is_some()) {
            remove(&item.path).map_err(failed)?;
        }
        if let Ok(folder) = fs::File::open(folder) {
            folder.sync_all().map_err(failed)?;
        }
    }
    Ok(items)
}

fn items(folder: &Path) -> std::io::Result<Vec<Item>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut items = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name != LOCK {
            let what = KEPT.iter().find(|(kept, _)| *kept == name).map(|(_, what)| *what);
            items.push(Item { bytes: size(&path), path, what });
        }
    }
    items.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(items)
}

/// Links are not followed: what they point to is not ours.
fn size(path: &Path) -> u64 {
    let Ok(about) = fs::symlink_metadata(path) else { return 0 };
    if !about.is_dir() {
        return about.len();
    }
    fs::read_dir(path).map_or(0, |entries| entries.flatten().map(|entry| size(&entry.path())).sum())
}

fn remove(path: &Path) -> std::io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_goes_and_links_are_not_followed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("theirs"), "12345").unwrap();
        fs::create_dir(dir.path().join("bodies")).unwrap();
        fs::write(dir.path().join("bodies/a"), "123").unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("cache")).unwrap();
        fs::write(dir.path().join("letters"), "").unwrap();
        fs::write(dir.path().join("spool.db.v1"), "").unwrap();
        fs::write(dir.path().join(LOCK), "").unwrap();
        let found = items(dir.path()).unwrap();
        let told: Vec<_> = found.iter().map(|item| (item.what.is_some(), item.path.file_name().unwrap())).collect();
        let wanted = [(true, "bodies"), (true, "cache"), (false, "letters"), (true, "spool.db.v1")];
        assert_eq!(told, wanted.map(|(is_ours, name)| (is_ours, name.as_ref())));
        assert_eq!(found[0].bytes, 3);
        found.iter().filter(|item| item.what.is_some()).for_each(|item| remove(&item.path).unwrap());
        assert!(other.path().join("theirs").exists() && dir.path().join("letters").exists());
        assert_eq!(items(dir.path()).unwrap().len(), 1);
    }
}
