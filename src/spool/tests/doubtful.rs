//! Two storage errors in a row: a commit that landed, and callers who were told that it did not.

use super::damage::{adopted, salvaged};
use super::devices::{LINK, of_device};
use super::storage::lie;
use super::*;
use crate::control::types::State;
use crate::spool::adopt::{Adopted, adopt_row};
use crate::spool::record::DeviceKey;

#[tokio::test]
async fn only_what_was_accepted_in_it_is_taken_back() {
    let (_old, source) = fresh();
    for id in ["x", "y", "z"] {
        take(&source, request(id)).await;
    }
    let row = salvaged(&source, "z").await;
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    lie(&spool, true).await;
    let copy = row.clone();
    assert!(spool.change(move |store| adopt_row(store, &copy)).await.is_err(), "nobody knows yet");
    assert_eq!(spool.get("z".into()).await.unwrap().map(|record| record.state), Some(State::Queued));
    assert_eq!(adopted(&spool, row).await, Adopted::Known, "the salvage tries again and finds it there");
    lie(&spool, true).await;
    assert!(spool.accept(request("never")).await.is_err());
    assert!(spool.get("never".into()).await.unwrap().is_none(), "whoever was told no has no request");
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_settlement_that_is_told_again_ends_no_newer_lease() {
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    let seq = spool.lease(1).await.unwrap()[0].seq;
    lie(&spool, true).await;
    assert!(spool.settle(seq, requeue(true, false, false)).await.is_err(), "it stands, and nobody knows yet");
    let early = leased(&spool, 1).await;
    spool.settle(seq, requeue(true, false, false)).await.unwrap();
    let late = leased(&spool, 1).await;
    assert_eq!((early.len(), late.len()), (0, 1), "handed out once, and not before its settlement was told again");
    spool.settle(seq, answered("yes")).await.unwrap();
    assert_eq!(spool.tally().in_state(State::Answered), 1);
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_mailbox_knows_its_last_number_again() {
    let (_dir, spool) = fresh();
    let slot = |seq| of_device(DeviceKey::Mailbox { slot: 2, seq }, 1);
    let first = take(&spool, slot(7)).await;
    lie(&spool, true).await;
    assert!(spool.accept(slot(8)).await.is_err());
    let known = spool.mailboxes(LINK).await.unwrap();
    assert_eq!(known.iter().map(|m| (m.slot, m.seq, m.request)).collect::<Vec<_>>(), [(2, 7, first.seq)]);
    assert!(take(&spool, slot(7)).await.existing);
    lie(&spool, true).await;
    assert!(spool.accept(of_device(DeviceKey::Mailbox { slot: 3, seq: 1 }, 1)).await.is_err());
    assert_eq!(spool.mailboxes(LINK).await.unwrap().len(), 1, "of a mailbox that was never heard of nothing is left");
    assert!(!take(&spool, slot(8)).await.existing);
    assert_counted(&spool).await;
}
