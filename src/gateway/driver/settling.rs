//! Putting what came of a stored request on disk: tried until it is there, whatever is in the way.
//!
//! Owns that an outcome is neither lost nor told twice: not while the disk refuses it, not while its row is being
//! salvaged, not by a panic. Decides no outcome (control does).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::oneshot;

use super::super::deliver::Delivery;
use super::super::opinion;
use super::super::otherwise::Otherwise;
use super::super::{Change, Input, Shared};
use super::{Driver, SETTLE_RETRY};
use crate::control::event::{AttemptId, Event, Verdict};
use crate::control::types::State;
use crate::spool::SpoolError;
use crate::spool::record::{LastError, Leased, Settlement};

/// So often an ending is begun anew after a panic: once as it is, then as one that nobody knows. What panics even so
/// stays `sending` and is judged by the next start.
const PANICS_MAX: u32 = 2;

/// What is to be put on disk of one request, and told then.
#[derive(Clone)]
pub(in crate::gateway) struct Ending {
    leased: Arc<Leased>,
    settlement: Settlement,
    end: Option<End>,
    /// How often this was begun and ended in a panic.
    panics: u32,
    /// Dropped with the last copy: what waits for this end goes on.
    _settled: Arc<oneshot::Sender<()>>,
}

type End = (State, Option<&'static str>, Option<String>);

impl Ending {
    /// The same after a panic: as it is, or without what may have made it panic.
    fn after_a_panic(&self) -> Option<Ending> {
        let mut again = self.clone();
        again.panics += 1;
        if again.panics == PANICS_MAX {
            let message = format!("the gateway broke off while its outcome was written{}", why_unknown(&self.leased));
            let error = LastError { kind: "unknown".to_owned(), message };
            again.settlement = Settlement::Dead { reason: "unknown".to_owned(), error, answer: None };
            again.end = Some((State::Dead, Some("unknown"), None));
        }
        (again.panics <= PANICS_MAX).then_some(again)
    }

    /// Tries until it is on disk; false where the spool is closed before.
    async fn write(&self, shared: &Arc<Shared>, refused: &Arc<AtomicUsize>) -> bool {
        let (mut trouble, mut told) = (None, None);
        while let Err(error) = shared.spool.settle(self.leased.seq, self.settlement.clone()).await {
            // Its row is on its way back: the disk is well, and nobody else has to wait for it.
            let waits = error == SpoolError::Salvaging;
            // Tried again every second; said once for each trouble.
            if told.replace(error.kind()) != Some(error.kind()) {
                tracing::error!(
                    HOLDFAST_REQUEST_ID = self.leased.id,
                    HOLDFAST_REASON = error.kind(),
                    "not recorded: {error}"
                );
            }
            if error == SpoolError::Closed {
                return false;
            }
            // An outcome that cannot be recorded is kept and tried again: it may have been paid for.
            trouble = (!waits).then(|| trouble.take().unwrap_or_else(|| Trouble::begin(shared, refused)));
            tokio::time::sleep(SETTLE_RETRY).await;
        }
        true
    }

    async fn tell(&self, shared: &Arc<Shared>) {
        let (id, source) = (&self.leased.id, Some(self.leased.source.as_str()));
        let Some((state, reason, route)) = self.end.clone() else {
            let reason = reason_of(&self.settlement);
            return shared.report(Change { source, reason, ..Change::to(id, State::Queued) });
        };
        shared.finished(Change { id, source, state, reason, route, latency_ms: self.settlement.latency_ms() });
        if state == State::Answered {
            opinion::tell(shared, id).await;
        }
    }
}

impl Driver {
    pub(super) fn settle(&mut self, seq: u64, attempt: Option<AttemptId>, verdict: Verdict) {
        let delivery = attempt.and_then(|attempt| self.deliveries.remove(&attempt)).map(|boxed| *boxed);
        let Some(leased) = self.leased.remove(&seq) else { return };
        let (settlement, end) = settlement(verdict, delivery, &leased);
        let (settled, on_disk) = oneshot::channel::<()>();
        if matches!(verdict, Verdict::Requeue { deferred: true, .. }) {
            self.settling.insert(seq, on_disk);
        }
        self.record(Ending { leased, settlement, end, panics: 0, _settled: Arc::new(settled) });
    }

    pub(super) fn record(&mut self, ending: Ending) {
        let (shared, refused) = (self.shared.clone(), self.refused.clone());
        let again = ending.after_a_panic().map(|again| Input::Unsettled(Box::new(again)));
        self.tasks.spawn(async move {
            let end = again.map(|again| Otherwise::new(&shared.input, again));
            #[cfg(test)]
            tests::panic_if_planted();
            let is_on_disk = ending.write(&shared, &refused).await;
            // What panics from here on must not end it a second time.
            end.into_iter().for_each(Otherwise::never);
            if is_on_disk {
                ending.tell(&shared).await;
            }
        });
    }
}

/// An outcome that the disk refuses; while there is one, nothing more is sent whose outcome would join it.
struct Trouble {
    shared: Arc<Shared>,
    refused: Arc<AtomicUsize>,
}

impl Trouble {
    fn begin(shared: &Arc<Shared>, refused: &Arc<AtomicUsize>) -> Trouble {
        refused.fetch_add(1, Ordering::AcqRel);
        shared.tell(Input::Event(Event::Storage(false)));
        Trouble { shared: shared.clone(), refused: refused.clone() }
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        if self.refused.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.tell(Input::Event(Event::Storage(true)));
        }
    }
}

