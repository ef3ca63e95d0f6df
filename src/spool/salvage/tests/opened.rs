//! Damage met by a real start: new work goes on at once, and of each request that was acknowledged before, the record
//! is as it was or says that it is not.
//!
//! `HOLDFAST_DAMAGE=50` for a long run (four times as many flips in the log); `HOLDFAST_SEED` replays one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rusqlite::types::Value;
use serde_json::Value as Json;

use super::damage::{KINDS, Kind, damaged, effort};
use super::sample::{Chance, Known, PAGE, Sample, options, request};
use crate::spool::record::{Leased, Record};
use crate::spool::{Spool, files, open};

/// How long a start may take, and how long it may be until everything is read.
const START: Duration = Duration::from_secs(5);
const SALVAGE: Duration = Duration::from_mins(1);

/// What became of the requests of one damaged folder.
#[derive(Debug, Default)]
struct Verdict {
    exact: usize,
    /// Over, with the reason `damaged`: dead, or as it had ended.
    told: usize,
    /// Named in a report.
    named: usize,
    /// The record is there; what it needs is refused instead of given out wrong.
    refused: usize,
    wrong: Vec<String>,
}

/// What the reports of all sets name.
#[derive(Debug, Default)]
struct Named {
    seqs: BTreeSet<u64>,
    gaps: Vec<(u64, u64)>,
    answers_unsure: bool,
}

impl Named {
    fn read(dir: &Path) -> Named {
        let mut named = Named::default();
        let sets = std::fs::read_dir(dir.join("quarantine")).into_iter().flatten();
        for set in sets {
            let text = std::fs::read_to_string(set.unwrap().path().join("report.jsonl")).unwrap_or_default();
            for line in text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()) {
                named.seqs.extend(line["seq"].as_u64());
                named.gaps.extend(line["no_trace_from"].as_u64().zip(line["to"].as_u64()));
                named.answers_unsure |= line["answers_unsure"] == true;
            }
        }
        named
    }

    fn has(&self, seq: u64) -> bool {
        self.seqs.contains(&seq) || self.gaps.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }
}

/// Starts on a damaged folder and asks for everything.
async fn start(sample: &Sample, db: &[u8], wal: &[u8], chance: &mut Chance) -> Verdict {
    let dir = sample.folder(db, wal);
    let begun = crate::clock::now();
    let spool = open(options(dir.path())).unwrap();
    let new = request(900_000, 300, chance);
    let mut given = BTreeMap::from([(new.id.clone(), spool.accept(new).await.unwrap().seq)]);
    assert!(begun.elapsed() < START, "{:?}", begun.elapsed());
    let early = leased(&spool).await;
    assert!(tokio::time::timeout(SALVAGE, settled(&spool)).await.expect("the salvage has no end"));
    let mut verdict = Verdict::default();
    let mut records = BTreeMap::new();
    for known in sample.known.values() {
        records.insert(known.id(), got(&spool, &known.id()).await);
    }
    let mut sent = early;
    loop {
        let more = leased(&spool).await;
        if more.is_empty() {
            break;
        }
        sent.extend(more);
    }
    check_sent(sample, &sent, &mut given, &mut verdict);
    let named = Named::read(dir.path());
    for (seq, known) in &sample.known {
        let before = records.remove(&known.id()).unwrap();
        let waits = known.state() < 3;
        let is_sent = sent.iter().any(|l| l.id == known.id());
        let now = got(&spool, &known.id()).await;
        let record = if waits { &now } else { &before };
        let body = spool.body(known.id()).await;
        match record {
            Err(_) => verdict.refused += 1,
            Ok(Some(r)) if r.state.is_final() && r.reason.as_deref() == Some("damaged") => verdict.told += 1,
            Ok(Some(r)) if is_exact(known, r, is_sent) && body.as_ref().is_ok_and(|b| known.has_body(b.as_deref())) => {
                verdict.exact += 1;
            }
            _ if named.has(*seq as u64) || (named.answers_unsure && !known.answers.is_empty()) => verdict.named += 1,
            Ok(Some(r)) if is_exact(known, r, is_sent) && body.is_err() => verdict.refused += 1,
            other => verdict.wrong.push(format!("{seq}: was {}, sent {is_sent}: {other:?}", known.state())),
        }
    }
    verdict
}

/// Waits for the salvage and for one pass of the slow look, and once more where that finds damage.
async fn settled(spool: &Spool) -> bool {
    for _ in 0..4 {
        if !spool.salvaged().await.unwrap() {
            return false;
        }
        let _ = spool.sweep().await;
        let _ = spool.sweep().await;
    }
    spool.salvaged().await.unwrap()
}

/// A read that meets damage fails; the next finds what was saved.
async fn got(spool: &Spool, id: &str) -> Result<Option<Record>, String> {
    let mut last = Ok(None);
    for _ in 0..3 {
        last = spool.get(id.to_owned()).await.map_err(|e| e.to_string());
        if last.is_ok() {
            break;
        }
        spool.salvaged().await.unwrap();
    }
    last
}

