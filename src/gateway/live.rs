//! A live request's talk with control: which target now, how it ended, which next.
//!
//! Whatever way a caller goes away, control hears of it: both halves report when they are dropped.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Instant;

use tokio::sync::oneshot;

use super::deliver::{self, Delivery, Received};
use super::{Input, Shared, pay};
use crate::clock;
use crate::control::event::{AskId, AttemptId, Event, KeyIndex, Outcome, Reason};
use crate::control::price::Usage;
use crate::money::{End, Reservation};
use crate::spool::record::Leased;
use crate::uplink::cloud::{Call, Cloud, Reply};
use crate::uplink::usage::Summary;

/// Where a live request goes now.
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, moved twice; a box would cost every request an allocation"
)]
pub enum Target {
    /// To this uplink.
    Uplink(LiveAttempt),
    /// No uplink is available.
    Offline {
        /// Why.
        reason: Reason,
        /// An earlier attempt may have been billed.
        maybe_billed: bool,
    },
    /// It was sent and not answered, and the uplink is there: no second paid send.
    Unsure,
    /// Every target was tried; the last answer is the answer.
    LastAnswer,
    /// The process is ending.
    Stopping,
}

/// One live request.
pub struct Live {
    shared: Arc<Shared>,
    ask: AskId,
    /// How control is asked.
    question: Event,
    asked: bool,
    source: Option<Arc<str>>,
    caller: Option<Instant>,
}

impl Live {
    pub(super) fn new(shared: Arc<Shared>, asks: impl FnOnce(AskId) -> Event) -> Self {
        let ask = shared.next_ask.fetch_add(1, Ordering::Relaxed);
        Self { shared, ask, question: asks(ask), asked: false, source: None, caller: None }
    }

    /// Until when its caller waits, where it said so.
    pub(super) fn until(mut self, caller: Option<Instant>) -> Self {
        self.caller = caller;
        self
    }

    /// Names who asks: what it costs is counted under that.
    #[must_use]
    pub fn of(mut self, source: &str) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The first target.
    pub async fn target(&mut self) -> Target {
        let (reply, granted) = oneshot::channel();
        self.asked = true;
        self.shared.tell(Input::Ask(self.question.clone(), self.ask, reply));
        self.await_target(granted).await
    }

    /// Reports a failed attempt and asks for the next target.
    pub async fn next(&mut self, mut attempt: LiveAttempt, outcome: Outcome) -> Target {
        let (reply, granted) = oneshot::channel();
        attempt.report(outcome, Some((self.ask, reply)));
        let target = self.await_target(granted).await;
        if let Target::Uplink(next) = &target
            && next.cloud.name() != attempt.cloud.name()
        {
            self.shared.metrics.failed_over(attempt.cloud.name());
        }
        target
    }

    /// Reports how its last attempt ended; the caller has its answer. Control forgets the request with that.
    pub fn end(&mut self, attempt: LiveAttempt, outcome: Outcome) {
        attempt.end(outcome);
        self.asked = false;
    }

    async fn await_target(&mut self, granted: oneshot::Receiver<Target>) -> Target {
        let mut target = granted.await.unwrap_or(Target::Stopping);
        if let Target::Uplink(attempt) = &mut target {
            attempt.source.clone_from(&self.source);
            attempt.caller = self.caller;
        }
        target
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.asked {
            self.shared.tell(Input::Event(Event::Withdrawn(self.ask)));
        }
    }
}

/// One try of a live request at one uplink.
pub struct LiveAttempt {
    shared: Arc<Shared>,
    id: AttemptId,
    cloud: Arc<Cloud>,
    key: KeyIndex,
    abandoned: oneshot::Receiver<()>,
    started: Instant,
    reported: bool,
    source: Option<Arc<str>>,
    /// Until when its caller waits, where it said so.
    caller: Option<Instant>,
    /// The money that is set aside for it while it is under way.
    reserved: Option<Reservation>,
    /// What its answer said that it took.
    said: Option<(Option<String>, Usage)>,
    /// Whether its request was handed over, where that can be.
    handed: Option<Arc<AtomicBool>>,
}

/// A hold on an attempt that is under way, for when its caller's own time is up.
pub struct Grip {
    pub(super) attempt: AttemptId,
    pub(super) cloud: Arc<Cloud>,
    handed: Arc<AtomicBool>,
}

