//! The journal: native fields under their own names, `journalctl -p` means what `[log] level` says, a stored request's whole
//! story under its id, and nothing of what it asked.
//!
//! Needs root for a journal of its own (a mount namespace); without, it says that it was skipped.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use holdfast::cli::simulate::{Faults, Mode};

use crate::support::{Ask, Bench, Settings, refusing};

type Entry = BTreeMap<String, String>;

/// What the daemon runs under: its journal's socket is the test's.
fn apart(socket: &Path) -> String {
    format!(
        "exec unshare -m sh -c 'mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && \
         ln -s {} /run/systemd/journal/socket && exec \"$@\"' sh \"$@\"",
        socket.display()
    )
}

/// The journal's native protocol: `NAME=value`, or the name, a length and the bytes.
fn entry(mut bytes: &[u8]) -> Entry {
    let mut fields = Entry::new();
    while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
        let (line, rest) = (String::from_utf8_lossy(&bytes[..end]).into_owned(), &bytes[end + 1..]);
        bytes = rest;
        if let Some((name, value)) = line.split_once('=') {
            fields.insert(name.to_owned(), value.to_owned());
        } else {
            let (length, rest) = rest.split_at(8);
            let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            bytes = &rest[length + 1..];
            fields.insert(line, String::from_utf8_lossy(&rest[..length]).into_owned());
        }
    }
    fields
}

/// Reads until an entry says `end`.
fn heard(journal: &UnixDatagram, end: &str) -> Vec<Entry> {
    let mut buffer = vec![0u8; 1 << 16];
    let mut entries = Vec::new();
    while let Ok(length) = journal.recv(&mut buffer) {
        entries.push(entry(&buffer[..length]));
        if entries.last().is_some_and(|e| field(e, "MESSAGE").contains(end)) {
            break;
        }
    }
    entries
}

/// A journal for one daemon, and the line it runs under; `None` where that cannot be had.
fn journal(folder: &Path) -> Option<(UnixDatagram, String)> {
    let socket = folder.join("journal");
    let journal = UnixDatagram::bind(&socket).unwrap();
    let line = apart(&socket);
    let possible = Command::new("sh").args(["-c", &line, "sh", "true"]).output();
    if possible.is_ok_and(|output| output.status.success()) {
        return Some((journal, line));
    }
    println!("SKIPPED: no mount namespace could be made; run this as root");
    None
}

const FORMAT: &str = "[log]\nformat = \"journald\"\nlevel = \"debug\"\n";

fn field<'e>(entry: &'e Entry, name: &str) -> &'e str {
    entry.get(name).map_or("", String::as_str)
}

#[tokio::test]
async fn a_requests_whole_story_stands_in_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let Some((journal, line)) = journal(folder.path()) else { return };
    let listening = std::thread::spawn(move || heard(&journal, "the last line"));
    let (extra, environment) = (FORMAT.to_owned(), vec![("RUN_UNDER", line)]);
    let mut bench = Bench::with(Settings { extra, environment, ..Settings::without_local() }).await;
    let live = bench.daemon.send(Ask::chat("Geheimnis eins")).await;
    assert_eq!(live.status, 200);
    bench.outage(Faults::failing(Mode::Refuse)).await;
    let reply = bench.daemon.send(Ask::chat("Geheimnis zwei").header("prefer", "respond-async")).await;
    let id = reply.id();
    bench.recover().await;
    assert_eq!(bench.daemon.record(&id).await["state"], "answered");
    bench.uplink.set_faults(refusing(400)).await;
    let dead = bench.daemon.send(Ask::chat("Geheimnis drei").header("prefer", "respond-async")).await.id();
    bench.daemon.get(&format!("/v1/chat/completions/{dead}?wait=9.5")).await;
    assert_eq!(bench.daemon.record(&dead).await["state"], "dead");
    assert!(bench.daemon.stop().await.success());
    let end = UnixDatagram::unbound().unwrap();
    end.send_to(b"MESSAGE=the last line\n", folder.path().join("journal")).unwrap();
    let mut entries = listening.join().unwrap();
    entries.pop();
    entries.retain(|entry| !entry.is_empty());
    assert!(entries.len() > 5, "{entries:?}");
    let about = |e: &&Entry| field(e, "HOLDFAST_REQUEST_ID") == id && e.contains_key("HOLDFAST_STATE");
    let story: Vec<&Entry> = entries.iter().filter(about).filter(|e| field(e, "PRIORITY") == "6").collect();
    let states: Vec<&str> = story.iter().map(|e| field(e, "HOLDFAST_STATE")).collect();
    assert_eq!(states, ["queued", "sending", "answered"], "one line per change: {story:?}");
    assert!(story.iter().all(|e| field(e, "HOLDFAST_SOURCE").starts_with("uid:")), "{story:?}");
    assert_eq!((field(story[2], "HOLDFAST_ROUTE"), field(story[2], "HOLDFAST_UPLINK")), ("uplink:sim", "sim"));
    assert!(field(story[2], "HOLDFAST_LATENCY_MS").parse::<u64>().is_ok(), "{story:?}");
    let is_end = |e: &&Entry| field(e, "HOLDFAST_REQUEST_ID") == dead && field(e, "HOLDFAST_STATE") == "dead";
    let end = entries.iter().find(is_end).unwrap_or_else(|| panic!("{entries:?}"));
    assert_eq!((field(end, "PRIORITY"), field(end, "HOLDFAST_UPLINK")), ("4", "sim"), "a dead letter is a warning");
    let answered = entries.iter().find(|e| field(e, "HOLDFAST_REQUEST_ID") == live.header("x-request-id"));
    let answered = answered.expect("at debug level a plain request is told too");
    assert_eq!((field(answered, "HOLDFAST_ROUTE"), field(answered, "PRIORITY")), ("uplink:sim", "7"));
    assert!(field(answered, "HOLDFAST_LATENCY_MS").parse::<u64>().is_ok(), "{answered:?}");
    let down = entries.iter().find(|e| field(e, "HOLDFAST_UPLINK") == "sim" && field(e, "PRIORITY") == "4");
    let down = down.unwrap_or_else(|| panic!("the outage is a warning: {entries:?}"));
    assert!(!field(down, "HOLDFAST_REASON").is_empty() || !field(down, "HOLDFAST_STATE").is_empty(), "{down:?}");
    for entry in &entries {
        assert!(field(entry, "TARGET").starts_with("holdfast"), "a library's own line: {entry:?}");
        assert_eq!(field(entry, "SYSLOG_IDENTIFIER"), "holdfast");
        assert!(!entry.keys().any(|name| name.starts_with("F_")), "{entry:?}");
        assert!(!entry.values().any(|value| value.contains("Geheimnis")), "{entry:?}");
    }
}

#[tokio::test]
async fn a_journal_that_takes_nothing_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody reads from it: its queue is full after a few lines.
    let Some((_journal, line)) = journal(folder.path()) else { return };
    let (extra, environment) = (FORMAT.to_owned(), vec![("RUN_UNDER", line)]);
    let mut bench = Bench::with(Settings { extra, environment, ..Settings::without_local() }).await;
    for n in 0..100 {
        assert_eq!(bench.daemon.send(Ask::chat(&format!("unheard {n}"))).await.status, 200);
    }
    assert!(bench.daemon.stop().await.success());
}
