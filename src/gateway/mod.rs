//! The gateway's handle: what ingress may ask of it.
//!
//! Owns the way from a request to control and back, and from control to the spool and the uplinks. Decides
//! nothing (control does) and speaks no dialect (ingress does).

mod auto;
mod deliver;
mod driver;
mod ladder;
mod live;
mod opinion;
mod otherwise;
mod pay;
mod routes;
mod steward;
mod waiters;

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::body::Body;
use crate::clock::{self, Floor};
use crate::control::auto::Rule;
use crate::control::event::{AskId, AttemptId, Event, Outcome};
use crate::control::price::{Prices, Usage};
use crate::control::types::State;
use crate::control::{Control, Settings, View};
use crate::money::Money;
use crate::spool::record::{Accepted, Leased, NewRequest, Record, Settlement};
use crate::spool::{SavedPause, Spool, SpoolError};
use crate::task::Book;
use crate::telemetry::feed::{self, Feed};
use crate::telemetry::host::Board;
use crate::telemetry::log::uplink_of;
use crate::telemetry::metrics::Metrics;
use crate::uplink::cloud::Cloud;
use crate::uplink::ladder::Rung;
use crate::uplink::local::{Local, LocalAnswer, LocalError};
pub use deliver::Received;
pub use live::{Grip, Live, LiveAttempt, Target};
pub use opinion::{Agreed, agreement};
use waiters::Waiters;

/// Takes an uplink's name and its list of models.
pub type OnModels = Box<dyn Fn(&str, &[u8]) + Send + Sync>;

/// What the gateway is built from.
pub struct Parts {
    /// Control's numbers.
    pub settings: Settings,
    /// In the same order as `settings.uplinks`.
    pub uplinks: Vec<Arc<Cloud>>,
    /// The on-site model.
    pub local: Local,
    /// The durable queue.
    pub spool: Spool,
    /// What an earlier process knew of shut routes.
    pub pauses: Vec<SavedPause>,
    /// Whether the operator holds the backlog back since before this start.
    pub held: bool,
    /// The earliest wall time that can be true; the uplinks have it too.
    pub floor: Arc<Floor>,
    /// Told when the system says that links or routes changed.
    pub network: mpsc::Receiver<()>,
    /// The canned prompts.
    pub tasks: Arc<Book>,
    /// What models cost.
    pub prices: Prices,
    /// What `auto` stands for.
    pub auto: Vec<Rule>,
    /// What may be paid today, and what was.
    pub money: Money,
    /// Told each uplink's list of models as a probe read it: its name and the JSON.
    pub on_models: OnModels,
    /// The board's own readings.
    pub board: Board,
}

/// A handle to the running gateway; cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

struct Shared {
    /// Unbounded by type, bounded by use: each live request and each attempt in flight has at most two
    /// messages under way, and both are limited.
    input: mpsc::UnboundedSender<Input>,
    uplinks: Vec<Arc<Cloud>>,
    local: Local,
    spool: Spool,
    waiters: Waiters,
    feed: Feed,
    metrics: Metrics,
    next_ask: AtomicU64,
    accepting: AtomicBool,
    /// The grace of the process's end is over.
    over: watch::Sender<bool>,
    online: AtomicBool,
    /// No uplink is healthy: none takes requests, or only slow ones.
    strained: AtomicBool,
    board: Board,
    agreements: opinion::Agreements,
    turns: AtomicU64,
    started: Instant,
    floor: Arc<Floor>,
    tasks: Arc<Book>,
    prices: Prices,
    auto: Vec<Rule>,
    money: Money,
    on_models: OnModels,
    /// A hash of each uplink's list of models as it was told last.
    listed: Vec<AtomicU64>,
    ladders: ladder::Ladders,
}

/// The rest of a live attempt: what came of it, and the attempt to end with that.
pub type Rest = Pin<Box<dyn Future<Output = (LiveAttempt, Result<Received, Outcome>)> + Send>>;

/// A live attempt whose request is stored now.
struct HandOver {
    grip: Grip,
    leased: Leased,
    rest: Rest,
}

/// What the driver is told.
enum Input {
    Event(Event),
    Ask(Event, AskId, oneshot::Sender<Target>),
    Ended {
        attempt: AttemptId,
        outcome: Outcome,
        latency_ms: u64,
        next: Option<(AskId, oneshot::Sender<Target>)>,
    },
    Leased(Result<Vec<Leased>, SpoolError>),
    Adopt(Leased),
    HandOver(Box<HandOver>),
    Delivered(AttemptId, Box<deliver::Delivery>),
    /// The task that was to record it panicked.
    Unsettled(Box<driver::Ending>),
    View(oneshot::Sender<View>),
    /// When this one, which asks for that model, is sent at the earliest.
    NextAttempt(u64, String, oneshot::Sender<Option<u64>>),
    Stop(Duration),
}

