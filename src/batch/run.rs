//! One batch from its first line to its last: feeds the queue, waits, writes down what came.
//!
//! Owns the order of what is made durable: a line is accepted before it counts as fed, its outcome is on disk before the
//! batch is called done. Everything it knows is read from the disk again after a crash, and after any fault of the disk.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

use super::files;
use super::journal::{Done, Journal, LineResult};
use super::line::{self, Found, Lines};
use super::manifest::{LineFault, Manifest, Status};
use super::{FileMeta, Inner, WINDOW_MAX, request_id};
use crate::body::Body;
use crate::control::types::{Policy, Priority, State};
use crate::gateway::Gateway;
use crate::spool::SpoolError;
use crate::spool::record::{NewRequest, Record};
use crate::uplink::body as head;

/// After a fault of the disk the batch is taken up again, from what is on disk.
const AGAIN: Duration = Duration::from_secs(5);
/// While something cannot be told by an event (a full queue, a request that is being sent and is to be cancelled).
const LOOK: Duration = Duration::from_secs(1);
/// Requests that were removed by hand wake nobody: they are looked for this often.
const REMOVED_LOOK: Duration = Duration::from_mins(1);
/// Outcomes written before they are synced together; until then the queue has them too.
const SYNC_EACH: u32 = 32;

