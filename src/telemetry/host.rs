//! The board's own readings: temperature, memory, disk; its strain is read in `wear`.
//!
//! Reads, and judges nothing. What a board does not tell is left out; what hangs (a dying disk) is waited for once and briefly.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::wear::{self, Strain};
use sysinfo::{Components, MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

/// What the board tells.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host {
    /// The hottest sensor, in °C.
    pub temperature_c: Option<f32>,
    /// Resident memory of this process, in bytes.
    pub memory_rss_bytes: u64,
    /// Memory that could still be used, in bytes.
    pub memory_available_bytes: u64,
    /// Free space where the spool lives, in bytes.
    pub disk_free_bytes: u64,
    /// What was written to disks since this gateway began, in bytes; the system counts whole pages.
    pub disk_written_bytes: u64,
    /// Throttling, voltage, the card's wear.
    pub strain: Strain,
}

/// Who asks for readings waits this long for new ones, else gets the last.
const PATIENCE: Duration = Duration::from_millis(200);

/// The board, read by one task at a time.
#[derive(Debug, Clone)]
pub struct Board {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data_dir: PathBuf,
    /// What the process had written before: a reload begins anew in the same one.
    written_before: u64,
    last: Mutex<Host>,
    is_reading: AtomicBool,
}

impl Board {
    /// Reads what was written so far, and no more yet. `data_dir` is where the spool lives.
    pub fn new(data_dir: PathBuf) -> Board {
        let written_before = process().map_or(0, |(_, _, written)| written);
        let (last, is_reading) = (Mutex::default(), AtomicBool::new(false));
        Board { inner: Arc::new(Inner { data_dir, written_before, last, is_reading }) }
    }

    /// New readings, or the last ones where something hangs.
    pub async fn latest(&self) -> Host {
        if !self.inner.is_reading.swap(true, Ordering::AcqRel) {
            let inner = self.inner.clone();
            let reading = tokio::task::spawn_blocking(move || {
                let mut host = read(&inner.data_dir);
                host.disk_written_bytes = host.disk_written_bytes.saturating_sub(inner.written_before);
                *inner.last.lock().unwrap_or_else(PoisonError::into_inner) = host;
                inner.is_reading.store(false, Ordering::Release);
            });
            let _ = tokio::time::timeout(PATIENCE, reading).await;
        }
        *self.inner.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there may be a graphics card with memory of its own, in which models live: then main memory says nothing.
pub fn has_graphics_memory() -> bool {
    ["/dev/nvidia0", "/dev/kfd"].iter().any(|device| Path::new(device).exists())
}

/// Reads everything; takes some milliseconds.
fn read(data_dir: &Path) -> Host {
    let (memory_rss_bytes, memory_available_bytes, disk_written_bytes) = process().unwrap_or_default();
    let sensors = Components::new_with_refreshed_list();
    let readings = sensors.iter().filter_map(sysinfo::Component::temperature);
    Host {
        temperature_c: readings.filter(|t| t.is_finite()).reduce(f32::max),
        memory_rss_bytes,
        memory_available_bytes,
        disk_free_bytes: rustix::fs::statvfs(data_dir).map_or(0, |s| s.f_bavail * s.f_frsize),
        disk_written_bytes,
        strain: wear::read(Path::new("/")),
    }
}

/// Resident memory of this process, what is left, and what the process had written, in bytes.
fn process() -> Option<(u64, u64, u64)> {
    let ram = MemoryRefreshKind::nothing().with_ram();
    let mut system = System::new_with_specifics(RefreshKind::nothing().with_memory(ram));
    let own = sysinfo::get_current_pid().ok()?;
    let kind = ProcessRefreshKind::nothing().with_memory().with_disk_usage();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, kind);
    let process = system.process(own)?;
    Some((process.memory(), system.available_memory(), process.disk_usage().total_written_bytes))
}
