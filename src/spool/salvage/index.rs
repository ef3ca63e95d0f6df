//! The first pass: where each row stands, without keeping any row.
//!
//! Owns which of several copies of a row wins; memory is a few words a row and never a body.

use std::cmp::Reverse;
use std::collections::HashMap;

use rusqlite::types::Value;

use super::images::{Image, Images, View};
use super::marks::Mark;
use super::pages::{self, Cell};
use super::record::{self, Header};
use super::report::Report;
use super::rows::{self, Kind, Worth};

/// Rows remembered: twenty times the default queue with its finished requests; 48 bytes each.
const PLACES_MAX: usize = 4 << 20;
/// How often each image may be read as part of a row that goes on over pages. A sound file needs one time; this
/// ends the work on a file whose rows all claim the same pages.
const OVERFLOW_READS: u64 = 4;

/// Where a row's cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) seq: i64,
    /// Of a request: how much it is worth, then its version: the greatest wins. Of others: whether their page is
    /// sure to hold rows.
    pub(super) worth: Worth,
    pub(super) version: i64,
    /// How many newer images of its page there are; of two that are equal otherwise, the one with fewer.
    pub(super) depth: Reverse<u32>,
    pub(super) image: Image,
    pub(super) cell: u16,
}

/// What the first pass knows.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By sequence number; the winning copy only.
    pub(super) requests: Vec<Place>,
    /// The database is not here as a whole: what is missing stands where it was.
    pub(super) is_excerpt: bool,
    /// Some row has a sum: the file is not of the version before there were any.
    pub(super) has_proven: bool,
    /// By sequence number, every copy: its hash decides later.
    pub(super) bodies: Vec<Place>,
    /// The same of answers.
    pub(super) answers: Vec<Place>,
    /// Names by number.
    pub(super) sources: HashMap<i64, (String, Worth)>,
    /// Names in damaged rows of sources, and the sums there.
    pub(super) sources_damaged: HashMap<i64, (Option<String>, Vec<u8>)>,
    /// Requests that may be on their way though no row says so: part of the log cannot be read.
    pub(super) in_doubt: Vec<u64>,
    /// Damaged rows of requests: number, id and state as far as they can be read.
    pub(super) damaged: Vec<(i64, Option<String>, Option<i64>)>,
    /// Where the index of answers begins.
    pub(super) answers_root: Option<u32>,
    /// Which answers there should be, as [`answer_key`]s in order; `None` where their index is not whole.
    pub(super) answers_wanted: Option<Vec<i64>>,
    /// What devices rely on beside their requests.
    pub(super) marks: Vec<Mark>,
    /// The next sequence number, as far as any row of `service` says it.
    pub(super) next_seq: i64,
    /// The same of the service clock.
    pub(super) powered_ms: i64,
}

/// Reads every page's images once.
pub(super) fn build(images: &Images, report: &mut Report) -> Index {
    let mut pass = Pass { images, report, index: Index::default(), budget: budget(images) };
    let mut buffer = images.buffer();
    for page in 1..=images.pages {
        pass.page(page, &mut buffer);
    }
    pass.strays(&mut buffer);
    let mut index = pass.index;
    // Ascending, so that the last of each number is the one that wins.
    index.requests.sort_unstable();
    index.requests.reverse();
    index.requests.dedup_by_key(|place| place.seq);
    index.requests.reverse();
    index.has_proven = index.requests.iter().any(|place| place.worth == Worth::Proven);
    index.bodies.sort_unstable();
    index.answers.sort_unstable();
    index.damaged.sort_unstable();
    index.damaged.dedup_by_key(|damaged| damaged.0);
    index
}

/// Pages that may be read behind rows in one pass.
pub(super) fn budget(images: &Images) -> u64 {
    images.count().saturating_mul(OVERFLOW_READS)
}

/// An answer's request and kind in one number.
pub(super) fn answer_key(seq: i64, local: bool) -> i64 {
    seq.saturating_mul(2).saturating_add(i64::from(local))
}

/// The copies of one row.
pub(super) fn copies(places: &[Place], seq: i64) -> &[Place] {
    let from = places.partition_point(|p| p.seq < seq);
    let to = places.partition_point(|p| p.seq <= seq);
    &places[from..to]
}

struct Pass<'a> {
    images: &'a Images,
    report: &'a mut Report,
    index: Index,
    budget: u64,
}

