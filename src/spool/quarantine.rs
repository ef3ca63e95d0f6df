//! Where damaged files go, so that new work is not stopped and nothing readable is thrown away.
//!
//! Owns `quarantine/<n>/` and the order in which names come and go there: a set has its name once it is complete and
//! synced, and before anything is taken from the data folder. Never reads a row.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use super::{SpoolError, files, salvage};

/// Sets kept; older ones go, but only those that were salvaged.
const SETS_MAX: usize = 2;
/// Says that a set was not salvaged yet.
const DUE: &str = "salvage.due";
/// Says in powered-on milliseconds when a set was.
const DONE: &str = "salvage.done";
/// A set's files: the database as a whole or the pages of it that its log is read with, and the log.
const WHOLE: &str = "spool.db";
const EXCERPT: &str = "excerpt.db";
const LOG: &str = "spool.db-wal";
/// Ends the name of a folder that is not a set yet.
const UNFINISHED: &str = "new";

/// The database of a set, or what there is of it.
pub(super) fn database(set: &Path) -> PathBuf {
    set.join(if is_excerpt(set) { EXCERPT } else { WHOLE })
}

/// The log of a set; not each has one.
pub(super) fn log(set: &Path) -> PathBuf {
    set.join(LOG)
}

/// Whether the database that belongs to a set's log stayed in use.
pub(super) fn is_excerpt(set: &Path) -> bool {
    set.join(EXCERPT).exists()
}

/// Takes the database and its log out of the data folder into a set of their own, due to be salvaged. Needs no room for
/// them. Nothing may have them open.
pub(super) fn set_aside(data_dir: &Path) -> Result<(), SpoolError> {
    let from = [files::database(data_dir), files::wal(data_dir)];
    let linked = make(data_dir, |set| {
        for (from, name) in from.iter().zip([WHOLE, LOG]).filter(|(from, _)| from.exists()) {
            std::fs::hard_link(from, set.join(name))?;
        }
        Ok(())
    });
    if linked.is_err() {
        // Not every file system knows second names.
        return take_over(data_dir);
    }
    // The database first: a log without its database is known for what it is, the other way round is not.
    for path in &from {
        remove(path)?;
    }
    files::sync_dir(data_dir)?;
    forget(data_dir, SETS_MAX);
    Ok(())
}

/// The same by renaming. Where that ended in the middle before, the log goes after its database.
fn take_over(data_dir: &Path) -> Result<(), SpoolError> {
    let (db, wal) = (files::database(data_dir), files::wal(data_dir));
    let gone = std::fs::metadata(&db).map_or(0, |m| m.len()) == 0;
    let halfway = due(data_dir).pop().filter(|set| gone && !is_excerpt(set) && !log(set).exists());
    let set = halfway.map_or_else(|| make(data_dir, |_| Ok(())), Ok)?;
    if !gone {
        std::fs::rename(&db, set.join(WHOLE))?;
        for dir in [&set, data_dir] {
            files::sync_dir(dir)?;
        }
    }
    if wal.exists() {
        std::fs::rename(&wal, log(&set))?;
    }
    for dir in [&set, data_dir] {
        files::sync_dir(dir)?;
    }
    Ok(())
}

/// Keeps a copy of a damaged log beside, with the few pages that it is to be read with, while the database stays in use.
/// A log of which another set has all that SQLite will drop is not copied again.
pub(super) fn keep_log(data_dir: &Path) -> Result<(), SpoolError> {
    let (db, wal) = (files::database(data_dir), files::wal(data_dir));
    for (_, set) in sets(data_dir) {
        if salvage::is_dropped_in(&wal, &log(&set))? {
            return Ok(());
        }
    }
    make(data_dir, |set| {
        std::fs::copy(&wal, log(set))?;
        File::open(log(set))?.sync_all()?;
        salvage::excerpt::write(&db, &wal, &set.join(EXCERPT))
    })?;
    forget(data_dir, SETS_MAX);
    Ok(())
}

/// Makes a set: complete, synced, and due to be salvaged before it has its name.
fn make(data_dir: &Path, fill: impl FnOnce(&Path) -> Result<(), SpoolError>) -> Result<PathBuf, SpoolError> {
    let (folder, next) = (folder(data_dir), sets(data_dir).last().map_or(1, |(n, _)| n + 1));
    let (new, set) = (folder.join(format!("{next}.{UNFINISHED}")), folder.join(next.to_string()));
    clear(&folder);
    let done = (|| {
        DirBuilder::new().recursive(true).mode(0o700).create(&new)?;
        fill(&new)?;
        files::private().create(true).truncate(false).open(new.join(DUE))?.sync_all()?;
        files::sync_dir(&new)?;
        std::fs::rename(&new, &set)?;
        files::sync_dir(&folder)?;
        files::sync_dir(data_dir)
    })();
    if done.is_err() {
        clear(&folder);
    }
    done.map(|()| set)
}

/// Removes what never became a set: copies and second names only.
fn clear(folder: &Path) {
    let paths = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in paths.filter(|path| path.extension().is_some_and(|end| end == UNFINISHED)) {
        let _ = std::fs::remove_dir_all(path);
    }
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

/// The number of a set: a newer one has a higher.
pub(super) fn number(set: &Path) -> u64 {
    set.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0)
}

/// The number of the newest set; 0 where there is none.
pub(super) fn newest(data_dir: &Path) -> u64 {
    sets(data_dir).last().map_or(0, |(n, _)| *n)
}

/// Sets that wait to be salvaged, oldest first.
pub(super) fn due(data_dir: &Path) -> Vec<PathBuf> {
    sets(data_dir).into_iter().map(|(_, path)| path).filter(|path| is_due(path)).collect()
}

