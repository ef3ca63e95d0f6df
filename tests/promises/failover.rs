//! Two uplinks: one that refuses or fails is replaced before the caller sees anything of it.

use holdfast::cli::simulate::{Simulator, UplinkOptions, serve_uplink};

use crate::support::{Ask, Bench, Settings, chat_body, refusing, stream_text, until};

/// The usual bench and a second uplink, `spare`, of lower priority.
async fn two_uplinks() -> (Bench, Simulator) {
    let spare = serve_uplink(UplinkOptions::default()).await.unwrap();
    let section = format!(
        "[[uplink]]\nname = \"spare\"\npriority = 2\nbase_url = \"{}/v1\"\napi_keys = []\n\
         probe = {{ interval = \"100ms\", timeout = \"200ms\", fall = 2, rise = 1 }}",
        spare.base_url()
    );
    let bench = Bench::with(Settings { extra: section, ..Settings::default() }).await;
    until("the spare to be seen", 10, || async {
        let status = bench.daemon.status().await;
        (status["uplinks"][1]["health"] == "healthy").then_some(())
    })
    .await;
    (bench, spare)
}

fn streamed(user: &str) -> Ask {
    let mut body = chat_body(user);
    body["stream"] = true.into();
    Ask::post("/v1/chat/completions", body.to_string())
}

#[tokio::test]
async fn a_refusing_or_failing_uplink_is_replaced_unseen() {
    for status in [401, 402, 403, 404, 429, 500, 503] {
        let (bench, spare) = two_uplinks().await;
        bench.uplink.set_faults(refusing(status)).await;
        let plain = bench.daemon.send(Ask::chat("plain")).await;
        assert_eq!(
            (plain.status, plain.header("x-holdfast-route")),
            (200, "uplink:spare"),
            "{status}: {}",
            plain.text()
        );
        let stream = bench.daemon.send(streamed("stream")).await;
        assert_eq!((stream.status, stream.header("x-holdfast-route")), (200, "uplink:spare"), "{status}");
        assert_eq!(stream_text(&stream.text()), "uplink answer to: stream", "{status}");
        assert_eq!(spare.log().iter().filter(|seen| seen.path.ends_with("/completions")).count(), 2, "{status}");
        assert_eq!(bench.daemon.backlog().await, 0);
    }
}

#[tokio::test]
async fn a_refused_key_is_not_tried_for_every_caller_and_not_after_a_restart() {
    let (mut bench, _spare) = two_uplinks().await;
    bench.uplink.set_faults(refusing(401)).await;
    let tried = |bench: &Bench| bench.uplink.log().iter().filter(|seen| seen.path.ends_with("/completions")).count();
    for n in 0..5 {
        let reply = bench.daemon.send(Ask::chat(&format!("caller {n}"))).await;
        assert_eq!((reply.status, reply.header("x-holdfast-route")), (200, "uplink:spare"));
    }
    assert_eq!(tried(&bench), 1, "the refusing uplink was asked again");
    assert_eq!(bench.daemon.status().await["uplinks"][0]["paused"]["reason"], "key");
    bench.daemon.stop().await;
    bench.daemon.restart().await;
    until("an answer after the restart", 10, || async {
        let reply = bench.daemon.send(Ask::chat("after the restart")).await;
        (reply.header("x-holdfast-route") == "uplink:spare").then_some(())
    })
    .await;
    assert_eq!(tried(&bench), 1, "the restart forgot the refused key");
}

#[tokio::test]
async fn where_every_uplink_refuses_its_words_are_the_answer() {
    let (bench, spare) = two_uplinks().await;
    bench.uplink.set_faults(refusing(401)).await;
    spare.set_faults(refusing(402)).await;
    let reply = bench.daemon.send(Ask::chat("nobody")).await;
    assert_eq!((reply.status, reply.header("x-holdfast-route")), (402, "uplink:spare"), "{}", reply.text());
}

/// What is passed through is no worse off: a refused key, quota or rate asks the next, and with none left it is the answer.
#[tokio::test]
async fn what_is_passed_through_fails_over_too() {
    let (bench, spare) = two_uplinks().await;
    let now = || Ask::post("/v1/responses", serde_json::json!({"model": "gpt-4o", "input": "now"}).to_string());
    for status in [401, 402, 403, 404, 429] {
        bench.uplink.set_faults(refusing(status)).await;
        let reply = bench.daemon.send(now()).await;
        let told = (reply.status, reply.header("x-holdfast-route"));
        assert_eq!(told, (200, "uplink:spare"), "{status}: {}", reply.text());
    }
    bench.uplink.set_faults(refusing(500)).await;
    assert_eq!(bench.daemon.send(now()).await.status, 500, "nobody knows what it did before it failed");
    bench.uplink.set_faults(refusing(401)).await;
    spare.set_faults(refusing(429)).await;
    let refused = bench.daemon.send(now()).await;
    assert_eq!((refused.status, refused.header("x-holdfast-route")), (429, "uplink:spare"), "{}", refused.text());
    // They count as every other request does.
    let text = bench.daemon.get("/metrics").await.text();
    for sample in ["route=\"uplink\",outcome=\"ok\"} 5", "route=\"uplink\",outcome=\"refused\"} 2"] {
        assert!(text.contains(&format!("holdfast_requests_total{{{sample}")), "{sample}:\n{text}");
    }
}
