//! Shut routes and the time floor over restarts, and leases around shut models.

use super::super::SavedPause;
use super::*;

fn pause(model: &str, step: u32) -> SavedPause {
    SavedPause { uplink: "u".into(), model: model.into(), block: "key:00ff".into(), step, until_ms: 60_000 }
}

#[tokio::test]
async fn pauses_and_the_floor_survive_a_restart() {
    let (dir, spool) = fresh();
    spool.save_pauses(vec![pause("", 1), pause("m", 2)]).await.unwrap();
    spool.save_pauses(vec![pause("", 3)]).await.unwrap();
    spool.save_held(true).await.unwrap();
    spool.save_pauses(vec![pause("", 3)]).await.unwrap();
    spool.save_floor(7_000).await.unwrap();
    spool.save_floor(5_000).await.unwrap();
    spool.close().await;
    drop(spool);
    let spool = super::super::open(options(dir.path())).unwrap();
    assert_eq!(spool.load_pauses().await.unwrap(), [pause("", 3)]);
    assert_eq!(spool.load_floor().await.unwrap(), 7_000);
    assert!(spool.load_held().await.unwrap());
    spool.save_held(false).await.unwrap();
    assert!(!spool.load_held().await.unwrap());
    assert_eq!(spool.load_pauses().await.unwrap(), [pause("", 3)]);
}

#[tokio::test]
async fn a_shut_model_holds_up_no_other() {
    let (_dir, spool) = fresh();
    for n in 0..300 {
        let model = if n % 100 == 99 { "new" } else { "o\"ld" };
        take(&spool, NewRequest { model: model.into(), ..request(&format!("r{n}")) }).await;
    }
    let except = vec!["o\"ld".to_owned()];
    let ids = |leased: Vec<crate::spool::record::Leased>| leased.into_iter().map(|l| l.id).collect::<Vec<_>>();
    assert_eq!(ids(spool.lease_around(2, &except, None).await.unwrap()), ["r99", "r199"]);
    assert_eq!(ids(spool.lease_around(9, &except, None).await.unwrap()), ["r299"]);
    assert_eq!(ids(spool.lease_around(9, &except, None).await.unwrap()).len(), 0);
    assert_eq!(ids(spool.lease(2).await.unwrap()), ["r0", "r1"]);
    assert_counted(&spool).await;
}

#[tokio::test]
async fn what_may_have_been_billed_is_left_out_beyond_its_number_and_holds_up_no_other() {
    let (_dir, spool) = fresh();
    for n in 0..300 {
        take(&spool, NewRequest { maybe_billed: n % 100 != 99, ..request(&format!("r{n}")) }).await;
    }
    let ids = |leased: Vec<crate::spool::record::Leased>| leased.into_iter().map(|l| l.id).collect::<Vec<_>>();
    assert_eq!(ids(spool.lease_around(3, &[], Some(2)).await.unwrap()), ["r0", "r1", "r99"]);
    assert_eq!(ids(spool.lease_around(1, &[], Some(0)).await.unwrap()), ["r199"]);
    assert_eq!(ids(spool.lease_around(9, &[], Some(0)).await.unwrap()), ["r299"]);
    assert_eq!(ids(spool.lease_around(9, &[], Some(0)).await.unwrap()).len(), 0);
    assert_eq!(ids(spool.lease(2).await.unwrap()), ["r2", "r3"]);
    assert_counted(&spool).await;
}