impl Grip {
    /// From now on its end is the stored request's, and told by whoever finishes it.
    pub(super) fn take(&self) {
        self.handed.store(true, Ordering::Release);
    }
}

impl LiveAttempt {
    /// Made by the driver and sent to the caller as it is: if the caller is gone by then, dropping it reports it.
    pub(super) fn new(
        shared: Arc<Shared>,
        id: AttemptId,
        (cloud, key): (Arc<Cloud>, KeyIndex),
        abandoned: oneshot::Receiver<()>,
    ) -> Self {
        let started = clock::now();
        Self {
            shared,
            id,
            cloud,
            key,
            abandoned,
            started,
            reported: false,
            source: None,
            caller: None,
            reserved: None,
            said: None,
            handed: None,
        }
    }

    /// A hold on it, to hand it over while it is under way.
    pub fn grip(&mut self) -> Grip {
        let handed = self.handed.get_or_insert_default().clone();
        Grip { attempt: self.id, cloud: self.cloud.clone(), handed }
    }

    /// The uplink to send to.
    pub fn cloud(&self) -> Arc<Cloud> {
        self.cloud.clone()
    }

    /// Sends it, unless there is no money for it or the uplink is found to be down meanwhile; returns with the answer's
    /// head.
    pub async fn send(&mut self, call: Call) -> Result<Reply, Outcome> {
        let abandoned = &mut self.abandoned;
        let taken_back = async {
            // Without an end to the wait where nobody can take it back any more.
            if abandoned.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let mut taken_back = std::pin::pin!(taken_back);
        let source = self.source.as_deref().unwrap_or("unknown");
        self.reserved = tokio::select! {
            biased;
            reserved = pay::reserve(&self.shared, &self.cloud, &call, source, self.caller) => reserved?,
            () = &mut taken_back => return Err(Outcome::GivenUp),
        };
        self.cloud.send_unless(call, self.key, taken_back).await.map_err(|e| e.outcome)
    }

    /// What its answer said that it took: counted now, settled with its end.
    pub fn spent(&mut self, asked: &str, summary: &Summary) {
        let asked = self.cloud.alias(asked).unwrap_or(asked);
        let model = summary.model.as_deref().unwrap_or(asked);
        self.shared.spent(self.cloud.name(), model, summary.usage);
        self.said = summary.usage.map(|usage| (summary.model.clone(), usage));
    }

    /// The answer has begun and more of it is to come: control no longer takes the attempt back.
    pub fn answering(&self) {
        self.shared.tell(Input::Event(Event::Answering(self.id)));
    }

    /// Reads an answer whose head is here. Control is told only where more is to come: most are all there.
    pub async fn answered_by<T>(&self, reading: impl Future<Output = T>) -> T {
        let mut reading = std::pin::pin!(reading);
        match poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await {
            Poll::Ready(read) => read,
            Poll::Pending => {
                self.answering();
                reading.await
            }
        }
    }

    /// What it ended with, for the stored request to which it was handed over.
    pub(super) async fn end_stored(mut self, leased: &Leased, result: Result<Received, Outcome>) -> Delivery {
        let latency_ms = clock::now().duration_since(self.started).as_millis() as u64;
        deliver::end(&self.cloud, &self.shared, leased, result, latency_ms, self.reserved.take()).await
    }

    /// Reports how it ended; the caller has its answer.
    pub fn end(mut self, outcome: Outcome) {
        self.report(outcome, None);
    }

    fn report(&mut self, outcome: Outcome, next: Option<(AskId, oneshot::Sender<Target>)>) {
        self.reported = true;
        if let Some(reserved) = self.reserved.take() {
            reserved.settle(&pay::end(outcome, self.said.take()));
        }
        let latency_ms = clock::now().duration_since(self.started).as_millis() as u64;
        self.shared.metrics.attempted(self.cloud.name(), outcome.class());
        self.shared.tell(Input::Ended { attempt: self.id, outcome, latency_ms, next });
    }
}

impl Drop for LiveAttempt {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take() {
            // Its caller went away in the middle: what had left by then may be billed.
            reserved.settle(&End::Unknown);
        }
        let handed = self.handed.as_ref().is_some_and(|handed| handed.load(Ordering::Acquire));
        if !self.reported && !handed {
            self.report(Outcome::GivenUp, None);
        }
    }
}
