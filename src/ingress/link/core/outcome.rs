//! From a stored request's end to the one result that its device is told.
//!
//! Owns which answer that is and how much of it is told; never sends anything.

use bytes::Bytes;
use holdfast_wire::message::TEXT_BYTES_MAX;

use super::submission::Outcome;
use super::tasks::{Reading, Tasks};
use crate::body::Body;
use crate::control::types::State;
use crate::plant::{self, Fault};
use crate::spool::record::{Ask, DeviceRequest, Record};
use crate::task;

const OK: u8 = 0;
const FAILED: u8 = 1;
const EXPIRED: u8 = 2;
const CANCELLED: u8 = 3;
const TRUNCATED: u8 = 4;
const REFUSED: u8 = 5;
const NOBODY: u8 = 0;
const UPLINK: u8 = 1;
const LOCAL: u8 = 2;

/// The result, where there is one yet. Blocks where the answer is a file.
pub(super) fn of(request: &DeviceRequest, record: &Record, tasks: &dyn Tasks) -> Option<Outcome> {
    let key = request.key.clone()?;
    let mut told =
        Outcome { request: request.seq, key, status: OK, source: NOBODY, code: 0, value: 0.0, text: Bytes::new() };
    // Once the local answer is on record it is the result, whatever an uplink says later: a device is told one.
    let later = plant::is(Fault::LinkResultNotDeduplicated) && record.state == State::Answered;
    let text = match (&record.local, &record.uplink, record.state) {
        (Some((answer, _)), ..) if !later => {
            told.source = LOCAL;
            said(request.ask, &answer.body.clone().into())
        }
        (_, Some((answer, _)), State::Answered) => {
            told.source = if answer.uplink.is_empty() { LOCAL } else { UPLINK };
            said(request.ask, &answer.body)
        }
        (_, _, State::Answered) => Err("the answer is lost"),
        (_, _, State::Expired) => Ok(ended(&mut told, EXPIRED, "expired")),
        (_, _, State::Cancelled) => Ok(ended(&mut told, CANCELLED, "cancelled")),
        (_, Some((answer, _)), State::Dead) if record.reason.as_deref() == Some("misfit") => {
            // Twice not what the task asks for: the words that came, as they are.
            (told.status, told.source) = (FAILED, if answer.uplink.is_empty() { LOCAL } else { UPLINK });
            said(request.ask, &answer.body)
        }
        (_, _, State::Evicted | State::Dead) => {
            let why = record.last_error.as_ref().map(|error| error.kind.as_str());
            let why = why.or(record.reason.as_deref()).unwrap_or("failed").to_owned();
            // The uplink's own no to this request: as it stands it would be refused again.
            let is_refused = ["refused", "too_large", "unsupported", "unprocessable"].contains(&why.as_str());
            Ok(ended(&mut told, if is_refused { REFUSED } else { FAILED }, &why))
        }
        (_, _, State::Queued | State::Sending | State::Unknown) => return None,
    };
    match text {
        Ok(text) => tell(&mut told, request, &text, tasks),
        Err(why) => {
            (told.status, told.text) = (FAILED, Bytes::from_static(why.as_bytes()));
        }
    }
    Some(told)
}

/// What is told of a request whose answer nobody can tell any more.
pub(super) fn lost(request: &DeviceRequest, why: &'static str) -> Option<Outcome> {
    let (key, text) = (request.key.clone()?, Bytes::from_static(why.as_bytes()));
    Some(Outcome { request: request.seq, key, status: FAILED, source: NOBODY, code: 0, value: 0.0, text })
}

fn ended(told: &mut Outcome, status: u8, why: &str) -> String {
    told.status = status;
    why.to_owned()
}

fn tell(told: &mut Outcome, request: &DeviceRequest, text: &str, tasks: &dyn Tasks) {
    let limit = if request.max_reply == 0 { TEXT_BYTES_MAX as usize } else { usize::from(request.max_reply) };
    let limit = limit.min(TEXT_BYTES_MAX as usize);
    let reading = match request.ask {
        Ask::Task(id) if told.status == OK => tasks.read(id, text),
        _ => None,
    };
    let Some(Reading { fits, code, value, text, cut }) = reading else {
        let short = shortened(text, limit);
        if told.status == OK && short.len() < text.len() {
            told.status = TRUNCATED;
        }
        told.text = Bytes::copy_from_slice(short.as_bytes());
        return;
    };
    let short = shortened(&text, limit);
    told.status = match (fits, cut || short.len() < text.len()) {
        (false, _) => FAILED,
        (true, true) => TRUNCATED,
        (true, false) => OK,
    };
    (told.code, told.value, told.text) = (code, value, Bytes::copy_from_slice(short.as_bytes()));
}

/// No more than so many bytes, whole characters only.
fn shortened(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// The words of an answer, or its JSON where the device made the request by itself.
fn said(ask: Ask, body: &Body) -> Result<String, &'static str> {
    if ask == Ask::Raw {
        // Four bytes more, so that a cut is seen as one.
        let start = body.start(TEXT_BYTES_MAX as usize + 4).map_err(|_| "the answer cannot be read")?;
        return Ok(String::from_utf8_lossy(&start).into_owned());
    }
    task::said(body.reader()).ok_or("the answer has no words")
}
