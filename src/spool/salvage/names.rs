//! Names for what is lost: the index of ids, rows that belong to a request that is gone, numbers without a trace.
//!
//! Owns the rule that a loss is said even where nothing of the row is left.

use std::collections::{BTreeMap, HashMap, HashSet};

use rusqlite::types::Value;

use super::images::{Images, View};
use super::index::{self, Index};
use super::marks::Marks;
use super::report::{Lost, Report};
use super::rows::{self, Worth};
use super::{pages, record};
use crate::spool::sources::believed;

/// Names remembered at a time; each is some 100 bytes.
const NAMES_MAX: usize = 262_144;
/// A next sequence number further than this beyond every row is damage itself.
const AHEAD_MAX: i64 = 1 << 20;

#[derive(Default)]
struct Trace {
    id: Option<String>,
    state: Option<i64>,
    why: &'static str,
    is_doubtful: bool,
}

/// Reports every request that left a trace and is not among the rows, and the runs of numbers that left none.
///
/// Adds sources whose row is gone and whose name the index of names still has, and the marks of devices.
pub(super) fn lost(images: &Images, index: &mut Index, report: &mut Report) {
    let mut sources = std::mem::take(&mut index.sources);
    let mut marks = Marks::default();
    let in_doubt = name(images, index, &mut sources, &mut marks, report);
    index.in_doubt = if images.has_unreadable_log() { in_doubt } else { Vec::new() };
    index.sources = sources;
    let is_whole = report.pages_damaged + report.pages_unreadable == 0;
    index.marks = marks.end(&index.sources, is_whole);
    if !index.is_excerpt {
        index.answers_wanted = answers(images, index);
        report.answers_unsure = index.answers_wanted.is_none();
    }
}

/// Walks the index of answers from its root; `None` where a page or an entry of it is damaged.
fn answers(images: &Images, index: &Index) -> Option<Vec<i64>> {
    let mut wanted = Vec::new();
    let mut seen = HashSet::new();
    let mut due = vec![index.answers_root?];
    let mut buffer = images.buffer();
    while let Some(page) = due.pop() {
        // A page stands in a tree once; a second time is damage, and would have no end.
        if !seen.insert(page) || !images.read(images.newest(page, View::Newest)?, &mut buffer) {
            return None;
        }
        let (entries, below) = pages::branch(&buffer, page)?;
        for cell in entries {
            let values = record::decode(buffer.get(cell.local)?)?;
            let (seq, local) = rows::answer_entry(&values)?;
            wanted.push(index::answer_key(seq, local));
        }
        due.extend(below);
    }
    wanted.sort_unstable();
    Some(wanted)
}

fn name(
    images: &Images,
    index: &Index,
    sources: &mut HashMap<i64, (String, Worth)>,
    marks: &mut Marks,
    report: &mut Report,
) -> Vec<u64> {
    let found = |seq: i64| index.requests.binary_search_by_key(&seq, |p| p.seq).is_ok();
    let mut traces: BTreeMap<i64, Trace> = BTreeMap::new();
    for (seq, id, state) in index.damaged.iter().filter(|d| !found(d.0)).take(NAMES_MAX) {
        traces.insert(*seq, Trace { id: id.clone(), state: *state, why: "its row is damaged", is_doubtful: false });
    }
    let sure = index.bodies.iter().chain(&index.answers).filter(|p| p.worth > Worth::Damaged);
    let orphans = sure.map(|p| p.seq).filter(|seq| !found(*seq));
    for seq in orphans.take(if index.is_excerpt { 0 } else { NAMES_MAX }) {
        traces.entry(seq).or_insert_with(|| Trace { why: "its row is gone", ..Trace::default() });
    }
    // Of an excerpt, what SQLite goes on to list is not lost.
    let mut stands = HashSet::new();
    if index.is_excerpt {
        entries(images, View::Applied, &mut |values, _| stands.extend(rows::id_entry(values).map(|(_, seq)| seq)));
    }
    let found = |seq: i64| found(seq) || stands.contains(&seq);
    let mut in_doubt = Vec::new();
    entries(images, View::Newest, &mut |values, is_whole| {
        let room = traces.len() < NAMES_MAX;
        marks.tell(values);
        in_doubt.extend(rows::sending_entry(values).filter(|_| in_doubt.len() < NAMES_MAX));
        match (rows::id_entry(values), rows::source_entry(values)) {
            (Some((id, seq)), _) if (room && !found(seq)) || traces.contains_key(&seq) => {
                let gone = || Trace { why: "its row is gone", is_doubtful: !is_whole, ..Trace::default() };
                let trace = traces.entry(seq).or_insert_with(gone);
                // The index repeats the id apart from the row, whose own copy may be what is damaged.
                trace.id = Some(id.to_owned());
            }
            (_, Some((name, id))) if sources.len() < NAMES_MAX && is_name(index, id, name) => {
                sources.entry(id).or_insert_with(|| (name.to_owned(), Worth::Plausible));
            }
            _ => {}
        }
    });
    if !index.is_excerpt {
        gaps(index, &traces, report);
    }
    for (seq, trace) in traces {
        let seq = u64::try_from(seq).ok();
        let Trace { id, state, why, is_doubtful } = trace;
        report.lose(Lost { seq, id, state, what: "request", why, is_doubtful });
    }
    in_doubt
}

/// Whether the index's name of a source is to be believed: its row is gone altogether, or does not contradict.
fn is_name(index: &Index, id: i64, name: &str) -> bool {
    let damaged = index.sources_damaged.get(&id);
    damaged.is_none_or(|(in_row, sum)| believed(id, in_row.as_deref(), sum, Some(name)) == Some(name))
}

/// Tells every entry of every index in a view, and whether its page is no torn frame of the log. Entries have no sums.
fn entries(images: &Images, view: View, tell: &mut dyn FnMut(&[Value], bool)) {
    let mut buffer = images.buffer();
    for page in 1..=images.pages {
        let Some(newest) = images.newest(page, view).filter(|image| images.read(*image, &mut buffer)) else { continue };
        let is_whole = !images.is_torn(newest);
        for cell in pages::index(&buffer, page) {
            let Some(bytes) = buffer.get(cell.local.clone()).filter(|bytes| !bytes.is_empty()) else { continue };
            // Half of one entry and half of another read as a request that never was.
            if images.is_seam(newest, &cell.local) && !images.has_older(page, newest, bytes) {
                continue;
            }
            if let Some(values) = record::decode(bytes) {
                tell(&values, is_whole);
            }
        }
    }
}

fn gaps(index: &Index, traces: &BTreeMap<i64, Trace>, report: &mut Report) {
    let last = index.requests.last().map_or(0, |p| p.seq).max(traces.keys().next_back().copied().unwrap_or(0));
    let end = if index.next_seq <= last.saturating_add(AHEAD_MAX) { index.next_seq.max(last + 1) } else { last + 1 };
    let mut seqs: Vec<i64> = index.requests.iter().map(|p| p.seq).chain(traces.keys().copied()).collect();
    seqs.sort_unstable();
    let mut expected = 1;
    for seq in seqs.into_iter().chain([end]).filter(|seq| *seq > 0) {
        if seq > expected {
            report.gap(expected as u64, (seq - 1) as u64);
        }
        expected = expected.max(seq.saturating_add(1));
    }
}
