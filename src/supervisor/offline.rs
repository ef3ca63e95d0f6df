//! The two commands that look into a stopped daemon's folder: composed here, shown by the command line.
//!
//! Owns the form of an exported line; contains no behaviour of its own.

use std::sync::Arc;

use super::{SupervisorError, parts};
use crate::config::Settings;
use crate::control::price::Prices;
use crate::ingress::http::RecordJson;
use crate::spool::{self, Fault, Offline, Shown};
use crate::task::Book;

/// Something in the spool that is not in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The request's id, where it is about one and its id is readable.
    pub id: Option<String>,
    /// The request's sequence number, likewise.
    pub seq: Option<u64>,
    /// A stable word: what it is about.
    pub what: &'static str,
    /// What is wrong, for people.
    pub why: String,
}

impl From<Fault> for Finding {
    fn from(fault: Fault) -> Finding {
        Finding { id: fault.id, seq: fault.seq, what: fault.what, why: fault.why }
    }
}

/// Everything in the spool that is not in order, and how many requests are whole. Changes nothing.
pub fn check(settings: &Settings) -> Result<(Vec<Finding>, u64), SupervisorError> {
    let offline = Offline::take(&settings.gateway.data_dir).map_err(SupervisorError::of_spool)?;
    let (faults, rows) = offline.check().map_err(SupervisorError::of_spool)?;
    Ok((faults.into_iter().map(Finding::from).collect(), rows))
}

/// Does what a start of the daemon does about a damaged spool, waits until all is read, and stops again.
pub async fn repair(settings: &Settings) -> Result<(), SupervisorError> {
    spool::repair(parts::spool_options(settings)).await.map_err(SupervisorError::of_spool)
}

/// Tells every request that is left as one line of JSON, the body in base64 where wanted; gives what is lost.
/// A `tell` that says no ends it. Changes nothing.
pub fn export(
    settings: &Settings,
    bodies: bool,
    tell: &mut dyn FnMut(&str) -> bool,
) -> Result<Vec<Finding>, SupervisorError> {
    // A schema file that is broken now is no reason to keep what is stored.
    let tasks = parts::tasks(settings).unwrap_or_else(|fault| {
        tracing::warn!("results of tasks are left out: {fault}");
        Arc::default()
    });
    let prices = parts::prices(settings);
    let offline = Offline::take(&settings.gateway.data_dir).map_err(SupervisorError::of_spool)?;
    let lost =
        offline.export(&mut |shown| tell(&line(&shown, &tasks, &prices, bodies))).map_err(SupervisorError::of_spool)?;
    Ok(lost.into_iter().map(Finding::from).collect())
}

/// What `GET /holdfast/v1/requests/{id}` shows. Where it would stand in line is known to a running daemon only.
fn line(shown: &Shown, tasks: &Book, prices: &Prices, bodies: bool) -> String {
    let record = RecordJson::of(&shown.record, tasks, prices).out_of_line();
    if bodies { record.with_body(shown.body.as_deref()).text() } else { record.text() }
}
