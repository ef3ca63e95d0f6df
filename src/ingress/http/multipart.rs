//! Forms with a file in them, as uploads come: read piece by piece, never whole in memory.
//!
//! Owns the bounds of a form's parts. The body is here already, in memory or as a file, so a form that is not for us can
//! be passed on as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use multer::{Field, Multipart};

use super::refusal::Refusal;
use crate::batch::{FileMeta, Incoming, Later};
use crate::body::{Body, PIECE_BYTES};

/// Parts of one form: the API knows four.
const PARTS_MAX: usize = 16;
/// Longest value of a part that is no file.
const VALUE_BYTES_MAX: usize = 1024;
/// Bytes taken from the body and not handed out as a part's content: the parser holds these, headers of parts and
/// boundaries among them.
const HELD_BYTES_MAX: u64 = 256 * 1024;

/// What a form says beside its file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// `purpose`.
    pub purpose: Option<String>,
    /// The file's name and length, where there is one.
    pub file: Option<(String, u64)>,
}

/// A form on its way through the parser.
struct Parts {
    form: Multipart<'static>,
    handed: Arc<AtomicU64>,
    left: usize,
}

impl Parts {
    fn open(headers: &HeaderMap, body: &Body) -> Result<Parts, Refusal> {
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let boundary = multer::parse_boundary(kind).map_err(|_| {
            let message = "this path takes multipart/form-data with a boundary";
            Refusal::new(hyper::StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
        })?;
        let handed = Arc::new(AtomicU64::new(0));
        let pieces = stream::try_unfold((body.clone(), 0u64, handed.clone()), next_piece);
        Ok(Parts { form: Multipart::new(pieces, boundary), handed, left: PARTS_MAX })
    }

    async fn next(&mut self) -> Result<Option<Field<'static>>, Refusal> {
        self.left = self.left.checked_sub(1).ok_or_else(|| bad("the form has too many parts"))?;
        self.form.next_field().await.map_err(|_| bad("the body is no valid multipart/form-data"))
    }

    async fn chunk(&self, field: &mut Field<'static>) -> Result<Option<Bytes>, Refusal> {
        let chunk = field.chunk().await.map_err(|_| bad("the body is no valid multipart/form-data"))?;
        if let Some(chunk) = &chunk {
            self.handed.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        Ok(chunk)
    }
}

type Pieces = (Body, u64, Arc<AtomicU64>);

/// The parser takes what it is offered for as long as something comes at once; so it waits once for each piece, and gets
/// none while it holds too much.
async fn next_piece((body, at, handed): Pieces) -> Result<Option<(Bytes, Pieces)>, std::io::Error> {
    tokio::task::yield_now().await;
    if at.saturating_sub(handed.load(Ordering::Relaxed)) > HELD_BYTES_MAX {
        return Err(std::io::Error::other("a part's head is too long"));
    }
    if at >= body.len() {
        return Ok(None);
    }
    let end = body.len().min(at + PIECE_BYTES as u64);
    let piece = if let Some(piece) = body.glance(at, end) {
        piece
    } else {
        let file = body.clone();
        tokio::task::spawn_blocking(move || file.read(at, end)).await.map_err(std::io::Error::other)??
    };
    if piece.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let next = at + piece.len() as u64;
    Ok(Some((piece, (body, next, handed))))
}

fn bad(message: &str) -> Refusal {
    Refusal::bad_field("invalid_multipart", None::<&str>, message)
}

fn is_file(field: &Field<'_>) -> bool {
    field.name() == Some("file")
}

/// Reads a form through without keeping its file.
pub async fn look(headers: &HeaderMap, body: &Body) -> Result<Form, Refusal> {
    let mut parts = Parts::open(headers, body)?;
    let mut form = Form::default();
    while let Some(mut field) = parts.next().await? {
        let mut value = Vec::new();
        let (mut bytes, is_file) = (0, is_file(&field));
        if is_file && form.file.is_some() {
            return Err(bad("the form has two parts named file; upload one file at a time"));
        }
        while let Some(chunk) = parts.chunk(&mut field).await? {
            bytes += chunk.len() as u64;
            if !is_file && bytes > VALUE_BYTES_MAX as u64 {
                return Err(bad("a field of the form is too long"));
            }
            if !is_file {
                value.extend_from_slice(&chunk);
            }
        }
        if is_file {
            form.file = Some((field.file_name().unwrap_or("upload.jsonl").to_owned(), bytes));
        } else if field.name() == Some("purpose") {
            form.purpose = Some(String::from_utf8_lossy(&value).into_owned());
        }
    }
    Ok(form)
}

/// Keeps the form's file; on return it is on disk.
pub async fn keep(
    later: &Later,
    source: &str,
    headers: &HeaderMap,
    body: &Body,
    (name, bytes): (String, u64),
) -> Result<FileMeta, Refusal> {
    let mut incoming: Incoming = later.upload(source, name, bytes).await?;
    let mut parts = Parts::open(headers, body)?;
    while let Some(mut field) = parts.next().await? {
        while let Some(chunk) = parts.chunk(&mut field).await? {
            if is_file(&field) {
                incoming.write(chunk).await?;
            }
        }
        if is_file(&field) {
            break;
        }
    }
    Ok(incoming.finish().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn headers() -> HeaderMap {
        [(CONTENT_TYPE, HeaderValue::from_static("multipart/form-data; boundary=XX"))].into_iter().collect()
    }

    fn form(head: &str, file: &[u8], tail: &str) -> Body {
        let open = "Content-Disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n";
        [head.as_bytes(), b"--XX\r\n", open.as_bytes(), file, tail.as_bytes()].concat().into()
    }

    const PURPOSE: &str = "--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n";

    #[tokio::test]
    async fn the_purpose_is_found_before_and_after_the_file() {
        let file = vec![b'x'; 300_000];
        let wanted = Form { purpose: Some("batch".to_owned()), file: Some(("in.jsonl".to_owned(), 300_000)) };
        let before = form(PURPOSE, &file, "\r\n--XX--\r\n");
        assert_eq!(look(&headers(), &before).await.unwrap(), wanted);
        let after = form("", &file, &format!("\r\n{PURPOSE}--XX--\r\n"));
        assert_eq!(look(&headers(), &after).await.unwrap(), wanted);
    }

    #[tokio::test]
    async fn a_form_that_is_none_or_too_much_is_refused() {
        assert!(look(&HeaderMap::new(), &form(PURPOSE, b"x", "\r\n--XX--\r\n")).await.is_err());
        assert!(look(&headers(), &form(PURPOSE, b"x", "")).await.is_err());
        let second =
            format!("\r\n{PURPOSE}--XX\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\ny\r\n--XX--\r\n");
        let refused = look(&headers(), &form("", b"x", &second)).await.unwrap_err();
        assert!(refused.message().contains("two parts named file"), "{}", refused.message());
        let long_head = format!("--XX\r\nX: {}\r\n\r\n", "y".repeat(1_000_000));
        assert!(look(&headers(), &form(&long_head, b"x", "\r\n--XX--\r\n")).await.is_err());
        let long_value = PURPOSE.replace("batch", &"y".repeat(2_000));
        assert!(look(&headers(), &form(&long_value, b"x", "\r\n--XX--\r\n")).await.is_err());
        assert!(look(&headers(), &form(&PURPOSE.repeat(PARTS_MAX + 1), b"x", "\r\n--XX--\r\n")).await.is_err());
    }
}
