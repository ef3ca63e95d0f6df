//! `holdfast uplink test [NAME]`: the ladder to each uplink, rung by rung, without spending a token.
//!
//! The running daemon climbs, because it has the keys and the network that count.

use hyper::Method;
use serde_json::{Value, json};

use super::client::Client;
use super::exit::{Done, FAILED, Failure};
use super::out::{Mood, Out, columns, count_at, text_at};

/// `uplink`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Test the way to an uplink: address, DNS, TCP, TLS, clock, who answers, credential, model
    Test {
        /// Which one; without it all of them
        name: Option<String>,
    },
}

/// Tests; fails where a rung breaks.
pub async fn run(command: Command, client: &Client, out: &Out) -> Done {
    let Command::Test { name } = command;
    let names = match name {
        Some(name) => vec![name],
        None => names(client).await?,
    };
    let mut all = Vec::with_capacity(names.len());
    let mut is_broken = false;
    for name in names {
        let path = format!("/holdfast/v1/uplinks/{name}/test");
        let tested = client.call(Method::POST, &path).await?;
        is_broken |= rungs(&tested).iter().any(|rung| text_at(rung, "/state") == "failed");
        if !out.json {
            out.line(&format!("uplink {name}"))?;
            for (line, mood) in lines(&tested) {
                out.line(&mood.map_or_else(|| line.clone(), |mood| out.paint(mood, &line)))?;
            }
        }
        all.push(tested);
    }
    if out.json {
        out.json(&json!(all))?;
    }
    Ok(if is_broken { FAILED } else { 0 })
}

async fn names(client: &Client) -> Result<Vec<String>, Failure> {
    let status = client.call(Method::GET, "/holdfast/v1/status").await?;
    let uplinks = status.pointer("/uplinks").and_then(Value::as_array).cloned().unwrap_or_default();
    if uplinks.is_empty() {
        return Err(Failure::new(FAILED, "no uplink is configured: add an [[uplink]]"));
    }
    Ok(uplinks.iter().map(|uplink| text_at(uplink, "/name")).collect())
}

fn rungs(tested: &Value) -> &[Value] {
    tested.pointer("/rungs").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A line for each rung, and its colour.
fn lines(tested: &Value) -> Vec<(String, Option<Mood>)> {
    let row = |rung: &Value| {
        let [name, state, detail] = ["/rung", "/state", "/detail"].map(|field| text_at(rung, field));
        let took = if state == "skipped" { "-".to_owned() } else { format!("{} ms", count_at(rung, "/took_ms")) };
        vec![String::new(), name, state, took, detail]
    };
    let mood = |rung: &Value| match text_at(rung, "/state").as_str() {
        "failed" => Some(Mood::Bad),
        "skipped" => Some(Mood::Faint),
        _ => None,
    };
    let rows: Vec<_> = rungs(tested).iter().map(row).collect();
    columns(&rows).into_iter().zip(rungs(tested).iter().map(mood)).collect()
}
