//! Answers of the local model for devices: at once while no uplink takes requests, and where only it may answer.
//!
//! Owns when the local model is asked and when it is tried again. What is to be done stands in the spool, so a restart
//! changes nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Core;
use crate::body::Body;
use crate::clock;
use crate::control::types::Policy;
use crate::spool::SpoolError;
use crate::spool::record::{Ask, DeviceRequest, LastError, LocalAnswer, Settlement, UplinkAnswer};
use crate::task;
use crate::uplink::local::{Content, LocalError};

/// How often work is looked for when nobody says that there is some.
const LOOK: Duration = Duration::from_secs(1);
/// The gateway counts as offline after this long without an uplink: a check may be under way, and an answer of the
/// uplink is worth more.
const OFFLINE_AFTER: Duration = Duration::from_secs(1);
/// A local answer that did not come is tried again after this.
const RETRY: Duration = Duration::from_secs(10);
/// Requests remembered that wait for another try; beyond it all are tried again.
const WAITING_MAX: usize = 1024;

/// One link's clerk.
#[derive(Default)]
struct Clerk {
    offline_since: Option<Instant>,
    /// Not to be asked before; `None` never in this process.
    later: HashMap<u64, Option<Instant>>,
}

/// Whether an answer is what the task asks for; where there is none, every answer is.
fn fits(core: &Core, work: &DeviceRequest, content: &Content) -> bool {
    let (Ask::Task(id), Content::Whole(body)) = (work.ask, content) else { return true };
    let words = task::said(&**body).unwrap_or_default();
    core.inner.options.tasks.read(id, &words).is_none_or(|reading| reading.fits)
}

/// Twice not what the task asks for, and nobody else may be asked.
fn misfit(answer: UplinkAnswer) -> Settlement {
    let message = "the answer is not what the task asks for, twice".to_owned();
    let error = LastError { kind: "misfit".to_owned(), message };
    Settlement::Dead { reason: "misfit".to_owned(), error, answer: Some(answer) }
}

/// Until the process ends.
pub(super) async fn run(core: Core) {
    let mut clerk = Clerk::default();
    while core.inner.gateway.is_accepting() {
        let _ = tokio::time::timeout(LOOK, core.inner.work.notified()).await;
        if let Err(error) = clerk.look(&core).await {
            tracing::warn!(HOLDFAST_REASON = error.kind(), "local answers for devices wait: {error}");
        }
    }
}

impl Clerk {
    async fn look(&mut self, core: &Core) -> Result<(), SpoolError> {
        if !core.inner.gateway.local().is_enabled() {
            return Ok(());
        }
        let mut after = (String::new(), 0);
        while core.inner.gateway.is_accepting() {
            let only_local = !self.is_offline(core);
            let work = core.inner.gateway.spool().local_work(&core.inner.source, after, only_local).await?;
            let Some(work) = work else { return Ok(()) };
            after = (work.uid.clone(), work.seq);
            let due = self.later.get(&work.seq).is_none_or(|at| at.is_some_and(|at| clock::now() >= at));
            if due && let Err(error) = self.answer(core, &work).await {
                self.broken(core, &work, &error).await?;
            }
        }
        Ok(())
    }

    fn is_offline(&mut self, core: &Core) -> bool {
        if core.inner.gateway.is_online() {
            self.offline_since = None;
            return false;
        }
        let now = clock::now();
        now.duration_since(*self.offline_since.get_or_insert(now)) >= OFFLINE_AFTER
    }

