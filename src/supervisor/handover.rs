//! The way from one process image to the next: the same process runs its program anew and keeps its listening sockets.
//!
//! Owns how sockets get across: as a message on a pair of sockets, whose other end becomes the next image's standard
//! input. So no descriptor needs a number, and what is not handed over is closed by the kernel. Decides nothing.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};

use super::doors::Doors;

/// Tells the next image that sockets wait on its standard input. Its value is the process's number, so that a child
/// does not take it for its own. Not among `HOLDFAST_…`: those are configuration.
const VARIABLE: &str = "HF_HANDOVER";
/// The kernel passes 253 descriptors in one message at most.
const SOCKETS_MAX: usize = 253;
/// Names of that many sockets: a path has 107 bytes at most, an address fewer.
const NAMES_BYTES_MAX: usize = SOCKETS_MAX * 128;

/// Everything is closed; what is left is to run the program anew.
pub struct Handover {
    executable: PathBuf,
    doors: Doors,
}

impl Handover {
    pub(super) fn new(executable: PathBuf, doors: Doors) -> Handover {
        Handover { executable, doors }
    }

    /// Becomes the program that is installed now. Returns only where that fails.
    pub fn go(self) -> io::Error {
        let Err(error) = self.run();
        error
    }

    fn run(self) -> io::Result<std::convert::Infallible> {
        let (here, there) = pair()?;
        let named = self.doors.named();
        let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        let sockets: Vec<BorrowedFd<'_>> = named.iter().map(|(_, socket)| *socket).collect();
        send(&here, &names.join("\n"), &sockets)?;
        let mut arguments = std::env::args_os();
        let mut command = Command::new(&self.executable);
        if let Some(own_name) = arguments.next() {
            command.arg0(own_name);
        }
        command.args(arguments).env(VARIABLE, std::process::id().to_string()).stdin(there);
        // They named descriptors of the first image.
        command.env_remove("LISTEN_FDS").env_remove("LISTEN_PID").env_remove("LISTEN_FDNAMES");
        Err(command.exec())
    }
}

/// The sockets of the image before this one, with their names; `None` where this is a start of its own.
pub(super) fn take() -> Option<Vec<(String, OwnedFd)>> {
    if !is_taking_over() {
        return None;
    }
    let stdin = io::stdin();
    match receive(&stdin) {
        Ok(sockets) => Some(sockets),
        Err(error) => {
            tracing::warn!("the sockets of the earlier image did not come across: {error}");
            Some(Vec::new())
        }
    }
}

/// Whether this process was another image of the program before.
pub fn is_taking_over() -> bool {
    std::env::var(VARIABLE).is_ok_and(|pid| pid == std::process::id().to_string())
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

fn send(to: &OwnedFd, names: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if sockets.len() > SOCKETS_MAX || !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other(format!("more than {SOCKETS_MAX} listening sockets; restart instead")));
    }
    rustix::net::sendmsg(to, &[IoSlice::new(names.as_bytes())], &mut control, SendFlags::empty())?;
    Ok(())
}

fn receive(from: &impl std::os::fd::AsFd) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut names = vec![0u8; NAMES_BYTES_MAX];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(from, &mut [IoSliceMut::new(&mut names)], &mut control, flags)?;
    let sockets = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => sockets.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let names = String::from_utf8_lossy(&names[..received.bytes]);
    Ok(names.lines().map(str::to_owned).zip(sockets).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn sockets_come_across_with_their_names() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (here, there) = pair().unwrap();
        send(&here, "tcp a\nown /b", &[listener.as_fd(), here.as_fd()]).unwrap();
        drop((here, listener));
        let mut got = receive(&there).unwrap();
        assert_eq!(got.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["tcp a", "own /b"]);
        let listener = std::net::TcpListener::from(got.swap_remove(0).1);
        assert_eq!(listener.local_addr().unwrap(), address);
        std::net::TcpStream::connect(address).expect("the socket still listens");
        assert!(receive(&there).is_err(), "there is one message");
    }

    #[test]
    fn more_sockets_than_the_kernel_passes_are_refused() {
        let (here, _there) = pair().unwrap();
        assert!(send(&here, "", &vec![here.as_fd(); SOCKETS_MAX + 1]).is_err());
    }
}