/// Control's verdict and what was received, as one settlement; with the final state, where it is one.
fn settlement(verdict: Verdict, delivery: Option<Delivery>, leased: &Leased) -> (Settlement, Option<End>) {
    let (answer, error) = delivery.map_or((None, None), |d| (d.answer, d.error));
    let unsaid = || LastError { kind: "unknown".to_owned(), message: "no answer was seen".to_owned() };
    match (verdict, answer) {
        (Verdict::Answered, Some(answer)) => {
            let route = Some(format!("uplink:{}", answer.uplink));
            (Settlement::Answered(answer), Some((State::Answered, None, route)))
        }
        // Cannot be: an answered attempt always brings its answer. The request is kept rather than lost.
        (Verdict::Answered, None) => {
            (Settlement::Requeue { counted: true, deferred: false, maybe_billed: true, error, came: None }, None)
        }
        (Verdict::Requeue { counted, deferred, maybe_billed }, came) => {
            // Only what may have been paid for is worth keeping while the request waits.
            let came = came.filter(|_| maybe_billed);
            (Settlement::Requeue { counted, deferred, maybe_billed, error, came }, None)
        }
        (Verdict::Dead(reason), answer) => {
            let mut error = error.unwrap_or_else(unsaid);
            if reason == "unknown" {
                error.message += &why_unknown(leased);
            }
            let route = answer.as_ref().map(|answer| format!("uplink:{}", answer.uplink));
            let settlement = Settlement::Dead { reason: reason.to_owned(), error, answer };
            (settlement, Some((State::Dead, Some(reason), route)))
        }
    }
}

/// Why a request that was sent and not answered is not sent again by itself, and what to do.
fn why_unknown(leased: &Leased) -> String {
    let why = if leased.maybe_billed {
        "this was its second send, and there is no third"
    } else {
        "held by [retry] on_unknown = \"hold\""
    };
    let id = &leased.id;
    format!(
        "; {why}: look whether the uplink's own records show it, and send it again with `holdfast queue retry {id}`"
    )
}

fn reason_of(settlement: &Settlement) -> Option<&str> {
    match settlement {
        Settlement::Requeue { error, .. } => error.as_ref().map(|e| e.kind.as_str()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
