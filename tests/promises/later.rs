//! Answers fetched later: files, batches and background responses, in OpenAI's shapes, through outages and crashes.

use std::collections::BTreeSet;
use std::path::Path;

use holdfast::cli::simulate::{Faults, Mode};
use hyper::Method;
use serde_json::{Value, json};

use crate::disk::Disk;
use crate::links::damage;
use crate::support::{Ask, Bench, Daemon, Reply, Settings, listening, until};

const CHAT: &str = "/v1/chat/completions";

/// One line of a batch that asks this.
fn line(custom_id: &str, user: &str) -> String {
    let body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": user}]});
    json!({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}).to_string()
}

fn upload_of(text: &str, purpose: &str) -> Ask {
    let part = |name: &str, value: &str| {
        format!("--cut\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let file = "--cut\r\nContent-Disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\
                Content-Type: application/octet-stream\r\n\r\n";
    let form = format!("{}{file}{text}\r\n--cut--\r\n", part("purpose", purpose));
    Ask::form("/v1/files", form, "multipart/form-data; boundary=cut")
}

async fn upload(daemon: &Daemon, text: &str) -> String {
    let reply = daemon.send(upload_of(text, "batch")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["id"].as_str().unwrap().to_owned()
}

fn create_of(file: &str, endpoint: &str) -> Ask {
    let body = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h",
        "metadata": {"line": "7"}});
    Ask::post("/v1/batches", body.to_string())
}

/// Uploads and begins a batch of chats; its id.
async fn begin(daemon: &Daemon, text: &str) -> String {
    let reply = daemon.send(create_of(&upload(daemon, text).await, CHAT)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let batch = reply.json();
    assert_eq!((&batch["object"], &batch["endpoint"]), (&json!("batch"), &json!(CHAT)));
    batch["id"].as_str().unwrap().to_owned()
}

async fn batch(daemon: &Daemon, id: &str) -> Value {
    let reply = daemon.get(&format!("/v1/batches/{id}")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// Waits until it has this status.
async fn reaches(daemon: &Daemon, id: &str, status: &str) -> Value {
    until(&format!("the batch to be {status}"), 60, || async {
        let batch = batch(daemon, id).await;
        (batch["status"] == status).then_some(batch)
    })
    .await
}

/// The lines of a file that a batch ended in; none where it has none.
async fn lines(daemon: &Daemon, file: &Value) -> Vec<Value> {
    let Some(id) = file.as_str() else { return Vec::new() };
    let reply = daemon.get(&format!("/v1/files/{id}/content")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(lines: &[Value]) -> Vec<String> {
    lines.iter().map(|line| line["custom_id"].as_str().unwrap().to_owned()).collect()
}

fn numbered(count: usize) -> String {
    (0..count).map(|n| line(&format!("c{n}"), &format!("line {n}.")) + "\n").collect()
}

#[tokio::test]
async fn a_batch_taken_offline_is_answered_after_the_outage() {
    let bench = Bench::offline(Settings::default()).await;
    let daemon = &bench.daemon;
    let id = begin(daemon, &numbered(3)).await;
    let waiting = reaches(daemon, &id, "in_progress").await;
    assert_eq!(waiting["request_counts"], json!({"total": 3, "completed": 0, "failed": 0}));
    assert_eq!((&waiting["output_file_id"], &waiting["errors"]), (&Value::Null, &Value::Null));
    assert_eq!(waiting["metadata"], json!({"line": "7"}));
    until("the lines to be in the queue", 10, || async { (daemon.backlog().await == 3).then_some(()) }).await;
    let busy =
        daemon.send(Ask::new(Method::DELETE, &format!("/v1/files/{}", waiting["input_file_id"].as_str().unwrap())));
    busy.await.assert_error(409, "file_in_use");
    bench.recover().await;
    let done = reaches(daemon, &id, "completed").await;
    assert_eq!(done["request_counts"], json!({"total": 3, "completed": 3, "failed": 0}));
    assert!(done["error_file_id"].is_null() && done["completed_at"].is_u64() && done["in_progress_at"].is_u64());
    let output = lines(daemon, &done["output_file_id"]).await;
    for answer in &output {
        let n = &answer["custom_id"].as_str().unwrap()[1..];
        assert_eq!(answer["response"]["status_code"], 200);
        let said = &answer["response"]["body"]["choices"][0]["message"]["content"];
        assert_eq!(said, &json!(format!("uplink answer to: line {n}.")), "{answer}");
        assert!(answer["error"].is_null() && answer["id"].as_str().unwrap().starts_with("batch_req_"));
        assert_eq!(bench.answered(&format!("line {n}.")), 1);
    }
    assert_eq!(output.len(), 3);
    let file = daemon.get(&format!("/v1/files/{}", done["output_file_id"].as_str().unwrap())).await.json();
    assert_eq!((&file["object"], &file["purpose"]), (&json!("file"), &json!("batch_output")));
}

/// Killed in the middle, again and again: each line reaches the uplink once and stands in one file once.
#[tokio::test]
async fn a_batch_survives_kills_and_sends_each_line_once() {
    const LINES: usize = 200;
    let settings = Settings { drain_in_flight: 4, ..Settings::without_local() };
    let mut bench = Bench::offline(settings).await;
    let id = begin(&bench.daemon, &numbered(LINES)).await;
    for _ in 0..3 {
        until("some lines to be in the queue", 20, || async { (bench.daemon.backlog().await > 20).then_some(()) })
            .await;
        bench.daemon.kill().await;
        bench.daemon.restart().await;
    }
    // Answers are recorded while it dies; those that an attempt was cut off in may be sent once more, labelled.
    bench.uplink.set_faults(Faults::default()).await;
    for done in [20, 90, 150] {
        until("some lines to be done", 60, || async {
            let counts = batch(&bench.daemon, &id).await["request_counts"]["completed"].as_u64().unwrap();
            (counts >= done).then_some(())
        })
        .await;
        let paused = bench.daemon.send(Ask::post("/holdfast/v1/pause", "")).await;
        assert_eq!(paused.status, 200);
        // What is under way ends, so that every kill finds only whole attempts.
        until("the attempts to end", 20, || async {
            let all = bench.daemon.get("/holdfast/v1/requests?state=sending").await.json();
            all["data"].as_array().unwrap().is_empty().then_some(())
        })
        .await;
        bench.daemon.kill().await;
        bench.daemon.restart().await;
        assert_eq!(bench.daemon.send(Ask::post("/holdfast/v1/resume", "")).await.status, 200);
    }
    let ended = reaches(&bench.daemon, &id, "completed").await;
    let output = names(&lines(&bench.daemon, &ended["output_file_id"]).await);
    let wanted: BTreeSet<String> = (0..LINES).map(|n| format!("c{n}")).collect();
    assert_eq!((output.len(), output.into_iter().collect::<BTreeSet<_>>()), (LINES, wanted));
    for n in 0..LINES {
        assert_eq!(bench.answered(&format!("line {n}.")), 1, "line {n}");
    }
}

#[tokio::test]
async fn cancelling_keeps_what_is_done_and_names_the_rest() {
    let bench = Bench::offline(Settings::without_local()).await;
    let daemon = &bench.daemon;
    let id = begin(daemon, &numbered(100)).await;
    reaches(daemon, &id, "in_progress").await;
    until("lines to be in the queue", 10, || async { (daemon.backlog().await > 10).then_some(()) }).await;
    let cancelling = daemon.send(Ask::post(&format!("/v1/batches/{id}/cancel"), "")).await;
    assert_eq!(cancelling.status, 200, "{}", cancelling.text());
    assert!(["cancelling", "cancelled"].contains(&cancelling.json()["status"].as_str().unwrap()));
    let ended = reaches(daemon, &id, "cancelled").await;
    assert_eq!(ended["request_counts"], json!({"total": 100, "completed": 0, "failed": 100}));
    let errors = lines(daemon, &ended["error_file_id"]).await;
    assert_eq!(names(&errors).into_iter().collect::<BTreeSet<_>>().len(), 100);
    assert!(errors.iter().all(|line| line["error"]["code"] == "batch_cancelled" && line["response"].is_null()));
    assert_eq!(daemon.backlog().await, 0);
    let again = daemon.send(Ask::post(&format!("/v1/batches/{id}/cancel"), "")).await;
    again.assert_error(409, "batch_ended");
}

/// Whoever does not know whether his batch was made asks again: that must not pay for each line twice.
#[tokio::test]
async fn a_key_makes_two_batches_one() {
    let mut bench = Bench::offline(Settings::without_local()).await;
    let file = upload(&bench.daemon, &numbered(3)).await;
    let keyed = |file: &str| create_of(file, CHAT).header("idempotency-key", "k");
    let (one, two) = tokio::join!(bench.daemon.send(keyed(&file)), bench.daemon.send(keyed(&file)));
    let id = one.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(two.json()["id"], id.as_str());
    let replays = [one, two].iter().filter(|reply| reply.header("idempotent-replayed") == "true").count();
    assert_eq!(replays, 1);
    let other = upload(&bench.daemon, &numbered(2)).await;
    bench.daemon.send(keyed(&other)).await.assert_error(422, "idempotency_key_reused");
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    bench.recover().await;
    reaches(&bench.daemon, &id, "completed").await;
    let again = bench.daemon.send(keyed(&file)).await;
    assert_eq!((&again.json()["id"], &again.json()["status"]), (&json!(id), &json!("completed")));
    assert_eq!(bench.daemon.get("/v1/batches").await.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn bad_lines_fail_the_batch_and_refused_ones_stand_in_the_error_file() {
    let bench = Bench::start().await;
    let daemon = &bench.daemon;
    let bad = format!("{}\nno json\n{}\n", line("a", "x"), line("a", "y"));
    let failed = reaches(daemon, &begin(daemon, &bad).await, "failed").await;
    let faults = failed["errors"]["data"].as_array().unwrap();
    let told: Vec<_> = faults.iter().map(|f| (f["code"].as_str().unwrap(), f["line"].as_u64().unwrap())).collect();
    assert_eq!(told, [("invalid_json_line", 2), ("duplicate_custom_id", 3)]);
    assert_eq!(bench.uplink.requests_total(), 0);
    let hot = line("hot", "too hot").replace("\"messages\"", "\"temperature\":9,\"messages\"");
    let mute = line("mute", "mute").replace("\"messages\"", "\"massages\"");
    let id = begin(daemon, &format!("{}\n{hot}\n{mute}\n", line("good", "fine"))).await;
    let done = reaches(daemon, &id, "completed").await;
    assert_eq!(done["request_counts"], json!({"total": 3, "completed": 1, "failed": 2}));
    assert_eq!(names(&lines(daemon, &done["output_file_id"]).await), ["good"]);
    let errors = lines(daemon, &done["error_file_id"]).await;
    let refused = |name: &str| errors.iter().find(|line| line["custom_id"] == name).unwrap()["response"].clone();
    assert_eq!(refused("hot")["status_code"], 400);
    assert_eq!(refused("hot")["body"]["error"]["code"], "decimal_out_of_range");
    assert_eq!(refused("mute")["body"]["error"]["code"], "missing_field");
    assert_eq!(bench.answered("mute"), 0);
}

#[tokio::test]
async fn what_is_no_batch_is_refused_in_words_or_passed_on() {
    let bench = Bench::start().await;
    let daemon = &bench.daemon;
    let file = upload(daemon, &line("a", "x")).await;
    daemon.send(create_of(&file, "/v1/moderations")).await.assert_error(400, "invalid_value");
    daemon.send(create_of("file-hf_none", CHAT)).await.assert_error(404, "file_not_found");
    let no_file = Ask::form(
        "/v1/files",
        "--cut\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--cut--\r\n".to_owned(),
        "multipart/form-data; boundary=cut",
    );
    daemon.send(no_file).await.assert_error(400, "missing_required_parameter");
    daemon
        .send(Ask::form("/v1/files", "{}".to_owned(), "application/json"))
        .await
        .assert_error(415, "unsupported_media_type");
    // What names a file of ours is ours to judge, and no uplink has heard of our names.
    let strange = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", "metadata": {"line": 7}});
    daemon.send(Ask::post("/v1/batches", strange.to_string())).await.assert_error(400, "missing_required_parameter");
    for path in ["/v1/responses/resp_hf_1/input_items", "/v1/batches/batch_hf_1/lines", "/v1/files/file-hf_1/parts"] {
        daemon.get(path).await.assert_error(404, "unknown_path");
    }
    // Files for other purposes, and ids that are not ours, are an uplink's: this one knows none of these paths.
    for ask in [upload_of("x", "vision"), Ask::get("/v1/files/file-theirs"), Ask::get("/v1/batches/batch_theirs")] {
        let reply = daemon.send(ask).await;
        assert_eq!((reply.status, reply.header("x-holdfast-route")), (404, "uplink:sim"), "{}", reply.text());
    }
    // Lists are ours, in pages.
    let ids = [upload(daemon, "a").await, upload(daemon, "b").await];
    let first = daemon.get("/v1/files?limit=1").await.json();
    assert_eq!((&first["data"][0]["id"], &first["has_more"]), (&json!(ids[1]), &json!(true)));
    let next = daemon.get(&format!("/v1/files?limit=1&after={}", ids[1])).await.json();
    assert_eq!(next["data"][0]["id"], json!(ids[0]));
    daemon.get("/v1/files?limit=0").await.assert_error(400, "invalid_value");
    let gone = daemon.send(Ask::new(Method::DELETE, &format!("/v1/files/{}", ids[0]))).await.json();
    assert_eq!(gone, json!({"id": ids[0], "object": "file", "deleted": true}));
    daemon.get(&format!("/v1/files/{}", ids[0])).await.assert_error(404, "file_not_found");
    let content = daemon.get(&format!("/v1/files/{}/content", ids[1])).await;
    assert_eq!((content.status, content.text().as_str()), (200, "b"));
}

/// A caller over TCP is another source than one over the socket.
#[tokio::test]
async fn another_source_finds_nothing() {
    let (http, address) = listening();
    let bench = Bench::offline(Settings { http, ..Settings::without_local() }).await;
    let daemon = &bench.daemon;
    let file = upload(daemon, &line("a", "x")).await;
    let id = daemon.send(create_of(&file, CHAT)).await.json()["id"].as_str().unwrap().to_owned();
    let response = daemon.send(background("mine")).await.json()["id"].as_str().unwrap().to_owned();
    for (path, code) in [
        (format!("/v1/files/{file}"), "file_not_found"),
        (format!("/v1/files/{file}/content"), "file_not_found"),
        (format!("/v1/batches/{id}"), "batch_not_found"),
        (format!("/v1/responses/{response}"), "response_not_found"),
    ] {
        let theirs = Ask::get(&path).send_to_tcp(&address).await;
        theirs.assert_error(404, code);
        assert_eq!(daemon.get(&path).await.status, 200);
    }
    let theirs = create_of(&file, CHAT).send_to_tcp(&address).await;
    theirs.assert_error(404, "file_not_found");
    for list in ["/v1/files", "/v1/batches"] {
        let theirs = Ask::get(list).send_to_tcp(&address).await.json();
        assert_eq!(theirs["data"], json!([]));
    }
}

/// A queue that holds little takes a large batch all the same, and leaves room for others of the same source.
#[tokio::test]
async fn a_small_queue_is_fed_little_by_little() {
    let bench = Bench::with(Settings { per_source_backlog: 10, ..Settings::without_local() }).await;
    bench.outage(Faults::failing(Mode::Refuse)).await;
    let daemon = &bench.daemon;
    let id = begin(daemon, &numbered(60)).await;
    until("lines to be in the queue", 10, || async { (daemon.backlog().await == 5).then_some(()) }).await;
    let other = daemon.send(Ask::chat("not a batch").header("prefer", "respond-async")).await;
    assert_eq!(other.status, 202, "{}", other.text());
    bench.uplink.set_faults(Faults::default()).await;
    let done = reaches(daemon, &id, "completed").await;
    assert_eq!(lines(daemon, &done["output_file_id"]).await.len(), 60);
    for n in 0..60 {
        assert_eq!(bench.answered(&format!("line {n}.")), 1, "line {n}");
    }
}

#[tokio::test]
async fn a_batch_whose_time_is_over_says_so_for_each_line() {
    let bench = Bench::offline(Settings::without_local()).await;
    let daemon = &bench.daemon;
    let file = upload(daemon, &numbered(100)).await;
    let reply = daemon.send(create_of(&file, CHAT).header("x-holdfast-ttl", "2")).await;
    let ended = reaches(daemon, reply.json()["id"].as_str().unwrap(), "expired").await;
    assert_eq!(ended["request_counts"], json!({"total": 100, "completed": 0, "failed": 100}));
    let errors = lines(daemon, &ended["error_file_id"]).await;
    assert_eq!(names(&errors).into_iter().collect::<BTreeSet<_>>().len(), 100);
    assert!(errors.iter().all(|line| line["error"]["code"] == "batch_expired"), "{errors:?}");
}

/// One batch of a source runs after the other, but the time of each is its own.
#[tokio::test]
async fn a_batch_behind_another_ends_when_its_time_is_over() {
    let bench = Bench::offline(Settings::without_local()).await;
    let daemon = &bench.daemon;
    let first = begin(daemon, &numbered(3)).await;
    let file = upload(daemon, &numbered(3)).await;
    let reply = daemon.send(create_of(&file, CHAT).header("x-holdfast-ttl", "2")).await;
    let ended = reaches(daemon, reply.json()["id"].as_str().unwrap(), "expired").await;
    assert_eq!(ended["request_counts"], json!({"total": 3, "completed": 0, "failed": 3}));
    assert_eq!(batch(daemon, &first).await["status"], "in_progress");
}

#[tokio::test]
async fn a_line_of_a_batch_is_no_response_to_be_deleted() {
    let bench = Bench::offline(Settings::without_local()).await;
    let daemon = &bench.daemon;
    let body = json!({"model": "gpt-4o", "input": "line"});
    let text = json!({"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}).to_string();
    let reply = daemon.send(create_of(&upload(daemon, &text).await, "/v1/responses")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let batch = reply.json()["id"].as_str().unwrap().to_owned();
    until("the line to be stored", 10, || async { (daemon.backlog().await == 1).then_some(()) }).await;
    let list = daemon.get("/holdfast/v1/requests").await.json();
    let id = format!("resp_hf_{}", &list["data"][0]["id"].as_str().unwrap()["req_".len()..]);
    let path = format!("/v1/responses/{id}");
    daemon.send(Ask::new(Method::DELETE, &path)).await.assert_error(409, "batch_line");
    daemon.send(Ask::post(&format!("{path}/cancel"), "")).await.assert_error(409, "batch_line");
    bench.recover().await;
    let ended = reaches(daemon, &batch, "completed").await;
    assert_eq!(ended["request_counts"], json!({"total": 1, "completed": 1, "failed": 0}));
    assert_eq!(daemon.send(Ask::new(Method::DELETE, &path)).await.status, 200, "its answer is in a file now");
}

fn background(input: &str) -> Ask {
    let body = json!({"model": "gpt-4o", "input": input, "background": true});
    Ask::post("/v1/responses", body.to_string())
}

fn response_id(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_background_response_is_stored_first_and_fetched_later() {
    let mut bench = Bench::offline(Settings::default()).await;
    let reply = bench.daemon.send(background("later please")).await;
    let id = response_id(&reply);
    assert!(id.starts_with("resp_") && reply.json()["object"] == "response");
    assert_eq!((&reply.json()["status"], &reply.json()["output"]), (&json!("queued"), &json!([])));
    let doomed = response_id(&bench.daemon.send(background("never mind")).await);
    let cancelled = bench.daemon.send(Ask::post(&format!("/v1/responses/{doomed}/cancel"), "")).await;
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &json!("cancelled")));
    let dropped = bench.daemon.send(Ask::new(Method::DELETE, &format!("/v1/responses/{doomed}"))).await.json();
    assert_eq!(dropped, json!({"id": doomed, "object": "response", "deleted": true}));
    bench.daemon.get(&format!("/v1/responses/{doomed}")).await.assert_error(404, "response_not_found");
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    assert_eq!(bench.daemon.get(&format!("/v1/responses/{id}")).await.json()["status"], "queued");
    bench.recover().await;
    let done = bench.daemon.get(&format!("/v1/responses/{id}")).await.json();
    assert_eq!((&done["status"], &done["id"]), (&json!("completed"), &json!(id)), "{done}");
    assert_eq!(done["output"][0]["content"][0]["text"], "uplink answer to: later please");
    let record = bench.daemon.record(&format!("req_{}", &id["resp_hf_".len()..])).await;
    assert!(record["uplink"]["usage"]["completion_tokens"].as_u64().unwrap() > 0, "{record}");
    assert_eq!((bench.answered("later please"), bench.answered("never mind")), (1, 0));
    assert!(bench.uplink.latest()["body"].as_str().unwrap().contains("\"background\":false"));
    let refused = |field: &str| {
        Ask::post("/v1/responses", format!("{{\"model\":\"m\",\"input\":\"x\",\"background\":true,{field}}}"))
    };
    bench.daemon.send(refused("\"stream\":true")).await.assert_error(400, "unsupported_value");
    bench.daemon.send(refused("\"store\":false")).await.assert_error(400, "unsupported_value");
    let late = bench.daemon.send(Ask::post(&format!("/v1/responses/{id}/cancel"), "")).await;
    late.assert_error(409, "not_cancellable");
    // Without `background` it is an uplink's, as ever.
    let live = Ask::post("/v1/responses", json!({"model": "gpt-4o", "input": "now"}).to_string());
    let live = bench.daemon.send(live).await;
    assert_eq!((live.status, live.header("x-holdfast-route")), (200, "uplink:sim"));
}

#[tokio::test]
async fn a_background_response_that_is_refused_is_failed() {
    let bench = Bench::start().await;
    let body = json!({"model": "gpt-4o", "input": "x", "background": true, "temperature": 9});
    let id = response_id(&bench.daemon.send(Ask::post("/v1/responses", body.to_string())).await);
    // The same refusal counts when another request was answered.
    assert_eq!(bench.daemon.send(Ask::chat("other").header("prefer", "respond-async")).await.status, 202);
    let failed = until("the response to fail", 30, || async {
        let now = bench.daemon.get(&format!("/v1/responses/{id}")).await.json();
        (now["status"] == "failed").then_some(now)
    })
    .await;
    assert!(failed["error"]["message"].as_str().unwrap().contains("temperature"), "{failed}");
}

#[tokio::test]
async fn a_full_disk_takes_no_file_and_a_batch_goes_on_when_there_is_room() {
    let Some(disk) = Disk::mount() else {
        println!("SKIPPED: no file system of its own could be mounted; run this as root");
        return;
    };
    let settings = Settings {
        data_dir: Some(disk.path().join("data").to_str().unwrap().to_owned()),
        extra: "[queue]\nmin_disk_free = \"16MiB\"\n".to_owned(),
        ..Settings::without_local()
    };
    let bench = Bench::offline(settings).await;
    let daemon = &bench.daemon;
    let (id, idle) = (begin(daemon, &numbered(150)).await, upload(daemon, &line("a", "x")).await);
    until("lines to be in the queue", 10, || async { (daemon.backlog().await > 30).then_some(()) }).await;
    disk.fill();
    daemon.send(upload_of(&numbered(3), "batch")).await.assert_error(507, "disk_full");
    daemon.send(create_of(&idle, CHAT)).await.assert_error(507, "disk_full");
    bench.uplink.set_faults(Faults::default()).await;
    until("the lines in the queue to be answered", 60, || async { (daemon.backlog().await == 0).then_some(()) }).await;
    assert_eq!(batch(daemon, &id).await["status"], "in_progress");
    disk.free();
    let done = reaches(daemon, &id, "completed").await;
    let output = names(&lines(daemon, &done["output_file_id"]).await);
    assert_eq!((output.len(), output.into_iter().collect::<BTreeSet<_>>().len()), (150, 150));
    assert!((0..150).all(|n| bench.answered(&format!("line {n}.")) == 1));
    assert_eq!(daemon.get("/v1/batches").await.json()["data"].as_array().unwrap().len(), 1);
}

/// In lines of a mebibyte, 72 against the 64 MiB of memory that it may take.
#[tokio::test]
async fn a_large_batch_stays_small_in_memory() {
    const LINES: usize = 72;
    let bench = Bench::with(Settings { patient: true, ..Settings::without_local() }).await;
    let long = "x".repeat(1024 * 1024);
    let text: String = (0..LINES).map(|n| line(&format!("c{n}"), &format!("{n} {long}")) + "\n").collect();
    let id = begin(&bench.daemon, &text).await;
    let done = reaches(&bench.daemon, &id, "completed").await;
    assert_eq!(done["request_counts"]["completed"], LINES);
    let input = format!("/v1/files/{}/content", done["input_file_id"].as_str().unwrap());
    assert_eq!(bench.daemon.get(&input).await.body.len(), text.len());
    let peak = bench.daemon.peak_kib();
    assert!(peak < 64 * 1024, "{peak} KiB");
}

/// A batch ends in files of its own: whoever has as many as may be begins none.
#[tokio::test]
async fn as_many_files_as_may_be_leave_no_room_for_a_batch() {
    let bench = Bench::offline(Settings::without_local()).await;
    let input = upload(&bench.daemon, &numbered(1)).await;
    for _ in 1..250 {
        upload(&bench.daemon, "x").await;
    }
    bench.daemon.send(upload_of("x", "batch")).await.assert_error(507, "files_full");
    bench.daemon.send(create_of(&input, CHAT)).await.assert_error(507, "files_full");
}

/// A damaged manifest or file stops nothing and is never taken for whole.
#[tokio::test]
async fn damaged_files_are_set_aside_and_stop_no_start() {
    let mut bench = Bench::offline(Settings::without_local()).await;
    let (kept, hurt) = (upload(&bench.daemon, &numbered(2)).await, upload(&bench.daemon, &numbered(3)).await);
    bench.daemon.kill().await;
    let folder = bench.daemon.data().join("files");
    flip(&folder.join(format!("{hurt}.json")), 80);
    flip(&folder.join(format!("{kept}.data")), 80);
    bench.daemon.restart().await;
    bench.daemon.get(&format!("/v1/files/{hurt}")).await.assert_error(404, "file_not_found");
    let content = Ask::get(&format!("/v1/files/{kept}/content")).send_to(&bench.daemon.socket()).await;
    assert!(content.is_err(), "a damaged file was handed out as whole");
    let made = bench.daemon.send(create_of(&kept, CHAT)).await.json();
    let failed = reaches(&bench.daemon, made["id"].as_str().unwrap(), "failed").await;
    assert_eq!(failed["errors"]["data"][0]["code"], "invalid_file");
    assert_eq!(bench.daemon.backlog().await, 0);
}

/// The only copy of an answer is damaged before its batch has it: its line ends with that word, and the batch with it.
#[tokio::test]
async fn an_answer_that_cannot_be_read_ends_its_line_and_holds_up_no_batch() {
    let mut bench = Bench::offline(Settings::without_local()).await;
    let id = begin(&bench.daemon, &numbered(1)).await;
    until("the line to be in the queue", 10, || async { (bench.daemon.backlog().await == 1).then_some(()) }).await;
    bench.daemon.kill().await;
    let data = bench.daemon.data();
    let manifest = std::fs::read_dir(data.join("batches")).unwrap().last().unwrap().unwrap().path();
    let text = std::fs::read_to_string(manifest).unwrap();
    let manifest: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    // While its file cannot be opened the batch waits, and the queue goes on.
    let output = data.join(format!("files/{}.data", manifest["output_file_id"].as_str().unwrap()));
    std::fs::remove_file(&output).unwrap();
    std::fs::create_dir(&output).unwrap();
    bench.daemon.restart().await;
    bench.recover().await;
    until("the queue to be empty", 20, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    bench.daemon.kill().await;
    damage(&bench, "UPDATE answer SET bytes = x'00'");
    std::fs::remove_dir(&output).unwrap();
    bench.daemon.restart().await;
    let done = reaches(&bench.daemon, &id, "completed").await;
    assert_eq!(done["request_counts"], json!({"total": 1, "completed": 0, "failed": 1}));
    assert_eq!(lines(&bench.daemon, &done["error_file_id"]).await[0]["error"]["code"], "result_lost");
}

/// What was done before the input went stays there to be fetched, and nothing more is sent.
#[tokio::test]
async fn a_batch_whose_input_goes_ends_and_keeps_what_it_has() {
    let mut bench = Bench::start().await;
    let id = begin(&bench.daemon, &numbered(200)).await;
    until("some lines to be done", 60, || async {
        let counts = batch(&bench.daemon, &id).await["request_counts"]["completed"].as_u64().unwrap();
        (counts >= 10).then_some(())
    })
    .await;
    bench.daemon.kill().await;
    bench.uplink.set_faults(Faults::failing(Mode::Refuse)).await;
    let manifests = std::fs::read_dir(bench.daemon.data().join("batches")).unwrap();
    let text = std::fs::read_to_string(manifests.last().unwrap().unwrap().path()).unwrap();
    let manifest: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    let input = manifest["input_file_id"].as_str().unwrap();
    std::fs::remove_file(bench.daemon.data().join(format!("files/{input}.data"))).unwrap();
    bench.daemon.restart().await;
    let ended = reaches(&bench.daemon, &id, "failed").await;
    assert_eq!(ended["errors"]["data"][0]["code"], "invalid_file");
    assert!(lines(&bench.daemon, &ended["output_file_id"]).await.len() >= 10);
    until("the queue to be empty", 10, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
