//! `holdfast status` and `top`: uplinks, local model, backlog and host on one screen.
//!
//! Fields the daemon does not send are left out or shown as "-".

use std::fmt::Write as _;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use super::client::Client;
use super::exit::Done;
use super::out::{Mood, Out, age, columns, count_at, number_at, size, text_at};
use crate::control::money::amount;

/// From one picture to the next.
const REDRAW: Duration = Duration::from_secs(1);

/// `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Redraw each second
    #[arg(short, long)]
    pub watch: bool,
}

/// Prints the status once, or again and again.
pub async fn run(watch: bool, client: &Client, out: &Out) -> Done {
    loop {
        let status = client.call(Method::GET, "/holdfast/v1/status").await?;
        if out.json {
            out.json(&status)?;
        } else {
            // Only a terminal can be cleared; a file gets one picture below the other.
            let clear = if watch && out.terminal { "\x1b[H\x1b[2J" } else { "" };
            out.raw(&format!("{clear}{}", render(&status, out)))?;
        }
        if !watch {
            return Ok(0);
        }
        tokio::time::sleep(REDRAW).await;
    }
}

fn render(status: &Value, out: &Out) -> String {
    let mut text = head(status, out);
    let rows = uplinks(status);
    if rows.is_empty() {
        text.push_str("uplinks  none\n");
    }
    for (index, (line, mood)) in rows.iter().enumerate() {
        let label = if index == 0 { "uplinks " } else { "        " };
        let line = mood.map_or_else(|| line.clone(), |mood| out.paint(mood, line));
        let _ = writeln!(text, "{label} {line}");
    }
    for (index, (line, mood)) in links(status).iter().enumerate() {
        let label = if index == 0 { "links   " } else { "        " };
        let line = mood.map_or_else(|| line.clone(), |mood| out.paint(mood, line));
        let _ = writeln!(text, "{label} {line}");
    }
    for (label, field) in [("config  ", "/configuration"), ("storage ", "/storage")] {
        let trouble = text_at(status, field);
        if !trouble.is_empty() {
            let _ = writeln!(text, "{label} {}", out.paint(Mood::Bad, &trouble));
        }
    }
    if let Some((line, mood)) = budget(status) {
        let line = mood.map_or_else(|| line.clone(), |mood| out.paint(mood, &line));
        let _ = writeln!(text, "budget   {line}");
    }
    for (label, line) in [("local   ", local(status)), ("backlog ", backlog(status)), ("host    ", host(status))] {
        let _ = writeln!(text, "{label} {line}");
    }
    for (index, line) in agreement(status).iter().enumerate() {
        let _ = writeln!(text, "{} {line}", if index == 0 { "agreed  " } else { "        " });
    }
    text
}

/// One line per task and local model: how often an uplink later said the same.
fn agreement(status: &Value) -> Vec<String> {
    let counts = status.pointer("/agreement").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let line = |counted: &Value| {
        let task = number_at(counted, "/task").map_or("no task".to_owned(), |task| format!("task {task:.0}"));
        let rate = number_at(counted, "/rate").map_or("nothing to compare yet".to_owned(), |rate| {
            let compared = count_at(counted, "/same") + count_at(counted, "/differs");
            format!("{:.0} % of {compared} answers since the start", rate * 100.0)
        });
        let unknown = Some(count_at(counted, "/unknown")).filter(|count| *count > 0);
        let unknown = unknown.map(|count| format!(", {count} not comparable")).unwrap_or_default();
        format!("{task}, {}: {rate}{unknown}", known(counted, "/model"))
    };
    counts.iter().map(line).collect()
}

fn head(status: &Value, out: &Out) -> String {
    let state = known(status, "/state");
    let mood = match state.as_str() {
        "online" => Mood::Good,
        "degraded" => Mood::Doubtful,
        _ => Mood::Bad,
    };
    let paused = status.pointer("/paused").and_then(Value::as_bool) == Some(true);
    let paused = if paused { format!(", {}", out.paint(Mood::Doubtful, "paused")) } else { String::new() };
    let up = number_at(status, "/uptime_s").map(|up| format!(", up {}", age(up))).unwrap_or_default();
    let (device, version) = (known(status, "/device_id"), text_at(status, "/version"));
    format!("holdfast {version} on {device}: {}{paused}{up}\n", out.paint(mood, &state))
}

