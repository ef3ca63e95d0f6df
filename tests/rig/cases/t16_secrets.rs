//! T16: a key, a caller's token, a prompt and a picture that are known by sight go every way there is; nothing may show
//! them afterwards: not the log at its loudest, not a metric, an event, an error or /proc, and not the disk once they are
//! deleted. And attempts panic in words that quote them.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use holdfast::plant::Fault;
use serde_json::json;

use crate::case::{Case, Effort, Outcome, Planted};
use crate::parts::config::{QUICK_DRAIN, QUICK_PROBE, config};
use crate::parts::gateway::{Gateway, Setup};
use crate::parts::http::say;
use crate::parts::uplink::{Answer, Uplink};
use crate::parts::{Chance, until};

pub const CASE: Case = Case {
    id: "T16",
    what: "secrets through every path, then searched for everywhere",
    faults: &[Planted::In(Fault::HeadersInADebugLog), Planted::In(Fault::PanicWordsShown)],
    run,
};

/// What nobody may find.
struct Canaries {
    key: String,
    token: String,
    prompt: String,
    /// The picture's text as it travels, above the size at which bodies become files.
    picture: String,
}

impl Canaries {
    fn new(chance: &mut Chance) -> Canaries {
        let mut word = |length: usize| -> String {
            const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
            (0..length).map(|_| char::from(LETTERS[chance.below(LETTERS.len() as u64) as usize])).collect()
        };
        let picture = word(40);
        Canaries { key: word(40), token: word(40), prompt: word(40), picture: picture.repeat(4_000) }
    }

    /// Each with its name and as few letters as identify it.
    fn all(&self) -> [(&'static str, &str); 4] {
        [("key", &self.key), ("token", &self.token), ("prompt", &self.prompt), ("picture", &self.picture[..40])]
    }

    fn chat(&self) -> Vec<u8> {
        json!({"model": "gpt-4o", "messages": [{"role": "user", "content": self.prompt}]}).to_string().into_bytes()
    }

    fn with_picture(&self) -> Vec<u8> {
        let url = format!("data:image/png;base64,{}", self.picture);
        let content = json!([{"type": "text", "text": self.prompt}, {"type": "image_url", "image_url": {"url": url}}]);
        json!({"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}).to_string().into_bytes()
    }
}

/// One way through the program with secrets in a log format; how many places were searched.
type Search = fn(&Canaries, &str) -> Result<u64, String>;

fn run(effort: &Effort) -> Outcome {
    let mut chance = Chance(effort.seed | 1);
    let mut places = 0;
    // Where every attempt panics, the other ways are shut.
    let panics_only = std::env::var("HOLDFAST_PLANT").is_ok_and(|name| name == Fault::PanicWordsShown.name());
    let runs: &[Search] = if panics_only { &[panics] } else { &[search, panics] };
    for (run, format) in runs.iter().flat_map(|run| ["text", "json"].map(|format| (run, format))) {
        match run(&Canaries::new(&mut chance), format) {
            Ok(count) => places += count,
            Err(what) => return Outcome::Broken(format!("log format {format}: {what}")),
        }
    }
    Outcome::held(places, "places", "searched for a key, a token, a prompt and a picture: none found")
}

/// What was seen from outside, by place.
struct Seen(Vec<(String, Vec<u8>)>);

impl Seen {
    fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.into(), bytes.into()));
    }

