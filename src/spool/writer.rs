//! The thread that owns the connection: takes what is queued, runs it as one transaction, then answers.
//!
//! Owns group commit and what follows a failed one; never answers a write before its commit returned.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};

use super::record::Tally;
use super::store::{Counts, Effects, Store};
use super::{SpoolError, files, lease, migrate, open, read};
use crate::plant::{self, Fault};

/// Writes per transaction: enough that the fsync is shared by all who wait, few enough for one to wait little.
pub(super) const BATCH_MAX: usize = 256;
/// Commands that wait for the thread. With inline bodies of 64 KiB at most this is 16 MiB at the very worst.
pub(super) const COMMANDS_MAX: usize = 256;
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
    /// Does its work, guarded by a savepoint.
    fn run(&mut self, store: &mut Store) -> Result<(), SpoolError>;
    /// Tells the caller, once the fate of the batch is known.
    fn answer(self: Box<Self>, batch: Result<(), SpoolError>);
}

/// A closure and the caller who waits for it.
pub(super) struct Job<F, T> {
    pub(super) work: Option<F>,
    pub(super) done: Option<Result<T, SpoolError>>,
    pub(super) reply: oneshot::Sender<Result<T, SpoolError>>,
}

impl<F, T> WriteJob for Job<F, T>
where
    F: FnOnce(&mut Store) -> Result<T, SpoolError> + Send,
    T: Send,
{
    fn run(&mut self, store: &mut Store) -> Result<(), SpoolError> {
        let Some(work) = self.work.take() else { return Ok(()) };
        let done = store.guarded(work);
        let verdict = done.as_ref().map(|_| ()).map_err(Clone::clone);
        self.done = Some(done);
        verdict
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
    /// Held for as long as the thread lives.
    pub(super) _lock: File,
    /// After a failed commit: the counters of the last good one. Nothing is served until the file is open again.
    pub(super) broken: Option<Counts>,
}

impl Writer {
    /// Serves until closed or until the last handle is gone.
    pub(super) fn run(mut self) {
        while let Some(first) = self.commands.blocking_recv() {
            let Batch { writes, reads, close } = self.gather(first);
            self.mend();
            self.write(writes);
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
        let mut waiting = Vec::with_capacity(jobs.len());
        for mut job in jobs {
            if batch.is_ok() {
                let done = job.run(&mut self.store);
                if self.store.conn.is_autocommit() {
                    // SQLite gave the whole transaction up: nothing of it stands.
                    batch = Err(done.err().unwrap_or(SpoolError::DiskFull));
                }
            }
            waiting.push(job);
        }
        let early = plant::is(Fault::AckBeforeCommit)
            || plant::is(Fault::SendingNotSynced) && !self.store.effects.held.is_empty();
        if early && batch.is_ok() {
            waiting.drain(..).for_each(|job: Box<dyn WriteJob>| job.answer(Ok(())));
        }
        let fate = self.end(good, batch);
        for job in waiting {
            job.answer(fate.clone());
        }
    }

    fn begin(&mut self, abandoned: &[u64]) -> Result<(), SpoolError> {
        if self.broken.is_some() {
            return Err(SpoolError::Storage("the spool could not be opened again after a failed write".into()));
        }
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
        let done = batch.and_then(|()| self.commit());
        match &done {
            Ok(()) => {
                self.commits += 1;
                self.publish();
            }
            Err(error) => self.undo(good, error),
        }
        done
    }

    fn commit(&mut self) -> Result<(), SpoolError> {
        self.store.save()?;
        self.store.conn.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// A full disk leaves a transaction that can be rolled back; after anything else the file is opened anew.
    fn undo(&mut self, good: Counts, error: &SpoolError) {
        self.store.effects = Effects::default();
        self.store.counts = good;
        let conn = &self.store.conn;
        let rolled_back = conn.is_autocommit() || conn.execute_batch("ROLLBACK").is_ok();
        if self.broken.is_none() && (*error != SpoolError::DiskFull || !rolled_back) {
            self.broken = Some(good);
        }
    }

    /// After a failed commit the connection is opened anew: an fsync that failed once must not be asked again.
    fn mend(&mut self) {
        let Some(good) = self.broken else { return };
        if open::reopen(&mut self.store, good).is_ok() {
            self.broken = None;
            self.publish();
        }
    }

    fn publish(&mut self) {
        let store = &mut self.store;
        store.held.extend(store.effects.held.drain(..));
        for seq in store.effects.freed.drain(..) {
            store.held.remove(&seq);
        }
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
        if self.broken.is_none() {
            let _ = self.store.save();
            let folded = open::checkpoint(&self.store.conn);
            if folded.is_ok() {
                let _ = migrate::forget(&files::database(&self.store.options.data_dir));
            }
        }
    }
}
