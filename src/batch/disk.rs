//! Small files of JSON that must survive a power cut, each with its own checksum.
//!
//! Owns that form and what happens to one that is damaged: set aside, said in the log, never a reason not to start.
//! Knows nothing of what stands in them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::durable::{DAMAGED, replace, set_aside, sync_folder};

/// The ending of what is whole.
pub(super) const KEPT: &str = "json";
/// The largest of these files that is read: a manifest with all its errors is far below.
const BYTES_MAX: u64 = 1024 * 1024;

/// Whether anything in a folder was set aside as damaged.
pub(super) fn has_damaged(folder: &Path) -> bool {
    let is_damaged = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|ending| ending == DAMAGED);
    fs::read_dir(folder).is_ok_and(|entries| entries.flatten().any(|entry| is_damaged(&entry)))
}

/// A new file that only we may read, or the one that is there.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Keeps `value` as `<name>.json`; on return it is on disk.
pub(super) fn keep<T: Serialize>(folder: &Path, name: &str, value: &T) -> io::Result<()> {
    let text = serde_json::to_string(value)?;
    let text = format!("{}\n{text}\n", hex(&Sha256::digest(&text)));
    replace(&folder.join(format!("{name}.{KEPT}")), text.as_bytes())
}

/// Removes `<name>.json`; one that is gone already is fine.
pub(super) fn forget(folder: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(folder.join(format!("{name}.{KEPT}"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_folder(folder),
    }
}

/// Everything that is kept in a folder; damaged files get another name and a line in the log.
pub(super) fn all<T: DeserializeOwned>(folder: &Path) -> io::Result<Vec<T>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != KEPT) {
            continue;
        }
        match read(&path) {
            Ok(value) => found.push(value),
            Err(error) => {
                tracing::error!("{} is damaged and set aside: {error}", path.display());
                let _ = set_aside(&path);
            }
        }
    }
    Ok(found)
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    if fs::metadata(path)?.len() > BYTES_MAX {
        return Err(io::Error::other("it is longer than any of its kind"));
    }
    let text = fs::read_to_string(path)?;
    let (sum, json) = text.split_once('\n').ok_or_else(|| io::Error::other("it has no checksum"))?;
    let json = json.trim_end();
    if sum != hex(&Sha256::digest(json)) {
        return Err(io::Error::other("its checksum is wrong"));
    }
    Ok(serde_json::from_str(json)?)
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |text, byte| text + &format!("{byte:02x}"))
}

/// Free bytes for us on a folder's file system.
pub(super) fn free_bytes(folder: &Path) -> io::Result<u64> {
    let fs = rustix::fs::statvfs(folder)?;
    Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_what_is_damaged_stands_aside() {
        let dir = tempfile::tempdir().unwrap();
        keep(dir.path(), "a", &vec![1, 2]).unwrap();
        keep(dir.path(), "b", &vec![3]).unwrap();
        assert_eq!(all::<Vec<u32>>(dir.path()).unwrap().len(), 2);
        let path = dir.path().join("a.json");
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() - 3;
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(all::<Vec<u32>>(dir.path()).unwrap(), [vec![3]]);
        assert!(dir.path().join("a.damaged").exists() && !path.exists());
        forget(dir.path(), "b").unwrap();
        forget(dir.path(), "b").unwrap();
        assert!(all::<Vec<u32>>(dir.path()).unwrap().is_empty());
    }
}
