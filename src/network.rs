//! Tells when the system says that links, addresses or routes changed, so that a cable plugged in is noticed
//! before the next probe is due.
//!
//! Owns one netlink route socket and reads from it; never asks what changed and never changes anything. Where
//! there is no netlink (some containers and seccomp filters) it stays silent and probes alone must do.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE of rtnetlink(7).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// One change comes as a burst (link, addresses, routes); what follows within this time is told once, after it.
/// Each telling costs a probe of every uplink: this bounds them at five per second.
const SETTLE: Duration = Duration::from_millis(200);
/// Messages taken at one go. A router may load its whole table; other tasks must have their turn meanwhile.
const TAKEN_MAX: usize = 256;

/// Starts to listen; must be called inside the runtime. The receiver never ends: without netlink it is silent.
pub fn watch() -> Receiver<()> {
    // One place: whoever was told and did not look yet need not be told twice.
    let (tell, told) = channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = listen(&tell) => {}
            () = tell.closed() => {}
        }
    });
    told
}

async fn listen(tell: &Sender<()>) {
    let Err(error) = follow(tell).await;
    tracing::info!(%error, "no news of network changes; relying on probes alone");
    // Keeps the sender: a receiver that ends would look like a change to whoever awaits it in a loop.
    pending::<()>().await;
}

async fn follow(tell: &Sender<()>) -> io::Result<std::convert::Infallible> {
    let socket = register(open()?)?;
    loop {
        socket.async_io(Interest::READABLE, take).await?;
        take_rest(socket.get_ref());
        // Full: an earlier change was not looked at yet, and looking will find this one too.
        let _ = tell.try_send(());
        tokio::time::sleep(SETTLE).await;
    }
}

/// The newer constructor is `unsafe`, for types that may name a descriptor they do not own. An `OwnedFd` owns its.
#[expect(deprecated, reason = "the newer one needs unsafe")]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Without a protocol it is NETLINK_ROUTE, which is 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket)
}

/// Takes one message. Its content is cut off: that there was one is the news.
fn take(socket: &OwnedFd) -> io::Result<()> {
    match recv(socket, &mut [0u8; 1][..], RecvFlags::DONTWAIT) {
        // Messages were dropped because nobody read in time: changes all the same.
        Ok(_) | Err(Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes what else waits; a lasting fault shows itself at the next `take`.
fn take_rest(socket: &OwnedFd) {
    for _ in 0..TAKEN_MAX {
        if take(socket).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::net::{SendFlags, send, socketpair};
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_burst_is_taken_as_one() {
        let (ours, kernels) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::NONBLOCK, None).unwrap();
        for _ in 0..5 {
            send(&kernels, b"a message longer than what is read of it", SendFlags::empty()).unwrap();
        }
        take(&ours).unwrap();
        take_rest(&ours);
        assert_eq!(take(&ours).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn the_socket_opens_and_silence_is_no_end() {
        register(open().unwrap()).unwrap();
        let mut told = watch();
        // Nothing, or a change on the machine the test runs on; but never the end.
        if let Ok(news) = timeout(Duration::from_millis(50), told.recv()).await {
            assert_eq!(news, Some(()));
        }
    }

    /// Runs itself again inside a network namespace of its own, which ends with it.
    #[tokio::test]
    #[ignore = "makes a network namespace: run as root, with unshare and ip installed"]
    async fn tells_of_a_link_that_comes_up() {
        const INSIDE: &str = "HOLDFAST_TEST_IN_NAMESPACE";
        const NAME: &str = "network::tests::tells_of_a_link_that_comes_up";
        if std::env::var_os(INSIDE).is_some() {
            return told_inside().await;
        }
        let mut again = Command::new("unshare");
        again.arg("--net").arg(std::env::current_exe().unwrap()).args(["--exact", NAME, "--ignored", "--nocapture"]);
        let output = again.env(INSIDE, "1").output().expect("unshare (util-linux) is not installed");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "inside a namespace (root needed): {said}");
    }

    async fn told_inside() {
        let links = std::fs::read_to_string("/proc/net/dev").unwrap();
        let links = links.lines().skip(2).filter_map(|line| line.trim().split(':').next()).collect::<Vec<_>>();
        assert_eq!(links, ["lo"], "this is not a fresh network namespace; nothing was changed");
        let mut told = watch();
        let early = timeout(Duration::from_millis(300), told.recv()).await;
        assert!(early.is_err(), "told of a change that nobody made");
        ip("link set lo up");
        assert_eq!(timeout(LONG, told.recv()).await, Ok(Some(())));
        // The rest of that burst may be told once more; afterwards it is quiet.
        while timeout(4 * SETTLE, told.recv()).await.is_ok() {}
        ip("address add 192.0.2.1/32 dev lo");
        assert_eq!(timeout(LONG, told.recv()).await, Ok(Some(())));
    }

    fn ip(arguments: &str) {
        let done = Command::new("ip").args(arguments.split(' ')).status().expect("ip (iproute2) is not installed");
        assert!(done.success(), "ip {arguments}");
    }
}
