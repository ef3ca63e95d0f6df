//! While a salvage is under way: who has to wait for it, which numbers are given out, what is brought back first.

use super::damage::{hold, killed, salvaged_all, spoil};
use super::devices::{LINK, UID, answer_next, number, of_device};
use super::*;
use crate::control::types::State;
use crate::spool::{SpoolError, quarantine, rescue};

#[tokio::test]
async fn what_is_done_for_a_device_waits_too_where_its_request_is_behind() {
    let (_dir, spool) = fresh();
    let here = take(&spool, NewRequest { policy: Policy::Local, ..of_device(number(1), 1) }).await.seq;
    let both = take(&spool, of_device(number(2), 1)).await.seq;
    let over = answer_next(&spool).await;
    assert_eq!((here, both, over), (1, 2, 2));
    let both = take(&spool, of_device(number(3), 1)).await.seq;
    hold(&spool, &[1, 2, 3]).await;
    assert_eq!(spool.handed_over(LINK, UID, over).await, Err(SpoolError::Salvaging));
    assert_eq!(spool.settle_here(here, answered("x")).await, Err(SpoolError::Salvaging));
    assert_eq!(spool.record_local_first(both, local("x")).await, Err(SpoolError::Salvaging));
    let start = (String::new(), 0);
    assert_eq!(spool.local_work(LINK, start.clone(), false).await.unwrap(), None, "nobody is to begin in vain");
    hold(&spool, &[]).await;
    assert_eq!(spool.local_work(LINK, start, false).await.unwrap().unwrap().seq, here);
    spool.handed_over(LINK, UID, over).await.unwrap();
    assert!(spool.settle_here(here, answered("x")).await.unwrap());
    assert!(spool.record_local_first(both, local("x")).await.unwrap());
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_number_that_only_a_damaged_log_holds_is_not_given_out_again() {
    let (_dir, spool) = fresh();
    take(&spool, request("early")).await;
    spool.look(|store| crate::spool::open::checkpoint(&store.conn)).await.unwrap();
    let last = take(&spool, of_device(number(9), 1)).await.seq;
    let dir = killed(&spool).await;
    let wal = files::wal(dir.path());
    let first = 32 + 24 + 100;
    let byte = std::fs::read(&wal).unwrap()[first];
    spoil(&wal, first, &[byte ^ 1]);
    // A set that the disk does not give: nothing comes back that would show which numbers are taken.
    quarantine::keep_log(dir.path()).unwrap();
    let log = quarantine::log(&dir.path().join("quarantine/1"));
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    let spool = open(options(dir.path())).unwrap();
    let new = take(&spool, request("new")).await.seq;
    assert!(new > last, "{new} was told to a device before");
}

#[tokio::test]
async fn after_a_second_damage_no_number_of_the_time_between_is_given_out_again() {
    let (dir, spool) = fresh();
    take(&spool, request("a")).await;
    drop(spool);
    let mut last = 0;
    for id in ["b", "c", "d"] {
        spoil(&files::database(dir.path()), 0, &[0; 100]);
        let spool = open(options(dir.path())).unwrap();
        let seq = take(&spool, of_device(number(9 + last), 1)).await.seq;
        assert!(seq > last, "{id}: {seq} was given out before");
        last = seq;
        salvaged_all(&spool, dir.path()).await;
        spool.close().await;
    }
}

#[tokio::test]
async fn an_outcome_waits_for_its_row_without_any_trouble_of_the_storage() {
    let (_dir, spool) = fresh();
    spool.pretend_salvage(77, true).await;
    assert_eq!(spool.settle(77, answered("paid")).await, Err(SpoolError::Salvaging));
    spool.pretend_salvage(77, false).await;
    spool.settle(77, answered("paid")).await.unwrap();
}

#[test]
fn the_newest_set_is_brought_back_first_and_a_log_after_its_database() {
    let dir = tempfile::tempdir().unwrap();
    let sets: Vec<_> = (1..=4).map(|n| dir.path().join(n.to_string())).collect();
    for (set, name) in sets.iter().zip(["spool.db", "excerpt.db", "spool.db", "excerpt.db"]) {
        std::fs::create_dir(set).unwrap();
        std::fs::write(set.join(name), b"").unwrap();
    }
    let order: Vec<_> = rescue::in_order(sets.clone()).iter().map(|set| sets.iter().position(|s| s == set)).collect();
    assert_eq!(order, [2, 0, 3, 1].map(Some));
}

/// The folder as a double damage leaves it: two whole sets, none of them salvaged, and no database.
fn twice(older: &Path, newer: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bodies")).unwrap();
    for (n, from) in [(1, older), (2, newer)] {
        let set = dir.path().join(format!("quarantine/{n}"));
        std::fs::create_dir_all(&set).unwrap();
        std::fs::copy(files::database(from), set.join("spool.db")).unwrap();
        std::fs::write(set.join("salvage.due"), b"").unwrap();
    }
    dir
}

#[tokio::test]
async fn an_older_copy_of_a_row_that_is_lost_in_the_newer_set_is_sent_with_its_label_only() {
    let (dir, spool) = fresh();
    let id = "req_0123456789abcdef0123456789abcdef";
    take(&spool, request(id)).await;
    spool.close().await;
    drop(spool);
    let older = tempfile::tempdir().unwrap();
    super::damage::copy(dir.path(), older.path());
    let spool = open(options(dir.path())).unwrap();
    assert_eq!(leased(&spool, 1).await, [id]);
    spool.close().await;
    drop(spool);
    // Its row, not the index: the endpoint follows behind the id.
    let path = files::database(dir.path());
    let bytes = std::fs::read(&path).unwrap();
    let row = |at: &usize| {
        bytes[*at..].starts_with(id.as_bytes()) && bytes[*at..][..120].windows(8).any(|text| text == b"/v1/chat")
    };
    let at = (0..bytes.len() - 120).find(row).unwrap();
    let behind = at + id.len() + 4;
    spoil(&path, behind, &[bytes[behind] ^ 0x10]);
    let twice = twice(older.path(), dir.path());
    let spool = open(options(twice.path())).unwrap();
    let mut out = Vec::new();
    salvaged_all(&spool, twice.path()).await;
    out.extend(spool.lease(9).await.unwrap());
    let out: Vec<_> = out.iter().map(|leased| (leased.id.as_str(), leased.maybe_billed)).collect();
    assert_eq!(out, [(id, true)]);
    assert_eq!(spool.get(id.into()).await.unwrap().unwrap().state, State::Sending);
    assert_counted(&spool).await;
}
