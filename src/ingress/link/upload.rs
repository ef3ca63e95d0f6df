//! Half uploads: files that grow in order, outlive a cable and a restart, and are believed by their checksum only.
//!
//! Owns the folder `uploads` in the data folder, how much may be in it and for how long. Never decides which device
//! may upload.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_wire::frame::CRC32;

/// Bytes of all half uploads together: eight of the largest.
const TOTAL_MAX: u64 = 64 << 20;
/// Half uploads at once, over all links: one per device, and as many devices as are there in any real plant.
const FILES_MAX: usize = 256;
/// A half upload that nobody has gone on with for so long is removed.
const KEEP: Duration = Duration::from_hours(24);
/// Bytes read at once when a whole upload is checked.
const PIECE_BYTES: usize = 64 * 1024;

/// Why nothing can be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadError {
    /// Too many or too much; it makes sense again later.
    Full,
    /// The disk does not take it.
    Disk,
    /// The bytes are not the next ones: the length there is.
    OutOfOrder(u32),
}

/// What there is of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Have {
    /// So many bytes from the start.
    Part(u32),
    /// All of it, its checksum found right.
    Whole(PathBuf),
    /// As many bytes as it should have, and they are not what was meant: it was removed.
    Wrong,
}

/// What names one upload of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Whose, in hexadecimal digits.
    pub uid: String,
    /// The device's start: half uploads of earlier ones are dropped.
    pub boot: u32,
    /// The device's number for it.
    pub blob: u32,
}

/// The folder; clones share it.
#[derive(Debug, Clone)]
pub struct Uploads {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    min_free: u64,
    /// Bytes in the folder, and files. Held while a file grows: uploads are slow, the folder is one.
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    bytes: u64,
    files: usize,
}

impl Name {
    fn prefix(&self) -> String {
        format!("{}-", self.uid)
    }

    fn file(&self) -> String {
        format!("{}-{:08x}-{:08x}.part", self.uid, self.boot, self.blob)
    }
}

impl Uploads {
    /// The folder below this one; it is made when it is needed.
    pub fn open(data_dir: &Path, min_free: u64) -> Uploads {
        let uploads =
            Uploads { inner: Arc::new(Inner { dir: data_dir.join("uploads"), min_free, used: Mutex::default() }) };
        uploads.sweep();
        uploads
    }

    /// Removes what is too old and counts the rest. Blocks.
    pub fn sweep(&self) {
        let mut used = self.inner.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = Used::default();
        for (path, meta) in self.files() {
            let age = meta.modified().ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > KEEP) {
                let _ = fs::remove_file(path);
            } else {
                used.bytes += meta.len();
                used.files += 1;
            }
        }
    }

    /// A device has started anew: its half uploads of before are of no use to anybody. Blocks.
    pub fn drop_older(&self, uid: &str, boot: u32) {
        let keep = format!("{uid}-{boot:08x}-");
        self.drop_where(&format!("{uid}-"), |name| !name.starts_with(&keep));
    }

    /// Removes an upload; the request that had it is stored or refused. Blocks.
    pub fn remove(&self, name: &Name) {
        let file = name.file();
        self.drop_where(&name.prefix(), |other| other == file);
    }

    /// How much of an upload is there. Whole ones are read back and checked. Blocks.
    pub fn have(&self, name: &Name, len: u32, crc32: u32) -> io::Result<Have> {
        let path = self.inner.dir.join(name.file());
        let there = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Have::Part(0)),
            Err(e) => return Err(e),
        };
        if there < u64::from(len) {
            return Ok(Have::Part(there as u32));
        }
        if there == u64::from(len) && checksum(&path)? == crc32 {
            return Ok(Have::Whole(path));
        }
        self.remove(name);
        Ok(Have::Wrong)
    }

    /// Appends bytes that begin at `off`; gives the length then. Only the next ones are taken. Blocks.
    pub fn append(&self, name: &Name, off: u32, data: &[u8], len: u32) -> Result<u32, UploadError> {
        let path = self.inner.dir.join(name.file());
        let mut used = self.inner.used.lock().unwrap_or_else(PoisonError::into_inner);
        let there = fs::metadata(&path).map_or(0, |meta| meta.len() as u32);
        let end = off.checked_add(data.len() as u32).filter(|end| *end <= len);
        let Some(end) = end.filter(|_| off == there) else { return Err(UploadError::OutOfOrder(there)) };
        let is_new = there == 0 && !path.exists();
        if used.bytes + data.len() as u64 > TOTAL_MAX || (is_new && used.files >= FILES_MAX) || !self.has_room() {
            return Err(UploadError::Full);
        }
        let written = self.write(&path, data);
        if written.is_err() {
            // Half a piece would count as bytes that came.
            let _ = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(there.into()));
            return Err(UploadError::Disk);
        }
        used.bytes += data.len() as u64;
        used.files += usize::from(is_new);
        Ok(end)
    }

    fn write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.inner.dir)?;
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        file.write_all(data)
    }

    fn has_room(&self) -> bool {
        let dir = if self.inner.dir.exists() { Some(self.inner.dir.as_path()) } else { self.inner.dir.parent() };
        let free = dir.and_then(|dir| rustix::fs::statvfs(dir).ok());
        free.is_some_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) >= self.inner.min_free)
    }

    fn drop_where(&self, prefix: &str, is_gone: impl Fn(&str) -> bool) {
        let mut used = self.inner.used.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, meta) in self.files() {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(prefix) && is_gone(&name) && fs::remove_file(&path).is_ok() {
                used.bytes = used.bytes.saturating_sub(meta.len());
                used.files = used.files.saturating_sub(1);
            }
        }
    }

    fn files(&self) -> Vec<(PathBuf, fs::Metadata)> {
        let entries = fs::read_dir(&self.inner.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?))).filter(|(_, m)| m.is_file()).collect()
    }
}

