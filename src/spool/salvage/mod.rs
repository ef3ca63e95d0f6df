//! Reading what is left of a damaged spool: rows by themselves, without SQLite and without the tree over them.
//!
//! Owns the promise that each record comes out byte for byte or is named as lost. Only reads; never changes,
//! sends or decides anything. Memory is bounded by the number of rows, not by their bodies.

mod convert;
mod found;
mod images;
mod index;
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

use std::fs::File;
use std::path::{Path, PathBuf};

use super::SpoolError;
use images::{Images, Source};
use index::{Index, Place};
use rows::Worth;

pub(super) use found::{Answer, Body, Found};
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

    fn of(db: Box<dyn Source>, wal: Box<dyn Source>, bodies: PathBuf) -> Salvage {
        let images = Images::new(db, wal);
        let mut report = Report {
            frames: images.log.frames.len() as u64,
            frames_dropped: images.log.dropped(),
            ..Report::default()
        };
        let mut index = index::build(&images, &mut report);
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

    /// Powered-on milliseconds at the latest commit, as far as that is left.
    pub(super) fn powered_ms(&self) -> u64 {
        super::codes::num(self.index.powered_ms)
    }

    fn found(&mut self, place: &Place) -> Option<Found> {
        let damaged = self.index.damaged.binary_search_by_key(&place.seq, |d| d.0).is_ok();
        let superseded = damaged || place.depth.0 > 0;
        let mut reader = found::Reader { images: &self.images, index: &self.index, budget: &mut self.budget };
        let Some(found) = reader.read(place, superseded, &self.bodies, &mut self.report) else {
            let seq = u64::try_from(place.seq).ok();
            self.report.lose(Lost { seq, id: None, state: None, what: "request", why: "its row cannot be read" });
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
    Ok(wal::scan(source(wal)?.as_ref(), images::PAGE_SIZE).dropped())
}

/// A file that is missing has no bytes.
fn source(path: &Path) -> Result<Box<dyn Source>, SpoolError> {
    match File::open(path) {
        Ok(file) => Ok(Box::new(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Box::new(Vec::new())),
        Err(e) => Err(e.into()),
    }
}
