//! Work that is fetched later: files of requests, and batches made of them.
//!
//! A batch's lines become ordinary stored requests, a bounded window of them at a time, each under an id and a key that
//! follow from the batch and the line: after a crash they are found again, and nothing is sent twice. Owns
//! `data_dir/files` and `data_dir/batches`. Never sends, never decides which request leaves when, speaks no HTTP.

mod disk;
mod error;
mod files;
mod journal;
mod line;
mod manifest;
mod run;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::spawn_blocking;

use crate::clock;
use crate::control::types::Priority;
use crate::durable;
use crate::gateway::Gateway;
pub use error::LaterError;
pub use files::{FILE_PREFIX, FileMeta};
pub use manifest::{BATCH_PREFIX, LINES_MAX, LineFault, Manifest, Status};

/// Batches kept, ended ones too.
pub const BATCHES_MAX: usize = 500;
/// Batches of one source that have not ended, so that no source takes all places.
pub const UNFINISHED_OF_SOURCE_MAX: usize = 25;
/// Lines of one batch that the queue holds at a time: more would only wait there instead of here, and each one has a
/// task that waits for its end.
const WINDOW_MAX: u64 = 64;
/// What is old is looked for this often.
const CLEAN_EVERY: Duration = Duration::from_mins(10);

/// The paths whose requests a batch may hold.
pub const ENDPOINTS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"];

/// What this room is configured with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of everything.
    pub data_dir: PathBuf,
    /// Largest body of one request.
    pub max_body: u64,
    /// Most bytes of files together.
    pub max_bytes: u64,
    /// Bytes that the file system must have left.
    pub min_disk_free: u64,
    /// Most unfinished requests of one source.
    pub per_source_backlog: u64,
    /// Most unfinished requests.
    pub max_requests: u64,
}

/// What a batch is made of.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Whose it is.
    pub source: String,
    /// One of [`ENDPOINTS`].
    pub endpoint: String,
    /// Its input.
    pub input_file_id: String,
    /// Its caller's own key: a second one with it is the same batch.
    pub idempotency_key: Option<String>,
    /// What its caller writes to it.
    pub metadata: Option<BTreeMap<String, String>>,
    /// The priority of its lines.
    pub priority: Priority,
    /// How much powered-on time it has.
    pub ttl: Duration,
}

/// A batch as it stands.
#[derive(Debug, Clone)]
pub struct Standing {
    /// What is kept of it.
    pub manifest: Manifest,
    /// Lines that succeeded.
    pub completed: u32,
    /// Lines that did not.
    pub failed: u32,
    /// When its time is over, in Unix seconds as the clock stands now.
    pub expires_at: u64,
}

/// The handle; clones share everything.
#[derive(Clone)]
pub struct Later {
    inner: Arc<Inner>,
}

struct Inner {
    gateway: Gateway,
    options: Options,
    files: files::Files,
    /// Numbers of batches begin here.
    first: u64,
    batches: Mutex<BTreeMap<u64, Entry>>,
    /// One change is written at a time.
    saving: tokio::sync::Mutex<()>,
    /// One line is in memory as a whole at a time.
    reading: Semaphore,
    /// Changes with each end of a batch: the next one of its source begins.
    ended: watch::Sender<u64>,
    stop: watch::Receiver<bool>,
}

struct Entry {
    manifest: Manifest,
    counts: (u32, u32),
    cancelled: Arc<Notify>,
}

