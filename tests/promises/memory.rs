//! Memory: 64 clients at the same time, each with a picture of 10 MiB or an answer of 2 MiB, and the daemon stays below
//! 64 MiB (a debug build below 72 MiB).
//!
//! The peak is the kernel's own (`VmHWM`). Nothing is decoded on the way: the uplink gets the client's bytes.

use holdfast::cli::simulate::Faults;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::support::{Ask, Bench, Settings, until};

const CLIENTS: usize = 64;
const PICTURE_BYTES: usize = 10 * 1024 * 1024;
const ANSWER_BYTES: usize = 2 * 1024 * 1024;
/// Of a debug build more of its own code is in memory: 25 MiB before the first request, against 12 MiB of a release build.
const PEAK_KIB_MAX: u64 = if cfg!(debug_assertions) { 72 * 1024 } else { 64 * 1024 };

/// Room in the queue for all of them, and a drain that sends several at once.
fn settings() -> Settings {
    let extra = "[queue]\nmax_bytes = \"2GiB\"\nmin_disk_free = \"0B\"\n".to_owned();
    Settings { extra, drain_in_flight: 8, patient: true, ..Settings::without_local() }
}

fn picture(n: usize) -> Ask {
    let data = "QUJD".repeat(PICTURE_BYTES / 4);
    let body = format!(
        r#"{{"model":"house-model","messages":[{{"role":"user","content":[{{"type":"text","text":"picture {n}"}},{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}]}}]}}"#
    );
    Ask::post("/v1/chat/completions", body)
}

/// All at once; returns their statuses.
async fn all_at_once(bench: &Bench, ask: impl Fn(usize) -> Ask) -> Vec<u16> {
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(ask(n).send_to_owned(bench.daemon.socket()));
    }
    let mut statuses = Vec::new();
    while let Some(reply) = clients.join_next().await {
        statuses.push(reply.unwrap().unwrap().status);
    }
    statuses
}

fn assert_peak(bench: &Bench, what: &str) {
    let peak = bench.daemon.peak_kib();
    println!("{what}: peak {peak} KiB");
    assert!(peak < PEAK_KIB_MAX, "{what}: {peak} KiB");
}

#[tokio::test]
async fn pictures_from_64_clients_online() {
    let bench = Bench::with(settings()).await;
    println!("idle: {} KiB", bench.daemon.peak_kib());
    let statuses = all_at_once(&bench, picture).await;
    assert_eq!(statuses, [200; CLIENTS]);
    assert_peak(&bench, "online");
    assert_eq!(bench.daemon.body_files(), 0, "bodies are left behind");
}

#[tokio::test]
async fn pictures_from_64_clients_stored_and_drained() {
    let bench = Bench::offline(settings()).await;
    let statuses = all_at_once(&bench, |n| picture(n).header("prefer", "respond-async")).await;
    assert_eq!(statuses, [202; CLIENTS]);
    assert_peak(&bench, "stored");
    assert_eq!(bench.daemon.body_files(), CLIENTS);
    bench.uplink.set_faults(Faults::default()).await;
    until("the backlog to drain", 300, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    for n in 0..CLIENTS {
        assert_eq!(bench.answered(&format!("picture {n}")), 1);
    }
    assert_peak(&bench, "drained");
    until("the files to go", 10, || async { (bench.daemon.body_files() == 0).then_some(()) }).await;
}

#[tokio::test]
async fn pictures_that_wait_for_a_slow_uplink() {
    let bench = Bench::with(settings()).await;
    bench.uplink.set_faults(Faults { delay_ms: 2_000, ..Faults::default() }).await;
    let statuses = all_at_once(&bench, picture).await;
    assert_eq!(statuses, [200; CLIENTS]);
    assert_peak(&bench, "slow uplink");
}

/// An answer of 2 MiB in one text, as a long batch is.
fn long_answer() -> Faults {
    let text = "long answer ".repeat(ANSWER_BYTES / 12);
    let answer = format!(
        r#"{{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}}}"#
    );
    Faults { answer: Some(answer), ..Faults::default() }
}

/// All at once; each must get the whole answer.
async fn all_get_the_answer(bench: &Bench, ask: impl Fn(usize) -> Ask) {
    let wanted = long_answer().answer.unwrap();
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(ask(n).send_to_owned(bench.daemon.socket()));
    }
    while let Some(reply) = clients.join_next().await {
        let reply = reply.unwrap().unwrap();
        assert!(reply.status == 200 && reply.body == wanted, "{} {} bytes", reply.status, reply.body.len());
    }
}

#[tokio::test]
async fn long_answers_to_64_clients_online() {
    let bench = Bench::with(settings()).await;
    bench.uplink.set_faults(long_answer()).await;
    all_get_the_answer(&bench, |n| Ask::chat(&format!("long {n}"))).await;
    assert_peak(&bench, "long answers");
}