impl Pass<'_> {
    /// The newest image decides; an older one is asked only where the newer one is not whole.
    fn page(&mut self, page: u32, buffer: &mut [u8]) {
        for (depth, (image, certain)) in self.images.of(page).into_iter().enumerate() {
            self.report.pages += 1;
            if !self.images.read(image, buffer) {
                self.report.pages_unreadable += 1;
                continue;
            }
            let sound = self.image(image, page, buffer, depth as u32);
            if certain || sound {
                break;
            }
        }
    }

    /// Images whose own page number is damaged: their rows stand for themselves.
    fn strays(&mut self, buffer: &mut [u8]) {
        for image in self.images.strays() {
            self.report.pages += 1;
            if self.images.read(image, buffer) {
                self.image(image, u32::MAX, buffer, 0);
            }
        }
    }

    /// Takes in one image; says whether it is a page of rows of which each proves itself here.
    fn image(&mut self, image: Image, number: u32, page: &[u8], depth: u32) -> bool {
        let Some(leaf) = pages::leaf(page, number) else {
            // Interior and index pages, and the zero that a page of overflowing bytes begins with.
            let known = matches!(page.get(pages::header_at(number)), Some(0 | 2 | 5 | 10));
            self.report.pages_damaged += u64::from(!known);
            return false;
        };
        let mut sound = leaf.sure;
        for (at, cell) in leaf.cells.iter().enumerate() {
            let taken = cell.as_ref().is_some_and(|cell| {
                let place = |seq| Place {
                    seq,
                    worth: if leaf.sure { Worth::Plausible } else { Worth::Damaged },
                    version: 0,
                    depth: Reverse(depth),
                    image,
                    cell: at as u16,
                };
                self.row(page, cell, &place, leaf.sure)
            });
            sound &= taken;
        }
        // An inner page is one bit away from a page of rows, and usually just that.
        let inner = page.get(pages::header_at(number)) == Some(&pages::TABLE_INTERIOR);
        if !inner && (!leaf.sure || leaf.cells.iter().any(Option::is_none)) {
            self.report.pages_damaged += 1;
        }
        sound
    }

    /// Takes in one row; says whether it is one and proves itself as far as it can here.
    fn row(&mut self, page: &[u8], cell: &Cell, place: &dyn Fn(i64) -> Place, sure: bool) -> bool {
        let local = page.get(cell.local.clone()).unwrap_or_default();
        let header = Header::read(local).filter(|h| h.record_bytes() == Some(cell.bytes));
        let Some(kind) = header.as_ref().and_then(|h| rows::kind(&h.types)) else {
            return false;
        };
        match kind {
            Kind::Request => self.request(page, cell, place, sure),
            // Bodies and answers prove themselves later, by their hash: until then every copy is of use.
            Kind::Body => {
                keep(&mut self.index.bodies, place(cell.rowid));
                false
            }
            Kind::Answer => {
                self.answer(page, cell, place);
                false
            }
            Kind::Source => self.source(page, cell, sure),
            Kind::Service => self.service(page, cell),
            Kind::Schema => self.schema(page, cell),
        }
    }

    fn request(&mut self, page: &[u8], cell: &Cell, place: &dyn Fn(i64) -> Place, sure: bool) -> bool {
        let mut row = None;
        for view in VIEWS {
            row = self.values(page, cell, view).map(|values| rows::request(values, cell.rowid));
            if cell.overflow.is_none() || row.as_ref().is_some_and(|r| r.worth != Worth::Damaged) {
                break;
            }
        }
        match row {
            Some(row) if row.worth == Worth::Proven || (sure && row.worth == Worth::Plausible) => {
                let place = Place { worth: row.worth, version: row.version, ..place(cell.rowid) };
                keep(&mut self.index.requests, place)
            }
            row => {
                if sure {
                    self.damaged(cell.rowid, row.map(|r| r.values).as_deref());
                }
                false
            }
        }
    }

    fn damaged(&mut self, seq: i64, values: Option<&[Value]>) {
        if seq > 0 && self.index.damaged.len() < PLACES_MAX {
            let id = values.and_then(|v| rows::text(v, rows::ID)).filter(|id| rows::is_id(id));
            let state = values.and_then(|v| rows::integer(v, rows::STATE));
            self.index.damaged.push((seq, id.map(str::to_owned), state));
        }
    }

    /// Its number stands in the front part, however long its bytes are; its sum is asked when it is read whole.
    fn answer(&mut self, page: &[u8], cell: &Cell, place: &dyn Fn(i64) -> Place) {
        let local = page.get(cell.local.clone()).unwrap_or_default();
        if let Some(seq) = record::first_integer(local) {
            keep(&mut self.index.answers, place(seq));
        }
    }

    fn source(&mut self, page: &[u8], cell: &Cell, sure: bool) -> bool {
        let Some(mut values) = self.values(page, cell, View::Newest) else { return false };
        let (name, worth) = rows::source(&mut values, cell.rowid);
        if worth == Worth::Damaged || name.is_none() || (worth == Worth::Plausible && !sure) {
            self.report.sources_damaged += 1;
            let damaged = &mut self.index.sources_damaged;
            if sure && damaged.len() < PLACES_MAX {
                let sum = match rows::source_sum(&values) {
                    Some(Value::Blob(sum)) => sum.clone(),
                    _ => Vec::new(),
                };
                damaged.entry(cell.rowid).or_insert((name, sum));
            }
            return false;
        }
        let name = name.unwrap_or_default();
        let sources = &mut self.index.sources;
        // A source is never renamed: any proven copy is as good as the other.
        if sources.len() < PLACES_MAX && sources.get(&cell.rowid).is_none_or(|(_, known)| *known < worth) {
            sources.insert(cell.rowid, (name, worth));
        }
        true
    }

    fn service(&mut self, page: &[u8], cell: &Cell) -> bool {
        let said = self.values(page, cell, View::Newest).as_deref().and_then(rows::service);
        let (next_seq, powered_ms) = said.unwrap_or_default();
        self.index.next_seq = self.index.next_seq.max(next_seq);
        self.index.powered_ms = self.index.powered_ms.max(powered_ms);
        said.is_some()
    }

    fn schema(&mut self, page: &[u8], cell: &Cell) -> bool {
        let values = self.values(page, cell, View::Newest);
        let root = values.as_deref().and_then(rows::answers_index);
        self.index.answers_root = root.or(self.index.answers_root);
        values.is_some()
    }

    fn values(&mut self, page: &[u8], cell: &Cell, view: View) -> Option<Vec<Value>> {
        record::decode(&payload(self.images, page, cell, view, &mut self.budget)?)
    }
}

