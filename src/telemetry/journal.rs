//! The journal: native fields under their own names, through `tracing-journald`, which waits for the journal and therefore
//! has a thread of its own.
//!
//! Owns the queue to that thread. Whoever logs never waits: a journal that hangs or is being restarted would hang control
//! too. What does not fit into the queue is counted, and told as soon as the journal takes lines again.

use std::fmt::Debug;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing::dispatcher::{self, Dispatch};
use tracing::field::{Field, Value, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// `SYSLOG_IDENTIFIER`, by which `journalctl -t` finds the lines.
const IDENTIFIER: &str = "holdfast";
/// Lines that wait for the journal: more than a busy second says.
const LINES_MAX: usize = 512;
/// Fields of one line; our longest has ten.
const FIELDS_MAX: usize = 16;
/// Longer values are cut: a line for people is a screenful at most.
const VALUE_BYTES_MAX: usize = 4 * 1024;
/// What the last lines may take at the end.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// Hands events to the journal's thread.
pub struct Journal {
    queue: SyncSender<Said>,
    lost: Arc<AtomicU64>,
}

/// Gives the last lines a moment to reach the journal when it is dropped.
pub struct Flush(SyncSender<Said>);

enum Said {
    Line(Line),
    Flush(SyncSender<()>),
}

/// An event as it was, with its values as text.
struct Line {
    about: &'static Metadata<'static>,
    values: Vec<(Field, String)>,
}

impl Journal {
    /// Fails where no journal listens.
    pub fn open(level: Level) -> io::Result<(Journal, Flush)> {
        somebody_listens()?;
        let (journal, lines) = Journal::new();
        let (flush, lost) = (Flush(journal.queue.clone()), journal.lost.clone());
        let write = move || {
            // Waits too, where the journal's queue is full at the start.
            if let Ok(dispatch) = through_the_crate(level) {
                write(&lines, &lost, &dispatch);
            }
        };
        std::thread::Builder::new().name("journal".into()).spawn(write)?;
        Ok((journal, flush))
    }

    fn new() -> (Journal, Receiver<Said>) {
        let (queue, lines) = sync_channel(LINES_MAX);
        (Journal { queue, lost: Arc::default() }, lines)
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line { about: event.metadata(), values: Vec::new() };
        event.record(&mut line);
        if self.queue.try_send(Said::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if self.values.len() < FIELDS_MAX {
            let end = value.floor_char_boundary(VALUE_BYTES_MAX);
            self.values.push((field.clone(), value[..end].to_owned()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl Line {
    fn send(&self, to: &Dispatch) {
        let Some((first, _)) = self.values.first() else { return };
        let mut values: [(&Field, Option<&dyn Value>); FIELDS_MAX] = [(first, None); FIELDS_MAX];
        for (place, (field, value)) in values.iter_mut().zip(&self.values) {
            *place = (field, Some(value));
        }
        to.event(&Event::new(self.about, &self.about.fields().value_set(&values)));
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let (done, is_done) = sync_channel(1);
        if self.0.try_send(Said::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH_MAX);
        }
    }
}

/// The journal discards what is empty; a full queue means that somebody listens.
fn somebody_listens() -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match socket.send_to(&[], SOCKET) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// The words of `[log] level` mean the same to `journalctl -p`; the crate's own mapping is one off.
fn through_the_crate(level: Level) -> io::Result<Dispatch> {
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    let layer = tracing_journald::layer()?
        .with_field_prefix(None)
        .with_syslog_identifier(IDENTIFIER.to_owned())
        .with_priority_mappings(priorities);
    Ok(Dispatch::new(tracing_subscriber::registry().with(LevelFilter::from_level(level)).with(layer)))
}

fn write(lines: &Receiver<Said>, lost: &AtomicU64, to: &Dispatch) {
    for said in lines {
        match said {
            Said::Line(line) => line.send(to),
            Said::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            dispatcher::with_default(to, || {
                tracing::warn!(HOLDFAST_REASON = "log_limit", "{lost} lines were lost: the journal did not take them");
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Keeps what it hears, as the journal would.
    #[derive(Clone, Default)]
    struct Ear(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Ear {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut line = Line { about: event.metadata(), values: Vec::new() };
            event.record(&mut line);
            let values: Vec<String> = line.values.iter().map(|(field, value)| format!("{field}={value}")).collect();
            self.0.lock().unwrap().push(format!("{} {}", event.metadata().level(), values.join(" ")));
        }
    }

    #[test]
    fn a_journal_that_takes_nothing_is_not_waited_for_and_is_told_what_it_missed() {
        let (journal, lines) = Journal::new();
        let (queue, lost) = (journal.queue.clone(), journal.lost.clone());
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(journal));
        dispatcher::with_default(&dispatch, || {
            for n in 0..LINES_MAX + 7 {
                tracing::info!(HOLDFAST_REQUEST_ID = "req_1", HOLDFAST_LATENCY_MS = n, "said {n}");
            }
        });
        assert_eq!(lost.load(Ordering::Relaxed), 7);
        drop((dispatch, queue));
        let ear = Ear::default();
        write(&lines, &lost, &Dispatch::new(tracing_subscriber::registry().with(ear.clone())));
        let heard = ear.0.lock().unwrap();
        assert_eq!(heard.len(), LINES_MAX + 1);
        assert_eq!(heard[0], "INFO message=said 0 HOLDFAST_REQUEST_ID=req_1 HOLDFAST_LATENCY_MS=0");
        assert!(heard[1].contains("7 lines were lost"), "{}", heard[1]);
        assert!(heard[LINES_MAX].contains(&format!("said {}", LINES_MAX - 1)), "{}", heard[LINES_MAX]);
    }

    #[test]
    fn a_long_value_is_cut_between_letters() {
        let (journal, lines) = Journal::new();
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(journal));
        dispatcher::with_default(&dispatch, || tracing::warn!("a{}", "ü".repeat(VALUE_BYTES_MAX)));
        let Ok(Said::Line(line)) = lines.try_recv() else { panic!("a line") };
        assert_eq!(line.values[0].1.len(), VALUE_BYTES_MAX - 1);
    }

    #[test]
    fn the_end_waits_for_what_was_said_and_no_longer() {
        let (journal, lines) = Journal::new();
        let flush = Flush(journal.queue.clone());
        let thread = std::thread::spawn(move || write(&lines, &AtomicU64::default(), &Dispatch::none()));
        drop(flush);
        drop(journal);
        thread.join().unwrap();
    }
}