/// Everything at once: sums of bodies, collected answers, what is on its way to the disk.
#[tokio::test]
async fn pictures_and_long_answers_with_a_cache() {
    let bench = Bench::with(Settings { cache: "ttl = \"5m\"".to_owned(), ..settings() }).await;
    let statuses = all_at_once(&bench, |n| picture(n % 32).header("x-holdfast-cache", "on")).await;
    assert_eq!(statuses, [200; CLIENTS]);
    assert_eq!(bench.uplink.requests_total(), 32, "each picture once");
    bench.uplink.set_faults(long_answer()).await;
    all_get_the_answer(&bench, |n| Ask::chat(&format!("long {n}")).header("x-holdfast-cache", "on")).await;
    let shorter = Faults { answer: long_answer().answer.map(|a| a.replace("answer ", "")), ..Faults::default() };
    bench.uplink.set_faults(shorter).await;
    for _ in 0..3 {
        let ask = |n: usize| Ask::chat(&format!("long {}", n / 8)).header("x-holdfast-cache", "on");
        assert_eq!(all_at_once(&bench, ask).await, [200; CLIENTS]);
    }
    assert_peak(&bench, "with a cache");
}

#[tokio::test]
async fn long_answers_to_64_stored_requests() {
    let bench = Bench::offline(settings()).await;
    let mut ids = Vec::new();
    for n in 0..CLIENTS {
        let reply = bench.daemon.send(Ask::chat(&format!("long {n}")).header("prefer", "respond-async")).await;
        assert_eq!(reply.status, 202);
        ids.push(reply.id());
    }
    bench.uplink.set_faults(long_answer()).await;
    until("the backlog to drain", 120, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    assert_peak(&bench, "long answers drained");
    all_get_the_answer(&bench, |n| Ask::get(&format!("/v1/chat/completions/{}", ids[n]))).await;
    assert_peak(&bench, "long answers fetched");
    let mut shown = JoinSet::new();
    for id in &ids {
        shown.spawn(Ask::get(&format!("/holdfast/v1/requests/{id}")).send_to_owned(bench.daemon.socket()));
    }
    while let Some(reply) = shown.join_next().await {
        assert_eq!(reply.unwrap().unwrap().json()["uplink"]["usage"]["total_tokens"], 3);
    }
    assert_peak(&bench, "records shown");
}

/// What was made of an answer waits for its readers where a body waits, and not once for each of them in memory.
#[tokio::test]
async fn long_answers_to_64_clients_who_do_not_read() {
    let bench = Bench::offline(settings()).await;
    let (mut records, mut responses) = (Vec::new(), Vec::new());
    for n in 0..CLIENTS {
        let body = format!(r#"{{"model":"gpt-4o","input":"long {n}","background":true}}"#);
        let reply = bench.daemon.send(Ask::post("/v1/responses", body)).await;
        responses.push(format!("/v1/responses/{}", reply.json()["id"].as_str().unwrap()));
        records.push(format!("/holdfast/v1/requests/{}", reply.id()));
    }
    bench.uplink.set_faults(long_response()).await;
    until("the backlog to drain", 120, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    for (what, paths) in [("records", records), ("responses", responses)] {
        let unread = answered(&bench, &paths).await;
        assert_peak(&bench, &format!("{what} that nobody reads"));
        drop(unread);
    }
}

fn long_response() -> Faults {
    let text = "long answer ".repeat(ANSWER_BYTES / 12);
    let answer = format!(
        r#"{{"id":"r","object":"response","model":"m","status":"completed","output":[{{"type":"message","role":"assistant","content":[{{"type":"output_text","text":"{text}"}}]}}],"usage":{{"input_tokens":1,"output_tokens":2,"total_tokens":3}}}}"#
    );
    Faults { answer: Some(answer), ..Faults::default() }
}

/// Asks on one connection each, and reads no more of the long answer than its head.
async fn answered(bench: &Bench, paths: &[String]) -> Vec<UnixStream> {
    let mut connections = Vec::new();
    for path in paths {
        let mut connection = UnixStream::connect(bench.daemon.socket()).await.unwrap();
        connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: hf\r\n\r\n").as_bytes()).await.unwrap();
        connections.push(connection);
    }
    for connection in &mut connections {
        let mut start = [0; 512];
        connection.read_exact(&mut start).await.unwrap();
        let start = String::from_utf8_lossy(&start).to_lowercase();
        let length = start.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or_else(|| panic!("{start}"));
        assert!(start.starts_with("http/1.1 200 ok") && length > ANSWER_BYTES, "{start}");
    }
    connections
}
