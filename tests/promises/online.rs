//! While the uplink is available: its answer, its bytes, its errors.

use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use holdfast::cli::simulate::{Faults, StatusOn};
use holdfast::clock;

use crate::support::{Ask, Bench, KEY, Settings, chat_body, events, refusing, stream_text};

const PRICE: &str = "[[model]]\nname = \"gpt-4o\"\nusd_per_mtok_in = 2.0\nusd_per_mtok_out = 10.0\n";

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[tokio::test]
async fn plain_answer_is_the_uplinks_and_nothing_is_stored() {
    let bench = Bench::start().await;
    let reply = bench.daemon.send(Ask::chat("hello from line 3").header("x-request-id", "my-session")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.content(), "uplink answer to: hello from line 3");
    assert_eq!(reply.json()["model"], "gpt-4o");
    assert_eq!(reply.header("x-holdfast-route"), "uplink:sim");
    assert_eq!(reply.header("x-holdfast-state"), "");
    assert!(reply.header("x-request-id").starts_with("req_"), "{reply:?}");
    assert_eq!(reply.header("x-client-request-id"), "my-session");
    assert!(reply.header("x-upstream-request-id").starts_with("req-simulated-"), "{reply:?}");
    assert_eq!(bench.daemon.backlog().await, 0);
    let listed = bench.daemon.get("/holdfast/v1/requests").await.text();
    assert!(!listed.contains("req_"), "a plain request was stored: {listed}");
}

/// Tokens of the simulator: (in, out) of everything it answered so far, as the metrics have them.
async fn counted(bench: &Bench) -> (f64, f64, f64) {
    let metrics = bench.daemon.get("/metrics").await.text();
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    };
    (
        value("holdfast_tokens_total{uplink=\"sim\",direction=\"in\"}"),
        value("holdfast_tokens_total{uplink=\"sim\",direction=\"out\"}"),
        value("holdfast_cost_usd_total{uplink=\"sim\"}"),
    )
}

#[tokio::test]
async fn tokens_and_their_price_are_counted_plain_streamed_and_stored() {
    let bench = Bench::with(Settings { extra: PRICE.to_owned(), ..Settings::default() }).await;
    let plain = bench.daemon.send(Ask::chat("what does it cost")).await.json()["usage"].clone();
    let (prompt, completion) = (plain["prompt_tokens"].as_f64().unwrap(), plain["completion_tokens"].as_f64().unwrap());
    let price = (prompt * 2.0 + completion * 10.0) / 1e6;
    let (input, output, cost) = counted(&bench).await;
    assert_eq!((input, output), (prompt, completion));
    assert!((cost - price).abs() < 1e-12, "{cost} is not {price}");
    let mut body = chat_body("what does it cost");
    body["stream"] = true.into();
    body["stream_options"] = serde_json::json!({"include_usage": true});
    assert_eq!(bench.daemon.send(Ask::post("/v1/chat/completions", body.to_string())).await.status, 200);
    assert!((counted(&bench).await.0 - 2.0 * prompt).abs() < 0.5);
    let stored = bench.daemon.send(Ask::chat("what does it cost").header("idempotency-key", "k")).await;
    let record = bench.daemon.record(stored.header("x-holdfast-id")).await;
    assert!((record["uplink"]["cost_usd"].as_f64().unwrap() - price).abs() < 1e-12, "{record}");
    let (input, _, cost) = counted(&bench).await;
    assert!((input - 3.0 * prompt).abs() < 0.5, "{input}");
    assert!((cost - 3.0 * price).abs() < 1e-12);
}

