//! What devices rely on comes back from a damaged file: spent keys, results that were taken, mailboxes.

use super::damage::{adopted, salvaged, salvaged_all, spoil};
use super::devices::{LINK, UID, answer_next, number, of_device};
use super::*;
use crate::spool::adopt::Adopted;
use crate::spool::record::{Asked, DeviceKey};

const DAY: u64 = 24 * HOUR;

fn slot(slot: u8, seq: u16) -> NewRequest {
    of_device(DeviceKey::Mailbox { slot, seq }, 1)
}

/// Stores, answers and hands over.
async fn done(spool: &Spool, new: NewRequest) -> u64 {
    take(spool, new).await;
    let seq = answer_next(spool).await;
    spool.handed_over(LINK, UID, seq).await.unwrap();
    seq
}

/// A closed spool with every mark there is: a folded key, a spent one, a taken result, one that waits, two mailboxes.
async fn marked() -> (tempfile::TempDir, [u64; 4]) {
    let (dir, spool) = fresh_with(|o| o.keep_results_ms = 1_000);
    done(&spool, of_device(number(0x7_0000_0009), 1)).await;
    for ms in [2_000, 8 * DAY] {
        spool.advance(ms);
        spool.sweep().await.unwrap();
    }
    done(&spool, of_device(number(5), 1)).await;
    let pruned = done(&spool, slot(2, 9)).await;
    spool.advance(2_000);
    spool.sweep().await.unwrap();
    assert!(spool.device_request(LINK, UID, pruned).await.unwrap().is_none());
    let taken = done(&spool, of_device(number(6), 1)).await;
    take(&spool, of_device(number(8), 1)).await;
    let owed = answer_next(&spool).await;
    let waits = take(&spool, slot(1, 3)).await.seq;
    spool.close().await;
    (dir, [pruned, taken, owed, waits])
}

#[tokio::test]
async fn every_mark_of_a_device_comes_back() {
    let (dir, [pruned, taken, owed, waits]) = marked().await;
    spoil(&files::database(dir.path()), 0, &[0; 100]);
    let spool = open(options(dir.path())).unwrap();
    salvaged_all(&spool, dir.path()).await;
    let key = async |key| spool.device_key(LINK, UID, number(key)).await.unwrap();
    assert_eq!(key(5).await, Asked::Finished, "pruned a moment ago");
    assert_eq!((key(0x7_0000_0008).await, key(0x7_0000_000a).await), (Asked::Finished, Asked::Unknown), "its epoch");
    let Asked::Found(found) = key(6).await else { panic!("a result that was taken is on record") };
    assert!(found.handed_over && found.seq == taken);
    assert_eq!(spool.undelivered(LINK, UID, 9).await.unwrap().iter().map(|r| r.seq).collect::<Vec<_>>(), [owed]);
    let known = spool.mailboxes(LINK).await.unwrap();
    assert_eq!(known.iter().map(|m| (m.slot, m.seq, m.request)).collect::<Vec<_>>(), [(1, 3, waits), (2, 9, pruned)]);
    for again in [of_device(number(5), 1), of_device(number(6), 1), slot(1, 3), slot(2, 9)] {
        assert!(take(&spool, again).await.existing);
    }
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_flipped_digit_makes_no_other_key_a_spent_one() {
    let (dir, _) = marked().await;
    let path = files::database(dir.path());
    let bytes = std::fs::read(&path).unwrap();
    let text = format!("{UID}:{:016x}", 5);
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(text.as_bytes())).collect();
    assert!(places.len() >= 2, "in its table and in an index: {places:?}");
    for place in places {
        std::fs::remove_dir_all(dir.path().join("quarantine")).ok();
        std::fs::remove_file(files::wal(dir.path())).ok();
        std::fs::write(&path, &bytes).unwrap();
        spoil(&path, 0, &[0; 100]);
        spoil(&path, place + text.len() - 1, b"7");
        let spool = open(options(dir.path())).unwrap();
        salvaged_all(&spool, dir.path()).await;
        assert_eq!(spool.device_key(LINK, UID, number(7)).await.unwrap(), Asked::Unknown, "at {place}");
    }
}

#[tokio::test]
async fn an_older_number_of_a_mailbox_takes_no_newer_ones_place() {
    let (_old, source) = fresh();
    for seq in 1..=4 {
        take(&source, slot(2, seq)).await;
    }
    let id = source.device_request(LINK, UID, 4).await.unwrap().unwrap().id;
    let row = salvaged(&source, id.leak()).await;
    let (_dir, spool) = fresh();
    // As after a damage: above whatever may come back.
    let leap = spool.look(|store| {
        store.counts.next_seq = 1 << 20;
        Ok(())
    });
    leap.await.unwrap();
    let new = take(&spool, slot(2, 9)).await.seq;
    assert_eq!(adopted(&spool, row).await, Adopted::Inserted);
    let known = spool.mailboxes(LINK).await.unwrap();
    assert_eq!(known.iter().map(|m| (m.seq, m.request)).collect::<Vec<_>>(), [(9, new)]);
    assert!(take(&spool, slot(2, 9)).await.existing && !take(&spool, slot(2, 4)).await.existing);
    assert_counted(&spool).await;
}