    fn judge(&self, canaries: &Canaries, names: &[&str]) -> Result<u64, String> {
        let echo: String = canaries.prompt.chars().rev().collect();
        for (place, bytes) in &self.0 {
            // The uplink's own words are the caller's; nobody else's.
            let callers = place.contains("/requests/") || place.contains("/completions/") || place.starts_with('a');
            let callers = callers || place.ends_with("while it runs");
            if !callers && contains(bytes, echo.as_bytes()) {
                return Err(format!("the uplink's words stand in {place}: {}", around(bytes, &echo)));
            }
            for (name, canary) in canaries.all().iter().filter(|(name, _)| names.contains(name)) {
                if contains(bytes, canary.as_bytes()) {
                    return Err(format!("the {name} stands in {place}: {}", around(bytes, canary)));
                }
            }
        }
        Ok(self.0.len() as u64)
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// The words before a hit, without the hit.
fn around(bytes: &[u8], canary: &str) -> String {
    let at = bytes.windows(canary.len()).position(|window| window == canary.as_bytes()).unwrap_or(0);
    String::from_utf8_lossy(&bytes[at.saturating_sub(80)..at]).into_owned()
}

fn search(canaries: &Canaries, format: &str) -> Result<u64, String> {
    let (uplink, address) = Uplink::here();
    let gateway = start(&address, canaries, format, &[]);
    let mut seen = Seen(Vec::new());
    let events = follow_events(&gateway.socket());
    let ids = every_way(&gateway, &uplink, canaries, &mut seen)?;
    if uplink.sent(&canaries.prompt).is_empty() {
        return Err("no prompt reached the uplink: this test tests nothing".to_owned());
    }
    look_everywhere(gateway, &ids, events, seen, canaries)
}

/// Every attempt panics, in words that quote key and prompt: each request has its end all the same, more of them than
/// there are slots, and nobody sees the words.
fn panics(canaries: &Canaries, format: &str) -> Result<u64, String> {
    let (_uplink, address) = Uplink::here();
    let panicking = [("HOLDFAST_PLANT".to_owned(), Fault::PanicInAnAttempt.name().to_owned())];
    let planted = std::env::var_os("HOLDFAST_PLANT").is_some();
    let gateway = start(&address, canaries, format, if planted { &[] } else { &panicking });
    let mut seen = Seen(Vec::new());
    let events = follow_events(&gateway.socket());
    // Whoever waits is told, or sees the connection end.
    for body in [canaries.chat(), canaries.with_picture()] {
        let headers = [("x-holdfast-offline", "fail")];
        seen.add(
            "an answer",
            gateway.ask("POST", "/v1/chat/completions", &headers, &body).map_or_else(|_| String::new(), |r| r.text()),
        );
    }
    let mut ids = Vec::new();
    for body in [canaries.chat(), canaries.with_picture(), canaries.chat(), canaries.chat(), canaries.with_picture()] {
        ids.push(gateway.store(&body)?);
    }
    for id in &ids {
        let record = gateway.finished(id, 30);
        let told = record["state"] == "dead" && record["reason"] == "unknown" && record["maybe_billed"] == true;
        if !told {
            return Err(format!("an attempt that panicked left its request behind: {record}"));
        }
    }
    if !gateway.log().contains("panic") {
        return Err("nothing panicked: this test tests nothing".to_owned());
    }
    look_everywhere(gateway, &ids, events, seen, canaries)
}

fn start(address: &str, canaries: &Canaries, format: &str, more: &[(String, String)]) -> Gateway {
    let key = ("RIG_UPLINK_KEY".to_owned(), canaries.key.clone());
    let environment = [&[key], more].concat();
    let gateway = Gateway::start(Setup { config: settings(address, format), environment, wrap: Vec::new() });
    gateway.wait_available(true);
    gateway
}

/// Whatever can be seen from outside, on disk and in the log, also once everything is deleted and the process is gone.
fn look_everywhere(
    mut gateway: Gateway,
    ids: &[String],
    events: impl FnOnce() -> Vec<u8>,
    mut seen: Seen,
    canaries: &Canaries,
) -> Result<u64, String> {
    from_outside(&gateway, ids, &mut seen);
    seen.add("/holdfast/v1/events", events());
    tools(&gateway, &mut seen);
    delete_all(&gateway)?;
    // The key and the caller's token are never on disk; prompts and pictures no more.
    let mut disk = Seen(Vec::new());
    on_disk(&gateway, "while it runs", &mut disk);
    disk.judge(canaries, &["key", "token"])?;
    if !gateway.stop() {
        return Err(format!("it did not stop well:\n{}", gateway.log()));
    }
    on_disk(&gateway, "after deletion", &mut seen);
    seen.add("the log", gateway.log());
    if gateway.log().len() < 1_000 {
        return Err("the log says hardly anything: this test tests nothing".to_owned());
    }
    seen.judge(canaries, &["key", "token", "prompt", "picture"])
}

/// Online, streamed, refused, broken, stored, answered late, a dead letter, and sent twice.
fn every_way(gateway: &Gateway, uplink: &Uplink, canaries: &Canaries, seen: &mut Seen) -> Result<Vec<String>, String> {
    let bearer = format!("Bearer {}", canaries.token);
    let live = [("authorization", bearer.as_str()), ("x-request-id", "canary")];
    let stored = [("authorization", bearer.as_str()), ("prefer", "respond-async")];
    let ask = |headers: &[(&str, &str)], body: &[u8]| {
        gateway.ask("POST", "/v1/chat/completions", headers, body).map_err(|e| e.to_string())
    };
    for body in [canaries.chat(), canaries.with_picture()] {
        seen.add("an answer", ask(&live, &body)?.text());
        let streamed = String::from_utf8(body).unwrap().replacen('{', "{\"stream\":true,", 1);
        seen.add("a streamed answer", ask(&live, streamed.as_bytes())?.text());
    }
    // Refusals of the gateway's own must not repeat what they refuse.
    for (body, what) in [
        (format!("{{\"model\":\"gpt-4o\",\"messages\":\"{}", canaries.prompt), "half a body"),
        (format!("{{\"{}\":1}}", canaries.prompt), "a missing field"),
        (format!("{{\"model\":7,\"messages\":[\"{}\"]}}", canaries.prompt), "a wrong field"),
        (canaries.prompt.clone(), "no JSON"),
    ] {
        seen.add(format!("the refusal of {what}"), ask(&live, body.as_bytes())?.text());
        seen.add(format!("the refusal of {what}, stored"), ask(&stored, body.as_bytes())?.text());
    }
    let mut ids = Vec::new();
    let mut store = |answer: Answer, body: &[u8], state: &str| {
        uplink.set(answer);
        let reply = ask(&stored, body)?;
        let id = reply.header("x-holdfast-id").to_owned();
        seen.add("a ticket", reply.text());
        let record = gateway.finished(&id, 30);
        uplink.set(Answer::Text(20));
        if record["state"] != state {
            return Err(format!("{} instead of {state}: {record}", record["state"]));
        }
        ids.push(id);
        Ok(())
    };
    store(Answer::Text(20), &canaries.with_picture(), "answered")?;
    store(Answer::Status(400), &canaries.with_picture(), "dead")?;
    store(Answer::Status(422), &canaries.chat(), "dead")?;
    store(Answer::Nothing, &canaries.chat(), "dead")?;
    store(Answer::Half, &canaries.with_picture(), "dead")?;
    // Live ones that fail: the caller sees an error of the gateway's own.
    for answer in [Answer::Status(400), Answer::Status(401), Answer::Status(500), Answer::Nothing] {
        uplink.set(answer);
        let headers = [live[0], ("x-holdfast-offline", "fail")];
        seen.add("a failure", ask(&headers, &canaries.with_picture())?.text());
    }
    uplink.set(Answer::Text(20));
    Ok(ids)
}

/// Reads live events until the returned function is called.
fn follow_events(socket: &Path) -> impl FnOnce() -> Vec<u8> + use<> {
    let events = b"GET /holdfast/v1/events HTTP/1.1\r\nhost: hf\r\nconnection: close\r\n\r\n";
    let stream = Arc::new(say(socket, events).unwrap());
    // It is read for as long as the test takes.
    stream.set_read_timeout(None).unwrap();
    let reader = Arc::clone(&stream);
    let thread = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = (&*reader).read_to_end(&mut bytes);
        bytes
    });
    move || {
        let _ = stream.shutdown(std::net::Shutdown::Both);
        thread.join().unwrap()
    }
}

