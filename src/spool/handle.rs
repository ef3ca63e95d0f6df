//! The handle everybody else holds: sends commands to the thread and waits.
//!
//! Owns the work that must not happen on the writer thread: writing, reading and hashing large bodies.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::files::{self, INLINE_MAX, Staged};
use super::lease::Drawn;
use super::powered::Powered;
use super::read::Stored;
use super::record::{Accepted, Filter, Leased, LocalAnswer, NewRequest, Record, Settlement, Tally};
use super::store::{DAMAGED, Store};
use super::writer::{Abandoned, Command, Job};
use super::{
    Condition, Options, SpoolError, accept, change, lease, open, quarantine, read, scrub, settle, shrink, sweep,
};
use crate::body::{Bodies, Body};
use crate::control::types::State;
use crate::plant::{self, Fault};

/// What a whole step of a purge may write: the longest bodies and answers that rows hold.
const PURGE_ROOM: u64 = 2 * change::PURGE_MAX as u64 * INLINE_MAX as u64;
/// The step where there is less: half a megabyte.
const PURGE_STEP_TIGHT: u32 = 4;

/// The spool's handle; clones share one thread, which ends with the last of them.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

struct Inner {
    commands: Option<mpsc::Sender<Command>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    seen: Seen,
    abandoned: Abandoned,
    options: Arc<Options>,
    powered: Powered,
    bodies: Bodies,
}

/// What the thread shows without being asked.
pub(super) struct Seen {
    pub(super) tally: watch::Receiver<Tally>,
    pub(super) condition: watch::Receiver<Condition>,
}

impl Drop for Inner {
    /// Waits for the thread, so that whoever opens the folder next finds it free.
    fn drop(&mut self) {
        self.commands = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").field("data_dir", &self.inner.options.data_dir).finish_non_exhaustive()
    }
}

/// Leases on their way to a caller; what never arrives is given back.
struct Handed {
    seqs: Vec<u64>,
    to: Abandoned,
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.to.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.seqs);
    }
}