/// Begins or goes on; ends with the process or with the batch.
pub(super) fn start(inner: &Arc<Inner>, seq: u64) {
    let inner = inner.clone();
    tokio::spawn(async move {
        let mut stop = inner.stop.clone();
        let running = async {
            while let Err(error) = run(&inner, seq).await {
                tracing::warn!("a batch goes on in {} s: {error}", AGAIN.as_secs());
                sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = running => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    });
}

async fn run(inner: &Arc<Inner>, seq: u64) -> io::Result<()> {
    let Some(manifest) = inner.manifest(seq) else { return Ok(()) };
    if manifest.total == 0 && !validate(inner, &manifest).await? {
        return Ok(());
    }
    // What a damaged database gives back may hold our lines: nothing is called lost before.
    inner.gateway.spool().salvaged().await.map_err(io::Error::other)?;
    let cancelled = inner.told_to_cancel(seq);
    let mut ended = inner.ended.subscribe();
    while !inner.is_first_of_source(seq) && !is_cancelling(inner, seq) {
        // Its time runs while it waits for the one before it, and its end is its end.
        let left_ms = manifest.deadline_powered_ms.saturating_sub(inner.gateway.spool().powered_ms());
        if left_ms == 0 {
            break;
        }
        tokio::select! {
            _ = ended.changed() => {}
            () = cancelled.notified() => {}
            () = sleep(REMOVED_LOOK.min(Duration::from_millis(left_ms))) => {}
        }
    }
    let Some(manifest) = inner.manifest(seq) else { return Ok(()) };
    let mut run = Run::open(inner.clone(), manifest, cancelled).await?;
    match run.through().await {
        // Not a matter of time: the input was removed or damaged behind our back.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
            run.give_up().await
        }
        done => done,
    }
}

fn is_cancelling(inner: &Inner, seq: u64) -> bool {
    inner.manifest(seq).is_some_and(|manifest| manifest.status == Status::Cancelling)
}

/// Reads the input through; false where it is no batch, which is on record then.
async fn validate(inner: &Arc<Inner>, manifest: &Manifest) -> io::Result<bool> {
    let (files, batch) = (inner.clone(), manifest.clone());
    let checked = spawn_blocking(move || {
        let path = files.files.path(&batch.input_file_id);
        let meta = files.files.get(&batch.source, &batch.input_file_id);
        let is_whole = meta.is_ok_and(|meta| files::sum(&path).is_ok_and(|(_, sum)| sum == meta.sha256));
        if is_whole { line::validate(&path, &batch.endpoint) } else { Ok(Err(vec![damaged()])) }
    });
    let checked = checked.await.map_err(io::Error::other)??;
    let is_batch = checked.is_ok();
    let change = |manifest: &mut Manifest| match checked {
        Ok(total) => {
            manifest.total = total;
            if manifest.status == Status::Validating {
                manifest.turn(Status::InProgress);
            }
        }
        Err(faults) => {
            manifest.faults = faults;
            manifest.turn(Status::Failed);
        }
    };
    inner.update(manifest.seq, change).await?;
    Ok(is_batch)
}

fn damaged() -> LineFault {
    let message = "The input file is gone or its bytes are damaged; upload it again.".to_owned();
    LineFault { code: "invalid_file".to_owned(), message, param: Some("input_file_id".to_owned()), line: None }
}

/// A line on its way into the queue.
struct Prepared {
    number: u32,
    custom_id: String,
    body: Body,
    model: String,
}

/// What reading on brings.
enum Next {
    Line(Prepared),
    /// It ends here, without a place in the queue.
    Done(Done),
    /// It is done already.
    Known,
}

struct Run {
    inner: Arc<Inner>,
    batch: Manifest,
    priority: Priority,
    journal: Arc<Mutex<Journal>>,
    /// `None` where the input is gone.
    lines: Option<Arc<Mutex<Lines>>>,
    /// All lines before this one were read.
    read: u32,
    at_end: bool,
    /// Read, and not taken by the queue yet.
    pending: VecDeque<Prepared>,
    active: JoinSet<Done>,
    /// Outcomes that are not synced yet.
    unsynced: u32,
    cancelled: Arc<Notify>,
}

impl Run {
    async fn open(inner: Arc<Inner>, batch: Manifest, cancelled: Arc<Notify>) -> io::Result<Run> {
        let (files, of) = (inner.clone(), batch.clone());
        let opened = spawn_blocking(move || {
            let (output, error) = (files.files.path(&of.output_file_id), files.files.path(&of.error_file_id));
            let journal = Journal::open(&of.id, of.total, &output, &error, files.options.min_disk_free)?;
            let lines = match Lines::open(&files.files.path(&of.input_file_id)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                opened => Some(opened?),
            };
            Ok::<_, io::Error>((journal, lines))
        });
        let (journal, lines) = opened.await.map_err(io::Error::other)??;
        inner.counted(batch.seq, journal.counts());
        Ok(Run {
            priority: batch.priority.parse().unwrap_or(Priority::Low),
            journal: Arc::new(Mutex::new(journal)),
            lines: lines.map(|lines| Arc::new(Mutex::new(lines))),
            read: 0,
            at_end: false,
            pending: VecDeque::new(),
            active: JoinSet::new(),
            unsynced: 0,
            cancelled,
            inner,
            batch,
        })
    }

    async fn through(&mut self) -> io::Result<()> {
        self.work().await?;
        self.rest().await?;
        self.close().await
    }

    /// What is done stays in its files; the rest has lost its names, so nothing more of it is sent.
    async fn give_up(&mut self) -> io::Result<()> {
        self.active.abort_all();
        self.read = self.batch.fed.saturating_add(WINDOW_MAX as u32).min(self.batch.total);
        self.cancel_active().await;
        self.sync().await?;
        self.adopt().await?;
        let counts = self.journal.lock().unwrap_or_else(PoisonError::into_inner).counts();
        let failed = |manifest: &mut Manifest| {
            manifest.counted = Some(counts);
            manifest.faults = vec![damaged()];
            manifest.turn(Status::Failed);
        };
        self.inner.update(self.batch.seq, failed).await
    }

    fn is_over(&self) -> bool {
        self.left_ms() == 0 || is_cancelling(&self.inner, self.batch.seq)
    }

    fn left_ms(&self) -> u64 {
        self.batch.deadline_powered_ms.saturating_sub(self.inner.gateway.spool().powered_ms())
    }

    /// Until every line that may still be fed has ended.
    async fn work(&mut self) -> io::Result<()> {
        let window = self.inner.window();
        // After a crash what the queue has is found again first, however little time is left.
        self.find_fed().await?;
        loop {
            let over = self.is_over();
            if !over && self.active.len() <= window / 2 {
                self.feed(window - self.active.len()).await?;
            }
            if is_cancelling(&self.inner, self.batch.seq) {
                self.cancel_active().await;
            }
            if self.active.is_empty() && (over || (self.at_end && self.pending.is_empty())) {
                return self.sync().await;
            }
            let look = over || !self.pending.is_empty() || self.unsynced > 0;
            let wait = if look { LOOK } else { REMOVED_LOOK.min(Duration::from_millis(self.left_ms())) };
            tokio::select! {
                Some(done) = self.active.join_next() => self.record(done.map_err(io::Error::other)?).await?,
                () = self.cancelled.notified() => {}
                () = sleep(wait) => self.sync().await?,
            }
        }
    }

    /// Lines that the queue took before the crash and that are not done. Of those of the last window nobody noted that
    /// it took them; it is asked.
    async fn find_fed(&mut self) -> io::Result<()> {
        let known = self.batch.fed;
        let maybe = known.saturating_add(WINDOW_MAX as u32);
        while self.read < maybe {
            match self.next().await? {
                None => break,
                Some(Next::Known) => {}
                Some(Next::Done(done)) => self.record(done).await?,
                Some(Next::Line(line)) if line.number < known || self.is_there(line.number).await? => {
                    self.wait_for(line.number, line.custom_id);
                }
                Some(Next::Line(line)) => self.pending.push_back(line),
            }
        }
        Ok(())
    }

    async fn is_there(&self, number: u32) -> io::Result<bool> {
        match self.inner.gateway.spool().get(request_id(&self.batch.id, number)).await {
            // What cannot be read is there all the same; whoever waits for it says that it is lost.
            Err(SpoolError::Unreadable) => Ok(true),
            found => Ok(found.map_err(io::Error::other)?.is_some()),
        }
    }

    /// Brings as many lines into the queue.
    async fn feed(&mut self, room: usize) -> io::Result<()> {
        while self.pending.len() < room && !self.at_end {
            match self.next().await? {
                None | Some(Next::Known) => {}
                Some(Next::Done(done)) => self.record(done).await?,
                Some(Next::Line(line)) => self.pending.push_back(line),
            }
        }
        let some = room.min(self.pending.len());
        let chunk: Vec<Prepared> = self.pending.drain(..some).collect();
        let taken = join_all(chunk.iter().map(|line| self.accept(line))).await;
        for (line, taken) in chunk.into_iter().zip(taken) {
            match taken {
                Ok(()) => self.wait_for(line.number, line.custom_id),
                Err(SpoolError::KeyReused) => {
                    let message = "another request has this line's idempotency key".to_owned();
                    let came = LineResult::Nothing { code: "idempotency_key_reused", message };
                    self.record(Done { number: line.number, custom_id: line.custom_id, came }).await?;
                }
                Err(error) => {
                    tracing::debug!("a batch waits for a place in the queue: {error}");
                    self.pending.push_back(line);
                }
            }
        }
        let fed = self.pending.iter().map(|line| line.number).min().unwrap_or(self.read);
        if fed > self.batch.fed {
            // Outcomes without a place in the queue are nowhere else.
            self.sync().await?;
            self.batch.fed = fed;
            self.inner.update(self.batch.seq, |manifest| manifest.fed = fed).await?;
        }
        Ok(())
    }

    /// Reads the next line; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Next>> {
        let _reading = self.inner.reading.acquire().await.map_err(io::Error::other)?;
        let lines = self.lines.clone().ok_or(io::ErrorKind::NotFound)?;
        let (journal, endpoint) = (self.journal.clone(), self.batch.endpoint.clone());
        let read = spawn_blocking(move || {
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(Found { number, text, .. }) = lines.next()? else { return Ok(None) };
            if journal.lock().unwrap_or_else(PoisonError::into_inner).has(number) {
                return Ok(Some((number, None)));
            }
            // It was validated and its file is as it was then.
            let line = text.and_then(|text| line::read(text, &endpoint).ok()).ok_or(io::ErrorKind::InvalidData)?;
            Ok::<_, io::Error>(Some((number, Some((line.custom_id.into_owned(), line.body.to_owned())))))
        });
        let Some((number, line)) = read.await.map_err(io::Error::other)?? else {
            self.at_end = true;
            return Ok(None);
        };
        self.read = number + 1;
        let Some((custom_id, text)) = line else { return Ok(Some(Next::Known)) };
        Ok(Some(self.prepare(number, custom_id, &text).await?))
    }

    /// A request that no uplink could answer ends here, as it would at the door.
    async fn prepare(&self, number: u32, custom_id: String, text: &str) -> io::Result<Next> {
        let refused = |custom_id, message: String, code: &str| {
            let error = serde_json::json!({"error": {
                "message": message, "type": "invalid_request_error", "param": null, "code": code}});
            let body = error.to_string().into_bytes().into();
            let request_id = request_id(&self.batch.id, number);
            Next::Done(Done { number, custom_id, came: LineResult::Refusal { status: 400, request_id, body } })
        };
        if text.len() as u64 > self.inner.options.max_body {
            return Ok(refused(custom_id, "the body is larger than [http] max_body".to_owned(), "request_too_large"));
        }
        let mut taking = self.inner.gateway.spool().bodies().receive(Some(text.len() as u64));
        taking.push(text.as_bytes()).await.map_err(io::Error::other)?;
        let body = taking.finish().await.map_err(io::Error::other)?;
        Ok(match head::read(&self.batch.endpoint, &body) {
            Ok(mut head) => {
                if self.batch.endpoint != "/v1/embeddings" {
                    let id = request_id(&self.batch.id, number);
                    self.inner.gateway.choose_model(&id, &mut head, &body, self.priority).await;
                }
                Next::Line(Prepared { number, custom_id, body, model: head.model })
            }
            Err(error @ head::HeadError::Json(_)) => refused(custom_id, error.to_string(), "invalid_json"),
            Err(error) => refused(custom_id, error.to_string(), "missing_field"),
        })
    }

    /// The same door as everybody's: the id and the key say which line it is.
    async fn accept(&self, line: &Prepared) -> Result<(), SpoolError> {
        let new = NewRequest {
            id: request_id(&self.batch.id, line.number),
            source: self.batch.source.clone(),
            label: None,
            endpoint: self.batch.endpoint.clone(),
            model: line.model.clone(),
            priority: self.priority,
            policy: Policy::Queue,
            body: line.body.clone(),
            idempotency_key: Some(format!("{}:{}", self.batch.id, line.number)),
            ttl_ms: self.left_ms().max(1),
            leased: false,
            maybe_billed: false,
            device: None,
            task: None,
        };
        self.inner.gateway.store(new).await.map(|_| ())
    }

    fn wait_for(&mut self, number: u32, custom_id: String) {
        let (gateway, id) = (self.inner.gateway.clone(), request_id(&self.batch.id, number));
        self.active.spawn(async move {
            let record = ended(&gateway, &id).await;
            Done { number, custom_id, came: came(id, record) }
        });
    }

    /// What waits is cancelled; what is being sent is looked at again.
    async fn cancel_active(&mut self) {
        let first = self.batch.fed.max(self.read);
        let open: Vec<u32> = {
            let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            (0..first).filter(|number| !journal.has(*number)).collect()
        };
        for number in open {
            // Its end comes to the task that waits for it.
            let _ = self.inner.gateway.cancel(&request_id(&self.batch.id, number)).await;
        }
    }

    async fn record(&mut self, done: Done) -> io::Result<()> {
        let journal = self.journal.clone();
        let written = spawn_blocking(move || {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            if !journal.has(done.number) {
                journal.append(&done)?;
            }
            Ok::<_, io::Error>(journal.counts())
        });
        let counts = written.await.map_err(io::Error::other)??;
        self.inner.counted(self.batch.seq, counts);
        self.unsynced += 1;
        if self.unsynced >= SYNC_EACH { self.sync().await } else { Ok(()) }
    }

    async fn sync(&mut self) -> io::Result<()> {
        if self.unsynced == 0 {
            return Ok(());
        }
        let journal = self.journal.clone();
        let synced = spawn_blocking(move || journal.lock().unwrap_or_else(PoisonError::into_inner).sync());
        synced.await.map_err(io::Error::other)??;
        self.unsynced = 0;
        Ok(())
    }

    /// Every line that was never fed ends too, with the reason.
    async fn rest(&mut self) -> io::Result<()> {
        let (code, why) = if is_cancelling(&self.inner, self.batch.seq) {
            ("batch_cancelled", "This request was not executed because its batch was cancelled.")
        } else {
            ("batch_expired", "This request could not be executed before the completion window expired.")
        };
        let (inner, journal, batch) = (self.inner.clone(), self.journal.clone(), self.batch.clone());
        let written = spawn_blocking(move || {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            let mut lines = Lines::open(&inner.files.path(&batch.input_file_id))?;
            while let Some(Found { number, text, .. }) = lines.next()? {
                if journal.has(number) {
                    continue;
                }
                let line = text.and_then(|text| line::read(text, &batch.endpoint).ok());
                let custom_id = line.map(|line| line.custom_id.into_owned()).unwrap_or_default();
                journal.append(&Done {
                    number,
                    custom_id,
                    came: LineResult::Nothing { code, message: why.to_owned() },
                })?;
            }
            journal.sync()?;
            Ok::<_, io::Error>(journal.counts())
        });
        let counts = written.await.map_err(io::Error::other)??;
        self.inner.counted(self.batch.seq, counts);
        Ok(())
    }

    async fn adopt(&self) -> io::Result<()> {
        let counts = self.journal.lock().unwrap_or_else(PoisonError::into_inner).counts();
        let (inner, batch) = (self.inner.clone(), self.batch.clone());
        let adopted = spawn_blocking(move || {
            for (id, what, lines) in
                [(&batch.output_file_id, "output", counts.0), (&batch.error_file_id, "error", counts.1)]
            {
                adopt(&inner, &batch, id, what, lines)?;
            }
            Ok::<_, io::Error>(())
        });
        adopted.await.map_err(io::Error::other)?
    }

    /// Its files are files for everybody, and then it is done.
    async fn close(&mut self) -> io::Result<()> {
        let counts = self.journal.lock().unwrap_or_else(PoisonError::into_inner).counts();
        let is_late = self.left_ms() == 0 && counts.1 > 0;
        let seq = self.batch.seq;
        let finalizing = |manifest: &mut Manifest| {
            manifest.counted = Some(counts);
            if manifest.ends_as.is_none() {
                manifest.ends_as = Some(if is_late { Status::Expired } else { Status::Completed });
                manifest.turn(Status::Finalizing);
            }
        };
        self.inner.update(seq, finalizing).await?;
        self.adopt().await?;
        self.inner.update(seq, |manifest| manifest.turn(manifest.ends_as.unwrap_or(Status::Completed))).await?;
        tracing::info!("{} has ended: {} lines answered, {} not", self.batch.id, counts.0, counts.1);
        Ok(())
    }
}