/// Heading and one line per uplink; a line's colour says how the uplink is.
fn uplinks(status: &Value) -> Vec<(String, Option<Mood>)> {
    let uplinks = status.pointer("/uplinks").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if uplinks.is_empty() {
        return Vec::new();
    }
    let heading = ["NAME", "HEALTH", "BREAKER", "LATENCY", "IN FLIGHT", "FAILURES", "NOTE"].map(str::to_owned).to_vec();
    let row = |uplink: &Value| {
        let latency = number_at(uplink, "/latency_ms").map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
        let counts = ["/in_flight", "/consecutive_failures"].map(|field| count_at(uplink, field).to_string());
        let [in_flight, failures] = counts;
        let breaker = known(uplink, "/breaker").replace('_', "-");
        vec![known(uplink, "/name"), known(uplink, "/health"), breaker, latency, in_flight, failures, note(uplink)]
    };
    let rows: Vec<_> = std::iter::once(heading).chain(uplinks.iter().map(row)).collect();
    let mood = |uplink: &Value| match text_at(uplink, "/health").as_str() {
        "healthy" => None,
        "unhealthy" => Some(Mood::Bad),
        _ => Some(Mood::Doubtful),
    };
    let moods = std::iter::once(Some(Mood::Faint)).chain(uplinks.iter().map(mood));
    columns(&rows).into_iter().zip(moods).collect()
}

/// Heading and one line per device link; none where there is none.
fn links(status: &Value) -> Vec<(String, Option<Mood>)> {
    let links = status.pointer("/links").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if links.is_empty() {
        return Vec::new();
    }
    let heading = ["NAME", "PROTOCOL", "STATE", "DEVICES", "STORED", "RESULTS", "DAMAGED", "NOTE"];
    let row = |link: &Value| {
        let devices = link.get("devices").and_then(Value::as_array).map_or(0, Vec::len).to_string();
        let [stored, results, damaged] = ["/counters/stored", "/counters/results", "/counters/damaged"]
            .map(|field| count_at(link, field).to_string());
        let words = ["/name", "/protocol", "/state"].map(|field| known(link, field));
        let [name, protocol, state] = words;
        vec![name, protocol, state, devices, stored, results, damaged, text_at(link, "/reason")]
    };
    let rows: Vec<_> = std::iter::once(heading.map(str::to_owned).to_vec()).chain(links.iter().map(row)).collect();
    let mood = |link: &Value| match text_at(link, "/state").as_str() {
        "open" => None,
        "failed" => Some(Mood::Bad),
        _ => Some(Mood::Doubtful),
    };
    let moods = std::iter::once(Some(Mood::Faint)).chain(links.iter().map(mood));
    columns(&rows).into_iter().zip(moods).collect()
}

/// What is wrong with the uplink, then what is wrong with one of its keys.
fn note(uplink: &Value) -> String {
    let keys = uplink.get("keys").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut notes = vec![note_of_uplink(uplink)];
    notes.extend(keys.iter().map(|key| text_at(key, "/sentence")));
    notes.retain(|note| !note.is_empty());
    notes.join("; ")
}

fn note_of_uplink(uplink: &Value) -> String {
    // The rung says what to do; the reason only what was seen.
    let rung = text_at(uplink, "/rung/detail");
    let reason = if rung.is_empty() { text_at(uplink, "/reason") } else { rung };
    let Some(pause) = uplink.get("paused").filter(|pause| pause.is_object()) else { return reason };
    let sentence = text_at(pause, "/sentence");
    if !sentence.is_empty() {
        return sentence;
    }
    let again = number_at(pause, "/retry_in_s").map(|wait| format!(", again in {}", age(wait))).unwrap_or_default();
    format!("paused: {}{again}", known(pause, "/reason"))
}

