//! The rules of the device link, the same for every dialect: what is taken, under which key, and the one result.
//!
//! Owns the way from a decoded submission to the durable acknowledgement and from the request's end to what its
//! device is told. Knows no bytes of any line: a dialect translates.

mod clerk;
mod compose;
mod outcome;
mod submission;
pub mod tasks;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_wire::Code;
use holdfast_wire::message::{ARG_BYTES_MAX, ARGS_MAX, BLOB_BYTES_MAX, BLOBS_MAX, OPEN_MAX};
use holdfast_wire::message::{LOCAL_ONLY, NO_RESULT, UPLINK_ONLY, state};
use tokio::sync::{Notify, watch};

use super::restart;
use crate::clock;
use crate::control::health::Health;
use crate::control::limit::Limiter;
use crate::control::types::{Policy, Priority, State};
use crate::gateway::Gateway;
use crate::spool::SpoolError;
use crate::spool::record::{Asked, DeviceKey, DeviceRequest, Mailbox, NewDevice, NewRequest, Tally};
pub use submission::{Answer, Cancelled, How, Op, Outcome, Progress, Refusal, Results, Stored, Submission, Upload};
use tasks::Tasks;

/// The longest time to live a request may ask for, as on HTTP: 30 days.
const TTL_MAX: Duration = Duration::from_hours(720);
/// A full queue or disk makes sense again after this: a drain or a person needs some time.
const FULL_RETRY_MS: u32 = 30_000;
/// A fault of our own makes sense again after this.
const FAULT_RETRY_MS: u32 = 5_000;
/// A device with too many open requests takes its results first.
const BUSY_RETRY_MS: u32 = 2_000;
/// New requests of one device per second, in the long run. Repeats cost nothing: a device that repeats does what it must.
const PER_SECOND: u32 = 10;
/// How many may come at once: all that a device may have open, and some that want no result.
const BURST: u32 = 64;
/// The word of what a fixed device is called longest, in bytes: 16 as hexadecimal digits.
const UID_DIGITS_MAX: usize = 32;
/// Requests looked at for results of one device: all that it may have open, and as many again from before a smaller bound.
const OWED_MAX: u32 = 2 * OPEN_MAX as u32;
/// The longest word that may be a key.
const KEY_BYTES_MAX: usize = 32;

/// What one link's core is built from.
#[derive(Clone)]
pub struct Options {
    /// The link's name.
    pub link: String,
    /// What a request gets while no uplink is available, unless it says otherwise.
    pub offline: Policy,
    /// Time to live of a request that names none.
    pub ttl: Duration,
    /// The model of a question that names none.
    pub model: String,
    /// Canned prompts.
    pub tasks: Arc<dyn Tasks>,
}

/// One link's rules; clones share it.
#[derive(Clone)]
pub struct Core {
    inner: Arc<Inner>,
}

struct Inner {
    gateway: Gateway,
    options: Options,
    source: String,
    /// Another number after each start.
    boot: u32,
    limiter: Mutex<Limiter>,
    /// There may be something for the local model to do.
    work: Notify,
}

impl Core {
    /// Builds it and starts its clerk, which ends with the gateway.
    pub fn start(gateway: Gateway, options: Options) -> Core {
        let source = format!("link:{}", options.link);
        let (limiter, work) = (Mutex::new(Limiter::new(PER_SECOND, BURST)), Notify::new());
        let boot = clock::random_u64() as u32;
        let core = Core { inner: Arc::new(Inner { gateway, options, source, boot, limiter, work }) };
        let clerks = core.clone();
        tokio::spawn(async move { restart::until_done(|| clerk::run(clerks.clone()), || {}).await });
        core
    }

    /// Takes a request; returns after the commit, or names the one that its key is known for. Its uploads must be
    /// there. Dropping the future does not undo it.
    pub async fn submit(&self, submission: Submission) -> Result<Stored, Refusal> {
        let core = self.clone();
        // The request may be on disk already when whoever asked goes away: it is finished in any case.
        let storing = tokio::spawn(async move { core.store(submission).await });
        storing.await.unwrap_or_else(|_| Err(Refusal::for_now(Code::Internal, FAULT_RETRY_MS, "stopping")))
    }

