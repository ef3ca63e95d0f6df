//! `holdfast diag`: one archive for support.
//!
//! Owns what goes into it and what never does: no key, no prompt, no picture, no answer. What cannot be had is named in the
//! archive, so that it can be made on a gateway that does not start.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::Method;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use super::Global;
use super::client::Client;
use super::exit::{Done, Failure, IO};
use super::out::Out;
use crate::clock;
use crate::config::{self, Shown};

/// The longest part; what is longer is cut at its beginning, where the older lines of a log stand.
const PART_BYTES_MAX: usize = 4 << 20;
/// Requests that are listed, newest first.
const REQUESTS: usize = 200;
/// Lines of the journal.
const JOURNAL_LINES: &str = "5000";
/// A tool of the system that takes longer is left out.
const TOOL_MAX: Duration = Duration::from_secs(20);
/// Files of the data folder that are listed.
const FILES_MAX: usize = 10_000;
/// Where the system says what it is and how it is.
const SYSTEM: [&str; 8] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/cmdline",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/mounts",
    "/proc/device-tree/model",
];
/// Keys of a task's words: know-how of a plant, and no business of support.
const WORDS: [&str; 2] = ["prompt", "system"];
/// What a request's listing is cut down to. An error's message may quote a prompt, its kind does not.
const FIELDS: [&str; 14] = [
    "id",
    "state",
    "reason",
    "source",
    "endpoint",
    "model",
    "priority",
    "policy",
    "created_at",
    "expires_at",
    "attempts",
    "next_attempt_at",
    "maybe_billed",
    "position",
];

/// `diag`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The archive to write; without it holdfast-diag-TIME.tar.gz in this folder
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// One file of the archive, or why there is none.
type Part = (String, Result<Vec<u8>, String>);

/// Gathers and writes.
pub async fn run(args: &Args, global: &Global, client: &Client, out: &Out) -> Done {
    let now_s = clock::unix_ms() / 1000;
    let path = args.output.clone().unwrap_or_else(|| format!("holdfast-diag-{now_s}.tar.gz").into());
    let parts = gather(global, client).await;
    let missing: Vec<&str> = parts.iter().filter(|(_, part)| part.is_err()).map(|(name, _)| name.as_str()).collect();
    write(&path, &parts, now_s)
        .map_err(|error| Failure::new(IO, format!("{}: {error}; name another place with -o", path.display())))?;
    if out.json {
        out.json(&json!({"archive": path, "missing": missing}))?;
        return Ok(0);
    }
    out.line(&path.display().to_string())?;
    if !missing.is_empty() {
        out.note(&format!("without {}: missing.txt in the archive says why", missing.join(", ")));
    }
    out.note("it holds no keys, prompts, pictures or answers; look into it before you send it");
    Ok(0)
}

async fn gather(global: &Global, client: &Client) -> Vec<Part> {
    let mut parts = vec![
        ("version.txt".to_owned(), Ok(format!("holdfast {}\n", env!("CARGO_PKG_VERSION")).into_bytes())),
        ("config.json".to_owned(), configuration(global.config())),
        ("data.txt".to_owned(), data(global.config())),
    ];
    let status = client.call(Method::GET, "/holdfast/v1/status").await;
    parts.push(("status.json".to_owned(), status.map(|status| pretty(&status)).map_err(|failure| failure.message)));
    parts.push(("requests.json".to_owned(), requests(client).await));
    parts.push(("metrics.txt".to_owned(), metrics(client).await));
    for path in SYSTEM {
        let name = format!("system{}.txt", path.replace('/', "-"));
        parts.push((name, fs::read(path).map_err(|error| error.to_string())));
    }
    let journal = ["--unit", "holdfast", "--lines", JOURNAL_LINES, "--output", "short-iso", "--no-pager"];
    for (name, tool, arguments) in [
        ("journal.txt", "journalctl", &journal[..]),
        ("unit.txt", "systemctl", &["show", "holdfast", "--no-pager"]),
        ("disk.txt", "df", &["-h"]),
        ("addresses.txt", "ip", &["-brief", "address"]),
        ("routes.txt", "ip", &["route"]),
    ] {
        parts.push((name.to_owned(), said(tool, arguments).await));
    }
    for (_, part) in &mut parts {
        if let Ok(bytes) = part
            && bytes.len() > PART_BYTES_MAX
        {
            bytes.drain(..bytes.len() - PART_BYTES_MAX);
        }
    }
    parts
}