/// CRC-32 of a file as it stands on the disk.
fn checksum(path: &Path) -> io::Result<u32> {
    let mut file = File::open(path)?;
    let (mut digest, mut piece) = (CRC32.digest(), vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(digest.finalize()),
            n => digest.update(&piece[..n]),
        }
    }
}

/// A task that tidies the folder now and then, until the process ends.
pub async fn tidy(uploads: Uploads) {
    loop {
        tokio::time::sleep(Duration::from_hours(1)).await;
        let uploads = uploads.clone();
        let _ = tokio::task::spawn_blocking(move || uploads.sweep()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(boot: u32, blob: u32) -> Name {
        Name { uid: "0a0b0c0d".to_owned(), boot, blob }
    }

    #[test]
    fn only_the_next_bytes_are_appended_and_a_restart_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 0);
        assert_eq!(uploads.append(&name(1, 9), 4, b"late", 9), Err(UploadError::OutOfOrder(0)));
        assert_eq!(uploads.append(&name(1, 9), 0, b"12345", 9), Ok(5));
        assert_eq!(uploads.append(&name(1, 9), 0, b"12345", 9), Err(UploadError::OutOfOrder(5)));
        assert_eq!(uploads.append(&name(1, 9), 5, b"67890", 9), Err(UploadError::OutOfOrder(5)), "more than it has");
        let uploads = Uploads::open(dir.path(), 0);
        assert_eq!(uploads.have(&name(1, 9), 9, 0xcbf4_3926).unwrap(), Have::Part(5));
        assert_eq!(uploads.append(&name(1, 9), 5, b"6789", 9), Ok(9));
        assert!(matches!(uploads.have(&name(1, 9), 9, 0xcbf4_3926).unwrap(), Have::Whole(_)));
        assert_eq!(uploads.have(&name(1, 9), 9, 1).unwrap(), Have::Wrong);
        assert_eq!(uploads.have(&name(1, 9), 9, 0xcbf4_3926).unwrap(), Have::Part(0), "it begins anew");
    }

    #[test]
    fn w7_a_new_start_of_the_device_drops_its_half_uploads_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 0);
        let other = Name { uid: "ffff".to_owned(), boot: 1, blob: 9 };
        for name in [&name(1, 9), &name(2, 9), &other] {
            uploads.append(name, 0, b"123", 9).unwrap();
        }
        uploads.drop_older("0a0b0c0d", 2);
        assert_eq!(uploads.have(&name(1, 9), 9, 0).unwrap(), Have::Part(0));
        assert_eq!(uploads.have(&name(2, 9), 9, 0).unwrap(), Have::Part(3));
        assert_eq!(uploads.have(&other, 9, 0).unwrap(), Have::Part(3));
    }

    #[test]
    fn all_of_them_together_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 0);
        uploads.inner.used.lock().unwrap().bytes = TOTAL_MAX - 2;
        assert_eq!(uploads.append(&name(1, 9), 0, b"123", 9), Err(UploadError::Full));
        assert_eq!(uploads.append(&name(1, 9), 0, b"12", 9), Ok(2));
        let full = Uploads::open(dir.path(), u64::MAX);
        assert_eq!(full.append(&name(1, 8), 0, b"12", 9), Err(UploadError::Full), "the disk keeps its reserve");
    }
}
