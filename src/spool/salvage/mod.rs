//! Reading what is left of a damaged spool: rows by themselves, without SQLite and without the tree over them.
//!
//! Owns the promise that each record comes out byte for byte or is named as lost. Only reads; never changes,
//! sends or decides anything. Memory is bounded by the number of rows, not by their bodies.

mod convert;
pub(super) mod excerpt;
mod found;
mod images;
mod index;
mod marks;
mod names;
pub(super) mod offline;
mod pages;
mod record;
mod report;
mod rows;
#[cfg(test)]
mod tests;
mod varint;
mod wal;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::schema::PAGE_SIZES;
use super::{SpoolError, quarantine};
use images::{Images, Source};
use index::{Index, Place};
use rows::Worth;

pub(super) use found::{Answer, Body, Found};
pub(super) use marks::{Mark, What};
pub(super) use report::{Lost, Report};

/// Bytes of bodies and answers after which a batch ends; one more row may go beyond it.
const BATCH_BYTES: usize = 1 << 20;

/// A salvage under way.
pub(super) struct Salvage {
    images: Images,
    index: Index,
    /// The next of the index's requests.
    next: usize,
    bodies: PathBuf,
    budget: u64,
    report: Report,
}

impl Salvage {
    /// Looks at every page once and remembers where the rows stand. A missing log is an empty one.
    pub(super) fn open(db: &Path, wal: &Path, data_dir: &Path) -> Result<Salvage, SpoolError> {
        Ok(Salvage::of(source(db)?, source(wal)?, super::files::bodies(data_dir)))
    }

    /// The same of a set: whole files, or a log with an excerpt of the database that is still in use.
    pub(super) fn of_set(set: &Path, data_dir: &Path) -> Result<Salvage, SpoolError> {
        let (db, wal) = (quarantine::database(set), quarantine::log(set));
        let bodies = super::files::bodies(data_dir);
        Ok(Salvage::begin(source(&db)?, source(&wal)?, bodies, quarantine::is_excerpt(set)))
    }

    fn of(db: Box<dyn Source>, wal: Box<dyn Source>, bodies: PathBuf) -> Salvage {
        Salvage::begin(db, wal, bodies, false)
    }

    fn begin(db: Box<dyn Source>, wal: Box<dyn Source>, bodies: PathBuf, is_excerpt: bool) -> Salvage {
        let images = Images::new(db, wal);
        let mut report = Report {
            frames: images.log.frames.len() as u64,
            frames_dropped: images.log.dropped(),
            ..Report::default()
        };
        let mut index = index::build(&images, &mut report);
        index.is_excerpt = is_excerpt;
        let budget = index::budget(&images);
        names::lost(&images, &mut index, &mut report);
        Salvage { images, index, next: 0, bodies, budget, report }
    }

    /// The next requests by ascending sequence number, at most `max`; none at the end.
    pub(super) fn next_batch(&mut self, max: usize) -> Vec<Found> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < max && bytes < BATCH_BYTES {
            let Some(place) = self.index.requests.get(self.next).copied() else { break };
            self.next += 1;
            if let Some(found) = self.found(&place) {
                bytes += found.bytes();
                batch.push(found);
            }
        }
        batch
    }

    /// What was found and lost so far; complete after the last batch.
    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// The same at the end, with what devices rely on beside their requests; everything else is given up.
    pub(super) fn end(self) -> (Report, Vec<Mark>) {
        (self.report, self.index.marks)
    }

    /// Whether there is a log of which the disk gives nothing at all.
    pub(super) fn lacks_its_log(&self) -> bool {
        self.images.lacks_its_log()
    }

    /// Requests of which an index says that they were being sent, where the log has parts that cannot be read: the row
    /// that says so may be among those.
    pub(super) fn in_doubt(&self) -> &[u64] {
        &self.index.in_doubt
    }

    /// Powered-on milliseconds at the latest commit, as far as that is left.
    pub(super) fn powered_ms(&self) -> u64 {
        super::codes::num(self.index.powered_ms)
    }

    fn found(&mut self, place: &Place) -> Option<Found> {
        let damaged = self.index.damaged.binary_search_by_key(&place.seq, |d| d.0).is_ok();
        // Beside rows with sums, one without is an image from before the migration.
        let older = place.worth == Worth::Plausible && self.index.has_proven;
        let superseded = damaged || older || place.depth.0 > 0;
        let mut reader = found::Reader { images: &self.images, index: &self.index, budget: &mut self.budget };
        let Some(found) = reader.read(place, superseded, &self.bodies, &mut self.report) else {
            let seq = u64::try_from(place.seq).ok();
            self.report.lose(Lost {
                seq,
                id: None,
                state: None,
                what: "request",
                why: "its row cannot be read",
                is_doubtful: false,
            });
            return None;
        };
        match place.worth {
            Worth::Proven => self.report.proven += 1,
            _ => self.report.plausible += 1,
        }
        if superseded {
            self.report.superseded += 1;
            self.report.lose(found.loss("state", "its newest image is damaged; this one may be older"));
        }
        Some(found)
    }
}

