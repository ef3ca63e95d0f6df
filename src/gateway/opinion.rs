//! The second opinion: once an uplink has answered what the local model answered during the outage, whether both agree.
//!
//! Tells it as an event and counts it; keeps nothing, because both answers are on record and can be compared again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

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

/// Pairs of task and local model that are counted. Both come from the configuration; old records may name a model of an
/// earlier one.
const PAIRS_MAX: usize = 256;

/// How often both answers agreed, for one task and one local model, since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The task; `None` for requests without one.
    pub task: Option<u16>,
    /// The local model.
    pub model: String,
    /// Both said the same.
    pub same: u64,
    /// They did not.
    pub differs: u64,
    /// They could not be compared.
    pub unknown: u64,
}

impl Agreed {
    /// The share of equal answers among those that could be compared; `None` where there are none.
    pub fn rate(&self) -> Option<f64> {
        let compared = self.same + self.differs;
        (compared > 0).then(|| self.same as f64 / compared as f64)
    }
}

/// The counts of all tasks and local models.
#[derive(Debug, Default)]
pub(super) struct Agreements(Mutex<BTreeMap<(Option<u16>, String), Agreed>>);

impl Agreements {
    fn count(&self, task: Option<u16>, model: &str, agreement: Agreement) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (task, model.to_owned());
        if counts.len() >= PAIRS_MAX && !counts.contains_key(&key) {
            return;
        }
        let new = || Agreed { task, model: model.to_owned(), ..Agreed::default() };
        let counted = counts.entry(key).or_insert_with(new);
        match agreement {
            Agreement::Same => counted.same += 1,
            Agreement::Differs => counted.differs += 1,
            Agreement::Unknown => counted.unknown += 1,
        }
    }

    /// In the order of tasks, then models.
    pub(super) fn list(&self) -> Vec<Agreed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
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
    shared.agreements.count(task, &model, agreement);
    shared.metrics.agreed(task, &model, agreement.as_str());
    let mut event = feed::Event::new("agreement");
    event.id = Some(id.to_owned());
    event.source = Some(source);
    event.state = Some(agreement.as_str());
    event.reason = rule.map(|rule| rule.as_str().to_owned());
    event.route = Some(format!("local:{model}"));
    shared.feed.publish(event);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_leaves_out_what_cannot_be_compared_and_the_list_is_bounded() {
        let counts = Agreements::default();
        for agreement in [Agreement::Same, Agreement::Same, Agreement::Same, Agreement::Differs, Agreement::Unknown] {
            counts.count(Some(12), "small", agreement);
        }
        counts.count(None, "small", Agreement::Unknown);
        let list = counts.list();
        assert_eq!(list.iter().map(|a| (a.task, a.rate())).collect::<Vec<_>>(), [(None, None), (Some(12), Some(0.75))]);
        for n in 0..1000 {
            counts.count(Some(n), "small", Agreement::Same);
        }
        assert_eq!(counts.list().len(), PAIRS_MAX);
        counts.count(Some(12), "small", Agreement::Same);
        assert_eq!(counts.list().iter().find(|a| a.task == Some(12)).unwrap().same, 5);
    }
}
