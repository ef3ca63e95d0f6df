//! What the data folder's mount says about itself.
//!
//! Owns the warnings of ground that cannot keep a promise; refuses nothing, since nobody but the operator knows.

use std::path::Path;

/// Writes a warning for each doubt about the file system below `data_dir`.
pub(super) fn warn(data_dir: &Path) {
    let Ok(path) = data_dir.canonicalize() else { return };
    let Ok(text) = std::fs::read_to_string("/proc/self/mountinfo") else { return };
    for doubt in doubts(&text, &path) {
        tracing::warn!(data_dir = %path.display(), "{doubt}");
    }
}

fn doubts(mountinfo: &str, path: &Path) -> Vec<&'static str> {
    let Some(mount) =
        mountinfo.lines().filter_map(parse).filter(|m| path.starts_with(&m.point)).max_by_key(|m| m.point.len())
    else {
        return Vec::new();
    };
    let mut found = Vec::new();
    if mount.options.iter().any(|o| matches!(*o, "nobarrier" | "barrier=0")) {
        found.push("the data folder is mounted without barriers: a power cut can lose accepted requests");
    }
    match mount.kind {
        "tmpfs" | "ramfs" => found.push("the data folder is in memory: a restart of the board loses accepted requests"),
        "overlay" => found.push("the data folder is on an overlay: check that its upper layer is on real storage"),
        _ => {}
    }
    found
}

struct Mount<'a> {
    point: String,
    kind: &'a str,
    options: Vec<&'a str>,
}

/// `id parent dev root point options [optional…] - kind source super-options`
fn parse(line: &str) -> Option<Mount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(4);
    let point = before.next()?.replace("\\040", " ");
    let own = before.next()?;
    let mut after = after.split(' ');
    let kind = after.next()?;
    let of_super = after.nth(1).unwrap_or("");
    Some(Mount { point, kind, options: own.split(',').chain(of_super.split(',')).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "22 1 0:21 / / rw,relatime - overlay overlay rw,lowerdir=/a\n\
        30 22 8:1 / /var rw,relatime shared:1 - ext4 /dev/sda1 rw,barrier=0\n\
        31 30 8:2 / /var/lib rw,noatime - ext4 /dev/sda2 rw,errors=remount-ro\n\
        32 22 0:30 / /run rw,nosuid - tmpfs tmpfs rw,size=1024k\n";

    #[test]
    fn the_nearest_mount_is_judged() {
        let judged = |path: &str| doubts(INFO, Path::new(path)).len();
        assert_eq!(judged("/var/spool"), 1, "barrier=0");
        assert_eq!(judged("/var/lib/holdfast"), 0);
        assert_eq!(judged("/run/holdfast"), 1, "tmpfs");
        assert_eq!(judged("/opt"), 1, "overlay");
        assert_eq!(judged("/variant"), 1, "not below /var");
    }
}