impl Later {
    /// Reads what is kept and goes on with it. Blocks for as long as the two folders take to read.
    pub fn start(gateway: Gateway, options: Options, stop: watch::Receiver<bool>) -> Later {
        let folder = options.data_dir.join("batches");
        let read = durable::make_folder(&folder).and_then(|()| disk::all::<Manifest>(&folder));
        let is_whole = read.is_ok() && !disk::has_damaged(&folder);
        let first = files::first_number(read.is_ok());
        let kept = read.unwrap_or_else(|error| {
            tracing::error!("kept batches cannot be read: {error}");
            Vec::new()
        });
        let written: Vec<String> = (kept.iter().filter(|batch| !batch.status.is_final()))
            .flat_map(|batch| [batch.output_file_id.clone(), batch.error_file_id.clone()])
            .collect();
        let files = options.data_dir.join("files");
        let written = is_whole.then_some(&written[..]);
        let files = files::Files::open(files, options.max_bytes, options.min_disk_free, written);
        let kept = files::numbered(kept, |manifest| &mut manifest.seq);
        let batches = kept.into_iter().map(|(seq, manifest)| (seq, Entry::new(manifest))).collect();
        let inner = Inner {
            gateway,
            options,
            files,
            first,
            batches: Mutex::new(batches),
            saving: tokio::sync::Mutex::new(()),
            reading: Semaphore::new(1),
            ended: watch::Sender::new(0),
            stop,
        };
        let later = Later { inner: Arc::new(inner) };
        let unfinished: Vec<u64> =
            later.inner.batches().values().filter(|e| !e.manifest.status.is_final()).map(|e| e.manifest.seq).collect();
        for seq in unfinished {
            run::start(&later.inner, seq);
        }
        tokio::spawn(clean(later.inner.clone()));
        later
    }

    /// Begins to keep a file of about so many bytes.
    pub async fn upload(&self, source: &str, filename: String, bytes: u64) -> Result<Incoming, LaterError> {
        let room = self.inner.files.take_room(source, bytes)?;
        let meta = self.inner.new_file(source, filename, "batch");
        let inner = self.inner.clone();
        let upload = spawn_blocking(move || inner.files.begin(room)).await.map_err(io::Error::other)??;
        Ok(Incoming { inner: self.inner.clone(), meta, upload: Some(upload) })
    }

    /// One file of a source.
    pub fn file(&self, source: &str, id: &str) -> Result<FileMeta, LaterError> {
        self.inner.files.get(source, id)
    }

    /// The files of a source, oldest first.
    pub fn files(&self, source: &str) -> Vec<FileMeta> {
        self.inner.files.of(source)
    }

    /// Where a file's bytes are.
    pub fn path(&self, meta: &FileMeta) -> PathBuf {
        self.inner.files.path(&meta.id)
    }

    /// Removes a file that no batch reads.
    pub async fn remove_file(&self, source: &str, id: &str) -> Result<(), LaterError> {
        let meta = self.inner.files.get(source, id)?;
        if self.inner.is_in_use(id) {
            return Err(LaterError::InUse);
        }
        let inner = self.inner.clone();
        Ok(spawn_blocking(move || inner.files.remove(&meta)).await.map_err(io::Error::other)??)
    }

    /// Makes a batch, and on return it is on disk; or finds the one that its key made before, which is then said.
    pub async fn create(&self, new: NewBatch) -> Result<(Standing, bool), LaterError> {
        // A caller who goes away in the middle must not leave a batch on disk that nobody runs until the next start.
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.create(new).await }).await.map_err(io::Error::other)?
    }

    /// One batch of a source.
    pub fn batch(&self, source: &str, id: &str) -> Result<Standing, LaterError> {
        let seq = self.inner.find(source, id);
        seq.and_then(|seq| self.inner.standing(seq)).ok_or_else(|| LaterError::NoSuchBatch(id.to_owned()))
    }

    /// The batches of a source, newest first.
    pub fn batches(&self, source: &str) -> Vec<Standing> {
        let batches = self.inner.batches();
        let own: Vec<u64> =
            batches.values().rev().map(|e| &e.manifest).filter(|m| m.source == source).map(|m| m.seq).collect();
        drop(batches);
        own.into_iter().filter_map(|seq| self.inner.standing(seq)).collect()
    }

    /// Whether a stored request is a line of a batch that has not ended: what became of it is not written down yet.
    pub async fn is_line(&self, source: &str, request: &str) -> bool {
        let unfinished: Vec<(String, u32)> = {
            let batches = self.inner.batches();
            let of = batches.values().map(|e| &e.manifest).filter(|m| m.source == source && !m.status.is_final());
            of.map(|m| (m.id.clone(), m.total.min(m.fed.saturating_add(WINDOW_MAX as u32)))).collect()
        };
        let request = request.to_owned();
        // Some ten thousand sums, and rarely asked for.
        let found = move || {
            let mut lines = unfinished.iter().flat_map(|(batch, most)| (0..*most).map(move |line| (batch, line)));
            lines.any(|(batch, line)| request_id(batch, line) == request)
        };
        spawn_blocking(found).await.unwrap_or(true)
    }

    /// Begins to cancel a batch: what waits is cancelled, what is done stays.
    pub async fn cancel(&self, source: &str, id: &str) -> Result<Standing, LaterError> {
        let no_such = || LaterError::NoSuchBatch(id.to_owned());
        let seq = self.inner.find(source, id).ok_or_else(no_such)?;
        let inner = self.inner.clone();
        let cancelled = tokio::spawn(async move { inner.cancel(seq).await }).await.map_err(io::Error::other)?;
        cancelled?;
        self.inner.standing(seq).ok_or_else(no_such)
    }
}

