//! Bringing back what a damaged spool still holds, beside the running service.
//!
//! Owns the thread that reads a set and hands its rows to the writer in small batches; never writes the database
//! itself and never holds new work up.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::adopt::{self, Adopted, InDoubt, LostRow, SalvagedBody, SalvagedRow};
use super::behind::Behind;
use super::codes::num;
use super::outcomes::{self, Known, Line};
use super::salvage::{Body, Found, Lost, Mark, Report, Salvage};
use super::store::Store;
use super::writer::{Command, Job};
use super::{SpoolError, marks, open, quarantine};

/// Marks of devices that are kept in memory while several sets are read, about 10 MiB.
const MARKS_KEPT: usize = if cfg!(test) { 1 } else { 65_536 };
/// Rows per transaction: new work waits behind one batch only.
const BATCH: usize = 64;
/// A salvage that the disk stopped is tried again after this: room is made by people.
const RETRY: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_mins(1) };

/// So often a log of which the disk gives nothing is tried, before its requests go on without what it said.
const LOG_TRIES: u32 = if cfg!(test) { 50 } else { 10 };

fn row(found: Found) -> SalvagedRow {
    let body = match found.body {
        Body::NotKept => SalvagedBody::NotKept,
        Body::Inline(bytes) => SalvagedBody::Inline(bytes),
        Body::File(_) => SalvagedBody::File,
        Body::Lost(_) => SalvagedBody::Lost,
    };
    SalvagedRow {
        values: found.values,
        version: num(found.version),
        superseded: found.superseded,
        is_doubtful: found.is_doubtful,
        source: found.source,
        body,
        answers: found.answers.into_iter().map(|answer| answer.values).collect(),
    }
}

/// What is known while sets wait to be salvaged.
#[derive(Debug, Default)]
pub(super) struct Rescue {
    /// The outcome log, read while there is something to ask it for.
    known: Option<Known>,
    /// Bodies may belong to rows that are not back yet.
    under_way: bool,
    /// Requests that nobody may change until the salvage has spoken.
    pub(super) behind: Behind,
    /// Who waits for the end of the salvage.
    waiting: Vec<oneshot::Sender<bool>>,
    /// The database in place is a new one that was never served from: should it fail, it may simply go.
    pub(super) is_unused: bool,
}

impl Rescue {
    /// Before anything of an earlier process is judged: what of it must wait.
    pub(super) fn before(data_dir: &Path, next_seq: u64) -> Rescue {
        Rescue { behind: Behind::find(&quarantine::due(data_dir), next_seq), ..Rescue::default() }
    }

    /// As if it were so.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, is_under_way: bool) {
        self.under_way = is_under_way;
    }

    /// Whether rows are still to come back.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Tells at the end of the salvage whether all of it was read; at once where there is none.
    pub(super) fn tell(&mut self, to: oneshot::Sender<bool>) {
        if self.under_way {
            self.waiting.push(to);
        } else {
            let _ = to.send(true);
        }
    }

    /// The salvage stopped and is tried again: until then nothing is handed out that it may have to label.
    fn stopped(&mut self) {
        for to in self.waiting.drain(..) {
            let _ = to.send(false);
        }
    }

    /// All of it was read.
    fn end(&mut self) {
        for to in self.waiting.drain(..) {
            let _ = to.send(true);
        }
        *self = Rescue::default();
    }

    /// Adds lines written since.
    pub(super) fn learn(&mut self, lines: &[Line]) {
        if let Some(known) = &mut self.known {
            known.learn(lines);
        }
    }

    /// The outcome log.
    pub(super) fn known(&mut self, data_dir: &Path) -> &Known {
        self.known.get_or_insert_with(|| outcomes::read(data_dir))
    }
}

