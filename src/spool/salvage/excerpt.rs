//! The part of a database that is wanted to read the rows in its damaged log: a few pages instead of all.
//!
//! Owns which pages these are; what it leaves out is what SQLite goes on to show. Never judges a row.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::images::{Image, Images, View};
use super::index::{self, VIEWS};
use super::record::Header;
use super::rows::{self, Kind};
use super::{pages, record, source};
use crate::spool::{SpoolError, files};

/// Pages of the trees of sources that are followed: a thousand times what a gateway's clients fill.
const TREE_PAGES_MAX: usize = 16_384;

/// Writes these pages to their places in a new file, which has holes elsewhere, and syncs it.
pub(in crate::spool) fn write(db: &Path, wal: &Path, to: &Path) -> Result<(), SpoolError> {
    let images = Images::new(source(db)?, source(wal)?);
    let mut wanted: BTreeSet<u32> = images.dropped_pages().collect();
    wanted.insert(1);
    rows(&images, &mut wanted);
    sources(&images, &mut wanted);
    let file = files::private().create_new(true).open(to)?;
    // As long as the database, or page numbers in the log would seem to be none.
    file.set_len(std::fs::metadata(db).map_or(0, |m| m.len()))?;
    let mut page = images.buffer();
    for number in wanted {
        // What cannot be read now cannot be read later either.
        if images.has(number) && images.read(Image::File(number), &mut page) {
            file.write_all_at(&page, u64::from(number - 1) * page.len() as u64)?;
        }
    }
    Ok(file.sync_all()?)
}

/// The other pages of rows that begin on a page in the log. Bodies and answers are not followed: each is written by the
/// commit that first names it, and where that is in the log, so are they.
fn rows(images: &Images, wanted: &mut BTreeSet<u32>) {
    let mut budget = index::budget(images);
    let mut page = images.buffer();
    for image in images.around_dropped() {
        let leaf = images.read(image, &mut page).then(|| pages::leaf(&page, images.page_of(image))).flatten();
        for cell in leaf.into_iter().flat_map(|leaf| leaf.cells).flatten().filter(|cell| cell.overflow.is_some()) {
            let header = Header::read(page.get(cell.local.clone()).unwrap_or_default());
            if header.and_then(|header| rows::kind(&header.types)) == Some(Kind::Request) {
                wanted.extend(VIEWS.iter().flat_map(|view| index::overflow(images, &cell, *view, &mut budget)));
            }
        }
    }
}

/// The trees of sources: rows in the log name them by number.
fn sources(images: &Images, wanted: &mut BTreeSet<u32>) {
    let mut page = images.buffer();
    for view in VIEWS {
        let (mut due, mut seen) = (schema(images, view, &mut page), BTreeSet::new());
        while let Some(number) = due.pop() {
            if seen.len() < TREE_PAGES_MAX && seen.insert(number) && newest(images, number, view, &mut page) {
                due.extend(pages::below(&page, number));
            }
        }
        wanted.extend(seen);
    }
}

/// Where the trees of sources begin, by the rows of the schema, which is a tree of its own.
fn schema(images: &Images, view: View, page: &mut [u8]) -> Vec<u32> {
    let (mut due, mut seen, mut roots) = (vec![1], BTreeSet::new(), Vec::new());
    while let Some(number) = due.pop() {
        if seen.len() < TREE_PAGES_MAX && seen.insert(number) && newest(images, number, view, page) {
            due.extend(pages::below(page, number));
            let cells = pages::leaf(page, number).into_iter().flat_map(|leaf| leaf.cells).flatten();
            let rows = cells.filter_map(|cell| page.get(cell.local).and_then(record::decode));
            roots.extend(rows.filter_map(|values| rows::sources_tree(&values)));
        }
    }
    roots
}

fn newest(images: &Images, number: u32, view: View, page: &mut [u8]) -> bool {
    images.newest(number, view).is_some_and(|image| images.read(image, page))
}