fn from_outside(gateway: &Gateway, ids: &[String], seen: &mut Seen) {
    let mut paths: Vec<String> = [
        "/health",
        "/v1/health",
        "/livez",
        "/",
        "/metrics",
        "/v1/models",
        "/holdfast/v1/status",
        "/holdfast/v1/requests",
    ]
    .map(str::to_owned)
    .to_vec();
    for id in ids {
        paths.push(format!("/holdfast/v1/requests/{id}"));
        paths.push(format!("/v1/chat/completions/{id}"));
    }
    for path in paths {
        if let Ok(reply) = gateway.ask("GET", &path, &[], b"") {
            seen.add(path, reply.text());
        }
    }
    let process = format!("/proc/{}", gateway.pid());
    seen.add("/proc/PID/cmdline", std::fs::read(format!("{process}/cmdline")).unwrap_or_default());
    let environment = std::fs::read(format!("{process}/environ")).unwrap_or_default();
    // The variable that brought the key is the operator's.
    let others = environment.split(|byte| *byte == 0).filter(|word| !word.starts_with(b"RIG_UPLINK_KEY="));
    seen.add("/proc/PID/environ", others.collect::<Vec<_>>().join(&b'\n'));
}

/// What the tool prints about this configuration and this daemon.
fn tools(gateway: &Gateway, seen: &mut Seen) {
    let config = gateway.dir().join("holdfast.toml");
    let socket = gateway.socket();
    for words in [&["config", "show"][..], &["status", "--json"], &["status"], &["queue", "list"], &["health"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.arg("--config").arg(&config).arg("--socket").arg(&socket).args(words).env_remove("HOLDFAST_PLANT");
        let output = command.output().unwrap();
        seen.add(format!("holdfast {}", words.join(" ")), [output.stdout, output.stderr].concat());
    }
}

fn delete_all(gateway: &Gateway) -> Result<(), String> {
    for state in ["answered", "dead", "cancelled", "expired", "evicted"] {
        let path = format!("/holdfast/v1/requests?state={state}");
        gateway.ask("DELETE", &path, &[], b"").map_err(|e| e.to_string())?;
    }
    let empty = until(20, || {
        let list = gateway.get("/holdfast/v1/requests");
        list["data"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    empty.ok_or_else(|| format!("still there: {}", gateway.get("/holdfast/v1/requests")))
}

/// Every file of the data folder as it lies on the disk.
fn on_disk(gateway: &Gateway, when: &str, seen: &mut Seen) {
    let mut folders = vec![gateway.dir().join("data")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                seen.add(format!("{} {when}", path.display()), std::fs::read(&path).unwrap_or_default());
            }
        }
    }
}

fn settings(address: &str, format: &str) -> String {
    let uplink = [
        "api_keys = [{ env = \"RIG_UPLINK_KEY\" }]",
        QUICK_PROBE,
        // Fewer slots than the requests that panic.
        "max_in_flight = 2",
        "breaker = { failures = 50, open_for = \"200ms\" }",
        "timeouts = { first_byte = \"2s\", idle = \"2s\" }",
    ];
    let log = format!("[log]\nlevel = \"trace\"\nformat = \"{format}\"");
    config(address, &uplink, &[QUICK_DRAIN, &log])
}
