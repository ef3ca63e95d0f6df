//! A request's life: acceptance, order, leases, outcomes.

use futures_util::FutureExt;

use super::*;
use crate::control::types::State;
use crate::spool::SpoolError;
use crate::spool::record::Filter;

#[tokio::test]
async fn what_was_accepted_comes_back_as_it_was() {
    let (_dir, spool) = fresh();
    let new = NewRequest { label: Some("press 3".into()), ..request("a") };
    let body = new.body.in_one_piece().unwrap();
    assert_eq!(take(&spool, new).await, Accepted { id: "a".into(), seq: 1, existing: false, finished: false });
    let record = spool.get("a".into()).await.unwrap().unwrap();
    assert_eq!((record.state, record.label.as_deref(), record.attempts), (State::Queued, Some("press 3"), 0));
    assert!(record.ttl_left_ms > HOUR - 60_000);
    assert_eq!(spool.body("a".into()).await.unwrap(), Some(body.clone()));
    let lease = spool.lease(8).await.unwrap().remove(0);
    assert_eq!(
        (lease.body.in_one_piece(), lease.idempotency_key.as_str(), lease.maybe_billed),
        (Some(body), "a", false)
    );
    assert_counted(&spool).await;
}

#[tokio::test]
async fn an_answer_is_kept_and_the_body_freed() {
    let (_dir, spool) = fresh();
    let seq = take(&spool, request("a")).await.seq;
    spool.lease(1).await.unwrap();
    spool.settle(seq, answered("yes")).await.unwrap();
    spool.record_local(seq, local("maybe")).await.unwrap();
    let record = spool.get("a".into()).await.unwrap().unwrap();
    let (uplink, local) = (record.uplink.unwrap().0, record.local.unwrap().0);
    assert_eq!((&uplink.body.in_one_piece().unwrap()[..], &local.body[..]), (&b"yes"[..], &b"maybe"[..]));
    assert_eq!((uplink.uplink.as_str(), uplink.usage.unwrap().completion_tokens), ("cloud", 5));
    assert_eq!((record.state, record.ttl_left_ms), (State::Answered, 0));
    assert_eq!(spool.body("a".into()).await.unwrap(), None);
    assert_counted(&spool).await;
}

#[tokio::test]
async fn only_the_first_outcome_counts() {
    let (_dir, spool) = fresh();
    let seq = take(&spool, request("a")).await.seq;
    spool.settle(seq, answered("never leased")).await.unwrap();
    assert_eq!(spool.tally().in_state(State::Queued), 1);
    spool.lease(1).await.unwrap();
    spool.settle(seq, answered("first")).await.unwrap();
    spool.settle(seq, dead()).await.unwrap();
    spool.settle(seq, requeue(true, false, true)).await.unwrap();
    let record = spool.get("a".into()).await.unwrap().unwrap();
    assert_eq!(
        (record.state, &record.uplink.unwrap().0.body.in_one_piece().unwrap()[..]),
        (State::Answered, &b"first"[..])
    );
    assert_counted(&spool).await;
}

#[tokio::test]
async fn urgent_first_then_sources_in_turn_then_age() {
    let (_dir, spool) = fresh();
    for n in 0..6 {
        take(&spool, from("flood", &format!("f{n}"))).await;
    }
    for n in 0..2 {
        take(&spool, from("quiet", &format!("q{n}"))).await;
    }
    take(&spool, urgent(Priority::Critical, "c")).await;
    take(&spool, urgent(Priority::Low, "l")).await;
    assert_eq!(leased(&spool, 4).await, ["c", "f0", "q0", "f1"]);
    assert_eq!(leased(&spool, 9).await, ["q1", "f2", "f3", "f4", "f5", "l"]);
    assert!(leased(&spool, 9).await.is_empty());
}

#[tokio::test]
async fn a_deferred_request_waits_for_its_release() {
    let (_dir, spool) = fresh();
    let (a, b) = (take(&spool, request("a")).await.seq, take(&spool, request("b")).await.seq);
    spool.lease(2).await.unwrap();
    spool.settle(a, requeue(true, true, true)).await.unwrap();
    spool.settle(b, requeue(false, false, false)).await.unwrap();
    assert_eq!(spool.tally().ready, 1);
    assert_eq!(leased(&spool, 9).await, ["b"]);
    spool.release(vec![a, b, 99]).await.unwrap();
    let lease = spool.lease(9).await.unwrap().remove(0);
    assert_eq!((lease.id.as_str(), lease.attempts, lease.maybe_billed), ("a", 1, true));
    assert_counted(&spool).await;
}

