//! Damaged names of sources: they cost nothing but themselves, and keys stay known.

use super::*;
use crate::spool::{SpoolError, sources};

/// Where a name stands in the file.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum In {
    Row = 0x0d,
    Index = 0x0a,
}

/// Flips the lowest bit of a letter of a source's name, counted from its end, in its row or in the index of names.
pub(super) fn flip(dir: &Path, name: &str, place: In, letter: usize) {
    let path = files::database(dir);
    let mut bytes = std::fs::read(&path).unwrap();
    let page_size = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    let pages = bytes.chunks_mut(page_size).filter(|page| page[0] == place as u8);
    let mut flipped = 0;
    for page in pages {
        for at in 0..=page.len() - name.len() {
            if page[at..].starts_with(name.as_bytes()) {
                page[at + name.len() - letter] ^= 1;
                flipped += 1;
            }
        }
    }
    assert_eq!(flipped, 1);
    std::fs::write(path, bytes).unwrap();
}

fn keyed(source: &str, id: &str) -> NewRequest {
    NewRequest { idempotency_key: Some(format!("key of {id}")), ..from(source, id) }
}

/// What a client does that was not answered: the same key and body, under another id.
fn once_more(new: &NewRequest) -> NewRequest {
    NewRequest { id: format!("{} again", new.id), ..new.clone() }
}

/// A closed spool with requests of two users whose names are one bit apart.
async fn two_users() -> (tempfile::TempDir, [NewRequest; 2]) {
    let (dir, spool) = fresh();
    let both = [keyed("uid:1000", "a"), keyed("uid:1001", "b")];
    for new in &both {
        take(&spool, new.clone()).await;
    }
    spool.close().await;
    (dir, both)
}

async fn sources_of(spool: &Spool) -> Vec<String> {
    let mut found = Vec::new();
    for id in ["a", "b"] {
        found.push(spool.get(id.into()).await.unwrap().unwrap().source);
    }
    found
}

#[tokio::test]
async fn a_wrong_sum_of_a_source_costs_none_of_its_requests() {
    let (_dir, spool) = fresh();
    for id in ["a", "b"] {
        take(&spool, keyed("uid:1000", id)).await;
    }
    super::sums::damage(&spool, "UPDATE source SET sum = x'00'").await;
    assert_eq!(spool.get("b".into()).await.unwrap().unwrap().reason, None);
    super::sums::damage(&spool, "UPDATE source SET sum = x'00'").await;
    assert_eq!(leased(&spool, 1).await, ["a"]);
    super::sums::damage(&spool, "UPDATE source SET sum = x'00'").await;
    spool.sweep().await.unwrap();
    assert_counted(&spool).await;
    assert_eq!(leased(&spool, 1).await, ["b"]);
}

#[tokio::test]
async fn a_number_is_not_remembered_beyond_a_mended_name() {
    let (_dir, spool) = fresh();
    take(&spool, keyed("uid:1000", "a")).await;
    take(&spool, from("uid:1000", "b")).await;
    super::sums::damage(&spool, "UPDATE source SET name = 'uid:7'; UPDATE source SET sum = x'00'").await;
    // Whoever is new has damaged names mended first.
    take(&spool, keyed("uid:1001", "c")).await;
    take(&spool, from("uid:1000", "d")).await;
    assert_eq!(spool.get("d".into()).await.unwrap().unwrap().source, "uid:1000");
    assert_counted(&spool).await;
}

/// Ids as they are; an index entry of another text would look like a source's.
fn id(n: u32) -> String {
    format!("req_{n:032x}")
}

#[tokio::test]
async fn what_a_source_without_a_row_has_becomes_nobody_elses() {
    let (_dir, spool) = fresh();
    take(&spool, from("uid:1000", &id(1))).await;
    without_sources(&spool).await;
    assert!(!take(&spool, from("uid:1001", &id(2))).await.existing);
    let told = spool.get(id(1)).await;
    assert!(matches!(told, Err(SpoolError::Damaged(_))), "{told:?}");
    assert!(spool.salvaged().await.unwrap());
    assert_eq!(spool.get(id(1)).await.unwrap().unwrap().source, "lost:1");
    assert_eq!(leased(&spool, 9).await, [id(1), id(2)]);
    // The same where nothing waits any more.
    for seq in [1, 2] {
        spool.settle(seq, answered("yes")).await.unwrap();
    }
    without_sources(&spool).await;
    take(&spool, from("uid:1002", &id(3))).await;
    assert!(spool.get(id(1)).await.is_err());
    assert!(spool.salvaged().await.unwrap());
    assert_eq!(spool.get(id(1)).await.unwrap().unwrap().source, "lost:1");
    assert_counted(&spool).await;
}