fn local(status: &Value) -> String {
    let Some(local) = status.get("local").filter(|local| local.is_object()) else { return "-".to_owned() };
    if local.get("enabled").and_then(Value::as_bool) == Some(false) {
        return "off".to_owned();
    }
    let reachable = match local.get("reachable").and_then(Value::as_bool) {
        Some(true) => "reachable",
        Some(false) => "not reachable",
        None => "not asked yet",
    };
    // What it is in beyond that: loaded, loading; a state that keeps it from being used has its reason.
    let state = Some(text_at(local, "/state")).filter(|state| matches!(state.as_str(), "loaded" | "loading"));
    let reason = Some(text_at(local, "/reason")).filter(|reason| !reason.is_empty());
    format!(
        "{} ({}): {reachable}{}{}; {} in flight, {} waiting",
        known(local, "/model"),
        known(local, "/api"),
        state.map(|state| format!(", {state}")).unwrap_or_default(),
        reason.map(|reason| format!(", {reason}")).unwrap_or_default(),
        count_at(local, "/in_flight"),
        count_at(local, "/waiting"),
    )
}

fn backlog(status: &Value) -> String {
    let Some(backlog) = status.get("backlog").filter(|backlog| backlog.is_object()) else { return "-".to_owned() };
    let count = |field: &str| count_at(backlog, field);
    let mut text = format!("{} requests, {}", count("/count"), size(number_at(backlog, "/bytes").unwrap_or(0.0)));
    if let Some(oldest) = number_at(backlog, "/oldest_age_s") {
        let _ = write!(text, ", oldest {}", age(oldest));
    }
    if let Some(drain) = number_at(backlog, "/seconds_to_drain") {
        let _ = write!(text, ", about {} to drain", age(drain));
    }
    let (queued, sending, unknown, dead) = (count("/queued"), count("/sending"), count("/unknown"), count("/dead"));
    let _ = write!(
        text,
        "; queued {queued}, sending {sending}, unknown {unknown}, dead {dead}; window {}",
        count("/window")
    );
    text
}

/// What was paid today; none from a daemon that does not count it.
fn budget(status: &Value) -> Option<(String, Option<Mood>)> {
    let budget = status.get("budget").filter(|budget| budget.is_object())?;
    let usd = |field: &str| number_at(budget, field).unwrap_or(0.0);
    let cap = number_at(budget, "/usd_per_day").map_or("no cap".to_owned(), |cap| format!("cap {} USD", amount(cap)));
    let mut line = format!(
        "{:.4} USD spent on {} (UTC), {:.4} reserved, {cap}",
        usd("/spent_usd"),
        known(budget, "/date"),
        usd("/reserved_usd")
    );
    if budget.get("assumed_price").and_then(Value::as_bool) == Some(true) {
        line += "; some of it by an assumed price: give the model's own in [[model]]";
    }
    let paused = text_at(budget, "/paused");
    if paused.is_empty() {
        return Some((line, None));
    }
    Some((format!("{line}; {paused}"), Some(Mood::Bad)))
}