    /// Whether its key is known, before anything is uploaded for it; checks all that can be checked without.
    pub async fn look_up(&self, submission: &Submission) -> Result<Option<Stored>, Refusal> {
        check(submission)?;
        if submission.flags & LOCAL_ONLY != 0 {
            self.check_policy(Policy::Local, submission.flags)?;
        }
        let known = self.asked(&submission.uid, submission.key.clone()).await?;
        match known {
            Asked::Unknown => {
                if !submission.uploads().is_empty() {
                    let options = &self.inner.options;
                    compose::fill(submission, &*options.tasks, &options.model)?;
                }
                Ok(None)
            }
            Asked::Finished => Ok(Some(Stored { request: 0, position: 0, how: How::Finished })),
            // A mailbox is not asked for its content: its number alone says what is a repeat.
            Asked::Found(found)
                if found.content != submission.content() && !matches!(found.key, Some(DeviceKey::Mailbox { .. })) =>
            {
                Err(reused())
            }
            Asked::Found(found) => Ok(Some(self.stored(&found).await)),
        }
    }

    /// Where a request stands, or its result.
    pub async fn query(&self, uid: &str, key: DeviceKey) -> Result<Answer, Refusal> {
        match self.asked(uid, key).await? {
            Asked::Unknown => Ok(Answer::Unknown),
            Asked::Finished => Ok(Answer::Progress(Progress { state: state::DONE, position: 0, eta_s: 0 })),
            Asked::Found(found) => match self.outcome(&found).await? {
                Some(outcome) => Ok(Answer::Result(outcome)),
                None => Ok(Answer::Progress(self.progress(&found).await)),
            },
        }
    }

    /// Cancels what is not on its way yet.
    pub async fn cancel(&self, uid: &str, key: DeviceKey) -> Result<Cancelled, Refusal> {
        match self.asked(uid, key).await? {
            Asked::Unknown => Ok(Cancelled::Unknown),
            Asked::Finished => Ok(Cancelled::TooLate),
            Asked::Found(found) if found.state == State::Cancelled => Ok(Cancelled::Yes),
            Asked::Found(found) => match self.inner.gateway.cancel(&found.id).await.map_err(refusal)? {
                Some(State::Cancelled) => Ok(Cancelled::Yes),
                _ => Ok(Cancelled::TooLate),
            },
        }
    }

    /// Results that a device is to be told, oldest first, without those that are under way already.
    pub async fn results(&self, uid: &str, limit: usize, known: &[u64]) -> Results {
        let mut results = Results::default();
        let Ok(found) = self.inner.gateway.spool().undelivered(&self.inner.source, uid, OWED_MAX).await else {
            return Results { again: true, ..results };
        };
        for request in found.into_iter().filter(|request| !known.contains(&request.seq)) {
            match self.outcome(&request).await {
                Ok(outcome) => results.outcomes.extend(outcome),
                // Its time comes; the others do not wait for it.
                Err(_) => results.again = true,
            }
            if results.outcomes.len() >= limit {
                break;
            }
        }
        results
    }

    /// Where the requests stand that a device waits for: their keys, and their states as Progress says them. Empty where
    /// that cannot be read now: it is only a courtesy.
    pub async fn states(&self, uid: &str) -> Vec<(DeviceKey, u8)> {
        let open = self.inner.gateway.spool().unfinished(&self.inner.source, uid, OWED_MAX).await.unwrap_or_default();
        // One with its local answer is over as far as its device is concerned.
        let open = open.into_iter().filter(|request| !request.has_local);
        open.filter_map(|request| Some((request.key?, state_of(request.state)))).collect()
    }

    /// How many requests of a device wait for their result to be taken, finished or not.
    pub async fn open(&self, uid: &str) -> u64 {
        self.inner.gateway.spool().device_open(&self.inner.source, uid).await.unwrap_or(0)
    }

