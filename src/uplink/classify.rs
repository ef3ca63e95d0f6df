//! What a status, a body or a broken connection means: bytes and errors to an [`Outcome`].
//!
//! Pure functions over what was received; each kind of end has its row in `control/tests/table.rs`. Never sends anything.

use std::io::BufReader;
use std::time::SystemTime;

use httpdate::parse_http_date;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, RETRY_AFTER};
use serde::Deserialize;

use super::cloud::Whole;
use super::outgoing::Progress;
use crate::body::{Body, scan};
use crate::control::event::{Block, Check, Fault, Outcome};

/// Longest `Retry-After` that is believed: an hour.
const RETRY_AFTER_MAX_MS: u64 = 3_600_000;

/// What an answer's status, headers and first bytes mean for the request.
pub fn outcome(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Outcome {
    let html = is_html(headers, body);
    match status.as_u16() {
        200..=299 if html => Outcome::Unreachable(Fault::Portal),
        200..=299 => Outcome::Delivered,
        300..=399 => Outcome::Unreachable(Fault::Redirect),
        407 | 511 => Outcome::Unreachable(Fault::Portal),
        // 529 is a service's own "overloaded".
        502 | 504 | 520..=528 | 530 => Outcome::Unknown(Fault::BadGateway),
        // About this request's size or form, whoever words it: the next one may pass.
        413 | 414 | 415 | 422 | 431 => refusal(status.as_u16(), headers, body),
        _ if html => Outcome::Unreachable(Fault::Portal),
        400..=499 => refusal(status.as_u16(), headers, body),
        _ => transient(Fault::ServerError, headers),
    }
}

fn transient(fault: Fault, headers: &HeaderMap) -> Outcome {
    retry_after_ms(headers, None).map_or(Outcome::Transient(fault), |wait_ms| Outcome::Later { fault, wait_ms })
}

/// The service's own word goes before the status: some say 400 or 403 for a bad key or a spent quota.
fn refusal(status: u16, headers: &HeaderMap, body: &[u8]) -> Outcome {
    let words = error_words(body);
    let says = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    match status {
        400 | 402 | 403 | 429 if says(&QUOTA_WORDS) => Outcome::Blocked(Block::Quota),
        401 => Outcome::Blocked(Block::Key),
        400 | 403 if says(&KEY_WORDS) => Outcome::Blocked(Block::Key),
        402 => Outcome::Blocked(Block::Quota),
        403 | 404 => Outcome::Blocked(Block::Configuration),
        400 if says(&MODEL_WORDS) => Outcome::Blocked(Block::Configuration),
        408 | 409 | 425 => transient(Fault::TryAgain, headers),
        413 => Outcome::Permanent(Fault::TooLarge),
        415 => Outcome::Permanent(Fault::Unsupported),
        422 => Outcome::Permanent(Fault::Unprocessable),
        429 => Outcome::RateLimited { retry_after_ms: retry_after_ms(headers, None) },
        _ => Outcome::Permanent(Fault::Refused),
    }
}

/// What came of a whole attempt: something between that gave up before the body was out had passed nothing on.
pub fn attempt(whole: &Whole) -> Outcome {
    match outcome(whole.status, &whole.headers, &whole.body) {
        Outcome::Unknown(Fault::BadGateway) if !whole.body_out => Outcome::Transient(Fault::BadGateway),
        other => other,
    }
}

/// What a probe's answer says about the uplink. Any JSON of its own below 500 shows that it is there. A 403 is no
/// word about the key: some keys may answer questions but not list models.
pub fn check(status: StatusCode, headers: &HeaderMap, body: &[u8], latency_ms: u64) -> Check {
    match outcome(status, headers, body) {
        Outcome::Delivered if !looks_like_json(body) => Check::Failed(Fault::Portal),
        Outcome::Unreachable(fault)
        | Outcome::Transient(fault @ Fault::ServerError)
        | Outcome::Later { fault: fault @ Fault::ServerError, .. }
        | Outcome::Unknown(fault) => Check::Failed(fault),
        other => Check::Passed { latency_ms, key_refused: other == Outcome::Blocked(Block::Key) },
    }
}

/// `Retry-After` in seconds, whole or broken, or as a date. A date is counted from the answer's own: a board may have no
/// clock. Where the answer has none, from `here`, if that is given.
pub fn retry_after_ms(headers: &HeaderMap, here: Option<SystemTime>) -> Option<u64> {
    let said = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait_ms = match said.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => (seconds * 1000.0) as u64,
        Ok(_) => return None,
        Err(_) => {
            let now = date(headers, &DATE).or(here)?;
            date(headers, &RETRY_AFTER)?.duration_since(now).unwrap_or_default().as_millis() as u64
        }
    };
    Some(wait_ms.min(RETRY_AFTER_MAX_MS))
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    parse_http_date(headers.get(name)?.to_str().ok()?.trim()).ok()
}