    async fn answer(&mut self, core: &Core, work: &DeviceRequest) -> Result<(), SpoolError> {
        let spool = core.inner.gateway.spool();
        let Some(body) = spool.body(work.id.clone()).await?.map(Body::from) else { return Ok(()) };
        let Some(record) = spool.get(work.id.clone()).await? else { return Ok(()) };
        let begun = clock::now();
        let asked = || core.inner.gateway.ask_local(&record.endpoint, &body, &work.id, clock::unix_ms() / 1000);
        let mut answer = match asked().await {
            Ok(answer) => answer,
            Err(error) => return self.failed(core, work, &error).await,
        };
        let mut is_fit = fits(core, work, &answer.content);
        // Once more, as an uplink would be asked. What does not come the second time leaves the first words.
        if !is_fit && let Ok(second) = asked().await {
            (is_fit, answer) = (fits(core, work, &second.content), second);
        }
        // A stored request never asks for a stream.
        let Content::Whole(body) = answer.content else { return Ok(()) };
        let took = clock::now().duration_since(begun);
        let latency_ms = took.as_millis() as u64;
        self.later.remove(&work.seq);
        if work.policy == Policy::Local {
            let answer = UplinkAnswer {
                uplink: String::new(),
                model: answer.model,
                status: 200,
                content_type: "application/json".to_owned(),
                latency_ms,
                usage: None,
                body: body.into(),
            };
            let settlement = if is_fit { Settlement::Answered(answer) } else { misfit(answer) };
            core.inner.gateway.settle_here(&work.id, work.seq, &core.inner.source, settlement).await?;
        } else {
            let answer = LocalAnswer { model: answer.model, latency_ms, body };
            spool.record_local_first(work.seq, answer).await?;
        }
        core.inner.gateway.metrics().answered("local", "ok", took);
        Ok(())
    }

    /// One request that cannot be read or written down holds up no other.
    async fn broken(&mut self, core: &Core, work: &DeviceRequest, error: &SpoolError) -> Result<(), SpoolError> {
        match error {
            SpoolError::Closed => return Err(SpoolError::Closed),
            SpoolError::Unreadable if work.policy == Policy::Local => {
                let error = LastError { kind: error.kind().to_owned(), message: error.to_string() };
                self.end(core, work, "damaged", error).await;
                return Ok(());
            }
            _ => {}
        }
        tracing::warn!(HOLDFAST_REQUEST_ID = work.id, HOLDFAST_REASON = error.kind(), "no local answer: {error}");
        // Whose body is lost is ended by the lease; all others may come right.
        let is_lost = *error == SpoolError::Unreadable;
        self.later(work.seq, (!is_lost).then(|| clock::now() + RETRY));
        Ok(())
    }

    /// Nobody else may answer it, and the local model never will.
    async fn end(&mut self, core: &Core, work: &DeviceRequest, reason: &str, error: LastError) {
        tracing::warn!(HOLDFAST_REQUEST_ID = work.id, HOLDFAST_REASON = error.kind, "request ended: {}", error.message);
        let settlement = Settlement::Dead { reason: reason.to_owned(), error, answer: None };
        if core.inner.gateway.settle_here(&work.id, work.seq, &core.inner.source, settlement).await.is_err() {
            self.later(work.seq, Some(clock::now() + RETRY));
        }
    }

    fn later(&mut self, seq: u64, at: Option<Instant>) {
        if self.later.len() >= WAITING_MAX {
            self.later.clear();
        }
        self.later.insert(seq, at);
    }

    /// What cannot be done ends where nobody else may do it; what could not be done now is tried again.
    async fn failed(&mut self, core: &Core, work: &DeviceRequest, error: &LocalError) -> Result<(), SpoolError> {
        tracing::info!(HOLDFAST_REQUEST_ID = work.id, HOLDFAST_REASON = error.kind(), "no local answer: {error}");
        let hopeless =
            matches!(error, LocalError::Unsupported { .. } | LocalError::ContextLength | LocalError::Invalid { .. });
        if hopeless && work.policy == Policy::Local {
            let error = LastError { kind: error.kind().to_owned(), message: error.to_string() };
            self.end(core, work, "refused", error).await;
            return Ok(());
        }
        self.later(work.seq, (!hopeless).then(|| clock::now() + RETRY));
        Ok(())
    }
}