    /// How many results wait for a device.
    pub async fn pending(&self, uid: &str) -> u16 {
        let waiting = self.inner.gateway.spool().undelivered(&self.inner.source, uid, 1000).await;
        waiting.map_or(0, |waiting| waiting.len() as u16)
    }

    /// The device has the whole result of this request of its own.
    pub async fn acked(&self, uid: &str, request: u64) -> Result<(), Refusal> {
        self.inner.gateway.spool().handed_over(&self.inner.source, uid, request).await.map_err(refusal)
    }

    /// What the mailboxes of this link were last written with.
    pub async fn mailboxes(&self) -> Result<Vec<Mailbox>, Refusal> {
        self.inner.gateway.spool().mailboxes(&self.inner.source).await.map_err(refusal)
    }

    /// A device's request by its number: its result where it has one, else where it stands.
    pub async fn by_number(&self, uid: &str, request: u64) -> Result<Answer, Refusal> {
        let spool = self.inner.gateway.spool();
        match spool.device_request(&self.inner.source, uid, request).await.map_err(refusal)? {
            None => Ok(Answer::Unknown),
            Some(found) => match self.outcome(&found).await? {
                Some(outcome) => Ok(Answer::Result(outcome)),
                None => Ok(Answer::Progress(self.progress(&found).await)),
            },
        }
    }

    /// Changes whenever something stored has: time to ask for results again.
    pub fn changes(&self) -> watch::Receiver<Tally> {
        self.inner.gateway.spool().watch()
    }

    /// How the uplinks stand: 0 offline, 1 degraded, 2 online.
    pub async fn uplink(&self) -> u8 {
        let Some(view) = self.inner.gateway.view().await else { return 0 };
        let available = || view.uplinks.iter().filter(|uplink| uplink.available);
        match available().next() {
            None => 0,
            Some(_) => 1 + u8::from(available().any(|uplink| uplink.health == Health::Healthy)),
        }
    }

    /// Requests that wait, of everybody.
    pub fn backlog(&self) -> u64 {
        self.inner.gateway.spool().tally().backlog()
    }

    /// Another number after each start of the gateway.
    pub fn boot(&self) -> u32 {
        self.inner.boot
    }

    /// The gateway it belongs to.
    pub fn gateway(&self) -> &Gateway {
        &self.inner.gateway
    }

    /// The link's name.
    pub fn link(&self) -> &str {
        &self.inner.options.link
    }

    async fn asked(&self, uid: &str, key: DeviceKey) -> Result<Asked, Refusal> {
        self.inner.gateway.spool().device_key(&self.inner.source, uid, key).await.map_err(refusal)
    }

    async fn store(&self, submission: Submission) -> Result<Stored, Refusal> {
        if let Some(known) = self.look_up(&submission).await? {
            return Ok(known);
        }
        self.admit(&submission).await?;
        let options = &self.inner.options;
        let bodies = self.inner.gateway.spool().bodies();
        let composed = compose::compose(&submission, &*options.tasks, &options.model, bodies).await?;
        let new = self.new_request(&submission, composed).await;
        self.check_policy(new.policy, submission.flags)?;
        let accepted = self.inner.gateway.store(new).await.map_err(refusal)?;
        self.inner.work.notify_one();
        if accepted.existing {
            let how = if accepted.finished { How::Finished } else { How::Again };
            return Ok(Stored { request: accepted.seq, position: 0, how });
        }
        let position = self.position(&accepted.id).await;
        Ok(Stored { request: accepted.seq, position, how: How::New })
    }

