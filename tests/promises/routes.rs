//! A route that is refused pauses, loses nothing, and goes on as soon as somebody says that it is mended.

use holdfast::cli::simulate::Faults;
use hyper::Method;

use crate::support::{Ask, Bench, Settings, chat_body, refusing, until};

async fn store(bench: &Bench, model: &str, user: &str) -> String {
    let mut body = chat_body(user);
    body["model"] = model.into();
    let ask = Ask::post("/v1/chat/completions", body.to_string()).header("prefer", "respond-async");
    let reply = bench.daemon.send(ask).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    reply.id()
}

async fn drain(bench: &Bench) {
    let reply = bench.daemon.send(Ask::new(Method::POST, "/holdfast/v1/drain")).await;
    assert_eq!(reply.status, 200);
}

/// Waits until the daemon has recorded this refusal: `drain` before that would come too early.
async fn wait_refused(bench: &Bench, id: &str, status: u16) {
    let words = format!("(HTTP {status})");
    until("the refusal", 10, || async {
        let record = bench.daemon.record(id).await;
        record["last_error"]["message"].as_str().is_some_and(|message| message.contains(&words)).then_some(())
    })
    .await;
}

async fn wait_empty(bench: &Bench) {
    until("the backlog to drain", 10, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
}

#[tokio::test]
async fn a_mended_key_with_an_unknown_model_does_not_shut_the_uplink_for_good() {
    let bench = Bench::offline(Settings::without_local()).await;
    let first = store(&bench, "gpt-4o", "first").await;
    bench.uplink.set_faults(refusing(401)).await;
    bench.wait_online().await;
    wait_refused(&bench, &first, 401).await;
    // The key is mended, the model is not there.
    bench.uplink.set_faults(refusing(404)).await;
    drain(&bench).await;
    wait_refused(&bench, &first, 404).await;
    let second = store(&bench, "deepseek-v3.2", "second").await;
    bench.uplink.set_faults(Faults::default()).await;
    drain(&bench).await;
    wait_empty(&bench).await;
    for id in [first, second] {
        assert_eq!(bench.daemon.record(&id).await["state"], "answered");
    }
}

#[tokio::test]
async fn a_model_that_is_not_there_holds_up_no_other_and_goes_on_when_told() {
    let bench = Bench::offline(Settings::without_local()).await;
    let mut ids = Vec::new();
    for n in 0..12 {
        let model = if n % 2 == 0 { "not-yet" } else { "gpt-4o" };
        ids.push(store(&bench, model, &format!("mixed {n}")).await);
    }
    bench.uplink.set_faults(Faults { only_model: Some("not-yet".to_owned()), ..refusing(404) }).await;
    until("the other model's requests", 10, || async { (bench.daemon.backlog().await == 6).then_some(()) }).await;
    let refused = bench.uplink.log().iter().filter(|entry| entry.status == 404).count();
    assert_eq!(refused, 1, "one refusal is enough to know");
    bench.uplink.set_faults(Faults::default()).await;
    drain(&bench).await;
    wait_empty(&bench).await;
    for id in &ids {
        let record = bench.daemon.record(id).await;
        assert_eq!(record["state"], "answered", "{record}");
    }
}