fn host(status: &Value) -> String {
    let field = |name: &str| number_at(status, &format!("/host/{name}"));
    let says = |name: &str| status.pointer(&format!("/host/{name}")).and_then(Value::as_bool) == Some(true);
    let throttled = match (says("throttled"), says("throttled_since_boot")) {
        (true, _) => Some("slowed down now"),
        (_, true) => Some("was slowed down since the boot"),
        _ => None,
    };
    let parts = [
        field("temperature_c").map(|celsius| format!("{celsius:.1} °C")),
        field("memory_rss_bytes").map(|bytes| format!("{} resident", size(bytes))),
        field("memory_available_bytes").map(|bytes| format!("{} memory available", size(bytes))),
        field("disk_free_bytes").map(|bytes| format!("{} disk free", size(bytes))),
        field("disk_written_bytes_per_day").map(|bytes| format!("{} written a day", size(bytes))),
        says("undervoltage").then(|| "too little voltage: use a stronger supply".to_owned()),
        throttled.map(str::to_owned),
        field("card_wear_percent").map(|percent| format!("card {percent:.0} % worn")),
        Some(text_at(status, "/host/card_spare"))
            .filter(|spare| matches!(spare.as_str(), "warning" | "urgent"))
            .map(|spare| format!("spare blocks of the card: {spare}")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

/// A text that a person should see is missing.
fn known(value: &Value, pointer: &str) -> String {
    Some(text_at(value, pointer)).filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_is_on_the_screen() {
        let status = json!({
            "device_id": "gw1", "version": "0.1.0", "uptime_s": 300, "state": "degraded", "paused": true,
            "configuration": "new configuration refused", "storage": "make room",
            "uplinks": [
                { "name": "holysheep", "health": "healthy", "breaker": "closed", "latency_ms": 212, "in_flight": 2,
                  "consecutive_failures": 0, "reason": null, "paused": null,
                  "keys": [{ "number": 1, "sentence": null }, { "number": 2, "sentence": "key 2 (env B): replace it" }] },
                { "name": "b", "health": "unhealthy", "breaker": "half_open", "latency_ms": null, "in_flight": 0,
                  "consecutive_failures": 7, "reason": "no route\u{1b}[2J",
                  "paused": { "reason": "key", "sentence": "paused: key: check api_keys; next trial in 1 min" } },
            ],
            "local": { "enabled": true, "api": "ollama", "model": "llama3.2", "reachable": true, "in_flight": 1,
                       "waiting": 0, "state": "loaded", "reason": null },
            "agreement": [{ "task": 12, "model": "llama3.2", "same": 3, "differs": 1, "unknown": 2, "rate": 0.75 },
                          { "task": null, "model": "llama3.2", "same": 0, "differs": 0, "unknown": 0, "rate": null }],
            "links": [
                { "name": "cell", "protocol": "frames", "state": "waiting", "reason": "not plugged in",
                  "devices": [{ "uid": "02005e10" }], "counters": { "stored": 3, "results": 2, "damaged": 1 } },
            ],
            "backlog": { "count": 12, "bytes": 2048, "oldest_age_s": 90, "seconds_to_drain": 30, "queued": 10,
                         "sending": 2, "unknown": 0, "dead": 1, "window": 4 },
            "budget": { "date": "2026-11-21", "usd_per_day": 5.0, "spent_usd": 1.25, "reserved_usd": 0.5, "paused": null },
            "host": { "temperature_c": 48.25, "memory_rss_bytes": 1_048_576, "disk_free_bytes": null,
                      "disk_written_bytes_per_day": 52_428_800, "throttled": false,
                      "throttled_since_boot": true, "undervoltage": true, "card_wear_percent": 40, "card_spare": "normal" },
        });
        let expected = "\
holdfast 0.1.0 on gw1: degraded, paused, up 5m
uplinks  NAME       HEALTH     BREAKER    LATENCY  IN FLIGHT  FAILURES  NOTE
         holysheep  healthy    closed     212 ms   2          0         key 2 (env B): replace it
         b          unhealthy  half-open  -        0          7         paused: key: check api_keys; next trial in 1 min
links    NAME  PROTOCOL  STATE    DEVICES  STORED  RESULTS  DAMAGED  NOTE
         cell  frames    waiting  1        3       2        1        not plugged in
config   new configuration refused
storage  make room
budget   1.2500 USD spent on 2026-11-21 (UTC), 0.5000 reserved, cap 5.00 USD
local    llama3.2 (ollama): reachable, loaded; 1 in flight, 0 waiting
backlog  12 requests, 2.0 KiB, oldest 90s, about 30s to drain; queued 10, sending 2, unknown 0, dead 1; window 4
host     48.2 °C, 1.0 MiB resident, 50.0 MiB written a day, too little voltage: use a stronger supply, was slowed down since the boot, card 40 % worn
agreed   task 12, llama3.2: 75 % of 4 answers since the start, 2 not comparable
         no task, llama3.2: nothing to compare yet
";
        assert_eq!(render(&status, &Out::plain()), expected);
    }

    #[test]
    fn missing_fields_are_no_error() {
        let text = render(&json!({ "uplinks": [{}], "local": { "enabled": false } }), &Out::plain());
        assert!(text.contains("local    off\nbacklog  -\nhost     -\n"), "{text}");
        assert!(render(&Value::Null, &Out::plain()).contains("uplinks  none"));
    }
}
