//! Damage and full disks: the service goes on, nothing damaged is thrown away, nothing ended is sent again.

use rusqlite::types::Value;

use super::*;
use crate::control::types::State;
use crate::spool::adopt::{Adopted, LostRow, SalvagedBody, SalvagedRow, adopt_lost, adopt_row};
use crate::spool::{Condition, SpoolError, quarantine, sum};

/// A row as the salvage will hand it over.
async fn salvaged(spool: &Spool, id: &'static str) -> SalvagedRow {
    spool
        .look(move |store| {
            let columns = sum::REQUEST[..29].join(", ");
            let text = format!(
                "SELECT {columns}, version, name, bytes FROM request JOIN source USING (source_id)
                LEFT JOIN body USING (seq) WHERE id = ?1"
            );
            let text = text.replacen("seq,", "request.seq,", 1);
            Ok(store.conn.query_row(&text, [id], |r| {
                let values = (0..29).map(|at| r.get::<_, Value>(at)).collect::<Result<_, _>>()?;
                let version = r.get::<_, i64>(29)? as u64;
                let bytes: Option<Vec<u8>> = r.get(31)?;
                let body = bytes.map_or(SalvagedBody::NotKept, SalvagedBody::Inline);
                Ok(SalvagedRow { values, version, superseded: false, source: r.get(30)?, body, answers: Vec::new() })
            })?)
        })
        .await
        .unwrap()
}

async fn adopted(spool: &Spool, row: SalvagedRow) -> Adopted {
    spool.change(move |store| adopt_row(store, &row)).await.unwrap()
}

fn spoil(path: &Path, at: usize, with: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at..at + with.len()].copy_from_slice(with);
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_wiped_header_stops_nothing_and_is_kept() {
    let (dir, spool) = fresh();
    for id in ["a", "b"] {
        take(&spool, request(id)).await;
    }
    spool.lease(1).await.unwrap();
    spool.settle(1, answered("yes")).await.unwrap();
    spool.close().await;
    drop(spool);
    let path = files::database(dir.path());
    spoil(&path, 0, &[0; 100]);
    let before = std::fs::read(&path).unwrap();
    let spool = open(options(dir.path())).unwrap();
    let set = dir.path().join("quarantine/1");
    assert_eq!(std::fs::read(set.join("spool.db")).unwrap(), before);
    let seq = take(&spool, request("new")).await.seq;
    assert!(seq > 1_000_000, "above whatever may come back: {seq}");
    salvaged_all(&spool, dir.path()).await;
    let mut back = leased(&spool, 9).await;
    back.sort();
    assert_eq!(back, ["b", "new"], "what waited is back, what ended is not sent again");
    let answer = spool.get("a".into()).await.unwrap().unwrap().uplink.unwrap().0;
    assert_eq!(&answer.body.in_one_piece().unwrap()[..], b"yes");
    assert!(set.join("report.jsonl").exists());
    assert_counted(&spool).await;
}