/// Whether this is a page for people: some services send JSON as `text/plain`, so the body decides first.
pub fn is_html(headers: &HeaderMap, body: &[u8]) -> bool {
    if looks_like_json(body) {
        return false;
    }
    let declared = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("text/html"));
    declared || first_byte(body) == Some(b'<')
}

fn looks_like_json(body: &[u8]) -> bool {
    matches!(first_byte(body), Some(b'{' | b'['))
}

fn first_byte(body: &[u8]) -> Option<u8> {
    body.iter().copied().find(|b| !b.is_ascii_whitespace())
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorWords,
}

#[derive(Deserialize)]
struct ErrorWords {
    #[serde(default)]
    code: serde_json::Value,
    #[serde(default, rename = "type")]
    kind: serde_json::Value,
    #[serde(default)]
    message: serde_json::Value,
}

/// What an error's body says in words.
pub fn message(body: &[u8]) -> Option<String> {
    let body = serde_json::from_slice::<ErrorBody>(body).ok()?;
    body.error.message.as_str().map(str::to_owned)
}

/// Words that services use where the cause is money, not speed.
const QUOTA_WORDS: [&str; 9] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "insufficient_balance",
    "insufficient_credits",
    "quota_exceeded",
    "spend_limit_reached",
    "spending_limit_exceeded",
];
/// Words that services use for a key they do not accept.
const KEY_WORDS: [&str; 4] = ["invalid_api_key", "incorrect_api_key", "authentication_error", "API_KEY_INVALID"];
/// Words that services use for a model they do not have.
const MODEL_WORDS: [&str; 2] = ["model_not_found", "unknown_model"];

/// The error's `code` and `type`, where they are words.
fn error_words(body: &[u8]) -> Vec<String> {
    let Ok(body) = serde_json::from_slice::<ErrorBody>(body) else { return Vec::new() };
    [body.error.code, body.error.kind].iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

#[derive(Deserialize)]
struct AnswerShape {
    choices: Option<serde::de::IgnoredAny>,
    data: Option<serde::de::IgnoredAny>,
    output: Option<serde::de::IgnoredAny>,
}

/// What a complete 200 to a stored request means: an answer, a cut one, or something else. Blocks where the body is a
/// file.
pub fn stored_answer(body: &Body) -> Outcome {
    let layout = body.layout();
    if *layout == Err(scan::Fault::Deep) {
        return Outcome::NoAnswer;
    }
    match serde_json::from_reader::<_, AnswerShape>(BufReader::new(body.reader())) {
        Ok(AnswerShape { choices: None, data: None, output: None }) => Outcome::NoAnswer,
        // A list could pass for the shape.
        Ok(_) if matches!(layout, Err(scan::Fault::Syntax { .. })) => Outcome::NoAnswer,
        Ok(_) => Outcome::Delivered,
        Err(error) if error.is_eof() => Outcome::Unknown(Fault::Truncated),
        Err(_) => Outcome::NoAnswer,
    }
}

/// What a failed send means, from how far the body had come.
pub fn send_failure(error: &(dyn std::error::Error + 'static), is_connect: bool, body: &Progress) -> Outcome {
    if is_connect || !body.has_begun() {
        Outcome::Unreachable(connect_fault(error))
    } else if !body.is_out() || is_unprocessed(error) {
        Outcome::Transient(Fault::Write)
    } else {
        Outcome::Unknown(Fault::Reset)
    }
}

/// An error and what it wraps, from the outside in.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |e| {
        // An io::Error names the cause of what it wraps as its source, not what it wraps.
        let wrapped = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| e.source())
    })
}

