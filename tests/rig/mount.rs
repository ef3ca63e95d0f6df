//! Small file systems that a test mounts and that go with the value.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::case::Outcome;

/// A mounted file system.
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Memory of this many bytes.
    pub fn tmpfs(at: PathBuf, bytes: u64) -> Result<Mount, Outcome> {
        std::fs::create_dir_all(&at).expect("a folder to mount at");
        tool("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "rig"], &at, "root")?;
        Ok(Mount { at })
    }

    /// ext4 in a file of this many bytes.
    pub fn ext4(at: PathBuf, image: &Path, bytes: u64) -> Result<Mount, Outcome> {
        std::fs::create_dir_all(&at).expect("a folder to mount at");
        File::create(image).and_then(|file| file.set_len(bytes)).expect("an image");
        tool("mkfs.ext4", &["-q", "-F", "-m", "0"], image, "apt-get install e2fsprogs")?;
        Mount::image(at, image)
    }

    /// The file system that is in a file already; mounting recovers what a cut left in its journal.
    pub fn image(at: PathBuf, image: &Path) -> Result<Mount, Outcome> {
        std::fs::create_dir_all(&at).expect("a folder to mount at");
        tool("mount", &["-o", "loop", &image.display().to_string()], &at, "root and loop devices")?;
        Ok(Mount { at })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Writes a file of its own until not one more byte fits.
    pub fn fill(&self) {
        let mut file = File::create(self.at.join("filler")).expect("the filler");
        for size in [64 << 10, 4096, 1] {
            let block = vec![b'x'; size];
            while file.write_all(&block).is_ok() {}
        }
    }

    /// Takes that file away again.
    pub fn make_room(&self) {
        std::fs::remove_file(self.at.join("filler")).expect("the filler goes");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn tool(name: &str, arguments: &[&str], last: &Path, wants: &str) -> Result<(), Outcome> {
    match Command::new(name).args(arguments).arg(last).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
            Err(Outcome::Missing(format!("{name}: {said} (wants {wants})")))
        }
        Err(error) => Err(Outcome::Missing(format!("{name}: {error} (wants {wants})"))),
    }
}