impl Spool {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        thread: JoinHandle<()>,
        seen: Seen,
        abandoned: Abandoned,
        options: Arc<Options>,
        powered: Powered,
        starts: u64,
    ) -> Spool {
        let thread = Mutex::new(Some(thread));
        let bodies = Bodies::new(files::bodies(&options.data_dir), starts, options.min_disk_free);
        let commands = Some(commands);
        Spool { inner: Arc::new(Inner { commands, thread, seen, abandoned, options, powered, bodies }) }
    }

    /// Where the bodies of requests go while they come in, so that storing one never copies its file.
    pub fn bodies(&self) -> &Bodies {
        &self.inner.bodies
    }

    /// Makes a request durable. Returns after the fsync, and only then may anybody be told.
    pub async fn accept(&self, new: NewRequest) -> Result<Accepted, SpoolError> {
        let file = self.stage(&new.body).await?;
        let to = self.inner.abandoned.clone();
        let hasty =
            plant::is(Fault::AckBeforeCommit) || (new.device.is_some() && plant::is(Fault::LinkAckBeforeCommit));
        let work = move |store: &mut Store| {
            let accepted = accept::accept(store, &new, file)?;
            let leased = new.leased && !accepted.existing;
            let seqs = if leased { vec![accepted.seq] } else { Vec::new() };
            Ok((accepted, Handed { seqs, to }))
        };
        let (accepted, mut handed) = self.submit(work, hasty, true).await?;
        handed.seqs.clear();
        Ok(accepted)
    }

    /// The request that this one's key stands for, should there be one; stores nothing.
    pub async fn find_keyed(&self, new: NewRequest) -> Result<Option<Accepted>, SpoolError> {
        new.body.hashed().await?;
        self.read(move |store| accept::find_keyed(store, &new)).await
    }

    /// Hands out up to `max` requests in order; each is `sending` on disk before this returns. Where the caller
    /// goes away meanwhile, they are given back.
    pub async fn lease(&self, max: u32) -> Result<Vec<Leased>, SpoolError> {
        self.lease_around(max, &[], None).await
    }

    /// The same, leaving out requests of these models, and with at most so many that may have been billed.
    pub async fn lease_around(
        &self,
        max: u32,
        except: &[String],
        labelled: Option<u32>,
    ) -> Result<Vec<Leased>, SpoolError> {
        let except = (!except.is_empty()).then(|| serde_json::json!(except).to_string());
        // The mark `sending` needs room too, and what is finished gives more back.
        let (drawn, mut handed) = self
            .with_ballast(|| {
                let (except, to) = (except.clone(), self.inner.abandoned.clone());
                self.write_as(
                    move |store| {
                        let drawn = lease::lease(store, max, except.as_deref(), labelled)?;
                        let seqs = drawn.iter().map(|d| d.leased.seq).collect();
                        Ok((drawn, Handed { seqs, to }))
                    },
                    plant::is(Fault::SendingNotSynced) || plant::is(Fault::AckBeforeCommit),
                )
            })
            .await?;
        let options = self.inner.options.clone();
        let (whole, damaged) = blocking(move || verify(&options, drawn)).await??;
        if !damaged.is_empty() {
            self.write(move |store| lease::damaged(store, &damaged)).await?;
        }
        handed.seqs.clear();
        Ok(whole)
    }

    /// Ends a lease. A request that is not being sent is left as it is, without an error.
    pub async fn settle(&self, seq: u64, s: Settlement) -> Result<(), SpoolError> {
        let how = shortened(s).await?;
        self.with_ballast(|| async {
            let how = how.clone();
            let file = match &how {
                Settlement::Answered(answer) => self.stage(&answer.body).await?,
                _ => None,
            };
            self.write(move |store| settle::settle(store, seq, &how, file)).await
        })
        .await
    }

    /// Makes deferred requests offerable again.
    pub async fn release(&self, seqs: Vec<u64>) -> Result<(), SpoolError> {
        self.with_ballast(|| {
            let seqs = seqs.clone();
            self.write(move |store| change::release(store, &seqs))
        })
        .await
    }

    /// Keeps the local model's answer, in whatever state the request is.
    pub async fn record_local(&self, seq: u64, answer: LocalAnswer) -> Result<(), SpoolError> {
        self.with_ballast(|| async {
            let (answer, file) = (answer.clone(), self.stage(&answer.body.clone().into()).await?);
            self.write(move |store| settle::record_local(store, seq, &answer, file)).await
        })
        .await
    }

    /// One request with its answers.
    pub async fn get(&self, id: String) -> Result<Option<Record>, SpoolError> {
        let (asked, again) = (id.clone(), id);
        let mut found = self.read(move |store| read::get(store, &asked)).await?;
        if let Some(wrong) = found.as_ref().and_then(read::Found::wrong) {
            self.write(move |store| scrub::set_right(store, &wrong)).await?;
            found = self.read(move |store| read::get_mended(store, &again)).await?;
        }
        let Some(found) = found else { return Ok(None) };
        let options = self.inner.options.clone();
        let (mut record, is_unreadable) = blocking(move || with_answers(&options, found)).await??;
        if is_unreadable {
            self.tell_unreadable(&mut record).await?;
        }
        Ok(Some(record))
    }

    /// Puts on record that an answer is lost. Where no other is left, that is an error and not a record without an answer.
    async fn tell_unreadable(&self, record: &mut Record) -> Result<(), SpoolError> {
        let seq = record.seq;
        if record.state.is_final() && record.reason.as_deref() != Some(DAMAGED) {
            match self.write(move |store| scrub::tell_unreadable(store, seq)).await {
                // A better copy may be on its way.
                Err(SpoolError::Salvaging) => return Err(SpoolError::Salvaging),
                Err(error) => tracing::debug!(%error, seq, "a lost answer could not be put on record"),
                Ok(()) => {}
            }
            record.reason = Some(DAMAGED.to_owned());
        }
        if record.local.is_none() && record.uplink.is_none() { Err(SpoolError::Unreadable) } else { Ok(()) }
    }

    /// Whether a request has the local model's answer; opens no file.
    pub async fn has_local_answer(&self, id: String) -> Result<bool, SpoolError> {
        let found = self.read(move |store| read::get(store, &id)).await?;
        Ok(found.is_some_and(|found| found.local.is_some()))
    }

    /// Where a request stands, `None` for an unknown id; opens no file.
    pub async fn state(&self, id: String) -> Result<Option<State>, SpoolError> {
        Ok(self.read(move |store| read::get(store, &id)).await?.map(|found| found.record.state))
    }

    /// The request's own body, while it is kept.
    pub async fn body(&self, id: String) -> Result<Option<Bytes>, SpoolError> {
        let Some(stored) = self.read(move |store| read::body(store, &id)).await? else { return Ok(None) };
        let options = self.inner.options.clone();
        blocking(move || fetch(&options, stored).map(Some)).await?
    }

    /// Records by ascending sequence number, without the answers' bytes.
    pub async fn list(&self, filter: Filter) -> Result<Vec<Record>, SpoolError> {
        self.read(move |store| read::list(store, &filter)).await
    }

    /// Cancels what is not being sent; returns where the request stands then and whether this changed it, `None` for an
    /// unknown id.
    pub async fn cancel(&self, id: String) -> Result<Option<(State, bool)>, SpoolError> {
        self.with_ballast(|| {
            let id = id.clone();
            self.write(move |store| change::cancel(store, &id))
        })
        .await
    }

    /// Queues a failed request once more while its body is kept; returns where it stands then and whether this changed it.
    pub async fn retry(&self, id: String) -> Result<Option<(State, bool)>, SpoolError> {
        self.write(move |store| change::retry(store, &id)).await
    }

    /// Deletes all records of one final state, in steps; returns how many.
    pub async fn purge(&self, state: State) -> Result<u64, SpoolError> {
        let mut total = 0;
        loop {
            // What is deleted is overwritten, which goes through the log: on a disk that is nearly full less at once, into an empty log.
            let is_tight = self.read(|store| Ok(files::free_bytes(&store.options.data_dir)? < PURGE_ROOM)).await?;
            let step = if is_tight { PURGE_STEP_TIGHT } else { change::PURGE_MAX };
            if is_tight && let Err(error) = self.read(|store| open::checkpoint(&store.conn)).await {
                tracing::debug!(%error, "the log could not be folded in before a purge");
            }
            let gone = self.with_ballast(|| self.write(move |store| change::purge(store, state, step))).await?;
            total += gone;
            if gone < u64::from(step) {
                return Ok(total);
            }
        }
    }

    /// Deletes the record of one request that is over; false where there is none, or it is not over.
    pub async fn forget(&self, id: String) -> Result<bool, SpoolError> {
        self.with_ballast(|| {
            let id = id.clone();
            self.write(move |store| change::forget(store, &id))
        })
        .await
    }

    /// One bounded step of what time takes away; returns every request that ended by itself since the last
    /// call: expired, evicted, damaged, or dead because an earlier process died while sending it.
    pub async fn sweep(&self) -> Result<Vec<(u64, String, State)>, SpoolError> {
        if self.condition() != Condition::Fine {
            // Its failure is the condition itself, which stays; the rest of a sweep goes on.
            let _ = self.write(sweep::probe).await;
        }
        let due = self.read(|store| sweep::is_due(store)).await?;
        if due {
            self.with_ballast(|| self.write(sweep::sweep)).await?;
        }
        let wrong = self.read(scrub::step).await?;
        if wrong.sources || !wrong.seqs.is_empty() {
            self.write(move |store| scrub::set_right(store, &wrong)).await?;
        }
        let (options, now) = (self.inner.options.clone(), self.powered_ms());
        blocking(move || quarantine::expire(&options.data_dir, now, options.keep_results_ms)).await?;
        // One call for all of it: each wakes the spool's thread.
        self.read(|store| {
            sweep::orphans(store)?;
            let floor = store.options.min_disk_free;
            store.ballast.make(floor);
            match shrink::step(store) {
                Err(error @ SpoolError::Damaged(_)) => return Err(error),
                // Its next try is a moment away, and that the disk is full has been said.
                Err(error) => tracing::debug!(%error, "the spool's file could not give room back"),
                Ok(()) => {}
            }
            Ok(std::mem::take(&mut store.told))
        })
        .await
    }

    /// Requests accepted in the last `newer_than_ms` powered-on milliseconds whose answer was perhaps never
    /// handed over: source, body hash, id; newest first.
    pub async fn attachable(
        &self,
        newer_than_ms: u64,
        limit: u32,
    ) -> Result<Vec<(String, [u8; 32], String)>, SpoolError> {
        self.read(move |store| read::attachable(store, newer_than_ms, limit)).await
    }

    /// The counters as of the latest commit; asks nobody.
    pub fn tally(&self) -> Tally {
        self.inner.seen.tally.borrow().clone()
    }

    /// Changes after each commit.
    pub fn watch(&self) -> watch::Receiver<Tally> {
        self.inner.seen.tally.clone()
    }

    /// What the storage can do now; asks nobody.
    pub fn condition(&self) -> Condition {
        *self.inner.seen.condition.borrow()
    }

    /// Now, in milliseconds of powered-on time.
    pub fn powered_ms(&self) -> u64 {
        self.inner.powered.now_ms()
    }

    /// A small committed write: proof that the disk still takes them.
    pub async fn commit_probe(&self) -> Result<(), SpoolError> {
        self.write(|_| Ok(())).await
    }

    /// Waits until everything that was set aside is read; false where some of it must wait for the next start.
    pub async fn salvaged(&self) -> Result<bool, SpoolError> {
        let (ended, end) = oneshot::channel();
        self.read(move |store| {
            store.rescue.tell(ended);
            Ok(())
        })
        .await?;
        end.await.map_err(|_| SpoolError::Closed)
    }

    /// Folds the log in and ends the thread. Leases stay as they are: the next start judges them.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.send(Command::Close(reply)).await.is_ok() {
            let _ = closed.await;
        }
    }

    /// Large bytes become a durable file first, off the writer thread.
    pub(super) async fn stage(&self, body: &Body) -> Result<Option<Staged>, SpoolError> {
        // It goes into the row: ready before the spool's thread asks for it.
        body.hashed().await?;
        if body.len() <= INLINE_MAX as u64 && body.in_one_piece().is_some() {
            return Ok(None);
        }
        Ok(Some(Staged(self.inner.bodies.durable(body).await?)))
    }

    /// For what must find room on a full disk: an outcome, a deletion. Tried once more after the ballast is gone.
    pub(super) async fn with_ballast<T, F>(&self, work: impl Fn() -> F) -> Result<T, SpoolError>
    where
        F: Future<Output = Result<T, SpoolError>>,
    {
        match work().await {
            Err(SpoolError::DiskFull) if self.read(|store| Ok(store.give_up_ballast())).await? => work().await,
            done => done,
        }
    }

    async fn send(&self, command: Command) -> Result<(), SpoolError> {
        let commands = self.inner.commands.as_ref().ok_or(SpoolError::Closed)?;
        commands.send(command).await.map_err(|_| SpoolError::Closed)
    }

    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        self.write_as(work, plant::is(Fault::AckBeforeCommit)).await
    }

    /// `hasty`: answered before the commit, which only a planted mistake wants.
    pub(super) async fn write_as<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, SpoolError> + Send + 'static,
        hasty: bool,
    ) -> Result<T, SpoolError> {
        self.submit(work, hasty, false).await
    }

    /// `unguarded`: it guards itself where it has to.
    async fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, SpoolError> + Send + 'static,
        hasty: bool,
        unguarded: bool,
    ) -> Result<T, SpoolError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { work: Some(work), done: None, reply, hasty, unguarded };
        self.send(Command::Write(Box::new(job))).await?;
        answer.await.map_err(|_| SpoolError::Closed)?
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Read(Box::new(move |store| {
            let _ = reply.send(store.and_then(|store| {
                let done = work(store);
                store.note(&done);
                done
            }));
        })))
        .await?;
        answer.await.map_err(|_| SpoolError::Closed)?
    }

    #[cfg(test)]
    pub(super) async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        self.read(work).await
    }

    #[cfg(test)]
    pub(super) async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        self.write(work).await
    }

    /// Makes the COMMIT of its batch fail, as a failed fsync would: a deferred constraint is broken.
    #[cfg(test)]
    pub(super) async fn fail_commit(&self) -> Result<(), SpoolError> {
        let text = "PRAGMA defer_foreign_keys=ON; INSERT INTO body VALUES (999999999, x'00')";
        self.write(move |store| Ok(store.conn.execute_batch(text)?)).await
    }

    /// As if this request were handed out and its row were on its way back from a damaged file, or no more.
    #[cfg(test)]
    pub(crate) async fn pretend_salvage(&self, seq: u64, is_under_way: bool) {
        let pretended = self.read(move |store| {
            store.held.insert(seq);
            store.rescue.pretend(is_under_way);
            Ok(())
        });
        pretended.await.unwrap();
    }

    /// Ends the batch's transaction as SQLite itself does when the disk is full.
    #[cfg(test)]
    pub(super) async fn give_up(&self) -> Result<(), SpoolError> {
        self.write(|store| {
            store.conn.execute_batch("ROLLBACK")?;
            Err(SpoolError::DiskFull)
        })
        .await
    }

    #[cfg(test)]
    pub(super) fn advance(&self, ms: u64) {
        self.inner.powered.advance(ms);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SpoolError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| SpoolError::Storage(e.to_string()))
}

