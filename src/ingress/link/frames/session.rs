//! One device on one line: what it said, what it is owed, and the jobs that its messages make.
//!
//! A pure value with explicit time. Owns the session's rules (Hello, repeats, uploads, results); the core has those of
//! requests. Jobs of one device are done one after the other, so its messages keep their order.

use std::collections::{BTreeMap, VecDeque};

use holdfast_wire::Code;
use holdfast_wire::frame::{FRAME_MAX, FRAME_MIN};
use holdfast_wire::message::{
    BLOB_BYTES_MAX, BlobRef, CancelAck, Chunk, ChunkAck, HelloAck, Message, Nack, OPEN_MAX, Progress, Submit,
    SubmitAck, state,
};

use super::job::{self, Done, Job, Said};
use super::push::Pushes;
use crate::ingress::link::core::{self, Answer, Cancelled, How, Refusal};
use crate::ingress::link::upload::UploadError;

/// Jobs that wait for one device: one for each open request and its results. What does not fit is dropped, and repeated.
const JOBS_MAX: usize = 48;
/// Chunks' bytes on the way: so many chunks of the agreed length.
const CREDIT_CHUNKS: u16 = 4;
/// What a chunk's frame has beside its bytes, with room to spare.
const CHUNK_FIELDS: u16 = 64;
/// The same without, for small frames.
const CHUNK_FIELDS_LEAST: u16 = 22;
/// Frames from this size on have room to spare.
const ROOMY: u16 = 256;
/// What could not be looked up or noted down is tried again after this: a disk in trouble needs some time.
const LOOK_AGAIN_MS: u64 = 2_000;
/// A Nack's detail, and the gateway's name in frames that are not roomy: either fits into the smallest frame.
const DETAIL_BYTES: usize = 32;
const NAME_BYTES_SMALL: usize = 24;

/// What all sessions of a gateway are told alike.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) gw_boot: u32,
    pub(super) name: String,
    /// 0 offline, 1 degraded, 2 online.
    pub(super) uplink: u8,
    /// Unix milliseconds; 0 unknown.
    pub(super) time_ms: u64,
}

/// An upload that was asked for.
#[derive(Debug, Clone)]
struct Wanted {
    key: u64,
    blob: BlobRef,
    /// The device's numbers for all uploads of the request.
    with: Vec<u32>,
    /// What is on its way to the disk ends here.
    taken: u32,
    /// What is there ends here.
    there: u32,
}

/// One device's session.
pub(super) struct Session {
    pub(super) uid: String,
    pub(super) boot: u32,
    pub(super) max_frame: u16,
    tag: u8,
    jobs: VecDeque<Job>,
    is_working: bool,
    /// Results should be looked for once the jobs before are done.
    look: bool,
    /// And again then.
    look_again_ms: Option<u64>,
    wanted: Vec<Wanted>,
    pub(super) pushes: Pushes,
    /// Keys that are being stored.
    storing: Vec<u64>,
    /// Where its open requests stood when they were last looked at; what was just stored is queued.
    states: BTreeMap<u64, u8>,
}