#[tokio::test]
async fn body_reaches_the_uplink_byte_for_byte() {
    let bench = Bench::start().await;
    let body = "{ \"unknown_field\" : [1.50, 1e2, \"\\u00e4\"],\n\t\"messages\":[{\"content\":\"odd  bytes\",\
                \"role\":\"user\"}], \"model\" : \"gpt-4o\", \"big\": 12345678901234567890123 }  ";
    let reply = bench.daemon.send(Ask::post("/v1/chat/completions", body)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(bench.uplink.log()[0].body_sha256, hex(body.as_bytes()), "{}", bench.uplink.latest());
}

#[tokio::test]
async fn an_alias_changes_the_model_and_no_other_byte() {
    let bench = Bench::start().await;
    let body = "{\"messages\": [ {\"role\":\"user\",\"content\":\"\\\"model\\\":\\\"house-model\\\"\"} ], \
                \"metadata\":{\"model\":\"house-model\"},  \"model\" : \"house-model\" , \"x\": 1.0}";
    let reply = bench.daemon.send(Ask::post("/v1/chat/completions", body)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let at = body.rfind("\"house-model\"").unwrap();
    let wanted = format!("{}\"deepseek-v3.2\"{}", &body[..at], &body[at + "\"house-model\"".len()..]);
    assert_eq!(bench.uplink.latest()["body"], wanted);
    assert_eq!(reply.json()["model"], "deepseek-v3.2", "the answer names what really answered");
}

#[tokio::test]
async fn headers_are_the_gateways_own() {
    let bench = Bench::start().await;
    let ask = Ask::chat("headers")
        .header("authorization", "Bearer the-clients-own")
        .header("cookie", "session=1")
        .header("x-forwarded-for", "10.0.0.1")
        .header("accept-encoding", "gzip")
        .header("te", "trailers")
        .header("connection", "close, X-Hop")
        .header("x-hop", "for this hop")
        .header("openai-beta", "realtime=v1");
    assert_eq!(bench.daemon.send(ask).await.status, 200);
    let headers = &bench.uplink.latest()["headers"];
    assert_eq!(headers["authorization"], format!("Bearer {KEY}"));
    for gone in ["cookie", "x-forwarded-for", "te", "x-hop"] {
        assert!(headers.get(gone).is_none(), "{gone} was forwarded: {headers}");
    }
    assert_ne!(headers["accept-encoding"], "gzip", "{headers}");
    assert_ne!(headers["host"], "hf", "{headers}");
    assert_eq!(headers["openai-beta"], "realtime=v1");
}

fn streamed(user: &str, more: &str) -> Ask {
    let body = format!(
        "{{\"model\":\"gpt-4o\",\"stream\":true{more},\"messages\":[{{\"role\":\"user\",\"content\":\"{user}\"}}]}}"
    );
    Ask::post("/v1/chat/completions", body)
}

#[tokio::test]
async fn a_stream_arrives_whole_and_ends_with_done() {
    let bench = Bench::start().await;
    let reply = bench.daemon.send(streamed("a stream", "")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.header("content-type").starts_with("text/event-stream"), "{reply:?}");
    assert_eq!(reply.header("x-holdfast-route"), "uplink:sim");
    assert_eq!(stream_text(&reply.text()), "uplink answer to: a stream");
    let data = events(&reply.text());
    assert_eq!(data.last().unwrap(), "[DONE]");
    assert!(!data.iter().any(|event| event.contains("\"usage\":{")), "usage that nobody asked for: {data:?}");
    let asked = bench.daemon.send(streamed("a stream", ",\"stream_options\":{\"include_usage\":true}")).await;
    let usage = events(&asked.text()).iter().filter(|event| event.contains("\"usage\":{")).count();
    assert_eq!(usage, 1, "{}", asked.text());
}

#[tokio::test]
async fn a_stream_that_breaks_says_so() {
    let bench = Bench::start().await;
    bench.uplink.set_faults(Faults { cut_after: Some(4), ..Faults::default() }).await;
    let text = bench.daemon.send(streamed("will be cut", "")).await.text();
    let data = events(&text);
    assert_eq!(data.last().map(String::as_str), Some("[DONE]"), "{text}");
    assert!(data[data.len() - 2].contains("\"error\""), "{text}");
    assert!(!data.iter().any(|event| event.contains("\"finish_reason\":\"stop\"")), "{text}");
}

#[tokio::test]
async fn embeddings_models_and_unknown_paths_pass() {
    let bench = Bench::start().await;
    let body = "{\"model\":\"text-embedding-3-small\",\"input\":[\"a\",\"b\"]}";
    let vectors = bench.daemon.send(Ask::post("/v1/embeddings", body)).await;
    assert_eq!(vectors.status, 200, "{}", vectors.text());
    assert_eq!(vectors.json()["data"].as_array().unwrap().len(), 2);
    let models = bench.daemon.get("/v1/models").await;
    let names = models.text();
    for expected in ["\"gpt-4o\"", "\"house-model\""] {
        assert!(names.contains(expected), "{expected} is missing in {names}");
    }
    assert_eq!(bench.daemon.get("/v1/models/gpt-4o").await.json()["id"], "gpt-4o");
    let unknown = bench.daemon.send(Ask::post("/v1/moderations", "{\"input\":\"x\"}")).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["error"]["message"], "Invalid URL (POST /v1/moderations)");
}

#[tokio::test]
async fn an_uplinks_refusal_reaches_the_client_as_it_is() {
    let bench = Bench::start().await;
    let body = "{\"model\":\"gpt-4o\",\"temperature\":9,\"messages\":[{\"role\":\"user\",\"content\":\"hot\"}]}";
    let refused = bench.daemon.send(Ask::post("/v1/chat/completions", body)).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["code"], "decimal_out_of_range", "{}", refused.text());
    let limited =
        Faults { status: Some(429), status_on: StatusOn::Post, retry_after: Some("7".to_owned()), ..Faults::default() };
    bench.uplink.set_faults(limited).await;
    let reply = bench.daemon.send(Ask::chat("too fast").offline("fail")).await;
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert_eq!(reply.header("retry-after"), "7");
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), "999");
    assert_eq!(reply.json()["error"]["code"], "rate_limit_exceeded");
}

