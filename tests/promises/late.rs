//! Callers that say how long they wait have an answer by then: a ticket at the latest, and nothing is paid for twice.

use std::time::Duration;

use holdfast::cli::simulate::{Faults, Mode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};

use crate::support::{Ask, Bench, Reply, Settings, chat_body, events, stream_text, until};

const SLOW: &str = "slow-model";

/// The uplink takes this long for a request to its slow model; probes and other models are not held up.
fn slow(delay_ms: u64) -> Faults {
    Faults { delay_ms, only_model: Some(SLOW.to_owned()), ..Faults::default() }
}

fn chat(user: &str) -> Value {
    let mut body = chat_body(user);
    body["model"] = json!(SLOW);
    body
}

/// A caller that waits a second, as it says.
fn hasty(body: &Value) -> Ask {
    Ask::post("/v1/chat/completions", body.to_string()).header("prefer", "wait=1")
}

/// The same, and any answer to it will do for whoever asks the same.
fn exact(user: &str) -> Value {
    let mut body = chat(user);
    body["temperature"] = json!(0);
    body
}

fn patient(body: &Value) -> Ask {
    Ask::post("/v1/chat/completions", body.to_string())
}

async fn slow_bench(delay_ms: u64) -> Bench {
    let bench = Bench::with(Settings { patient: true, ..Settings::default() }).await;
    bench.uplink.set_faults(slow(delay_ms)).await;
    bench
}

fn assert_ticket(reply: &Reply, state: &str) {
    reply.assert_error(503, "request_queued");
    reply.assert_retry_after();
    assert_eq!((reply.header("x-should-retry"), reply.header("x-holdfast-state")), ("false", state));
    assert!(reply.header("location").contains(&reply.id()), "{reply:?}");
}

async fn state(bench: &Bench, id: &str) -> String {
    bench.daemon.record(id).await["state"].as_str().unwrap().to_owned()
}

async fn ended(bench: &Bench, id: &str) -> Value {
    until("the outcome", 40, || async {
        let record = bench.daemon.record(id).await;
        (!["queued", "sending"].contains(&record["state"].as_str().unwrap())).then_some(record)
    })
    .await
}

#[tokio::test]
async fn a_slow_answer_becomes_a_ticket_and_then_the_record() {
    let bench = slow_bench(4_000).await;
    let ticket = bench.daemon.send(hasty(&chat("a slow one"))).await;
    assert_ticket(&ticket, "sending");
    assert_eq!(state(&bench, &ticket.id()).await, "sending", "the try goes on");
    assert!(!ticket.text().contains("no uplink"), "{}", ticket.text());
    // The same body again belongs to it, however often its caller gives up.
    let again = bench.daemon.send(hasty(&chat("a slow one"))).await;
    again.assert_error(503, "request_queued");
    assert_eq!(again.id(), ticket.id());
    let record = ended(&bench, &ticket.id()).await;
    assert_eq!(record["state"], "answered", "{record}");
    assert_eq!(record["uplink"]["response"]["choices"][0]["message"]["content"], "uplink answer to: a slow one");
    let late = bench.daemon.send(hasty(&chat("a slow one"))).await;
    assert_eq!((late.status, late.content().as_str()), (200, "uplink answer to: a slow one"));
    assert_eq!(bench.answered("a slow one"), 1, "it was sent once");
}

#[tokio::test]
async fn a_long_answer_that_comes_too_late_is_whole_in_the_record() {
    let bench = Bench::with(Settings { patient: true, ..Settings::default() }).await;
    let words = "x".repeat(300_000);
    let answer = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": SLOW, "usage": null,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": words}}]});
    bench.uplink.set_faults(Faults { answer: Some(answer.to_string()), ..slow(2_500) }).await;
    let ticket = bench.daemon.send(hasty(&chat("a long one"))).await;
    assert_ticket(&ticket, "sending");
    let record = ended(&bench, &ticket.id()).await;
    assert_eq!(record["uplink"]["response"]["choices"][0]["message"]["content"], words);
}

