//! From what a device asks to the body of a request: JSON with its pictures as base64, made piece by piece.
//!
//! Owns the JSON of a question. A picture is read from its file in small pieces and never is in memory as a whole.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use holdfast_wire::Code;
use serde_json::Value;

use super::submission::{Op, Refusal, Submission, Upload};
use super::tasks::{Filled, Piece, Tasks};
use crate::body::{Bodies, Body, ReceiveError};
use crate::uplink::body::{self, Head};

/// Bytes of a picture read at once: a multiple of three, so that base64 needs no padding between pieces.
const READ_BYTES: usize = 48 * 1024;
/// The paths a raw request may name by number.
const ENDPOINTS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];
/// When a request cannot be taken for lack of memory or disk, it makes sense again after this.
const DISK_RETRY_MS: u32 = 30_000;

/// A request's body with what the spool wants to know of it.
pub(super) struct Composed {
    pub(super) endpoint: &'static str,
    pub(super) head: Head,
    pub(super) body: Body,
    pub(super) policy: Option<crate::control::types::Policy>,
    pub(super) max_answer: u32,
}

/// Makes the body.
pub(super) async fn compose(
    submission: &Submission,
    tasks: &dyn Tasks,
    model: &str,
    bodies: &Bodies,
) -> Result<Composed, Refusal> {
    let filled = fill(submission, tasks, model)?;
    let body = match &submission.op {
        Op::RawUpload { body, .. } => whole_file(body, bodies).await?,
        _ => join(&filled.pieces, submission.uploads(), bodies).await?,
    };
    let head = body::read(filled.endpoint, &body).map_err(|e| Refusal::new(Code::BadPayload, words(&e.to_string())))?;
    Ok(Composed { endpoint: filled.endpoint, head, body, policy: filled.policy, max_answer: filled.max_answer })
}

/// All but its pictures: what is refused here needs none of them.
pub(super) fn fill(submission: &Submission, tasks: &dyn Tasks, model: &str) -> Result<Filled, Refusal> {
    match &submission.op {
        Op::Task { id, args, pictures } => {
            tasks.fill(*id, args, &mimes(pictures)?).map_err(|(code, detail)| Refusal::new(code, detail))
        }
        Op::Chat { pictures, .. } => Ok(question(&submission.op, model, &mimes(pictures)?)),
        Op::Raw { endpoint, json } => raw(*endpoint, vec![Piece::Json(json.clone())]),
        Op::RawUpload { endpoint, .. } => raw(*endpoint, Vec::new()),
    }
}

/// A detail fits into a Nack.
fn words(text: &str) -> String {
    text.chars().take(64).collect()
}

fn mimes(pictures: &[Upload]) -> Result<Vec<&'static str>, Refusal> {
    let mime = |upload: &Upload| match upload.mime {
        1 => Ok("image/jpeg"),
        2 => Ok("image/png"),
        3 => Ok("image/webp"),
        _ => Err(Refusal::new(Code::Unknown, "no such kind of picture")),
    };
    pictures.iter().map(mime).collect()
}

