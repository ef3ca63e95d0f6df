//! Six kinds of damage and flipped bits in the log, by the count and from a seed.

use std::collections::{BTreeMap, BTreeSet};

use super::sample::{Chance, Known, Sample, page_size};
use crate::spool::files;
use crate::spool::salvage::{Body, Found, Report, Salvage};

/// Salvages the two files as a damaged folder would be.
pub(super) fn salvage(sample: &Sample, db: &[u8], wal: &[u8]) -> (Vec<Found>, Report) {
    let bodies = files::bodies(sample.dir.path());
    let mut salvage = Salvage::of(Box::new(db.to_vec()), Box::new(wal.to_vec()), bodies);
    let mut all = Vec::new();
    loop {
        let batch = salvage.next_batch(50);
        if batch.is_empty() {
            return (all, salvage.report().clone());
        }
        all.extend(batch);
    }
}

/// What became of the requests that were known before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Came out as they were.
    pub(super) exact: usize,
    /// Are named in the report instead, wholly or in part.
    pub(super) named: usize,
    /// Are neither there nor named.
    pub(super) unnamed: usize,
    /// Came out other than they were, and nothing says so; or were never there.
    pub(super) wrong: usize,
    /// Stand on no damaged page.
    pub(super) elsewhere: usize,
    /// Of those, came out as they were.
    pub(super) kept_elsewhere: usize,
}

/// Salvages damaged files and compares with what SQLite read before.
pub(super) fn judge(sample: &Sample, db: &[u8], wal: &[u8]) -> Verdict {
    let (found, report) = salvage(sample, db, wal);
    let found: BTreeMap<i64, &Found> = found.iter().map(|f| (f.seq() as i64, f)).collect();
    let named: BTreeSet<i64> = report.lost.iter().filter_map(|l| l.seq).map(|seq| seq as i64).collect();
    let in_gap = |seq: i64| report.gaps.iter().any(|(a, b)| (*a as i64..=*b as i64).contains(&seq));
    let touched = if wal.is_empty() { touched(sample, db) } else { BTreeSet::new() };
    let judged_by_page = wal.is_empty() && sample.wal.is_empty() && !db.is_empty() && *db != sample.db[..];
    let mut verdict = Verdict::default();
    for (seq, known) in &sample.known {
        let exact = found.get(seq).is_some_and(|f| is_exact(f, known));
        let unsure = report.answers_unsure && !known.answers.is_empty() && found.contains_key(seq);
        let said = named.contains(seq) || in_gap(*seq) || unsure;
        match (exact, said, found.contains_key(seq)) {
            (true, ..) => verdict.exact += 1,
            (_, true, _) => verdict.named += 1,
            (.., false) => verdict.unnamed += 1,
            (.., true) => verdict.wrong += 1,
        }
        if judged_by_page && !touched.contains(seq) {
            verdict.elsewhere += 1;
            verdict.kept_elsewhere += usize::from(exact);
        }
    }
    let invented = found.iter().filter(|(seq, f)| !sample.known.contains_key(seq) && !f.superseded);
    verdict.wrong += invented.count();
    verdict
}

fn is_exact(found: &Found, known: &Known) -> bool {
    let body = match &found.body {
        Body::NotKept => !known.keeps_body(),
        Body::Inline(bytes) => known.body.as_ref() == Some(bytes),
        Body::File(_) => known.keeps_body() && known.body.is_none(),
        Body::Lost(_) => false,
    };
    let mut answers: Vec<_> = found.answers.iter().map(|a| a.values.clone()).collect();
    answers.sort_by_key(|values| format!("{:?}", values[1]));
    let source = found.source.as_ref() == Some(&known.source);
    found.verified && body && source && found.values == known.values && answers == known.answers
}

/// Requests of which a page was changed: found by spoiling those pages in a sound file and seeing whose bytes go.
fn touched(sample: &Sample, db: &[u8]) -> BTreeSet<i64> {
    let mut spoilt = sample.db.clone();
    let size = page_size(&sample.db);
    for (n, page) in spoilt.chunks_mut(size).enumerate() {
        let same = db.get(n * size..(n * size + page.len())).is_some_and(|other| *other == *page);
        if !same {
            page.fill(0);
        }
    }
    let (found, _) = salvage(sample, &spoilt, &[]);
    let whole: BTreeSet<i64> = found
        .iter()
        .filter(|f| sample.known.get(&(f.seq() as i64)).is_some_and(|k| is_exact(f, k)))
        .map(|f| f.seq() as i64)
        .collect();
    sample.known.keys().copied().filter(|seq| !whole.contains(seq)).collect()
}

/// The ways in which storage spoils a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    HeaderWiped,
    PagesZeroed,
    BitFlipped,
    Truncated,
    PagesSwapped,
    Garbage,
}