/// Waits until what was set aside is back and what was held back for it is free again.
async fn salvaged_all(spool: &Spool, dir: &Path) {
    let waited = tokio::time::timeout(std::time::Duration::from_secs(30), spool.salvaged());
    assert!(waited.await.unwrap().unwrap(), "the salvage stopped");
    assert!(quarantine::due(dir).is_empty());
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_loses_nothing() {
    let (dir, spool) = fresh();
    for n in 0..20 {
        take(&spool, request(&format!("r{n}"))).await;
    }
    let killed = tempfile::tempdir().unwrap();
    for name in ["spool.db", "spool.db-wal", "outcomes.log"] {
        std::fs::copy(dir.path().join(name), killed.path().join(name)).unwrap();
    }
    let wal = files::wal(killed.path());
    let middle = std::fs::metadata(&wal).unwrap().len() as usize / 2;
    let byte = std::fs::read(&wal).unwrap()[middle];
    spoil(&wal, middle, &[byte ^ 1]);
    let spool = open(options(killed.path())).unwrap();
    salvaged_all(&spool, killed.path()).await;
    let mut back = leased(&spool, 99).await;
    back.sort();
    let mut all: Vec<String> = (0..20).map(|n| format!("r{n}")).collect();
    all.sort();
    assert_eq!(back, all);
    assert_counted(&spool).await;
}

#[tokio::test]
async fn damage_met_while_running_stops_nothing() {
    let (dir, spool) = fresh();
    for n in 0..40 {
        take(&spool, with_body(&format!("r{n}"), vec![7; 3_000])).await;
    }
    spool.look(|store| crate::spool::open::checkpoint(&store.conn)).await.unwrap();
    let path = files::database(dir.path());
    let pages = std::fs::metadata(&path).unwrap().len() as usize / 4096;
    for page in 1..pages {
        spoil(&path, page * 4096, &[0xff; 64]);
    }
    spool.look(|store| Ok(store.conn.execute_batch("PRAGMA shrink_memory")?)).await.unwrap();
    let mut met = false;
    for n in 0..40 {
        met |= matches!(spool.get(format!("r{n}")).await, Err(SpoolError::Damaged(_)));
    }
    assert!(met, "the damage was met");
    take(&spool, request("new")).await;
    assert!(dir.path().join("quarantine/1/spool.db").exists());
    salvaged_all(&spool, dir.path()).await;
    assert!(leased(&spool, 99).await.contains(&"new".to_owned()));
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_log_without_its_database_is_laid_over_no_other() {
    let (dir, spool) = fresh();
    take(&spool, request("a")).await;
    let wal = files::wal(dir.path());
    let log = std::fs::read(&wal).unwrap();
    spool.close().await;
    drop(spool);
    std::fs::remove_file(files::database(dir.path())).unwrap();
    std::fs::write(&wal, log).unwrap();
    let spool = open(options(dir.path())).unwrap();
    assert!(dir.path().join("quarantine/1/spool.db-wal").exists());
    salvaged_all(&spool, dir.path()).await;
    assert_eq!(leased(&spool, 9).await, ["a"], "found in the log");
}

#[tokio::test]
async fn what_comes_back_is_queued_once_and_never_after_its_end() {
    let (_old, source) = fresh();
    for id in ["waits", "ends", "flies", "billed"] {
        take(&source, request(id)).await;
    }
    let early = salvaged(&source, "ends").await;
    let waits = salvaged(&source, "waits").await;
    let mut flies = salvaged(&source, "flies").await;
    flies.values[3] = Value::Integer(1);
    let mut billed = salvaged(&source, "billed").await;
    (billed.values[3], billed.values[7]) = (Value::Integer(1), Value::Integer(1));

    let (_dir, spool) = fresh_with(|o| o.max_requests = 50);
    take(&spool, NewRequest { leased: true, ..request("ends") }).await;
    spool.settle(1, answered("yes")).await.unwrap();
    spool.purge(State::Answered).await.unwrap();
    assert_eq!(adopted(&spool, early).await, Adopted::Ended, "its row is gone, its outcome is known");
    assert_eq!(adopted(&spool, waits.clone()).await, Adopted::Inserted);
    assert_eq!(adopted(&spool, waits.clone()).await, Adopted::Known);
    assert_eq!(adopted(&spool, flies).await, Adopted::Inserted);
    assert_eq!(adopted(&spool, billed).await, Adopted::Inserted);
    assert_counted(&spool).await;
    let back = spool.lease(9).await.unwrap();
    let back: Vec<_> = back.iter().map(|l| (l.id.as_str(), l.maybe_billed)).collect();
    assert_eq!(back, [("waits", false), ("flies", true)]);
    let record = spool.get("billed".into()).await.unwrap().unwrap();
    assert_eq!((record.state, record.reason.as_deref()), (State::Dead, Some("unknown")));
}

#[tokio::test]
async fn what_is_lost_is_on_record_and_what_is_behind_is_not_sent_as_if_new() {
    let (_old, source) = fresh();
    for id in ["bodiless", "doubtful", "over"] {
        take(&source, request(id)).await;
    }
    let mut bodiless = salvaged(&source, "bodiless").await;
    bodiless.body = SalvagedBody::Lost;
    let mut doubtful = salvaged(&source, "doubtful").await;
    doubtful.superseded = true;
    let over = salvaged(&source, "over").await;

    let (_dir, spool) = fresh();
    // The database went back to before the end of one; the log of ends did not.
    let seq = take(&spool, NewRequest { leased: true, ..request("over") }).await.seq;
    spool.settle(seq, answered("yes")).await.unwrap();
    spool.purge(State::Answered).await.unwrap();
    take(&spool, request("over")).await;
    assert_eq!(adopted(&spool, over).await, Adopted::Ended);
    take(&spool, request("doubtful")).await;
    assert_eq!(adopted(&spool, doubtful).await, Adopted::Known);
    assert_eq!(adopted(&spool, bodiless).await, Adopted::Inserted);
    let lost = |id: &str, seq| LostRow { seq, id: id.to_owned(), state: None };
    for (row, verdict) in [
        // Its number ended under its own name: this one is half noise.
        (lost("ovfr", seq), Adopted::Ended),
        (lost("gone", 77), Adopted::Inserted),
        (lost("gone", 77), Adopted::Known),
        (lost("doubtful", 2), Adopted::Known),
    ] {
        assert_eq!(spool.change(move |store| adopt_lost(store, &row)).await.unwrap(), verdict);
    }
    assert_counted(&spool).await;
    let out: Vec<_> = spool.lease(9).await.unwrap().iter().map(|l| (l.id.clone(), l.maybe_billed)).collect();
    assert_eq!(out, [("doubtful".to_owned(), true)]);
    for (id, state, billed) in
        [("bodiless", State::Dead, false), ("gone", State::Dead, true), ("over", State::Answered, false)]
    {
        let record = spool.get(id.into()).await.unwrap().unwrap();
        let seen = (record.state, record.reason.as_deref(), record.maybe_billed);
        assert_eq!(seen, (state, Some("damaged"), billed), "{id}");
    }
    assert_eq!(spool.retry("gone".into()).await.unwrap(), Some(State::Dead), "there is nothing to send");
}

#[tokio::test]
async fn what_was_queued_again_by_hand_may_come_back() {
    let (_old, source) = fresh();
    take(&source, request("a")).await;
    source.cancel("a".into()).await.unwrap();
    source.retry("a".into()).await.unwrap();
    let again = salvaged(&source, "a").await;
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    spool.cancel("a".into()).await.unwrap();
    assert_eq!(adopted(&spool, again).await, Adopted::Updated);
    assert_eq!(leased(&spool, 1).await, ["a"]);
    assert_counted(&spool).await;
}

#[tokio::test]
async fn the_scrub_finds_what_nobody_asked_for() {
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    super::sums::damage(&spool, "UPDATE request SET label = 'other' WHERE seq = 1").await;
    spool.sweep().await.unwrap();
    let record = spool.get("a".into()).await.unwrap().unwrap();
    assert_eq!((record.state, record.reason.as_deref()), (State::Dead, Some("damaged")));
    assert_counted(&spool).await;
}

/// Leaves `more` pages until the page cap.
async fn cap(spool: &Spool, more: i64) {
    spool
        .look(move |store| {
            let pages: i64 = store.conn.query_row("PRAGMA page_count", [], |r| r.get(0))?;
            Ok(store.conn.query_row(&format!("PRAGMA max_page_count={}", pages + more), [], |r| r.get::<_, i64>(0))?)
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn new_requests_stop_before_outcomes_do() {
    let (_dir, spool) = fresh();
    let seq = take(&spool, NewRequest { leased: true, ..request("paid") }).await.seq;
    cap(&spool, 200).await;
    assert_eq!(spool.accept(request("refused")).await, Err(SpoolError::DiskFull));
    spool.settle(seq, answered(vec![1; 60_000])).await.unwrap();
    assert_eq!(spool.tally().in_state(State::Answered), 1);
    assert_counted(&spool).await;
}

#[tokio::test]
async fn the_condition_follows_and_comes_back_by_itself() {
    let (dir, spool) = fresh();
    take(&spool, request("a")).await;
    assert_eq!(spool.condition(), Condition::Fine);
    let (failed, _) = tokio::join!(spool.fail_commit(), spool.commit_probe());
    assert!(failed.is_err());
    spool.sweep().await.unwrap();
    assert_eq!(spool.condition(), Condition::Fine);
    drop(spool);
    let mut options = options(dir.path());
    options.min_disk_free = u64::MAX;
    let spool = open(options).unwrap();
    assert_eq!(spool.accept(request("b")).await, Err(SpoolError::DiskFull));
    assert_eq!(spool.condition(), Condition::Full);
    let seq = spool.lease(1).await.unwrap()[0].seq;
    spool.settle(seq, answered("yes")).await.unwrap();
    assert_eq!(spool.condition(), Condition::Full, "a small write makes no room");
}