fn raw(endpoint: u8, pieces: Vec<Piece>) -> Result<Filled, Refusal> {
    let endpoint = ENDPOINTS.get(usize::from(endpoint)).copied();
    let endpoint = endpoint.ok_or_else(|| Refusal::new(Code::Unknown, "no such endpoint"))?;
    Ok(Filled { endpoint, model: String::new(), pieces, policy: None, max_answer: 0 })
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The chat request of a plain question.
fn question(op: &Op, default_model: &str, mimes: &[&'static str]) -> Filled {
    let Op::Chat { model, system, user, max_tokens, .. } = op else {
        return Filled {
            endpoint: ENDPOINTS[0],
            model: String::new(),
            pieces: Vec::new(),
            policy: None,
            max_answer: 0,
        };
    };
    let model = if model.is_empty() { default_model } else { model };
    let mut pieces = Vec::new();
    let mut json = format!("{{\"model\":{},\"messages\":[", quoted(model));
    if !system.is_empty() {
        json += &format!("{{\"role\":\"system\",\"content\":{}}},", quoted(system));
    }
    json += "{\"role\":\"user\",\"content\":";
    if mimes.is_empty() {
        json += &quoted(user);
    } else {
        json += &format!("[{{\"type\":\"text\",\"text\":{}}}", quoted(user));
        for (index, mime) in mimes.iter().enumerate() {
            json += &format!(",{{\"type\":\"image_url\",\"image_url\":{{\"url\":\"data:{mime};base64,");
            pieces.push(Piece::Json(std::mem::take(&mut json).into()));
            pieces.push(Piece::Picture(index));
            json += "\"}}";
        }
        json.push(']');
    }
    json += "}]";
    if *max_tokens > 0 {
        json += &format!(",\"max_tokens\":{max_tokens}");
    }
    json.push('}');
    pieces.push(Piece::Json(json.into()));
    Filled { endpoint: ENDPOINTS[0], model: model.to_owned(), pieces, policy: None, max_answer: 0 }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn taken(error: ReceiveError) -> Refusal {
    match error {
        ReceiveError::Disk(_) => Refusal::for_now(Code::StorageFull, DISK_RETRY_MS, "the disk takes no more"),
        ReceiveError::Busy(_) => Refusal::for_now(Code::Busy, DISK_RETRY_MS, "no memory for it right now"),
    }
}

fn lost(_: std::io::Error) -> Refusal {
    // The device is asked for the bytes again.
    Refusal::for_now(Code::BlobChecksum, 1, "the upload cannot be read back")
}

async fn join(pieces: &[Piece], uploads: &[Upload], bodies: &Bodies) -> Result<Body, Refusal> {
    let length = |piece: &Piece| match piece {
        Piece::Json(bytes) => bytes.len() as u64,
        Piece::Picture(index) => uploads.get(*index).map_or(0, |u| u64::from(u.len.div_ceil(3)) * 4),
    };
    let mut receiving = bodies.receive(Some(pieces.iter().map(length).sum()));
    for piece in pieces {
        match piece {
            Piece::Json(bytes) => receiving.push(bytes).await.map_err(taken)?,
            Piece::Picture(index) => {
                let file = uploads.get(*index).and_then(|upload| upload.file.clone());
                let file = file.ok_or_else(|| Refusal::new(Code::BadArguments, "a picture is missing"))?;
                let mut reader = open(&file).await?;
                loop {
                    let (bytes, back) = read(reader).await?;
                    reader = back;
                    if bytes.is_empty() {
                        break;
                    }
                    receiving.push(STANDARD.encode(&bytes).as_bytes()).await.map_err(taken)?;
                }
            }
        }
    }
    receiving.finish().await.map_err(taken)
}

async fn whole_file(upload: &Upload, bodies: &Bodies) -> Result<Body, Refusal> {
    let file = upload.file.clone().ok_or_else(|| Refusal::new(Code::BadArguments, "the body is missing"))?;
    let mut receiving = bodies.receive(Some(upload.len.into()));
    let mut reader = open(&file).await?;
    loop {
        let (bytes, back) = read(reader).await?;
        reader = back;
        if bytes.is_empty() {
            return receiving.finish().await.map_err(taken);
        }
        receiving.push(&bytes).await.map_err(taken)?;
    }
}

async fn open(path: &Path) -> Result<File, Refusal> {
    let path = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || File::open(path)).await;
    opened.map_err(std::io::Error::other).and_then(|file| file).map_err(lost)
}

/// The next piece, whole unless it is the last: base64 is made of each by itself.
async fn read(mut file: File) -> Result<(Bytes, File), Refusal> {
    let done = tokio::task::spawn_blocking(move || {
        let mut piece = Vec::with_capacity(READ_BYTES);
        (&mut file).take(READ_BYTES as u64).read_to_end(&mut piece)?;
        Ok((piece.into(), file))
    });
    done.await.map_err(std::io::Error::other).and_then(|read| read).map_err(lost)
}
