//! Answers of an uplink: long, cut, nested too deeply, and never seen.

use holdfast::cli::simulate::{Faults, Mode, StatusOn};
use http_body_util::BodyExt;
use serde_json::json;

use crate::support::{Ask, Bench, Settings, chat_body, stream_text, until, within};

/// More than is held back before an answer is passed on.
const LONG: usize = 512 * 1024;

fn answer(text: &str) -> Faults {
    let answer = format!(
        r#"{{"id":"c","object":"chat.completion","model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}]}}"#
    );
    // The probes stay green.
    Faults { answer: Some(answer), only_model: Some("gpt-4o".to_owned()), ..Faults::default() }
}

fn nested(depth: usize) -> Faults {
    let answer = format!(r#"{{"choices":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    Faults { answer: Some(answer), ..Faults::default() }
}

fn stored(user: &str) -> Ask {
    Ask::chat(user).header("prefer", "respond-async")
}

#[tokio::test]
async fn a_long_answer_is_passed_on_byte_for_byte() {
    let bench = Bench::start().await;
    let faults = answer(&"x".repeat(LONG));
    bench.uplink.set_faults(faults.clone()).await;
    let reply = bench.daemon.send(Ask::chat("long")).await;
    let wanted = faults.answer.unwrap();
    assert!(reply.status == 200 && reply.body == wanted, "{} {}", reply.status, reply.body.len());
    assert_eq!(reply.header("content-length"), wanted.len().to_string());
    assert_eq!(reply.header("x-holdfast-route"), "uplink:sim");
}

#[tokio::test]
async fn a_long_answer_that_breaks_off_never_looks_whole() {
    let bench = Bench::start().await;
    for fail in [Mode::Truncate, Mode::HalfJson] {
        bench.uplink.set_faults(Faults { fail, ..answer(&"x".repeat(LONG)) }).await;
        let response = Ask::chat("cut").open(&bench.daemon.socket()).await.unwrap();
        assert_eq!(response.status(), 200);
        let body = within("the end", 10, response.into_body().collect()).await;
        assert!(body.is_err(), "{fail:?}: {} bytes came as if they were all", body.unwrap().to_bytes().len());
    }
    bench.uplink.set_faults(Faults::default()).await;
    bench.wait_online().await;
    assert_eq!(bench.daemon.send(Ask::chat("after")).await.status, 200);
}

#[tokio::test]
async fn an_answer_nested_too_deeply_is_no_answer() {
    let bench = Bench::with(Settings::without_local()).await;
    bench.uplink.set_faults(nested(127)).await;
    assert_eq!(bench.daemon.send(Ask::chat("deep enough")).await.status, 200);
    bench.uplink.set_faults(nested(128)).await;
    bench.daemon.send(Ask::chat("too deep")).await.assert_error(502, "upstream_error");
    let id = bench.daemon.send(stored("too deep, stored")).await.id();
    let record = until("its end", 20, || async {
        let record = bench.daemon.record(&id).await;
        (record["state"] == "dead").then_some(record)
    })
    .await;
    assert_eq!(record["reason"], "no_answer", "{record}");
}

#[tokio::test]
async fn what_is_held_says_why_and_what_to_do() {
    let settings = Settings { on_unknown: "hold", ..Settings::without_local() };
    let bench = Bench::with(settings).await;
    for (fail, came) in [(Mode::Reset, false), (Mode::Truncate, true)] {
        bench.uplink.set_faults(Faults { fail, ..answer("half of it") }).await;
        bench.wait_online().await;
        let id = bench.daemon.send(stored("held")).await.id();
        let record = until("its end", 20, || async {
            let record = bench.daemon.record(&id).await;
            (record["state"] == "dead").then_some(record)
        })
        .await;
        assert_eq!(record["reason"], "unknown", "{record}");
        let message = record["last_error"]["message"].as_str().unwrap();
        for words in ["sent but not answered", "may have been billed", "on_unknown = \"hold\"", "holdfast queue retry"]
        {
            assert!(message.contains(words), "{words:?} is missing in {message:?}");
        }
        assert_eq!(record["uplink"]["response"].as_str().is_some_and(|r| r.contains("chat.completion")), came);
    }
}

/// Beyond the budget of second sends cut ones wait, labelled, with what came.
#[tokio::test]
async fn what_came_of_a_cut_answer_waits_with_its_request() {
    let bench = Bench::with(Settings::without_local()).await;
    bench.uplink.set_faults(Faults { fail: Mode::Truncate, ..answer("half of it") }).await;
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(bench.daemon.send(stored(&format!("cut {n}"))).await.id());
    }
    let record = until("one that waits for its second send", 60, || async {
        for id in &ids {
            let record = bench.daemon.record(id).await;
            if record["state"] == "queued" && record["maybe_billed"] == true && !record["uplink"].is_null() {
                return Some(record);
            }
        }
        None
    })
    .await;
    assert!(record["uplink"]["response"].as_str().unwrap().contains("chat.completion"), "{record}");
    assert_eq!(record["attempts"], 1, "{record}");
    bench.uplink.set_faults(Faults::default()).await;
    let id = record["id"].as_str().unwrap();
    let record = until("its answer", 60, || async {
        bench.daemon.send(Ask::chat("a success earns a second send")).await;
        let record = bench.daemon.record(id).await;
        (record["state"] == "answered" || record["state"] == "dead").then_some(record)
    })
    .await;
    assert!(record["uplink"]["response"].is_object() || record["state"] == "dead", "{record}");
}