#[tokio::test]
async fn what_its_policy_does_not_store_is_refused_in_time() {
    let bench = slow_bench(3_000).await;
    for policy in ["fail", "local"] {
        let reply = bench.daemon.send(hasty(&chat(policy)).offline(policy)).await;
        reply.assert_error(504, "upstream_timeout");
        assert_eq!(bench.answered(policy), 1);
    }
    assert_eq!(bench.daemon.backlog().await, 0);
}

#[tokio::test]
async fn a_power_cut_after_the_ticket_sends_it_once_more_and_says_so() {
    let mut bench = slow_bench(30_000).await;
    let ticket = bench.daemon.send(hasty(&chat("cut off"))).await;
    assert_ticket(&ticket, "sending");
    bench.daemon.kill().await;
    bench.uplink.set_faults(Faults::default()).await;
    bench.daemon.restart().await;
    let record = ended(&bench, &ticket.id()).await;
    assert_eq!(record["state"], "answered", "{record}");
    let history = bench.daemon.history(&ticket.id()).await;
    assert!(history.contains("maybe_billed"), "{history}");
    let sends = bench.uplink.log().into_iter().filter(|entry| entry.user == "cut off");
    let keys: Vec<_> = sends.map(|entry| entry.idempotency_key).collect();
    assert_eq!(keys, [Some(ticket.id()), Some(ticket.id())], "its uplink can tell that they are one");
}

#[tokio::test]
async fn a_stop_after_the_ticket_loses_nothing() {
    let mut bench = slow_bench(30_000).await;
    let ticket = bench.daemon.send(hasty(&chat("stopped"))).await;
    assert_ticket(&ticket, "sending");
    assert!(bench.daemon.stop().await.success());
    bench.uplink.set_faults(Faults::default()).await;
    bench.daemon.restart().await;
    assert_eq!(ended(&bench, &ticket.id()).await["state"], "answered");
    assert_eq!(bench.uplink.log().iter().filter(|entry| entry.user == "stopped").count(), 2);
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_ticket_is_judged_as_the_backlogs() {
    let bench = slow_bench(2_500).await;
    bench.uplink.set_faults(Faults { fail: Mode::Truncate, ..slow(2_500) }).await;
    let ticket = bench.daemon.send(hasty(&chat("broken"))).await;
    assert_ticket(&ticket, "sending");
    until("the break", 20, || async { (state(&bench, &ticket.id()).await != "sending").then_some(()) }).await;
    bench.uplink.set_faults(Faults::default()).await;
    let record = ended(&bench, &ticket.id()).await;
    // Sent once more within its budget; where the second try broke as well, it was the last.
    let sends = bench.uplink.log().iter().filter(|entry| entry.user == "broken").count();
    let wanted = if record["state"] == "answered" { json!(null) } else { json!("unknown") };
    assert_eq!((record["reason"].clone(), sends), (wanted, 2), "{record}");
}

#[tokio::test]
async fn a_slow_local_model_becomes_a_ticket_and_its_answer_is_kept() {
    let bench = Bench::offline(Settings { patient: false, ..Settings::default() }).await;
    bench.ollama.set_faults(Faults { delay_ms: 3_000, ..Faults::default() }).await;
    let ticket = bench.daemon.send(hasty(&chat("slow here, too"))).await;
    assert_ticket(&ticket, "queued");
    assert!(ticket.text().contains("local model has not answered"), "{}", ticket.text());
    let local = until("the local answer", 20, || async {
        let record = bench.daemon.record(&ticket.id()).await;
        record["local"]["response"].is_object().then(|| record["local"].clone())
    })
    .await;
    assert_eq!(local["response"]["choices"][0]["message"]["content"], "local answer to: slow here, too");
    let again = bench.daemon.send(hasty(&chat("slow here, too"))).await;
    assert_eq!((again.status, again.content().as_str()), (200, "local answer to: slow here, too"));
    let refused = bench.daemon.send(hasty(&chat("not stored")).offline("local")).await;
    refused.assert_error(504, "upstream_timeout");
    bench.recover().await;
    assert_eq!((bench.answered("slow here, too"), bench.answered("not stored")), (1, 0));
}

/// A stream says that it goes on, so its caller waits: the head and the first sign of life come in its time.
#[tokio::test]
async fn a_stream_shows_that_it_lives_within_its_callers_time() {
    let bench = slow_bench(2_500).await;
    let mut body = chat("streamed");
    body["stream"] = json!(true);
    let mut response = hasty(&body).open(&bench.daemon.socket()).await.unwrap();
    assert_eq!(response.status(), 200);
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, ": hf\n", "there is nothing else to say yet");
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(rest.to_vec()).unwrap();
    assert_eq!(stream_text(&text), "uplink answer to: streamed");
    assert_eq!(events(&text).last().map(String::as_str), Some("[DONE]"));
    assert_eq!(bench.answered("streamed"), 1);
}