pub(super) const KINDS: [Kind; 6] =
    [Kind::HeaderWiped, Kind::PagesZeroed, Kind::BitFlipped, Kind::Truncated, Kind::PagesSwapped, Kind::Garbage];

/// A damaged copy of a database.
pub(super) fn damaged(kind: Kind, db: &[u8], chance: &mut Chance) -> Vec<u8> {
    let (mut db, size) = (db.to_vec(), page_size(db));
    let pages = (db.len() / size) as u64;
    let page = |chance: &mut Chance| chance.below(pages) as usize * size;
    match kind {
        Kind::HeaderWiped => {
            let upto = if chance.below(2) == 0 { 100 } else { size };
            db[..upto].fill(0);
        }
        Kind::PagesZeroed => {
            for _ in 0..=chance.below(4) {
                let at = page(chance);
                db[at..at + size].fill(0);
            }
        }
        Kind::BitFlipped => {
            let at = chance.below(db.len() as u64) as usize;
            db[at] ^= 1 << chance.below(8);
        }
        Kind::Truncated => db.truncate(db.len() / 4 + chance.below(db.len() as u64 * 3 / 4) as usize),
        Kind::PagesSwapped => {
            let (a, b) = (page(chance), page(chance));
            let first = db[a..a + size].to_vec();
            db.copy_within(b..b + size, a);
            db[b..b + size].copy_from_slice(&first);
        }
        Kind::Garbage => {
            let at = page(chance);
            let len = 1 + chance.below(3 * size as u64) as usize;
            let end = (at + len).min(db.len());
            db[at..end].fill_with(|| chance.next() as u8);
        }
    }
    db
}

/// `count` files of each kind: every record exact or named, and what stands elsewhere kept.
fn six_kinds(count: u64, seed: u64, sample: &Sample) {
    let mut chance = Chance(seed);
    for kind in KINDS {
        let (mut elsewhere, mut kept) = (0, 0);
        for n in 0..count {
            let db = damaged(kind, &sample.db, &mut chance);
            let verdict = judge(sample, &db, &[]);
            assert_eq!((verdict.wrong, verdict.unnamed), (0, 0), "seed {seed}, {kind:?} {n}: {verdict:?}");
            elsewhere += verdict.elsewhere;
            kept += verdict.kept_elsewhere;
        }
        assert!(kept * 100 >= elsewhere * 99, "seed {seed}, {kind:?}: {kept} of {elsewhere}");
        // One damage leaves most of a file alone; less would mean that nothing was asked here.
        let least = if kind == Kind::Truncated { 10 } else { 2 };
        assert!(elsewhere * least >= count as usize * 120, "seed {seed}, {kind:?}: only {elsewhere} elsewhere");
        println!("{kind:?}: {count} files, {kept} of {elsewhere} requests outside damaged pages kept");
    }
}

/// `count` single flipped bits in the log: every acknowledged request there or named.
fn flipped_log(count: u64, seed: u64) {
    let sample = Sample::cut(120, seed);
    assert!(!sample.wal.is_empty());
    let mut chance = Chance(seed);
    let (mut exact, mut named, mut dropped) = (0, 0, 0);
    for n in 0..count {
        let mut wal = sample.wal.clone();
        // Every other one near the log's beginning, where most stands behind it; the end may be of an earlier round.
        let span = if n.is_multiple_of(2) { wal.len() / 8 } else { wal.len() };
        let at = chance.below(span as u64) as usize;
        wal[at] ^= 1 << chance.below(8);
        let verdict = judge(&sample, &sample.db, &wal);
        assert_eq!((verdict.wrong, verdict.unnamed), (0, 0), "seed {seed}, flip {n} at {at}: {verdict:?}");
        exact += verdict.exact;
        named += verdict.named;
        dropped += salvage(&sample, &sample.db, &wal).1.frames_dropped;
    }
    // Otherwise SQLite alone would have kept everything.
    assert!(dropped > 0, "seed {seed}: no flip made SQLite drop anything");
    println!("{count} flips: {exact} requests exact, {named} named; SQLite drops {dropped} frames");
}

/// The effort: a few in the ordinary run, as many as `HOLDFAST_DAMAGE` says in a long one.
pub(super) fn effort(few: u64) -> (u64, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let seed = number("HOLDFAST_SEED").unwrap_or(11);
    println!("HOLDFAST_SEED={seed}");
    (number("HOLDFAST_DAMAGE").unwrap_or(few), seed)
}

#[test]
fn salvage_holds_over_six_kinds_of_damage() {
    let (count, seed) = effort(3);
    six_kinds(count, seed, &Sample::closed(120, seed));
    six_kinds(count, seed, &Sample::earlier(120, seed));
}

#[test]
fn salvage_holds_over_flipped_bits_in_the_log() {
    let (count, seed) = effort(12);
    flipped_log(count, seed);
}
