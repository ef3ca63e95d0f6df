//! T18: a folder of each released shape becomes the present one, cut off at every call; an older program leaves a newer
//! one alone, byte for byte.
//!
//! The old folders are made from frozen SQL. Each migration runs under the recorder; each crash state of it is opened by the
//! present program and compared with what the old one had promised.

use std::path::Path;

use holdfast::plant::Fault;
use holdfast::spool::SpoolError;

use super::t02_replay::{Replay, record_in};
use crate::case::{Case, Effort, Outcome, Planted};
use crate::{driver, ledger::Ledger, old, process, shim};

pub const CASE: Case = Case {
    id: "T18",
    what: "upgrade cut off at each call; a newer file",
    faults: &[Planted::In(Fault::MigrateWithoutTransaction)],
    run,
};

fn run(effort: &Effort) -> Outcome {
    let folder = shim::memory_folder();
    let recorder = match shim::build("recorder", folder.path()) {
        Ok(recorder) => recorder,
        Err(outcome) => return outcome,
    };
    let mut states = 0;
    let mut calls = Vec::new();
    for version in old::VERSIONS {
        match upgrade(effort, &recorder, folder.path(), version) {
            Ok((of_it, its_calls)) => {
                states += of_it;
                calls.push(format!("{its_calls} calls from version {version}"));
            }
            Err(outcome) => return outcome,
        }
    }
    match newer(folder.path(), &folder.path().join("before-1")) {
        Ok(()) => Outcome::held(states, "states", format!("{}, {} requests each", calls.join(", "), old::ROWS)),
        Err(fault) => Outcome::Broken(fault),
    }
}

/// States and calls of the upgrade of one version; its folder as it was stays as `before-VERSION`.
fn upgrade(effort: &Effort, recorder: &Path, folder: &Path, version: u32) -> Result<(u64, usize), Outcome> {
    let at = folder.join(format!("old-{version}"));
    std::fs::create_dir(&at)
        .map_err(Into::into)
        .and_then(|()| old::make(&at, version))
        .map_err(|error| Outcome::Missing(format!("no old folder: {error}")))?;
    let told = Ledger::read(&std::fs::read_to_string(at.join("marks")).unwrap_or_default());
    let before = folder.join(format!("before-{version}"));
    process::copy_folder(&at.join("root"), &before).expect("a copy of the old folder");
    let broken = |fault| Outcome::Broken(format!("from version {version}: {fault} (seed {})", effort.seed));
    let events = record_in(recorder, &at, "upgrade", 0).map_err(broken)?;
    let calls = events.len();
    let whole = if version == 1 { first_or_new } else { second_or_new };
    let states = Replay::upgrade(effort, events, at, (&before, told), whole).all().map_err(broken)?;
    Ok((states, calls))
}

fn first_or_new(data: &Path) -> Result<(), String> {
    old_or_new(data, |version, has| version == 1 && !has.sums && has.lanes)
}

fn second_or_new(data: &Path) -> Result<(), String> {
    old_or_new(data, |version, has| version == 2 && has.sums && has.lanes)
}

/// A database is of the old version or of the new one, never between them: salvage would mend that, and hide it.
fn old_or_new(data: &Path, is_old: fn(u32, &Has) -> bool) -> Result<(), String> {
    // Looking at it folds the log in, so a copy is looked at.
    let copy = data.with_file_name("looked-at");
    process::copy_folder(data, &copy).map_err(|e| e.to_string())?;
    let shape = shape(&copy.join("spool.db")).map_err(|e| format!("the database cannot be read: {e}"));
    std::fs::remove_dir_all(&copy).map_err(|e| e.to_string())?;
    let (version, has) = shape?;
    let is_new = version == 3 && has.sums && !has.lanes;
    if is_new || is_old(version, &has) {
        Ok(())
    } else {
        Err(format!("between two versions: called {version}, {has:?}"))
    }
}

/// What tells the versions apart.
#[derive(Debug)]
struct Has {
    /// Brought by version 2.
    sums: bool,
    /// Taken away by version 3.
    lanes: bool,
}

/// The version a database says, and what it has.
fn shape(path: &Path) -> rusqlite::Result<(u32, Has)> {
    let conn = rusqlite::Connection::open(path)?;
    let version = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let sums = "SELECT count(*) = 2 FROM pragma_table_info('request') WHERE name IN ('version', 'sum')";
    let lanes = "SELECT count(*) > 0 FROM sqlite_schema WHERE name = 'lane' OR name = 'lane_turn'";
    let ask = |text: &str| conn.query_row(text, [], |row| row.get(0));
    Ok((version, Has { sums: ask(sums)?, lanes: ask(lanes)? }))
}

/// The version that a newer program would have written, in the header and only in the log: refused, nothing touched.
fn newer(folder: &Path, before: &Path) -> Result<(), String> {
    for logged in [false, true] {
        let at = folder.join(format!("newer-{logged}"));
        process::copy_folder(before, &at).map_err(|e| e.to_string())?;
        let data = at.join("data");
        // The locks and folders of a start are no part of what is compared.
        let _ = std::fs::write(data.join("holdfast.lock"), "");
        let _ = std::fs::create_dir(data.join("bodies"));
        raise(&data, logged).map_err(|e| format!("no newer folder: {e}"))?;
        let kept = contents(&data);
        match holdfast::spool::open(driver::options(&data)) {
            Err(SpoolError::Newer { .. }) => {}
            Err(error) => return Err(format!("a newer folder was called: {error}")),
            Ok(_) => return Err("a newer folder was opened".into()),
        }
        if contents(&data) != kept {
            return Err(format!("a newer folder was changed (version in the log only: {logged})"));
        }
    }
    Ok(())
}

fn raise(data: &Path, logged: bool) -> rusqlite::Result<()> {
    let conn = rusqlite::Connection::open(data.join("spool.db"))?;
    // A newer version changes a table; a number alone would be a flipped bit.
    conn.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA wal_checkpoint(TRUNCATE); CREATE TABLE later (a); PRAGMA user_version=99;",
    )?;
    if logged {
        // The log stays where this connection ends without folding it in.
        conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    }
    Ok(())
}

/// Every file with its bytes; the index of the log is memory that happens to be a file.
fn contents(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in entries.filter(|path| path.extension().is_none_or(|e| e != "db-shm")) {
        if path.is_dir() {
            found.extend(contents(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}