/// One send serves all who ask the same, also those who wait longer than the one it was made for.
#[tokio::test]
async fn who_waits_for_the_same_has_the_answer_of_the_one_send() {
    for (policy, status, code) in [("both", 503, "request_queued"), ("fail", 504, "upstream_timeout")] {
        let settings = Settings { patient: true, cache: "ttl = \"5m\"".to_owned(), ..Settings::default() };
        let bench = Bench::with(settings).await;
        bench.uplink.set_faults(slow(4_000)).await;
        let leader = tokio::spawn(hasty(&exact("shared")).offline(policy).send_to_owned(bench.daemon.socket()));
        until("the send", 10, || async { (bench.answered("shared") == 1).then_some(()) }).await;
        let follower = || patient(&exact("shared")).send_to_owned(bench.daemon.socket());
        let followers = [tokio::spawn(follower()), tokio::spawn(follower()), tokio::spawn(follower())];
        leader.await.unwrap().unwrap().assert_error(status, code);
        for follower in followers {
            let reply = follower.await.unwrap().unwrap();
            assert_eq!((reply.status, reply.content().as_str()), (200, "uplink answer to: shared"), "{policy}");
        }
        let later = bench.daemon.send(hasty(&exact("shared"))).await;
        assert_eq!((later.status, later.content().as_str()), (200, "uplink answer to: shared"));
        assert_eq!(bench.answered("shared"), 1, "{policy}: it was sent once");
    }
}

/// What the queue does not take any more is not broken off, for it may be billed: its caller has the answer late.
#[tokio::test]
async fn a_full_queue_costs_no_answer_that_is_on_its_way() {
    let bench = Bench::with(Settings { patient: true, per_source_backlog: 1, ..Settings::default() }).await;
    bench.uplink.set_faults(slow(3_000)).await;
    let ticket = bench.daemon.send(hasty(&chat("the first"))).await;
    assert_ticket(&ticket, "sending");
    let late = bench.daemon.send(hasty(&chat("the second"))).await;
    assert_eq!((late.status, late.content().as_str()), (200, "uplink answer to: the second"));
    assert_eq!(
        (ended(&bench, &ticket.id()).await["state"].clone(), bench.answered("the second")),
        (json!("answered"), 1)
    );
}

/// What its caller waits counts from when the request was there: a slow line is not its answer's delay.
#[tokio::test]
async fn a_body_that_comes_slowly_costs_nothing_of_its_callers_time() {
    let bench = Bench::start().await;
    let body = chat("uploaded").to_string();
    let mut line = UnixStream::connect(bench.daemon.socket()).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\nconnection: close\r\nprefer: wait=1\r\n";
    line.write_all(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes()).await.unwrap();
    for piece in body.as_bytes().chunks(body.len().div_ceil(5)) {
        tokio::time::sleep(Duration::from_millis(400)).await;
        line.write_all(piece).await.unwrap();
    }
    let mut reply = String::new();
    line.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 ") && reply.contains("uplink answer to: uploaded"), "{reply}");
}

