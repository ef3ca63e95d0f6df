//! The board's own readings: temperature, memory, disk.
//!
//! Reads, and judges nothing. What a board does not tell is left out.

use std::path::Path;

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
}

/// Reads everything; takes some milliseconds, so callers run it beside the event loop.
pub fn read(data_dir: &Path) -> Host {
    let (memory_rss_bytes, memory_available_bytes) = memory().unwrap_or_default();
    let sensors = Components::new_with_refreshed_list().ok();
    let readings = sensors.iter().flatten().filter_map(sysinfo::Component::temperature);
    Host {
        temperature_c: readings.filter(|t| t.is_finite()).reduce(f32::max),
        memory_rss_bytes,
        memory_available_bytes,
        disk_free_bytes: rustix::fs::statvfs(data_dir).map_or(0, |s| s.f_bavail * s.f_frsize),
    }
}

/// Resident memory of this process and what is left, in bytes.
fn memory() -> Option<(u64, u64)> {
    let ram = MemoryRefreshKind::nothing().with_ram();
    let mut system = System::new_with_specifics(RefreshKind::nothing().with_memory(ram)).ok()?;
    let own = sysinfo::get_current_pid().ok()?;
    let kind = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, kind);
    Some((system.process(own)?.memory(), system.available_memory()))
}