/// Starts the salvage of every set that is due, on a thread of its own.
pub(super) fn start(store: &mut Store, commands: mpsc::WeakSender<Command>) {
    let data_dir = store.options.data_dir.clone();
    let sets = quarantine::due(&data_dir);
    if sets.is_empty() || store.rescue.under_way {
        return;
    }
    store.rescue.under_way = true;
    if store.rescue.behind.is_empty() {
        store.rescue.behind = Behind::find(&sets, store.counts.next_seq);
    }
    let work = move || {
        if !salvage_all(&data_dir, &commands) || !orphans(&commands) {
            return;
        }
        over(&commands);
    };
    if let Err(error) = std::thread::Builder::new().name("salvage".into()).spawn(work) {
        tracing::error!(%error, "the salvage could not be started; the next start tries again");
        store.rescue.under_way = false;
    }
}

/// Judges what the start had to leave on its way; false where the service ends before. Only after its commit is anything
/// no longer held back.
#[allow(clippy::disallowed_methods, reason = "a thread of its own that waits for the disk to become well")]
fn orphans(commands: &mpsc::WeakSender<Command>) -> bool {
    loop {
        let done = send(commands, |store| {
            let behind = std::mem::take(&mut store.rescue.behind);
            let done = open::settle_orphans(store);
            store.rescue.behind = behind;
            done
        });
        match done {
            Ok(()) => return true,
            Err(SpoolError::Closed) => return false,
            Err(error) => {
                tracing::error!(%error, "what was being sent cannot be judged; it is tried again in a minute");
            }
        }
        std::thread::sleep(RETRY);
    }
}

/// Says that nothing is under way any more, and begins again where a set was made meanwhile.
#[allow(clippy::disallowed_methods, reason = "a thread of its own that waits for the disk to become well")]
fn over(commands: &mpsc::WeakSender<Command>) {
    loop {
        let again = commands.clone();
        let done = send(commands, move |store| {
            store.rescue.end();
            start(store, again);
            Ok(())
        });
        if matches!(done, Ok(()) | Err(SpoolError::Closed)) {
            return;
        }
        std::thread::sleep(RETRY);
    }
}

/// Reads every set, again and again where the disk does not let it; false where the service ends before.
#[allow(clippy::disallowed_methods, reason = "a thread of its own that waits for the disk to become well")]
fn salvage_all(data_dir: &Path, commands: &mpsc::WeakSender<Command>) -> bool {
    let mut tries = 0;
    loop {
        tries += 1;
        if in_turn(&in_order(quarantine::due(data_dir)), data_dir, tries, commands) {
            return true;
        }
        let told = send(commands, |store| {
            store.rescue.stopped();
            Ok(())
        });
        if matches!(told, Err(SpoolError::Closed)) {
            return false;
        }
        std::thread::sleep(RETRY);
    }
}

/// Whole ones first: an excerpt names bodies that only its database has. Of these the newest first: between two damages
/// a request may have gone on, and what an older set says of it must not be handed out before the newer one was read.
pub(super) fn in_order(mut sets: Vec<PathBuf>) -> Vec<PathBuf> {
    sets.sort_by_key(|set| (quarantine::is_excerpt(set), Reverse(quarantine::number(set))));
    sets
}

/// The rows of all sets, then what is only a name in them: an older set may have a row of which the newer has no more.
fn in_turn(sets: &[PathBuf], data_dir: &Path, tries: u32, commands: &mpsc::WeakSender<Command>) -> bool {
    let mut read: Vec<Remains> = Vec::with_capacity(sets.len());
    for set in sets {
        match rows_back(set, data_dir, tries, &read, commands) {
            Ok(remains) => read.push(remains),
            Err(error) => return stop(set, &error),
        }
    }
    for remains in read {
        let set = remains.set.clone();
        match names_back(remains, data_dir, commands) {
            Ok(rows) => {
                tracing::warn!(set = %set.display(), adopted = rows.adopted, known = rows.known, ended = rows.ended,
                    refused = rows.refused, "a damaged spool was salvaged; its report lies beside it");
            }
            Err(error) => return stop(&set, &error),
        }
    }
    true
}

fn stop(set: &Path, error: &SpoolError) -> bool {
    tracing::error!(%error, set = %set.display(), "the salvage stopped; it is tried again in a minute");
    false
}

