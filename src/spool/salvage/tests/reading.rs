//! Whole files, and files with one plain kind of damage.

use super::damage::{Verdict, judge, salvage};
use super::sample::{PAGE, Sample};
use crate::spool::salvage::{pages, record, rows};

#[test]
fn a_sound_spool_comes_out_byte_for_byte() {
    for sample in [Sample::closed(96, 1), Sample::cut(96, 2)] {
        assert!(sample.known.len() == 96 && sample.db.len().max(sample.wal.len()) > 200_000);
        let verdict = judge(&sample, &sample.db, &sample.wal);
        assert_eq!(verdict, Verdict { exact: 96, ..Verdict::default() });
        let (_, report) = salvage(&sample, &sample.db, &sample.wal);
        assert_eq!((report.lost, report.gaps), (vec![], vec![]));
        assert_eq!((report.pages_damaged, report.pages_unreadable, report.frames_dropped), (0, 0, 0));
    }
}

#[test]
fn the_log_alone_is_enough_and_without_it_the_file_is() {
    let sample = Sample::cut(24, 3);
    assert!(sample.wal.len() > 100_000);
    let verdict = judge(&sample, &[], &sample.wal);
    assert_eq!(verdict.wrong, 0);
    let (found, report) = salvage(&sample, &sample.db, &[]);
    // What only the log knew is not there; nobody can name it.
    assert!(found.len() < 24 && report.frames == 0);
}

#[test]
fn a_wiped_header_costs_nothing() {
    for sample in [Sample::closed(64, 4), Sample::earlier(64, 4)] {
        let mut db = sample.db.clone();
        db[..100].fill(0);
        let kept = Verdict { exact: 64, elsewhere: 64, kept_elsewhere: 64, ..Verdict::default() };
        assert_eq!(judge(&sample, &db, &[]), kept);
    }
}

#[test]
fn each_page_can_be_lost_and_what_it_held_is_named() {
    let sample = Sample::closed(64, 5);
    for page in 0..sample.db.len() / PAGE {
        let mut db = sample.db.clone();
        db[page * PAGE..(page + 1) * PAGE].fill(0);
        let verdict = judge(&sample, &db, &[]);
        assert_eq!((verdict.wrong, verdict.unnamed), (0, 0), "page {}: {verdict:?}", page + 1);
        assert_eq!(verdict.kept_elsewhere, verdict.elsewhere, "page {}", page + 1);
    }
}

#[test]
fn a_report_names_ids_and_no_content() {
    let sample = Sample::closed(64, 6);
    let dir = tempfile::tempdir().unwrap();
    let mut db = sample.db.clone();
    for page in (4..db.len() / PAGE).step_by(2) {
        db[page * PAGE..(page + 1) * PAGE].fill(0x55);
    }
    let (_, report) = salvage(&sample, &db, &[]);
    report.write(dir.path()).unwrap();
    let text = std::fs::read_to_string(dir.path().join("report.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.last().unwrap()["summary"].as_bool().unwrap());
    assert!(lines.len() > 1 && lines[0]["id"].as_str().unwrap().starts_with("req_"));
    assert!(!text.contains("press ") && !text.contains("uid:"));
}

#[test]
fn an_index_says_which_requests_were_being_sent() {
    let sample = Sample::closed(120, 3);
    let mut said = Vec::new();
    for (n, page) in sample.db.chunks(PAGE).enumerate() {
        for cell in pages::index(page, n as u32 + 1) {
            said.extend(record::decode(&page[cell.local]).and_then(|values| rows::sending_entry(&values)));
        }
    }
    said.sort_unstable();
    let known = sample.known.iter().filter(|(_, known)| known.state() == 1).map(|(seq, _)| *seq as u64);
    let sending: Vec<u64> = known.collect();
    assert!(!sending.is_empty());
    assert_eq!(said, sending);
}