/// One that waits for its back-off says until when, and one that is given up counts each of its sends.
#[tokio::test]
async fn a_record_says_when_it_is_tried_again_and_counts_every_send() {
    let set = |all: &[(&'static str, &str)]| all.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let environment = set(&[("HOLDFAST_RETRY__BASE", "30s"), ("HOLDFAST_RETRY__MAX", "30s")]);
    let bench = Bench::with(Settings { environment, ..Settings::default() }).await;
    bench.uplink.set_faults(Faults { status: Some(500), status_on: StatusOn::Post, ..Faults::default() }).await;
    let id = bench.daemon.send(Ask::chat("later").header("prefer", "respond-async")).await.id();
    let record = until("a failed send", 20, || async {
        let record = bench.daemon.record(&id).await;
        (record["attempts"] == 1 && record["next_attempt_at"].is_u64()).then_some(record)
    })
    .await;
    let wait = record["next_attempt_at"].as_u64().unwrap() as i64 - record["created_at"].as_u64().unwrap() as i64;
    assert!((0..=60).contains(&wait), "{record}");

    let quick =
        [("HOLDFAST_QUEUE__MAX_ATTEMPTS", "2"), ("HOLDFAST_RETRY__BASE", "10ms"), ("HOLDFAST_RETRY__MAX", "10ms")];
    let bench = Bench::with(Settings { environment: set(&quick), ..Settings::default() }).await;
    bench.uplink.set_faults(Faults { status: Some(500), status_on: StatusOn::Post, ..Faults::default() }).await;
    let id = bench.daemon.send(Ask::chat("given up").header("prefer", "respond-async")).await.id();
    let record = until("its end", 60, || async {
        let record = bench.daemon.record(&id).await;
        (record["state"] == "dead").then_some(record)
    })
    .await;
    assert_eq!(record["reason"], "attempts_exhausted");
    let sends = bench.uplink.log().iter().filter(|entry| entry.user == "given up").count();
    assert_eq!(
        (record["attempts"].as_u64(), &record["next_attempt_at"]),
        (Some(sends as u64), &json!(null)),
        "{record}"
    );
}

/// Something between packs answers although nobody asked: callers and records get what was packed.
#[tokio::test]
async fn a_packed_answer_is_unpacked_for_everybody() {
    let bench = Bench::with(Settings::without_local()).await;
    bench.uplink.set_faults(Faults::failing(Mode::Gzip)).await;
    let reply = bench.daemon.send(Ask::chat("plain")).await;
    assert_eq!((reply.status, reply.content().as_str()), (200, "uplink answer to: plain"));
    assert_eq!(reply.header("content-encoding"), "");
    let mut body = chat_body("streamed");
    body["stream"] = true.into();
    let reply = bench.daemon.send(Ask::post("/v1/chat/completions", body.to_string())).await;
    assert_eq!(stream_text(&reply.text()), "uplink answer to: streamed");
    let id = bench.daemon.send(stored("for later")).await.id();
    let record = until("its end", 20, || async {
        let record = bench.daemon.record(&id).await;
        (record["state"] == "answered").then_some(record)
    })
    .await;
    assert_eq!(record["uplink"]["response"]["choices"][0]["message"]["content"], "uplink answer to: for later");
}
