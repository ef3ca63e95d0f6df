//! Any bytes at all: no panic, and an end.

use proptest::collection::vec;
use proptest::prelude::*;

use super::sample::{PAGE, Sample};
use crate::spool::salvage::Salvage;

fn drain(db: Vec<u8>, wal: Vec<u8>) -> usize {
    let mut salvage = Salvage::of(Box::new(db), Box::new(wal), "/nonexistent".into());
    let mut found = 0;
    loop {
        let batch = salvage.next_batch(64);
        if batch.is_empty() {
            return found;
        }
        found += batch.len();
    }
}

/// A page that claims to hold rows, with a list of cells and bytes of any kind.
fn page() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(0x0du8), Just(0x0a), Just(0x02), Just(0x05), any::<u8>()];
    (kind, 0u16..2100, vec(any::<u8>(), PAGE)).prop_map(|(kind, cells, mut page)| {
        page[0] = kind;
        page[3..5].copy_from_slice(&cells.to_be_bytes());
        page
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_end(db in vec(any::<u8>(), 0..20_000), wal in vec(any::<u8>(), 0..20_000)) {
        prop_assert_eq!(drain(db, wal), 0);
    }

    #[test]
    fn any_pages_end(pages in vec(page(), 1..4), log in vec(page(), 0..3)) {
        let mut wal = vec![0u8; 32];
        for (n, page) in (1u32..).zip(log) {
            wal.extend(n.to_be_bytes());
            wal.extend([0u8; 20]);
            wal.extend(page);
        }
        prop_assert_eq!(drain(pages.concat(), wal), 0);
    }
}

/// Rows that all claim the same chain of pages, and a chain that bites its own tail.
#[test]
fn chains_in_circles_end() {
    let sample = Sample::closed(32, 7);
    let mut db = sample.db.clone();
    let pages = db.len() / PAGE;
    for page in 1..pages {
        // The pages of long bodies begin with the number of the next one.
        if db[page * PAGE] == 0 {
            db[page * PAGE..page * PAGE + 4].copy_from_slice(&(page as u32 + 1).to_be_bytes());
        }
    }
    assert!(drain(db, Vec::new()) > 0);
}
