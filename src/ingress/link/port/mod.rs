//! Lines: opened, spoken on, and opened again when they are gone.
//!
//! Owns how a line is reached and what its loss means: a state, and another try. Knows nothing of what is said on it.

mod address;
mod appears;
mod device;
mod socket;

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{sleep, timeout};

use super::modbus::tcp;
use super::state::{Count, State};
use super::{Link, Place};
use crate::clock;
use crate::telemetry::feed;

/// The first wait before a lost line is opened again.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// The longest.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A line that stood for so long was a good one: its next loss begins with the first wait again.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// A peer that takes nothing for so long is gone, beside the time its bytes need on the wire.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// Anything that bytes come from and go to.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open line.
pub struct Line {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    link: Link,
    /// Bits per second of a serial port; 0 where it does not matter.
    baud: u32,
}

impl Line {
    fn new(link: Link, stream: Box<dyn Stream>, baud: u32) -> Line {
        let (reader, writer) = tokio::io::split(stream);
        Line { reader, writer, link, baud }
    }

    /// The next bytes; `None` when the line is gone. May be dropped and called again without losing any.
    pub async fn read(&mut self, into: &mut [u8]) -> Option<usize> {
        // 0 bytes and EIO alike: whatever was there has gone.
        let bytes = self.reader.read(into).await.ok().filter(|bytes| *bytes > 0)?;
        self.link.account.add(Count::BytesIn, bytes as u64);
        Some(bytes)
    }

    /// Sends all of it; false when the line is gone or takes nothing any more.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        let limit = WRITE_MAX + time_on_wire(bytes.len(), self.baud) * 2;
        let written = timeout(limit, async {
            self.writer.write_all(bytes).await?;
            self.writer.flush().await
        });
        let done = matches!(written.await, Ok(Ok(())));
        if done {
            self.link.account.add(Count::BytesOut, bytes.len() as u64);
        }
        done
    }
}

/// How long so many bytes take at this speed; nothing at speed 0.
pub fn time_on_wire(bytes: usize, baud: u32) -> Duration {
    // A byte is at most 12 bits: start, eight, parity, two stop.
    let us = (bytes as u64 * 12 * 1_000_000).checked_div(baud.into());
    Duration::from_micros(us.unwrap_or(0))
}

/// Keeps one link open until the process ends.
pub async fn keep(link: Link) {
    let mut stop = link.stop.clone();
    let keeping = async {
        match link.options.place.clone() {
            Place::Socket(path) => socket::listen(&link, &path).await,
            Place::Device(path) => again(&link, Some(&path), || device::open(&link, &path)).await,
            Place::Address(address) => again(&link, None, || address::open(&address)).await,
            Place::Listen(address) => tcp::listen(&link, address, |state| tell(&link, state)).await,
        }
    };
    tokio::select! {
        () = keeping => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    if let Place::Socket(path) = &link.options.place {
        socket::remove(path);
    }
}

/// Opens a line, serves it, and waits before it is opened again.
async fn again<F>(link: &Link, path: Option<&Path>, open: impl Fn() -> F)
where
    F: Future<Output = io::Result<(Box<dyn Stream>, u32)>>,
{
    let mut wait = BACKOFF_MIN;
    loop {
        let begun = clock::now();
        match open().await {
            Ok((stream, baud)) => {
                tell(link, State::Open);
                link.serve(Line::new(link.clone(), stream, baud)).await;
                link.account.add(Count::Lost, 1);
                tell(link, State::Waiting("the line was lost".to_owned()));
            }
            Err(error) => tell(link, state_of(&error)),
        }
        if clock::now().duration_since(begun) >= GOOD_AFTER {
            wait = BACKOFF_MIN;
        }
        pause(wait, path).await;
        wait = (wait * 2).min(BACKOFF_MAX);
    }
}

/// Waits; no longer than until a missing file is there.
async fn pause(wait: Duration, path: Option<&Path>) {
    match path.filter(|path| !path.exists()) {
        Some(path) => drop(timeout(wait, appears::appears(path)).await),
        None => sleep(wait).await,
    }
}

/// What is not there may come by itself; what may not be opened needs somebody.
fn state_of(error: &io::Error) -> State {
    use io::ErrorKind::{NotFound, PermissionDenied};
    match error.kind() {
        _ if is_taken(error) => State::Failed("another program has it open".to_owned()),
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOTTY.raw_os_error()) => {
            State::Failed("this is no serial line".to_owned())
        }
        NotFound => State::Waiting("not plugged in".to_owned()),
        PermissionDenied => State::Failed("permission denied: give the service's user access to it".to_owned()),
        _ => State::Waiting(error.to_string()),
    }
}

fn is_taken(error: &io::Error) -> bool {
    let text = error.to_string();
    error.kind() == io::ErrorKind::ResourceBusy || text.contains("exclusive") || text.contains("busy")
}

/// Says how a link stands where that is news: in the journal, the live events and the status.
pub(super) fn tell(link: &Link, state: State) {
    let (word, why) = (state.as_str(), state.reason().map(str::to_owned));
    if !link.account.set(state) {
        return;
    }
    let name = link.core.link();
    let said = why.as_deref().map_or(String::new(), |why| format!(": {why}"));
    if word == "failed" {
        tracing::warn!(
            HOLDFAST_LINK = name,
            HOLDFAST_STATE = word,
            HOLDFAST_REASON = why,
            "link {name} is {word}{said}"
        );
    } else {
        tracing::info!(
            HOLDFAST_LINK = name,
            HOLDFAST_STATE = word,
            HOLDFAST_REASON = why,
            "link {name} is {word}{said}"
        );
    }
    let mut event = feed::Event::new("link");
    event.source = Some(format!("link:{name}"));
    event.state = Some(word);
    event.reason = why;
    link.core.gateway().feed().publish(event);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_somebody_is_failed_and_what_may_come_by_itself_waits() {
        let taken = io::Error::new(io::ErrorKind::NotFound, "Unable to acquire exclusive lock on serial port");
        let no_line = io::Error::from_raw_os_error(rustix::io::Errno::NOTTY.raw_os_error());
        for error in [taken, no_line, io::ErrorKind::PermissionDenied.into()] {
            assert!(matches!(state_of(&error), State::Failed(_)), "{error}");
        }
        assert_eq!(state_of(&io::ErrorKind::NotFound.into()), State::Waiting("not plugged in".to_owned()));
    }
}
