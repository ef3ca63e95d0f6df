//! What a technician can follow live: bodies only for who asks for them and never a picture; traces from end to end.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Ask, Bench, Settings, events, until, within};

/// Reads events until two kinds were seen, and returns everything.
async fn read_until(stream: &mut Response<Incoming>, words: &[&str]) -> String {
    let mut text = String::new();
    within("the events", 20, async {
        while !words.iter().all(|word| text.contains(word)) {
            let frame = stream.body_mut().frame().await.expect("the events ended").unwrap();
            text += &String::from_utf8_lossy(frame.data_ref().unwrap());
        }
    })
    .await;
    text
}

fn of_kind(text: &str, kind: &str) -> Value {
    let all = events(text).into_iter().map(|data| serde_json::from_str::<Value>(&data).unwrap());
    all.into_iter().find(|event| event["event"] == kind).unwrap_or_else(|| panic!("no {kind} in {text}"))
}

#[tokio::test]
async fn bodies_are_shown_to_who_asks_and_pictures_to_nobody() {
    let bench = Bench::offline(Settings::default()).await;
    let socket = bench.daemon.socket();
    let mut plain = Ask::get("/holdfast/v1/events").open(&socket).await.unwrap();
    let mut full = Ask::get("/holdfast/v1/events?bodies=1").open(&socket).await.unwrap();
    let picture = "iVBORw0KGgo".repeat(50);
    let url = json!({"url": format!("data:image/png;base64,{picture}")});
    let parts = json!([{"type": "text", "text": "a secret weld"}, {"type": "image_url", "image_url": url}]);
    let body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": parts}]});
    let answer = bench.daemon.send(Ask::post("/v1/chat/completions", body.to_string())).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = read_until(&mut full, &["request_body", "answer_body", "\"request\""]).await;
    let (asked, answered) = (of_kind(&seen, "request_body"), of_kind(&seen, "answer_body"));
    assert_eq!((&asked["id"], &answered["id"]), (&json!(answer.id()), &json!(answer.id())));
    let [at, at_ms] = ["at", "at_ms"].map(|name| asked[name].as_u64().unwrap());
    assert!(at == at_ms / 1000 && at.abs_diff(holdfast::clock::unix_ms() / 1000) < 60, "{asked}");
    let asked = asked["body"].as_str().unwrap();
    assert!(asked.contains("a secret weld") && asked.contains("base64,[picture, 411 bytes]"), "{asked}");
    assert!(!seen.contains("iVBORw0KGgo"), "{seen}");
    assert_eq!(answered["route"], "local:llava:latest");
    assert!(answered["body"].as_str().unwrap().contains(&answer.content()), "{answered}");
    let without = read_until(&mut plain, &["\"request\""]).await;
    assert!(!without.contains("_body") && !without.contains("a secret weld"), "{without}");
    let log = std::fs::read_to_string(bench.daemon.folder().join("daemon.log")).unwrap();
    assert!(log.contains("tap --bodies") && !log.contains("a secret weld"), "{log}");
}

#[tokio::test]
async fn a_repeated_cancel_or_retry_is_no_event() {
    let bench = Bench::offline(Settings::without_local()).await;
    let mut stream = Ask::get("/holdfast/v1/events").open(&bench.daemon.socket()).await.unwrap();
    let stored = |user: &str| bench.daemon.send(Ask::chat(user).header("prefer", "respond-async"));
    let path = format!("/holdfast/v1/requests/{}", stored("once").await.id());
    for _ in 0..3 {
        assert_eq!(bench.daemon.send(Ask::new(Method::DELETE, &path)).await.json()["state"], "cancelled");
    }
    for _ in 0..3 {
        assert_eq!(bench.daemon.send(Ask::post(&format!("{path}/retry"), "")).await.json()["state"], "queued");
    }
    let last = stored("the last").await.id();
    let seen = read_until(&mut stream, &[&last]).await;
    let count = |what: &str| events(&seen).iter().filter(|event| event.contains(what)).count();
    assert_eq!((count("\"state\":\"cancelled\""), count("\"reason\":\"retry\"")), (1, 1), "{seen}");
    let metrics = bench.daemon.get("/metrics").await.text();
    assert!(metrics.contains("holdfast_settled_total{state=\"cancelled\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_trace_is_passed_on_and_stands_in_the_log() {
    let bench = Bench::with(Settings::without_local()).await;
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{id}-00f067aa0ba902b7-01");
    let ask = |user: &str| Ask::chat(user).header("traceparent", &parent).header("tracestate", "rojo=00f067aa0ba902b7");
    assert_eq!(bench.daemon.send(ask("traced")).await.status, 200);
    let headers = &bench.uplink.latest()["headers"];
    assert_eq!((&headers["traceparent"], &headers["tracestate"]), (&json!(parent), &json!("rojo=00f067aa0ba902b7")));
    bench.outage(holdfast::cli::simulate::Faults::failing(holdfast::cli::simulate::Mode::Refuse)).await;
    assert_eq!(bench.daemon.send(ask("traced").offline("fail")).await.status, 503);
    until("the trace in the log", 10, || async {
        let log = std::fs::read_to_string(bench.daemon.folder().join("daemon.log")).unwrap();
        log.contains(id).then_some(())
    })
    .await;
}
