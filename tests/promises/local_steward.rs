//! The local model's steward: loaded while the uplinks are bad, left alone where it cannot be used, and a plain reason for it.

use holdfast::cli::simulate::{Faults, Mode};
use serde_json::Value;

use crate::support::{Ask, Bench, Settings, chat_body, until};

/// A bench whose local model is warmed up as `word` says.
async fn bench(word: &'static str) -> Bench {
    Bench::with(Settings { keep_warm: word, ..Settings::default() }).await
}

async fn local(bench: &Bench) -> Value {
    bench.daemon.status().await["local"].clone()
}

async fn wait_state(bench: &Bench, state: &str) -> Value {
    until(&format!("the local model to be {state}"), 30, || async {
        let local = local(bench).await;
        (local["state"] == state).then_some(local)
    })
    .await
}

fn loads(bench: &Bench) -> usize {
    bench.ollama.log().iter().filter(|entry| entry.path == "/api/generate").count()
}

#[tokio::test]
async fn an_outage_loads_the_model_before_anybody_asks() {
    let bench = bench("degraded").await;
    let ready = wait_state(&bench, "ready").await;
    assert_eq!(
        (&ready["loaded"], &ready["fits"], &ready["reason"]),
        (&false.into(), &true.into(), &Value::Null),
        "{ready}"
    );
    assert_eq!(loads(&bench), 0, "nothing is loaded while the uplink is healthy");
    bench.outage(Faults::failing(Mode::Refuse)).await;
    let loaded = wait_state(&bench, "loaded").await;
    assert_eq!((&loaded["loaded"], &loaded["used"]), (&true.into(), &true.into()), "{loaded}");
    assert_eq!(loads(&bench), 1);
    let metrics = bench.daemon.get("/metrics").await.text();
    assert!(metrics.contains("holdfast_local_state{state=\"loaded\"} 1"), "{metrics}");
}

#[tokio::test]
async fn always_loads_it_from_the_start() {
    let bench = bench("always").await;
    wait_state(&bench, "loaded").await;
    assert_eq!(loads(&bench), 1);
}

#[tokio::test]
async fn a_status_does_not_wait_for_a_server_that_hangs() {
    let bench = bench("never").await;
    wait_state(&bench, "ready").await;
    bench.ollama.set_faults(Faults::failing(Mode::Silence)).await;
    let gone = wait_state(&bench, "unreachable").await;
    assert_eq!((&gone["reachable"], &gone["used"]), (&false.into(), &false.into()), "{gone}");
    assert!(gone["reason"].as_str().unwrap().contains("local model"), "{gone}");
    bench.ollama.set_faults(Faults::default()).await;
    wait_state(&bench, "ready").await;
}

#[tokio::test]
async fn what_does_not_fit_is_as_if_there_were_no_local_model() {
    let bench = bench("degraded").await;
    bench.ollama.set_faults(Faults { model_bytes: Some(1 << 50), ..Faults::default() }).await;
    bench.outage(Faults::failing(Mode::Refuse)).await;
    let barred = wait_state(&bench, "does_not_fit").await;
    assert_eq!((&barred["fits"], &barred["used"]), (&false.into(), &false.into()), "{barred}");
    let reason = barred["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("does not fit into memory"), "{reason}");
    // `local` is refused with the reason, `both` gets a ticket that says it, too.
    let refused = bench.daemon.send(Ask::chat("only here").offline("local")).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("does not fit into memory"), "{}", refused.text());
    let ask = Ask::post("/v1/chat/completions", chat_body("both").to_string()).header("prefer", "wait=0");
    let ticket = bench.daemon.send(ask).await;
    assert_eq!(
        (ticket.status, ticket.json()["error"]["code"].as_str()),
        (503, Some("request_queued")),
        "{}",
        ticket.text()
    );
    assert!(ticket.text().contains("does not fit into memory"), "{}", ticket.text());
    let chats = bench.ollama.log().iter().filter(|entry| !entry.user.is_empty()).count();
    assert_eq!((chats, loads(&bench)), (0, 0), "it was not asked");
    // Room again: it is loaded and answers.
    bench.ollama.set_faults(Faults::default()).await;
    wait_state(&bench, "loaded").await;
    let answered = bench.daemon.send(Ask::chat("only here").offline("local")).await;
    assert_eq!(
        (answered.status, answered.header("x-holdfast-route")),
        (200, "local:llama3.2:latest"),
        "{}",
        answered.text()
    );
}
