//! The page images there are: those of the database file, and those of its log laid over them.
//!
//! Owns which image of a page is the newest; never interprets one.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::wal::{self, Fate, Log};
use crate::spool::schema::PAGE_SIZES;

/// Pages of a file whose header is damaged are looked for at these many places.
const GUESSES_MAX: u64 = 1024;
/// So many places where only a small page can begin have to look like one.
const GUESSES_AGREED: usize = 2;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Bytes that can be read by place: a file, or memory in tests.
pub(super) trait Source: Send {
    /// How many there are.
    fn len(&self) -> u64;
    /// Fills `into` from `offset`; false where it cannot be filled.
    fn fill(&self, offset: u64, into: &mut [u8]) -> bool;
}

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn fill(&self, offset: u64, into: &mut [u8]) -> bool {
        let from = usize::try_from(offset).ok().and_then(|at| self.get(at..at.checked_add(into.len())?));
        from.is_some_and(|bytes| {
            into.copy_from_slice(bytes);
            true
        })
    }
}

impl Source for File {
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |m| m.len())
    }

    fn fill(&self, offset: u64, into: &mut [u8]) -> bool {
        self.read_exact_at(into, offset).is_ok()
    }
}

/// One image of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Image {
    /// The page of this number in the database file.
    File(u32),
    /// The frame of this place in the log.
    Frame(u32),
}

/// How far the log is laid over the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// With what SQLite drops.
    Newest,
    /// As SQLite sees it.
    Applied,
    /// The file alone.
    File,
}

/// The smallest piece that a disk writes as a whole.
const BLOCK_BYTES: u64 = 512;
/// Older images of one page that are looked at for one entry.
const OLDER_MAX: usize = 8;

/// Both files and the order of their images.
pub(super) struct Images {
    db: Box<dyn Source>,
    wal: Box<dyn Source>,
    pub(super) log: Log,
    pub(super) page_size: usize,
    /// Frames of a page, oldest first; unfinished transactions are not among them.
    frames: HashMap<u32, Vec<u32>>,
    /// Pages of the file, a cut-off one included.
    file_pages: u32,
    /// Pages of file and log.
    pub(super) pages: u32,
}

impl Images {
    /// Reads the log and the file's size.
    pub(super) fn new(db: Box<dyn Source>, wal: Box<dyn Source>) -> Images {
        let page_size = page_size(db.as_ref());
        let log = wal::scan(wal.as_ref(), page_size);
        // The file's own header may be gone while the log's is sound.
        let page_size = log.page_size;
        let mut frames: HashMap<u32, Vec<u32>> = HashMap::new();
        for (n, frame) in log.frames.iter().enumerate().filter(|(_, f)| f.fate != Fate::Unfinished && f.page > 0) {
            frames.entry(frame.page).or_default().push(n as u32);
        }
        let file_pages = u32::try_from(db.len().div_ceil(page_size as u64)).unwrap_or(u32::MAX);
        // A flipped bit in a frame's page number must not make the walk longer than what there is to read.
        let most = file_pages.saturating_add(log.frames.len() as u32);
        let pages = frames.keys().copied().filter(|p| *p <= most).max().unwrap_or(0).max(file_pages);
        Images { db, wal, log, page_size, frames, file_pages, pages }
    }

    /// Bytes of one page, to read images into.
    pub(super) fn buffer(&self) -> Vec<u8> {
        vec![0; self.page_size]
    }

    /// Images of both files; what bounds the work of a walk.
    pub(super) fn count(&self) -> u64 {
        u64::from(self.file_pages) + self.log.frames.len() as u64
    }

    /// The images of a page, newest first, each with whether it is certainly what was written.
    pub(super) fn of(&self, page: u32) -> Vec<(Image, bool)> {
        let frames = self.frames.get(&page).map_or(&[][..], Vec::as_slice).iter().rev();
        let whole = |n: &u32| self.log.frames.get(*n as usize).is_some_and(|f| f.whole);
        let mut images: Vec<_> = frames.map(|n| (Image::Frame(*n), whole(n))).collect();
        if (1..=self.file_pages).contains(&page) {
            images.push((Image::File(page), false));
        }
        images
    }

    /// Images that carry a number of no page: it is damaged, the rows on them need not be.
    pub(super) fn strays(&self) -> Vec<Image> {
        let stray = |f: &wal::Frame| f.fate == Fate::Dropped && !f.whole && !(1..=self.pages).contains(&f.page);
        let frames = self.log.frames.iter().enumerate().filter(|(_, frame)| stray(frame));
        frames.map(|(n, _)| Image::Frame(n as u32)).collect()
    }

