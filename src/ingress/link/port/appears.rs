//! Waiting for a file that is missing: an adapter that somebody plugs in.
//!
//! Owns the watch on the folder where it will turn up, so that nothing wakes the processor meanwhile; never opens the file.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// A folder in which much happens is looked into this often at most.
const LOOK: Duration = Duration::from_millis(250);

/// Returns when the file is there, or never.
pub(super) async fn appears(path: &Path) {
    while !path.exists() {
        let Ok(watch) = watch(path) else { return std::future::pending().await };
        // It may have come between the look and the watch.
        if path.exists() || watch.readable().await.is_err() {
            return;
        }
        if !path.exists() {
            sleep(LOOK).await;
        }
    }
}

/// Tells of new names in the folder of this file, or in the nearest one above that exists: `/dev/serial/by-id` comes
/// with the first adapter.
fn watch(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let folder = path.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, folder, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF)?;
    register(watch)
}

/// The newer constructor is `unsafe`, for types that may name a descriptor they do not own. An `OwnedFd` owns its.
#[expect(deprecated, reason = "the newer one needs unsafe")]
fn register(watch: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(watch, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::appears;

    /// Far longer than any of it takes.
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_file_in_a_folder_that_is_missing_too_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial/by-id/adapter");
        let seen = appears(&path);
        tokio::pin!(seen);
        assert!(timeout(Duration::from_millis(50), &mut seen).await.is_err(), "nothing is there yet");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        assert!(timeout(Duration::from_millis(50), &mut seen).await.is_err(), "only its folder is there");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        timeout(LONG, seen).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_there_is_not_waited_for() {
        timeout(LONG, appears("/dev/null".as_ref())).await.unwrap();
    }
}