/// What is left to do with a set whose rows are back.
struct Remains {
    set: PathBuf,
    rows: Rows,
    report: Report,
    /// Requests that are lost but for their names.
    lost: Vec<LostRow>,
    /// What devices rely on beside their requests: after these, which may say more. `None` where other sets' marks take
    /// all the memory there is for them: then they are read again when their turn comes.
    marks: Option<Vec<Mark>>,
    /// Requests that may have been on their way.
    in_doubt: Vec<u64>,
    lacks_its_log: bool,
}

impl Remains {
    /// Whether a newer copy of this row stood in this set and is lost.
    fn outdates(&self, set: &Path, row: &SalvagedRow) -> bool {
        let is_newer = quarantine::number(&self.set) > quarantine::number(set);
        is_newer && self.lost.binary_search_by_key(&row.seq(), |lost| lost.seq).is_ok()
    }
}

/// What became of a set's rows.
#[derive(Debug, Default)]
struct Rows {
    adopted: u64,
    known: u64,
    ended: u64,
    refused: u64,
}

impl Rows {
    fn count(&mut self, verdicts: Vec<Option<Adopted>>) {
        for verdict in verdicts {
            match verdict {
                Some(Adopted::Inserted | Adopted::Updated) => self.adopted += 1,
                Some(Adopted::Known) => self.known += 1,
                Some(Adopted::Ended) => self.ended += 1,
                None => self.refused += 1,
            }
        }
    }
}

/// Requests that are lost but for their names, by number.
fn lost(report: &Report) -> Vec<LostRow> {
    let whole = report.lost.iter().filter(|lost| lost.what == "request");
    let row = |lost: &Lost| {
        let Lost { state, is_doubtful, .. } = *lost;
        Some(LostRow { seq: lost.seq?, id: lost.id.clone()?, state, is_doubtful })
    };
    let lost = whole.filter_map(row);
    let mut lost: Vec<LostRow> = lost.collect();
    lost.sort_by_key(|lost| lost.seq);
    lost
}

fn rows_back(
    set: &Path,
    data_dir: &Path,
    tries: u32,
    read: &[Remains],
    commands: &mpsc::WeakSender<Command>,
) -> Result<Remains, SpoolError> {
    let mut reader = Salvage::of_set(set, data_dir)?;
    if reader.lacks_its_log() && tries < LOG_TRIES {
        return Err(SpoolError::Storage("the disk gives nothing of the log".into()));
    }
    let mut rows = Rows::default();
    let to = Adopter::of(set, read, commands);
    loop {
        let batch = reader.next_batch(BATCH);
        if batch.is_empty() {
            break;
        }
        let mut batch: Vec<SalvagedRow> = batch.into_iter().map(row).collect();
        for row in &mut batch {
            // It may have been sent since.
            row.superseded |= read.iter().any(|newer| newer.outdates(set, row));
        }
        rows.count(to.adopt(batch, adopt::adopt_row, SalvagedRow::seq)?);
    }
    let lost = lost(reader.report());
    let (in_doubt, lacks_its_log) = (reader.in_doubt().to_vec(), reader.lacks_its_log());
    let (report, marks) = reader.end();
    let kept: usize = read.iter().filter_map(|newer| newer.marks.as_ref()).map(Vec::len).sum();
    let marks = (kept + marks.len() <= MARKS_KEPT).then_some(marks);
    Ok(Remains { set: set.to_owned(), rows, report, lost, marks, in_doubt, lacks_its_log })
}

/// A set's marks, read for themselves.
fn marks_of(set: &Path, data_dir: &Path) -> Result<Vec<Mark>, SpoolError> {
    let mut reader = Salvage::of_set(set, data_dir)?;
    while !reader.next_batch(BATCH).is_empty() {}
    Ok(reader.end().1)
}

