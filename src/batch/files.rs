//! Files that callers uploaded, and those that batches ended in.
//!
//! Owns `data_dir/files`: for each file its bytes, and beside them what is known of it, which is written last: bytes
//! without it are nobody's and go at the next start. Never looks into a file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk;
use super::error::LaterError;
use crate::clock;
use crate::durable;

/// What our files' ids begin with; others are an uplink's.
pub const FILE_PREFIX: &str = "file-hf_";
/// Files kept: what is known of one takes some hundred bytes of memory.
pub const FILES_MAX: usize = 1_000;
/// Files of one source, so that no source takes all places.
pub const FILES_OF_SOURCE_MAX: usize = 250;
/// A file goes after so much powered-on time: what OpenAI gives a batch's output.
pub const FILE_AGE_MS: u64 = 30 * 24 * 3_600_000;
/// Longest name of a file that is kept.
const NAME_BYTES_MAX: usize = 255;

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMeta {
    /// `file-hf_` and 32 hexadecimal digits.
    pub id: String,
    /// Ascends with each file.
    pub seq: u64,
    /// Whose it is.
    pub source: String,
    /// What its caller called it.
    pub filename: String,
    /// `batch` or `batch_output`.
    pub purpose: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// Unix seconds, for showing.
    pub created_at: u64,
    /// Powered-on milliseconds, for deciding.
    pub created_powered_ms: u64,
}

impl FileMeta {
    /// Whether this is the SHA-256 of its bytes.
    pub fn has_sum(&self, digest: &[u8]) -> bool {
        disk::hex(digest) == self.sha256
    }
}

/// All of them.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    max_bytes: u64,
    min_free: u64,
    known: Mutex<BTreeMap<u64, FileMeta>>,
    /// Held while a file becomes known, so that each has a number of its own.
    adopting: Mutex<()>,
    coming: Coming,
    /// Numbers begin here: higher than any of those that could not be read.
    first: u64,
}

/// Whose uploads are on their way, and how many bytes each may have. As many as there are requests at once.
type Coming = Arc<Mutex<BTreeMap<u64, (String, u64)>>>;

/// The room that is kept for one upload until it is whole or gone.
#[derive(Debug)]
pub(super) struct Room {
    coming: Coming,
    number: u64,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// A fresh id.
pub(super) fn fresh_id() -> String {
    format!("{FILE_PREFIX}{:016x}{:016x}", clock::random_u64(), clock::random_u64())
}

impl Files {
    /// Reads what is kept; blocks. `written` are bytes that unfinished batches write; `None` where nobody knows. A folder
    /// that cannot be read stops no start: its files are missing until the next one.
    pub(super) fn open(folder: PathBuf, max_bytes: u64, min_free: u64, written: Option<&[String]>) -> Files {
        let read = durable::make_folder(&folder).and_then(|()| disk::all::<FileMeta>(&folder));
        let first = first_number(read.is_ok());
        let known: BTreeMap<u64, FileMeta> = match read {
            Ok(all) => {
                // What was set aside may be all that names a file: then nothing is removed.
                if let Some(written) = written.filter(|_| !disk::has_damaged(&folder)) {
                    remove_unknown(&folder, |id| written.contains(id) || all.iter().any(|meta| meta.id == *id));
                }
                numbered(all, |meta| &mut meta.seq)
            }
            Err(error) => {
                tracing::error!("kept files cannot be read: {error}");
                BTreeMap::new()
            }
        };
        let (known, adopting) = (Mutex::new(known), Mutex::default());
        Files { folder, max_bytes, min_free, known, adopting, coming: Coming::default(), first }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, FileMeta>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a file's bytes are.
    pub fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.data"))
    }

    /// One file of a source.
    pub fn get(&self, source: &str, id: &str) -> Result<FileMeta, LaterError> {
        let found = self.known().values().find(|meta| meta.id == id && meta.source == source).cloned();
        found.ok_or_else(|| LaterError::NoSuchFile(id.to_owned()))
    }