    /// What only the local model may answer is done for its result only, and where there is such a model. What is not to be kept over
    /// an outage is not taken in one.
    fn check_policy(&self, policy: Policy, flags: u8) -> Result<(), Refusal> {
        if policy == Policy::Fail && !self.inner.gateway.is_online() {
            return Err(Refusal::for_now(Code::Busy, FAULT_RETRY_MS, "no uplink, not to be kept"));
        }
        if policy != Policy::Local {
            return Ok(());
        }
        if !self.inner.gateway.local().is_enabled() {
            return Err(Refusal::new(Code::Forbidden, "there is no local model here"));
        }
        if flags & NO_RESULT != 0 {
            return Err(Refusal::new(Code::BadArguments, "the local model is asked for a result only"));
        }
        Ok(())
    }

    async fn admit(&self, submission: &Submission) -> Result<(), Refusal> {
        if !self.inner.gateway.is_accepting() {
            return Err(Refusal::for_now(Code::Busy, FAULT_RETRY_MS, "the gateway is stopping"));
        }
        let now_ms = self.inner.gateway.now_ms();
        let taken = self.inner.limiter.lock().unwrap_or_else(PoisonError::into_inner).take(&submission.uid, now_ms);
        taken.map_err(|wait_ms| Refusal::for_now(Code::RateLimited, wait_ms as u32, "too many requests"))?;
        let spool = self.inner.gateway.spool();
        let open = spool.device_open(&self.inner.source, &submission.uid).await.map_err(refusal)?;
        if submission.flags & NO_RESULT == 0 && open >= OPEN_MAX as u64 {
            return Err(Refusal::for_now(Code::Busy, BUSY_RETRY_MS, "too many open requests: take the results first"));
        }
        Ok(())
    }

    async fn new_request(&self, submission: &Submission, composed: compose::Composed) -> NewRequest {
        let options = &self.inner.options;
        let flags = submission.flags;
        let policy = match (flags & LOCAL_ONLY != 0, flags & UPLINK_ONLY != 0) {
            (true, _) => Policy::Local,
            (_, true) => Policy::Queue,
            _ => composed.policy.unwrap_or(options.offline),
        };
        let ttl = if submission.ttl_s == 0 { options.ttl } else { Duration::from_secs(submission.ttl_s.into()) };
        let reply = [u32::from(submission.max_reply), composed.max_answer];
        let max_reply = reply.into_iter().filter(|bytes| *bytes > 0).min().unwrap_or(0);
        let device = NewDevice {
            uid: submission.uid.clone(),
            key: submission.key.clone(),
            content: submission.content(),
            wants_result: flags & NO_RESULT == 0,
            ask: submission.ask(),
            max_reply: u16::try_from(max_reply).unwrap_or(u16::MAX),
        };
        let (id, mut head) = (clock::request_id(), composed.head);
        let priority = Priority::from_rank(submission.prio).unwrap_or_default();
        if composed.endpoint != "/v1/embeddings" {
            self.inner.gateway.choose_model(&id, &mut head, &composed.body, priority).await;
        }
        NewRequest {
            id,
            source: self.inner.source.clone(),
            label: Some(submission.uid.clone()),
            endpoint: composed.endpoint.to_owned(),
            model: head.model,
            priority,
            policy,
            body: composed.body,
            idempotency_key: None,
            ttl_ms: ttl.min(TTL_MAX).as_millis() as u64,
            leased: false,
            maybe_billed: false,
            task: None,
            device: Some(device),
        }
    }

    async fn stored(&self, found: &DeviceRequest) -> Stored {
        let over = found.state.is_final() && !found.wants_result;
        let how = if over { How::Finished } else { How::Again };
        Stored { request: found.seq, position: self.position(&found.id).await, how }
    }

    async fn position(&self, id: &str) -> u64 {
        // Reading waits for the commit.
        if crate::plant::is(crate::plant::Fault::LinkAckBeforeCommit) {
            return 0;
        }
        let record = self.inner.gateway.spool().get(id.to_owned()).await;
        record.ok().flatten().map_or(0, |record| record.position)
    }

    async fn progress(&self, found: &DeviceRequest) -> Progress {
        let stands = state_of(found.state);
        if stands != state::QUEUED {
            return Progress { state: stands, position: 0, eta_s: 0 };
        }
        let eta_s = self.inner.gateway.view().await.and_then(|view| view.seconds_to_drain).unwrap_or(0);
        Progress { state: stands, position: self.position(&found.id).await, eta_s }
    }

