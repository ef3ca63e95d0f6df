//! Why an uplink is out of reach: the ladder climbed for a technician who asks, and by itself during an outage.
//!
//! Owns when it is climbed and the last thing it found; what the rungs are is `uplink::ladder`'s.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Shared;
use crate::clock;
use crate::control::event::Check;
use crate::uplink::ladder::{self, Rung, Standing};

/// During an outage the ladder is climbed again after this: what breaks may change, and each climb costs some packets.
const EVERY: Duration = Duration::from_mins(1);

/// What was found, per uplink.
#[derive(Debug, Default)]
pub struct Ladders {
    broken: Mutex<BTreeMap<usize, Broken>>,
    /// One climb at a time: each opens connections.
    climbing: tokio::sync::Mutex<()>,
}

/// The last climb during an outage.
#[derive(Debug)]
struct Broken {
    since: Instant,
    /// The lowest rung that breaks, where one did.
    rung: Option<Rung>,
}

impl Ladders {
    fn broken(&self) -> MutexGuard<'_, BTreeMap<usize, Broken>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rung at which an uplink that is out of reach breaks, as last seen.
    pub fn rung(&self, uplink: usize) -> Option<Rung> {
        self.broken().get(&uplink)?.rung.clone()
    }

    /// Takes the turn to climb, where one is due.
    fn is_due(&self, uplink: usize) -> bool {
        let now = clock::now();
        let mut broken = self.broken();
        if broken.get(&uplink).is_some_and(|last| now.duration_since(last.since) < EVERY) {
            return false;
        }
        let rung = broken.remove(&uplink).and_then(|last| last.rung);
        broken.insert(uplink, Broken { since: now, rung });
        true
    }
}

impl Shared {
    /// A probe ended: an uplink that does not answer is looked at rung by rung. That is nobody's to wait for: where something
    /// hangs it takes longer than a stop may.
    pub(super) fn look_at(self: &Arc<Self>, uplink: usize, check: &Check) {
        if !matches!(check, Check::Failed(_)) {
            self.ladders.broken().remove(&uplink);
            return;
        }
        if !self.ladders.is_due(uplink) {
            return;
        }
        let shared = self.clone();
        tokio::spawn(async move {
            let rungs = shared.climb(uplink).await;
            // It may be back by now.
            if let Some(broken) = shared.ladders.broken().get_mut(&uplink) {
                broken.rung = rungs.into_iter().find(|rung| rung.standing == Standing::Failed);
            }
        });
    }

    /// All rungs to an uplink.
    pub(super) async fn climb(&self, uplink: usize) -> Vec<Rung> {
        let Some(cloud) = self.uplinks.get(uplink) else { return Vec::new() };
        let name = |model: &str| cloud.alias(model).unwrap_or(model).to_owned();
        // Of several uplinks each need not have what the tasks ask for.
        let tasks = if self.uplinks.len() == 1 { self.tasks.tasks() } else { &[] };
        let tasks = tasks.iter().map(|task| name(&task.options().model));
        let mut models: Vec<String> = cloud.aliases().map(name).chain(tasks).filter(|name| !name.is_empty()).collect();
        models.sort();
        models.dedup();
        let _turn = self.ladders.climbing.lock().await;
        ladder::climb(cloud, &models).await
    }
}