    /// The files of a source, oldest first.
    pub fn of(&self, source: &str) -> Vec<FileMeta> {
        self.known().values().filter(|meta| meta.source == source).cloned().collect()
    }

    /// Whether one more of so many bytes may come.
    pub fn check_room(&self, source: &str, bytes: u64) -> Result<(), LaterError> {
        self.take_room(source, bytes).map(drop)
    }

    /// The same, and keeps it: others that come meanwhile find less.
    pub(super) fn take_room(&self, source: &str, bytes: u64) -> Result<Room, LaterError> {
        let known = self.known();
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        let own = known.values().filter(|meta| meta.source == source).count();
        let own = own + coming.values().filter(|(whose, _)| whose == source).count();
        if known.len() + coming.len() >= FILES_MAX || own >= FILES_OF_SOURCE_MAX {
            return Err(LaterError::TooManyFiles);
        }
        let kept: u64 = known.values().map(|meta| meta.bytes).sum();
        let taken = coming.values().fold(bytes, |sum, (_, bytes)| sum.saturating_add(*bytes));
        if kept.saturating_add(taken) > self.max_bytes {
            return Err(LaterError::TooManyBytes(self.max_bytes));
        }
        if disk::free_bytes(&self.folder)?.saturating_sub(taken) < self.min_free {
            return Err(LaterError::Disk(io::ErrorKind::StorageFull));
        }
        let number = coming.last_key_value().map_or(0, |(number, _)| number + 1);
        coming.insert(number, (source.to_owned(), bytes));
        Ok(Room { coming: self.coming.clone(), number, bytes })
    }

    /// Begins a file; what is not kept in the end is removed.
    pub(super) fn begin(&self, room: Room) -> io::Result<Upload> {
        // It may not have been possible at the start.
        durable::make_folder(&self.folder)?;
        let id = fresh_id();
        let path = self.path(&id);
        Ok(Upload { file: disk::open(&path)?, path, id, hasher: Sha256::new(), bytes: 0, kept: false, room })
    }

    /// Makes a whole file known: on return it and its name are on disk. Known already is fine. Blocks.
    pub(super) fn adopt(&self, meta: FileMeta) -> io::Result<FileMeta> {
        // Not the list itself: who looks at that must not wait for a disk.
        let _turn = self.adopting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.known().values().find(|known| known.id == meta.id) {
            return Ok(known.clone());
        }
        let seq = self.known().last_key_value().map_or(0, |(seq, _)| seq + 1).max(self.first);
        let meta = FileMeta { seq, filename: shortened(&meta.filename), ..meta };
        disk::keep(&self.folder, &meta.id, &meta)?;
        self.known().insert(seq, meta.clone());
        Ok(meta)
    }

    /// Removes a file; blocks.
    pub(super) fn remove(&self, meta: &FileMeta) -> io::Result<()> {
        disk::forget(&self.folder, &meta.id)?;
        let _ = std::fs::remove_file(self.path(&meta.id));
        self.known().remove(&meta.seq);
        Ok(())
    }