#[tokio::test]
async fn one_key_makes_one_request_per_source() {
    let (_dir, spool) = fresh();
    let keyed = |source: &str, id: &str| NewRequest { idempotency_key: Some("k".into()), ..from(source, id) };
    let same = NewRequest { body: request("a").body, ..keyed("x", "b") };
    assert!(!take(&spool, keyed("x", "a")).await.existing);
    assert_eq!(take(&spool, same).await, Accepted { id: "a".into(), seq: 1, existing: true, finished: false });
    assert_eq!(spool.accept(keyed("x", "c")).await, Err(SpoolError::KeyReused));
    assert!(!take(&spool, keyed("y", "d")).await.existing);
    assert_eq!(spool.lease(1).await.unwrap()[0].idempotency_key, "k");
}

#[tokio::test]
async fn cancelling_spares_what_is_being_sent() {
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    take(&spool, request("b")).await;
    spool.lease(1).await.unwrap();
    let cancel = |id: &str| spool.cancel(id.to_owned());
    assert_eq!(cancel("a").await.unwrap(), Some((State::Sending, false)));
    assert_eq!(cancel("b").await.unwrap(), Some((State::Cancelled, true)));
    assert_eq!(cancel("b").await.unwrap(), Some((State::Cancelled, false)));
    assert_eq!(cancel("z").await.unwrap(), None);
    assert!(leased(&spool, 9).await.is_empty());
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_dead_letter_can_be_tried_again_as_if_new() {
    let (_dir, spool) = fresh();
    let seq = take(&spool, request("a")).await.seq;
    spool.lease(1).await.unwrap();
    spool.settle(seq, requeue(true, false, false)).await.unwrap();
    spool.lease(1).await.unwrap();
    let refusal = Settlement::Dead { reason: "r".into(), error: error(), answer: Some(answer(vec![7; 100_000])) };
    spool.settle(seq, refusal).await.unwrap();
    let record = spool.get("a".into()).await.unwrap().unwrap();
    assert_eq!((record.state, record.reason.as_deref()), (State::Dead, Some("r")));
    assert_eq!(record.uplink.unwrap().0.body.len(), 64 * 1024);
    assert_eq!(spool.retry("a".into()).await.unwrap(), Some((State::Queued, true)));
    assert_eq!(spool.lease(1).await.unwrap()[0].attempts, 0);
    spool.settle(seq, answered("late")).await.unwrap();
    assert_eq!(spool.retry("a".into()).await.unwrap(), Some((State::Answered, false)));
    assert_counted(&spool).await;
}

#[tokio::test]
async fn what_may_have_been_billed_says_so_also_when_it_is_tried_again_by_hand() {
    let (_dir, spool) = fresh();
    let seq = take(&spool, request("a")).await.seq;
    spool.lease(1).await.unwrap();
    spool.settle(seq, Settlement::Dead { reason: "unknown".into(), error: error(), answer: None }).await.unwrap();
    assert!(spool.get("a".into()).await.unwrap().unwrap().maybe_billed);
    assert_eq!(spool.retry("a".into()).await.unwrap(), Some((State::Queued, true)));
    assert!(spool.lease(1).await.unwrap()[0].maybe_billed);
}

#[tokio::test]
async fn time_ends_what_waits_and_not_what_is_being_sent() {
    let (_dir, spool) = fresh();
    let seq = take(&spool, request("a")).await.seq;
    spool.lease(1).await.unwrap();
    take(&spool, request("b")).await;
    assert!(spool.sweep().await.unwrap().is_empty());
    spool.advance(HOUR);
    assert_eq!(spool.sweep().await.unwrap(), [(2, "b".to_owned(), State::Expired)]);
    spool.settle(seq, requeue(false, false, false)).await.unwrap();
    assert!(leased(&spool, 1).await.is_empty(), "an overdue request is not sent even before a sweep");
    assert_eq!(spool.sweep().await.unwrap(), [(1, "a".to_owned(), State::Expired)]);
    assert_eq!(spool.retry("b".into()).await.unwrap(), Some((State::Queued, true)));
    assert_eq!(leased(&spool, 1).await, ["b"]);
    assert_counted(&spool).await;
}

#[tokio::test]
async fn listings_ascend_and_filter() {
    let (_dir, spool) = fresh();
    for n in 0..9 {
        take(&spool, from(if n % 3 == 0 { "x" } else { "y" }, &format!("r{n}"))).await;
    }
    spool.cancel("r3".into()).await.unwrap();
    spool.cancel("r4".into()).await.unwrap();
    let seqs = |state, source: Option<&str>, after, limit| {
        let filter = Filter { state, source: source.map(str::to_owned), after, limit };
        let spool = spool.clone();
        async move { spool.list(filter).await.unwrap().iter().map(|r| r.seq).collect::<Vec<_>>() }
    };
    assert_eq!(seqs(None, None, 0, 3).await, [1, 2, 3]);
    assert_eq!(seqs(None, Some("x"), 1, 9).await, [4, 7]);
    assert_eq!(seqs(Some(State::Cancelled), None, 0, 9).await, [4, 5]);
    assert_eq!(seqs(Some(State::Queued), Some("x"), 0, 9).await, [1, 7]);
    assert!(seqs(None, Some("nobody"), 0, 9).await.is_empty());
    assert_eq!(spool.get("r5".into()).await.unwrap().unwrap().position, 3);
}

#[tokio::test]
async fn a_position_is_the_number_of_those_that_stand_before() {
    let (_dir, spool) = fresh();
    // More than are counted from behind, so that both ways of counting are taken.
    for n in 0..600 {
        let priority = [Priority::Normal, Priority::High, Priority::Normal, Priority::Low][n % 4];
        let source = ["x", "y", "z"][n % 3].to_owned();
        take(&spool, NewRequest { source, ..urgent(priority, &format!("r{n}")) }).await;
    }
    // Leased ones stand no longer in the queue, deferred ones do not stand before anybody.
    for (n, leased) in spool.lease(40).await.unwrap().into_iter().enumerate() {
        if n % 4 == 0 {
            spool.settle(leased.seq, requeue(true, true, false)).await.unwrap();
        }
    }
    spool.cancel("r597".into()).await.unwrap();
    let rows = "SELECT r.id, (SELECT count(*) FROM request b WHERE b.state = 0 AND b.deferred = 0
        AND (b.priority, b.seq) < (r.priority, r.seq)) FROM request r WHERE r.state = 0";
    let real: Vec<(String, i64)> = spool
        .look(|store| {
            let mut statement = store.conn.prepare(rows)?;
            let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
        .unwrap();
    assert!(real.len() > 500);
    let mut before_of = std::collections::HashMap::new();
    for (id, before) in real {
        assert_eq!(spool.get(id.clone()).await.unwrap().unwrap().position, before as u64, "{id}");
        before_of.insert(id, before as u64);
    }
    // Pages, of all and of one source, say the same.
    for (state, source) in [(None, None), (Some(State::Queued), None), (Some(State::Queued), Some("y".to_owned()))] {
        let mut after = 0;
        loop {
            let filter = Filter { state, source: source.clone(), after, limit: 70 };
            let page = spool.list(filter).await.unwrap();
            for record in &page {
                let before = before_of.get(&record.id).copied().unwrap_or(0);
                assert_eq!(record.position, before, "{} of {source:?}", record.id);
            }
            let Some(last) = page.last() else { break };
            after = last.seq;
        }
    }
}

#[tokio::test]
async fn a_lease_nobody_received_is_given_back() {
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    let (go, wait) = std::sync::mpsc::channel::<()>();
    // Holds the thread, so that the lease cannot arrive before its caller is gone.
    assert!(spool.look(move |_| Ok(wait.recv().is_ok())).now_or_never().is_none());
    assert!(spool.lease(1).now_or_never().is_none());
    go.send(()).unwrap();
    let mut got = Vec::new();
    for _ in 0..100 {
        got.extend(leased(&spool, 1).await);
    }
    assert_eq!(got, ["a"]);
}

#[tokio::test]
async fn who_broke_off_finds_the_request_again() {
    let (_dir, spool) = fresh();
    take(&spool, request("old")).await;
    spool.advance(1_000_000);
    let seq = take(&spool, request("told")).await.seq;
    take(&spool, request("new")).await;
    take(&spool, request("gone")).await;
    spool.cancel("gone".into()).await.unwrap();
    take(&spool, NewRequest { idempotency_key: Some("k".into()), ..request("keyed") }).await;
    spool.record_local(seq, local("x")).await.unwrap();
    let found = spool.attachable(600_000, 9).await.unwrap();
    assert_eq!(found, [("uid:1000".to_owned(), request("new").body.hash(), "new".to_owned())]);
}

#[tokio::test]
async fn sources_take_turns_around_a_paused_model_too() {
    let (_dir, spool) = fresh();
    for n in 0..3 {
        for source in ["s1", "s2"] {
            take(&spool, from(source, &format!("{source}-{n}"))).await;
        }
    }
    let mut order = Vec::new();
    for _ in 0..6 {
        order.push(spool.lease_around(1, &["other".to_owned()], None).await.unwrap()[0].id.clone());
    }
    assert_eq!(order, ["s1-0", "s2-0", "s1-1", "s2-1", "s1-2", "s2-2"]);
}

#[tokio::test]
async fn a_list_has_what_is_put_off_and_what_is_least_urgent() {
    let (_dir, spool) = fresh();
    let seq = take(&spool, request("deferred")).await.seq;
    spool.lease(1).await.unwrap();
    spool.settle(seq, requeue(false, true, false)).await.unwrap();
    take(&spool, urgent(Priority::Low, "low")).await;
    for source in [None, Some(request("low").source)] {
        for state in [None, Some(State::Queued)] {
            let filter = Filter { source: source.clone(), state, limit: 9, ..Filter::default() };
            let listed: Vec<String> = spool.list(filter).await.unwrap().into_iter().map(|record| record.id).collect();
            assert_eq!(listed, ["deferred", "low"], "{source:?} {state:?}");
        }
    }
}
