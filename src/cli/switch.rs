//! `holdfast pause`, `resume`, `drain`: the backlog's switches.

use hyper::Method;

use super::client::Client;
use super::exit::Done;
use super::out::Out;

/// Throws the switch called `name`.
pub async fn run(name: &str, client: &Client, out: &Out) -> Done {
    let answer = client.call(Method::POST, &format!("/holdfast/v1/{name}")).await?;
    if out.json {
        out.json(&answer)?;
    }
    out.note(match name {
        "pause" => "paused: stored requests wait until \"holdfast resume\"",
        "resume" => "resumed: stored requests are sent again",
        _ => "draining: stored requests are sent as soon as an uplink takes them",
    });
    Ok(0)
}
