//! The four outages: everything is answered locally and stored, and drained in order, once each.

use holdfast::cli::simulate::{Faults, Mode};

use crate::support::{Ask, Bench, Settings, chat_body, stream_text, until, within};

const REQUESTS: usize = 30;
const PRIORITIES: [&str; 4] = ["low", "normal", "critical", "high"];

/// What was acknowledged: rank of the priority, number, text, id.
struct Accepted {
    rank: usize,
    user: String,
    id: String,
}

async fn ask_during_outage(bench: &Bench) -> Vec<Accepted> {
    let mut accepted = Vec::new();
    for n in 0..REQUESTS {
        let priority = PRIORITIES[n * 7 % 4];
        let rank = ["critical", "high", "normal", "low"].iter().position(|word| *word == priority).unwrap();
        let user = format!("reading {n} is {priority}");
        let reply = bench.daemon.send(Ask::chat(&user).header("x-holdfast-priority", priority)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.content(), format!("local answer to: {user}"));
        assert_eq!(reply.header("x-holdfast-state"), "queued");
        assert_eq!(reply.header("x-holdfast-route"), "local:llama3.2:latest");
        assert_eq!(reply.json()["model"], "llama3.2:latest");
        accepted.push(Accepted { rank, user, id: reply.id() });
    }
    accepted
}

async fn outage(faults: Faults) {
    let bench = Bench::start().await;
    bench.outage(faults).await;
    let mut accepted = ask_during_outage(&bench).await;
    assert_eq!(bench.daemon.backlog().await, REQUESTS as u64);
    assert_eq!(bench.daemon.get("/health").await.status, 200, "healthy also with every uplink down");
    bench.recover().await;
    // Sorting is stable: by priority, then in the order of acceptance.
    accepted.sort_by_key(|request| request.rank);
    let sent: Vec<_> = bench.uplink.log().into_iter().filter(|entry| entry.status == 200).collect();
    let seen: Vec<&str> = sent.iter().map(|entry| entry.user.as_str()).collect();
    let wanted: Vec<&str> = accepted.iter().map(|request| request.user.as_str()).collect();
    assert_eq!(seen, wanted, "each once, by priority and then sequence");
    for (request, entry) in accepted.iter().zip(&sent) {
        assert_eq!(entry.idempotency_key.as_deref(), Some(request.id.as_str()));
        let record = bench.daemon.record(&request.id).await;
        assert_eq!(record["state"], "answered", "{record}");
        assert_eq!(record["uplink"]["name"], "sim", "{record}");
        assert_eq!(record["local"]["model"], "llama3.2:latest", "{record}");
    }
}

#[tokio::test]
async fn refused_connections() {
    outage(Faults::failing(Mode::Refuse)).await;
}

#[tokio::test]
async fn silence() {
    outage(Faults::failing(Mode::Silence)).await;
}

#[tokio::test]
async fn status_503() {
    outage(Faults::status(503)).await;
}

#[tokio::test]
async fn captive_portal() {
    outage(Faults::failing(Mode::Portal)).await;
}

#[tokio::test]
async fn captive_portal_that_redirects() {
    outage(Faults::failing(Mode::Redirect)).await;
}

/// The first request after the line went dead, before any health check could notice.
#[tokio::test]
async fn the_first_request_of_an_outage_is_answered_too() {
    let bench = Bench::start().await;
    bench.uplink.set_faults(Faults::failing(Mode::Refuse)).await;
    let reply = bench.daemon.send(Ask::chat("first victim")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.content(), "local answer to: first victim");
    assert_eq!(reply.header("x-holdfast-state"), "queued");
    bench.recover().await;
    assert_eq!(bench.answered("first victim"), 1);
}

#[tokio::test]
async fn a_stream_and_a_picture_are_answered_locally() {
    let bench = Bench::offline(Settings::default()).await;
    let body = "{\"model\":\"gpt-4o\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"flow\"}]}";
    let reply = bench.daemon.send(Ask::post("/v1/chat/completions", body)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(stream_text(&reply.text()), "local answer to: flow");
    assert!(reply.text().trim_end().ends_with("data: [DONE]"), "{}", reply.text());
    let picture = "{\"model\":\"gpt-4o\",\"messages\":[{\"role\":\"user\",\"content\":[\
        {\"type\":\"text\",\"text\":\"what is it\"},\
        {\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,iVBORw0KGgo=\"}}]}]}";
    let seen = bench.daemon.send(Ask::post("/v1/chat/completions", picture)).await;
    assert_eq!(seen.content(), "local answer to: what is it (1 images)", "{}", seen.text());
    assert_eq!(seen.header("x-holdfast-route"), "local:llava:latest");
    bench.recover().await;
    assert_eq!(bench.answered("flow") + bench.answered("what is it"), 2);
}

#[tokio::test]
async fn the_model_list_is_served_offline() {
    let bench = Bench::start().await;
    let online = bench.daemon.get("/v1/models").await.text();
    assert!(online.contains("deepseek-v3.2"), "{online}");
    bench.outage(Faults::failing(Mode::Refuse)).await;
    let offline = bench.daemon.get("/v1/models").await;
    assert_eq!(offline.status, 200);
    assert!(offline.text().contains("deepseek-v3.2") && offline.text().contains("llama3.2"), "{}", offline.text());
}

/// The first answer is the caller's: on a small board the local model may take longer than the outage.
#[tokio::test]
async fn an_uplink_that_is_back_before_the_local_model_has_answered_answers() {
    let bench = Bench::offline(Settings::default()).await;
    bench.ollama.set_faults(Faults { delay_ms: 60_000, ..Faults::default() }).await;
    let plain = tokio::spawn(Ask::chat("plain").send_to_owned(bench.daemon.socket()));
    let mut body = chat_body("streamed");
    body["stream"] = true.into();
    let streamed = Ask::post("/v1/chat/completions", body.to_string()).send_to_owned(bench.daemon.socket());
    let streamed = tokio::spawn(streamed);
    until("both to be stored", 10, || async { (bench.daemon.backlog().await == 2).then_some(()) }).await;
    bench.uplink.set_faults(Faults::default()).await;
    let reply = within("the answer", 30, plain).await.unwrap().unwrap();
    assert_eq!((reply.status, reply.content().as_str()), (200, "uplink answer to: plain"));
    assert_eq!((reply.header("x-holdfast-route"), reply.header("x-holdfast-state")), ("uplink:sim", "answered"));
    let reply = within("the stream", 30, streamed).await.unwrap().unwrap();
    assert_eq!(stream_text(&reply.text()), "uplink answer to: streamed");
}

/// Whoever stopped the sending may be working at the uplink: a power cut must not undo that.
#[tokio::test]
async fn the_operators_pause_outlives_a_crash() {
    let mut bench = Bench::with(Settings::without_local()).await;
    assert_eq!(bench.daemon.tool(&["pause"]).await.0, 0);
    let id = bench.daemon.send(Ask::chat("held back").header("prefer", "respond-async")).await.id();
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    bench.wait_online().await;
    assert_eq!(bench.daemon.send(Ask::chat("live")).await.content(), "uplink answer to: live");
    assert_eq!(bench.daemon.status().await["paused"], true);
    assert_eq!((bench.answered("held back"), bench.daemon.backlog().await), (0, 1));
    assert_eq!(bench.daemon.tool(&["resume"]).await.0, 0);
    bench.daemon.history(&id).await;
    assert_eq!(bench.answered("held back"), 1);
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    assert_eq!(bench.daemon.status().await["paused"], false);
}
