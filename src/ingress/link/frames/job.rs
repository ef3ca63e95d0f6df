//! What a session wants of the core and of the uploads, and what comes of it.
//!
//! Owns nothing: each job is one call or two, done away from the line so that a slow disk keeps no bus waiting.

use std::time::Duration;

use holdfast_wire::Code;
use holdfast_wire::message::{self, BlobRef};

use crate::ingress::link::Link;
use crate::ingress::link::core::{Answer, Cancelled, How, Op, Outcome, Refusal, Stored, Submission, Upload};
use crate::ingress::link::state::Count;
use crate::ingress::link::upload::{Have, Name, UploadError};
use crate::spool::record::DeviceKey;

/// Results looked at together; a device takes one after the other.
const RESULTS: u32 = 8;
/// So often a result that was taken is written down before it is offered again: most salvages take a few seconds, and
/// the device's other jobs wait behind this one.
const ACK_TRIES: u32 = 5;
/// From one of these tries to the next.
const ACK_AGAIN: Duration = Duration::from_millis(500);

/// One thing to be done.
#[derive(Debug)]
pub(super) enum Job {
    /// A device said Hello.
    Hello { tag: u8, boot: u32 },
    /// A request, its uploads named.
    Submit { tag: u8, key: u64, submission: Box<Submission>, blobs: Vec<BlobRef>, boot: u32 },
    /// The next bytes of an upload.
    Append { tag: u8, blob: BlobRef, boot: u32, off: u32, data: Vec<u8> },
    /// Where does it stand?
    Query { tag: u8, key: u64 },
    /// Not wanted any more.
    Cancel { tag: u8, key: u64 },
    /// Results to be told, without those that are known.
    Results { known: Vec<u64> },
    /// A result was taken.
    Acked { request: u64 },
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    Hello { tag: u8, pending: u16 },
    Submit { tag: u8, key: u64, said: Said },
    Append { tag: u8, blob: BlobRef, next: Result<u32, UploadError> },
    Query { tag: u8, key: u64, answer: Result<Answer, Refusal> },
    Cancel { tag: u8, key: u64, cancelled: Result<Cancelled, Refusal> },
    Results(Vec<Outcome>),
    Acked,
}

/// What is said to a request.
#[derive(Debug)]
pub(super) enum Said {
    Stored(Stored),
    /// These bytes are missing, from here on.
    Need(BlobRef, u32),
    Refused(Refusal),
}

/// Does one job for one device.
pub(super) async fn run(link: &Link, uid: &str, job: Job) -> Done {
    let core = &link.core;
    match job {
        Job::Hello { tag, boot } => {
            let (uploads, whose) = (link.uploads.clone(), uid.to_owned());
            let _ = tokio::task::spawn_blocking(move || uploads.drop_older(&whose, boot)).await;
            Done::Hello { tag, pending: core.pending(uid).await }
        }
        Job::Submit { tag, key, submission, blobs, boot } => {
            let said = submit(link, *submission, &blobs, boot).await.unwrap_or_else(Said::Refused);
            Done::Submit { tag, key, said }
        }
        Job::Append { tag, blob, boot, off, data } => {
            let (uploads, name) = (link.uploads.clone(), Name { uid: uid.to_owned(), boot, blob: blob.blob });
            let appended = tokio::task::spawn_blocking(move || uploads.append(&name, off, &data, blob.len)).await;
            Done::Append { tag, blob, next: appended.unwrap_or(Err(UploadError::Disk)) }
        }
        Job::Query { tag, key } => Done::Query { tag, key, answer: core.query(uid, DeviceKey::Number(key)).await },
        Job::Cancel { tag, key } => {
            Done::Cancel { tag, key, cancelled: core.cancel(uid, DeviceKey::Number(key)).await }
        }
        Job::Results { known } => {
            let results = core.results_but(uid, RESULTS, &known).await.unwrap_or_default();
            link.account.open(uid, core.open(uid).await);
            Done::Results(results)
        }
        Job::Acked { request } => {
            if acked(link, uid, request).await {
                link.account.add(Count::Results, 1);
            }
            // Where it was not written down it is offered again, and acknowledged again.
            Done::Acked
        }
    }
}