impl Gateway {
    /// Starts the driver.
    pub fn start(parts: Parts) -> (Gateway, JoinHandle<()>) {
        let (gateway, driver) = Gateway::build(parts);
        tokio::spawn(steward::keep(gateway.shared.clone()));
        (gateway, tokio::spawn(driver.run()))
    }

    /// All of it, with the driver not running yet.
    fn build(parts: Parts) -> (Gateway, driver::Driver) {
        let (input, inbox) = mpsc::unbounded_channel();
        let started = clock::now();
        let listed = parts.uplinks.iter().map(|_| AtomicU64::new(0)).collect();
        let metrics = Metrics::default();
        let ends = State::ALL.into_iter().filter(|state| state.is_final()).map(State::as_str);
        metrics.expect(parts.uplinks.iter().map(|cloud| cloud.name()), ends);
        let shared = Arc::new(Shared {
            input,
            uplinks: parts.uplinks,
            local: parts.local,
            spool: parts.spool,
            waiters: Waiters::default(),
            feed: Feed::default(),
            metrics,
            next_ask: AtomicU64::new(1),
            accepting: AtomicBool::new(true),
            over: watch::channel(false).0,
            online: AtomicBool::new(false),
            strained: AtomicBool::new(false),
            board: parts.board,
            agreements: opinion::Agreements::default(),
            turns: AtomicU64::new(0),
            started,
            floor: parts.floor,
            tasks: parts.tasks,
            prices: parts.prices,
            auto: parts.auto,
            money: parts.money,
            on_models: parts.on_models,
            listed,
            ladders: ladder::Ladders::default(),
        });
        let control = Control::new(parts.settings, 0);
        let powered_ms = shared.spool.powered_ms();
        let shut = parts.pauses.iter().filter_map(|p| routes::restore(p, &shared.uplinks, powered_ms)).collect();
        if parts.held {
            tracing::warn!("the operator paused sending the backlog before this start; \"holdfast resume\" ends that");
        }
        let restored = vec![Event::Paused(parts.held), Event::Restored(shut)];
        let driver = driver::Driver::new(shared.clone(), control, inbox, parts.network, restored);
        (Gateway { shared }, driver)
    }

    /// What models cost.
    pub fn prices(&self) -> &Prices {
        &self.shared.prices
    }

    /// What may be paid today, and what was.
    pub fn money(&self) -> &Money {
        &self.shared.money
    }

    /// Climbs the ladder to the uplink of this index, rung by rung.
    pub async fn climb(&self, uplink: usize) -> Vec<Rung> {
        self.shared.climb(uplink).await
    }

    /// The rung at which an uplink that is out of reach breaks, as last seen.
    pub fn broken_rung(&self, uplink: usize) -> Option<Rung> {
        self.shared.ladders.rung(uplink)
    }

    /// Milliseconds since the gateway started: control's `now`.
    pub fn now_ms(&self) -> u64 {
        self.shared.now_ms()
    }

    /// The uplinks, in the configuration's order.
    pub fn uplinks(&self) -> &[Arc<Cloud>] {
        &self.shared.uplinks
    }

    /// The on-site model.
    pub fn local(&self) -> &Local {
        &self.shared.local
    }

    /// Asks the local model; its time is counted. `created` is in Unix seconds.
    pub async fn ask_local(
        &self,
        endpoint: &str,
        body: &Body,
        id: &str,
        created: u64,
    ) -> Result<LocalAnswer, LocalError> {
        let begun = clock::now();
        let answer = self.shared.local.answer(endpoint, body, id, created).await;
        self.shared.metrics.local_answered(answer.is_ok(), clock::now().duration_since(begun));
        answer
    }

    /// How far the local model's answers agreed with the uplinks' since the start.
    pub fn agreements(&self) -> Vec<Agreed> {
        self.shared.agreements.list()
    }

    /// The durable queue.
    pub fn spool(&self) -> &Spool {
        &self.shared.spool
    }