/// Last, so that no name stands in the way of a row.
fn names_back(remains: Remains, data_dir: &Path, commands: &mpsc::WeakSender<Command>) -> Result<Rows, SpoolError> {
    let Remains { set, mut rows, report, lost, marks, in_doubt, lacks_its_log } = remains;
    // Whole sets are over before an excerpt's turn comes.
    let to = Adopter::of(&set, &[], commands);
    for batch in lost.chunks(BATCH) {
        rows.count(to.adopt(batch.to_vec(), adopt::adopt_lost, |lost| lost.seq)?);
    }
    let marks = match marks {
        Some(marks) => marks,
        None => marks_of(&set, data_dir)?,
    };
    for batch in marks.chunks(BATCH) {
        to.adopt(batch.to_vec(), marks::adopt_mark, |_| 0)?;
    }
    for batch in in_doubt.chunks(BATCH) {
        let batch = batch.iter().copied().map(InDoubt).collect();
        rows.count(to.adopt(batch, adopt::adopt_doubt, |seq| seq.0)?);
    }
    if lacks_its_log {
        tracing::error!(set = %set.display(), "nothing of a set's log can be read: what waits is labelled and goes on");
        while send(commands, |store| adopt::doubt_older(store, BATCH as u32))? > 0 {}
    }
    report.write(&set)?;
    let now = send(commands, |store| Ok(store.powered.now_ms()))?;
    quarantine::done(data_dir, &set, now)?;
    Ok(rows)
}

/// The way of a set's rows into the database.
struct Adopter<'a> {
    commands: &'a mpsc::WeakSender<Command>,
    is_excerpt: bool,
    /// Sets whose rows are back.
    read: Vec<PathBuf>,
}

impl Adopter<'_> {
    fn of<'a>(set: &Path, read: &[Remains], commands: &'a mpsc::WeakSender<Command>) -> Adopter<'a> {
        let read = read.iter().map(|remains| remains.set.clone()).collect();
        Adopter { commands, is_excerpt: quarantine::is_excerpt(set), read }
    }

    /// One transaction; a row that cannot be taken costs none of the others.
    fn adopt<T: Send + 'static>(
        &self,
        batch: Vec<T>,
        adopt: fn(&mut Store, &T) -> Result<Adopted, SpoolError>,
        seq: fn(&T) -> u64,
    ) -> Result<Vec<Option<Adopted>>, SpoolError> {
        let (is_excerpt, read) = (self.is_excerpt, self.read.clone());
        send(self.commands, move |store| {
            // The database of an excerpt may be set aside itself at any time: then it has to be back first.
            let before = if is_excerpt { quarantine::due(&store.options.data_dir) } else { Vec::new() };
            if before.iter().any(|set| !quarantine::is_excerpt(set) && !read.contains(set)) {
                return Err(SpoolError::Storage("another set has to be salvaged before this one".into()));
            }
            let mut verdicts = Vec::with_capacity(batch.len());
            for row in &batch {
                let adopted = store.nested(|store| adopt(store, row));
                match adopted {
                    Ok(verdict) => verdicts.push(Some(verdict)),
                    // No room is no reason to lose the rest: the whole batch is tried again by the next start.
                    Err(error @ (SpoolError::DiskFull | SpoolError::Busy)) => return Err(error),
                    Err(error) => {
                        tracing::error!(%error, seq = seq(row), "a salvaged row could not be taken back");
                        verdicts.push(None);
                    }
                }
            }
            Ok(verdicts)
        })
    }
}

fn send<T: Send + 'static>(
    commands: &mpsc::WeakSender<Command>,
    work: impl FnOnce(&mut Store) -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, SpoolError> {
    let (reply, answer) = oneshot::channel();
    let job = Job { work: Some(work), done: None, reply, hasty: false, unguarded: false };
    // Held only for this: a closing spool must not wait for the salvage.
    let commands = commands.upgrade().ok_or(SpoolError::Closed)?;
    commands.blocking_send(Command::Write(Box::new(job))).map_err(|_| SpoolError::Closed)?;
    drop(commands);
    answer.blocking_recv().map_err(|_| SpoolError::Closed)?
}
