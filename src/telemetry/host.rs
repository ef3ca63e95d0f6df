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
    let memory = MemoryRefreshKind::nothing().with_ram();
    let mut system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory));
    let own = sysinfo::get_current_pid().ok();
    if let Some(pid) = own {
        let kind = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, kind);
    }
    let sensors = Components::new_with_refreshed_list();
    Host {
        temperature_c: sensors.iter().filter_map(sysinfo::Component::temperature).filter(|t| t.is_finite()).reduce(f32::max),
        memory_rss_bytes: own.and_then(|pid| system.process(pid)).map_or(0, sysinfo::Process::memory),
        memory_available_bytes: system.available_memory(),
        disk_free_bytes: rustix::fs::statvfs(data_dir).map_or(0, |s| s.f_bavail * s.f_frsize),
    }
}
