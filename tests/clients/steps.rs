//! The columns of the table: what each arranges before a client acts, and what the servers must have seen after it.
//!
//! A client's own program says whether the client was given the right thing; this file looks at the other end, so that a
//! cell is `yes` only if nothing was lost and nothing was sent twice.

use std::time::Duration;

use holdfast::cli::simulate::{Entry, Faults, Mode, Simulator};

use crate::rows::{Client, Side};
use crate::support::{Bench, refusing, until};

/// One column.
pub struct Step {
    /// As the clients' programs know it.
    pub name: &'static str,
    /// As the table shows it.
    pub title: &'static str,
    /// What `yes` says, for whoever reads the table.
    pub meaning: &'static str,
}

const fn step(name: &'static str, title: &'static str, meaning: &'static str) -> Step {
    Step { name, title, meaning }
}

/// The columns, from left to right.
pub const ALL: [Step; 12] = [
    step("plain", "plain", "the answer's text, asked once"),
    step("stream", "stream", "the text in pieces, whole"),
    step("tools", "tools", "the tool's name and arguments"),
    step("schema", "JSON schema", "an object that fits the schema, by the client's own way to ask for one"),
    step("picture", "picture", "the picture reached the model byte for byte"),
    step("refused", "error 4xx", "the server's own 400 (of an Ollama: 404) as the client's error, asked once"),
    step(
        "failing",
        "5xx before a stream",
        "the uplink fails before its first word: the local model's stream, unseen; the \
          request is stored, and answered by the uplink once",
    ),
    step(
        "cut",
        "cut in mid-stream",
        "the connection breaks after some words: an error in the client, never half an \
          answer as a whole one, and no second send",
    ),
    step(
        "limited",
        "rate limit",
        "the uplink's 429 with `Retry-After: 1` and no local answer wanted: not asked again \
          before, then answered",
    ),
    step(
        "offline",
        "offline, local",
        "no uplink: the local model's answer; stored, and sent once when the uplink is back",
    ),
    step(
        "queued",
        "queued",
        "no uplink and no local answer wanted: the client's error with 503 `request_queued`; stored \
          once, whatever the client repeats by itself",
    ),
    step("later", "fetched later", "the uplink's answer to what was queued, which it was sent once"),
];

/// What the client asks in this step: different for each, so that the servers' logs tell them apart.
pub fn text(step: &Step, client: &Client) -> String {
    match step.name {
        "tools" => format!("use the tool, {}", client.name),
        "later" => format!("queued by {}", client.name),
        name => format!("{name} by {}", client.name),
    }
}

/// The server that answers this client while all is well.
fn server<'a>(client: &Client, bench: &'a Bench) -> &'a Simulator {
    if client.side == Side::Ollama { &bench.ollama } else { &bench.uplink }
}

/// Everything healthy and nothing waiting, then this step's trouble.
pub async fn arrange(step: &Step, client: &Client, bench: &Bench) {
    let server = server(client, bench);
    server.clear_log();
    if !matches!(step.name, "queued") {
        bench.ollama.set_faults(Faults::default()).await;
        bench.recover().await;
        calm(bench).await;
    }
    if step.name != "later" {
        // What was stored in an earlier step has left by now.
        server.clear_log();
    }
    match step.name {
        "refused" if client.side == Side::Uplink => {
            server.set_faults(Faults { error_code: Some("simulated_mistake".to_owned()), ..refusing(400) }).await;
        }
        "failing" => server.set_faults(refusing(500)).await,
        "cut" => server.set_faults(Faults { cut_after: Some(4), ..Faults::default() }).await,
        "limited" => server.set_faults(Faults { retry_after: Some("1".to_owned()), ..refusing(429) }).await,
        "offline" | "queued" => bench.outage(Faults::failing(Mode::Refuse)).await,
        _ => {}
    }
}

