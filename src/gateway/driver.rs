//! The one task that owns control: next input, one decision, its effects.
//!
//! Selecting the next input (`run`) is apart from applying it (`apply`) and from carrying out what control asks for
//! (`effects`). The driver itself never waits for a disk or a network.

mod effects;
mod notices;
mod settling;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

pub(super) use self::settling::Ending;
use super::deliver::Delivery;
use super::{Change, Input, Shared, Target};
use crate::control::event::{AskId, AttemptId, Effect, Event, Item};
use crate::control::types::State;
use crate::control::{Control, View};
use crate::money::{News, Ticker};
use crate::plant::{self, Fault};
use crate::spool::Condition;
use crate::spool::record::Leased;

/// How often due expiries and prunable results are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// The same while nothing waits and nothing was stored for [`QUIET_AFTER`]: a board on a battery sleeps in between.
const QUIET_SWEEP_EVERY: Duration = Duration::from_secs(10);
const QUIET_AFTER: Duration = Duration::from_secs(10);
/// How long a settlement that the disk refuses is tried again before the next attempt.
const SETTLE_RETRY: Duration = Duration::from_secs(1);
/// How long after the grace outcomes may still reach the disk; what does not is judged by the next start.
const LAST_SETTLES: Duration = Duration::from_secs(2);
/// Control is turned at least this often, whatever it waits for: a deadline that it forgot would cost no more than that.
const IDLE_TURN: Duration = Duration::from_secs(5);