/// Where messages to the device go: tag, whether it is a repeat, the message.
pub(super) type Say<'a> = &'a mut dyn FnMut(u8, bool, &Message<'_>);

impl Session {
    /// A device said Hello; the answer follows when its results were counted.
    pub(super) fn new(uid: String, boot: u32, max_frame: u16, tag: u8) -> Session {
        let mut session = Session {
            uid,
            boot,
            max_frame: max_frame.clamp(FRAME_MIN as u16, FRAME_MAX as u16),
            tag: 0,
            jobs: VecDeque::new(),
            is_working: false,
            look: true,
            look_again_ms: None,
            wanted: Vec::new(),
            pushes: Pushes::default(),
            storing: Vec::new(),
            states: BTreeMap::new(),
        };
        session.jobs.push_back(Job::Hello { tag, boot });
        session
    }

    /// The same device, in the same life, said Hello again: it lost its session, or did not hear the answer.
    pub(super) fn hello_again(&mut self, max_frame: u16, tag: u8, now_ms: u64) {
        self.max_frame = max_frame.clamp(FRAME_MIN as u16, FRAME_MAX as u16);
        self.pushes.again(now_ms);
        self.look = true;
        if !self.jobs.iter().any(|job| matches!(job, Job::Hello { .. })) {
            self.jobs.push_front(Job::Hello { tag, boot: self.boot });
        }
    }

    /// The low byte of its boot number.
    pub(super) fn byte(&self) -> u8 {
        self.boot.to_le_bytes()[0]
    }

    fn chunk(&self) -> u16 {
        let fields = if self.max_frame >= ROOMY { CHUNK_FIELDS } else { CHUNK_FIELDS_LEAST };
        self.max_frame - fields
    }

    fn credit(&self) -> u16 {
        self.chunk().saturating_mul(CREDIT_CHUNKS)
    }

    /// Something stored has changed.
    pub(super) fn look_for_results(&mut self) {
        self.look = true;
    }

    /// When [`Session::push`] has something to do.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.pushes.due_ms().into_iter().chain(self.look_again_ms).min()
    }

    /// The next job, where none is under way.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        if self.is_working {
            return None;
        }
        let job = self.jobs.pop_front().or_else(|| {
            let look = std::mem::take(&mut self.look);
            look.then(|| Job::Results { known: self.pushes.known() })
        })?;
        self.is_working = true;
        Some(job)
    }

    fn queue(&mut self, job: Job) -> bool {
        let has_room = self.jobs.len() < JOBS_MAX;
        if has_room {
            self.jobs.push_back(job);
        }
        has_room
    }

    /// Takes a request. While it is being stored, its repeats are not looked at.
    pub(super) fn submit(&mut self, tag: u8, submit: &Submit<'_>) {
        if self.storing.contains(&submit.key) || self.storing.len() >= OPEN_MAX {
            return;
        }
        let submission = Box::new(job::submission(&self.uid, submit));
        let (key, blobs) = (submit.key, submit.blobs().to_vec());
        if self.queue(Job::Submit { tag, key, submission, blobs, boot: self.boot }) {
            self.storing.push(key);
        }
    }

    /// Takes a piece of an upload that was asked for: only the next one.
    pub(super) fn chunk_came(&mut self, tag: u8, chunk: &Chunk<'_>, say: Say<'_>) {
        let (credit, boot) = (self.credit(), self.boot);
        let Some(wanted) = self.wanted.iter_mut().find(|wanted| wanted.blob.blob == chunk.blob) else { return };
        let end = chunk.off.checked_add(chunk.data.len() as u32).filter(|end| *end <= wanted.blob.len);
        let Some(end) = end.filter(|_| chunk.off == wanted.taken && !chunk.data.is_empty()) else {
            // While bytes are on their way to the disk, their end is told soon.
            if wanted.taken == wanted.there {
                say(tag, false, &Message::ChunkAck(ChunkAck { blob: chunk.blob, next: wanted.taken, credit }));
            }
            return;
        };
        // A device that sends beyond its credit has it to send again.
        if end.saturating_sub(wanted.there) > u32::from(credit) * 2 {
            return;
        }
        wanted.taken = end;
        let (blob, with, data) = (wanted.blob, wanted.with.clone(), chunk.data.to_vec());
        // What waits there already grows instead: one write for many small pieces.
        if let Some(Job::Append { tag: last, blob: same, off, data: waiting, .. }) = self.jobs.back_mut()
            && same.blob == blob.blob
            && *off + waiting.len() as u32 == chunk.off
        {
            waiting.extend_from_slice(&data);
            *last = tag;
            return;
        }
        if !self.queue(Job::Append { tag, blob, with, boot, off: chunk.off, data })
            && let Some(wanted) = self.wanted.iter_mut().find(|wanted| wanted.blob.blob == chunk.blob)
        {
            wanted.taken = chunk.off;
        }
    }

    /// The device has so much of a result.
    pub(super) fn result_acked(&mut self, key: u64, next: u32, now_ms: u64) {
        if let Some(request) = self.pushes.acked(key, next, now_ms) {
            if self.queue(Job::Acked { request }) {
                self.look = true;
            } else {
                self.acked(request, false, now_ms);
            }
        }
    }

    /// Asks where a request stands.
    pub(super) fn query(&mut self, tag: u8, key: u64) {
        if !self.jobs.iter().any(|job| matches!(job, Job::Query { key: same, .. } if *same == key)) {
            self.queue(Job::Query { tag, key });
        }
    }

    /// Asks that a request not be answered.
    pub(super) fn cancel(&mut self, tag: u8, key: u64) {
        if !self.jobs.iter().any(|job| matches!(job, Job::Cancel { key: same, .. } if *same == key)) {
            self.queue(Job::Cancel { tag, key });
        }
    }

    /// A job is done.
    pub(super) fn done(&mut self, done: Done, facts: &Facts, now_ms: u64, say: Say<'_>) {
        self.is_working = false;
        match done {
            Done::Hello { tag, pending } => say(tag, false, &Message::HelloAck(self.hello_ack(facts, pending))),
            Done::Submit { tag, key, said } => self.submitted(tag, key, said, say),
            Done::Append { tag, blob, next } => self.appended(tag, blob, next, say),
            Done::Query { tag, key, answer } => self.queried(tag, key, answer, now_ms, say),
            Done::Cancel { tag, key, cancelled } => match cancelled {
                Ok(cancelled) => {
                    let outcome = match cancelled {
                        Cancelled::Yes => 0,
                        Cancelled::TooLate => 1,
                        Cancelled::Unknown => 2,
                    };
                    say(tag, false, &Message::CancelAck(CancelAck { key, outcome }));
                }
                Err(refusal) => nack(tag, 0x40, key, &refusal, say),
            },
            Done::Results(results, states) => {
                self.pushes.add(results.outcomes, now_ms);
                self.look_again(results.again, now_ms);
                self.changed(&states);
            }
            Done::Progress { key, progress } => {
                if let Some(progress) = progress {
                    self.tag = self.tag.wrapping_add(1);
                    say(self.tag, false, &message_of(key, &progress));
                }
            }
            Done::Acked { request, noted } => self.acked(request, noted, now_ms),
            Done::Broke => {
                let waiting =
                    |key: &u64| self.jobs.iter().any(|job| matches!(job, Job::Submit { key: k, .. } if k == key));
                self.storing = self.storing.iter().copied().filter(waiting).collect();
                self.look_again(true, now_ms);
            }
        }
    }

    /// Tells of each change once; what is lost on the way is not repeated, since a device that wants to know asks.
    fn changed(&mut self, states: &[(u64, u8)]) {
        for (key, state) in states {
            let is_told = self.states.get(key).copied().unwrap_or(state::QUEUED) == *state;
            if !is_told && !self.queue(Job::Progress { key: *key }) {
                return;
            }
        }
        self.states = states.iter().copied().collect();
    }

    fn acked(&mut self, request: u64, noted: bool, now_ms: u64) {
        if !noted {
            self.pushes.not_noted(request);
            self.look_again(true, now_ms);
        }
    }

    fn look_again(&mut self, again: bool, now_ms: u64) {
        if again {
            self.look_again_ms.get_or_insert(now_ms + LOOK_AGAIN_MS);
        }
    }

    fn hello_ack<'a>(&self, facts: &'a Facts, pending: u16) -> HelloAck<'a> {
        let room = if self.max_frame < ROOMY { NAME_BYTES_SMALL } else { facts.name.len() };
        HelloAck {
            proto: 1,
            gw_boot: facts.gw_boot,
            max_frame: self.max_frame,
            chunk: self.chunk(),
            credit: self.credit(),
            max_body: BLOB_BYTES_MAX,
            max_open: OPEN_MAX as u16,
            uplink: facts.uplink,
            time_ms: facts.time_ms,
            pending,
            gw: &facts.name[..facts.name.floor_char_boundary(room)],
        }
    }

    fn submitted(&mut self, tag: u8, key: u64, said: Said, say: Say<'_>) {
        self.storing.retain(|storing| *storing != key);
        match said {
            Said::Stored(stored) => {
                self.wanted.retain(|wanted| wanted.key != key);
                let outcome = match stored.how {
                    How::New => 0,
                    How::Again => 2,
                    How::Finished => 3,
                };
                let queue_pos = u16::try_from(stored.position).unwrap_or(u16::MAX);
                let ack = SubmitAck { key, outcome, req: stored.request, queue_pos, need: None };
                say(tag, false, &Message::SubmitAck(ack));
            }
            Said::Need { blob, there, with } => {
                self.wanted.retain(|wanted| wanted.blob.blob != blob.blob);
                if self.wanted.len() >= OPEN_MAX {
                    self.wanted.remove(0);
                }
                self.wanted.push(Wanted { key, blob, with, taken: there, there });
                let ack = SubmitAck { key, outcome: 1, req: 0, queue_pos: 0, need: Some((blob.blob, there)) };
                say(tag, false, &Message::SubmitAck(ack));
            }
            Said::Refused(refusal) => nack(tag, 0x10, key, &refusal, say),
        }
    }

    fn appended(&mut self, tag: u8, blob: BlobRef, next: Result<u32, UploadError>, say: Say<'_>) {
        let credit = self.credit();
        let Some(wanted) = self.wanted.iter_mut().find(|wanted| wanted.blob == blob) else { return };
        let next = match next {
            Ok(next) => {
                // A submission that came between them may have told an earlier place.
                (wanted.there, wanted.taken) = (next, wanted.taken.max(next));
                next
            }
            Err(UploadError::OutOfOrder(there)) => {
                (wanted.taken, wanted.there) = (there, there);
                there
            }
            Err(UploadError::Full | UploadError::Disk) => {
                let refusal = Refusal::for_now(Code::StorageFull, 30_000, "no room for uploads");
                // The same piece may come again, and is looked at again: this Nack may be lost.
                wanted.taken = wanted.there;
                return nack(tag, 0x20, wanted.key, &refusal, say);
            }
        };
        say(tag, false, &Message::ChunkAck(ChunkAck { blob: blob.blob, next, credit }));
    }

    fn queried(&mut self, tag: u8, key: u64, answer: Result<Answer, Refusal>, now_ms: u64, say: Say<'_>) {
        match answer {
            // Not stored yet, and nothing to be submitted again: its pieces are on their way.
            Ok(Answer::Unknown) if self.wanted.iter().any(|wanted| wanted.key == key) => {
                say(tag, false, &Message::Progress(Progress { key, state: state::UPLOADING, queue_pos: 0, eta_s: 0 }));
            }
            Ok(Answer::Unknown) => {
                let refusal = Refusal::new(Code::UnknownKey, "no such key: submit it again");
                nack(tag, 0x33, key, &refusal, say);
            }
            Ok(Answer::Progress(p)) => say(tag, false, &message_of(key, &p)),
            Ok(Answer::Result(outcome)) => self.pushes.asked(outcome, now_ms),
            Err(refusal) => nack(tag, 0x33, key, &refusal, say),
        }
    }

    /// Sends the part of a result that is due, and looks again where it is time to.
    pub(super) fn push(&mut self, now_ms: u64, say: Say<'_>) {
        if self.look_again_ms.take_if(|at| now_ms >= *at).is_some() {
            self.pushes.forgive();
            self.look = true;
        }
        let tag = self.tag.wrapping_add(1);
        let Some(part) = self.pushes.part(self.max_frame.into(), tag, now_ms) else { return };
        if !part.repeat {
            self.tag = tag;
        }
        say(part.tag, part.repeat, &Message::Result(part.answer));
    }
}

fn message_of(key: u64, progress: &core::Progress) -> Message<'static> {
    let small = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
    let (queue_pos, eta_s) = (small(progress.position), small(progress.eta_s));
    Message::Progress(Progress { key, state: progress.state, queue_pos, eta_s })
}

/// Says no.
pub(super) fn nack(tag: u8, re_type: u8, key: u64, refusal: &Refusal, say: Say<'_>) {
    let detail = &refusal.detail[..refusal.detail.floor_char_boundary(DETAIL_BYTES)];
    let (code, retry_ms) = (refusal.code.number(), refusal.retry_ms);
    say(tag, false, &Message::Nack(Nack { re_type, key, code, retry_ms, detail }));
}
