//! The thread that owns the connection: takes what is queued, runs it as one transaction, then answers.
//!
//! Owns group commit and what follows a failed one; never answers a write before its commit returned.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::open::Doubtful;
use super::record::Tally;
use super::store::{Counts, Effects, Store};
use super::{Condition, SpoolError, files, lease, migrate, open, read, rescue};
use crate::clock;
use crate::plant::{self, Fault};

/// Writes per transaction: enough that the fsync is shared by all who wait, few enough for one to wait little.
pub(super) const BATCH_MAX: usize = 256;
/// Commands that wait for the thread. With inline bodies of 64 KiB at most this is 16 MiB at the very worst.
pub(super) const COMMANDS_MAX: usize = 256;
/// After a burst the thread waits for its callers to come back: a quarter of the time that the batch took…
const LINGER_DIVISOR: u32 = 4;
/// …and no longer than this, so that a slow card does not slow a caller who comes alone.
const LINGER_MAX: Duration = Duration::from_millis(2);
/// How often it looks whether they are there.
const LINGER_LOOK: Duration = Duration::from_micros(100);
/// Untold endings kept for the next sweep; beyond it they are in the records only.
const TOLD_MAX: usize = 4_096;

/// Leases whose receiver went away; any thread adds, the writer takes.
pub(super) type Abandoned = Arc<Mutex<Vec<u64>>>;

/// A read and the caller who waits for it.
pub(super) type ReadJob = Box<dyn FnOnce(Result<&mut Store, SpoolError>) + Send>;

/// What the handle asks of the thread.
pub(super) enum Command {
    /// Runs inside the batch's transaction.
    Write(Box<dyn WriteJob>),
    /// Runs after the batch's commit, outside any transaction.
    Read(ReadJob),
    /// Ends the thread.
    Close(oneshot::Sender<()>),
}

/// A write that is answered later.
pub(super) trait WriteJob: Send {
    /// Does its work; where it fails, nothing of it stands.
    fn run(&mut self, store: &mut Store) -> Result<(), SpoolError>;
    /// Only a planted mistake answers before the batch's fate is known.
    fn is_hasty(&self) -> bool;
    /// Tells the caller, once the fate of the batch is known.
    fn answer(self: Box<Self>, batch: Result<(), SpoolError>);
}

/// A closure and the caller who waits for it.
pub(super) struct Job<F, T> {
    pub(super) work: Option<F>,
    pub(super) done: Option<Result<T, SpoolError>>,
    pub(super) reply: oneshot::Sender<Result<T, SpoolError>>,
    pub(super) hasty: bool,
    /// It guards itself where it has to.
    pub(super) unguarded: bool,
}

impl<F, T> WriteJob for Job<F, T>
where
    F: FnOnce(&mut Store) -> Result<T, SpoolError> + Send,
    T: Send,
{
    fn run(&mut self, store: &mut Store) -> Result<(), SpoolError> {
        let Some(work) = self.work.take() else { return Ok(()) };
        let done = if self.unguarded { store.unguarded(work) } else { store.guarded(work) };
        let verdict = done.as_ref().map(|_| ()).map_err(Clone::clone);
        self.done = Some(done);
        verdict
    }

    fn is_hasty(&self) -> bool {
        self.hasty
    }

    fn answer(self: Box<Self>, batch: Result<(), SpoolError>) {
        let answer = match (self.done, batch) {
            (Some(Err(e)), _) | (_, Err(e)) => Err(e),
            (Some(done), Ok(())) => done,
            (None, Ok(())) => Err(SpoolError::Closed),
        };
        // A caller who went away is told nothing; what it was given is given back by the value's own drop.
        let _ = self.reply.send(answer);
    }
}

/// What was waiting, sorted by what it needs.
#[derive(Default)]
struct Batch {
    writes: Vec<Box<dyn WriteJob>>,
    reads: Vec<ReadJob>,
    close: Option<oneshot::Sender<()>>,
}

/// The thread's state.
pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) tally: watch::Sender<Tally>,
    pub(super) abandoned: Abandoned,
    pub(super) commits: u64,
    pub(super) condition: watch::Sender<Condition>,
    /// For the salvage, which hands its rows back as commands.
    pub(super) sender: mpsc::WeakSender<Command>,
    /// Held for as long as the thread lives.
    pub(super) _lock: File,
    /// After a failed commit: what is known of it. Nothing is served until the file is open again.
    pub(super) broken: Option<Doubtful>,
    /// The batch before.
    pub(super) latest: Latest,
}

/// The writes of a batch that was answered.
#[derive(Default)]
pub(super) struct Latest {
    /// How many.
    writes: usize,
    /// From its first statement to its last answer.
    took: Duration,
}

