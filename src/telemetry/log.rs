//! Where log lines go: the journal with native fields under systemd, text on a terminal, JSON on request.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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

/// Starts logging; a second call changes nothing.
pub fn start(level: Level, form: Form) {
    let registry = tracing_subscriber::registry().with(LevelFilter::from_level(level));
    let journal = matches!(form, Form::Journal) || (form == Form::Auto && std::env::var_os("JOURNAL_STREAM").is_some());
    if journal {
        // The fields' names are written as they are to stand in the journal.
        if let Ok(layer) = tracing_journald::layer() {
            let _ = registry.with(layer.with_field_prefix(None)).try_init();
            return;
        }
    }
    let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let _ = if form == Form::Json {
        registry.with(text.json()).try_init()
    } else {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        registry.with(text.with_ansi(colour)).try_init()
    };
}
