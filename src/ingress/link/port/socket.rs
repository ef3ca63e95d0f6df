//! A UNIX stream socket: for programs on the same machine that speak a dialect, and for tests.
//!
//! Owns the socket's file and its connections; each connection is a line of its own.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{BACKOFF_MAX, Line, State, state_of, tell};
use crate::ingress::link::Link;
use crate::ingress::link::state::Count;

/// Who may connect: the service's user and group.
const MODE: u32 = 0o660;
/// Connections at once: more are devices that never left.
const CONNECTIONS_MAX: usize = 16;
/// Connections that wait to be taken.
const WAITING_MAX: i32 = 16;

/// Listens until the process ends.
pub(super) async fn listen(link: &Link, path: &Path) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut lines = JoinSet::new();
    loop {
        match bind(path) {
            Ok(listener) => {
                tell(link, State::Open);
                // Only an error of the socket itself ends it.
                while let Ok((stream, _)) = listener.accept().await {
                    while lines.try_join_next().is_some() {}
                    let Ok(place) = places.clone().try_acquire_owned() else { continue };
                    let link = link.clone();
                    lines.spawn(async move {
                        let connection = Line::new(link.clone(), Box::new(stream), 0);
                        link.serve(connection).await;
                        link.account.add(Count::Lost, 1);
                        drop(place);
                    });
                }
            }
            Err(error) => tell(link, state_of(&error)),
        }
        sleep(BACKOFF_MAX).await;
    }
}

/// Binds it. Nobody but its own user may connect before its mode is set, and nothing but a dead socket is removed.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    if StdStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another program answers on this socket"));
    }
    remove(path);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A socket's file is made with the mode of the socket itself: it is private from its first moment.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    rustix::net::listen(&socket, WAITING_MAX)?;
    UnixListener::from_std(StdListener::from(socket))
}

/// Removes what a dead process left, and nothing that is not a socket.
pub(super) fn remove(path: &Path) {
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        let _ = std::fs::remove_file(path);
    }
}
