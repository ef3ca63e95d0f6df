//! Small files that must survive a power cut: written beside, synced and renamed, so a cut leaves the old one or the new.
//!
//! Owns that order and who may read them. Knows nothing of what stands in them: a checksum is their owner's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The ending of what was set aside.
pub const DAMAGED: &str = "damaged";

/// Makes a folder that only we may read, with all above it; its own name is on disk on return. One that is there is fine.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    folder.parent().map_or(Ok(()), sync_folder)
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Gives a damaged file another name, so that it stops nothing and can be looked at; says which, and why it could not.
/// The log line is its owner's. Blocks.
pub fn set_aside(path: &Path) -> (PathBuf, Option<io::Error>) {
    let aside = path.with_extension(DAMAGED);
    let error = fs::rename(path, &aside).err();
    (aside, error)
}

/// Puts `bytes` in the place of what the file held; on return they and its name are on disk. Its folder has to be there.
/// Two at once on the same path would disturb each other: the caller holds a lock. Blocks.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(beside, path)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_new_stands_in_the_place_of_the_old_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        make_folder(&folder).unwrap();
        make_folder(&folder).unwrap();
        let path = folder.join("note.json");
        // What a cut left of an earlier try.
        fs::write(folder.join("note.new"), "much longer than what comes").unwrap();
        for text in ["the first one", "second"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&path)), (0o700, 0o600));
        assert!(replace(&dir.path().join("missing/note"), b"x").is_err());
    }
}