    /// The canned prompts.
    pub fn tasks(&self) -> &Arc<Book> {
        &self.shared.tasks
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The live events.
    pub fn feed(&self) -> &Feed {
        &self.shared.feed
    }

    /// False once the process is ending.
    pub fn is_accepting(&self) -> bool {
        self.shared.accepting.load(Ordering::Acquire)
    }

    /// Has control turn once more: whoever watches it need not wait for something to happen.
    pub fn nudge(&self) {
        self.shared.tell(Input::Event(Event::Tick));
    }

    /// Whether any uplink takes requests now.
    pub fn is_online(&self) -> bool {
        self.shared.online.load(Ordering::Acquire)
    }

    /// How often control has turned: the watchdog's proof of progress.
    pub fn turns(&self) -> u64 {
        self.shared.turns.load(Ordering::Acquire)
    }

    /// Begins a live request; its caller waits until then, where it said so.
    pub fn live(&self, until: Option<Instant>) -> Live {
        let until_ms = until.map(|at| at.saturating_duration_since(self.shared.started).as_millis() as u64);
        let asks = |ask| until_ms.map_or(Event::Asked(ask), |at| Event::AskedUntil(ask, at));
        Live::new(self.shared.clone(), asks).until(until)
    }

    /// Begins a live request on a path that nobody here knows.
    pub fn live_aside(&self) -> Live {
        Live::new(self.shared.clone(), Event::AskedAside)
    }

    /// Makes a request durable; returns after the commit.
    pub async fn store(&self, new: NewRequest) -> Result<Accepted, SpoolError> {
        let (id, source, bytes) = (new.id.clone(), new.source.clone(), new.body.len());
        let accepted = self.shared.spool.accept(new).await?;
        if !accepted.existing {
            self.shared.metrics.accepted(bytes);
            self.shared.report(Change { source: Some(&source), ..Change::to(&id, State::Queued) });
        }
        Ok(accepted)
    }

    /// Sends a request that was stored as leased, before the backlog: its caller waits.
    pub fn adopt(&self, leased: Leased) {
        self.shared.tell(Input::Adopt(leased));
    }

    /// Hands over a live attempt whose caller's own time is up: its request is stored as leased, and what comes of the
    /// attempt is its outcome.
    pub fn hand_over(&self, grip: Grip, leased: Leased, rest: Rest) {
        grip.take();
        self.shared.tell(Input::HandOver(Box::new(HandOver { grip, leased, rest })));
    }

    /// Waits until a stored request has reached a final state, at most this long; `None` if it has not.
    pub async fn wait_final(&self, id: &str, limit: Duration) -> Result<Option<Record>, SpoolError> {
        let finished = self.shared.waiters.register(id);
        let found = self.finished(id).await?;
        if found.is_some() {
            return Ok(found);
        }
        let _ = tokio::time::timeout(limit, finished.wait()).await;
        self.finished(id).await
    }

    /// Resolves when a request that was just stored is answered; for no other end. The disk is asked only then.
    pub async fn answered(&self, id: &str) {
        let ended = self.shared.waiters.register(id);
        ended.wait().await;
        match self.finished(id).await {
            Ok(Some(record)) if record.state == State::Answered => {}
            _ => std::future::pending().await,
        }
    }

    /// Whether the process ends so soon that nobody waits for an outcome any longer.
    pub fn is_waiting_over(&self) -> bool {
        self.shared.waiters.is_over()
    }

    async fn finished(&self, id: &str) -> Result<Option<Record>, SpoolError> {
        let record = self.shared.spool.get(id.to_owned()).await?;
        Ok(record.filter(|record| record.state.is_final()))
    }

    /// Cancels a waiting request; returns the state it has then.
    pub async fn cancel(&self, id: &str) -> Result<Option<State>, SpoolError> {
        let done = self.shared.spool.cancel(id.to_owned()).await?;
        // What was cancelled before has been told.
        if done == Some((State::Cancelled, true)) {
            self.shared.finished(Change { reason: Some("cancelled"), ..Change::to(id, State::Cancelled) });
        }
        Ok(done.map(|(state, _)| state))
    }

    /// Ends a device's request that only the local model may answer; says whether it was waiting.
    pub async fn settle_here(&self, id: &str, seq: u64, source: &str, how: Settlement) -> Result<bool, SpoolError> {
        let (state, reason, route) = match &how {
            Settlement::Answered(answer) => (State::Answered, None, Some(format!("local:{}", answer.model))),
            Settlement::Dead { reason, .. } => (State::Dead, Some(reason.clone()), None),
            Settlement::Requeue { .. } => return Ok(false),
        };
        let latency_ms = how.latency_ms();
        let settled = self.shared.spool.settle_here(seq, how).await?;
        if settled {
            let (source, reason) = (Some(source), reason.as_deref());
            self.shared.finished(Change { id, source, state, reason, route, latency_ms });
        }
        Ok(settled)
    }

    /// Puts a request that ended without an answer back into the queue.
    pub async fn retry(&self, id: &str) -> Result<Option<State>, SpoolError> {
        let done = self.shared.spool.retry(id.to_owned()).await?;
        if done == Some((State::Queued, true)) {
            self.shared.report(Change { reason: Some("retry"), ..Change::to(id, State::Queued) });
        }
        Ok(done.map(|(state, _)| state))
    }

    /// Stops or resumes sending the backlog, until the other is asked for: over restarts, too.
    pub async fn pause(&self, paused: bool) {
        self.shared.tell(Input::Event(Event::Paused(paused)));
        tracing::info!("the operator {} sending the backlog", if paused { "paused" } else { "resumed" });
        if let Err(error) = self.shared.spool.save_held(paused).await {
            tracing::warn!(HOLDFAST_REASON = error.kind(), "a restart will not know that: {error}");
        }
    }

    /// Sends the backlog now.
    pub fn drain_now(&self) {
        self.shared.tell(Input::Event(Event::DrainNow));
    }

    /// Control as it stands; `None` once the process is ending.
    pub async fn view(&self) -> Option<View> {
        let (reply, view) = oneshot::channel();
        self.shared.tell(Input::View(reply));
        view.await.ok()
    }

    /// When a stored request that waits is sent at the earliest, in Unix milliseconds, where there is more to wait for than its turn.
    pub async fn next_attempt_unix_ms(&self, seq: u64, model: &str) -> Option<u64> {
        let (reply, due) = oneshot::channel();
        self.shared.tell(Input::NextAttempt(seq, model.to_owned(), reply));
        let due_ms = due.await.ok()??;
        Some(clock::unix_ms() + due_ms.saturating_sub(self.now_ms()))
    }

    /// Begins to end: no new work; what is in flight gets this long.
    pub fn stop(&self, grace: Duration) {
        self.shared.accepting.store(false, Ordering::Release);
        self.shared.tell(Input::Stop(grace));
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            if let Some(shared) = shared.upgrade() {
                shared.over.send_replace(true);
            }
        });
    }

    /// Resolves when that time is over.
    pub async fn grace_over(&self) {
        // The sender lives as long as `self`.
        let _ = self.shared.over.subscribe().wait_for(|over| *over).await;
    }
}

