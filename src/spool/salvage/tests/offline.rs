//! Looking at a stopped spool: what is told, and that nothing is touched.

use std::collections::BTreeMap;
use std::path::Path;

use super::sample::{PAGE, Sample, options};
use crate::control::types::State;
use crate::spool::{Offline, SpoolError, files, open, outcomes, repair};

/// Every file of a folder with its bytes.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = ["", "bodies"].iter().flat_map(|below| std::fs::read_dir(dir.join(below)).unwrap());
    let files = files.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    files.map(|path| (path.display().to_string(), std::fs::read(path).unwrap())).collect()
}

fn check(dir: &Path) -> (Vec<(Option<u64>, &'static str)>, u64) {
    let (faults, rows) = Offline::take(dir).unwrap().check().unwrap();
    (faults.into_iter().map(|fault| (fault.seq, fault.what)).collect(), rows)
}

#[test]
fn a_sound_spool_is_in_order_and_stays_as_it_is() {
    for sample in [Sample::closed(40, 31), Sample::cut(40, 32)] {
        let dir = sample.folder(&sample.db, &sample.wal);
        let before = contents(dir.path());
        assert_eq!(check(dir.path()), (vec![], 40));
        let mut told = 0;
        let lost = Offline::take(dir.path()).unwrap().export(&mut |shown| {
            told += u64::from(sample.known.contains_key(&(shown.record.seq as i64)));
            true
        });
        assert_eq!((lost.unwrap(), told), (vec![], 40));
        assert_eq!(contents(dir.path()), before);
    }
}

#[test]
fn what_is_not_in_order_is_told_and_nothing_is_touched() {
    let sample = Sample::closed(40, 33);
    let mut db = sample.db.clone();
    // A body of which one bit is flipped: SQLite's own check sees nothing.
    let (seq, known) = sample.known.iter().find(|(_, k)| k.body.as_ref().is_some_and(|b| b.len() > 300)).unwrap();
    let start = &known.body.as_ref().unwrap()[..64];
    let at = db.windows(64).position(|window| window == start).unwrap();
    db[at + 5] ^= 4;
    let dir = sample.folder(&db, &[]);
    let body = std::fs::read_dir(files::bodies(dir.path())).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&body, b"other bytes").unwrap();
    std::fs::write(files::bodies(dir.path()).join("1-00"), b"nobody's").unwrap();
    let before = contents(dir.path());
    let (faults, rows) = check(dir.path());
    assert_eq!((faults.len(), rows), (3, 40), "{faults:?}");
    assert!(faults.contains(&(Some(*seq as u64), "body")) && faults.contains(&(None, "file")));
    assert_eq!(contents(dir.path()), before);
}

#[test]
fn a_counter_that_lies_is_told() {
    let sample = Sample::closed(20, 34);
    let dir = sample.folder(&sample.db, &[]);
    let conn = rusqlite::Connection::open(files::database(dir.path())).unwrap();
    conn.execute_batch("PRAGMA journal_mode=DELETE; UPDATE service SET queued = queued + 1").unwrap();
    drop(conn);
    assert_eq!(check(dir.path()).0, [(None, "counter")]);
}

#[test]
fn a_wiped_header_is_told_and_everything_is_exported() {
    let sample = Sample::closed(40, 35);
    let mut db = sample.db.clone();
    db[..100].fill(0);
    let dir = sample.folder(&db, &[]);
    let before = contents(dir.path());
    let (faults, rows) = check(dir.path());
    assert_eq!((faults, rows), (vec![(None, "structure")], 40));
    let mut bodies = 0;
    let lost = Offline::take(dir.path()).unwrap().export(&mut |shown| {
        bodies += usize::from(shown.body.is_some());
        true
    });
    assert_eq!(lost.unwrap(), []);
    assert_eq!(bodies, sample.known.values().filter(|k| k.keeps_body()).count());
    assert_eq!(contents(dir.path()), before);
}

#[test]
fn a_live_daemon_is_not_disturbed_and_a_newer_spool_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    let none = Offline::take(dir.path()).unwrap_err();
    assert!(none.to_string().contains("there is no spool"), "{none}");
    let spool = open(options(dir.path())).unwrap();
    assert_eq!(Offline::take(dir.path()).unwrap_err(), SpoolError::Busy);
    drop(spool);
    let conn = rusqlite::Connection::open(files::database(dir.path())).unwrap();
    conn.execute_batch("PRAGMA user_version=99; CREATE TABLE later (x)").unwrap();
    drop(conn);
    let offline = Offline::take(dir.path()).unwrap();
    assert!(matches!(offline.check().unwrap_err(), SpoolError::Newer { found: 99, .. }));
}

#[test]
fn what_only_the_log_holds_and_what_the_ends_deny_is_named() {
    let sample = Sample::cut(40, 36);
    let mut wal = sample.wal.clone();
    // SQLite stops at the first frame that does not hold, so everything behind it would be dropped.
    wal[32 + 24 + 100] ^= 1;
    let dir = sample.folder(&sample.db, &wal);
    let (faults, rows) = check(dir.path());
    assert_eq!(rows, 40);
    assert!(faults.iter().filter(|(seq, what)| seq.is_some() && *what == "log").count() > 20, "{faults:?}");
    // A file from before the ends: waiting rows whose ends are in the log of ends.
    let early = Sample::cut(10, 37);
    let dir = early.folder(&early.db, &early.wal);
    let (seq, known) = early.known.iter().find(|(_, k)| k.values[3] == rusqlite::types::Value::Integer(0)).unwrap();
    let rusqlite::types::Value::Text(id) = known.values[1].clone() else { panic!("an id is text") };
    let line = outcomes::Line { seq: *seq as u64, id, state: Some(State::Answered), version: 1 << 20 };
    outcomes::Outcomes::open(&options(dir.path())).unwrap().append(&[line], 1).unwrap();
    assert_eq!(check(dir.path()).0, [(Some(*seq as u64), "outcome")]);
}

#[test]
fn repair_makes_a_new_database_that_is_in_order() {
    let sample = Sample::closed(40, 38);
    let mut db = sample.db.clone();
    for page in (6..db.len() / PAGE).step_by(5) {
        db[page * PAGE..page * PAGE + 64].fill(0xff);
    }
    let dir = sample.folder(&db, &[]);
    assert!(!check(dir.path()).0.is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(repair(options(dir.path()))).unwrap();
    let (faults, rows) = check(dir.path());
    assert_eq!(faults, []);
    assert!(rows >= 30, "{rows} of 40 are on record");
    assert_eq!(std::fs::read(dir.path().join("quarantine/1/spool.db")).unwrap(), db);
}