/// While a damaged spool is salvaged it waits a moment; the device has the result already and is kept by nothing.
async fn acked(link: &Link, uid: &str, request: u64) -> bool {
    for _ in 1..ACK_TRIES {
        if link.core.acked(uid, request).await.is_ok() {
            return true;
        }
        tokio::time::sleep(ACK_AGAIN).await;
    }
    link.core.acked(uid, request).await.is_ok()
}

async fn submit(link: &Link, mut submission: Submission, blobs: &[BlobRef], boot: u32) -> Result<Said, Refusal> {
    if let Some(known) = link.core.look_up(&submission).await? {
        return Ok(Said::Stored(known));
    }
    let names: Vec<Name> = blobs.iter().map(|b| Name { uid: submission.uid.clone(), boot, blob: b.blob }).collect();
    for (at, (blob, name)) in blobs.iter().zip(&names).enumerate() {
        let (uploads, name, wanted) = (link.uploads.clone(), name.clone(), *blob);
        let have = tokio::task::spawn_blocking(move || uploads.have(&name, wanted.len, wanted.crc32)).await;
        match have {
            Ok(Ok(Have::Whole(path))) => {
                if let Some(upload) = uploads_of(&mut submission.op).get_mut(at) {
                    upload.file = Some(path);
                }
            }
            Ok(Ok(Have::Part(there))) => return Ok(Said::Need(*blob, there)),
            Ok(Ok(Have::Wrong)) => return Ok(Said::Need(*blob, 0)),
            Ok(Err(_)) | Err(_) => {
                return Err(Refusal::for_now(Code::StorageFull, 30_000, "the uploads cannot be read"));
            }
        }
    }
    let stored = link.core.submit(submission).await;
    // What can be tried again needs its pictures again.
    let over = stored.as_ref().map_or_else(|refusal| refusal.retry_ms == 0, |_| true);
    let spoilt = stored.as_ref().is_err_and(|refusal| refusal.code == Code::BlobChecksum);
    if !names.is_empty() && (over || spoilt) {
        let uploads = link.uploads.clone();
        let _ = tokio::task::spawn_blocking(move || names.iter().for_each(|name| uploads.remove(name))).await;
    }
    let stored = stored?;
    if stored.how == How::New {
        link.account.add(Count::Stored, 1);
    }
    Ok(Said::Stored(stored))
}

fn uploads_of(op: &mut Op) -> &mut [Upload] {
    match op {
        Op::Task { pictures, .. } | Op::Chat { pictures, .. } => pictures,
        Op::RawUpload { body, .. } => std::slice::from_mut(body),
        Op::Raw { .. } => &mut [],
    }
}

/// A Submit as the core wants it.
pub(super) fn submission(uid: &str, submit: &message::Submit<'_>) -> Submission {
    let upload = |b: &BlobRef| Upload { len: b.len, crc32: b.crc32, mime: b.mime, file: None };
    let op = match &submit.op {
        message::Op::Task { id, args, blobs } => Op::Task {
            id: *id,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            pictures: blobs.iter().map(upload).collect(),
        },
        message::Op::Chat { model, system, user, max_tokens, blobs } => Op::Chat {
            model: (*model).to_owned(),
            system: (*system).to_owned(),
            user: (*user).to_owned(),
            max_tokens: *max_tokens,
            pictures: blobs.iter().map(upload).collect(),
        },
        message::Op::Raw { endpoint, json } => Op::Raw { endpoint: *endpoint, json: json.to_vec().into() },
        message::Op::RawBlob { endpoint, body } => Op::RawUpload { endpoint: *endpoint, body: upload(body) },
    };
    Submission {
        uid: uid.to_owned(),
        key: DeviceKey::Number(submit.key),
        prio: submit.prio,
        ttl_s: submit.ttl_s,
        flags: submit.flags,
        max_reply: submit.max_reply,
        op,
    }
}
