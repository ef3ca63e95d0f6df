//! Waiting for a program that is to listen at a socket.
//!
//! Owns how often is looked and for how long; whoever started the program says what its absence means.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

const LOOK: Duration = Duration::from_millis(10);
const LOOKS: u32 = 500;

/// Says whether somebody accepts connections there in time.
pub(crate) async fn until_listening(socket: &Path) -> bool {
    for _ in 0..LOOKS {
        if UnixStream::connect(socket).await.is_ok() {
            return true;
        }
        tokio::time::sleep(LOOK).await;
    }
    false
}