/// HTTP/2 says of a stream that the other side never looked at it: refused, or above the last one it names when it
/// goes away. The words are those of the library, whose types are not ours to see.
fn is_unprocessed(error: &(dyn std::error::Error + 'static)) -> bool {
    let unprocessed = ["refused stream before processing", "connection error received: not a result of an error"];
    causes(error).any(|e| {
        let text = e.to_string();
        unprocessed.iter().any(|words| text.contains(words))
    })
}

/// Looks through an error's causes for what kept the connection from coming up.
pub(super) fn connect_fault(error: &(dyn std::error::Error + 'static)) -> Fault {
    let found = causes(error).find_map(|e| match e.downcast_ref::<rustls::Error>() {
        Some(error) => Some(tls_fault(error)),
        None => e.to_string().starts_with("dns error").then_some(Fault::Dns),
    });
    found.unwrap_or(Fault::Connect)
}

/// A certificate of the future means that the clock here is behind.
fn tls_fault(error: &rustls::Error) -> Fault {
    use rustls::CertificateError::{NotValidYet, NotValidYetContext};
    match error {
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => Fault::Clock,
        _ => Fault::Tls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    }

    fn of(status: u16, body: &str) -> Outcome {
        outcome(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes())
    }

    #[test]
    fn the_table() {
        let json = r#"{"error":{"message":"m","code":"c"}}"#;
        assert_eq!(of(200, r#"{"choices":[]}"#), Outcome::Delivered);
        assert_eq!(of(200, "<!DOCTYPE html>"), Outcome::Unreachable(Fault::Portal));
        assert_eq!(of(302, ""), Outcome::Unreachable(Fault::Redirect));
        assert_eq!(of(511, json), Outcome::Unreachable(Fault::Portal));
        assert_eq!(of(400, json), Outcome::Permanent(Fault::Refused));
        assert_eq!(of(413, json), Outcome::Permanent(Fault::TooLarge));
        assert_eq!(of(415, json), Outcome::Permanent(Fault::Unsupported));
        assert_eq!(of(422, json), Outcome::Permanent(Fault::Unprocessable));
        assert_eq!(of(401, json), Outcome::Blocked(Block::Key));
        assert_eq!(of(402, json), Outcome::Blocked(Block::Quota));
        assert_eq!(of(403, json), Outcome::Blocked(Block::Configuration));
        assert_eq!(of(403, "<html>"), Outcome::Unreachable(Fault::Portal));
        assert_eq!(of(404, json), Outcome::Blocked(Block::Configuration));
        assert_eq!(of(408, json), Outcome::Transient(Fault::TryAgain));
        assert_eq!(of(429, json), Outcome::RateLimited { retry_after_ms: None });
        assert_eq!(of(429, r#"{"error":{"code":"insufficient_quota"}}"#), Outcome::Blocked(Block::Quota));
        assert_eq!(of(500, json), Outcome::Transient(Fault::ServerError));
        assert_eq!(of(503, ""), Outcome::Transient(Fault::ServerError));
        assert_eq!(of(529, json), Outcome::Transient(Fault::ServerError));
        assert_eq!(of(502, "<html>"), Outcome::Unknown(Fault::BadGateway));
        assert_eq!(of(524, ""), Outcome::Unknown(Fault::BadGateway));
        assert_eq!(of(503, "<html>"), Outcome::Unreachable(Fault::Portal));
        assert_eq!(of(425, json), Outcome::Transient(Fault::TryAgain));
    }

    #[test]
    fn whoever_says_when_to_come_again_is_left_alone_until_then() {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, "3".parse().unwrap())]);
        for (status, fault) in [(503, Fault::ServerError), (529, Fault::ServerError), (409, Fault::TryAgain)] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(outcome(status, &headers, b"{}"), Outcome::Later { fault, wait_ms: 3_000 });
        }
    }

    #[test]
    fn the_services_word_goes_before_its_status() {
        for (status, word, wanted) in [
            (403, "insufficient_quota", Block::Quota),
            (429, "billing_hard_limit_reached", Block::Quota),
            (400, "invalid_api_key", Block::Key),
            (400, "model_not_found", Block::Configuration),
        ] {
            let body = format!(r#"{{"error":{{"message":"m","code":"{word}"}}}}"#);
            assert_eq!(of(status, &body), Outcome::Blocked(wanted), "{status} {word}");
        }
    }

    #[test]
    fn a_gateway_that_gave_up_before_the_body_was_out_passed_nothing_on() {
        let whole = |body_out| Whole {
            status: StatusCode::BAD_GATEWAY,
            headers: HeaderMap::new(),
            body: bytes::Bytes::new(),
            body_out,
        };
        assert_eq!(attempt(&whole(true)), Outcome::Unknown(Fault::BadGateway));
        assert_eq!(attempt(&whole(false)), Outcome::Transient(Fault::BadGateway));
    }

    #[test]
    fn a_certificate_of_the_future_is_a_matter_of_the_clock() {
        use rustls::CertificateError::{Expired, NotValidYet, UnknownIssuer};
        for (certificate, fault) in [(NotValidYet, Fault::Clock), (Expired, Fault::Tls), (UnknownIssuer, Fault::Tls)] {
            let error = std::io::Error::other(rustls::Error::InvalidCertificate(certificate));
            assert_eq!(connect_fault(&error), fault);
        }
    }

    #[test]
    fn json_declared_as_text_is_json() {
        let headers = headers(&[("content-type", "text/html")]);
        assert_eq!(outcome(StatusCode::OK, &headers, b" {\"choices\":[]}"), Outcome::Delivered);
        assert_eq!(outcome(StatusCode::OK, &headers, b"welcome"), Outcome::Unreachable(Fault::Portal));
    }

    #[test]
    fn a_probe_passes_when_the_uplink_itself_spoke() {
        let probe = |status: u16, body: &str| {
            check(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes(), 5)
        };
        assert_eq!(probe(200, "{\"data\":[]}"), Check::Passed { latency_ms: 5, key_refused: false });
        assert_eq!(probe(401, "{}"), Check::Passed { latency_ms: 5, key_refused: true });
        assert_eq!(probe(403, "{}"), Check::Passed { latency_ms: 5, key_refused: false });
        assert_eq!(probe(404, "{}"), Check::Passed { latency_ms: 5, key_refused: false });
        assert_eq!(probe(200, "Please log in"), Check::Failed(Fault::Portal));
        assert_eq!(probe(302, ""), Check::Failed(Fault::Redirect));
        assert_eq!(probe(503, "{}"), Check::Failed(Fault::ServerError));
        assert_eq!(probe(502, ""), Check::Failed(Fault::BadGateway));
    }

    #[test]
    fn retry_after_as_sent_in_the_wild() {
        let of = |v| retry_after_ms(&headers(&[("retry-after", v)]), None);
        assert_eq!(of("3"), Some(3000));
        assert_eq!(of("1.5"), Some(1500));
        assert_eq!(of("9999999"), Some(RETRY_AFTER_MAX_MS));
        assert_eq!(of("Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(of("-1"), None);
    }

    #[test]
    fn a_retry_after_that_is_a_date_is_counted_from_the_answers_own() {
        let by_theirs =
            |date| retry_after_ms(&headers(&[("date", "Wed, 21 Oct 2026 07:28:00 GMT"), ("retry-after", date)]), None);
        assert_eq!(by_theirs("Wed, 21 Oct 2026 07:28:20 GMT"), Some(20_000));
        assert_eq!(by_theirs("Wed, 21 Oct 2026 07:27:00 GMT"), Some(0));
        assert_eq!(by_theirs("Thu, 22 Oct 2026 07:28:00 GMT"), Some(RETRY_AFTER_MAX_MS));
        assert_eq!(by_theirs("tomorrow"), None);
        let here = parse_http_date("Wed, 21 Oct 2026 07:28:15 GMT").unwrap();
        let by_ours = headers(&[("retry-after", "Wed, 21 Oct 2026 07:28:20 GMT")]);
        assert_eq!(retry_after_ms(&by_ours, Some(here)), Some(5_000));
    }

    #[test]
    fn a_stored_answer_is_whole_cut_or_none() {
        let of = |text: &str| stored_answer(&text.as_bytes().to_vec().into());
        let nested = |depth: usize| format!("{{\"choices\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(of(r#"{"choices":[]}"#), Outcome::Delivered);
        assert_eq!(of(r#"{"data":[]}"#), Outcome::Delivered);
        assert_eq!(of(r#"{"choices":[{"mess"#), Outcome::Unknown(Fault::Truncated));
        assert_eq!(of("hello"), Outcome::NoAnswer);
        assert_eq!(of("{}"), Outcome::NoAnswer);
        assert_eq!(of("[1,2,3]"), Outcome::NoAnswer);
        assert_eq!(of(&nested(scan::JSON_DEPTH_MAX - 1)), Outcome::Delivered);
        assert_eq!(of(&nested(scan::JSON_DEPTH_MAX)), Outcome::NoAnswer);
    }
}