/// What is in force, or all that is wrong with it. Keys are masked by whoever shows them; a task's words are left out here.
fn configuration(path: Option<&Path>) -> Result<Vec<u8>, String> {
    let loaded = config::load(path, config::environment())
        .map_err(|faults| faults.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let entry = |shown: &Shown| json!({"key": shown.key, "value": told(shown), "origin": shown.origin.to_string()});
    Ok(pretty(&Value::Array(loaded.origins.iter().map(entry).collect())))
}

fn told(shown: &Shown) -> Value {
    let last = shown.key.rsplit('.').next().unwrap_or_default();
    match (&shown.value, WORDS.contains(&last)) {
        (Value::String(text), true) => json!(format!("({} characters)", text.chars().count())),
        (value, _) => value.clone(),
    }
}

/// Names and sizes of the data folder's files.
fn data(path: Option<&Path>) -> Result<Vec<u8>, String> {
    let loaded = config::load(path, config::environment()).map_err(|_| "the configuration has faults".to_owned())?;
    let root = loaded.settings.gateway.data_dir;
    let mut text = String::new();
    let (mut folders, mut count) = (vec![root], 0);
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
                continue;
            }
            count += 1;
            if count > FILES_MAX {
                text.push_str("and more\n");
                return Ok(text.into_bytes());
            }
            let _ = writeln!(text, "{:>12}  {}", meta.len(), entry.path().display());
        }
    }
    Ok(text.into_bytes())
}

async fn requests(client: &Client) -> Result<Vec<u8>, String> {
    let path = format!("/holdfast/v1/requests?limit={REQUESTS}");
    let listed = client.call(Method::GET, &path).await.map_err(|failure| failure.message)?;
    let all = listed.pointer("/data").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(pretty(&Value::Array(all.iter().map(cut_down).collect())))
}

fn cut_down(request: &Value) -> Value {
    let mut kept: serde_json::Map<String, Value> =
        FIELDS.iter().filter_map(|name| Some(((*name).to_owned(), request.get(*name)?.clone()))).collect();
    kept.insert("error_kind".to_owned(), request.pointer("/last_error/kind").cloned().unwrap_or_default());
    Value::Object(kept)
}

async fn metrics(client: &Client) -> Result<Vec<u8>, String> {
    let answer = client.answer(Method::GET, "/metrics").await;
    answer.map(|answer| answer.body.to_vec()).map_err(|failure| failure.message)
}

/// What a tool of the system says.
async fn said(tool: &str, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let mut command = Command::new(tool);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(TOOL_MAX, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(output.stdout),
        Ok(Ok(output)) => Err(format!("{tool}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Ok(Err(error)) => Err(format!("{tool}: {error}")),
        Err(_) => Err(format!("{tool}: no end within {} s", TOOL_MAX.as_secs())),
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Nobody but the caller may read it.
fn write(path: &Path, parts: &[Part], now_s: u64) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let mut missing = String::new();
    let mut append = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now_s);
        archive.append_data(&mut header, format!("holdfast-diag-{now_s}/{name}"), bytes)
    };
    for (name, part) in parts {
        match part {
            Ok(bytes) => append(name, bytes)?,
            Err(why) => drop(writeln!(missing, "{name}: {why}")),
        }
    }
    append("missing.txt", missing.as_bytes())?;
    let mut file = archive.into_inner()?.finish()?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_listed_without_any_of_its_words() {
        let request = json!({"id": "req_1", "state": "dead", "model": "m", "label": "x", "local": {"response": "secret"},
            "uplink": {"response": "secret"}, "last_error": {"kind": "refused", "message": "secret"}, "result": "secret"});
        let kept = cut_down(&request);
        assert_eq!(kept, json!({"id": "req_1", "state": "dead", "model": "m", "error_kind": "refused"}));
    }
}
