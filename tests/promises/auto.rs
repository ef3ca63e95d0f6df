//! `model = "auto"`: rules say which model it is, live and stored, and everybody is told which one answered.

use serde_json::{Value, json};

use crate::support::{Ask, Bench, Reply, Settings, chat_body, until};

const RULES: &str = r#"
[[auto]]
has_picture = true
model = "eyes"

[[auto]]
prompt_bytes_min = "4KiB"
model = "long"

[[auto]]
offline = true
model = "later"

[[auto]]
priority = "critical"
model = "best"

[[auto]]
models = [{ name = "left", share = 50 }, { name = "right", share = 50 }]
"#;

fn auto(user: &str) -> Value {
    let mut body = chat_body(user);
    body["model"] = "auto".into();
    body
}

fn post(body: &Value) -> Ask {
    Ask::post("/v1/chat/completions", body.to_string())
}

async fn bench() -> Bench {
    Bench::with(Settings { extra: RULES.to_owned(), ..Settings::without_local() }).await
}

/// The model that the uplink saw last, with what the caller was told.
fn models(bench: &Bench, reply: &Reply) -> (String, String) {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let log = bench.uplink.log();
    let seen = log.iter().rfind(|seen| seen.path.ends_with("/completions")).unwrap();
    (seen.model.clone().unwrap_or_default(), reply.json()["model"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn the_first_rule_that_fits_names_the_model() {
    let bench = bench().await;
    let same = |name: &str| (name.to_owned(), name.to_owned());
    let mut picture = auto("what is this?");
    picture["messages"][0]["content"] =
        json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]);
    let reply = bench.daemon.send(post(&picture)).await;
    assert_eq!(models(&bench, &reply), same("eyes"));
    let reply = bench.daemon.send(post(&auto(&"long ".repeat(1_000)))).await;
    assert_eq!(models(&bench, &reply), same("long"));
    let reply = bench.daemon.send(post(&auto("urgent")).header("x-holdfast-priority", "critical")).await;
    assert_eq!(models(&bench, &reply), same("best"));
    let reply = bench.daemon.send(post(&auto("stored")).header("idempotency-key", "k1")).await;
    let (seen, told) = models(&bench, &reply);
    assert!(seen == told && ["left", "right"].contains(&seen.as_str()), "{seen} {told}");
    let reply = bench.daemon.send(Ask::chat("an ordinary model")).await;
    assert_eq!(models(&bench, &reply).0, chat_body("x")["model"]);
    let list = bench.daemon.get("/v1/models").await.json();
    assert!(list["data"].as_array().unwrap().iter().any(|model| model["id"] == "auto"), "{list}");
}

#[tokio::test]
async fn shares_split_requests_and_a_repeat_stays_where_it_was() {
    let bench = bench().await;
    let mut counts = (0, 0);
    for n in 0..40 {
        let ask = auto(&format!("question {n}"));
        let first = models(&bench, &bench.daemon.send(post(&ask)).await).0;
        assert_eq!(models(&bench, &bench.daemon.send(post(&ask)).await).0, first);
        let (left, right) = (usize::from(first == "left"), usize::from(first == "right"));
        counts = (counts.0 + left, counts.1 + right);
    }
    // Forty throws of a coin: fewer than five heads come once in 500,000 times, and bodies do not change.
    assert!(counts.0 >= 5 && counts.1 >= 5 && counts.0 + counts.1 == 40, "{counts:?}");
}

#[tokio::test]
async fn what_it_is_was_decided_when_it_was_stored() {
    let bench = Bench::offline(Settings { extra: RULES.to_owned(), ..Settings::without_local() }).await;
    let ticket = bench.daemon.send(post(&auto("for later")).header("prefer", "respond-async")).await;
    let id = ticket.header("x-holdfast-id").to_owned();
    assert_eq!(bench.daemon.record(&id).await["model"], "later");
    bench.recover().await;
    until("the record to end", 10, || async { (bench.daemon.record(&id).await["state"] == "answered").then_some(()) })
        .await;
    let seen = bench.uplink.log().iter().rfind(|seen| seen.path.ends_with("/completions")).unwrap().model.clone();
    assert_eq!(seen.as_deref(), Some("later"));
}

/// Background responses and the lines of a batch are stored requests as all others are.
#[tokio::test]
async fn it_is_decided_for_what_is_fetched_later_too() {
    let bench = Bench::offline(Settings { extra: RULES.to_owned(), ..Settings::without_local() }).await;
    let response = json!({"model": "auto", "input": "later", "background": true});
    let response = bench.daemon.send(Ask::post("/v1/responses", response.to_string())).await.json();
    assert_eq!(response["model"], "later", "{response}");
    let path = "/v1/chat/completions";
    let line = json!({"custom_id": "c", "method": "POST", "url": path, "body": auto("in a batch")});
    let form = format!(
        "--cut\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--cut\r\n\
         Content-Disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n{line}\r\n--cut--\r\n"
    );
    let file = bench.daemon.send(Ask::form("/v1/files", form, "multipart/form-data; boundary=cut")).await.json();
    let batch = json!({"input_file_id": file["id"], "endpoint": path, "completion_window": "24h"});
    assert_eq!(bench.daemon.send(Ask::post("/v1/batches", batch.to_string())).await.status, 200);
    until("both to be in the queue", 10, || async { (bench.daemon.backlog().await == 2).then_some(()) }).await;
    let list = bench.daemon.get("/holdfast/v1/requests").await.json();
    let models: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|record| &record["model"]).collect();
    assert_eq!(models, ["later", "later"], "{list}");
}

#[tokio::test]
async fn it_is_decided_for_what_is_passed_through() {
    let bench = bench().await;
    let body = json!({"model": "auto", "input": "now", "text": {"format": {"type": "text"}}});
    let reply = bench.daemon.send(Ask::post("/v1/responses", body.to_string())).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let sent: Value = serde_json::from_str(bench.uplink.latest()["body"].as_str().unwrap()).unwrap();
    assert!(["left", "right"].contains(&sent["model"].as_str().unwrap()), "{sent}");
    assert_eq!((&sent["input"], &sent["text"]), (&body["input"], &body["text"]));
}
