//! The table of real, unmodified clients: each cell is a check against the real daemon.
//!
//! `cargo test --test clients` runs it and prints the table; `-- --report docs/clients.md` writes it as documentation,
//! too. Clients come from PyPI, npm and crates.io, the newest there are, into `target/tmp/clients`; `--fresh` fetches
//! them again. Simulators stand in for the cloud and for Ollama, so that nothing is paid for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cell;
mod driver;
mod install;
mod report;
mod rows;
mod steps;
mod suite;
#[path = "../promises/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "each test program uses its part of what all share")]
mod support;

use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use report::{Row, Run};
use rows::Client;

const USAGE: &str = "\
usage: cargo test --test clients -- [--only NAME,NAME] [--report FILE] [--fresh] [--allow-missing]
  --only           these rows only, by the beginnings of their names
  --report         writes the table as Markdown, too
  --fresh          fetches the clients again, in their newest versions
  --allow-missing  a client that cannot be fetched here is said and does not fail the run";

/// Daemons and clients at once: as many as a small machine has cores.
const AT_ONCE: usize = 2;

struct Ask {
    only: Vec<String>,
    report: Option<String>,
    fresh: bool,
    allow_missing: bool,
}

fn read_arguments() -> Result<Ask, String> {
    let mut ask = Ask { only: Vec::new(), report: None, fresh: false, allow_missing: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--only" => ask.only = value()?.split(',').map(str::to_owned).collect(),
            "--report" => ask.report = Some(value()?),
            "--fresh" => ask.fresh = true,
            "--allow-missing" => ask.allow_missing = true,
            other => return Err(format!("{other} is not known")),
        }
    }
    Ok(ask)
}

fn main() -> ExitCode {
    let ask = match read_arguments() {
        Ok(ask) => ask,
        Err(fault) => {
            eprintln!("{fault}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let run = runtime.block_on(async { Run { rows: all(&ask).await, suite: suite(&ask).await } });
    print!("{}", report::terminal(&run));
    if let Some(path) = &ask.report {
        std::fs::write(path, report::markdown(&run)).expect("the report must be written");
    }
    if run.is_fine(ask.allow_missing) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The suite of langchain-tests, if it was asked for.
async fn suite(ask: &Ask) -> Option<Result<suite::Suite, install::Missing>> {
    if !wanted(ask, "langchain-tests") {
        return None;
    }
    Some(suite::run(ask.fresh).await)
}

fn wanted(ask: &Ask, name: &str) -> bool {
    let name = name.to_lowercase();
    ask.only.is_empty() || ask.only.iter().any(|only| name.starts_with(&only.to_lowercase()))
}

/// Every row, in the table's order.
async fn all(ask: &Ask) -> Vec<Row> {
    let (turns, fresh) = (Arc::new(Semaphore::new(AT_ONCE)), ask.fresh);
    let mut running = JoinSet::new();
    for (place, client) in rows::ALL.iter().enumerate().filter(|(_, client)| wanted(ask, client.name)) {
        let turns = Arc::clone(&turns);
        running.spawn(async move {
            let _turn = turns.acquire().await;
            (place, row(client, fresh).await)
        });
    }
    let mut rows = running.join_all().await;
    rows.sort_by_key(|(place, _)| *place);
    rows.into_iter().map(|(_, row)| row).collect()
}

async fn row(client: &'static Client, fresh: bool) -> Row {
    let installed = match install::client(client, fresh).await {
        Ok(installed) => installed,
        Err(missing) => return Row::missing(client, missing),
    };
    let cells = driver::cells(client, &installed).await;
    Row { client, versions: installed.versions, cells }
}
