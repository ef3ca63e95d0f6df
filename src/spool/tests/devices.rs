//! What a device may rely on: keys are known as long as it may repeat them, results wait for it, mailboxes remember.

use super::damage::{salvaged_all, spoil};
use super::*;
use crate::control::types::State;
use crate::spool::record::{Ask, Asked, DeviceKey, NewDevice};
use crate::spool::{SpoolError, device};

pub(super) const LINK: &str = "link:plc";
pub(super) const UID: &str = "0a0b0c0d";

pub(super) fn of_device(key: DeviceKey, content: u8) -> NewRequest {
    let device = NewDevice {
        uid: UID.to_owned(),
        key,
        content: [content; 32],
        wants_result: true,
        ask: Ask::Task(7),
        max_reply: 200,
    };
    let id = format!("req_{:016x}", crate::clock::random_u64());
    NewRequest { label: Some(UID.to_owned()), device: Some(device), ..from(LINK, &id) }
}

pub(super) fn number(key: u64) -> DeviceKey {
    DeviceKey::Number(key)
}

pub(super) async fn answer_next(spool: &Spool) -> u64 {
    let seq = spool.lease(1).await.unwrap()[0].seq;
    spool.settle(seq, answered("yes")).await.unwrap();
    seq
}

#[tokio::test]
async fn a_key_names_one_content_and_outlives_its_request() {
    let (_dir, spool) = fresh_with(|o| o.keep_results_ms = 1_000);
    let first = take(&spool, of_device(number(5), 1)).await;
    assert!(!first.existing);
    let again = take(&spool, of_device(number(5), 1)).await;
    assert_eq!((again.seq, again.existing, again.finished), (first.seq, true, false));
    let reused = spool.accept(of_device(number(5), 2)).await;
    assert!(matches!(reused, Err(SpoolError::KeyReused)), "{reused:?}");
    let seq = answer_next(&spool).await;
    assert!(!take(&spool, of_device(number(5), 1)).await.finished, "its result is still to be handed over");
    spool.handed_over(LINK, UID, seq).await.unwrap();
    assert!(take(&spool, of_device(number(5), 1)).await.finished);
    spool.advance(2_000);
    spool.sweep().await.unwrap();
    assert!(spool.device_request(LINK, UID, seq).await.unwrap().is_none(), "pruned");
    assert!(take(&spool, of_device(number(5), 1)).await.finished);
    assert_eq!(spool.device_key(LINK, UID, number(5)).await.unwrap(), Asked::Finished);
    let lower = take(&spool, of_device(number(4), 1)).await;
    assert!(!lower.existing, "a lower key that never came is still welcome");
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_compacted_key_stays_as_the_highest_of_its_epoch() {
    let (_dir, spool) = fresh_with(|o| o.keep_results_ms = 1_000);
    for key in [0x7_0000_0003, 0x7_0000_0009] {
        take(&spool, of_device(number(key), 1)).await;
        let seq = answer_next(&spool).await;
        spool.handed_over(LINK, UID, seq).await.unwrap();
    }
    take(&spool, of_device(DeviceKey::Text("a-1".into()), 1)).await;
    let seq = answer_next(&spool).await;
    spool.handed_over(LINK, UID, seq).await.unwrap();
    spool.advance(2_000);
    spool.sweep().await.unwrap();
    spool.advance(8 * 24 * HOUR);
    spool.sweep().await.unwrap();
    let left = spool.look(|store| device::keys(&store.conn)).await.unwrap();
    assert_eq!(left, 0, "folded");
    for (key, finished) in
        [(0x7_0000_0009, true), (0x7_0000_0008, true), (0x7_0000_000a, false), (0x8_0000_0001, false)]
    {
        let found = spool.device_key(LINK, UID, number(key)).await.unwrap();
        assert_eq!(found == Asked::Finished, finished, "{key:x}");
    }
    let word = spool.device_key(LINK, UID, DeviceKey::Text("a-1".into())).await.unwrap();
    assert_eq!(word, Asked::Unknown, "words have no order");
}

#[tokio::test]
async fn a_mailbox_tells_a_repeat_from_the_next_round() {
    let (dir, spool) = fresh();
    let slot = |seq| of_device(DeviceKey::Mailbox { slot: 2, seq }, 1);
    let first = take(&spool, slot(65_535)).await;
    assert!(take(&spool, slot(65_535)).await.existing);
    let second = take(&spool, slot(1)).await;
    let third = take(&spool, slot(65_535)).await;
    assert!(!second.existing && !third.existing && third.seq > second.seq && second.seq > first.seq);
    spool.close().await;
    drop(spool);
    let spool = open(options(dir.path())).unwrap();
    let known = spool.mailboxes(LINK).await.unwrap();
    assert_eq!((known[0].slot, known[0].seq, known[0].request), (2, 65_535, third.seq));
    assert!(take(&spool, slot(65_535)).await.existing);
}

#[tokio::test]
async fn results_wait_in_order_until_they_are_handed_over() {
    let (_dir, spool) = fresh_with(|o| o.keep_results_bytes = 1);
    for key in [1, 2] {
        take(&spool, of_device(number(key), 1)).await;
    }
    assert!(spool.undelivered(LINK, UID, 9).await.unwrap().is_empty());
    let seqs = [answer_next(&spool).await, answer_next(&spool).await];
    spool.sweep().await.unwrap();
    let waiting = spool.undelivered(LINK, UID, 9).await.unwrap();
    assert_eq!(waiting.iter().map(|r| r.seq).collect::<Vec<_>>(), seqs, "not pruned for room");
    assert_eq!((waiting[0].ask, waiting[0].max_reply, waiting[0].key.clone()), (Ask::Task(7), 200, Some(number(1))));
    spool.handed_over(LINK, UID, seqs[0]).await.unwrap();
    assert_eq!(
        (spool.device_open(LINK, UID).await.unwrap(), spool.undelivered(LINK, UID, 9).await.unwrap().len()),
        (1, 1)
    );
    spool.sweep().await.unwrap();
    assert!(spool.device_request(LINK, UID, seqs[0]).await.unwrap().is_none(), "handed over, it may go");
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_number_means_something_to_its_own_device_only() {
    let (_dir, spool) = fresh();
    take(&spool, of_device(number(1), 1)).await;
    let seq = answer_next(&spool).await;
    let other = take(&spool, request("of nobody's device")).await.seq;
    for (source, uid) in [(LINK, "0a0b0c0e"), ("link:other", UID), ("uid:1000", UID)] {
        assert_eq!(spool.device_request(source, uid, seq).await.unwrap(), None, "{source} {uid}");
        spool.handed_over(source, uid, seq).await.unwrap();
    }
    assert_eq!(spool.device_request(LINK, UID, other).await.unwrap(), None);
    assert_eq!(spool.undelivered(LINK, UID, 9).await.unwrap().len(), 1, "still to be handed over");
    spool.handed_over(LINK, UID, seq).await.unwrap();
    assert!(spool.device_request(LINK, UID, seq).await.unwrap().unwrap().handed_over);
}

#[tokio::test]
async fn what_only_the_local_model_may_answer_is_never_handed_out() {
    let (dir, spool) = fresh();
    let here = take(&spool, NewRequest { policy: Policy::Local, ..of_device(number(1), 1) }).await;
    let both = take(&spool, of_device(number(2), 1)).await;
    assert_eq!(spool.tally().ready, 1);
    assert_counted(&spool).await;
    spool.close().await;
    drop(spool);
    let spool = open(options(dir.path())).unwrap();
    assert_eq!(spool.lease(9).await.unwrap().iter().map(|l| l.seq).collect::<Vec<_>>(), [both.seq]);
    let start = (String::new(), 0);
    assert_eq!(spool.local_work(LINK, start.clone(), true).await.unwrap().unwrap().seq, here.seq);
    let after = (UID.to_owned(), here.seq);
    assert_eq!(spool.local_work(LINK, after, false).await.unwrap().unwrap().seq, both.seq);
    assert!(!spool.settle_here(both.seq, answered("no")).await.unwrap(), "an uplink's");
    assert!(spool.settle_here(here.seq, answered("here")).await.unwrap());
    assert!(!spool.settle_here(here.seq, answered("twice")).await.unwrap());
    assert!(spool.record_local_first(both.seq, local("first")).await.unwrap());
    spool.settle(both.seq, answered("later")).await.unwrap();
    let waiting = spool.undelivered(LINK, UID, 9).await.unwrap();
    assert_eq!(
        waiting.iter().map(|r| (r.state, r.has_local)).collect::<Vec<_>>(),
        [(State::Answered, false), (State::Answered, true)]
    );
    assert!(!spool.record_local_first(here.seq, local("late")).await.unwrap(), "it ended before");
    assert_counted(&spool).await;
}

#[tokio::test]
async fn salvaged_it_stays_with_the_local_model() {
    let (dir, spool) = fresh();
    let here = NewRequest { policy: Policy::Local, ..of_device(number(1), 1) };
    let both = of_device(number(2), 1);
    let (here_id, both_id) = (here.id.clone(), both.id.clone());
    take(&spool, here).await;
    take(&spool, both).await;
    spool.close().await;
    drop(spool);
    spoil(&files::database(dir.path()), 0, &[0; 100]);
    let spool = open(options(dir.path())).unwrap();
    salvaged_all(&spool, dir.path()).await;
    assert_eq!(leased(&spool, 9).await, [both_id], "an uplink gets no more");
    assert_eq!(spool.tally().ready, 0);
    let work = spool.local_work(LINK, (String::new(), 0), true).await.unwrap();
    assert_eq!(work.map(|work| work.id), Some(here_id));
    assert_counted(&spool).await;
}

#[tokio::test]
async fn retried_by_hand_it_stays_with_the_local_model() {
    let (_dir, spool) = fresh();
    let new = NewRequest { policy: Policy::Local, ..of_device(number(1), 1) };
    let id = new.id.clone();
    take(&spool, new).await;
    spool.cancel(id.clone()).await.unwrap();
    assert_eq!(spool.retry(id).await.unwrap(), Some((State::Queued, true)));
    assert!(spool.lease(9).await.unwrap().is_empty());
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_device_that_makes_too_many_keys_loses_its_own() {
    let (_dir, spool) = fresh_with(|o| o.keep_results_ms = 1_000);
    take(&spool, of_device(number(5), 1)).await;
    let seq = answer_next(&spool).await;
    spool.handed_over(LINK, UID, seq).await.unwrap();
    spool.advance(2_000);
    spool.sweep().await.unwrap();
    let mut bad = of_device(number(1), 1);
    bad.source = "link:bad".to_owned();
    let bad = take(&spool, bad).await.seq;
    spool
        .change(move |store| {
            // Both later than the quiet device's own, and from two devices of one link.
            let keys = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 65790)
                INSERT INTO device_key SELECT source_id, iif(i % 8, 'ffff:', 'eeee:') || printf('%016x', i), 9000000000000
                FROM n, request WHERE seq = ?1";
            store.device_keys += store.conn.execute(keys, [bad as i64])? as u64;
            let epochs = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4196)
                INSERT INTO device_epoch SELECT source_id, 'ffff', i, 1, 1 FROM n, request WHERE seq = ?1";
            store.conn.execute(epochs, [bad as i64])?;
            let quiet = "INSERT INTO device_epoch SELECT source_id, ?1, 9, 9, 0 FROM source WHERE name = ?2";
            store.conn.execute(quiet, rusqlite::params![UID, LINK])?;
            Ok(())
        })
        .await
        .unwrap();
    spool.sweep().await.unwrap();
    let left = |what: &'static str| {
        spool.look(move |store| Ok(store.conn.query_row(what, [], |r| r.get::<_, i64>(0).map(|n| n as u64))?))
    };
    assert_eq!(left("SELECT count(*) FROM device_key").await.unwrap(), device::KEYS_MAX);
    assert_eq!(left("SELECT count(*) FROM device_epoch").await.unwrap(), device::EPOCHS_MAX);
    assert_eq!(left("SELECT count(*) FROM device_key WHERE key GLOB '0a0b*'").await.unwrap(), 1);
    assert_eq!(left("SELECT count(*) FROM device_epoch WHERE uid = '0a0b0c0d'").await.unwrap(), 1);
    assert_eq!(
        left("SELECT count(*) FROM device_key WHERE key GLOB 'eeee*'").await.unwrap(),
        8_224,
        "nor its neighbour's"
    );
    let folded = spool.device_key("link:bad", "ffff", number(1)).await.unwrap();
    assert_eq!(folded, Asked::Finished, "and what it loses is known as the highest of its epoch");
    assert_eq!(spool.device_key(LINK, UID, number(5)).await.unwrap(), Asked::Finished);
}
