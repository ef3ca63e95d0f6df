//! What control asks for, carried out: answers, attempts, leases, settlements, releases.
//!
//! Whatever takes time is a task of its own that reports back; nothing here decides.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::super::deliver::{Delivery, deliver};
use super::super::otherwise::Otherwise;
use super::super::{Change, HandOver, Input, LiveAttempt, Received, Rest, Target, routes};
use super::{Driver, SETTLE_RETRY, item};
use crate::control::event::{AskId, AttemptId, Effect, Event, Fault, KeyIndex, Outcome, Route, Shut, UplinkIndex};
use crate::control::types::State;
use crate::spool::SpoolError;

/// Takes a live attempt back; what it ended with, unless its answer has begun.
fn take_back(
    abandon: Option<oneshot::Sender<()>>,
    rest: &mut Rest,
) -> Option<(LiveAttempt, Result<Received, Outcome>)> {
    abandon?.send(()).ok()?;
    rest.now_or_never()
}

impl Driver {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Answer(ask, route) => self.answer(ask, route),
            Effect::Abandon(attempt) => {
                if let Some(abandon) = self.abandons.remove(&attempt) {
                    let _ = abandon.send(());
                }
            }
            Effect::Probe(uplink, key) => self.probe(uplink, key),
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
            Effect::Send { attempt, seq, uplink, key } => self.send(attempt, seq, (uplink, key)),
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
            Route::Uplink { attempt, uplink, key } => self.begin(attempt, uplink, key),
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

    fn begin(&mut self, attempt: AttemptId, uplink: UplinkIndex, key: KeyIndex) -> Target {
        let (abandon, abandoned) = oneshot::channel();
        self.abandons.insert(attempt, abandon);
        let cloud = self.shared.uplinks[uplink].clone();
        Target::Uplink(LiveAttempt::new(self.shared.clone(), attempt, (cloud, key), abandoned))
    }

    fn probe(&mut self, uplink: UplinkIndex, key: KeyIndex) {
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            let Some(cloud) = shared.uplinks.get(uplink) else { return };
            let (check, models) = cloud.probe(key).await;
            shared.tell(Input::Event(Event::Probed(uplink, key, check)));
            shared.look_at(uplink, &check);
            if let Some(models) = models.filter(|models| shared.is_news(uplink, models)) {
                let (told, name) = (shared.clone(), cloud.name().to_owned());
                // It reads a long list and may write a file: not on a thread that serves requests.
                let _ = spawn_blocking(move || (told.on_models)(&name, &models)).await;
            }
        });
    }

    fn send(&mut self, attempt: AttemptId, seq: u64, (uplink, key): (UplinkIndex, KeyIndex)) {
        let (Some(leased), Some(cloud)) = (self.leased.get(&seq).cloned(), self.shared.uplinks.get(uplink).cloned())
        else {
            // Cannot be; but an attempt that nobody makes must not count as in flight for ever.
            self.shared.tell(Input::Ended { attempt, outcome: Outcome::GivenUp, latency_ms: 0, next: None });
            return;
        };
        let (on_out, out) = oneshot::channel();
        let (shared, stop) = (self.shared.clone(), self.cut.subscribe());
        self.shared.report(Change {
            source: Some(&leased.source),
            reason: leased.maybe_billed.then_some("maybe_billed"),
            route: Some(format!("uplink:{}", cloud.name())),
            ..Change::to(&leased.id, State::Sending)
        });
        let end = Otherwise::new(&shared.input, Input::Delivered(attempt, Box::new(Delivery::broken_off(&cloud))));
        self.tasks.spawn(async move {
            let mut delivering = std::pin::pin!(deliver((cloud.clone(), key), &shared, &leased, on_out, stop));
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

    /// Goes on with a live attempt as with one that was made for its stored request.
    pub(super) fn hand_over(&mut self, HandOver { grip, leased, mut rest }: HandOver) {
        let (attempt, cloud, leased) = (grip.attempt, grip.cloud, Arc::new(leased));
        self.leased.insert(leased.seq, leased.clone());
        // Only the end of the process takes it back now.
        let abandon = self.abandons.remove(&attempt);
        self.turn(Event::HandedOver(attempt, item(&leased, true)));
        if !self.leased.contains_key(&leased.seq) {
            return;
        }
        let (shared, mut stop) = (self.shared.clone(), self.cut.subscribe());
        let route = Some(format!("uplink:{}", cloud.name()));
        let (source, reason) = (Some(leased.source.as_str()), Some("handed_over"));
        shared.report(Change { source, reason, route, ..Change::to(&leased.id, State::Sending) });
        let end = Otherwise::new(&shared.input, Input::Delivered(attempt, Box::new(Delivery::broken_off(&cloud))));
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                biased;
                ended = &mut rest => Some(ended),
                _ = stop.wait_for(|stop| *stop) => take_back(abandon, &mut rest),
            };
            let delivery = match ended {
                Some((attempt, result)) => attempt.end_stored(&leased, result).await,
                None => Delivery::without(&cloud, Outcome::Unknown(Fault::Outage), 0),
            };
            shared.metrics.attempted(cloud.name(), delivery.outcome.class());
            end.tell(Input::Delivered(attempt, Box::new(delivery)));
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
}
