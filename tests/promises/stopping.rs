//! SIGTERM: running answers end, nothing accepted is lost, exit 0 within the grace.

use std::io;
use std::time::Duration;

use holdfast::cli::simulate::Faults;
use http_body_util::BodyExt;
use tokio::task::JoinHandle;

use crate::support::{Ask, Bench, Reply, Settings, chat_body, stream_text, until, within};

#[tokio::test]
async fn a_running_stream_is_finished() {
    let mut bench = Bench::start().await;
    bench.uplink.set_faults(Faults { chunk_ms: 150, ..Faults::default() }).await;
    let body = "{\"model\":\"gpt-4o\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"to the end\"}]}";
    let ask = Ask::post("/v1/chat/completions", body);
    let response = within("the head", 10, ask.open(&bench.daemon.socket())).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut stream = response.into_body();
    let first = within("the first piece", 10, stream.frame()).await.unwrap().unwrap();
    let mut text = String::from_utf8_lossy(&first.into_data().unwrap_or_default()).into_owned();
    bench.daemon.signal_stop();
    let rest = within("the rest", 10, stream.collect()).await.expect("the stream broke").to_bytes();
    text.push_str(&String::from_utf8_lossy(&rest));
    assert_eq!(stream_text(&text), "uplink answer to: to the end");
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    assert!(bench.daemon.ended().await.success());
}

#[tokio::test]
async fn a_drain_goes_on_after_the_restart() {
    const REQUESTS: usize = 20;
    let mut bench = Bench::offline(Settings { drain_in_flight: 2, ..Settings::default() }).await;
    let mut ids = Vec::new();
    for n in 0..REQUESTS {
        let reply = bench.daemon.send(Ask::chat(&format!("drained {n}")).header("prefer", "respond-async")).await;
        ids.push(reply.id());
    }
    bench.uplink.set_faults(Faults { delay_ms: 150, ..Faults::default() }).await;
    until("the drain to begin", 20, || async { (bench.uplink.requests_total() >= 3).then_some(()) }).await;
    assert!(bench.daemon.stop().await.success());
    bench.daemon.check_databases();
    let sent = bench.uplink.requests_total();
    assert!(sent < REQUESTS as u64, "the drain was over before the stop");
    bench.daemon.restart().await;
    bench.recover().await;
    for id in &ids {
        assert_eq!(bench.daemon.record(id).await["state"], "answered");
        let sends = bench.uplink.log().iter().filter(|entry| entry.idempotency_key.as_ref() == Some(id)).count();
        assert_eq!(sends, 1, "{id}: the attempt under way had time to end");
    }
}

#[tokio::test]
async fn a_held_caller_gets_its_ticket_when_the_daemon_stops() {
    let mut bench = Bench::offline(Settings::default()).await;
    let socket = bench.daemon.socket();
    let held = tokio::spawn(Ask::chat("held at the end").offline("queue").send_to_owned(socket));
    until("the request to be stored", 10, || async { (bench.daemon.backlog().await == 1).then_some(()) }).await;
    bench.daemon.signal_stop();
    let reply = within("the ticket", 12, held).await.unwrap().expect("the connection broke");
    reply.assert_error(503, "request_queued");
    assert!(bench.daemon.ended().await.success());
    bench.daemon.restart().await;
    bench.recover().await;
    assert_eq!(bench.daemon.record(&reply.id()).await["state"], "answered");
}

#[tokio::test]
async fn an_idle_daemon_stops_quickly_and_starts_again() {
    let mut bench = Bench::start().await;
    for _ in 0..3 {
        let started = holdfast::clock::now();
        assert!(bench.daemon.stop().await.success());
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        bench.daemon.restart().await;
    }
}