/// For the fuzz targets: how many requests come out of these bytes.
#[cfg(feature = "planted")]
pub(super) fn count(db: Vec<u8>, wal: Vec<u8>) -> usize {
    let mut salvage = Salvage::of(Box::new(db), Box::new(wal), PathBuf::from("/nonexistent"));
    let mut found = 0;
    loop {
        match salvage.next_batch(64).len() {
            0 => return found,
            more => found += more,
        }
    }
}

/// How many frames of a log SQLite will drop although they were committed: above 0, what SQLite shows is not
/// what was acknowledged.
pub(super) fn dropped_frames(wal: &Path) -> Result<u64, SpoolError> {
    Ok(wal::scan(source(wal)?.as_ref(), PAGE_SIZES[0] as usize).dropped())
}

/// Whether everything that SQLite will drop of a log stands at the same place of another, byte for byte.
pub(super) fn is_dropped_in(wal: &Path, other: &Path) -> Result<bool, SpoolError> {
    let (wal, other) = (source(wal)?, source(other)?);
    let log = wal::scan(wal.as_ref(), PAGE_SIZES[0] as usize);
    let size = wal::FRAME_HEADER as usize + log.page_size;
    let (mut here, mut there) = (vec![0; size], vec![0; size]);
    let dropped = log.frames.iter().enumerate().filter(|(_, frame)| frame.fate == wal::Fate::Dropped);
    let mut offsets = dropped.map(|(n, _)| wal::HEADER + (n * size) as u64);
    Ok(offsets.all(|at| wal.fill(at, &mut here) && other.fill(at, &mut there) && here == there))
}

/// Rows of which the database may say less than was acknowledged.
pub(super) struct Behind {
    /// Their numbers; also those of rows of other tables, which does no harm.
    pub(super) seqs: BTreeSet<u64>,
    /// Part of the log cannot be read: it may be any row.
    pub(super) is_all: bool,
}

/// The rows on pages of which SQLite drops a frame. Reads those pages only.
pub(super) fn behind(db: &Path, wal: &Path) -> Result<Behind, SpoolError> {
    let images = Images::new(source(db)?, source(wal)?);
    let mut behind = Behind { seqs: BTreeSet::new(), is_all: images.has_unreadable_log() };
    let mut page = images.buffer();
    for image in images.around_dropped() {
        let leaf = images.read(image, &mut page).then(|| pages::leaf(&page, images.page_of(image))).flatten();
        let cells = leaf.into_iter().flat_map(|leaf| leaf.cells).flatten();
        behind.seqs.extend(cells.filter_map(|cell| u64::try_from(cell.rowid).ok()));
    }
    Ok(behind)
}

/// A file that is missing has no bytes.
fn source(path: &Path) -> Result<Box<dyn Source>, SpoolError> {
    match File::open(path) {
        Ok(file) => Ok(Box::new(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Box::new(Vec::new())),
        Err(e) => Err(e.into()),
    }
}
