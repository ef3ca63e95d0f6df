//! `holdfast cache purge`: empties the answer cache.

use hyper::Method;

use super::client::Client;
use super::exit::Done;
use super::out::{Out, count_at};

/// `cache`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Remove all kept answers
    Purge,
}

/// Does what was asked.
pub async fn run(command: &Command, client: &Client, out: &Out) -> Done {
    match command {
        Command::Purge => {
            let answer = client.call(Method::POST, "/holdfast/v1/cache/purge").await?;
            if out.json {
                out.json(&answer)?;
            }
            out.note(&format!("removed {} kept answers", count_at(&answer, "/purged")));
            Ok(0)
        }
    }
}
