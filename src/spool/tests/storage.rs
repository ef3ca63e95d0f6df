//! Bytes on the disk: large bodies, damage, failed commits.

use std::path::Path;

use super::*;
use crate::control::types::State;
use crate::spool::SpoolError;

const LARGE: usize = 200_000;

fn names(dir: &Path) -> Vec<String> {
    let all = std::fs::read_dir(files::bodies(dir)).unwrap();
    all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn large_bodies_are_files_and_go_with_their_row() {
    let (dir, spool) = fresh();
    let seq = take(&spool, with_body("a", vec![5; LARGE])).await.seq;
    assert_eq!(names(dir.path()).len(), 1);
    assert_eq!(spool.lease(1).await.unwrap()[0].body.len(), LARGE as u64);
    spool.settle(seq, answered(vec![6; LARGE])).await.unwrap();
    spool.record_local(seq, local(vec![7; LARGE])).await.unwrap();
    let record = spool.get("a".into()).await.unwrap().unwrap();
    assert_eq!(record.uplink.unwrap().0.body.whole().await.unwrap(), vec![6; LARGE]);
    assert_eq!(record.local.unwrap().0.body, vec![7; LARGE]);
    assert_eq!(names(dir.path()).len(), 2, "the request's own is gone");
    spool.purge(State::Answered).await.unwrap();
    spool.commit_probe().await.unwrap();
    assert!(names(dir.path()).is_empty());
    assert_counted(&spool).await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_costs_the_other_nothing() {
    for lost in 0..2 {
        let (dir, spool) = fresh();
        let seq = take(&spool, request("a")).await.seq;
        assert_eq!(leased(&spool, 1).await, ["a"]);
        spool.settle(seq, answered(vec![6; LARGE])).await.unwrap();
        let uplink = names(dir.path());
        spool.record_local(seq, local(vec![7; LARGE])).await.unwrap();
        let both = names(dir.path());
        let name = both.iter().find(|name| uplink.contains(name) == (lost == 0)).unwrap();
        std::fs::remove_file(files::bodies(dir.path()).join(name)).unwrap();
        let record = spool.get("a".into()).await.unwrap().unwrap();
        assert_eq!((record.uplink.is_some(), record.local.is_some()), (lost == 1, lost == 0));
        let told = Some("damaged");
        assert_eq!((record.state, record.reason.as_deref()), (State::Answered, told), "a record says what it lacks");
        let listed =
            spool.list(crate::spool::record::Filter { limit: 9, ..Default::default() }).await.unwrap().remove(0);
        assert_eq!(listed.reason.as_deref(), told);
        let other = names(dir.path()).remove(0);
        std::fs::remove_file(files::bodies(dir.path()).join(other)).unwrap();
        assert_eq!(spool.get("a".into()).await.err(), Some(SpoolError::Unreadable), "nothing is left to tell");
    }
}

#[tokio::test]
async fn a_refused_large_body_leaves_no_file() {
    let (dir, spool) = fresh_with(|o| o.max_requests = 0);
    assert_eq!(spool.accept(with_body("a", vec![5; LARGE])).await, Err(SpoolError::QueueFull));
    assert!(names(dir.path()).is_empty());
}

#[tokio::test]
async fn files_without_a_row_go_after_the_next_start() {
    let (dir, spool) = fresh();
    take(&spool, with_body("a", vec![5; LARGE])).await;
    std::fs::write(files::bodies(dir.path()).join("1-00ff"), b"orphan").unwrap();
    std::fs::write(files::bodies(dir.path()).join("1-00fe.tmp"), b"half").unwrap();
    spool.sweep().await.unwrap();
    assert_eq!(names(dir.path()).len(), 3, "this start's own files are left alone");
    drop(spool);
    let spool = open(options(dir.path())).unwrap();
    spool.sweep().await.unwrap();
    assert_eq!(names(dir.path()).len(), 1);
    assert_eq!(spool.lease(1).await.unwrap()[0].body.len(), LARGE as u64);
}

#[tokio::test]
async fn a_damaged_body_is_set_aside_and_blocks_nothing() {
    let (dir, spool) = fresh();
    take(&spool, request("a")).await;
    take(&spool, with_body("b", vec![5; LARGE])).await;
    take(&spool, request("c")).await;
    spool.look(|store| Ok(store.conn.execute("UPDATE body SET bytes = x'00' WHERE seq = 1", [])?)).await.unwrap();
    std::fs::remove_file(files::bodies(dir.path()).join(&names(dir.path())[0])).unwrap();
    assert_eq!(leased(&spool, 9).await, ["c"]);
    for id in ["a", "b"] {
        let record = spool.get(id.into()).await.unwrap().unwrap();
        assert_eq!((record.state, record.reason.as_deref()), (State::Dead, Some("damaged")));
    }
    assert!(spool.body("a".into()).await.is_err());
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_full_database_refuses_and_goes_on() {
    let (_dir, spool) = fresh();
    spool
        .look(|store| {
            let pages: i64 = store.conn.query_row("PRAGMA page_count", [], |r| r.get(0))?;
            let (more, kept) = (32 << 10, 1 << 20);
            let cap = format!("PRAGMA max_page_count={}", pages + (more + kept) / PAGE as i64);
            Ok(store.conn.query_row(&cap, [], |r| r.get::<_, i64>(0))?)
        })
        .await
        .unwrap();
    let mut last = Ok(Accepted { id: String::new(), seq: 0, existing: false, finished: false });
    for n in 0..50 {
        last = spool.accept(with_body(&format!("r{n}"), vec![9; 6_000])).await;
        if last.is_err() {
            break;
        }
    }
    assert_eq!(last, Err(SpoolError::DiskFull));
    assert_counted(&spool).await;
    let lease = spool.lease(1).await.unwrap().remove(0);
    spool.settle(lease.seq, dead()).await.unwrap();
    assert_eq!(spool.purge(State::Dead).await.unwrap(), 1);
    take(&spool, with_body("after", vec![9; 3_000])).await;
    assert_counted(&spool).await;
}

#[tokio::test]
async fn after_a_failed_commit_nobody_was_told_and_the_file_is_opened_anew() {
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    take(&spool, request("b")).await;
    assert_eq!(leased(&spool, 1).await, ["a"]);
    // A violated deferred constraint makes the COMMIT itself fail, like an fsync would.
    let failing = spool.fail_commit();
    let lost = spool.accept(request("lost"));
    let (failed, lost) = tokio::join!(failing, lost);
    assert!(failed.is_err());
    let stored = spool.get("lost".into()).await.unwrap();
    assert_eq!(stored.is_some(), lost.is_ok());
    assert_eq!(spool.get("a".into()).await.unwrap().unwrap().state, State::Sending, "still leased");
    assert_eq!(leased(&spool, 1).await, ["b"]);
    assert_counted(&spool).await;
}

/// Numbers, not a promise: `cargo test --release --lib spool -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn accepts_per_second() {
    for callers in [1u32, 8, 64] {
        let (_dir, spool) = fresh();
        let (start, each) = (crate::clock::now(), 2_000 / callers);
        let tasks = (0..callers).map(|c| {
            let spool = spool.clone();
            tokio::spawn(async move {
                for n in 0..each {
                    take(&spool, with_body(&format!("r{c}-{n}"), vec![9; 1_024])).await;
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let (rate, commits) = (f64::from(each * callers) / start.elapsed().as_secs_f64(), spool.tally().commits);
        println!("{callers} callers: {rate:.0} accepts/s, {commits} commits for {}", each * callers);
    }
}

#[tokio::test]
async fn a_batch_that_sqlite_gave_up_is_acknowledged_to_nobody() {
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    let writes = async { tokio::join!(spool.accept(request("lost")), spool.give_up()) };
    let (lost, given_up) = in_one_batch(&spool, writes).await;
    assert_eq!((lost, given_up), (Err(SpoolError::DiskFull), Err(SpoolError::DiskFull)));
    assert!(spool.get("lost".into()).await.unwrap().is_none());
    assert_counted(&spool).await;
    assert_eq!(take(&spool, request("b")).await.seq, 2);
}

/// What the log of ends knows, and what counts as handed out.
async fn ends(spool: &Spool, id: &'static str) -> (Option<State>, Vec<u64>) {
    spool
        .look(move |store| {
            let known = crate::spool::outcomes::read(&store.options.data_dir);
            Ok((known.ended(id).and_then(|end| end.0), store.held.iter().copied().collect()))
        })
        .await
        .unwrap()
}

/// The next commit lands and reports an error; where `stays_shut`, its callers cannot wait until that is known.
pub(super) async fn lie(spool: &Spool, stays_shut: bool) {
    let planted = spool.look(move |store| {
        (store.faults.commit_lies, store.faults.stays_shut) = (true, stays_shut);
        Ok(())
    });
    planted.await.unwrap();
}

#[tokio::test]
async fn a_commit_that_landed_in_spite_of_its_error_is_a_commit() {
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    let seq = spool.lease(1).await.unwrap()[0].seq;
    lie(&spool, false).await;
    spool.settle(seq, answered("yes")).await.unwrap();
    assert_eq!(ends(&spool, "a").await, (Some(State::Answered), vec![]));
    lie(&spool, false).await;
    let told = take(&spool, NewRequest { idempotency_key: Some("k".into()), ..request("b") }).await;
    assert!(spool.get("b".into()).await.unwrap().is_some(), "what was acknowledged stands");
    lie(&spool, false).await;
    assert_eq!(leased(&spool, 1).await, ["b"]);
    assert_eq!(ends(&spool, "b").await, (None, vec![told.seq]), "handed out is handed out");
    assert_counted(&spool).await;
}

#[tokio::test]
async fn an_end_that_landed_is_logged_when_the_file_is_open_again_and_before_anybody_hears_of_it() {
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    take(&spool, request("b")).await;
    let seq = spool.lease(1).await.unwrap()[0].seq;
    lie(&spool, true).await;
    assert!(spool.settle(seq, answered("yes")).await.is_err(), "nobody knows yet");
    assert_eq!(ends(&spool, "a").await, (Some(State::Answered), vec![seq]), "whoever told it has not heard of it");
    spool.settle(seq, answered("yes")).await.unwrap();
    assert_eq!(ends(&spool, "a").await, (Some(State::Answered), vec![]));
    assert_eq!(spool.tally().in_state(State::Answered), 1);
    lie(&spool, true).await;
    assert!(spool.accept(request("c")).await.is_err());
    assert!(spool.get("c".into()).await.unwrap().is_none(), "whoever was told no has no request");
    lie(&spool, true).await;
    assert!(spool.lease(1).await.is_err());
    assert_eq!(ends(&spool, "b").await, (None, vec![]));
    let lease = spool.lease(1).await.unwrap().remove(0);
    assert_eq!((lease.id.as_str(), lease.maybe_billed), ("b", false), "it never left");
    assert_counted(&spool).await;
}

#[tokio::test]
async fn what_a_failed_commit_left_on_disk_is_removed_when_opened_anew() {
    let (dir, spool) = fresh();
    take(&spool, request("told")).await;
    take(&spool, request("handed out")).await;
    assert_eq!(leased(&spool, 1).await, ["told"]);
    take(&spool, with_body("never told", vec![5; LARGE])).await;
    // As if the commits after the second row had reported failure and landed all the same.
    spool
        .look(|store| {
            store.conn.execute_batch("UPDATE request SET state = 1 WHERE seq = 2")?;
            (store.counts.requests[0], store.counts.requests[1], store.counts.ready) = (1, 2, 1);
            store.save()?;
            let good = crate::spool::store::Counts { next_seq: 3, turn: 0, ..store.counts };
            let mut effects = crate::spool::store::Effects::default();
            effects.accepted.push(crate::spool::store::Accepted { seq: 3, mailbox: None });
            let doubtful = crate::spool::open::Doubtful { good, turn: store.counts.turn, effects, is_told: true };
            crate::spool::open::reopen(store, &doubtful)
        })
        .await
        .unwrap();
    spool.commit_probe().await.unwrap();
    assert_counted(&spool).await;
    assert!(spool.get("never told".into()).await.unwrap().is_none());
    assert!(names(dir.path()).is_empty());
    assert_eq!(leased(&spool, 9).await, ["handed out"], "marked, but handed to nobody");
}

#[tokio::test]
async fn what_a_transaction_counted_goes_with_it() {
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    // As if a start had counted a row of a source that went with the damaged file.
    spool
        .look(|store| {
            store.lanes.change((2, 77), 1, 1);
            crate::spool::open::start_over(store)
        })
        .await
        .unwrap();
    take(&spool, request("b")).await;
    assert_counted(&spool).await;
}