/// Inputs that are applied between two looks at everything else that the driver waits for: control handles as many in less than
/// a millisecond, and a burst of that many callers costs one look.
const INPUTS_AT_ONCE: usize = 64;

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
    /// When it began.
    swept: Instant,
    /// Stored requests by state, and when their numbers last changed.
    stored: ([u64; 8], Instant),
    cut: watch::Sender<bool>,
    stop_at: Option<Instant>,
    effects: Vec<Effect>,
    /// What an earlier process left.
    restored: Vec<Event>,
    /// Outcomes that the disk has refused and that are tried again.
    refused: Arc<AtomicUsize>,
    /// Looks after the purse.
    purse: Arc<tokio::sync::Mutex<Ticker>>,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        control: Control,
        inbox: mpsc::UnboundedReceiver<Input>,
        network: mpsc::Receiver<()>,
        restored: Vec<Event>,
    ) -> Self {
        let purse = Arc::new(tokio::sync::Mutex::new(shared.money.ticker()));
        let started = Instant::from_std(shared.started);
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
            swept: started,
            stored: ([0; 8], started),
            cut: watch::channel(false).0,
            stop_at: None,
            effects: Vec::new(),
            restored,
            refused: Arc::default(),
            purse,
        }
    }

    /// Until told to stop and nothing is in flight any more.
    pub(super) async fn run(mut self) {
        let mut tally = self.shared.spool.watch();
        let ready = {
            let now = tally.borrow_and_update();
            self.stored = (now.requests, self.now());
            now.ready
        };
        for event in std::mem::take(&mut self.restored) {
            self.turn(event);
        }
        self.turn(Event::Ready(ready));
        self.sweep();
        let mut timer = pin!(sleep_until(self.now()));
        // What it is set for; nothing once it was up.
        let mut set_for = None;
        while !self.is_done() {
            // One timer for all: each by itself would wake the board. It is set when what it is for changes or when it was up,
            // for setting it costs as much as half a turn.
            let sweep = self.sweep_at();
            let due = self.due_at(sweep);
            if set_for != Some(due) {
                set_for = Some(due);
                let now = self.now();
                timer.as_mut().reset(due.min(now + IDLE_TURN).max(now));
            }
            tokio::select! {
                biased;
                Some(input) = self.inbox.recv() => self.apply_all(input),
                Ok(()) = tally.changed() => {
                    let (ready, requests) = {
                        let now = tally.borrow_and_update();
                        (now.ready, now.requests)
                    };
                    self.told_stored(ready, requests);
                }
                Some(()) = self.network.recv() => self.turn(Event::NetworkChanged),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if ended.is_err_and(|error| error.is_panic()) {
                        tracing::error!(HOLDFAST_REASON = "internal", "a task of the gateway panicked; please report it");
                    }
                }
                () = &mut timer => {
                    set_for = None;
                    self.timer_is_up(sweep);
                }
            }
        }
        // Nothing is sent any more.
        self.shared.waiters.end();
        // Without an end a disk that takes nothing any more would keep the process from ending.
        let now = self.now();
        let end = self.stop_at.map_or(now, |stop| stop.max(now)) + LAST_SETTLES;
        if timeout_at(end, self.wind_up()).await.is_err() {
            tracing::warn!("the spool did not take every outcome in time; the next start judges what is left");
        }
    }

    /// Applies an input and what else has come: a look at the timers costs as much as a turn.
    fn apply_all(&mut self, first: Input) {
        self.apply(first);
        for _ in 1..INPUTS_AT_ONCE {
            let Ok(input) = self.inbox.try_recv() else { break };
            self.apply(input);
        }
    }

    fn told_stored(&mut self, ready: u64, requests: [u64; 8]) {
        if self.stored.0 != requests {
            self.stored = (requests, self.now());
        }
        self.turn(Event::Ready(ready));
    }

    fn timer_is_up(&mut self, sweep: Instant) {
        if self.now() >= sweep {
            self.sweep();
        }
        self.cut_if_due();
        self.turn(Event::Tick);
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

    fn now(&self) -> Instant {
        Instant::from_std(self.shared.started) + Duration::from_millis(self.shared.now_ms())
    }

    /// When the spool and the purse are looked after next.
    fn sweep_at(&self) -> Instant {
        let (stored, changed) = &self.stored;
        let waits = State::ALL.iter().any(|state| !state.is_final() && stored[*state as usize] > 0);
        let well = self.shared.spool.condition() == Condition::Fine && !self.shared.money.is_capped();
        let quiet = !waits && well && self.now() >= *changed + QUIET_AFTER;
        self.swept + if quiet { QUIET_SWEEP_EVERY } else { SWEEP_EVERY }
    }

    /// When control wants a turn, the grace is over or a sweep is due, whichever comes first.
    fn due_at(&self, sweep: Instant) -> Instant {
        let started = Instant::from_std(self.shared.started);
        let turn = self.control.deadline_ms().map(|ms| started + Duration::from_millis(ms + 1));
        [turn, self.stop_at].into_iter().flatten().fold(sweep, Instant::min)
    }

    /// The grace is over: what is still in flight is taken back.
    fn cut_if_due(&mut self) {
        let now = self.now();
        if self.stop_at.is_some_and(|at| now >= at) && !*self.cut.borrow() {
            let _ = self.cut.send(true);
            self.shared.waiters.end();
            self.abandons.drain().for_each(|(_, abandon)| {
                let _ = abandon.send(());
            });
        }
    }

    fn turn(&mut self, event: Event) {
        if plant::is(Fault::ControlHangs) && matches!(event, Event::DrainNow) {
            plant::hang();
        }
        let now_ms = self.shared.now_ms();
        let mut effects = std::mem::take(&mut self.effects);
        self.control.handle(event, now_ms, &mut effects);
        self.shared.turns.fetch_add(1, Ordering::Release);
        self.shared.online.store(self.control.is_available(), Ordering::Release);
        let strained = !self.control.is_healthy();
        if self.shared.strained.swap(strained, Ordering::AcqRel) != strained {
            self.shared.local.look_soon();
        }
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
            Input::HandOver(handed) => self.hand_over(*handed),
            Input::Delivered(attempt, delivery) => self.delivered(attempt, delivery),
            Input::Unsettled(ending) => self.record(*ending),
            Input::View(reply) => {
                let view: View = self.control.view();
                let _ = reply.send(view);
            }
            Input::NextAttempt(seq, model, reply) => {
                let _ = reply.send(self.control.next_attempt_ms(seq, &model, self.shared.now_ms()));
            }
            Input::Stop(grace) => {
                self.stop_at = Some(self.now() + grace);
                self.turn(Event::Stopping);
            }
        }
    }

    fn delivered(&mut self, attempt: AttemptId, delivery: Box<Delivery>) {
        let (outcome, latency_ms) = (delivery.outcome, delivery.latency_ms);
        if let Some(answer) = &delivery.answer {
            self.shared.spent(&answer.uplink, &answer.model, answer.usage);
        }
        self.deliveries.insert(attempt, delivery);
        self.turn(Event::Ended { attempt, outcome, latency_ms, next: false });
        self.deliveries.remove(&attempt);
    }

    fn sweep(&mut self) {
        self.swept = self.now();
        self.look_after_money();
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
                        shared.finished(Change { reason, ..Change::to(id, *state) });
                    }
                }
                Err(error) => tracing::warn!(HOLDFAST_REASON = error.kind(), "old records stay for now: {error}"),
            }
        });
        self.sweeping = Some(sweep);
    }
}

impl Driver {
    /// One look at a time: a slow disk keeps the next one waiting, and nobody else.
    fn look_after_money(&mut self) {
        let Ok(mut purse) = self.purse.clone().try_lock_owned() else { return };
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            if let Some(news) = purse.tick().await {
                notices::money(&shared, news);
                if news == News::Eased {
                    shared.tell(Input::Event(Event::Funds));
                }
            }
        });
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
