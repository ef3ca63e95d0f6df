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
    /// Another program took the address in the moment in which it was free; it is tried again.
    Lost(Listen),
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
            Door::Lost(listen) => Ok(listen.clone()),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self, Door::Tcp(_) | Door::Unix(..))
    }

    /// Stops listening; whatever waits unaccepted is refused too.
    pub(super) fn shut(self) -> Door {
        match self {
            Door::Tcp(listener) => {
                let Ok(address) = listener.local_addr() else { return Door::Tcp(listener) };
                drop(listener);
                reserve(address).map_or(Door::Lost(Listen::Tcp(address)), Door::ShutTcp)
            }
            Door::Unix(_, path) => Door::ShutUnix(path),
            shut => shut,
        }
    }

    /// Listens again where it did before.
    pub(super) fn reopen(self) -> Door {
        let Ok(listen) = self.address() else { return self };
        let opened = match self {
            Door::ShutTcp(socket) => socket.listen(BACKLOG).map(Door::Tcp),
            Door::ShutUnix(_) | Door::Lost(_) => Door::open(&listen),
            open => return open,
        };
        opened.unwrap_or(Door::Lost(listen))
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