/// Reads the bodies that are files and checks every body against its checksum.
fn verify(options: &Options, drawn: Vec<Drawn>) -> Result<(Vec<Leased>, Vec<u64>), SpoolError> {
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for mut one in drawn {
        if let Some(name) = &one.file {
            one.leased.body = files::open_body(&options.data_dir, name)?.unwrap_or_default();
        }
        if one.leased.body.hash() == one.body_hash {
            whole.push(one.leased);
        } else {
            damaged.push(one.leased.seq);
        }
    }
    Ok((whole, damaged))
}

/// A record with the bytes of its answers, and whether one cannot be read: that costs the other nothing.
fn with_answers(options: &Options, found: read::Found) -> Result<(Record, bool), SpoolError> {
    let read::Found { mut record, local, uplink, .. } = found;
    let mut is_unreadable = false;
    if let (Some((answer, _)), Some(stored)) = (&mut record.local, local) {
        match fetch(options, stored) {
            Ok(body) => answer.body = body,
            Err(SpoolError::Unreadable) => (record.local, is_unreadable) = (None, true),
            Err(error) => return Err(error),
        }
    }
    if let (Some((answer, _)), Some(stored)) = (&mut record.uplink, uplink) {
        match fetch_body(options, stored) {
            Ok(body) => answer.body = body,
            Err(SpoolError::Unreadable) => (record.uplink, is_unreadable) = (None, true),
            Err(error) => return Err(error),
        }
    }
    Ok((record, is_unreadable))
}