async fn leased(spool: &Spool) -> Vec<Leased> {
    for _ in 0..3 {
        match spool.lease(64).await {
            Ok(leased) => return leased,
            Err(error) => println!("a lease failed: {error}"),
        }
        spool.salvaged().await.unwrap();
    }
    Vec::new()
}

/// Nothing goes out twice, after its end, with other bytes, or unlabelled after it was on its way.
fn check_sent(sample: &Sample, sent: &[Leased], given: &mut BTreeMap<String, u64>, verdict: &mut Verdict) {
    let known: BTreeMap<String, &Known> = sample.known.values().map(|known| (known.id(), known)).collect();
    let mut ids = BTreeSet::new();
    for leased in sent {
        let Some(known) = known.get(&leased.id) else {
            if given.remove(&leased.id).is_none() {
                verdict.wrong.push(format!("{} was never accepted", leased.id));
            }
            continue;
        };
        let labelled = leased.maybe_billed || (known.state() == 0 && known.values[7] == Value::Integer(0));
        let same = Value::Blob(leased.body.hash().to_vec()) == known.values[19];
        if !ids.insert(leased.id.clone()) || known.state() >= 3 || !labelled || !same {
            verdict.wrong.push(format!("{} went out: was {}, {labelled}, {same}", leased.id, known.state()));
        }
    }
    if !given.is_empty() {
        verdict.wrong.push("the new request never went out".to_owned());
    }
}

impl Known {
    fn id(&self) -> String {
        let Value::Text(id) = &self.values[1] else { panic!("an id is text") };
        id.clone()
    }

    pub(super) fn state(&self) -> i64 {
        let Value::Integer(state) = self.values[3] else { panic!("a state is a number") };
        state
    }

    fn has_body(&self, body: Option<&[u8]>) -> bool {
        match (self.keeps_body(), body) {
            (kept, None) => !kept,
            (kept, Some(bytes)) => kept && Value::Blob(files::hash(bytes).to_vec()) == self.values[19],
        }
    }

    fn answer(&self, local: i64) -> Option<&Value> {
        let mine = self.answers.iter().find(|a| a[1] == Value::Integer(local));
        mine.map(|a| &a[11])
    }
}

fn is_exact(known: &Known, record: &Record, is_sent: bool) -> bool {
    let hash = |body: &bytes::Bytes| Value::Blob(files::hash(body).to_vec());
    let answers = record.uplink.as_ref().map(|(a, _)| Value::Blob(a.body.hash().to_vec())).as_ref() == known.answer(0)
        && record.local.as_ref().map(|(a, _)| hash(&a.body)).as_ref() == known.answer(1);
    let state = crate::spool::codes::state_code(record.state);
    let stands = match known.state() {
        // What may have been on its way twice is not sent a third time.
        1 if known.values[7] == Value::Integer(1) => record.reason.as_deref() == Some("unknown"),
        0..3 => is_sent,
        ended => state == ended,
    };
    let text = |at: usize| if let Value::Text(text) = &known.values[at] { Some(text.as_str()) } else { None };
    stands
        && answers
        && text(14) == Some(&record.endpoint)
        && text(15) == Some(&record.model)
        && text(16) == record.label.as_deref()
        && known.source == record.source
}

