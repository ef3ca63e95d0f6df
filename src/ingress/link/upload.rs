//! Half uploads: files that grow in order, outlive a cable and a restart, and are believed by their checksum only.
//!
//! Owns the folder `uploads` in the data folder, how much may be in it and for how long. Never decides which device
//! may upload.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_wire::frame::CRC32;
use holdfast_wire::message::BLOB_BYTES_MAX;

use crate::clock;

/// Bytes of all half uploads together: eight devices' shares.
const TOTAL_MAX: u64 = 64 << 20;
/// Half uploads at once, over all links: the shares of 32 devices that use all of theirs.
const FILES_MAX: usize = 256;
/// One device's share of the bytes: the largest request's. Its latest upload takes the place of its older ones.
const SHARE_MAX: u64 = BLOB_BYTES_MAX as u64;
/// One device's share of the files: the pictures of one request, and those of one that it goes on with later.
const SHARE_FILES: usize = 8;
/// A half upload that nobody has gone on with for so long is removed. Counted while the machine runs, from the start of
/// the gateway on: what is older than that is as good as new.
const KEEP: Duration = Duration::from_hours(24);
/// One that nobody has gone on with for so long makes room for another device's, where there is none: a machine that is
/// switched off every night never sees the day above.
const LEFT: Duration = Duration::from_mins(10);
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
    /// The link it comes over; not a part of the file's name.
    pub link: Arc<str>,
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
    /// What is in the folder. Held while a file grows: uploads are slow, the folder is one.
    used: Mutex<Used>,
}

/// The half uploads by their files' names.
type Used = BTreeMap<String, Kept>;

/// One half upload.
#[derive(Debug, Clone)]
struct Kept {
    /// The link it last grew over; empty for one of before this start.
    link: Arc<str>,
    bytes: u64,
    /// When it last grew, since the machine started.
    at: Duration,
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
        let inner = Inner { dir: data_dir.join("uploads"), min_free, used: Mutex::default() };
        let now = clock::since_boot();
        let kept =
            |path: &Path, meta: &fs::Metadata| (name_of(path), Kept { link: "".into(), bytes: meta.len(), at: now });
        *inner.used() = inner.files().iter().map(|(path, meta)| kept(path, meta)).collect();
        Uploads { inner: Arc::new(inner) }
    }

    /// Removes what nobody has gone on with for long. Blocks.
    pub fn sweep(&self) {
        self.sweep_at(clock::since_boot());
    }

    fn sweep_at(&self, now: Duration) {
        self.inner.drop_where(|_, kept| now.saturating_sub(kept.at) > KEEP);
    }

    /// A device has started anew: its half uploads of before are of no use to anybody. Blocks.
    pub fn drop_older(&self, uid: &str, boot: u32) {
        let (whose, keep) = (format!("{uid}-"), format!("{uid}-{boot:08x}-"));
        self.inner.drop_where(|name, _| name.starts_with(&whose) && !name.starts_with(&keep));
    }

    /// Removes an upload; the request that had it is stored or refused. Blocks.
    pub fn remove(&self, name: &Name) {
        let file = name.file();
        self.inner.drop_where(|other, _| other == file);
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

    /// Appends bytes that begin at `off`; gives the length then. Only the next ones are taken. `with` are the device's
    /// numbers for all uploads of the same request: others of this device make room where its share is full. Blocks.
    pub fn append(&self, name: &Name, with: &[u32], off: u32, data: &[u8], len: u32) -> Result<u32, UploadError> {
        self.append_at(name, with, off, data, len, clock::since_boot())
    }

    fn append_at(
        &self,
        name: &Name,
        with: &[u32],
        off: u32,
        data: &[u8],
        len: u32,
        now: Duration,
    ) -> Result<u32, UploadError> {
        let (file, path) = (name.file(), self.inner.dir.join(name.file()));
        let mut used = self.inner.used();
        let there = fs::metadata(&path).map_or(0, |meta| meta.len() as u32);
        let end = off.checked_add(data.len() as u32).filter(|end| *end <= len);
        let Some(end) = end.filter(|_| off == there) else { return Err(UploadError::OutOfOrder(there)) };
        let keep: Vec<String> = with.iter().map(|blob| Name { blob: *blob, ..name.clone() }.file()).collect();
        while !fits(&used, &name.prefix(), &file, data.len() as u64, SHARE_MAX, SHARE_FILES) {
            let others = used.iter().filter(|(other, _)| other.starts_with(&name.prefix()));
            let others = others.filter(|(other, _)| **other != file && !keep.contains(other));
            let oldest = others.min_by_key(|(_, kept)| kept.at).map(|(other, _)| other.clone());
            let Some(oldest) = oldest else { return Err(UploadError::Full) };
            self.inner.drop_one(&mut used, &oldest);
        }
        while !fits(&used, "", &file, data.len() as u64, TOTAL_MAX, FILES_MAX) {
            let Some(other) = makes_room(&used, name, now) else { return Err(UploadError::Full) };
            self.inner.drop_one(&mut used, &other);
        }
        if !self.has_room() {
            return Err(UploadError::Full);
        }
        let written = self.write(&path, data);
        if written.is_err() {
            // Half a piece would count as bytes that came.
            let _ = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(there.into()));
            return Err(UploadError::Disk);
        }
        used.insert(file, Kept { link: name.link.clone(), bytes: end.into(), at: now });
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
}