/// In what order the pages behind a row are tried.
pub(super) const VIEWS: [View; 3] = [View::Newest, View::Applied, View::File];

fn keep(places: &mut Vec<Place>, place: Place) -> bool {
    let room = place.seq > 0 && places.len() < PLACES_MAX;
    if room {
        places.push(place);
    }
    room
}

/// The pages on which a row goes on.
pub(super) fn overflow(images: &Images, cell: &Cell, view: View, budget: &mut u64) -> Vec<u32> {
    let (mut pages, mut next) = (Vec::new(), cell.overflow);
    let mut buffer = images.buffer();
    let most = cell.bytes.div_ceil(buffer.len() - 4);
    while let Some(page) = next.filter(|page| *page > 0 && pages.len() < most && *budget > 0) {
        *budget -= 1;
        pages.push(page);
        let there = images.newest(page, view).is_some_and(|image| images.read(image, &mut buffer));
        next = there.then(|| pages::number(&buffer)).flatten();
    }
    pages
}

/// A row's whole payload, over all the pages it stands on. Ends because each page adds to it and it is bounded.
pub(super) fn payload(images: &Images, page: &[u8], cell: &Cell, view: View, budget: &mut u64) -> Option<Vec<u8>> {
    let mut bytes = page.get(cell.local.clone())?.to_vec();
    let mut next = cell.overflow;
    let mut buffer = if next.is_some() { images.buffer() } else { Vec::new() };
    while bytes.len() < cell.bytes {
        *budget = budget.checked_sub(1)?;
        let image = images.newest(next.filter(|n| *n > 0)?, view)?;
        if !images.read(image, &mut buffer) {
            return None;
        }
        let wanted = (cell.bytes - bytes.len()).min(buffer.len() - 4);
        bytes.extend_from_slice(buffer.get(4..4 + wanted)?);
        next = pages::number(&buffer);
    }
    Some(bytes)
}
