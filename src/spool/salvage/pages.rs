//! Table and index pages of SQLite's file format, read one by one and without the tree above them.
//!
//! Owns the bounds of every cell; never believes a pointer it did not check. Pure over the bytes of one page.

use std::ops::Range;

use super::varint;

/// What a page with rows of a table begins with.
const TABLE_LEAF: u8 = 0x0d;
/// What an inner page of a table begins with.
pub(super) const TABLE_INTERIOR: u8 = 0x05;
const INDEX_LEAF: u8 = 0x0a;
const INDEX_INTERIOR: u8 = 0x02;
/// Bytes before the page header on page 1.
const FILE_HEADER: usize = 100;
/// Largest payload looked at: an inline body of 64 KiB with its row, and room for long texts of a request.
pub(super) const PAYLOAD_MAX: usize = 128 * 1024;

/// Where one row stands on its page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    /// The row's number; 0 in an index.
    pub(super) rowid: i64,
    /// Bytes of the whole payload, at most [`PAYLOAD_MAX`].
    pub(super) bytes: usize,
    /// The part of it that stands on this page.
    pub(super) local: Range<usize>,
    /// The page on which it goes on.
    pub(super) overflow: Option<u32>,
}

/// The rows of one page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Leaf {
    /// The page says itself that it holds rows; else its first byte is one flipped bit away from saying so, and
    /// only rows that prove themselves are to be believed.
    pub(super) sure: bool,
    /// Cells by their place in the page's list; `None` where the list points at nothing sound.
    pub(super) cells: Vec<Option<Cell>>,
}

/// Reads a page of rows; `None` where it is none. A page of a body's bytes begins with a zero (the number of a
/// page that no spool is large enough to have), so nobody can smuggle a page of rows in through a body.
pub(super) fn leaf(page: &[u8], number: u32) -> Option<Leaf> {
    let at = header_at(number);
    let kind = *page.get(at)?;
    if (kind ^ TABLE_LEAF).count_ones() > 1 {
        return None;
    }
    let cells = pointers(page, at, 8).map(|cell| table_cell(page, cell)).collect();
    Some(Leaf { sure: kind == TABLE_LEAF, cells })
}

/// Reads the entries of an index page that stand on it as a whole; empty where it is none.
pub(super) fn index(page: &[u8], number: u32) -> Vec<Cell> {
    let at = header_at(number);
    let (header, child) = match page.get(at) {
        Some(&INDEX_LEAF) => (8, 0),
        Some(&INDEX_INTERIOR) => (12, 4),
        _ => return Vec::new(),
    };
    pointers(page, at, header).filter_map(|cell| index_cell(page, cell + child)).collect()
}

/// The entries of an index page, and the pages below it; `None` where it is no sound page of an index.
pub(super) fn branch(page: &[u8], number_of_page: u32) -> Option<(Vec<Cell>, Vec<u32>)> {
    let at = header_at(number_of_page);
    let inner = match *page.get(at)? {
        INDEX_LEAF => false,
        INDEX_INTERIOR => true,
        _ => return None,
    };
    let mut below = Vec::new();
    let mut entries = Vec::new();
    for cell in pointers(page, at, if inner { 12 } else { 8 }) {
        if inner {
            below.push(number(page.get(cell..)?)?);
        }
        entries.push(index_cell(page, if inner { cell + 4 } else { cell })?);
    }
    if inner {
        below.push(number(page.get(at + 8..)?)?);
    }
    Some((entries, below))
}

/// The pages below an inner page of a table or of an index; none where it is no such page.
pub(super) fn below(page: &[u8], number_of_page: u32) -> Vec<u32> {
    let at = header_at(number_of_page);
    if !matches!(page.get(at), Some(&(TABLE_INTERIOR | INDEX_INTERIOR))) {
        return Vec::new();
    }
    let cells = pointers(page, at, 12).chain([at + 8]);
    cells.filter_map(|cell| number(page.get(cell..)?)).filter(|page| *page > 0).collect()
}

/// Where the page's own header begins.
pub(super) fn header_at(number: u32) -> usize {
    if number == 1 { FILE_HEADER } else { 0 }
}

/// Offsets of the cells; those that cannot be are given as the page's end, where nothing is read.
fn pointers(page: &[u8], at: usize, header: usize) -> impl Iterator<Item = usize> + '_ {
    let list = at + header;
    let claimed = word(page, at + 3).unwrap_or(0);
    // A list cannot be longer than the page.
    let count = claimed.min(page.len().saturating_sub(list) / 2);
    (0..count).map(move |n| {
        let cell = word(page, list + 2 * n).unwrap_or(0);
        if cell >= list + 2 * count { cell } else { page.len() }
    })
}

fn word(page: &[u8], at: usize) -> Option<usize> {
    let bytes = page.get(at..at + 2)?;
    Some(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
}

fn table_cell(page: &[u8], at: usize) -> Option<Cell> {
    let (bytes, first) = varint::read(page.get(at..)?)?;
    let (rowid, second) = varint::read(page.get(at + first..)?)?;
    cell(page, at + first + second, bytes, rowid as i64, page.len().checked_sub(35)?)
}

fn index_cell(page: &[u8], at: usize) -> Option<Cell> {
    let (bytes, first) = varint::read(page.get(at..)?)?;
    let most = (page.len().checked_sub(12)? * 64 / 255).checked_sub(23)?;
    cell(page, at + first, bytes, 0, most).filter(|cell| cell.overflow.is_none())
}

/// `most`: bytes of a payload that stay on the page.
fn cell(page: &[u8], at: usize, bytes: u64, rowid: i64, most: usize) -> Option<Cell> {
    let bytes = usize::try_from(bytes).ok().filter(|n| *n <= PAYLOAD_MAX)?;
    let stays = if bytes <= most { bytes } else { local_bytes(page.len(), bytes, most)? };
    let local = at..at.checked_add(stays)?;
    page.get(local.clone())?;
    let overflow = if stays < bytes { Some(number(page.get(local.end..)?)?) } else { None };
    Some(Cell { rowid, bytes, local, overflow })
}

/// How much of a payload that does not fit stands on its own page.
fn local_bytes(page: usize, bytes: usize, most: usize) -> Option<usize> {
    let least = (page.checked_sub(12)? * 32 / 255).checked_sub(23)?;
    let rest = least + (bytes - least) % (page - 4);
    Some(if rest <= most { rest } else { least })
}

/// The page number at the front of `bytes`.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk::<4>().map(|b| u32::from_be_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inner_page_names_what_is_below_it() {
        for (page_number, at) in [(7, 0), (1, FILE_HEADER)] {
            let mut page = vec![0; 512];
            page[at] = TABLE_INTERIOR;
            page[at + 4] = 2; // cells
            page[at + 11] = 40; // below behind the last of them
            for (n, (cell, child)) in [(300_u16, 20), (400, 30)].into_iter().enumerate() {
                page[at + 12 + 2 * n..at + 14 + 2 * n].copy_from_slice(&cell.to_be_bytes());
                page[usize::from(cell) + 3] = child;
            }
            assert_eq!(below(&page, page_number), [20, 30, 40]);
            page[at] = TABLE_LEAF;
            assert_eq!(below(&page, page_number), [0; 0], "a leaf has none");
        }
    }
}
