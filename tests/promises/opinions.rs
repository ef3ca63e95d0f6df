//! The second opinion: what the local model said during the outage, held against the uplink's answer later.

use holdfast::cli::simulate::Faults;
use serde_json::json;

use crate::support::{Ask, Bench, Settings, until};

/// Asks during an outage, ends it, and returns the record once it has both answers.
async fn both_answers(bench: &Bench, user: &str, uplink: Faults) -> serde_json::Value {
    let reply = bench.daemon.send(Ask::chat(user)).await;
    assert_eq!((reply.status, reply.header("x-holdfast-state")), (200, "queued"), "{}", reply.text());
    let id = reply.header("x-holdfast-id").to_owned();
    let waiting = bench.daemon.record(&id).await;
    assert!(waiting.get("agreement").is_none(), "there is one answer yet: {waiting}");
    bench.uplink.set_faults(uplink).await;
    until("the uplink's answer", 20, || async {
        let record = bench.daemon.record(&id).await;
        (record["state"] == "answered").then_some(record)
    })
    .await
}

async fn wait_counted(bench: &Bench, agreement: &str) {
    let counted =
        format!("holdfast_agreement_total{{task=\"0\",model=\"llama3.2:latest\",agreement=\"{agreement}\"}} 1\n");
    until("the comparison to be counted", 10, || async {
        bench.daemon.get("/metrics").await.text().contains(&counted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn different_answers_are_told_apart() {
    let bench = Bench::offline(Settings::default()).await;
    let record = both_answers(&bench, "is it a pore", Faults::default()).await;
    assert_eq!((&record["agreement"], &record["agreement_rule"]), (&json!("differs"), &json!("text")), "{record}");
    wait_counted(&bench, "differs").await;
}

#[tokio::test]
async fn equal_answers_are_found_equal() {
    let bench = Bench::offline(Settings::default()).await;
    let words = bench.daemon.send(Ask::chat("is it a crack").offline("local")).await.content();
    let message =
        json!({"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": words}}]});
    let uplink = Faults { answer: Some(message.to_string()), ..Faults::default() };
    let record = both_answers(&bench, "is it a crack", uplink).await;
    assert_eq!(record["agreement"], "same", "{record}");
    wait_counted(&bench, "same").await;
    let listed = bench.daemon.get("/holdfast/v1/requests").await.text();
    assert!(!listed.contains("agreement"), "a listing has no answers to compare: {listed}");
}

#[tokio::test]
async fn the_status_says_how_far_the_local_model_can_be_trusted() {
    let bench = Bench::offline(Settings::default()).await;
    assert_eq!(bench.daemon.status().await["agreement"], json!([]));
    both_answers(&bench, "is it a pore", Faults::default()).await;
    let counted = until("the comparison to be counted", 10, || async {
        let status = bench.daemon.status().await;
        (status["agreement"] != json!([])).then(|| status["agreement"][0].clone())
    })
    .await;
    let wanted = json!({"task": null, "model": "llama3.2:latest", "same": 0, "differs": 1, "unknown": 0, "rate": 0.0});
    assert_eq!(counted, wanted);
    let (code, shown) = bench.daemon.tool(&["status"]).await;
    assert!(code == 0 && shown.contains("agreed   no task, llama3.2:latest: 0 % of 1 answers"), "{shown}");
}
