//! The one task that owns control: next input, one decision, its effects.
//!
//! Selecting the next input (`run`) is apart from applying it (`apply`). Effects that take time are tasks of
//! their own and report back; the driver itself never waits for a disk or a network.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};

use super::deliver::{Delivery, deliver};
use super::otherwise::Otherwise;
use super::{Input, LiveAttempt, Shared, Target, routes};
use crate::control::event::{AskId, AttemptId, Effect, Event, Item, Notice, Outcome, Route, Shut, Verdict};
use crate::control::health::Health;
use crate::control::types::State;
use crate::control::{Control, View};
use crate::spool::SpoolError;
use crate::spool::record::{LastError, Leased, Settlement};
use crate::telemetry::feed;

/// How often due expiries and prunable results are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long a settlement that the disk refuses is tried again before the next attempt.
const SETTLE_RETRY: Duration = Duration::from_secs(1);
/// How long after the grace outcomes may still reach the disk; what does not is judged by the next start.
const LAST_SETTLES: Duration = Duration::from_secs(2);
/// With no deadline of its own, control is turned at least this often: the watchdog's pulse.
const IDLE_TURN: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    shared: Arc<Shared>,
    control: Control,
    inbox: mpsc::UnboundedReceiver<Input>,
    network: mpsc::Receiver<()>,
    asks: HashMap<AskId, oneshot::Sender<Target>>,
    abandons: HashMap<AttemptId, oneshot::Sender<()>>,
    leased: HashMap<u64, Arc<Leased>>,
    /// Settlements under way of requests that are set aside; control bounds their number.
    settling: HashMap<u64, oneshot::Receiver<()>>,
    deliveries: HashMap<AttemptId, Box<Delivery>>,
    /// Why the latest lease failed, until one succeeds.
    lease_trouble: Option<&'static str>,
    tasks: JoinSet<()>,
    /// The latest sweep: while a slow disk keeps it, no other joins the line.
    sweeping: Option<AbortHandle>,
    cut: watch::Sender<bool>,
    stop_at: Option<Instant>,
    effects: Vec<Effect>,
    /// What an earlier process knew of shut routes.
    restored: Vec<Shut>,
    /// Outcomes that the disk has refused and that are tried again.
    refused: Arc<AtomicUsize>,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        control: Control,
        inbox: mpsc::UnboundedReceiver<Input>,
        network: mpsc::Receiver<()>,
        restored: Vec<Shut>,
    ) -> Self {
        Self {
            shared,
            control,
            inbox,
            network,
            asks: HashMap::new(),
            abandons: HashMap::new(),
            leased: HashMap::new(),
            settling: HashMap::new(),
            deliveries: HashMap::new(),
            lease_trouble: None,
            tasks: JoinSet::new(),
            sweeping: None,
            cut: watch::channel(false).0,
            stop_at: None,
            effects: Vec::new(),
            restored,
            refused: Arc::default(),
        }
    }

    /// Until told to stop and nothing is in flight any more.
    pub(super) async fn run(mut self) {
        let mut tally = self.shared.spool.watch();
        let ready = tally.borrow_and_update().ready;
        let restored = std::mem::take(&mut self.restored);
        self.turn(Event::Restored(restored));
        self.turn(Event::Ready(ready));
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_done() {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                Some(input) = self.inbox.recv() => self.apply(input),
                Ok(()) = tally.changed() => {
                    let ready = tally.borrow_and_update().ready;
                    self.turn(Event::Ready(ready));
                }
                Some(()) = self.network.recv() => self.turn(Event::NetworkChanged),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if ended.is_err_and(|error| error.is_panic()) {
                        tracing::error!(HOLDFAST_REASON = "internal", "a task of the gateway panicked; please report it");
                    }
                }
                _ = sweep.tick() => self.sweep(),
                () = sleep_until(wake) => {
                    self.cut_if_due();
                    self.turn(Event::Tick);
                }
            }
        }
        // Without an end a disk that takes nothing any more would keep the process from ending.
        let now = Instant::from_std(self.shared.started) + Duration::from_millis(self.shared.now_ms());
        let end = self.stop_at.map_or(now, |stop| stop.max(now)) + LAST_SETTLES;
        if timeout_at(end, self.wind_up()).await.is_err() {
            tracing::warn!("the spool did not take every outcome in time; the next start judges what is left");
        }
    }

    /// Waits for what is under way. A lease may still be on its way back: it is given back too.
    async fn wind_up(&mut self) {
        for _ in 0..2 {
            while self.tasks.join_next().await.is_some() {}
            while let Ok(input) = self.inbox.try_recv() {
                self.apply(input);
            }
        }
        while self.tasks.join_next().await.is_some() {}
    }

    fn is_done(&self) -> bool {
        self.stop_at.is_some() && self.leased.is_empty() && self.abandons.is_empty() && self.inbox.is_empty()
    }

    fn wake_at(&self) -> Instant {
        let started = Instant::from_std(self.shared.started);
        let now = started + Duration::from_millis(self.shared.now_ms());
        let idle = now + IDLE_TURN;
        let due = self.control.deadline_ms().map_or(idle, |ms| started + Duration::from_millis(ms + 1));
        self.stop_at.map_or(due, |stop| due.min(stop)).min(idle).max(now)
    }

    /// The grace is over: what is still in flight is taken back.
    fn cut_if_due(&mut self) {
        let now = Instant::from_std(self.shared.started) + Duration::from_millis(self.shared.now_ms());
        if self.stop_at.is_some_and(|at| now >= at) && !*self.cut.borrow() {
            let _ = self.cut.send(true);
            self.abandons.drain().for_each(|(_, abandon)| {
                let _ = abandon.send(());
            });
        }
    }

    fn turn(&mut self, event: Event) {
        let now_ms = self.shared.now_ms();
        let mut effects = std::mem::take(&mut self.effects);
        self.control.handle(event, now_ms, &mut effects);
        self.shared.turns.fetch_add(1, Ordering::Release);
        self.shared.online.store(self.control.is_available(), Ordering::Release);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
        self.effects = effects;
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Event(event) => {
                if let Event::Withdrawn(ask) = event {
                    self.asks.remove(&ask);
                }
                self.turn(event);
            }
            Input::Ask(event, ask, reply) => {
                self.asks.insert(ask, reply);
                self.turn(event);
            }
            Input::Ended { attempt, outcome, latency_ms, next } => {
                self.abandons.remove(&attempt);
                let wants_next = next.is_some();
                if let Some((ask, reply)) = next {
                    self.asks.insert(ask, reply);
                }
                self.turn(Event::Ended { attempt, outcome, latency_ms, next: wants_next });
            }
            Input::Leased(Ok(leased)) => {
                self.lease_trouble = None;
                let items = leased.iter().map(|l| item(l, false)).collect();
                self.leased.extend(leased.into_iter().map(|l| (l.seq, Arc::new(l))));
                self.turn(Event::Leased(items));
                // A count told while the lease was under way must not be lost behind it.
                let ready = self.shared.spool.tally().ready;
                self.turn(Event::Ready(ready));
            }
            Input::Leased(Err(error)) => {
                // Asked again every second; said once for each trouble.
                if self.lease_trouble.replace(error.kind()) != Some(error.kind()) {
                    tracing::warn!(HOLDFAST_REASON = error.kind(), "the backlog cannot be read: {error}");
                }
                self.turn(Event::LeaseFailed);
            }
            Input::Adopt(leased) => {
                let item = item(&leased, true);
                self.leased.insert(leased.seq, Arc::new(leased));
                self.turn(Event::Adopted(item));
            }
            Input::Delivered(attempt, delivery) => self.delivered(attempt, delivery),
            Input::View(reply) => {
                let view: View = self.control.view();
                let _ = reply.send(view);
            }
            Input::Stop(grace) => {
                let now = Instant::from_std(self.shared.started) + Duration::from_millis(self.shared.now_ms());
                self.stop_at = Some(now + grace);
                self.turn(Event::Stopping);
            }
        }
    }

    fn delivered(&mut self, attempt: AttemptId, delivery: Box<Delivery>) {
        let (outcome, latency_ms) = (delivery.outcome, delivery.latency_ms);
        self.deliveries.insert(attempt, delivery);
        self.turn(Event::Ended { attempt, outcome, latency_ms, next: false });
        self.deliveries.remove(&attempt);
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Answer(ask, route) => self.answer(ask, route),
            Effect::Abandon(attempt) => {
                if let Some(abandon) = self.abandons.remove(&attempt) {
                    let _ = abandon.send(());
                }
            }
            Effect::Probe(uplink) => self.probe(uplink),
            Effect::Reset(uplink) => {
                if let Some(cloud) = self.shared.uplinks.get(uplink) {
                    cloud.reset();
                }
            }
            Effect::Lease { max, except, labelled } => {
                let shared = self.shared.clone();
                let broken = SpoolError::Storage("the lease's task broke off".to_owned());
                let end = Otherwise::new(&shared.input, Input::Leased(Err(broken)));
                self.tasks.spawn(async move {
                    end.tell(Input::Leased(shared.spool.lease_around(max, &except, labelled).await));
                });
            }
            Effect::Keep(shut) => self.keep(&shut),
            Effect::Send { attempt, seq, uplink } => self.send(attempt, seq, uplink),
            Effect::Settle { seq, attempt, verdict } => self.settle(seq, attempt, verdict),
            Effect::Release(seqs) => {
                let shared = self.shared.clone();
                let settling: Vec<_> = seqs.iter().filter_map(|seq| self.settling.remove(seq)).collect();
                self.tasks.spawn(async move {
                    // Released before it is set aside on disk, a request would stay aside until the next start.
                    for settled in settling {
                        let _ = settled.await;
                    }
                    while let Err(error) = shared.spool.release(seqs.clone()).await {
                        tracing::warn!(HOLDFAST_REASON = error.kind(), "requests stay set aside for now: {error}");
                        if matches!(error, SpoolError::Closed) {
                            return;
                        }
                        tokio::time::sleep(SETTLE_RETRY).await;
                    }
                });
            }
            Effect::Notice(notice) => self.notice(&notice),
        }
    }

    fn answer(&mut self, ask: AskId, route: Route) {
        let target = match route {
            Route::Uplink { attempt, uplink } => self.begin(attempt, uplink),
            Route::Offline { reason, maybe_billed } => Target::Offline { reason, maybe_billed },
            Route::Unsure => Target::Unsure,
            Route::LastAnswer => Target::LastAnswer,
            Route::Stopping => Target::Stopping,
        };
        // A caller that is gone drops its target, and an attempt reports itself when it is dropped.
        if let Some(reply) = self.asks.remove(&ask) {
            let _ = reply.send(target);
        }
    }

    fn begin(&mut self, attempt: AttemptId, uplink: usize) -> Target {
        let (abandon, abandoned) = oneshot::channel();
        self.abandons.insert(attempt, abandon);
        let cloud = self.shared.uplinks[uplink].clone();
        Target::Uplink(LiveAttempt::new(self.shared.clone(), attempt, cloud, abandoned))
    }

    fn probe(&mut self, uplink: usize) {
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            let Some(cloud) = shared.uplinks.get(uplink) else { return };
            let (check, models) = cloud.probe().await;
            shared.tell(Input::Event(Event::Probed(uplink, check)));
            if let Some(models) = models {
                let (told, name) = (shared.clone(), cloud.name().to_owned());
                // It reads a long list and may write a file: not on a thread that serves requests.
                let _ = spawn_blocking(move || (told.on_models)(&name, &models)).await;
            }
        });
    }

    fn send(&mut self, attempt: AttemptId, seq: u64, uplink: usize) {
        let (Some(leased), Some(cloud)) = (self.leased.get(&seq).cloned(), self.shared.uplinks.get(uplink).cloned())
        else {
            // Cannot be; but an attempt that nobody makes must not count as in flight for ever.
            self.shared.tell(Input::Ended { attempt, outcome: Outcome::GivenUp, latency_ms: 0, next: None });
            return;
        };
        let (on_out, out) = oneshot::channel();
        let (shared, stop) = (self.shared.clone(), self.cut.subscribe());
        self.shared.report_request(
            &leased.id,
            Some(&leased.source),
            State::Sending,
            leased.maybe_billed.then_some("maybe_billed"),
            Some(format!("uplink:{}", cloud.name())),
        );
        let end = Otherwise::new(&shared.input, Input::Delivered(attempt, Box::new(Delivery::broken_off(&cloud))));
        self.tasks.spawn(async move {
            let sending = deliver(cloud.clone(), &shared, &leased, on_out, stop);
            let mut delivering = std::pin::pin!(sending);
            // Not waited for beyond the attempt's end: a connection that stalls keeps the body, and `out` with it.
            let delivery = tokio::select! {
                biased;
                Ok(()) = out => {
                    shared.tell(Input::Event(Event::BodyOut(attempt)));
                    delivering.await
                }
                delivery = &mut delivering => delivery,
            };
            shared.metrics.attempted(cloud.name(), delivery.outcome.class());
            end.tell(Input::Delivered(attempt, Box::new(delivery)));
        });
    }

    fn settle(&mut self, seq: u64, attempt: Option<AttemptId>, verdict: Verdict) {
        let delivery = attempt.and_then(|attempt| self.deliveries.remove(&attempt)).map(|boxed| *boxed);
        let Some(leased) = self.leased.remove(&seq) else { return };
        let (settlement, end) = settlement(verdict, delivery, &leased);
        let shared = self.shared.clone();
        let refused = self.refused.clone();
        let (settled, on_disk) = oneshot::channel::<()>();
        if matches!(verdict, Verdict::Requeue { deferred: true, .. }) {
            self.settling.insert(seq, on_disk);
        }
        self.tasks.spawn(async move {
            // Dropped when this task ends, whatever way it does.
            let _settled = settled;
            let mut trouble = None;
            while let Err(error) = shared.spool.settle(seq, settlement.clone()).await {
                // An outcome that cannot be recorded is kept and tried again: it may have been paid for.
                tracing::error!(
                    HOLDFAST_REQUEST_ID = leased.id,
                    HOLDFAST_REASON = error.kind(),
                    "not recorded: {error}"
                );
                if matches!(error, SpoolError::Closed) {
                    return;
                }
                trouble.get_or_insert_with(|| Trouble::begin(&shared, &refused));
                tokio::time::sleep(SETTLE_RETRY).await;
            }
            drop(trouble);
            match end {
                Some((state, reason, route)) => shared.finished(&leased.id, Some(&leased.source), state, reason, route),
                None => {
                    shared.report_request(
                        &leased.id,
                        Some(&leased.source),
                        State::Queued,
                        reason_of(&settlement),
                        None,
                    );
                }
            }
        });
    }

    /// Shut routes outlive a restart under names, in powered-on time, and with the configuration they were shut under.
    fn keep(&mut self, shut: &[Shut]) {
        let shared = self.shared.clone();
        let (now_ms, powered_ms) = (shared.now_ms(), shared.spool.powered_ms());
        let saved = shut.iter().filter_map(|one| routes::save(one, &shared.uplinks, now_ms, powered_ms)).collect();
        self.tasks.spawn(async move {
            if let Err(error) = shared.spool.save_pauses(saved).await {
                tracing::warn!(
                    HOLDFAST_REASON = error.kind(),
                    "a restart will not know which routes are shut: {error}"
                );
            }
        });
    }

    fn sweep(&mut self) {
        if self.sweeping.as_ref().is_some_and(|sweep| !sweep.is_finished()) {
            return;
        }
        let shared = self.shared.clone();
        let floor = shared.floor.to_keep();
        let sweep = self.tasks.spawn(async move {
            if let Some(unix_ms) = floor
                && let Err(error) = shared.spool.save_floor(unix_ms).await
            {
                tracing::warn!(HOLDFAST_REASON = error.kind(), "the last good time is not kept: {error}");
            }
            match shared.spool.sweep().await {
                Ok(ended) => {
                    for (_, id, state) in &ended {
                        let reason = (*state == State::Expired).then_some("ttl");
                        shared.finished(id, None, *state, reason, None);
                    }
                }
                Err(error) => tracing::warn!(HOLDFAST_REASON = error.kind(), "old records stay for now: {error}"),
            }
        });
        self.sweeping = Some(sweep);
    }

    fn notice(&self, notice: &Notice) {
        let name = |uplink: usize| self.shared.uplinks.get(uplink).map_or("?", |cloud| cloud.name()).to_owned();
        let event = match notice {
            Notice::Health { uplink, health, fault } => {
                let (uplink, reason) = (name(*uplink), fault.map(crate::control::event::Fault::as_str));
                let line = format!("uplink {uplink} is {health}");
                if *health == Health::Unhealthy {
                    tracing::warn!(
                        HOLDFAST_UPLINK = uplink,
                        HOLDFAST_STATE = health.as_str(),
                        HOLDFAST_REASON = reason,
                        "{line}"
                    );
                } else {
                    tracing::info!(HOLDFAST_UPLINK = uplink, HOLDFAST_STATE = health.as_str(), "{line}");
                }
                change("uplink", &uplink, Some(health.as_str()), reason.map(str::to_owned))
            }
            Notice::Breaker { uplink, state } => {
                let uplink = name(*uplink);
                tracing::warn!(
                    HOLDFAST_UPLINK = uplink,
                    HOLDFAST_STATE = state.as_str(),
                    "circuit breaker of {uplink} is {state}"
                );
                change("breaker", &uplink, Some(state.as_str()), None)
            }
            Notice::RoutePaused { uplink, block, retry_in_s } => {
                let uplink = name(*uplink);
                tracing::error!(
                    HOLDFAST_UPLINK = uplink,
                    HOLDFAST_REASON = block.as_str(),
                    "backlog to {uplink} paused: {block}: {}; next try in {retry_in_s} s",
                    block.sentence()
                );
                change("route", &uplink, Some("paused"), Some(block.as_str().to_owned()))
            }
            Notice::Storage { works: false } => {
                tracing::error!(
                    HOLDFAST_REASON = "storage",
                    "backlog paused: storage: an outcome cannot be written; make room on the disk or replace it"
                );
                change("storage", "", Some("paused"), Some("storage".to_owned()))
            }
            Notice::Storage { works: true } => {
                tracing::warn!("outcomes can be written again; the backlog goes on");
                change("storage", "", Some("resumed"), None)
            }
            Notice::RouteResumed { uplink } => {
                let uplink = name(*uplink);
                tracing::warn!(HOLDFAST_UPLINK = uplink, "backlog to {uplink} goes on");
                change("route", &uplink, Some("resumed"), None)
            }
            Notice::DrainScheduled { delay_ms } => {
                tracing::info!("an uplink is available; the backlog follows in {delay_ms} ms");
                let mut event = feed::Event::new("drain");
                event.latency_ms = Some(*delay_ms);
                event
            }
        };
        self.shared.feed.publish(event);
    }
}

fn change(kind: &'static str, uplink: &str, state: Option<&'static str>, reason: Option<String>) -> feed::Event {
    let mut event = feed::Event::new(kind);
    event.route = Some(format!("uplink:{uplink}"));
    event.state = state;
    event.reason = reason;
    event
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

fn item(leased: &Leased, urgent: bool) -> Item {
    Item {
        seq: leased.seq,
        model: leased.model.clone(),
        attempts: leased.attempts,
        maybe_billed: leased.maybe_billed,
        urgent,
    }
}

type End = (State, Option<&'static str>, Option<String>);

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