/// A disk that does not answer says nothing about a set: it counts as not salvaged.
fn is_due(set: &Path) -> bool {
    !matches!(set.join(DUE).try_exists(), Ok(false))
}

/// A set was salvaged: from now on it is kept only to be looked at.
pub(super) fn done(data_dir: &Path, set: &Path, powered_ms: u64) -> Result<(), SpoolError> {
    date(set, powered_ms)?;
    remove(&set.join(DUE))?;
    files::sync_dir(set)?;
    forget(data_dir, SETS_MAX);
    Ok(())
}

fn date(set: &Path, powered_ms: u64) -> Result<(), SpoolError> {
    let file = files::private().create(true).truncate(true).open(set.join(DONE))?;
    file.write_all_at(format!("{powered_ms}\n").as_bytes(), 0)?;
    Ok(file.sync_all()?)
}

/// Removes sets whose salvage ended `keep_ms` ago: they hold prompts, and results are not kept longer either. In
/// powered-on time, because a board without a clock dates files as it likes.
pub(super) fn expire(data_dir: &Path, now_ms: u64, keep_ms: u64) {
    for (_, set) in sets(data_dir).iter().filter(|(_, set)| !is_due(set)) {
        let date_of = std::fs::read_to_string(set.join(DONE)).ok().and_then(|text| text.trim().parse::<u64>().ok());
        match date_of.and_then(|date| now_ms.checked_sub(date)) {
            Some(age) if age >= keep_ms => {
                tracing::info!(set = %set.display(), "a salvaged set has had its time and is removed");
                let _ = std::fs::remove_dir_all(set);
            }
            Some(_) => {}
            // Without a date, or with one that this clock has not reached: its time begins now.
            None => drop(date(set, now_ms)),
        }
    }
}

/// Removes all sets that were salvaged: somebody needs the room more.
pub(super) fn make_room(data_dir: &Path) {
    forget(data_dir, 0);
}

/// Removes the oldest sets beyond `kept`. What was not salvaged stays, however old.
fn forget(data_dir: &Path, kept: usize) {
    for (_, path) in sets(data_dir).iter().rev().skip(kept).filter(|(_, path)| !is_due(path)) {
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

    /// A data folder whose database and log hold these bytes.
    fn with(dir: &Path, db: &[u8], log: &[u8]) {
        std::fs::write(files::database(dir), db).unwrap();
        std::fs::write(files::wal(dir), log).unwrap();
    }

    #[test]
    fn two_sets_are_kept_and_none_that_was_not_salvaged_goes() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..4u8 {
            with(dir.path(), &[n], &[n, n]);
            set_aside(dir.path()).unwrap();
            assert!(!files::database(dir.path()).exists() && !files::wal(dir.path()).exists());
        }
        let made = due(dir.path());
        assert_eq!(made.len(), 4);
        for set in &made {
            done(dir.path(), set, 0).unwrap();
        }
        assert!(due(dir.path()).is_empty());
        assert!(!made[0].exists() && !made[1].exists());
        assert_eq!(std::fs::read(database(&made[2])).unwrap(), [2]);
        assert_eq!(std::fs::read(log(&made[3])).unwrap(), [3, 3]);
    }

    #[test]
    fn a_salvaged_set_goes_in_time_and_another_one_never() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..2u8 {
            with(dir.path(), &[n], &[n]);
            set_aside(dir.path()).unwrap();
        }
        let [first, second] = &due(dir.path())[..] else { panic!("two sets") };
        done(dir.path(), first, 5_000).unwrap();
        for (now, is_there) in [(5_000, true), (5_999, true), (6_000, false)] {
            expire(dir.path(), now, 1_000);
            assert_eq!((first.exists(), second.exists()), (is_there, true), "{now}");
        }
        // Dated as a clock that went back would see it, or not at all.
        for text in ["9000000", "none", ""] {
            done(dir.path(), second, 0).unwrap();
            std::fs::write(second.join(DONE), text).unwrap();
            expire(dir.path(), 7_000, 1_000);
            expire(dir.path(), 7_999, 1_000);
            assert!(second.exists(), "its time began when it was first seen");
        }
        expire(dir.path(), 8_000, 1_000);
        assert!(!second.exists());
    }

    #[test]
    fn what_did_not_become_a_set_is_none() {
        let dir = tempfile::tempdir().unwrap();
        with(dir.path(), &[1], &[2]);
        let no_room = make(dir.path(), |set| {
            std::fs::write(set.join(WHOLE), [1])?;
            Err(SpoolError::DiskFull)
        });
        assert_eq!(no_room, Err(SpoolError::DiskFull));
        assert!(due(dir.path()).is_empty());
        assert_eq!(std::fs::read_dir(folder(dir.path())).unwrap().count(), 0, "nothing is left of it");
    }

    #[test]
    fn without_second_names_both_files_go_by_their_first_even_if_the_power_goes_between() {
        let dir = tempfile::tempdir().unwrap();
        with(dir.path(), &[1], &[2]);
        let log_of_it = std::fs::read(files::wal(dir.path())).unwrap();
        std::fs::remove_file(files::wal(dir.path())).unwrap();
        take_over(dir.path()).unwrap();
        // The power went; the next start made an empty database and found the log.
        with(dir.path(), &[], &log_of_it);
        take_over(dir.path()).unwrap();
        let [set] = &due(dir.path())[..] else { panic!("one set") };
        assert_eq!((std::fs::read(database(set)).unwrap(), std::fs::read(log(set)).unwrap()), (vec![1], vec![2]));
        with(dir.path(), &[3], &[4]);
        take_over(dir.path()).unwrap();
        assert_eq!(due(dir.path()).len(), 2);
    }
}