    /// Files whose time is over.
    pub(super) fn old(&self, powered_ms: u64) -> Vec<FileMeta> {
        let is_old = |meta: &&FileMeta| meta.created_powered_ms.saturating_add(FILE_AGE_MS) <= powered_ms;
        self.known().values().filter(is_old).cloned().collect()
    }
}

/// Where numbers begin. What could not be read has numbers too, counted from 1: those of a clock are above them.
pub(super) fn first_number(could_read: bool) -> u64 {
    if could_read { 1 } else { clock::unix_ms().max(1) }
}

/// By number; of two with the same one, which an unreadable folder may have led to, the later gets another.
pub(super) fn numbered<T>(all: Vec<T>, number: impl Fn(&mut T) -> &mut u64) -> BTreeMap<u64, T> {
    let (mut by_number, mut again) = (BTreeMap::new(), Vec::new());
    for mut one in all {
        match by_number.entry(*number(&mut one)) {
            Entry::Vacant(place) => {
                place.insert(one);
            }
            Entry::Occupied(_) => again.push(one),
        }
    }
    for mut one in again {
        let next = by_number.last_key_value().map_or(1, |(last, _)| last + 1);
        *number(&mut one) = next;
        by_number.insert(next, one);
    }
    by_number
}

/// Removes bytes that nothing names: uploads that a crash cut off.
fn remove_unknown(folder: &Path, is_known: impl Fn(&String) -> bool) {
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_ours = path.extension().is_some_and(|ending| ending == "data" || ending == "new");
        if is_ours && !is_known(&id) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn shortened(name: &str) -> String {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

/// Length and SHA-256 of a file; blocks.
pub(super) fn sum(path: &Path) -> io::Result<(u64, String)> {
    let (mut file, mut hasher, mut bytes) = (File::open(path)?, Sha256::new(), 0);
    let mut piece = vec![0; crate::body::PIECE_BYTES];
    loop {
        let n = file.read(&mut piece)?;
        if n == 0 {
            return Ok((bytes, disk::hex(&hasher.finalize())));
        }
        hasher.update(&piece[..n]);
        bytes += n as u64;
    }
}

/// A file on its way in.
#[derive(Debug)]
pub(super) struct Upload {
    file: File,
    path: PathBuf,
    id: String,
    hasher: Sha256,
    bytes: u64,
    kept: bool,
    room: Room,
}

impl Upload {
    /// The next bytes; blocks.
    pub(super) fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.bytes + piece.len() as u64 > self.room.bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.hasher.update(piece);
        self.bytes += piece.len() as u64;
        self.file.write_all(piece)
    }

    /// All bytes are there: on disk, and known from now on; blocks.
    pub(super) fn finish(mut self, files: &Files, of: FileMeta) -> io::Result<FileMeta> {
        self.file.sync_all()?;
        let sha256 = disk::hex(&std::mem::take(&mut self.hasher).finalize());
        let meta = files.adopt(FileMeta { id: self.id.clone(), bytes: self.bytes, sha256, ..of })?;
        self.kept = true;
        Ok(meta)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path, max_bytes: u64) -> Files {
        Files::open(folder.to_owned(), max_bytes, 0, Some(&[]))
    }

    fn meta(id: &str, seq: u64) -> FileMeta {
        FileMeta {
            id: id.to_owned(),
            seq,
            source: "s".to_owned(),
            filename: String::new(),
            purpose: "batch".to_owned(),
            bytes: 1,
            sha256: String::new(),
            created_at: 0,
            created_powered_ms: 0,
        }
    }

    #[test]
    fn uploads_under_way_count() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), 100);
        let room = files.take_room("s", 60).unwrap();
        assert!(matches!(files.take_room("s", 60), Err(LaterError::TooManyBytes(100))));
        let mut upload = files.begin(room).unwrap();
        assert!(upload.write(&[0; 61]).is_err(), "more than it said");
        drop(upload);
        let rooms: Vec<Room> = (0..FILES_OF_SOURCE_MAX).map(|_| files.take_room("s", 0).unwrap()).collect();
        assert!(matches!(files.take_room("s", 0), Err(LaterError::TooManyFiles)));
        drop(rooms);
        files.take_room("s", 100).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_read_restarts_no_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("files");
        assert_eq!(files(&folder, 100).adopt(meta("a", 0)).unwrap().seq, 1);
        let away = dir.path().join("away");
        std::fs::rename(&folder, &away).unwrap();
        std::fs::write(&folder, "no folder").unwrap();
        let blind = files(&folder, 100);
        std::fs::remove_file(&folder).unwrap();
        std::fs::rename(&away, &folder).unwrap();
        assert!(blind.adopt(meta("b", 0)).unwrap().seq > 1);
        assert_eq!(files(&folder, 100).of("s").len(), 2);
        // What an earlier version numbered twice.
        disk::keep(&folder, "c", &meta("c", 1)).unwrap();
        let all = files(&folder, 100).of("s");
        assert_eq!(all.iter().map(|meta| meta.seq).collect::<std::collections::HashSet<_>>().len(), 3, "{all:?}");
    }
}
