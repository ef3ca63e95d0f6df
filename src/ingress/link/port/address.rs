//! A raw TCP serial server: a box with serial ports in the network.
//!
//! Owns the connection and how a dead one is noticed.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Stream;

/// A box that answers at all answers within this.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// After this much silence the kernel asks whether the other side is still there.
const IDLE: Duration = Duration::from_secs(20);
/// And then this often.
const ASK: Duration = Duration::from_secs(5);
/// So often without an answer, and it is gone.
const ASKS: u32 = 3;

/// Connects.
pub(super) async fn open(address: &str) -> io::Result<(Box<dyn Stream>, u32)> {
    let connecting = timeout(CONNECT_MAX, TcpStream::connect(address));
    let stream = connecting.await.map_err(|_| io::Error::other("no connection within 5 s"))??;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, ASK)?;
    sockopt::set_tcp_keepcnt(&stream, ASKS)?;
    Ok((Box::new(stream), 0))
}