impl Writer {
    /// Serves until closed or until the last handle is gone.
    pub(super) fn run(mut self) {
        while let Some(first) = self.commands.blocking_recv() {
            self.linger();
            let Batch { writes, reads, close } = self.gather(first);
            let _ = self.mend();
            let (begun, count) = (clock::now(), writes.len());
            self.write(writes);
            self.latest = Latest { writes: count, took: clock::now().duration_since(begun) };
            self.settle_files();
            self.read(reads);
            if let Some(reply) = close {
                self.finish();
                drop(self);
                let _ = reply.send(());
                return;
            }
        }
        self.finish();
    }

    /// Callers that were answered together come back together. After a batch of one nobody waits; who comes alone after a
    /// burst waits once.
    #[allow(
        clippy::disallowed_methods,
        reason = "the spool's own thread; the channel has no blocking receive with a time-out"
    )]
    fn linger(&self) {
        let until = clock::now() + (self.latest.took / LINGER_DIVISOR).min(LINGER_MAX);
        while self.commands.len() + 1 < self.latest.writes && clock::now() < until {
            std::thread::sleep(LINGER_LOOK);
        }
    }

    fn gather(&mut self, first: Command) -> Batch {
        let mut batch = Batch::default();
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Write(job) => batch.writes.push(job),
                Command::Read(job) => batch.reads.push(job),
                Command::Close(reply) => {
                    batch.close = Some(reply);
                    return batch;
                }
            }
            let more = batch.writes.len() + batch.reads.len() < BATCH_MAX;
            next = if more { self.commands.try_recv().ok() } else { None };
        }
        batch
    }

    /// One transaction for all of them.
    fn write(&mut self, jobs: Vec<Box<dyn WriteJob>>) {
        let abandoned = std::mem::take(&mut *self.abandoned.lock().unwrap_or_else(PoisonError::into_inner));
        if jobs.is_empty() && abandoned.is_empty() {
            return;
        }
        let good = self.store.counts;
        let mut batch = self.begin(&abandoned);
        let (mut waiting, mut no_room) = (Vec::with_capacity(jobs.len()), false);
        for mut job in jobs {
            if batch.is_ok() {
                let done = job.run(&mut self.store);
                no_room |= done == Err(SpoolError::DiskFull);
                if self.store.hurt || self.store.is_half_written || self.store.conn.is_autocommit() {
                    // SQLite gave the whole transaction up, the file is about to be set aside, or there is half of a write in
                    // it: nothing of it stands.
                    batch = Err(done.err().unwrap_or(SpoolError::DiskFull));
                }
            }
            if job.is_hasty() {
                job.answer(batch.clone());
            } else {
                waiting.push(job);
            }
        }
        let fate = self.end(good, batch);
        if fate.is_err() {
            self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).extend(abandoned);
        }
        if no_room && fate.is_ok() {
            self.set_condition(Condition::Full);
        }
        for job in waiting {
            job.answer(fate.clone());
        }
    }

    fn begin(&mut self, abandoned: &[u64]) -> Result<(), SpoolError> {
        if self.broken.is_some() {
            return Err(SpoolError::Storage("the spool could not be opened again after a failed write".into()));
        }
        self.store.begin_batch();
        self.store.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let given_back = self.store.guarded(|store| lease::give_back(store, abandoned));
        match given_back {
            Err(error) if self.store.conn.is_autocommit() => Err(error),
            // A lease that cannot be given back now is judged by the next start.
            _ => Ok(()),
        }
    }

    /// Commits; whatever goes wrong, nobody is told that it went well.
    fn end(&mut self, good: Counts, batch: Result<(), SpoolError>) -> Result<(), SpoolError> {
        let opened = self.broken.is_none();
        let mut done = batch.and_then(|()| self.commit());
        let fate = match &done {
            Ok(()) => {
                self.commits += 1;
                let logged = self.log_ends();
                self.publish();
                logged
            }
            Err(error) => {
                self.undo(good, error);
                done.clone()
            }
        };
        let condition = self.store.condition.after(&fate, &self.store.options.data_dir);
        self.set_condition(condition);
        // A commit that reported an error may have landed: that is asked before anybody is told.
        if opened && !self.store.hurt && self.mend() {
            done = Ok(());
        }
        done
    }

    fn commit(&mut self) -> Result<(), SpoolError> {
        self.store.counts.turn += 1;
        let saved = self.store.save();
        self.store.note(&saved);
        saved?;
        let done = self.store.conn.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([]));
        if plant::is(Fault::FsyncRetriedAfterEio) && done.is_err() {
            let log = File::open(files::wal(&self.store.options.data_dir))?;
            return Ok(log.sync_all()?);
        }
        done?;
        #[cfg(test)]
        if std::mem::take(&mut self.store.faults.commit_lies) {
            return Err(SpoolError::Storage("a planted fault".into()));
        }
        Ok(())
    }

    /// Ends go into their log after the commit and before anybody is told. What cannot be written there is kept
    /// and written with the next: the commit stands, and callers are told so.
    fn log_ends(&mut self) -> Result<(), SpoolError> {
        let store = &mut self.store;
        let lines = std::mem::take(&mut store.effects.outcomes);
        store.rescue.learn(&lines);
        let done = store.outcomes.append(&lines, store.powered.now_ms());
        if let Err(error) = &done {
            tracing::warn!(%error, "the outcome log could not be written; it is tried again");
        }
        done
    }

    fn set_condition(&mut self, to: Condition) {
        if std::mem::replace(&mut self.store.condition, to) != to {
            let kind = to.kind();
            tracing::warn!(HOLDFAST_REASON = kind, "the spool's storage is {kind} now");
        }
        self.condition.send_if_modified(|now| std::mem::replace(now, to) != to);
    }

    /// A full disk leaves a transaction that can be rolled back; after anything else the file is opened anew.
    fn undo(&mut self, good: Counts, error: &SpoolError) {
        self.store.forget_batch();
        let effects = std::mem::take(&mut self.store.effects);
        let turn = std::mem::replace(&mut self.store.counts, good).turn;
        let conn = &self.store.conn;
        let rolled_back = conn.is_autocommit() || conn.execute_batch("ROLLBACK").is_ok();
        if self.broken.is_none() && (*error != SpoolError::DiskFull || !rolled_back) {
            self.broken = Some(Doubtful { good, turn, effects, is_told: false });
        }
    }

    /// After a failed commit the connection is opened anew: an fsync that failed once must not be asked again. Says
    /// whether that commit turns out to have landed, to callers who were told nothing yet.
    fn mend(&mut self) -> bool {
        let mut landed = false;
        if !self.store.hurt {
            let Some(doubtful) = &self.broken else { return false };
            let done = open::reopen(&mut self.store, doubtful);
            self.store.note(&done);
            match done {
                Ok(has_landed) => {
                    landed = has_landed;
                    self.broken = None;
                    self.commits += u64::from(landed);
                    // Ends that landed get their line before anybody hears of them.
                    let _ = self.log_ends();
                    self.publish();
                }
                Err(_) => self.broken.iter_mut().for_each(|doubtful| doubtful.is_told = true),
            }
        }
        if self.store.hurt {
            self.start_over();
        }
        landed
    }

    /// The file is damaged: it is set aside and an empty one takes its place, so that new work goes on.
    fn start_over(&mut self) {
        tracing::error!("the spool's database is damaged: it is set aside and what can be read is salvaged");
        match open::start_over(&mut self.store) {
            Ok(()) => {
                (self.store.hurt, self.broken) = (false, None);
                self.publish();
                rescue::start(&mut self.store, self.sender.clone());
            }
            Err(error) => {
                tracing::error!(%error, "no new database could be made; it is tried again");
                let (good, effects) = (self.store.counts, Effects::default());
                self.broken = Some(Doubtful { good, turn: good.turn, effects, is_told: true });
            }
        }
    }

    fn publish(&mut self) {
        let store = &mut self.store;
        store.lanes.stand();
        store.held.extend(store.effects.held.drain(..));
        for seq in store.effects.freed.drain(..) {
            store.held.remove(&seq);
            store.unheard.remove(&seq);
        }
        store.effects.accepted.clear();
        store.effects.settled.clear();
        let room = TOLD_MAX.saturating_sub(store.told.len());
        store.told.extend(store.effects.notices.drain(..).take(room));
        if let Ok(tally) = read::tally(store, self.commits) {
            self.tally.send_replace(tally);
        }
    }

    /// Removes what no row names any more, after the callers were answered.
    fn settle_files(&mut self) {
        for name in self.store.effects.unlink.drain(..) {
            files::remove(&self.store.options.data_dir, &name);
        }
    }

    fn read(&mut self, jobs: Vec<ReadJob>) {
        for job in jobs {
            match self.broken {
                None => job(Ok(&mut self.store)),
                Some(_) => job(Err(SpoolError::Storage("the spool could not be opened again".into()))),
            }
        }
    }

    /// Stores the clock and folds the WAL in; what fails here is made good by the next start.
    fn finish(&mut self) {
        self.commands.close();
        if self.broken.is_none() && !self.store.hurt {
            let _ = self.store.save();
            let folded = open::checkpoint(&self.store.conn);
            if folded.is_ok() {
                let _ = migrate::forget(&files::database(&self.store.options.data_dir));
            }
        }
    }
}
