//! How the links stand, as the status and the metrics show them.
//!
//! Owns the JSON's names; counts nothing itself.

use serde_json::{Map, Value, json};

use crate::ingress::link::Links;
use crate::ingress::link::state::Shown;

/// Errors of a link among its counters, for the metric of errors.
const ERRORS: [&str; 7] = ["damaged", "repeats", "nacks", "lost", "silent", "babbled", "restarts"];

/// All links.
pub fn json(links: &Links) -> Value {
    links.shown().iter().map(one).collect()
}

fn one(link: &Shown) -> Value {
    let counters: Map<String, Value> = link.counts.iter().map(|(name, n)| ((*name).to_owned(), json!(n))).collect();
    let devices: Vec<Value> = link
        .devices
        .iter()
        .map(|(uid, seen)| {
            json!({
                "uid": uid,
                "model": seen.model,
                "fw": seen.fw,
                "last_seen": seen.last_unix_ms / 1000,
                "open": seen.open,
            })
        })
        .collect();
    json!({
        "name": link.name,
        "protocol": link.protocol,
        "where": link.place,
        "state": link.state.as_str(),
        "reason": link.state.reason(),
        "round_trip_ms": link.round_trip_ms,
        "counters": counters,
        "devices": devices,
    })
}

/// The same as Prometheus text, to stand behind the other metrics.
pub fn metrics(links: &Links, text: &mut String) {
    let shown = links.shown();
    if shown.is_empty() {
        return;
    }
    let count = |link: &Shown, name: &str| {
        link.counts.iter().find(|(counted, _)| *counted == name).map_or(0, |(_, count)| *count)
    };
    let mut lines = String::new();
    let mut family = |name: &str, kind: &str, help: &str, rows: Vec<(String, u64)>| {
        lines += &format!("# HELP {name} {help}.\n# TYPE {name} {kind}\n");
        for (labels, value) in rows {
            // OpenMetrics wants counters to end so; the others are what they are.
            let suffix = if kind == "counter" { "_total" } else { "" };
            lines += &format!("{name}{suffix}{{{labels}}} {value}\n");
        }
    };
    let per = |names: &[&str], label: &str| {
        let row = |link: &Shown, name: &str| {
            let value = name.strip_prefix("frames_").or_else(|| name.strip_prefix("bytes_")).unwrap_or(name);
            (format!("link=\"{}\",{label}=\"{value}\"", link.name), count(link, name))
        };
        shown.iter().flat_map(|link| names.iter().map(move |name| row(link, name))).collect::<Vec<_>>()
    };
    let frames = per(&["frames_in", "frames_out"], "direction");
    family("holdfast_link_frames", "counter", "Whole frames on a device link", frames);
    let bytes = per(&["bytes_in", "bytes_out"], "direction");
    family("holdfast_link_bytes", "counter", "Bytes on a device link", bytes);
    family("holdfast_link_errors", "counter", "What went wrong on a device link, by kind", per(&ERRORS, "kind"));
    let events = per(&["stored", "results", "uploads"], "kind");
    family("holdfast_link_requests", "counter", "Requests, results and uploads of a device link", events);
    let open = shown.iter().map(|link| (format!("link=\"{}\"", link.name), u64::from(link.state.reason().is_none())));
    family("holdfast_link_open", "gauge", "1 while a device link can be spoken on", open.collect());
    // The end mark stays the last line.
    let end = "# EOF\n";
    let at = text.strip_suffix(end).map_or(text.len(), str::len);
    text.insert_str(at, &lines);
}