/// A stored request that came to another state, for the journal and whoever watches.
struct Change<'a> {
    id: &'a str,
    source: Option<&'a str>,
    state: State,
    reason: Option<&'a str>,
    route: Option<String>,
    /// What the attempt took that brought its end.
    latency_ms: Option<u64>,
}

impl<'a> Change<'a> {
    fn to(id: &'a str, state: State) -> Self {
        Change { id, source: None, state, reason: None, route: None, latency_ms: None }
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        clock::now().duration_since(self.started).as_millis() as u64
    }

    fn tell(&self, input: Input) {
        // The driver ends last; a message after that has nobody left to matter to.
        let _ = self.input.send(input);
    }

    /// One journal line and one live event per change of a stored request.
    fn report(&self, change: Change<'_>) {
        let Change { id, source, state, reason, route, latency_ms } = change;
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    HOLDFAST_REQUEST_ID = id,
                    HOLDFAST_SOURCE = source,
                    HOLDFAST_STATE = state.as_str(),
                    HOLDFAST_REASON = reason,
                    HOLDFAST_ROUTE = route.as_deref(),
                    HOLDFAST_UPLINK = uplink_of(route.as_deref()),
                    HOLDFAST_LATENCY_MS = latency_ms,
                    "request {id} is {state}"
                )
            };
        }
        match state {
            // It will have no answer.
            State::Dead | State::Expired | State::Evicted => line!(warn),
            _ => line!(info),
        }
        let mut event = feed::Event::new("request");
        event.id = Some(id.to_owned());
        event.source = source.map(str::to_owned);
        event.state = Some(state.as_str());
        event.reason = reason.map(str::to_owned);
        event.route = route;
        self.feed.publish(event);
    }

    /// Whether this list of models is another than the one before; a probe brings the same one every few seconds.
    fn is_news(&self, uplink: usize, models: &[u8]) -> bool {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(models);
        self.listed.get(uplink).is_none_or(|listed| listed.swap(hash, Ordering::AcqRel) != hash)
    }

    fn spent(&self, uplink: &str, model: &str, usage: Option<Usage>) {
        let Some(usage) = usage else { return };
        let usd = self.prices.cost_usd(uplink, model, usage);
        self.metrics.spent(uplink, usage.prompt_tokens, usage.completion_tokens, usd);
    }

    /// A stored request reached its outcome: whoever waits for it is woken.
    fn finished(&self, change: Change<'_>) {
        let id = change.id;
        self.metrics.settled(change.state.as_str());
        self.report(change);
        self.waiters.wake(id);
    }
}