#[tokio::test]
async fn a_remembered_number_without_a_row_is_damage() {
    let (_dir, spool) = fresh();
    for n in 1..=2 {
        take(&spool, from("uid:1000", &id(n))).await;
    }
    without_sources(&spool).await;
    let told = spool.accept(from("uid:1000", &id(3))).await;
    assert!(matches!(told, Err(SpoolError::Damaged(_))), "{told:?}");
    assert!(spool.salvaged().await.unwrap());
    take(&spool, from("uid:1000", &id(4))).await;
    assert_eq!(leased(&spool, 9).await.len(), 3, "each is sent");
    assert_counted(&spool).await;
}

async fn without_sources(spool: &Spool) {
    let gone = "PRAGMA foreign_keys=OFF; DELETE FROM source; PRAGMA foreign_keys=ON";
    spool.look(move |store| Ok(store.conn.execute_batch(gone)?)).await.unwrap();
}

#[tokio::test]
async fn a_flipped_name_is_mended_at_the_start_and_its_keys_stay_known() {
    for place in [In::Row, In::Index] {
        for name in ["uid:1000", "uid:1001"] {
            let (dir, both) = two_users().await;
            flip(dir.path(), name, place, 1);
            let spool = open(options(dir.path())).unwrap();
            assert!(!dir.path().join("quarantine").exists(), "the file is not at fault");
            for new in &both {
                let told = take(&spool, once_more(new)).await;
                assert_eq!((told.existing, told.id.as_str()), (true, new.id.as_str()));
            }
            assert_eq!(sources_of(&spool).await, ["uid:1000", "uid:1001"]);
            assert_counted(&spool).await;
            let mut out = leased(&spool, 9).await;
            out.sort();
            assert_eq!(out, ["a", "b"]);
        }
    }
}

#[tokio::test]
async fn a_name_flipped_while_running_is_nobodys_but_its_owners() {
    for place in [In::Row, In::Index] {
        let (dir, both) = two_users().await;
        let spool = open(options(dir.path())).unwrap();
        flip(dir.path(), "uid:1000", place, 1);
        spool.look(|store| Ok(store.conn.execute_batch("PRAGMA shrink_memory")?)).await.unwrap();
        for new in &both {
            let told = take(&spool, once_more(new)).await;
            assert_eq!((told.existing, told.id.as_str()), (true, new.id.as_str()));
        }
        assert_eq!(sources_of(&spool).await, ["uid:1000", "uid:1001"]);
        assert_counted(&spool).await;
    }
}

#[tokio::test]
async fn a_name_that_is_lost_becomes_nobodys_and_its_key_is_not_sent_twice() {
    let (dir, both) = two_users().await;
    flip(dir.path(), "uid:1000", In::Row, 1);
    // Another letter, so that neither copy agrees with the other.
    flip(dir.path(), "uid:1000", In::Index, 2);
    let spool = open(options(dir.path())).unwrap();
    assert!(!dir.path().join("quarantine").exists(), "the file is not at fault");
    assert_eq!(sources_of(&spool).await, ["lost:1", "uid:1001"]);
    for new in &both {
        let told = take(&spool, once_more(new)).await;
        assert_eq!((told.existing, told.id.as_str()), (true, new.id.as_str()));
    }
    let other = NewRequest { idempotency_key: Some("key of a".into()), ..from("uid:1000", "other") };
    assert!(!take(&spool, other).await.existing, "another body is another request");
    assert_counted(&spool).await;
    let mut out = leased(&spool, 9).await;
    out.sort();
    assert_eq!(out, ["a", "b", "other"]);
}

#[test]
fn a_name_in_doubt_is_no_name() {
    let sum = sum::of_source(7, "uid:1000");
    let judge = |row, sum: &[u8], index| sources::believed(7, row, sum, index);
    assert_eq!(judge(Some("uid:1000"), &sum, Some("uid:1001")), Some("uid:1000"));
    assert_eq!(judge(Some("uid:1001"), &sum, Some("uid:1000")), Some("uid:1000"));
    assert_eq!(judge(None, &sum, Some("uid:1000")), Some("uid:1000"));
    assert_eq!(judge(Some("uid:1000"), &[1; 8], Some("uid:1000")), Some("uid:1000"));
    assert_eq!(judge(Some("uid:1001"), &sum, Some("uid:1003")), None);
    assert_eq!(judge(Some("uid:1001"), &sum, None), None);
    assert_eq!(judge(None, &[], Some("uid:1000")), None);
}

#[tokio::test]
async fn a_number_that_went_with_its_batch_is_not_remembered() {
    let (_dir, spool) = fresh();
    take(&spool, from("uid:1", "first")).await;
    let [a, b] = ["a", "b"].map(|id| spool.accept(from("uid:2", id)));
    let writes = async { tokio::join!(a, b, spool.fail_commit()) };
    let (a, b, _) = in_one_batch(&spool, writes).await;
    assert!(a.is_err() && b.is_err(), "{a:?} {b:?}");
    take(&spool, from("uid:3", "c")).await;
    take(&spool, from("uid:2", "d")).await;
    assert_eq!(spool.get("d".into()).await.unwrap().unwrap().source, "uid:2");
    assert_counted(&spool).await;
}