/// Waits until what the last step broke is mended in the gateway's eyes.
async fn calm(bench: &Bench) {
    bench.wait_online().await;
    until("the uplink to be trusted again", 60, || async {
        let uplink = bench.daemon.status().await["uplinks"][0].clone();
        (uplink["breaker"] == "closed" && uplink["paused"].is_null()).then_some(())
    })
    .await;
}

/// What happens while the client acts; never ends.
pub async fn meanwhile(step: &Step, client: &Client, bench: &Bench) {
    let server = server(client, bench);
    if step.name == "limited" {
        // The limit is over once it was met.
        until("the first request", 120, || async { (server.requests_total() > 0).then_some(()) }).await;
        server.set_faults(Faults::default()).await;
    }
    std::future::pending::<()>().await;
}

/// What the servers saw must be what the client was told.
pub async fn check(step: &Step, client: &Client, bench: &Bench, text: &str) -> Result<(), String> {
    match step.name {
        "offline" | "queued" if client.side == Side::Uplink => stored_once(bench).await,
        "failing" if client.side == Side::Uplink => {
            bench.recover().await;
            answered(&seen(server(client, bench), text), 1)
        }
        "refused" | "cut" => sent(&seen(server(client, bench), text), 1),
        "failing" => Ok(()),
        "limited" => waited(&seen(server(client, bench), text)),
        "tools" => each_once(&seen(server(client, bench), text)),
        "picture" => pictured(server(client, bench)).and(answered(&seen(server(client, bench), text), 1)),
        _ => answered(&seen(server(client, bench), text), 1),
    }?;
    if step.name == "offline" && client.side == Side::Uplink {
        bench.recover().await;
        answered(&seen(&bench.uplink, text), 1)?;
    }
    Ok(())
}

/// What reached a server with this text.
fn seen(server: &Simulator, text: &str) -> Vec<Entry> {
    server.log().into_iter().filter(|entry| entry.user == text).collect()
}

fn wanted(what: &str, found: usize, wanted: usize) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{found} instead of {wanted} requests {what}")) }
}

fn sent(seen: &[Entry], times: usize) -> Result<(), String> {
    wanted("reached the server", seen.len(), times)
}

fn answered(seen: &[Entry], times: usize) -> Result<(), String> {
    wanted("were answered by the server", seen.iter().filter(|entry| entry.status == 200).count(), times)
}

/// A client that runs tools asks a second time, with their results; nothing is asked twice as it is.
fn each_once(seen: &[Entry]) -> Result<(), String> {
    let bodies: std::collections::BTreeSet<_> = seen.iter().map(|entry| &entry.body_sha256).collect();
    wanted("were sent twice", seen.len() - bodies.len(), 0)?;
    if seen.is_empty() { Err("nothing reached the server".to_owned()) } else { Ok(()) }
}

/// Refused once, then answered, not before `Retry-After`.
fn waited(seen: &[Entry]) -> Result<(), String> {
    let statuses: Vec<u16> = seen.iter().map(|entry| entry.status).collect();
    if statuses != [429, 200] {
        return Err(format!("the server answered {statuses:?} instead of 429, 200"));
    }
    let gap = Duration::from_millis(seen[1].at_ms - seen[0].at_ms);
    if gap < Duration::from_millis(950) { Err(format!("asked again after {gap:?}")) } else { Ok(()) }
}

fn pictured(server: &Simulator) -> Result<(), String> {
    // The picture of the clients' programs.
    let picture = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    let latest = server.latest();
    let arrived = latest["body"].as_str().is_some_and(|body| body.contains(picture));
    if arrived { Ok(()) } else { Err("the picture did not reach the model as it was".to_owned()) }
}

async fn stored_once(bench: &Bench) -> Result<(), String> {
    wanted("are stored", bench.daemon.backlog().await as usize, 1)?;
    wanted("reached the uplink during the outage", bench.uplink.requests_total() as usize, 0)
}