fn adopt(inner: &Inner, batch: &Manifest, id: &str, what: &str, lines: u32) -> io::Result<()> {
    let path = inner.files.path(id);
    if lines == 0 {
        let _ = std::fs::remove_file(path);
        return Ok(());
    }
    let (bytes, sha256) = files::sum(&path)?;
    let meta = inner.new_file(&batch.source, format!("{}_{what}.jsonl", batch.id), "batch_output");
    inner.files.adopt(FileMeta { id: id.to_owned(), bytes, sha256, ..meta }).map(|_| ())
}

/// Waits for a request's end; `None` where it is not on record any more, or its answer cannot be read.
async fn ended(gateway: &Gateway, id: &str) -> Option<Record> {
    loop {
        match gateway.wait_final(id, REMOVED_LOOK).await {
            Ok(Some(record)) => return Some(record),
            Ok(None) => {
                if let Ok(None) = gateway.spool().get(id.to_owned()).await {
                    return None;
                }
            }
            // No later look would find what is damaged or gone; without an end here the batch would have none.
            Err(SpoolError::Unreadable) if is_over(gateway, id).await => return None,
            Err(_) => sleep(LOOK).await,
        }
    }
}

/// Whether a request has ended, also where its answer cannot be read.
async fn is_over(gateway: &Gateway, id: &str) -> bool {
    gateway.spool().state(id.to_owned()).await.is_ok_and(|state| state.is_none_or(State::is_final))
}

/// What a request's end is for its line.
fn came(request_id: String, record: Option<Record>) -> LineResult {
    let Some(record) = record else {
        let message =
            "its record was removed or damaged before its outcome was fetched; it may have been billed".to_owned();
        return LineResult::Nothing { code: "result_lost", message };
    };
    if let Some((answer, _)) = &record.uplink {
        let (status, body) = (answer.status, answer.body.clone());
        match record.state {
            State::Answered => return LineResult::Answer { status, request_id, body },
            State::Dead if status >= 400 && body.layout().is_ok() => {
                return LineResult::Refusal { status, request_id, body };
            }
            _ => {}
        }
    }
    let (code, what) = match record.state {
        State::Expired => ("batch_expired", "This request could not be executed before the completion window expired."),
        State::Cancelled => ("batch_cancelled", "This request was cancelled before it was sent."),
        State::Evicted => ("queue_full", "A more urgent request took its place in the full queue."),
        _ => ("request_failed", "The request failed and was given up."),
    };
    let why = record.last_error.map(|error| format!(" The last attempt: {}.", error.message)).unwrap_or_default();
    let reason = record.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    LineResult::Nothing { code, message: format!("{what}{reason}{why}") }
}