/// It was sent and may be billed: its client must not send it again by itself.
#[tokio::test]
async fn a_stop_in_the_middle_of_an_attempt_says_that_it_was_sent() {
    for stream in [false, true] {
        let environment = vec![("HOLDFAST_GATEWAY__STOP_GRACE", "300ms".to_owned())];
        let mut bench = Bench::with(Settings { patient: true, environment, ..Settings::default() }).await;
        bench.uplink.set_faults(Faults { delay_ms: 20_000, ..Faults::default() }).await;
        let mut body = chat_body("cut off");
        body["stream"] = stream.into();
        let ask = Ask::post("/v1/chat/completions", body.to_string()).header("x-holdfast-offline", "fail");
        let asking = tokio::spawn(ask.send_to_owned(bench.daemon.socket()));
        until("the send", 10, || async { (bench.answered("cut off") == 1).then_some(()) }).await;
        assert!(bench.daemon.stop().await.success());
        let reply = asking.await.unwrap().unwrap();
        if stream {
            assert!(reply.text().contains("upstream_timeout"), "{reply:?}");
        } else {
            reply.assert_error(504, "upstream_timeout");
            assert_eq!(reply.header("x-should-retry"), "false");
        }
    }
}

/// Stops while these wait and somebody asks for one of their answers; each gets the status that belongs to it.
async fn all_are_told_at_the_stop(bench: &mut Bench, waiting: [(JoinHandle<io::Result<Reply>>, u16); 2]) {
    let id = bench.daemon.get("/holdfast/v1/requests").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    let polling = Ask::get(&format!("/v1/chat/completions/{id}?wait=60")).send_to_owned(bench.daemon.socket());
    let polling = tokio::spawn(polling);
    // Connections are taken in order: what is asked for after it has its answer when that one is being served.
    bench.daemon.get("/health").await;
    assert!(bench.daemon.stop().await.success());
    for (waiting, status) in waiting {
        let reply = waiting.await.unwrap().expect("the connection broke");
        assert_eq!(reply.status, status, "{}", reply.text());
    }
    assert_eq!(polling.await.unwrap().expect("the connection broke").status, 409);
}

/// Their requests are on disk: at the end of the grace they are told so, instead of a connection that merely closes.
#[tokio::test]
async fn whoever_waits_for_a_stored_request_gets_its_ticket_at_the_end() {
    let environment = vec![("HOLDFAST_GATEWAY__STOP_GRACE", "300ms".to_owned())];
    let mut bench = Bench::with(Settings { patient: true, environment, ..Settings::without_local() }).await;
    bench.uplink.set_faults(Faults { delay_ms: 20_000, ..Faults::default() }).await;
    let chat = |user: &str| Ask::chat(user).header("x-stainless-timeout", "60");
    let asks = [
        (chat("keyed").header("idempotency-key", "k"), 503),
        (chat("patient").header("prefer", "respond-async, wait=30"), 202),
    ];
    let waiting = asks.map(|(ask, status)| (tokio::spawn(ask.send_to_owned(bench.daemon.socket())), status));
    until("the sends", 10, || async { (bench.answered("keyed") + bench.answered("patient") == 2).then_some(()) }).await;
    all_are_told_at_the_stop(&mut bench, waiting).await;
}

/// In an outage nothing comes any more for whoever waits for an uplink; the local model has the grace.
#[tokio::test]
async fn in_an_outage_whoever_waits_gets_his_ticket_too() {
    let environment = vec![("HOLDFAST_GATEWAY__STOP_GRACE", "2s".to_owned())];
    let mut bench = Bench::offline(Settings { environment, ..Settings::default() }).await;
    bench.ollama.set_faults(Faults { delay_ms: 60_000, ..Faults::default() }).await;
    let patient = Ask::chat("patient").header("prefer", "respond-async, wait=60");
    let local = Ask::chat("local").header("x-stainless-timeout", "60");
    let asks = [(patient, 202), (local, 503)];
    let waiting = asks.map(|(ask, status)| (tokio::spawn(ask.send_to_owned(bench.daemon.socket())), status));
    until("both to be stored", 10, || async { (bench.daemon.backlog().await == 2).then_some(()) }).await;
    all_are_told_at_the_stop(&mut bench, waiting).await;
}
