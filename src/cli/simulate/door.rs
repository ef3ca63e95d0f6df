//! A listener that can be shut and opened again at the same address.
//!
//! Owns the listening socket; knows nothing of HTTP. While shut, a TCP port stays reserved without listening, so that
//! connections are refused and nobody else can take the port.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::Listen;
use super::server::Duplex;

/// Connections the kernel may hold before they are accepted.
const BACKLOG: u32 = 1_024;

pub(super) enum Door {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
    ShutTcp(TcpSocket),
    ShutUnix(PathBuf),
    /// The address could not be taken again: it stays refused, which a test will notice.
    Lost,
}

impl Door {
    pub(super) fn open(listen: &Listen) -> io::Result<Door> {
        match listen {
            Listen::Tcp(address) => reserve(*address)?.listen(BACKLOG).map(Door::Tcp),
            Listen::Unix(path) => listen_unix(path),
        }
    }

    /// Where it really listens.
    pub(super) fn address(&self) -> io::Result<Listen> {
        match self {
            Door::Tcp(listener) => listener.local_addr().map(Listen::Tcp),
            Door::ShutTcp(socket) => socket.local_addr().map(Listen::Tcp),
            Door::Unix(_, path) | Door::ShutUnix(path) => Ok(Listen::Unix(path.clone())),
            Door::Lost => Err(io::ErrorKind::AddrInUse.into()),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self, Door::Tcp(_) | Door::Unix(..))
    }

    /// Stops listening; whatever waits unaccepted is refused too.
    pub(super) fn shut(self) -> Door {
        match self {
            Door::Tcp(listener) => {
                let Ok(address) = listener.local_addr() else { return Door::Lost };
                drop(listener);
                reserve(address).map_or(Door::Lost, Door::ShutTcp)
            }
            Door::Unix(_, path) => Door::ShutUnix(path),
            shut => shut,
        }
    }

    /// Listens again where it did before.
    pub(super) fn reopen(self) -> Door {
        match self {
            Door::ShutTcp(socket) => socket.listen(BACKLOG).map_or(Door::Lost, Door::Tcp),
            Door::ShutUnix(path) => listen_unix(&path).unwrap_or(Door::Lost),
            other => other,
        }
    }

    /// The next connection; never, while shut.
    pub(super) async fn accept(&self) -> Box<dyn Duplex> {
        loop {
            let accepted: io::Result<Box<dyn Duplex>> = match self {
                Door::Tcp(listener) => listener.accept().await.map(|(stream, _)| boxed(nodelay(stream))),
                Door::Unix(listener, _) => listener.accept().await.map(|(stream, _)| boxed(stream)),
                _ => std::future::pending().await,
            };
            match accepted {
                Ok(stream) => return stream,
                // Out of descriptors: others have to close first.
                Err(_) => super::faults::pause(50).await,
            }
        }
    }
}

fn boxed(stream: impl Duplex + 'static) -> Box<dyn Duplex> {
    Box::new(stream)
}

fn nodelay(stream: tokio::net::TcpStream) -> tokio::net::TcpStream {
    // Only a matter of speed.
    let _ = stream.set_nodelay(true);
    stream
}

fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen_unix(path: &Path) -> io::Result<Door> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok(Door::Unix(UnixListener::bind(path)?, path.to_owned()))
}
