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
use super::super::{Input, Shared};
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
        let (mut trouble, mut is_told) = (None, false);
        while let Err(error) = shared.spool.settle(self.leased.seq, self.settlement.clone()).await {
            // Its row is on its way back: the disk is well, and nobody else has to wait for it.
            let waits = error == SpoolError::Salvaging;
            if !(waits && is_told) {
                tracing::error!(
                    HOLDFAST_REQUEST_ID = self.leased.id,
                    HOLDFAST_REASON = error.kind(),
                    "not recorded: {error}"
                );
            }
            is_told |= waits;
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
        match &self.end {
            Some((state, reason, route)) => {
                shared.finished(id, source, *state, *reason, route.clone());
                if *state == State::Answered {
                    opinion::tell(shared, id).await;
                }
            }
            None => shared.report_request(id, source, State::Queued, reason_of(&self.settlement), None),
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
            tests::panic_if_planted(&shared);
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
            let settlement = Settlement::Dead { reason: reason.to_owned(), error, answer };
            (settlement, Some((State::Dead, Some(reason), None)))
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
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::super::super::waiters::Waiters;
    use super::*;
    use crate::body::Body;
    use crate::clock::{self, Floor};
    use crate::control::drain::DrainSettings;
    use crate::control::price::Prices;
    use crate::control::retry::RetrySettings;
    use crate::control::route::Strategy;
    use crate::control::types::{Policy, Priority};
    use crate::control::{Control, Settings};
    use crate::spool::record::NewRequest;
    use crate::spool::{self, Spool};
    use crate::telemetry::feed::Feed;
    use crate::telemetry::metrics::Metrics;
    use crate::uplink::local::{Api, Local, Options, Timeouts};

    thread_local! {
        /// Panics to come; tasks of a test run on its own thread.
        static PANICS: Cell<u32> = const { Cell::new(0) };
    }

    pub(super) fn panic_if_planted(_: &Shared) {
        let left = PANICS.get();
        PANICS.set(left.saturating_sub(1));
        assert_eq!(left, 0, "as planned");
    }

    fn driver() -> (tempfile::TempDir, Driver) {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool::open(spool::Options {
            data_dir: dir.path().to_owned(),
            max_bytes: 1 << 20,
            max_requests: 100,
            min_disk_free: 0,
            evict_when_full: false,
            per_source_backlog: 100,
            keep_results_ms: 3_600_000,
            keep_results_bytes: 1 << 20,
            hold_unknown: false,
        });
        let (input, inbox) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            input,
            uplinks: Vec::new(),
            local: nobody(),
            spool: spool.unwrap(),
            waiters: Waiters::default(),
            feed: Feed::default(),
            metrics: Metrics::default(),
            next_ask: AtomicU64::new(1),
            accepting: AtomicBool::new(true),
            online: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            started: clock::now(),
            floor: Arc::new(Floor::new(0)),
            tasks: Arc::default(),
            prices: Prices::default(),
            on_models: Box::new(|_, _| {}),
        });
        let settings = Settings {
            uplinks: Vec::new(),
            strategy: Strategy::default(),
            retry: RetrySettings { attempts: 1, base_ms: 1, max_ms: 1, budget: 0.1 },
            hold_unknown: false,
            max_attempts: 3,
            drain: DrainSettings { max_in_flight: 4, start_delay_ms: 0 },
            seed: 1,
        };
        let (_, network) = mpsc::channel(1);
        (dir, Driver::new(shared, Control::new(settings, 0), inbox, network, Vec::new()))
    }

    fn nobody() -> Local {
        let ever = Duration::from_secs(1);
        let timeouts = Timeouts { connect: ever, first_token: ever, idle: ever, total: ever };
        let (model, vision_model, models) = (String::new(), String::new(), BTreeMap::new());
        let options =
            Options { base_url: None, api: Api::Ollama, model, vision_model, models, max_in_flight: 1, timeouts };
        Local::new(options).unwrap()
    }

    fn leased(seq: u64) -> Leased {
        Leased {
            seq,
            id: "a".to_owned(),
            source: "uid:1000".to_owned(),
            endpoint: "/v1/chat/completions".to_owned(),
            model: "m".to_owned(),
            priority: Priority::Normal,
            attempts: 0,
            maybe_billed: false,
            idempotency_key: "a".to_owned(),
            task: None,
            body: Body::default(),
        }
    }

    async fn take(spool: &Spool) -> u64 {
        let leased = leased(0);
        let new = NewRequest {
            id: leased.id,
            source: leased.source,
            label: None,
            endpoint: leased.endpoint,
            model: leased.model,
            priority: leased.priority,
            policy: Policy::Both,
            body_hash: leased.body.hash(),
            body: leased.body,
            idempotency_key: None,
            ttl_ms: 3_600_000,
            leased: true,
            maybe_billed: false,
            device: None,
            task: None,
        };
        spool.accept(new).await.unwrap().seq
    }

    #[tokio::test]
    async fn a_panic_leaves_no_request_on_its_way() {
        for (panics, state, reason) in [
            (0, State::Dead, Some("refused")),
            (1, State::Dead, Some("refused")),
            (2, State::Dead, Some("unknown")),
            (3, State::Sending, None),
        ] {
            let (_dir, mut driver) = driver();
            let seq = take(&driver.shared.spool).await;
            driver.leased.insert(seq, Arc::new(leased(seq)));
            PANICS.set(panics);
            driver.settle(seq, None, Verdict::Dead("refused"));
            driver.wind_up().await;
            let record = driver.shared.spool.get("a".to_owned()).await.unwrap().unwrap();
            assert_eq!((record.state, record.reason.as_deref()), (state, reason), "after {panics} panics");
        }
    }

    #[tokio::test]
    async fn an_outcome_that_waits_for_a_salvage_stops_nobody_else() {
        let (_dir, mut driver) = driver();
        driver.shared.spool.pretend_salvage(77, true).await;
        driver.leased.insert(77, Arc::new(leased(77)));
        driver.settle(77, None, Verdict::Dead("refused"));
        let waits = timeout(Duration::from_millis(300), driver.tasks.join_next()).await;
        assert!(waits.is_err(), "it is tried again");
        assert!(driver.inbox.is_empty(), "and the drain is not told to stop");
        driver.shared.spool.pretend_salvage(77, false).await;
        assert!(driver.tasks.join_next().await.is_some_and(|ended| ended.is_ok()));
    }
}
