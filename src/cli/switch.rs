//! `holdfast pause`, `resume`, `drain`: the backlog's switches.

use hyper::Method;
use serde_json::Value;

use super::client::Client;
use super::exit::Done;
use super::out::Out;

/// Throws the switch called `name`.
pub async fn run(name: &str, client: &Client, out: &Out) -> Done {
    let answer = client.call(Method::POST, &format!("/holdfast/v1/{name}")).await?;
    if out.json {
        out.json(&answer)?;
    }
    let is_held = answer.get("draining").and_then(Value::as_bool) == Some(false);
    out.note(match name {
        "pause" => "paused: stored requests wait until \"holdfast resume\"",
        "resume" => "resumed: stored requests are sent again",
        _ if is_held => "paused: nothing is sent until \"holdfast resume\"",
        _ => "draining: stored requests are sent as soon as an uplink takes them",
    });
    Ok(0)
}
