//! Starting a program that is to listen at a socket, by itself or under another one, and waiting for it.
//!
//! Owns how often is looked and for how long; whoever started the program says what its absence means.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::net::UnixStream;

const LOOK: Duration = Duration::from_millis(10);
/// A program that is watched instruction by instruction starts fifty times slower.
const LOOKS: u32 = 3000;

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

/// A command line for `program`, behind that of a program which runs it.
pub(crate) fn command(under: &[String], program: &Path) -> Command {
    let [first, rest @ ..] = under else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(rest).arg(program);
    command
}
