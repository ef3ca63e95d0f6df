//! The listening sockets: bound, taken over from systemd or from the process image before this one, handed on.
//!
//! Owns them for as long as the process listens, beside those that accept: whoever connects while a configuration is
//! taken over waits in the kernel's backlog and is not refused. Never accepts a connection.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use super::SupervisorError;
use super::parts::server_tls;
use crate::config;
use crate::ingress::http::{Listeners, Tokens};
use crate::plant::{self, Fault};
use crate::systemd;

/// The word before an address of TCP in a handed-over name.
const TCP: &str = "tcp ";
/// The word before the path of a socket that a process of ours bound.
const OWN: &str = "own ";
/// The word for the socket that systemd bound.
const SYSTEMD: &str = "systemd ";

/// What is listened on.
pub(super) struct Doors {
    unix: StdUnixListener,
    /// Where the UNIX socket is, if it is ours to remove: one that systemd made outlives this process.
    own: Option<PathBuf>,
    tcp: Vec<(SocketAddr, StdTcpListener)>,
}

impl Doors {
    /// At the start. `handed` are the sockets of the image before this one, by the names that `names` gave them.
    pub(super) fn open(http: &config::Http, handed: Vec<(String, OwnedFd)>) -> Result<Doors, SupervisorError> {
        let (mut unix, mut own, mut kept) = (None, None, Vec::new());
        for (name, socket) in handed {
            if let Some(address) = name.strip_prefix(TCP).and_then(|text| text.parse::<SocketAddr>().ok()) {
                kept.push((address, StdTcpListener::from(socket)));
            } else if let Some(path) = name.strip_prefix(OWN) {
                (unix, own) = (Some(StdUnixListener::from(socket)), Some(PathBuf::from(path)));
            } else if name.starts_with(SYSTEMD) {
                unix = Some(StdUnixListener::from(socket));
            }
        }
        let (unix, own) = match unix {
            Some(unix) => {
                if let Some(path) = &own {
                    // A mode that the new configuration changed; the socket itself stays.
                    let _ = std::fs::set_permissions(path, PermissionsExt::from_mode(http.socket_mode));
                }
                (unix, own)
            }
            None => first_unix(http)?,
        };
        Ok(Doors { unix, own, tcp: all_tcp(http, kept)? })
    }

    /// Those that another configuration wants: the same sockets where it wants the same, new ones bound beside them.
    pub(super) fn for_other(&self, http: &config::Http) -> Result<Doors, SupervisorError> {
        let failed = |e: io::Error| SupervisorError::Io(format!("a listening socket: {e}"));
        let mut kept = Vec::new();
        for (address, listener) in &self.tcp {
            kept.push((*address, listener.try_clone().map_err(failed)?));
        }
        let tcp = all_tcp(http, kept)?;
        let stays = self.own.as_ref().is_none_or(|own| *own == http.socket);
        let unix = if stays { self.unix.try_clone().map_err(failed)? } else { bind_unix(http)? };
        let own = self.own.is_some().then(|| http.socket.clone());
        Ok(Doors { unix, own, tcp })
    }

    /// What accepts on them. Closing that closes none of these.
    pub(super) fn listeners(&self, http: &config::Http) -> Result<Listeners, SupervisorError> {
        let failed = |e: io::Error| SupervisorError::Io(format!("a listening socket: {e}"));
        let unix = self.unix.try_clone().map_err(failed)?;
        unix.set_nonblocking(true).map_err(failed)?;
        let mut tcp = Vec::new();
        for (_, listener) in &self.tcp {
            let listener = listener.try_clone().map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            tcp.push(TcpListener::from_std(listener).map_err(failed)?);
        }
        let unix = UnixListener::from_std(unix).map_err(failed)?;
        Ok(Listeners { unix, tcp, tokens: tokens(http)?, tls: server_tls(http)? })
    }

    /// Every socket with a name by which the next image knows it.
    pub(super) fn named(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let own = self.own.as_ref().map(|path| format!("{OWN}{}", path.display()));
        let unix = (own.unwrap_or_else(|| SYSTEMD.to_owned()), self.unix.as_fd());
        let tcp = self.tcp.iter().map(|(address, listener)| (format!("{TCP}{address}"), listener.as_fd()));
        std::iter::once(unix).chain(tcp).collect()
    }