fn fetch(options: &Options, stored: Stored) -> Result<Bytes, SpoolError> {
    let bytes = match stored.file {
        Some(name) => files::read(&options.data_dir, &name)?,
        None => stored.inline.map(Bytes::from),
    };
    match bytes {
        Some(bytes) if files::hash(&bytes)[..] == stored.hash[..] => Ok(bytes),
        _ => Err(SpoolError::Unreadable),
    }
}

/// The same without reading a file into memory: it stays open as long as somebody reads it.
fn fetch_body(options: &Options, stored: Stored) -> Result<Body, SpoolError> {
    let body = match stored.file {
        Some(name) => files::open_body(&options.data_dir, &name)?,
        None => stored.inline.map(Body::from),
    };
    match body {
        Some(body) if body.hash()[..] == stored.hash[..] => Ok(body),
        _ => Err(SpoolError::Unreadable),
    }
}

/// A refusal's words, and what came of a cut answer, are kept up to [`settle::REFUSAL_MAX`].
async fn shortened(mut s: Settlement) -> Result<Settlement, SpoolError> {
    if let Settlement::Dead { answer: Some(answer), .. } | Settlement::Requeue { came: Some(answer), .. } = &mut s {
        answer.body = answer.body.start_off_thread(settle::REFUSAL_MAX).await?.into();
    }
    Ok(s)
}