fn run(work: impl Future<Output = Verdict>) -> Verdict {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// One damaged folder after the other; prints what became of all and says how many came back as they were.
fn each(what: &str, seed: u64, files: impl Iterator<Item = (Vec<u8>, Vec<u8>)>, sample: &Sample) -> usize {
    let (mut all, mut chance) = (Verdict::default(), Chance(seed ^ 1));
    for (n, (db, wal)) in files.enumerate() {
        let one = run(start(sample, &db, &wal, &mut chance));
        assert!(one.wrong.is_empty(), "seed {seed}, {what} {n}: {:#?}", one.wrong);
        all.exact += one.exact;
        all.told += one.told;
        all.named += one.named;
        all.refused += one.refused;
    }
    println!(
        "{what}: {} exact, {} damaged on record, {} named, {} refused",
        all.exact, all.told, all.named, all.refused
    );
    all.exact
}

#[test]
fn a_start_holds_over_six_kinds_of_damage() {
    let (count, seed) = effort(3);
    let sample = Sample::closed(60, seed);
    for kind in KINDS {
        let mut chance = Chance(seed);
        let files = (0..count).map(|_| (damaged(kind, &sample.db, &mut chance), Vec::new()));
        let exact = each(&format!("{kind:?}"), seed, files, &sample);
        // Of a file that is cut to its first quarter nothing may be whole.
        assert!(exact > 0 || kind == Kind::Truncated, "{kind:?}: nothing was kept");
    }
}

#[test]
fn a_start_holds_over_flipped_bits_in_the_log() {
    let (count, seed) = effort(2);
    let sample = Sample::cut(60, seed);
    let mut chance = Chance(seed);
    let files = (0..count * 4).map(|_| {
        let mut wal = sample.wal.clone();
        let at = chance.below(wal.len() as u64) as usize;
        wal[at] ^= 1 << chance.below(8);
        (sample.db.clone(), wal)
    });
    assert!(each("flips in the log", seed, files, &sample) > 0);
}

/// Offsets in the log of every copy of each local answer that was kept for a waiting request.
fn local_answers(sample: &Sample) -> Vec<Vec<usize>> {
    let waiting = sample.known.values().filter(|known| known.state() == 0);
    let local = waiting.filter_map(|known| known.answers.iter().find(|answer| answer[1] == Value::Integer(1)));
    let places = local.map(|answer| {
        let Value::Blob(bytes) = &answer[12] else { return Vec::new() };
        let copies = sample.wal.windows(bytes.len()).enumerate().filter(|(_, window)| window == bytes);
        copies.map(|(at, _)| at).collect()
    });
    places.filter(|copies: &Vec<usize>| !copies.is_empty()).collect()
}

#[test]
fn a_local_answer_comes_back_behind_a_damaged_log_or_is_named() {
    let sample = Sample::cut(60, 5);
    let answers = local_answers(&sample);
    assert!(!answers.is_empty());
    let flipped = |places: &[usize]| {
        let mut wal = sample.wal.clone();
        for at in places {
            wal[*at] ^= 1;
        }
        (sample.db.clone(), wal)
    };
    // The sum of the frame: SQLite drops it and what follows, and every byte of its page is as it was.
    let sum_of_frame = |at: usize| at - (at - 32) % (PAGE + 24) + 16;
    let behind = answers.iter().map(|copies| flipped(&[sum_of_frame(copies[0])]));
    let exact = each("sums of frames", 5, behind, &sample);
    assert_eq!(exact, answers.len() * sample.known.len(), "nothing is damaged but a sum");
    assert!(each("local answers in the log", 5, answers.iter().map(|copies| flipped(copies)), &sample) > 0);
}

#[test]
fn no_flipped_bit_of_the_header_stops_the_service() {
    let (count, seed) = effort(2);
    let sample = Sample::closed(20, seed);
    // Each bit in the long run, else those of the two versions and the mark, and a few more.
    let bits =
        (0..800).filter(|bit| count >= 50 || (480..488).contains(bit) || bit % 61 == 0 || [507, 510].contains(bit));
    let files = bits.map(|bit| {
        let mut db = sample.db.clone();
        db[bit / 8] ^= 1 << (bit % 8);
        (db, Vec::new())
    });
    assert!(each("flips in the header", seed, files, &sample) > 0);
}

/// One bit of a request's row flipped: no page and no tree is other than it should be, and only the row's own sum can
/// tell.
fn row_flipped(sample: &Sample, chance: &mut Chance) -> Vec<u8> {
    let mut db = sample.db.clone();
    let nth = chance.below(sample.known.len() as u64) as usize;
    let id = sample.known.values().nth(nth).unwrap().id().into_bytes();
    // Its index has the id too; in the table the endpoint follows.
    let in_row =
        |at: &usize| db[*at..].starts_with(&id) && db[*at..*at + 200].windows(8).any(|text| text == b"/v1/chat");
    let row = (0..db.len() - 200).find(in_row).unwrap();
    // Behind the id: numbers, endpoint, model, label, the body's hash.
    db[row + id.len() + chance.below(100) as usize] ^= 1 << chance.below(8);
    db
}

#[test]
fn a_start_holds_over_flipped_bits_in_rows() {
    let (count, seed) = effort(2);
    let sample = Sample::closed(60, seed);
    let mut chance = Chance(seed);
    let files = (0..count * 6).map(|_| (row_flipped(&sample, &mut chance), Vec::new()));
    assert!(each("flips in rows", seed, files, &sample) > 0);
}

/// Where a name stands in the file's own description of its tables and indexes, and a bit of it flipped.
fn misnamed(db: &[u8], name: &str, chance: &mut Chance) -> Vec<u8> {
    let mut db = db.to_vec();
    let places: Vec<usize> = (0..db.len() - name.len()).filter(|at| db[*at..].starts_with(name.as_bytes())).collect();
    let at = places[chance.below(places.len() as u64) as usize];
    // From one letter to another, so that what comes out may be a name as well.
    db[at + chance.below(name.len() as u64) as usize] ^= 1;
    db
}

#[test]
fn a_start_holds_over_flipped_bits_in_names() {
    let (count, seed) = effort(2);
    let sample = Sample::closed(20, seed);
    let mut chance = Chance(seed);
    let names = ["boot_ms", "next_seq", "request_ready", "request_state", "attempts", "latency_ms", "device_key"];
    let files = (0..count).flat_map(|_| names.map(|name| (misnamed(&sample.db, name, &mut chance), Vec::new())));
    assert!(each("flips in names", seed, files.collect::<Vec<_>>().into_iter(), &sample) > 0);
}
