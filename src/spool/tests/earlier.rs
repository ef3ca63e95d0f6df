//! Answers of earlier sends: kept because they were paid for, and never taken for the one that a request ended with.

use super::damage::{adopted, killed, salvaged};
use super::*;
use crate::control::types::State;
use crate::spool::adopt::Adopted;
use crate::spool::outcomes::Line;
use crate::spool::salvage::Salvage;

/// Long enough to be found in a file, and each on a page of its own.
fn text(word: &str) -> Vec<u8> {
    word.as_bytes().repeat(300)
}

fn cut() -> Settlement {
    let came = Some(answer(text("cut off ")));
    Settlement::Requeue { counted: true, deferred: false, maybe_billed: true, error: Some(error()), came }
}

async fn shown(spool: &Spool, id: &str) -> (State, Option<bytes::Bytes>, Option<String>) {
    let record = spool.get(id.to_owned()).await.unwrap().unwrap();
    (record.state, record.uplink.map(|(answer, _)| answer.body.in_one_piece().unwrap()), record.reason)
}

#[tokio::test]
async fn a_refusal_takes_no_paid_answers_place() {
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    let seq = spool.lease(1).await.unwrap()[0].seq;
    spool.settle(seq, cut()).await.unwrap();
    assert_eq!(leased(&spool, 1).await, ["a"]);
    let no = UplinkAnswer { status: 400, ..answer("no") };
    let refused = Settlement::Dead { reason: "refused".into(), error: error(), answer: Some(no.clone()) };
    spool.settle(seq, refused.clone()).await.unwrap();
    let (state, kept, reason) = shown(&spool, "a").await;
    assert_eq!((state, reason.as_deref()), (State::Dead, Some("refused")));
    assert!(kept.is_some_and(|kept| kept == text("cut off ")), "it was paid for");
    // Where nothing was paid for, the words of the refusal are all there is.
    take(&spool, request("b")).await;
    let seq = spool.lease(1).await.unwrap()[0].seq;
    spool.settle(seq, refused).await.unwrap();
    assert_eq!(shown(&spool, "b").await.1.as_deref(), Some(&b"no"[..]));
    assert_counted(&spool).await;
}

#[tokio::test]
async fn what_stands_of_an_earlier_send_does_not_become_the_answer() {
    let (_old, source) = fresh();
    take(&source, request("a")).await;
    for how in [cut(), answered(text("whole "))] {
        let seq = source.lease(1).await.unwrap()[0].seq;
        source.settle(seq, how).await.unwrap();
    }
    // The copy says answered, and its answer is damaged.
    let row = salvaged(&source, "a").await;
    let (_dir, spool) = fresh();
    take(&spool, request("a")).await;
    let seq = spool.lease(1).await.unwrap()[0].seq;
    spool.settle(seq, cut()).await.unwrap();
    let line = Line { seq, id: "a".into(), state: Some(State::Answered), version: row.version };
    spool.look(move |store| store.outcomes.append(&[line], 1)).await.unwrap();
    assert_eq!(adopted(&spool, row).await, Adopted::Updated);
    assert_eq!(shown(&spool, "a").await, (State::Answered, None, Some("damaged".into())));
    assert_counted(&spool).await;
}

#[tokio::test]
async fn an_older_image_of_an_earlier_send_does_not_become_the_answer() {
    let (_dir, spool) = fresh();
    let id = "req_0123456789abcdef0123456789abcdef";
    take(&spool, request(id)).await;
    for how in [cut(), answered(text("whole "))] {
        let seq = spool.lease(1).await.unwrap()[0].seq;
        spool.settle(seq, how).await.unwrap();
    }
    let dir = killed(&spool).await;
    let (db, wal) = (files::database(dir.path()), files::wal(dir.path()));
    let found = || Salvage::open(&db, &wal, dir.path()).unwrap().next_batch(9);
    assert_eq!(found()[0].answers.len(), 1);
    let mut bytes = std::fs::read(&wal).unwrap();
    for at in 0..bytes.len() - 12 {
        if bytes[at..].starts_with(b"whole whole ") {
            bytes[at] ^= 1;
        }
    }
    std::fs::write(&wal, bytes).unwrap();
    let found = found();
    assert_eq!(found[0].state_code(), 3);
    assert!(found[0].answers.is_empty(), "the first send's answer is not the second's");
}
