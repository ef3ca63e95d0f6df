//! Damage and full disks: the service goes on, nothing damaged is thrown away, nothing ended is sent again.

use rusqlite::types::Value;

use super::*;
use crate::control::types::State;
use crate::spool::adopt::{Adopted, LostRow, SalvagedBody, SalvagedRow, adopt_lost, adopt_row};
use crate::spool::behind::Behind;
use crate::spool::{Condition, SpoolError, quarantine, sum};

/// A row as the salvage will hand it over.
pub(super) async fn salvaged(spool: &Spool, id: &'static str) -> SalvagedRow {
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
                Ok(SalvagedRow {
                    values,
                    version,
                    superseded: false,
                    is_doubtful: false,
                    source: r.get(30)?,
                    body,
                    answers: Vec::new(),
                })
            })?)
        })
        .await
        .unwrap()
}

pub(super) async fn adopted(spool: &Spool, row: SalvagedRow) -> Adopted {
    spool.change(move |store| adopt_row(store, &row)).await.unwrap()
}

pub(super) fn spoil(path: &Path, at: usize, with: &[u8]) {
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
    spool.sweep().await.unwrap();
    assert!(set.exists(), "it is kept to be looked at");
    spool.advance(HOUR);
    spool.sweep().await.unwrap();
    assert!(!set.exists(), "its prompts are not kept longer than results");
    assert_counted(&spool).await;
}

/// Waits until what was set aside is back and what was held back for it is free again.
pub(super) async fn salvaged_all(spool: &Spool, dir: &Path) {
    // What the disk stopped is tried again.
    let whole = async { while !spool.salvaged().await.unwrap() {} };
    tokio::time::timeout(std::time::Duration::from_secs(30), whole).await.unwrap();
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

/// The folder as a kill leaves it, log and all: nothing is written while it is copied.
pub(super) async fn killed(spool: &Spool) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let path = to.path().to_owned();
    let copied = spool.look(move |store| {
        copy(&store.options.data_dir, &path);
        Ok(())
    });
    copied.await.unwrap();
    to
}

pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Flips a bit in the middle of the log.
fn flip_log(dir: &Path) {
    let wal = files::wal(dir);
    let bytes = std::fs::read(&wal).unwrap();
    spoil(&wal, bytes.len() / 2, &[bytes[bytes.len() / 2] ^ 1]);
}

/// Bodies are older than the log, and of several sizes; a third is on its way, twelve were answered.
async fn worked() -> (tempfile::TempDir, Vec<String>) {
    let (_dir, spool) = fresh();
    for n in 0..48 {
        take(&spool, with_body(&format!("req_{n:02}"), vec![n; 100 + 400 * usize::from(n)])).await;
    }
    let local_answer = spool.record_local(30, local("from here")).await;
    local_answer.unwrap();
    spool.look(|store| crate::spool::open::checkpoint(&store.conn)).await.unwrap();
    for _ in 0..14 {
        let leased = spool.lease(1).await.unwrap().remove(0);
        if leased.seq <= 12 {
            spool.settle(leased.seq, answered("yes")).await.unwrap();
        }
    }
    (killed(&spool).await, (12..48).map(|n| format!("req_{n:02}")).collect())
}

#[tokio::test]
async fn a_damaged_log_is_kept_once_however_often_a_start_is_killed() {
    let (dir, waiting) = worked().await;
    flip_log(dir.path());
    let mut dirs = vec![dir];
    for n in 0..6 {
        let dir = dirs.last().unwrap().path();
        let spool = open(options(dir)).unwrap();
        if n % 2 == 0 {
            spool.commit_probe().await.unwrap();
        }
        let next = killed(&spool).await;
        let sets = std::fs::read_dir(next.path().join("quarantine")).unwrap().count();
        assert_eq!(sets, 1, "the same log was copied again after {n} kills");
        dirs.push(next);
    }
    let dir = dirs.last().unwrap().path();
    let spool = open(options(dir)).unwrap();
    salvaged_all(&spool, dir).await;
    let mut out = spool.lease(99).await.unwrap();
    out.sort_by_key(|leased| leased.seq);
    let ids: Vec<&str> = out.iter().map(|leased| leased.id.as_str()).collect();
    assert_eq!(ids, waiting, "what was answered is not sent, the rest is, bodies and all");
    assert!(out.iter().all(|leased| leased.maybe_billed == (leased.seq <= 14)), "what was on its way is labelled");
    let kept = spool.get("req_29".into()).await.unwrap().unwrap().local.unwrap().0;
    assert_eq!(&kept.body[..], b"from here");
    assert_counted(&spool).await;
}

