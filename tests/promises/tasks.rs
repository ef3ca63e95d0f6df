//! Canned prompts: a number and values in, a code out, and never more than two paid answers.

use futures_util::future::join_all;
use holdfast::cli::simulate::Faults;
use hyper::Method;
use serde_json::{Value, json};

use crate::support::{Ask, Bench, Settings, until};

const SCHEMA: &str = r#"{"type": "object", "additionalProperties": false, "required": ["code", "value", "text"],
    "properties": {"code": {"type": "integer"}, "value": {"type": "number"}, "text": {"type": "string"}}}"#;
const PICTURE: &str = "data:image/jpeg;base64,/9j/4AAQSkZJRg==";

/// Two tasks: 12 `weld` with a schema, 13 in plain words.
struct Tasks {
    bench: Bench,
    _schema: tempfile::NamedTempFile,
}

async fn tasks(local: bool) -> Tasks {
    tasks_with(if local { Settings::default() } else { Settings::without_local() }).await
}

async fn tasks_with(base: Settings) -> Tasks {
    let schema = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(schema.path(), SCHEMA).unwrap();
    let extra = format!(
        r#"
[[task]]
id = 12
name = "weld"
system = "You judge welds."
prompt = "Seam {{seam}} at {{temp}} degrees"
args = [{{ name = "seam" }}, {{ name = "temp", type = "number", max = 1200 }}]
schema_file = "{}"
pictures = 1

[[task]]
id = 13
prompt = "Say {{word}}"
codes = {{ "no idea" = 7 }}
{}"#,
        schema.path().display(),
        base.extra
    );
    let bench = Bench::with(Settings { extra, ..base }).await;
    Tasks { bench, _schema: schema }
}

fn ask(which: &str, body: &Value) -> Ask {
    Ask::post(&format!("/holdfast/v1/tasks/{which}"), body.to_string())
}

fn weld() -> Ask {
    ask("12", &json!({"args": ["Naht 7", 23.5]}))
}

/// An answer in words where JSON was asked for.
fn misfit() -> Faults {
    let answer = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": "no idea"}}]});
    Faults { answer: Some(answer.to_string()), ..Faults::default() }
}

fn paid(bench: &Bench) -> usize {
    bench.uplink.log().iter().filter(|entry| entry.status == 200 && !entry.user.is_empty()).count()
}

