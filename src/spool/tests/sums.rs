//! Sums of rows: kept by every write, and what follows where one is wrong.

use super::*;
use crate::control::types::State;

/// Changes a row behind the triggers' back, as a flipped bit would: `changes` holds none of the summed columns'
/// triggers, because the connection's own are dropped first and made again after.
pub(super) async fn damage(spool: &Spool, change: &'static str) {
    spool
        .look(move |store| {
            store.conn.execute_batch("DROP TRIGGER temp.request_changed")?;
            store.conn.execute_batch(change)?;
            let rest = ["answer_made", "answer_changed", "source_made", "source_changed"];
            for name in rest {
                store.conn.execute_batch(&format!("DROP TRIGGER temp.{name}"))?;
            }
            sum::watch(&store.conn)
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_row_that_was_changed_behind_our_back_is_never_sent() {
    let (_dir, spool) = fresh();
    for id in ["a", "b", "c"] {
        take(&spool, request(id)).await;
    }
    damage(&spool, "UPDATE request SET model = 'dearer' WHERE seq = 2").await;
    assert_eq!(leased(&spool, 9).await, ["a", "c"]);
    let record = spool.get("b".into()).await.unwrap().unwrap();
    assert_eq!((record.state, record.reason.as_deref()), (State::Dead, Some("damaged")));
    assert_eq!(spool.retry("b".into()).await.unwrap(), Some((State::Dead, false)), "not sent by hand either");
    assert!(leased(&spool, 9).await.is_empty());
    assert_counted(&spool).await;
}

#[tokio::test]
async fn versions_grow_with_every_change() {
    let (_dir, spool) = fresh();
    let seq = take(&spool, request("a")).await.seq;
    let version =
        || spool.look(|store| Ok(store.conn.query_row("SELECT version FROM request", [], |r| r.get::<_, i64>(0))?));
    let mut last = version().await.unwrap();
    for _ in 0..3 {
        spool.lease(1).await.unwrap();
        let sending = version().await.unwrap();
        spool.settle(seq, requeue(true, false, false)).await.unwrap();
        let queued = version().await.unwrap();
        assert!(last < sending && sending < queued);
        last = queued;
    }
    assert_counted(&spool).await;
}