impl Inner {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_where(&self, is_gone: impl Fn(&str, &Kept) -> bool) {
        let mut used = self.used();
        let gone: Vec<String> =
            used.iter().filter(|(name, kept)| is_gone(name, kept)).map(|(n, _)| n.clone()).collect();
        for name in gone {
            self.drop_one(&mut used, &name);
        }
    }

    /// What cannot be removed is not counted either: it is found again at the next start.
    fn drop_one(&self, used: &mut Used, name: &str) {
        let _ = fs::remove_file(self.dir.join(name));
        used.remove(name);
    }

    fn files(&self) -> Vec<(PathBuf, fs::Metadata)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?))).filter(|(_, m)| m.is_file()).collect()
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether its device has not gone on with it for so long that another one may have its room.
fn is_left(kept: &Kept, now: Duration) -> bool {
    now.saturating_sub(kept.at) > LEFT
}

/// Whose half upload goes for this one: the oldest that nobody goes on with, else the oldest of the link that takes more
/// than a share above this one's, so that devices that somebody invents on one line keep nobody else's out.
fn makes_room(used: &Used, name: &Name, now: Duration) -> Option<String> {
    let others = || used.iter().filter(|(other, _)| !other.starts_with(&name.prefix()));
    let left = others().filter(|(_, kept)| is_left(kept, now)).min_by_key(|(_, kept)| kept.at);
    if let Some((other, _)) = left {
        return Some(other.clone());
    }
    let mut taken: BTreeMap<&str, u64> = BTreeMap::new();
    for kept in used.values() {
        *taken.entry(&kept.link).or_default() += kept.bytes.max(TOTAL_MAX / FILES_MAX as u64);
    }
    let ours = taken.get(&*name.link).copied().unwrap_or_default();
    let (greedy, _) =
        taken.into_iter().max_by_key(|(_, taken)| *taken).filter(|(_, taken)| *taken > ours + SHARE_MAX)?;
    others().filter(|(_, kept)| *kept.link == *greedy).min_by_key(|(_, kept)| kept.at).map(|(other, _)| other.clone())
}