#[tokio::test]
async fn a_number_and_values_become_a_code() {
    let tasks = tasks(false).await;
    let bench = &tasks.bench;
    let named = json!({"args": {"temp": 23.5, "seam": "Naht \"7\""}, "images": [PICTURE]});
    for (which, body) in [("12", json!({"args": ["Naht \"7\"", "23.5"]})), ("weld", named)] {
        let reply = bench.daemon.send(ask(which, &body)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let said = reply.json();
        let id = said["id"].as_str().unwrap().to_owned();
        assert!(id.starts_with("req_"));
        // What the simulator makes up for this schema.
        let answer = json!({"code": 1, "value": 1.5, "text": "ok"});
        let expected = json!({"id": id, "task": 12, "status": "ok", "code": 1, "value": 1.5, "text": "ok",
            "source": "uplink:sim", "answer": answer});
        assert_eq!(said, expected);
        assert_eq!(reply.header("x-holdfast-route"), "uplink:sim");
    }
    assert_eq!(bench.answered("Seam Naht \"7\" at 23.5 degrees"), 2);
    let list = bench.daemon.get("/holdfast/v1/tasks").await.json();
    assert_eq!((&list["data"][0]["name"], &list["data"][0]["args"][1]["max"]), (&json!("weld"), &json!(1200.0)));
    assert_eq!(list["data"][1]["args"][0]["name"], "word");
}

#[tokio::test]
async fn wrong_arguments_are_refused_at_the_door() {
    let tasks = tasks(false).await;
    let bench = &tasks.bench;
    bench.daemon.send(ask("77", &json!({}))).await.assert_error(404, "task_not_found");
    bench.daemon.send(Ask::post("/holdfast/v1/tasks/12", "{\"args\": [")).await.assert_error(400, "invalid_json");
    bench.daemon.send(ask("12", &json!({"arguments": []}))).await.assert_error(400, "invalid_json");
    for (body, param) in [
        (json!({}), "seam"),
        (json!({"args": ["a"]}), "temp"),
        (json!({"args": ["a", "hot"]}), "temp"),
        (json!({"args": ["a", 1201]}), "temp"),
        (json!({"args": ["a", 1, 2]}), "args"),
        (json!({"args": {"seam": "a", "temp": 1, "amps": 2}}), "amps"),
        (json!({"args": {"seam": ["a"], "temp": 1}}), "seam"),
        (json!({"args": ["x".repeat(241), 1]}), "seam"),
        (json!({"args": ["a", 1], "images": [PICTURE, PICTURE]}), "images"),
        (json!({"args": ["a", 1], "images": ["https://example.com/x.jpg"]}), "images"),
        (json!({"args": ["a", 1], "images": ["data:image/png;base64,\"}]}"]}), "images"),
    ] {
        let reply = bench.daemon.send(ask("12", &body)).await;
        reply.assert_error(400, "invalid_argument");
        assert_eq!(reply.json()["error"]["param"], param, "{body}");
    }
    assert_eq!((paid(bench), bench.daemon.backlog().await), (0, 0));
}

#[tokio::test]
async fn a_live_answer_that_does_not_fit_is_asked_for_once_more() {
    let tasks = tasks(false).await;
    let bench = &tasks.bench;
    bench.uplink.set_faults(misfit()).await;
    let said = bench.daemon.send(weld()).await.json();
    assert_eq!((&said["status"], &said["code"], &said["text"]), (&json!("failed"), &json!(0), &json!("no idea")));
    assert_eq!(paid(bench), 2, "once more, and no third time");
    let said = bench.daemon.send(ask("13", &json!({"args": {"word": "x"}}))).await.json();
    assert_eq!((&said["status"], &said["code"], &said["answer"]), (&json!("ok"), &json!(7), &json!("no idea")));
    assert_eq!(paid(bench), 3);
    bench.uplink.set_faults(Faults { delay_ms: 300, ..misfit() }).await;
    let asking = tokio::spawn(weld().send_to_owned(bench.daemon.socket()));
    until("the first try", 10, || async { (paid(bench) == 4).then_some(()) }).await;
    bench.uplink.set_faults(Faults::default()).await;
    let said = asking.await.unwrap().unwrap().json();
    assert_eq!((&said["status"], paid(bench)), (&json!("ok"), 5));
}

/// Those who share an answer that does not fit share the second one, too.
#[tokio::test]
async fn the_same_task_asked_by_many_at_once_is_paid_twice_at_most() {
    let base = Settings { cache: "ttl = \"5m\"".to_owned(), patient: true, ..Settings::without_local() };
    let tasks = tasks_with(base).await;
    let bench = &tasks.bench;
    bench.uplink.set_faults(Faults { delay_ms: 700, ..misfit() }).await;
    let weld = || weld().header("x-holdfast-cache", "on");
    let replies = join_all((0..20).map(|_| bench.daemon.send(weld()))).await;
    for reply in &replies {
        let said = reply.json();
        assert_eq!((&said["status"], &said["text"]), (&json!("failed"), &json!("no idea")), "{said}");
    }
    assert_eq!(paid(bench), 2);
}

#[tokio::test]
async fn a_stored_task_is_tried_twice_and_keeps_its_words() {
    let tasks = tasks(false).await;
    let bench = &tasks.bench;
    bench.outage(Faults::failing(holdfast::cli::simulate::Mode::Refuse)).await;
    let ids: Vec<String> = {
        let mut ids = Vec::new();
        for _ in 0..7 {
            let reply = bench.daemon.send(weld().header("prefer", "respond-async")).await;
            assert_eq!(reply.status, 202);
            ids.push(reply.id());
        }
        ids
    };
    bench.uplink.set_faults(misfit()).await;
    until("the backlog to end", 60, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    for id in &ids {
        let record = bench.daemon.record(id).await;
        assert_eq!((&record["state"], &record["reason"]), (&json!("dead"), &json!("misfit")), "{record}");
        assert_eq!(record["uplink"]["response"]["choices"][0]["message"]["content"], "no idea");
        assert_eq!(record["maybe_billed"], true, "the second try was announced");
        assert_eq!((&record["task"], &record["result"]["status"]), (&json!(12), &json!("failed")), "{record}");
        assert_eq!(record["result"]["text"], "no idea");
    }
    assert_eq!(paid(bench), 14);
}

#[tokio::test]
async fn the_record_of_a_task_shows_what_its_answer_came_to() {
    let tasks = tasks(true).await;
    let bench = &tasks.bench;
    bench.outage(Faults::failing(holdfast::cli::simulate::Mode::Refuse)).await;
    let reply = bench.daemon.send(weld().header("prefer", "wait=20")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let id = reply.header("x-holdfast-id").to_owned();
    // The caller does not wait until its local answer is on record.
    let recorded = || async { Some(bench.daemon.record(&id).await).filter(|record| !record["local"].is_null()) };
    let offline = until("the local answer on record", 20, recorded).await;
    assert_eq!((&offline["state"], &offline["task"]), (&json!("queued"), &json!(12)), "{offline}");
    assert_eq!(offline["result"]["source"], "local:llama3.2:latest", "{offline}");
    bench.recover().await;
    let result = bench.daemon.record(&id).await["result"].clone();
    let expected = json!({"status": "ok", "code": 1, "value": 1.5, "text": "ok", "source": "uplink:sim"});
    assert_eq!(result, expected);
}

#[tokio::test]
async fn a_restart_between_the_two_tries_allows_no_third() {
    let mut tasks = tasks(false).await;
    let key = || weld().header("idempotency-key", "k1").header("prefer", "wait=20");
    tasks.bench.uplink.set_faults(Faults { delay_ms: 700, ..misfit() }).await;
    let asking = tokio::spawn(key().send_to_owned(tasks.bench.daemon.socket()));
    let bench = &tasks.bench;
    until("the first try", 10, || async { (paid(bench) == 1).then_some(()) }).await;
    bench.uplink.set_faults(misfit()).await;
    // Paused now, the second try cannot follow the first at once.
    bench.daemon.send(Ask::new(Method::POST, "/holdfast/v1/pause")).await;
    let id = bench.daemon.get("/holdfast/v1/requests").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    until("the first answer on record", 10, || async {
        let record = bench.daemon.record(&id).await;
        (record["state"] == "queued" && record["maybe_billed"] == true).then_some(())
    })
    .await;
    tasks.bench.daemon.kill().await;
    assert!(asking.await.unwrap().is_err(), "its connection went with the daemon");
    tasks.bench.daemon.restart().await;
    let bench = &tasks.bench;
    bench.daemon.send(Ask::new(Method::POST, "/holdfast/v1/resume")).await;
    let said = bench.daemon.send(key()).await;
    assert_eq!((said.json()["status"].as_str(), said.header("x-holdfast-state")), (Some("failed"), "dead"));
    assert_eq!((said.json()["text"].as_str(), paid(bench)), (Some("no idea"), 2));
    let again = bench.daemon.send(key()).await;
    assert_eq!((again.json()["status"].as_str(), paid(bench)), (Some("failed"), 2), "a repeat is no third try");
}

#[tokio::test]
async fn offline_the_local_model_answers_in_the_same_shape() {
    let tasks = tasks(true).await;
    let bench = &tasks.bench;
    bench.outage(Faults::failing(holdfast::cli::simulate::Mode::Refuse)).await;
    let reply = bench.daemon.send(weld()).await;
    let said = reply.json();
    assert_eq!((&said["status"], &said["code"]), (&json!("ok"), &json!(1)), "{said}");
    assert!(said["source"].as_str().unwrap().starts_with("local:"));
    assert_eq!((reply.header("x-holdfast-state"), bench.daemon.backlog().await), ("queued", 1));
    bench.recover().await;
    assert_eq!(bench.daemon.record(said["id"].as_str().unwrap()).await["state"], "answered");
    let reply = bench.daemon.send(weld().offline("fail")).await;
    assert_eq!(reply.status, 200);
}

/// The local model's answers do not fit until [`until_asked_locally`] has seen one asked for.
async fn first_in_vain(bench: &Bench) {
    let message = json!({"role": "assistant", "content": "no idea"});
    let answer = json!({"model": "llama3.2:latest", "message": message, "done": true, "done_reason": "stop"});
    let faults = Faults { answer: Some(answer.to_string()), delay_ms: 700, ..Faults::default() };
    bench.ollama.set_faults(faults).await;
}

fn asked_locally(bench: &Bench) -> usize {
    bench.ollama.log().iter().filter(|entry| entry.user.contains("Naht 7")).count()
}

async fn until_asked_locally(bench: &Bench) {
    until("the local model to be asked", 20, || async { (asked_locally(bench) > 0).then_some(()) }).await;
    bench.ollama.set_faults(Faults::default()).await;
}

#[tokio::test]
async fn what_fits_only_the_second_time_is_the_local_answer_on_record() {
    let tasks = tasks(true).await;
    let bench = &tasks.bench;
    bench.outage(Faults::failing(holdfast::cli::simulate::Mode::Refuse)).await;
    first_in_vain(bench).await;
    let key = || weld().header("idempotency-key", "k1").header("prefer", "wait=20");
    let asking = tokio::spawn(key().send_to_owned(bench.daemon.socket()));
    until_asked_locally(bench).await;
    let reply = asking.await.unwrap().unwrap();
    assert_eq!((&reply.json()["status"], &reply.json()["code"]), (&json!("ok"), &json!(1)), "{}", reply.text());
    let record = bench.daemon.record(reply.header("x-holdfast-id")).await;
    assert_eq!(
        record["result"],
        json!({"status": "ok", "code": 1, "value": 1.5, "text": "ok", "source": "local:llama3.2:latest"})
    );
    let again = bench.daemon.send(key()).await;
    assert_eq!((again.json()["code"].as_i64(), asked_locally(bench)), (Some(1), 2), "{}", again.text());
}

#[tokio::test]
async fn a_devices_task_is_asked_for_twice_locally_too() {
    let extra = "[[link]]\nname = \"cell\"\nsocket = \"@DIR@/cell.sock\"\nprotocol = \"frames\"\n".to_owned();
    let tasks = tasks_with(Settings { extra, ..Settings::default() }).await;
    let bench = &tasks.bench;
    bench.outage(Faults::failing(holdfast::cli::simulate::Mode::Refuse)).await;
    first_in_vain(bench).await;
    let socket = bench.daemon.socket().with_file_name("cell.sock");
    let words = [
        "simulate",
        "device",
        "--socket",
        socket.to_str().unwrap(),
        "--task",
        "12",
        "--arg",
        "Naht 7",
        "--arg",
        "23.5",
    ];
    let ((code, text), ()) = tokio::join!(bench.daemon.tool(&words), until_asked_locally(bench));
    assert_eq!((code, asked_locally(bench)), (0, 2), "{text}");
    assert!(text.contains("code 1"), "{text}");
}

#[tokio::test]
async fn a_task_from_a_shell() {
    let tasks = tasks(false).await;
    let daemon = &tasks.bench.daemon;
    let (code, text) = daemon.tool(&["ask", "--task", "weld", "--arg", "temp=23.5", "Naht 7"]).await;
    assert_eq!((code, text.trim()), (0, "ok"));
    let (code, text) = daemon.tool(&["--json", "ask", "--task", "13", "x"]).await;
    let said: Value = serde_json::from_str(&text).unwrap();
    // Its words are none of the codes.
    assert_eq!((code, said["status"].as_str()), (1, Some("failed")));
    assert_eq!(daemon.tool(&["ask", "--task", "12", "--arg", "temp"]).await.0, 2);
    assert_eq!(daemon.tool(&["ask", "--task", "99"]).await.0, 1);
}