    /// Whether a log is there of which the disk does not give every frame.
    pub(super) fn has_unreadable_log(&self) -> bool {
        let mut frame = self.buffer();
        let dropped = self.log.frames.iter().enumerate().filter(|(_, frame)| frame.fate == Fate::Dropped);
        let mut images = dropped.map(|(n, _)| Image::Frame(n as u32));
        (self.wal.len() > 0 && !self.wal.fill(0, &mut [0])) || images.any(|image| !self.read(image, &mut frame))
    }

    /// Whether a log is there and nothing of it can be read.
    pub(super) fn lacks_its_log(&self) -> bool {
        let mut frame = self.buffer();
        let mut images = (0..self.log.frames.len()).map(|n| Image::Frame(n as u32));
        self.wal.len() > 0 && !self.wal.fill(0, &mut [0]) && !images.any(|image| self.read(image, &mut frame))
    }

    /// Whether a frame between the two is not what was written: a newer image than the older of them may have been there.
    pub(super) fn is_torn_between(&self, one: Image, other: Image) -> bool {
        let place = |image| if let Image::Frame(n) = image { n as usize + 1 } else { 0 };
        let (from, to) = (place(one).min(place(other)), place(one).max(place(other)));
        self.log.frames.get(from..to).is_some_and(|frames| frames.iter().any(|frame| !frame.whole))
    }

    /// Whether an image is a frame of the log that is not what was written: where the power went between its header and
    /// its page, the page is one of an earlier generation of the log.
    pub(super) fn is_torn(&self, image: Image) -> bool {
        let frame = if let Image::Frame(n) = image { self.log.frames.get(n as usize) } else { None };
        frame.is_some_and(|frame| !frame.whole)
    }

    /// Whether these bytes of an image may come from two writes: it is a torn frame, and a disk's block ends between them.
    pub(super) fn is_seam(&self, image: Image, bytes: &Range<usize>) -> bool {
        let Image::Frame(n) = image else { return false };
        let page = wal::HEADER + u64::from(n) * (wal::FRAME_HEADER + self.page_size as u64) + wal::FRAME_HEADER;
        let block = |at: usize| (page + at as u64) / BLOCK_BYTES;
        self.is_torn(image) && block(bytes.start) != block(bytes.end.saturating_sub(1))
    }

    /// Whether an older image of this page holds these bytes, too.
    pub(super) fn has_older(&self, page: u32, newest: Image, bytes: &[u8]) -> bool {
        let mut older = self.buffer();
        let images = self.of(page).into_iter().map(|(image, _)| image).filter(|image| *image != newest);
        let mut holds = |image| self.read(image, &mut older) && older.windows(bytes.len()).any(|part| part == bytes);
        images.take(OLDER_MAX).any(&mut holds)
    }

    /// Whether the file has a page of this number.
    pub(super) fn has(&self, page: u32) -> bool {
        (1..=self.file_pages).contains(&page)
    }

    /// Whether SQLite drops this image.
    pub(super) fn is_dropped(&self, image: Image) -> bool {
        let frame = if let Image::Frame(n) = image { self.log.frames.get(n as usize) } else { None };
        frame.is_some_and(|f| f.fate == Fate::Dropped)
    }

    /// Every image of each page of which SQLite drops a frame.
    pub(super) fn around_dropped(&self) -> Vec<Image> {
        let images = self.dropped_pages().flat_map(|page| self.of(page)).map(|(image, _)| image);
        images.chain(self.strays()).collect()
    }