#[tokio::test]
async fn a_retry_after_that_is_a_date_reaches_the_client_as_seconds() {
    for (seconds, told) in [(20, 18..=20), (900, 30..=30), (0, 1..=1)] {
        let bench = Bench::start().await;
        let until = SystemTime::UNIX_EPOCH + Duration::from_millis(clock::unix_ms()) + Duration::from_secs(seconds);
        let retry_after = Some(httpdate::fmt_http_date(until));
        bench.uplink.set_faults(Faults { retry_after, ..refusing(429) }).await;
        let reply = bench.daemon.send(Ask::chat("too fast").offline("fail")).await;
        assert_eq!(reply.status, 429, "{}", reply.text());
        reply.assert_retry_after();
        assert!(told.contains(&reply.header("retry-after").parse().unwrap()), "{seconds}: {reply:?}");
    }
}

#[tokio::test]
async fn health_and_metrics_answer_in_their_own_forms() {
    let bench = Bench::start().await;
    assert_eq!(bench.daemon.get("/health").await.text(), "healthy\n");
    assert_eq!(bench.daemon.send(Ask::new(hyper::Method::HEAD, "/health")).await.status, 200);
    bench.daemon.send(Ask::chat("counted")).await;
    let metrics = bench.daemon.get("/metrics").await.text();
    for name in ["holdfast_", "ai_gateway_requests_total"] {
        assert!(metrics.contains(name), "{name} is missing in {metrics}");
    }
}

/// 409 and 408 are the service's word about one request: its client hears it, and nobody else is held up for it.
#[tokio::test]
async fn a_conflict_reaches_the_client_and_opens_no_breaker() {
    let bench = Bench::start().await;
    for status in [409, 408, 425] {
        bench.uplink.set_faults(Faults { status: Some(status), status_on: StatusOn::Post, ..Faults::default() }).await;
        for stream in [false, true] {
            let mut body = chat_body("conflict");
            body["stream"] = stream.into();
            let reply = bench.daemon.send(Ask::post("/v1/chat/completions", body.to_string())).await;
            assert_eq!((reply.status, reply.header("x-holdfast-route")), (status, "uplink:sim"));
        }
    }
    let uplink = &bench.daemon.status().await["uplinks"][0];
    assert_eq!((&uplink["breaker"], &uplink["available"]), (&"closed".into(), &true.into()), "{uplink}");
    assert_eq!(bench.daemon.backlog().await, 0);
}