/// Whose body had not left when the process ends is no send that may have been billed.
#[tokio::test]
async fn what_had_not_left_at_a_stop_is_sent_as_if_never_tried() {
    let uplink = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = uplink.local_addr().unwrap();
    tokio::spawn(async move {
        let mut lines = Vec::new();
        while let Ok((mut line, _)) = uplink.accept().await {
            let mut start = [0; 4];
            line.read_exact(&mut start).await.unwrap();
            if start == *b"GET " {
                let models = "HTTP/1.1 200 OK\r\ncontent-length: 27\r\nconnection: close\r\n\r\n{\"object\":\"list\",\"data\":[]}";
                line.write_all(models.as_bytes()).await.unwrap();
            }
            // Nothing more is read of a request with a body.
            lines.push(line);
        }
    });
    let own = format!("[[uplink]]\nname = \"deaf\"\npriority = 0\nbase_url = \"http://{address}/v1\"\n");
    let settings = Settings { patient: true, on_unknown: "hold", extra: own, ..Settings::without_local() };
    let mut bench = Bench::with(settings).await;
    until("the deaf uplink", 10, || async {
        let health = bench.daemon.get("/v1/health").await.json();
        (health["providers"]["deaf"]["status"] == "healthy").then_some(())
    })
    .await;
    let ticket = bench.daemon.send(hasty(&chat(&"x".repeat(12_000_000)))).await;
    assert_ticket(&ticket, "sending");
    assert!(bench.daemon.stop().await.success());
    bench.daemon.restart().await;
    let record = bench.daemon.record(&ticket.id()).await;
    // Under "hold" what may have been billed is a dead letter.
    assert_ne!(record["state"], "dead", "{record}");
    assert_eq!(record["attempts"], 0, "nothing of it can have been billed: {record}");
}

/// What may have been billed is not sent once more for each that waits for the same: they hear of it.
#[tokio::test]
async fn who_waits_for_a_send_that_broke_hears_of_it() {
    let settings = Settings { patient: true, cache: "ttl = \"5m\"".to_owned(), ..Settings::default() };
    let bench = Bench::with(settings).await;
    bench.uplink.set_faults(Faults { fail: Mode::Truncate, ..slow(3_000) }).await;
    let leader = tokio::spawn(hasty(&exact("broken for all")).offline("fail").send_to_owned(bench.daemon.socket()));
    until("the send", 10, || async { (bench.answered("broken for all") == 1).then_some(()) }).await;
    let follower = tokio::spawn(patient(&exact("broken for all")).send_to_owned(bench.daemon.socket()));
    leader.await.unwrap().unwrap().assert_error(504, "upstream_timeout");
    follower.await.unwrap().unwrap().assert_error(502, "upstream_truncated");
    assert_eq!(bench.answered("broken for all"), 1);
}

/// A caller whose time is up between two tries sends no more: of those who wait for the same, one does.
#[tokio::test]
async fn who_waits_for_a_caller_that_gave_up_is_not_sent_one_by_one() {
    let settings = Settings { patient: true, cache: "ttl = \"5m\"".to_owned(), ..Settings::default() };
    let bench = Bench::with(settings).await;
    // The first try gets a portal's page after 0.6 s; the probe that decides about a second one takes longer than its caller waits.
    bench.uplink.set_faults(Faults { delay_ms: 600, ..Faults::failing(Mode::Html) }).await;
    let leader = tokio::spawn(hasty(&exact("given up")).offline("fail").send_to_owned(bench.daemon.socket()));
    until("the send", 10, || async { (bench.answered("given up") == 1).then_some(()) }).await;
    bench.uplink.set_faults(Faults { delay_ms: 900, ..Faults::default() }).await;
    let follower = || patient(&exact("given up")).send_to_owned(bench.daemon.socket());
    let followers = [tokio::spawn(follower()), tokio::spawn(follower()), tokio::spawn(follower())];
    leader.await.unwrap().unwrap().assert_error(504, "upstream_timeout");
    for follower in followers {
        let reply = follower.await.unwrap().unwrap();
        assert_eq!((reply.status, reply.content().as_str()), (200, "uplink answer to: given up"));
    }
    assert_eq!(bench.answered("given up"), 2, "one more send, for all of them");
}