    /// The pages of which SQLite drops a frame.
    pub(super) fn dropped_pages(&self) -> impl Iterator<Item = u32> + '_ {
        let dropped = |n: &u32| self.is_dropped(Image::Frame(*n));
        self.frames.iter().filter(move |(_, frames)| frames.iter().any(dropped)).map(|(page, _)| *page)
    }

    /// The newest image of a page in a view.
    pub(super) fn newest(&self, page: u32, view: View) -> Option<Image> {
        let fits = |n: &&u32| match view {
            View::Newest => true,
            View::Applied => self.log.frames.get(**n as usize).is_some_and(|f| f.fate == Fate::Applied),
            View::File => false,
        };
        let frame = self.frames.get(&page).and_then(|all| all.iter().rev().find(fits));
        let file = (1..=self.file_pages).contains(&page).then_some(Image::File(page));
        frame.map(|n| Image::Frame(*n)).or(file)
    }

    /// Reads an image; the missing end of a cut-off page reads as zeroes. False where the disk refuses.
    pub(super) fn read(&self, image: Image, into: &mut [u8]) -> bool {
        let size = self.page_size as u64;
        match image {
            Image::Frame(n) => {
                let frame = wal::HEADER + u64::from(n) * (wal::FRAME_HEADER + size);
                self.wal.fill(frame + wal::FRAME_HEADER, into)
            }
            Image::File(page) => {
                let at = u64::from(page.saturating_sub(1)) * size;
                let there = self.db.len().saturating_sub(at).min(size) as usize;
                into[there..].fill(0);
                self.db.fill(at, &mut into[..there])
            }
        }
    }

    /// The number of the page an image is of.
    pub(super) fn page_of(&self, image: Image) -> u32 {
        match image {
            Image::File(page) => page,
            Image::Frame(n) => self.log.frames.get(n as usize).map_or(0, |f| f.page),
        }
    }
}

/// The file header's word, where the header is whole in what surrounds it; else what the pages look like.
fn page_size(db: &dyn Source) -> usize {
    let mut header = [0u8; 24];
    if !db.fill(0, &mut header) || header[..16] != MAGIC[..] {
        return looks_like(db);
    }
    // These four bytes are the same in every SQLite file; reserved bytes a spool never has.
    let fixed = header[20..24] == [0, 64, 32, 32];
    match usize::from(u16::from_be_bytes([header[16], header[17]])) {
        1 if fixed => 65536,
        said if fixed && said.is_power_of_two() && said >= 512 => said,
        _ => looks_like(db),
    }
}

/// One of the sizes that spools have: the small one where pages begin at places that no large one begins at.
fn looks_like(db: &dyn Source) -> usize {
    let [small, large] = PAGE_SIZES;
    let only_small = (1..GUESSES_MAX).map(|page| page * small).filter(|at| at % large != 0);
    let mut head = [0u8; 8];
    let begins = only_small.filter(|at| db.fill(*at, &mut head) && is_page_head(head, small));
    let size = if begins.take(GUESSES_AGREED).count() == GUESSES_AGREED { small } else { large };
    size as usize
}

/// Whether a page of a tree may begin so (SQLite's file format, "B-tree Pages").
fn is_page_head(head: [u8; 8], page_size: u64) -> bool {
    let number = |at: usize| u64::from(u16::from_be_bytes([head[at], head[at + 1]]));
    let (free, cells, content) = (number(1), number(3), number(5));
    let is_kind = matches!(head[0], 2 | 5 | 10 | 13);
    is_kind && free < page_size && content <= page_size && 8 + 2 * cells <= content && head[7] <= 60
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_SIZE: usize = 4096;

    /// A file of one page, and a log of one frame of it whose sum does not hold.
    fn torn() -> Images {
        let mut file = vec![0; PAGE_SIZE];
        file[2000..2040].fill(7);
        let mut log = vec![0; (wal::HEADER + wal::FRAME_HEADER) as usize + PAGE_SIZE];
        // Page 1, which ends a transaction of one page.
        (log[35], log[39]) = (1, 1);
        Images::new(Box::new(file), Box::new(log))
    }

    #[test]
    fn bytes_on_both_sides_of_a_block_of_a_torn_frame_may_be_of_two_writes() {
        let images = torn();
        let frame = images.newest(1, View::Newest).unwrap();
        assert!(matches!(frame, Image::Frame(0)) && images.is_torn(frame));
        // The page stands 56 bytes behind the beginning of the log, so a block ends 456 bytes into it.
        assert!(images.is_seam(frame, &(450..490)) && images.is_seam(frame, &(455..457)));
        assert!(!images.is_seam(frame, &(416..456)) && !images.is_seam(frame, &(456..496)));
        assert!(!images.is_seam(Image::File(1), &(450..490)));
    }

    #[test]
    fn an_older_image_tells_that_they_are_of_one() {
        let images = torn();
        let frame = images.newest(1, View::Newest).unwrap();
        assert!(images.has_older(1, frame, &[7; 40]) && !images.has_older(1, frame, &[7; 41]));
        assert!(!images.has_older(1, Image::File(1), &[7; 40]), "only others count");
    }
}