#[tokio::test]
async fn an_excerpt_waits_for_its_own_database_where_that_is_set_aside_too() {
    let (dir, waiting) = worked().await;
    flip_log(dir.path());
    quarantine::keep_log(dir.path()).unwrap();
    // As if the start had gone on, been killed, and its database had been damaged then.
    let path = files::database(dir.path());
    spoil(&path, 0, &[0; 100]);
    std::fs::remove_file(files::wal(dir.path())).unwrap();
    let spool = open(options(dir.path())).unwrap();
    assert!(dir.path().join("quarantine/1/excerpt.db").exists() && dir.path().join("quarantine/2/spool.db").exists());
    salvaged_all(&spool, dir.path()).await;
    let mut out = leased(&spool, 99).await;
    out.sort();
    assert_eq!(out, waiting);
    assert_counted(&spool).await;
}

/// A small file system in memory, gone when dropped; `None` without the right to mount one.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount(bytes: u64) -> Option<Disk> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mut mount = std::process::Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        done.is_ok_and(|output| output.status.success()).then_some(Disk(dir))
    }

    /// Takes all room but this.
    fn fill(&self, but: u64) {
        let mut file = std::fs::File::create(self.0.path().join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        let full = file.metadata().unwrap().len();
        file.set_len(full - but).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn no_lack_of_room_for_a_copy_stops_a_start() {
    // With the reserve the log is copied; without it there is room for a new database only.
    for with_reserve in [true, false] {
        let Some(disk) = Disk::mount(24 << 20) else {
            println!("SKIPPED: no file system of its own could be mounted; run this as root");
            return;
        };
        let (worked, waiting) = worked().await;
        flip_log(worked.path());
        let log = std::fs::metadata(files::wal(worked.path())).unwrap().len();
        let dir = disk.0.path().join("data");
        copy(worked.path(), &dir);
        if !with_reserve {
            std::fs::remove_file(dir.join("ballast")).unwrap();
        }
        let left = if with_reserve { 0 } else { 200 << 10 };
        assert!(log > left + (50 << 10), "{log}");
        disk.fill(left);
        let spool = open(options(&dir)).unwrap();
        assert!(dir.join("quarantine/1").exists());
        assert_eq!(dir.join("quarantine/1/excerpt.db").exists(), with_reserve);
        if !with_reserve {
            assert!(!spool.salvaged().await.unwrap(), "it waits for room");
            assert!(leased(&spool, 99).await.iter().all(|id| waiting.contains(id)));
            std::fs::remove_file(disk.0.path().join("filler")).unwrap();
        }
        salvaged_all(&spool, &dir).await;
        let mut back = Vec::new();
        for id in &waiting {
            let state = spool.get(id.clone()).await.unwrap().unwrap().state;
            back.push((state != State::Dead).then_some(id));
        }
        assert!(back.iter().all(Option::is_some), "{back:?}");
        assert_eq!(spool.tally().in_state(State::Answered), 12);
        assert_counted(&spool).await;
    }
}

/// These are behind from now on.
pub(super) async fn hold(spool: &Spool, seqs: &'static [u64]) {
    let held = spool.look(|store| {
        store.rescue.behind = Behind::of(seqs);
        Ok(())
    });
    held.await.unwrap();
}

#[tokio::test]
async fn what_is_behind_is_changed_by_nobody_until_the_salvage_has_spoken() {
    let (_dir, spool) = fresh_with(|o| (o.evict_when_full, o.max_requests, o.keep_results_ms) = (true, 6, 1_000));
    for id in ["ends", "waits", "deferred", "over", "other", "evicted"] {
        take(&spool, NewRequest { ttl_ms: if id == "ends" { 10 } else { HOUR }, ..urgent(Priority::Low, id) }).await;
    }
    spool.cancel("over".into()).await.unwrap();
    take(&spool, urgent(Priority::Normal, "new")).await;
    hold(&spool, &[1, 2, 3, 4]).await;
    for id in ["ends", "waits", "over"] {
        assert_eq!(spool.cancel(id.into()).await, Err(SpoolError::Salvaging), "{id}");
        assert_eq!(spool.retry(id.into()).await, Err(SpoolError::Salvaging), "{id}");
    }
    assert_eq!(spool.purge(State::Cancelled).await, Err(SpoolError::Salvaging));
    spool.advance(2_000);
    spool.sweep().await.unwrap();
    let state = async |id: &str| spool.get(id.into()).await.unwrap().map(|record| record.state);
    assert_eq!(state("ends").await, Some(State::Queued), "not expired yet");
    assert_eq!(state("over").await, Some(State::Cancelled), "not pruned yet");
    take(&spool, urgent(Priority::Critical, "urgent")).await;
    assert_eq!(state("other").await, Some(State::Evicted), "older ones are held back");
    super::sums::damage(&spool, "UPDATE request SET label = 'x' WHERE seq = 2").await;
    assert_eq!(spool.get("waits".into()).await.unwrap_err(), SpoolError::Salvaging);
    spool.look(|store| Ok(store.conn.execute("UPDATE request SET label = NULL WHERE seq = 2", [])?)).await.unwrap();
    assert_eq!(leased(&spool, 9).await, ["urgent", "new", "evicted"]);
    hold(&spool, &[]).await;
    spool.sweep().await.unwrap();
    assert_eq!(state("ends").await, Some(State::Expired));
    assert_eq!(state("over").await, None);
    assert_eq!(spool.cancel("deferred".into()).await, Ok(Some((State::Cancelled, true))));
}

#[tokio::test]
async fn while_a_log_cannot_be_read_only_what_is_newer_moves() {
    let (dir, waiting) = worked().await;
    flip_log(dir.path());
    quarantine::keep_log(dir.path()).unwrap();
    let log = quarantine::log(&dir.path().join("quarantine/1"));
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    let spool = open(options(dir.path())).unwrap();
    assert!(!spool.salvaged().await.unwrap(), "it is tried again later");
    take(&spool, request("req_new")).await;
    assert_eq!(leased(&spool, 99).await, ["req_new"]);
    assert_eq!(spool.cancel(waiting[20].clone()).await, Err(SpoolError::Salvaging));
    // It is given up at last: what waits goes on, labelled, because nothing says that it never left.
    salvaged_all(&spool, dir.path()).await;
    let mut out = spool.lease(99).await.unwrap();
    out.sort_by_key(|leased| leased.seq);
    let ids: Vec<&str> = out.iter().map(|leased| leased.id.as_str()).collect();
    assert_eq!(ids, waiting);
    assert!(out.iter().all(|leased| leased.maybe_billed));
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
    let pages = std::fs::metadata(&path).unwrap().len() as usize / PAGE;
    for page in 1..pages {
        spoil(&path, page * PAGE, &[0xff; 64]);
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
    let lost = |id: &str, seq| LostRow { seq, id: id.to_owned(), state: None, is_doubtful: false };
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
    assert_eq!(spool.retry("gone".into()).await.unwrap(), Some((State::Dead, false)), "there is nothing to send");
}

/// A master that saw no acknowledgement writes its order again, maybe before the salvage has come to the first one.
#[tokio::test]
async fn an_order_of_a_mailbox_that_was_written_again_is_not_sent_twice() {
    use super::devices::of_device;
    use crate::spool::record::DeviceKey;
    let order = |id: &str| NewRequest { id: id.into(), ..of_device(DeviceKey::Mailbox { slot: 0, seq: 6 }, 1) };
    let (_old, source) = fresh();
    take(&source, order("first")).await;
    let first = salvaged(&source, "first").await;
    let (_dir, spool) = fresh();
    // Other requests came meanwhile, so that its turn is another.
    take(&spool, request("other")).await;
    take(&spool, order("again")).await;
    assert_eq!(adopted(&spool, first.clone()).await, Adopted::Inserted);
    let record = spool.get("first".into()).await.unwrap().unwrap();
    assert_eq!((record.state, record.reason.as_deref()), (State::Dead, Some("duplicate")));
    assert_eq!(leased(&spool, 9).await.len(), 2, "the other one and one of both orders");
    assert_counted(&spool).await;
    // Without the second writing it is queued.
    let (_dir, spool) = fresh();
    assert_eq!(adopted(&spool, first).await, Adopted::Inserted);
    assert_eq!(leased(&spool, 9).await, ["first"]);
}

/// A power cut between a frame's header and its page leaves a page of an earlier generation of the log there, and with
/// it the names of requests that were pruned since.
#[tokio::test]
async fn a_pruned_request_does_not_come_back_by_a_torn_frame() {
    let (_dir, spool) = fresh();
    let seq = take(&spool, NewRequest { leased: true, ..request("pruned") }).await.seq;
    spool.settle(seq, answered("yes")).await.unwrap();
    let row = SalvagedRow { is_doubtful: true, ..salvaged(&spool, "pruned").await };
    spool.purge(State::Answered).await.unwrap();
    let torn = |id: &str, seq| LostRow { seq, id: id.to_owned(), state: None, is_doubtful: true };
    for (row, verdict) in [(torn("pruned", seq), Adopted::Ended), (torn("never ended", 77), Adopted::Inserted)] {
        assert_eq!(spool.change(move |store| adopt_lost(store, &row)).await.unwrap(), verdict);
    }
    assert_eq!(adopted(&spool, row.clone()).await, Adopted::Ended, "a row is no better than a name there");
    assert!(spool.get("pruned".into()).await.unwrap().is_none());
    let sound = SalvagedRow { is_doubtful: false, ..row };
    assert_eq!(adopted(&spool, sound).await, Adopted::Inserted, "from a whole frame it was lost, and says so");
    assert_counted(&spool).await;
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
            store.asked.page_cap = None;
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

#[tokio::test]
async fn without_its_row_of_counters_a_database_is_salvaged() {
    let (dir, spool) = fresh();
    let name = format!("req_{:032x}", 7);
    take(&spool, request(&name)).await;
    spool.close().await;
    let conn = rusqlite::Connection::open(files::database(dir.path())).unwrap();
    conn.execute_batch("DELETE FROM service").unwrap();
    drop(conn);
    let spool = open(options(dir.path())).unwrap();
    take(&spool, request("new")).await;
    assert!(spool.salvaged().await.unwrap());
    assert_eq!(leased(&spool, 9).await, [name.as_str(), "new"]);
    assert_counted(&spool).await;
}
