//! The journal: one datagram per event, its fields under their own names (the journal's native protocol).
//!
//! Owns the form and the socket. Never waits for the journal: one that hangs or is being restarted would hang whoever
//! logs, and that is control too. What it does not take is counted, and told with the next line that it takes.

use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Longer values are cut: a datagram holds some 200 KB, and a line for people a screenful.
const VALUE_BYTES_MAX: usize = 8 * 1024;
/// `SYSLOG_IDENTIFIER`, by which `journalctl -t` finds the lines.
const IDENTIFIER: &str = "holdfast";

/// Sends events to the journal.
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    lost: AtomicU64,
}

impl Journal {
    /// Fails where no journal listens.
    pub fn open() -> io::Result<Journal> {
        Journal::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let journal = Journal { socket, path: path.to_path_buf(), lost: AtomicU64::new(0) };
        // The journal discards what is empty; a full queue means that somebody listens.
        match journal.socket.send_to(&[], path) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(journal),
        }
    }

    fn send(&self, entry: &[u8]) {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 && self.socket.send_to(&lost_entry(lost), &self.path).is_ok() {
            self.lost.fetch_sub(lost, Ordering::Relaxed);
        }
        if self.socket.send_to(entry, &self.path).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let about = event.metadata();
        let mut entry = Entry::new(*about.level());
        entry.field("TARGET", about.target());
        if let (Some(file), Some(line)) = (about.file(), about.line()) {
            entry.field("CODE_FILE", file);
            entry.field("CODE_LINE", &line.to_string());
        }
        event.record(&mut entry);
        self.send(&entry.bytes);
    }
}

/// The words of `[log] level` mean the same to `journalctl -p`.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

fn lost_entry(lost: u64) -> Vec<u8> {
    let mut entry = Entry::new(Level::WARN);
    entry.field("HOLDFAST_REASON", "log_limit");
    entry.field("MESSAGE", &format!("{lost} lines were lost before this one: the journal did not take them"));
    entry.bytes
}

struct Entry {
    bytes: Vec<u8>,
}

impl Entry {
    fn new(level: Level) -> Entry {
        let mut entry = Entry { bytes: Vec::with_capacity(512) };
        entry.field("PRIORITY", priority(level));
        entry.field("SYSLOG_IDENTIFIER", IDENTIFIER);
        entry
    }

    /// The journal takes capital letters, digits and `_` in names; a value goes with its length, so that it may hold anything.
    fn field(&mut self, name: &str, value: &str) {
        let signs = name.bytes().map(|b| if b.is_ascii_alphanumeric() { b.to_ascii_uppercase() } else { b'_' });
        self.bytes.extend(signs.skip_while(|b| *b == b'_' || b.is_ascii_digit()));
        let value = &value.as_bytes()[..value.len().min(VALUE_BYTES_MAX)];
        self.bytes.push(b'\n');
        self.bytes.extend((value.len() as u64).to_le_bytes());
        self.bytes.extend(value);
        self.bytes.push(b'\n');
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        let name = if field.name() == "message" { "MESSAGE" } else { field.name() };
        self.field(name, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_hold_anything_and_a_name_may_not() {
        let mut entry = Entry { bytes: Vec::new() };
        entry.field("_1http.status", "a\nB=c");
        assert_eq!(entry.bytes, b"HTTP_STATUS\n\x05\0\0\0\0\0\0\0a\nB=c\n");
        let mut long = Entry { bytes: Vec::new() };
        long.field("A", &"x".repeat(3 * VALUE_BYTES_MAX));
        assert_eq!(long.bytes.len(), VALUE_BYTES_MAX + 11);
    }

    #[test]
    fn a_journal_that_takes_nothing_is_not_waited_for_and_is_told_what_it_missed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert!(Journal::at(&path).is_err(), "nobody listens");
        let theirs = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(&path).unwrap();
        for _ in 0..2_000 {
            journal.send(b"A\n");
        }
        let lost = journal.lost.load(Ordering::Relaxed);
        assert!((1..2_000).contains(&lost), "{lost}");
        theirs.set_nonblocking(true).unwrap();
        let mut buffer = [0u8; 4096];
        while theirs.recv(&mut buffer).is_ok() {}
        journal.send(b"B\n");
        let length = theirs.recv(&mut buffer).unwrap();
        let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(told.contains(&format!("{lost} lines were lost")), "{told}");
        assert_eq!((theirs.recv(&mut buffer).unwrap(), journal.lost.load(Ordering::Relaxed)), (2, 0));
    }
}
