//! What a session wants of the core and of the uploads, and what comes of it.
//!
//! Owns nothing: each job is one call or two, done away from the line so that a slow disk keeps no bus waiting.

use holdfast_wire::Code;
use holdfast_wire::message::{self, BlobRef};

use crate::ingress::link::Link;
use crate::ingress::link::core::{Answer, Cancelled, How, Op, Progress, Refusal, Results, Stored, Submission, Upload};
use crate::ingress::link::state::Count;
use crate::ingress::link::upload::{Have, Name, UploadError};
use crate::spool::record::DeviceKey;

/// Results looked at together; a device takes one after the other.
const RESULTS: usize = 8;

/// One thing to be done.
#[derive(Debug)]
pub(super) enum Job {
    /// A device said Hello.
    Hello { tag: u8, boot: u32 },
    /// A request, its uploads named.
    Submit { tag: u8, key: u64, submission: Box<Submission>, blobs: Vec<BlobRef>, boot: u32 },
    /// The next bytes of an upload, and the device's numbers for all uploads of its request.
    Append { tag: u8, blob: BlobRef, with: Vec<u32>, boot: u32, off: u32, data: Vec<u8> },
    /// Where does it stand?
    Query { tag: u8, key: u64 },
    /// Not wanted any more.
    Cancel { tag: u8, key: u64 },
    /// Results to be told, without those that are known.
    Results { known: Vec<u64> },
    /// Its state has changed: how exactly?
    Progress { key: u64 },
    /// A result was taken.
    Acked { request: u64 },
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    Hello {
        tag: u8,
        pending: u16,
    },
    Submit {
        tag: u8,
        key: u64,
        said: Said,
    },
    Append {
        tag: u8,
        blob: BlobRef,
        next: Result<u32, UploadError>,
    },
    Query {
        tag: u8,
        key: u64,
        answer: Result<Answer, Refusal>,
    },
    Cancel {
        tag: u8,
        key: u64,
        cancelled: Result<Cancelled, Refusal>,
    },
    /// With the states of what is not over.
    Results(Results, Vec<(u64, u8)>),
    /// None where it is over already: its result follows.
    Progress {
        key: u64,
        progress: Option<Progress>,
    },
    /// Whether it is noted down that the result was taken.
    Acked {
        request: u64,
        noted: bool,
    },
    /// The gateway itself broke off; whoever asked asks again.
    Broke,
}

/// What is said to a request.
#[derive(Debug)]
pub(super) enum Said {
    Stored(Stored),
    /// These bytes are missing, from here on; `with` them belong all uploads of the request.
    Need {
        blob: BlobRef,
        there: u32,
        with: Vec<u32>,
    },
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
        Job::Append { tag, blob, with, boot, off, data } => {
            let (uploads, name) = (
                link.uploads.clone(),
                Name { link: link.core.link().into(), uid: uid.to_owned(), boot, blob: blob.blob },
            );
            let append = move || uploads.append(&name, &with, off, &data, blob.len);
            let appended = tokio::task::spawn_blocking(append).await;
            link.account.add(Count::Uploads, u64::from(matches!(appended, Ok(Ok(there)) if there == blob.len)));
            Done::Append { tag, blob, next: appended.unwrap_or(Err(UploadError::Disk)) }
        }
        Job::Query { tag, key } => Done::Query { tag, key, answer: core.query(uid, DeviceKey::Number(key)).await },
        Job::Cancel { tag, key } => {
            Done::Cancel { tag, key, cancelled: core.cancel(uid, DeviceKey::Number(key)).await }
        }
        Job::Results { known } => {
            let results = core.results(uid, RESULTS, &known).await;
            link.account.open(uid, core.open(uid).await);
            Done::Results(results, states(core.states(uid).await))
        }
        Job::Progress { key } => {
            let answer = core.query(uid, DeviceKey::Number(key)).await;
            let progress = if let Ok(Answer::Progress(progress)) = answer { Some(progress) } else { None };
            Done::Progress { key, progress }
        }
        Job::Acked { request } => {
            let noted = core.acked(uid, request).await.is_ok();
            link.account.add(Count::Results, u64::from(noted));
            Done::Acked { request, noted }
        }
    }
}

fn states(all: Vec<(DeviceKey, u8)>) -> Vec<(u64, u8)> {
    let numbered = |(key, state)| if let DeviceKey::Number(key) = key { Some((key, state)) } else { None };
    all.into_iter().filter_map(numbered).collect()
}

async fn submit(link: &Link, mut submission: Submission, blobs: &[BlobRef], boot: u32) -> Result<Said, Refusal> {
    if let Some(known) = link.core.look_up(&submission).await? {
        return Ok(Said::Stored(known));
    }
    let name =
        |blob: &BlobRef| Name { link: link.core.link().into(), uid: submission.uid.clone(), boot, blob: blob.blob };
    let names: Vec<Name> = blobs.iter().map(name).collect();
    for (at, (blob, name)) in blobs.iter().zip(&names).enumerate() {
        let (uploads, name, wanted) = (link.uploads.clone(), name.clone(), *blob);
        let have = tokio::task::spawn_blocking(move || uploads.have(&name, wanted.len, wanted.crc32)).await;
        match have {
            Ok(Ok(Have::Whole(path))) => {
                if let Some(upload) = uploads_of(&mut submission.op).get_mut(at) {
                    upload.file = Some(path);
                }
            }
            Ok(Ok(Have::Part(there))) => return Ok(need(*blob, there, blobs)),
            Ok(Ok(Have::Wrong)) => return Ok(need(*blob, 0, blobs)),
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

fn need(blob: BlobRef, there: u32, blobs: &[BlobRef]) -> Said {
    Said::Need { blob, there, with: blobs.iter().map(|blob| blob.blob).collect() }
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
