//! The layer rule itself: which room may know which, and that every file says what it owns.
//!
//! Reads the sources as text. A new room must be given its place here before it builds.

#![allow(clippy::unwrap_used, reason = "helpers of a test: a source that cannot be read is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room and the rooms it may use, from the bottom up. Arrows point down only.
const ROOMS: [(&str, &[&str]); 19] = [
    ("plant", &[]),
    ("control", &["plant"]),
    ("clock", &[]),
    ("durable", &[]),
    ("body", &["clock", "plant"]),
    ("task", &["control"]),
    ("cache", &["body", "clock", "plant"]),
    ("network", &[]),
    ("telemetry", &["clock", "plant"]),
    ("spool", &["body", "clock", "control", "plant"]),
    ("uplink", &["body", "clock", "control", "plant"]),
    ("money", &["body", "clock", "control", "durable", "plant"]),
    ("gateway", &["body", "clock", "control", "money", "plant", "spool", "task", "telemetry", "uplink"]),
    ("batch", &["body", "clock", "control", "durable", "gateway", "spool", "uplink"]),
    (
        "ingress",
        &[
            "batch",
            "body",
            "cache",
            "clock",
            "control",
            "durable",
            "gateway",
            "money",
            "plant",
            "spool",
            "task",
            "telemetry",
            "uplink",
        ],
    ),
    ("systemd", &["gateway"]),
    // What a task and a link are is said once, where they are used: their words, and not their behaviour.
    ("config", &["control", "ingress", "task"]),
    (
        "supervisor",
        &[
            "batch",
            "cache",
            "clock",
            "config",
            "control",
            "gateway",
            "ingress",
            "money",
            "network",
            "plant",
            "spool",
            "systemd",
            "task",
            "telemetry",
            "uplink",
        ],
    ),
    ("cli", &["clock", "config", "control", "supervisor"]),
];

/// Crates that bring I/O, clocks or logging: not in the room of decisions.
const NOT_IN_CONTROL: [&str; 8] = ["tokio", "tracing", "rusqlite", "hyper", "axum", "serde", "bytes", "rustix"];

/// A longer file holds more than one thing.
const LINES_MAX: usize = 600;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn all_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let named = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        (name, fs::read_to_string(&path).unwrap())
    };
    sources(&root).into_iter().map(named).collect()
}

fn room_of(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// The names after every `crate::` of a line that is no comment, those of a list included.
fn rooms_used(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let word = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => used.extend(list.split('}').next().unwrap().split(',').map(|item| word(item.trim()))),
            None => {
                used.insert(word(rest));
            }
        }
    }
    used
}

#[test]
fn arrows_point_down_only() {
    let mut faults = Vec::new();
    for (file, text) in all_sources() {
        let room = room_of(&file);
        // `wire` is a crate of its own below all others: it cannot know them.
        if matches!(room, "main" | "lib" | "wire") {
            continue;
        }
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            faults.push(format!("{file}: the room {room} has no place in the layers"));
            continue;
        };
        for used in rooms_used(&text) {
            let known = ROOMS.iter().any(|(name, _)| *name == used);
            if known && used != room && !allowed.contains(&used.as_str()) {
                faults.push(format!("{file}: {room} must not use {used}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn decisions_know_no_machinery() {
    for (file, text) in all_sources().iter().filter(|(file, _)| room_of(file) == "control") {
        for name in NOT_IN_CONTROL {
            assert!(!text.contains(&format!("{name}::")), "{file} uses {name}");
        }
    }
}

#[test]
fn every_file_says_what_it_owns_and_stays_small() {
    for (file, text) in all_sources() {
        assert!(text.starts_with("//! "), "{file}: the first line must say what the file owns");
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{file}: {lines} lines; is there more than one thing in it?");
    }
}

#[test]
fn the_reader_of_arrows_finds_them() {
    let text = "use crate::{clock, spool::Spool};\n// crate::cli\nlet x = crate::config::load();";
    let expected = ["clock", "config", "spool"].map(str::to_owned);
    assert_eq!(rooms_used(text), BTreeSet::from(expected));
}
