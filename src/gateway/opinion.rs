//! The second opinion: once an uplink has answered what the local model answered during the outage, whether both agree.
//!
//! Tells it as an event and counts it; keeps nothing, because both answers are on record and can be compared again.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::Shared;
use crate::control::types::State;
use crate::spool::record::Record;
use crate::task::{Agreement, Book, Rule, WHOLE_BYTES_MAX};
use crate::telemetry::feed;

/// Whether a record's two answers agree; `None` where it has not both. Blocks where an answer is a file.
pub fn agreement(record: &Record, tasks: &Book) -> Option<(Agreement, Option<Rule>)> {
    let ((local, _), (uplink, _)) = (record.local.as_ref()?, record.uplink.as_ref()?);
    if local.body.is_empty() || uplink.body.is_empty() {
        // A listing, which leaves the bytes out.
        return None;
    }
    if record.state != State::Answered || uplink.body.len().max(local.body.len() as u64) > WHOLE_BYTES_MAX {
        return Some((Agreement::Unknown, None));
    }
    Some(tasks.compare(record.task, &*local.body, uplink.body.reader()))
}

/// Looks at a request that an uplink has just answered.
pub(super) async fn tell(shared: &Arc<Shared>, id: &str) {
    if !shared.spool.has_local_answer(id.to_owned()).await.unwrap_or_default() {
        return;
    }
    let Ok(Some(record)) = shared.spool.get(id.to_owned()).await else { return };
    let Some(model) = record.local.as_ref().map(|(answer, _)| answer.model.clone()) else { return };
    let (task, source) = (record.task, record.source.clone());
    let tasks = shared.tasks.clone();
    let Ok(Some((agreement, rule))) = spawn_blocking(move || agreement(&record, &tasks)).await else { return };
    shared.metrics.agreed(task, &model, agreement.as_str());
    let mut event = feed::Event::new("agreement");
    event.id = Some(id.to_owned());
    event.source = Some(source);
    event.state = Some(agreement.as_str());
    event.reason = rule.map(|rule| rule.as_str().to_owned());
    event.route = Some(format!("local:{model}"));
    shared.feed.publish(event);
}
