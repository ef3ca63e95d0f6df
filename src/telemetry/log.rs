//! Where log lines go: the journal with native fields under systemd, text on a terminal, JSON on request.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::journal::{Flush, Journal};
use super::limit::Limit;
use crate::plant::{self, Fault};

/// `[log] format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The journal where standard error goes there, else text.
    Auto,
    /// One line of text per event.
    Text,
    /// One JSON object per event.
    Json,
    /// The journal.
    Journal,
}

/// Starts logging; a second call changes nothing. What is given back is kept until the last line is said.
pub fn start(level: Level, form: Form) -> Option<Flush> {
    watch_panics();
    // Our own lines alone: nobody here answers for what a library's may quote.
    let ours = Targets::new().with_target("holdfast", level);
    let registry = tracing_subscriber::registry().with(ours).with(Limit::default());
    let journal = matches!(form, Form::Journal) || (form == Form::Auto && std::env::var_os("JOURNAL_STREAM").is_some());
    if journal && let Ok((layer, flush)) = Journal::open(level) {
        let _ = registry.with(layer).try_init();
        return Some(flush);
    }
    let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let _ = if form == Form::Json {
        registry.with(text.json()).try_init()
    } else {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        registry.with(text.with_ansi(colour)).try_init()
    };
    None
}

/// `HOLDFAST_UPLINK` of a line whose `HOLDFAST_ROUTE` is this.
pub fn uplink_of(route: Option<&str>) -> Option<&str> {
    route?.strip_prefix("uplink:")
}

/// A panic is one line that says where. What it says itself is shown only where the program fixed its words: made ones
/// quote what could not be dealt with, and that may be a prompt.
fn watch_panics() {
    if plant::is(Fault::PanicWordsShown) {
        return;
    }
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let words = info.payload().downcast_ref::<&'static str>().copied();
        let words = words.unwrap_or("its words are withheld, since they may quote a request");
        tracing::error!(HOLDFAST_REASON = "internal", "panic at {place}: {words}; please report it");
    }));
}
