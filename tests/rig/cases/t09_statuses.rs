//! T9: what statuses and bodies mean, row by row against the real daemon; and 10,000 waiting requests over a virtual
//! day of a key that is refused, which control's own tests play.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast::plant::Fault;
use serde_json::Value;

use super::unit;
use crate::case::{Case, Effort, Outcome, Planted};
use crate::parts::config::{QUICK_BREAKER, QUICK_DRAIN, QUICK_PROBE, config};
use crate::parts::gateway::{Gateway, Setup};
use crate::parts::http::chat;
use crate::parts::rest;
use crate::parts::uplink::{Answer, Uplink};

pub const CASE: Case = Case {
    id: "T9",
    what: "statuses and bodies; 10,000 waiting and a wrong key for a day",
    faults: &[Planted::In(Fault::DeadLetterOn401)],
    run,
};

/// Daemons at once; each row has its own, because a pause outlives its request.
const WORKERS: usize = 4;

const TIMEOUTS: &str = "timeouts = { connect = \"1s\", first_byte = \"5s\", idle = \"5s\", total = \"20s\" }";

/// What becomes of a stored request whose first answer was this and whose second is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Sent again at no cost: no attempt is counted, nothing is labelled.
    Free,
    /// Sent again, unlabelled; an attempt may be counted.
    Retry,
    /// Sent again once, labelled before.
    Labelled,
    /// A dead letter, alone and at once.
    Dead,
}

const JSON: &str = "content-type: application/json\r\n";
const HTML: &str = "content-type: text/html\r\n";
const ERROR: &str = r#"{"error":{"message":"m","type":"t","param":null,"code":"c"}}"#;
const QUOTA: &str = r#"{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}"#;
const PAGE: &str = "<!doctype html><html><body>Please log in.</body></html>";

const ROWS: &[(Answer, Then)] = &[
    (Answer::Words("200 OK", HTML, PAGE), Then::Free),
    (Answer::Words("301 Moved", "location: http://127.0.0.1:9/\r\n", ""), Then::Free),
    (Answer::Words("302 Found", "location: http://127.0.0.1:9/\r\n", PAGE), Then::Free),
    (Answer::Words("307 Temporary", "location: http://127.0.0.1:9/\r\n", ""), Then::Free),
    (Answer::Words("407 Proxy", HTML, PAGE), Then::Free),
    (Answer::Words("511 Log In", HTML, PAGE), Then::Free),
    (Answer::Words("403 Forbidden", HTML, PAGE), Then::Free),
    (Answer::Words("401 Key", JSON, ERROR), Then::Free),
    (Answer::Words("402 Pay", JSON, ERROR), Then::Free),
    (Answer::Words("403 Forbidden", JSON, ERROR), Then::Free),
    (Answer::Words("404 Model", JSON, ERROR), Then::Free),
    (Answer::Words("429 Quota", JSON, QUOTA), Then::Free),
    (Answer::Words("429 Slow", "retry-after: 1\r\n", ERROR), Then::Free),
    (Answer::Words("408 Time", JSON, ERROR), Then::Retry),
    (Answer::Words("425 Early", JSON, ERROR), Then::Retry),
    (Answer::Words("500 Error", JSON, ERROR), Then::Retry),
    (Answer::Words("503 Busy", JSON, ERROR), Then::Retry),
    (Answer::Words("529 Overloaded", JSON, ERROR), Then::Retry),
    (Answer::Words("502 Gateway", HTML, PAGE), Then::Labelled),
    (Answer::Words("504 Gateway", HTML, PAGE), Then::Labelled),
    (Answer::Words("524 Between", HTML, PAGE), Then::Labelled),
    (Answer::Words("200 OK", JSON, "{\"choices\":[{\"mess"), Then::Labelled),
    (Answer::Half, Then::Labelled),
    (Answer::Nothing, Then::Labelled),
    (Answer::Words("200 OK", JSON, "{}"), Then::Dead),
    (Answer::Words("200 OK", JSON, "hello"), Then::Dead),
    (Answer::Words("400 Bad", JSON, ERROR), Then::Dead),
    (Answer::Words("413 Large", JSON, ERROR), Then::Dead),
    (Answer::Words("415 Type", JSON, ERROR), Then::Dead),
    (Answer::Words("422 Sense", JSON, ERROR), Then::Dead),
];

fn run(_: &Effort) -> Outcome {
    let next = Arc::new(AtomicUsize::new(0));
    let work = |next: Arc<AtomicUsize>| {
        move || {
            let mut broken = Vec::new();
            while let Some((answer, then)) = ROWS.get(next.fetch_add(1, Ordering::Relaxed)) {
                broken.extend(row(*answer, *then).err().map(|what| format!("{answer:?}: {what}")));
            }
            broken
        }
    };
    let workers: Vec<_> = (0..WORKERS).map(|_| std::thread::spawn(work(Arc::clone(&next)))).collect();
    let broken: Vec<String> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    if !broken.is_empty() {
        return Outcome::Broken(broken.join("; "));
    }
    for test in ["ten_thousand_requests_survive_a_day_of_a_bad_key", "where_probes_tell_of_the_key"] {
        if let Err(outcome) = unit::tests(&format!("control::tests::pauses::{test}"), &[]) {
            return outcome;
        }
    }
    let note = "and 10,000 requests over a virtual day of 401: none dead, all drained, at most 60 probes";
    Outcome::held(ROWS.len() as u64, "rows", note)
}

/// One request whose first answer is bad and whose second is good.
fn row(answer: Answer, then: Then) -> Result<(), String> {
    let (uplink, address) = Uplink::here();
    let config = config(&address, &[QUICK_PROBE, QUICK_BREAKER, TIMEOUTS], &[QUICK_DRAIN]);
    let gateway = Arc::new(Gateway::start(Setup { config, ..Setup::default() }));
    if !gateway.wait_available(true) {
        return Err("the uplink is not seen".to_owned());
    }
    let watcher = Arc::clone(&gateway);
    uplink.ask_label(move || watcher.labels_what_it_sends());
    uplink.set_once("row", answer);
    let id = gateway.store(&chat("row"))?;
    // Whoever mended a key or a model says so; elsewhere it changes nothing.
    let mut record = Value::Null;
    for _ in 0..60 {
        record = gateway.finished(&id, 0);
        if matches!(record["state"].as_str(), Some("answered" | "dead" | "expired" | "evicted" | "cancelled")) {
            break;
        }
        rest(Duration::from_millis(250));
        gateway.ask("POST", "/holdfast/v1/drain", &[], b"").map_err(|e| e.to_string())?;
    }
    let labels: Vec<bool> = uplink.sent("row").iter().map(|sent| sent.labelled).collect();
    uplink.ask_label(|| false);
    let (answered, attempts) = (record["state"] == "answered", record["attempts"].as_u64().unwrap_or(0));
    let right = match then {
        Then::Free => answered && labels == [false, false] && attempts == 1,
        Then::Retry => answered && labels == [false, false],
        Then::Labelled => answered && labels == [false, true],
        Then::Dead => record["state"] == "dead" && labels == [false] && record["reason"].is_string(),
    };
    if right { Ok(()) } else { Err(format!("{then:?} was due: sends labelled {labels:?}, {record}")) }
}