/// A file on its way in; dropped before its end, nothing of it stays.
pub struct Incoming {
    inner: Arc<Inner>,
    meta: FileMeta,
    upload: Option<files::Upload>,
}

impl Incoming {
    /// The next bytes.
    pub async fn write(&mut self, piece: Bytes) -> Result<(), LaterError> {
        let Some(mut upload) = self.upload.take() else { return Err(LaterError::Disk(io::ErrorKind::Other)) };
        let written = spawn_blocking(move || upload.write(&piece).map(|()| upload));
        self.upload = Some(written.await.map_err(io::Error::other)??);
        Ok(())
    }

    /// All of it came: on return it is on disk.
    pub async fn finish(self) -> Result<FileMeta, LaterError> {
        let Some(upload) = self.upload else { return Err(LaterError::Disk(io::ErrorKind::Other)) };
        let finished = spawn_blocking(move || upload.finish(&self.inner.files, self.meta));
        Ok(finished.await.map_err(io::Error::other)??)
    }
}

impl Entry {
    fn new(manifest: Manifest) -> Entry {
        let counts = manifest.counted.unwrap_or_default();
        Entry { manifest, counts, cancelled: Arc::new(Notify::new()) }
    }
}

impl Inner {
    fn batches(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_file(&self, source: &str, filename: String, purpose: &str) -> FileMeta {
        FileMeta {
            id: String::new(),
            seq: 0,
            source: source.to_owned(),
            filename,
            purpose: purpose.to_owned(),
            bytes: 0,
            sha256: String::new(),
            created_at: clock::unix_ms() / 1000,
            created_powered_ms: self.gateway.spool().powered_ms(),
        }
    }

    async fn create(self: Arc<Self>, new: NewBatch) -> Result<(Standing, bool), LaterError> {
        let _saving = self.saving.lock().await;
        if let Some(seq) = self.keyed(&new)? {
            return self.standing(seq).map(|standing| (standing, true)).ok_or(LaterError::TooManyBatches);
        }
        let input = self.files.get(&new.source, &new.input_file_id)?;
        // It ends in files, too.
        self.files.check_room(&new.source, 0)?;
        if input.purpose != "batch" {
            let message = format!("the input file must have the purpose batch, not {}", input.purpose);
            return Err(LaterError::Field { param: "input_file_id", message });
        }
        self.make_place().await?;
        let manifest = self.first(new)?;
        self.keep(&manifest).await?;
        let seq = manifest.seq;
        self.batches().insert(seq, Entry::new(manifest));
        run::start(&self, seq);
        self.standing(seq).map(|standing| (standing, false)).ok_or(LaterError::TooManyBatches)
    }

    /// The batch that this key of this source made.
    fn keyed(&self, new: &NewBatch) -> Result<Option<u64>, LaterError> {
        let batches = self.batches();
        let is_keyed = |m: &&Manifest| m.source == new.source && m.idempotency_key == new.idempotency_key;
        let found = batches.values().map(|e| &e.manifest).filter(|m| m.idempotency_key.is_some()).find(is_keyed);
        match found {
            Some(m)
                if (&m.endpoint, &m.input_file_id, &m.metadata)
                    == (&new.endpoint, &new.input_file_id, &new.metadata) =>
            {
                Ok(Some(m.seq))
            }
            Some(_) => Err(LaterError::KeyReused),
            None => Ok(None),
        }
    }

    async fn cancel(self: Arc<Self>, seq: u64) -> Result<(), LaterError> {
        let mut was = Status::Failed;
        let change = |manifest: &mut Manifest| {
            was = manifest.status;
            if matches!(was, Status::Validating | Status::InProgress) {
                manifest.turn(Status::Cancelling);
                manifest.ends_as = Some(Status::Cancelled);
            }
        };
        self.update(seq, change).await?;
        if was.is_final() {
            return Err(LaterError::Ended(was.as_str()));
        }
        self.told_to_cancel(seq).notify_one();
        Ok(())
    }

    /// Where as many batches are kept as may be, the oldest that has ended goes.
    async fn make_place(self: &Arc<Self>) -> io::Result<()> {
        let oldest = {
            let batches = self.batches();
            let ended = batches.values().map(|e| &e.manifest).find(|m| m.status.is_final());
            ended.filter(|_| batches.len() >= BATCHES_MAX).cloned()
        };
        let Some(oldest) = oldest else { return Ok(()) };
        let inner = self.clone();
        spawn_blocking(move || inner.forget(&oldest)).await.map_err(io::Error::other)?
    }

    fn forget(&self, manifest: &Manifest) -> io::Result<()> {
        disk::forget(&self.options.data_dir.join("batches"), &manifest.id)?;
        self.batches().remove(&manifest.seq);
        Ok(())
    }

    /// A batch as it begins, where there is a place for it.
    fn first(&self, new: NewBatch) -> Result<Manifest, LaterError> {
        let batches = self.batches();
        let unfinished = |e: &&Entry| !e.manifest.status.is_final() && e.manifest.source == new.source;
        if batches.values().filter(unfinished).count() >= UNFINISHED_OF_SOURCE_MAX || batches.len() >= BATCHES_MAX {
            return Err(LaterError::TooManyBatches);
        }
        let ttl_ms = new.ttl.as_millis() as u64;
        let mut manifest = Manifest {
            id: format!("{BATCH_PREFIX}{:016x}{:016x}", clock::random_u64(), clock::random_u64()),
            seq: batches.last_key_value().map_or(0, |(seq, _)| seq + 1).max(self.first),
            source: new.source,
            endpoint: new.endpoint,
            input_file_id: new.input_file_id,
            idempotency_key: new.idempotency_key,
            metadata: new.metadata,
            priority: new.priority.as_str().to_owned(),
            ttl_ms,
            deadline_powered_ms: self.gateway.spool().powered_ms().saturating_add(ttl_ms),
            status: Status::Validating,
            ends_as: None,
            since: BTreeMap::new(),
            created_at: clock::unix_ms() / 1000,
            total: 0,
            fed: 0,
            output_file_id: files::fresh_id(),
            error_file_id: files::fresh_id(),
            counted: None,
            faults: Vec::new(),
        };
        manifest.turn(Status::Validating);
        Ok(manifest)
    }

    fn find(&self, source: &str, id: &str) -> Option<u64> {
        let batches = self.batches();
        let found = batches.values().map(|e| &e.manifest).find(|m| m.id == id && m.source == source);
        found.map(|manifest| manifest.seq)
    }

    fn manifest(&self, seq: u64) -> Option<Manifest> {
        self.batches().get(&seq).map(|entry| entry.manifest.clone())
    }

    fn standing(&self, seq: u64) -> Option<Standing> {
        let now_ms = self.gateway.spool().powered_ms();
        let batches = self.batches();
        let entry = batches.get(&seq)?;
        let left_ms = entry.manifest.deadline_powered_ms.saturating_sub(now_ms);
        Some(Standing {
            manifest: entry.manifest.clone(),
            completed: entry.counts.0,
            failed: entry.counts.1,
            expires_at: (clock::unix_ms() + left_ms) / 1000,
        })
    }

    fn told_to_cancel(&self, seq: u64) -> Arc<Notify> {
        self.batches().get(&seq).map(|entry| entry.cancelled.clone()).unwrap_or_default()
    }

    fn is_in_use(&self, file: &str) -> bool {
        let reads = |m: &Manifest| !m.status.is_final() && m.input_file_id == file;
        self.batches().values().any(|entry| reads(&entry.manifest))
    }

    /// Whether no earlier batch of its source is unfinished: one after the other, so that a source's share of the queue
    /// does not grow with its batches.
    fn is_first_of_source(&self, seq: u64) -> bool {
        let batches = self.batches();
        let Some(entry) = batches.get(&seq) else { return true };
        let source = &entry.manifest.source;
        !batches.range(..seq).any(|(_, e)| e.manifest.source == *source && !e.manifest.status.is_final())
    }

    /// Lines of one batch that the queue may hold: no more than half of what its source may have there, so that
    /// others of it still find a place.
    fn window(&self) -> usize {
        let most = (self.options.per_source_backlog / 2).min(self.options.max_requests / 4);
        WINDOW_MAX.min(most).max(1) as usize
    }

    async fn keep(self: &Arc<Self>, manifest: &Manifest) -> io::Result<()> {
        let (folder, manifest) = (self.options.data_dir.join("batches"), manifest.clone());
        let kept = spawn_blocking(move || {
            // It may not have been possible at the start.
            durable::make_folder(&folder)?;
            disk::keep(&folder, &manifest.id, &manifest)
        });
        kept.await.map_err(io::Error::other)?
    }

    /// Changes a batch: on disk first, then for everybody to see.
    async fn update(self: &Arc<Self>, seq: u64, change: impl FnOnce(&mut Manifest)) -> io::Result<()> {
        let _saving = self.saving.lock().await;
        let Some(mut manifest) = self.manifest(seq) else { return Ok(()) };
        change(&mut manifest);
        self.keep(&manifest).await?;
        let is_final = manifest.status.is_final();
        if let Some(entry) = self.batches().get_mut(&seq) {
            entry.manifest = manifest;
        }
        if is_final {
            self.ended.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    fn counted(&self, seq: u64, counts: (u32, u32)) {
        if let Some(entry) = self.batches().get_mut(&seq) {
            entry.counts = counts;
        }
    }
}

/// The id of a line's request: always the same, so that it can be found without being sent again.
fn request_id(batch: &str, line: u32) -> String {
    let digest = Sha256::digest(format!("{batch}:{line}"));
    format!("req_{}", disk::hex(&digest[..16]))
}

/// Removes what is older than it is kept for.
async fn clean(inner: Arc<Inner>) {
    let mut stop = inner.stop.clone();
    loop {
        let now_ms = inner.gateway.spool().powered_ms();
        let cleaned = inner.clone();
        let done = spawn_blocking(move || cleaned.remove_old(now_ms)).await;
        if let Ok(Err(error)) = done {
            tracing::warn!("old files and batches are not removed: {error}");
        }
        tokio::select! {
            () = tokio::time::sleep(CLEAN_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

impl Inner {
    fn remove_old(&self, now_ms: u64) -> io::Result<()> {
        for meta in self.files.old(now_ms) {
            if !self.is_in_use(&meta.id) {
                self.files.remove(&meta)?;
            }
        }
        let is_old =
            |m: &Manifest| m.status.is_final() && m.deadline_powered_ms.saturating_add(files::FILE_AGE_MS) <= now_ms;
        let old: Vec<Manifest> = self.batches().values().map(|e| &e.manifest).filter(|m| is_old(m)).cloned().collect();
        for manifest in old {
            self.forget(&manifest)?;
        }
        Ok(())
    }
}
