//! The simulated device's end of the line: a serial port in raw mode, a UNIX socket, or a serial server's TCP port.
//!
//! Owns opening, reading and writing. A line that is gone is an error, whatever it was.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::termios::{ControlModes, OptionalActions, Termios};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where the gateway is.
#[derive(Debug, Clone)]
pub enum LineAt {
    /// A serial port.
    Port {
        /// Its file.
        path: PathBuf,
        /// Bits per second.
        baud: u32,
        /// 8E1 instead of 8N1.
        even_parity: bool,
    },
    /// A UNIX stream socket.
    Socket(PathBuf),
    /// IP:PORT to listen on, as a serial server in the network does: the gateway connects.
    Address(String),
}

impl fmt::Display for LineAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LineAt::Port { path, baud, .. } => write!(f, "{} at {baud} baud", path.display()),
            LineAt::Socket(path) => write!(f, "{}", path.display()),
            LineAt::Address(address) => write!(f, "{address}, waiting for the gateway to connect"),
        }
    }
}

/// An open line.
#[derive(Debug)]
pub(in crate::cli) struct Line {
    fd: AsyncFd<OwnedFd>,
}

impl Line {
    pub(in crate::cli) async fn open(at: &LineAt) -> io::Result<Line> {
        let at = at.clone();
        let fd = tokio::task::spawn_blocking(move || connect(&at)).await.map_err(io::Error::other)??;
        Ok(Line { fd: register(fd)? })
    }

    /// At least one byte.
    pub(in crate::cli) async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        let reading = self.fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *into)?));
        match reading.await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the line is gone")),
            length => Ok(length),
        }
    }

    pub(in crate::cli) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.fd.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// The newer constructor is `unsafe`, for types that may name a descriptor they do not own. An `OwnedFd` owns its.
#[expect(deprecated, reason = "the newer one needs unsafe")]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

fn connect(at: &LineAt) -> io::Result<OwnedFd> {
    let fd: OwnedFd = match at {
        LineAt::Port { path, baud, even_parity } => return open_port(path, *baud, *even_parity),
        LineAt::Socket(path) => UnixStream::connect(path)?.into(),
        LineAt::Address(address) => {
            let listener = TcpListener::bind(address)?;
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            stream.into()
        }
    };
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Raw: every byte as it is, no XON/XOFF, no hang-up on close.
fn open_port(path: &Path, baud: u32, even_parity: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let mut settings: Termios = rustix::termios::tcgetattr(&fd)?;
    settings.make_raw();
    settings.set_speed(baud)?;
    settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
    settings.control_modes &= !(ControlModes::HUPCL | ControlModes::CRTSCTS | ControlModes::CSTOPB);
    settings.control_modes.set(ControlModes::PARENB, even_parity);
    rustix::termios::tcsetattr(&fd, OptionalActions::Now, &settings)?;
    Ok(fd)
}