    /// Where the UNIX socket is, if it is this process's to remove.
    pub(super) fn own_path(&self) -> Option<PathBuf> {
        self.own.clone()
    }
}

/// Who may use TCP, as the configuration's file says.
pub(super) fn tokens(http: &config::Http) -> Result<Option<Tokens>, SupervisorError> {
    http.token_file.as_deref().map(Tokens::read).transpose().map_err(SupervisorError::Configuration)
}

/// The UNIX socket that systemd holds, else one of our own.
fn first_unix(http: &config::Http) -> Result<(StdUnixListener, Option<PathBuf>), SupervisorError> {
    let inherited = systemd::inherited_socket().map_err(|e| SupervisorError::Io(format!("LISTEN_FDS: {e}")))?;
    let Some(listener) = inherited else { return Ok((bind_unix(http)?, Some(http.socket.clone()))) };
    let at = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_path_buf));
    if at.as_deref().is_some_and(|at| at != http.socket) {
        let at = at.unwrap_or_default();
        tracing::warn!(
            "systemd holds the socket {}, and [http] socket names {}: the first is served; make holdfast.socket name the same",
            at.display(),
            http.socket.display()
        );
    }
    Ok((listener, None))
}

fn all_tcp(
    http: &config::Http,
    mut kept: Vec<(SocketAddr, StdTcpListener)>,
) -> Result<Vec<(SocketAddr, StdTcpListener)>, SupervisorError> {
    let mut all = Vec::new();
    for address in &http.listen {
        let listener = match kept.iter().position(|(at, _)| at == address) {
            Some(at) => kept.swap_remove(at).1,
            None => StdTcpListener::bind(address).map_err(|e| {
                SupervisorError::Io(format!("http.listen {address}: {e}; stop what listens there, or choose another"))
            })?,
        };
        all.push((*address, listener));
    }
    Ok(all)
}

/// The mode holds from the first instant: the umask is set before the socket exists, never changed after.
fn bind_unix(http: &config::Http) -> Result<StdUnixListener, SupervisorError> {
    let (path, mode) = (http.socket.as_path(), http.socket_mode);
    let failed = |e: &io::Error| match e.kind() {
        io::ErrorKind::PermissionDenied => SupervisorError::Permission(format!(
            "{}: permission denied; run as the service's user or set http.socket",
            path.display()
        )),
        io::ErrorKind::AddrInUse => SupervisorError::Io(format!(
            "{}: a file is in the way that is no socket; remove it or set another http.socket",
            path.display()
        )),
        _ => SupervisorError::Io(format!("{}: {e}", path.display())),
    };
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| failed(&e))?;
    }
    if UnixStream::connect(path).is_ok() {
        let what =
            format!("{}: another daemon answers on this socket; stop it or set another http.socket", path.display());
        return Err(SupervisorError::Io(what));
    }
    remove_socket(path);
    let narrow = if plant::is(Fault::ChmodAfterListen) { 0 } else { 0o777 & !mode };
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(narrow));
    let bound = StdUnixListener::bind(path);
    rustix::process::umask(umask);
    if plant::is(Fault::ChmodAfterListen) {
        // Long enough to be seen: between listening and this anybody may connect.
        #[allow(
            clippy::disallowed_methods,
            reason = "a mistake that tests plant; nothing waits for this in a release"
        )]
        std::thread::sleep(std::time::Duration::from_millis(200));
        let _ = std::fs::set_permissions(path, PermissionsExt::from_mode(mode));
    }
    bound.map_err(|e| failed(&e))
}

/// Removes the own socket when nothing listens on it any more; another daemon may have put its own there meanwhile.
pub(super) fn leave_socket(path: &Path) {
    if UnixStream::connect(path).is_err() {
        remove_socket(path);
    }
}

/// Removes what a dead daemon left, and nothing that is not a socket.
pub(super) fn remove_socket(path: &Path) {
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        let _ = std::fs::remove_file(path);
    }
}
