//! A live request's talk with control: which target now, how it ended, which next.
//!
//! Whatever way a caller goes away, control hears of it: both halves report when they are dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Input, Shared};
use crate::clock;
use crate::control::event::{AskId, AttemptId, Event, KeyIndex, Outcome, Reason};
use crate::uplink::cloud::{Call, Cloud, Reply};

/// Where a live request goes now.
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
}

impl Live {
    pub(super) fn new(shared: Arc<Shared>, asks: impl FnOnce(AskId) -> Event) -> Self {
        let ask = shared.next_ask.fetch_add(1, Ordering::Relaxed);
        Self { shared, ask, question: asks(ask), asked: false }
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
        self.await_target(granted).await
    }

    async fn await_target(&mut self, granted: oneshot::Receiver<Target>) -> Target {
        granted.await.unwrap_or(Target::Stopping)
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
}

impl LiveAttempt {
    /// Made by the driver and sent to the caller as it is: if the caller is gone by then, dropping it reports it.
    pub(super) fn new(
        shared: Arc<Shared>,
        id: AttemptId,
        (cloud, key): (Arc<Cloud>, KeyIndex),
        abandoned: oneshot::Receiver<()>,
    ) -> Self {
        Self { shared, id, cloud, key, abandoned, started: clock::now(), reported: false }
    }

    /// The uplink to send to.
    pub fn cloud(&self) -> Arc<Cloud> {
        self.cloud.clone()
    }

    /// Sends it, unless the uplink is found to be down meanwhile; returns with the answer's head.
    pub async fn send(&mut self, call: Call) -> Result<Reply, Outcome> {
        let abandoned = &mut self.abandoned;
        let taken_back = async {
            // Without an end to the wait where nobody can take it back any more.
            if abandoned.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        self.cloud.send_unless(call, self.key, taken_back).await.map_err(|e| e.outcome)
    }

    /// The answer has begun: control no longer takes the attempt back.
    pub fn answering(&self) {
        self.shared.tell(Input::Event(Event::Answering(self.id)));
    }

    /// Reports how it ended; the caller has its answer.
    pub fn end(mut self, outcome: Outcome) {
        self.report(outcome, None);
    }

    fn report(&mut self, outcome: Outcome, next: Option<(AskId, oneshot::Sender<Target>)>) {
        self.reported = true;
        let latency_ms = clock::now().duration_since(self.started).as_millis() as u64;
        self.shared.metrics.attempted(self.cloud.name(), outcome.class());
        self.shared.tell(Input::Ended { attempt: self.id, outcome, latency_ms, next });
    }
}

impl Drop for LiveAttempt {
    fn drop(&mut self) {
        if !self.reported {
            self.report(Outcome::GivenUp, None);
        }
    }
}
