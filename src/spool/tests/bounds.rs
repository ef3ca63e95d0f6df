//! Limits: what is refused, what makes room, what is pruned.

use super::*;
use crate::control::types::State;
use crate::spool::SpoolError;

#[tokio::test]
async fn each_limit_has_its_own_answer() {
    let (_dir, spool) = fresh_with(|o| (o.max_requests, o.per_source_backlog) = (3, 2));
    take(&spool, from("x", "a")).await;
    take(&spool, from("x", "b")).await;
    assert_eq!(spool.accept(from("x", "c")).await, Err(SpoolError::SourceFull));
    take(&spool, from("y", "d")).await;
    assert_eq!(spool.accept(from("y", "e")).await, Err(SpoolError::QueueFull));
    spool.cancel("a".into()).await.unwrap();
    take(&spool, from("y", "f")).await;
    assert_eq!(spool.retry("a".into()).await, Err(SpoolError::QueueFull));
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_nearly_full_disk_is_said_at_once() {
    let (_dir, spool) = fresh_with(|o| o.min_disk_free = u64::MAX);
    assert_eq!(spool.accept(request("a")).await, Err(SpoolError::DiskFull));
    assert_eq!(spool.tally().backlog(), 0);
}

#[tokio::test]
async fn less_urgent_work_makes_room_where_that_is_wanted() {
    let (_dir, spool) = fresh_with(|o| (o.max_requests, o.evict_when_full) = (3, true));
    take(&spool, urgent(Priority::Normal, "n")).await;
    take(&spool, urgent(Priority::Low, "l1")).await;
    take(&spool, urgent(Priority::Low, "l2")).await;
    assert_eq!(spool.accept(urgent(Priority::Low, "l3")).await, Err(SpoolError::QueueFull));
    take(&spool, urgent(Priority::Normal, "n2")).await;
    take(&spool, urgent(Priority::High, "h")).await;
    take(&spool, urgent(Priority::High, "h2")).await;
    assert_eq!(spool.tally().in_state(State::Evicted), 3);
    let told = spool.sweep().await.unwrap();
    assert_eq!(told.iter().map(|t| t.1.as_str()).collect::<Vec<_>>(), ["l1", "l2", "n"]);
    let record = spool.get("l1".into()).await.unwrap().unwrap();
    assert_eq!((record.state, record.reason.as_deref()), (State::Evicted, Some("queue_full")));
    assert_eq!(spool.retry("l1".into()).await.unwrap(), Some((State::Evicted, false)));
    assert_counted(&spool).await;
}

#[tokio::test]
async fn nothing_is_evicted_for_a_request_that_does_not_fit_anyway() {
    let (_dir, spool) = fresh_with(|o| (o.max_bytes, o.evict_when_full) = (10_000, true));
    take(&spool, NewRequest { priority: Priority::Low, ..with_body("l", vec![1; 4_000]) }).await;
    take(&spool, with_body("n", vec![1; 4_000])).await;
    let big = NewRequest { priority: Priority::Normal, ..with_body("big", vec![1; 7_000]) };
    assert_eq!(spool.accept(big).await, Err(SpoolError::QueueFull));
    assert_eq!(spool.tally().in_state(State::Queued), 2);
    assert!(spool.sweep().await.unwrap().is_empty());
    assert_counted(&spool).await;
}

#[tokio::test]
async fn results_go_before_new_work_is_refused() {
    let (_dir, spool) = fresh_with(|o| o.max_bytes = 10_000);
    let seq = take(&spool, request("a")).await.seq;
    spool.lease(1).await.unwrap();
    spool.settle(seq, answered(vec![1; 8_000])).await.unwrap();
    take(&spool, with_body("b", vec![1; 5_000])).await;
    assert!(spool.get("a".into()).await.unwrap().is_none());
    assert_eq!(spool.accept(with_body("c", vec![1; 6_000])).await, Err(SpoolError::QueueFull));
    assert_counted(&spool).await;
}

#[tokio::test]
async fn results_live_as_long_as_they_may() {
    let (_dir, spool) = fresh_with(|o| o.keep_results_bytes = 2_500);
    for id in ["a", "b", "c"] {
        let seq = take(&spool, request(id)).await.seq;
        spool.lease(1).await.unwrap();
        spool.settle(seq, answered(vec![1; 1_000])).await.unwrap();
        spool.advance(10);
    }
    spool.sweep().await.unwrap();
    assert!(spool.get("a".into()).await.unwrap().is_none());
    assert!(spool.get("b".into()).await.unwrap().is_some());
    spool.advance(HOUR);
    spool.sweep().await.unwrap();
    assert!(spool.get("c".into()).await.unwrap().is_none());
    assert_counted(&spool).await;
}

#[tokio::test]
async fn purging_takes_one_final_state() {
    let (_dir, spool) = fresh();
    for n in 0..600 {
        take(&spool, request(&format!("r{n}"))).await;
    }
    for n in 0..599 {
        spool.cancel(format!("r{n}")).await.unwrap();
    }
    assert_eq!(spool.purge(State::Queued).await.unwrap(), 0);
    assert_eq!(spool.purge(State::Cancelled).await.unwrap(), 599);
    assert_eq!(take(&spool, request("next")).await.seq, 601);
    assert_counted(&spool).await;
}

#[tokio::test]
async fn one_bad_row_does_not_fail_its_batch() {
    let (_dir, spool) = fresh();
    take(&spool, request("same")).await;
    let before = spool.tally().commits;
    let all = (0..64).map(|n| {
        let (spool, id) = (spool.clone(), if n % 8 == 0 { "same".to_owned() } else { format!("r{n}") });
        tokio::spawn(async move { spool.accept(request(&id)).await.is_ok() })
    });
    let mut accepted = 0;
    for one in all.collect::<Vec<_>>() {
        accepted += usize::from(one.await.unwrap());
    }
    assert_eq!(accepted, 56);
    assert!(spool.tally().commits - before < 64, "the fsync is shared");
    assert_counted(&spool).await;
}
