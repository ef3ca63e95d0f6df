//! Where the measured files lie, and how much of them was written: by a process's account and by the disk's own.
//!
//! Owns `BENCH_DISK`, a folder on a file system of its own: beside anybody else's files the disk's count says nothing.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

const VARIABLE: &str = "BENCH_DISK";
/// The unit of that count, whatever the disk's own sectors are.
const SECTOR_BYTES: u64 = 512;

/// Below it the files lie: the disk of the checkout unless another is named.
pub(crate) fn folder() -> PathBuf {
    named().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into())
}

fn named() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// The one that was named.
pub(crate) struct Disk {
    folder: File,
    statistics: PathBuf,
}

impl Disk {
    pub(crate) fn named() -> Option<Disk> {
        let folder = File::open(named()?).expect("the folder of BENCH_DISK");
        let device = folder.metadata().unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let statistics = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        assert!(
            statistics.exists(),
            "the folder of BENCH_DISK lies on no single disk: there is no {}",
            statistics.display()
        );
        Some(Disk { folder, statistics })
    }

    /// Bytes written to it so far, by whomever; what still waited in memory is written first.
    pub(crate) fn written(&self) -> u64 {
        rustix::fs::syncfs(&self.folder).unwrap();
        let text = std::fs::read_to_string(&self.statistics).unwrap();
        // The seventh field (Documentation/block/stat.rst).
        text.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() * SECTOR_BYTES
    }
}

/// Bytes that a process had written to disks, in whole pages (proc(5), `io`).
pub(crate) fn written_by(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let bytes = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    bytes.parse().unwrap()
}