/// Whether a file may grow by so much beside all whose names begin so.
fn fits(used: &Used, prefix: &str, file: &str, more: u64, bytes_max: u64, files_max: usize) -> bool {
    let among = || used.iter().filter(|(name, _)| name.starts_with(prefix));
    let files = among().count() + usize::from(!used.contains_key(file));
    files <= files_max && among().map(|(_, kept)| kept.bytes).sum::<u64>() + more <= bytes_max
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
        Name { link: "cell".into(), uid: "0a0b0c0d".to_owned(), boot, blob }
    }

    #[test]
    fn devices_that_went_away_leave_their_room_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 0);
        let of = |device: usize, blob: u32| Name { link: "cell".into(), uid: format!("{device:08x}"), boot: 1, blob };
        let start = Duration::from_secs(1_000);
        for n in 0..FILES_MAX {
            let (device, blob) = (n / SHARE_FILES, (n % SHARE_FILES) as u32);
            let at = start + Duration::from_millis(n as u64);
            assert_eq!(uploads.append_at(&of(device, blob), &[blob], 0, b"1", 2, at), Ok(1));
        }
        let late = of(FILES_MAX, 0);
        assert_eq!(uploads.append_at(&late, &[0], 0, b"1", 2, start + LEFT), Err(UploadError::Full), "all go on");
        assert_eq!(uploads.append_at(&late, &[0], 0, b"1", 2, start + LEFT + Duration::from_millis(1)), Ok(1));
        assert_eq!(uploads.have(&of(0, 0), 2, 0).unwrap(), Have::Part(0), "the oldest made room");
        assert_eq!(uploads.have(&of(0, 1), 2, 0).unwrap(), Have::Part(1));
    }

    #[test]
    fn devices_invented_on_one_line_keep_nobody_else_out() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 0);
        let of = |link: &str, device: usize| Name { link: link.into(), uid: format!("{device:08x}"), boot: 1, blob: 1 };
        let now = Duration::from_secs(1_000);
        for device in 0..FILES_MAX {
            assert_eq!(uploads.append_at(&of("noisy", device), &[1], 0, b"1", 2, now), Ok(1));
        }
        assert_eq!(uploads.append_at(&of("noisy", FILES_MAX), &[1], 0, b"1", 2, now), Err(UploadError::Full));
        for device in 1_000..1_032 {
            assert_eq!(uploads.append_at(&of("press", device), &[1], 0, b"1", 2, now), Ok(1), "{device}");
        }
        assert_eq!(uploads.inner.used().len(), FILES_MAX);
        assert_eq!(uploads.have(&of("press", 1_000), 2, 0).unwrap(), Have::Part(1), "and what came is kept");
    }

    #[test]
    fn only_the_next_bytes_are_appended_and_a_restart_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 0);
        assert_eq!(uploads.append(&name(1, 9), &[9], 4, b"late", 9), Err(UploadError::OutOfOrder(0)));
        assert_eq!(uploads.append(&name(1, 9), &[9], 0, b"12345", 9), Ok(5));
        assert_eq!(uploads.append(&name(1, 9), &[9], 0, b"12345", 9), Err(UploadError::OutOfOrder(5)));
        assert_eq!(
            uploads.append(&name(1, 9), &[9], 5, b"67890", 9),
            Err(UploadError::OutOfOrder(5)),
            "more than it has"
        );
        let uploads = Uploads::open(dir.path(), 0);
        assert_eq!(uploads.have(&name(1, 9), 9, 0xcbf4_3926).unwrap(), Have::Part(5));
        assert_eq!(uploads.append(&name(1, 9), &[9], 5, b"6789", 9), Ok(9));
        assert!(matches!(uploads.have(&name(1, 9), 9, 0xcbf4_3926).unwrap(), Have::Whole(_)));
        assert_eq!(uploads.have(&name(1, 9), 9, 1).unwrap(), Have::Wrong);
        assert_eq!(uploads.have(&name(1, 9), 9, 0xcbf4_3926).unwrap(), Have::Part(0), "it begins anew");
    }

    #[test]
    fn w7_a_new_start_of_the_device_drops_its_half_uploads_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 0);
        let other = Name { link: "cell".into(), uid: "ffff".to_owned(), boot: 1, blob: 9 };
        for name in [&name(1, 9), &name(2, 9), &other] {
            uploads.append(name, &[9], 0, b"123", 9).unwrap();
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
        uploads
            .inner
            .used()
            .insert("others".to_owned(), Kept { link: "cell".into(), bytes: TOTAL_MAX - 2, at: clock::since_boot() });
        assert_eq!(uploads.append(&name(1, 9), &[9], 0, b"123", 9), Err(UploadError::Full));
        assert_eq!(uploads.append(&name(1, 9), &[9], 0, b"12", 9), Ok(2));
        let full = Uploads::open(dir.path(), u64::MAX);
        assert_eq!(full.append(&name(1, 8), &[8], 0, b"12", 9), Err(UploadError::Full), "the disk keeps its reserve");
    }

    #[test]
    fn a_device_has_its_share_and_leaves_the_others_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 0);
        let piece = vec![7; 1 << 20];
        // A device that begins one upload after the other and ends none.
        for blob in 0..40u32 {
            for mib in 0..3 {
                let from = mib << 20;
                assert_eq!(
                    uploads.append(&name(1, blob), &[blob], from, &piece, 3 << 20),
                    Ok(from + (1 << 20)),
                    "{blob}"
                );
            }
        }
        let used: u64 = uploads.inner.used().values().map(|kept| kept.bytes).sum();
        assert!((3 << 20..=SHARE_MAX).contains(&used), "{used}");
        assert_eq!(used, uploads.inner.files().iter().map(|(_, meta)| meta.len()).sum::<u64>());
        for blob in 100..200 {
            assert_eq!(uploads.append(&name(1, blob), &[blob], 0, b"1", 9), Ok(1));
        }
        assert_eq!(uploads.inner.used().len(), SHARE_FILES, "nor does it fill the folder with small ones");
        let other = Name { link: "cell".into(), uid: "ffff".to_owned(), boot: 1, blob: 9 };
        for mib in 0..8 {
            assert!(uploads.append(&other, &[9], mib << 20, &piece, 8 << 20).is_ok());
        }
    }

    #[test]
    fn pictures_of_one_request_make_no_room_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 0);
        let half = vec![7; 5 << 20];
        assert!(uploads.append(&name(1, 1), &[1, 2], 0, &half, 5 << 20).is_ok());
        assert_eq!(uploads.append(&name(1, 2), &[1, 2], 0, &half, 5 << 20), Err(UploadError::Full));
        assert!(uploads.append(&name(1, 3), &[3], 0, &half, 5 << 20).is_ok(), "that of another request does");
        assert_eq!(uploads.have(&name(1, 1), 5 << 20, 0).unwrap(), Have::Part(0));
    }

    #[test]
    fn age_counts_while_the_machine_runs_whatever_the_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 0);
        uploads.append(&name(1, 9), &[9], 0, b"123", 9).unwrap();
        // The wall clock stood years back when it was written.
        let file = File::options().write(true).open(dir.path().join("uploads").join(name(1, 9).file())).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        let now = clock::since_boot();
        let uploads = Uploads::open(dir.path(), 0);
        uploads.sweep_at(now + KEEP);
        assert_eq!(uploads.have(&name(1, 9), 9, 0).unwrap(), Have::Part(3));
        uploads.sweep_at(now + KEEP + Duration::from_mins(1));
        assert_eq!(uploads.have(&name(1, 9), 9, 0).unwrap(), Have::Part(0));
    }
}