    async fn outcome(&self, found: &DeviceRequest) -> Result<Option<Outcome>, Refusal> {
        if !found.state.is_final() && !found.has_local {
            return Ok(None);
        }
        let record = match self.inner.gateway.spool().get(found.id.clone()).await {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(None),
            // It is gone for good: nothing better can be told, however long anybody waits.
            Err(SpoolError::Unreadable) => return Ok(outcome::lost(found, "the answer cannot be read")),
            Err(error) => return Err(refusal(error)),
        };
        let (request, tasks) = (found.clone(), self.inner.options.tasks.clone());
        match tokio::task::spawn_blocking(move || outcome::of(&request, &record, &*tasks)).await {
            Ok(told) => Ok(told),
            Err(broken) if broken.is_panic() => Ok(outcome::lost(found, "the answer cannot be told")),
            Err(_) => Err(Refusal::for_now(Code::Internal, FAULT_RETRY_MS, "stopping")),
        }
    }
}

/// The numbers of Progress.
fn state_of(state: State) -> u8 {
    match state {
        State::Queued => state::QUEUED,
        State::Sending | State::Unknown => state::IN_FLIGHT,
        State::Answered => state::DONE,
        State::Dead | State::Evicted => state::FAILED,
        State::Expired => state::EXPIRED,
        State::Cancelled => state::CANCELLED,
    }
}

fn reused() -> Refusal {
    Refusal::new(Code::KeyReused, "this key was used with other content")
}

/// The spool's no, in the link's numbers.
fn refusal(error: SpoolError) -> Refusal {
    match error {
        SpoolError::KeyReused => reused(),
        SpoolError::QueueFull | SpoolError::DiskFull => {
            Refusal::for_now(Code::StorageFull, FULL_RETRY_MS, "storage full")
        }
        SpoolError::SourceFull => Refusal::for_now(Code::Busy, FULL_RETRY_MS, "this link has too much waiting"),
        other => Refusal::for_now(Code::Internal, FAULT_RETRY_MS, other.kind()),
    }
}

/// What no gateway takes, whatever it knows.
fn check(submission: &Submission) -> Result<(), Refusal> {
    let wrong = |code, what: &str| Err(Refusal::new(code, what));
    if submission.prio > 3 || submission.flags & !(NO_RESULT | LOCAL_ONLY | UPLINK_ONLY) != 0 {
        return wrong(Code::Unknown, "no such priority or flag");
    }
    let flags = submission.flags;
    if flags & LOCAL_ONLY != 0 && flags & (UPLINK_ONLY | NO_RESULT) != 0 {
        return wrong(Code::BadArguments, "LOCAL_ONLY goes with no other flag");
    }
    if submission.uid.is_empty() || submission.uid.len() > UID_DIGITS_MAX {
        return wrong(Code::BadPayload, "a uid has 4 to 16 bytes");
    }
    if matches!(&submission.key, DeviceKey::Text(key) if key.is_empty() || key.len() > KEY_BYTES_MAX) {
        return wrong(Code::BadPayload, "a key has 1 to 32 characters");
    }
    let uploads = submission.uploads();
    if uploads.len() > BLOBS_MAX || uploads.iter().any(|upload| upload.len == 0) {
        return wrong(Code::TooLarge, "at most 4 pictures of at least 1 byte");
    }
    // A device's share of the room for uploads holds those of one request.
    if uploads.iter().map(|upload| u64::from(upload.len)).sum::<u64>() > BLOB_BYTES_MAX.into() {
        return wrong(Code::TooLarge, "at most 8 MiB of pictures");
    }
    if let Op::Task { args, .. } = &submission.op
        && (args.len() > ARGS_MAX || args.iter().any(|arg| arg.len() > ARG_BYTES_MAX))
    {
        return wrong(Code::TooLarge, "at most 16 arguments of 240 bytes");
    }
    Ok(())
}
