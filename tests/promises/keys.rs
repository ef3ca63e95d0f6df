//! Several keys of one uplink: a refused one is replaced unseen, remembered over a restart, named and tried again.

use holdfast::cli::simulate::{Faults, Simulator, UplinkOptions, serve_uplink};
use serde_json::Value;

use crate::support::{Ask, Bench, Settings, chat_body, refusing, stream_text, until};

/// The usual bench and before it an uplink, `keyed`, with two keys.
async fn two_keys() -> (Bench, Simulator) {
    let keyed = serve_uplink(UplinkOptions::default()).await.unwrap();
    let section = format!(
        "[[uplink]]\nname = \"keyed\"\npriority = 0\nbase_url = \"{}/v1\"\n\
         api_keys = [{{ env = \"KEY_ONE\" }}, {{ env = \"KEY_TWO\", max_in_flight = 8 }}]\n\
         probe = {{ interval = \"100ms\", timeout = \"200ms\", fall = 2, rise = 1 }}",
        keyed.base_url()
    );
    let environment = vec![("KEY_ONE", "sk-one".to_owned()), ("KEY_TWO", "sk-two".to_owned())];
    let bench = Bench::with(Settings { extra: section, environment, ..Settings::default() }).await;
    wait_healthy(&bench).await;
    (bench, keyed)
}

async fn wait_healthy(bench: &Bench) {
    until("the keyed uplink to be seen", 10, || async {
        (keyed_status(bench).await["health"] == "healthy").then_some(())
    })
    .await;
}

async fn keyed_status(bench: &Bench) -> Value {
    bench.daemon.status().await["uplinks"][1].clone()
}

/// Only this key is refused, and only with requests.
fn refusing_key(status: u16, key: &str) -> Faults {
    Faults { only_key: Some(key.to_owned()), ..refusing(status) }
}

fn asked(keyed: &Simulator) -> Vec<u16> {
    keyed.log().iter().filter(|seen| seen.path.ends_with("/completions")).map(|seen| seen.status).collect()
}

#[tokio::test]
async fn a_refused_key_is_replaced_unseen_whatever_it_is_refused_for() {
    for status in [401, 402, 403, 404, 429] {
        let (bench, keyed) = two_keys().await;
        keyed.set_faults(refusing_key(status, "sk-one")).await;
        let plain = bench.daemon.send(Ask::chat("plain")).await;
        assert_eq!((plain.status, plain.header("x-holdfast-route")), (200, "uplink:keyed"), "{status}");
        let mut body = chat_body("stream");
        body["stream"] = true.into();
        let stream = bench.daemon.send(Ask::post("/v1/chat/completions", body.to_string())).await;
        assert_eq!((stream.status, stream.header("x-holdfast-route")), (200, "uplink:keyed"), "{status}");
        assert_eq!(stream_text(&stream.text()), "uplink answer to: stream", "{status}");
        let stored = bench.daemon.send(Ask::chat("stored").header("idempotency-key", "k1")).await;
        assert_eq!((stored.status, stored.header("x-holdfast-route")), (200, "uplink:keyed"), "{status}");
        let answered = asked(&keyed).iter().filter(|seen| **seen == 200).count();
        assert_eq!(answered, 3, "{status}: {:?}", asked(&keyed));
        assert!(bench.uplink.log().iter().all(|seen| !seen.path.ends_with("/completions")), "{status}");
    }
}

#[tokio::test]
async fn a_refused_key_is_named_and_known_after_a_restart() {
    let (mut bench, keyed) = two_keys().await;
    keyed.set_faults(refusing_key(401, "sk-one")).await;
    for n in 0..5 {
        let reply = bench.daemon.send(Ask::chat(&format!("caller {n}"))).await;
        assert_eq!((reply.status, reply.header("x-holdfast-route")), (200, "uplink:keyed"));
    }
    assert_eq!(asked(&keyed), [401, 200, 200, 200, 200, 200], "the refused key was asked again");
    let status = keyed_status(&bench).await;
    assert!(status["paused"].is_null(), "the other key serves: {status}");
    let key = &status["keys"][0];
    assert_eq!((key["state"].as_str(), key["reason"].as_str()), (Some("paused"), Some("key")), "{status}");
    let sentence = key["sentence"].as_str().unwrap_or_default();
    assert!(sentence.starts_with("key 1 (env KEY_ONE)") && sentence.contains("next trial in 1 min"), "{sentence}");
    assert_eq!(status["keys"][1]["state"], "good");
    assert!(!status.to_string().contains("sk-"), "{status}");
    bench.daemon.stop().await;
    bench.daemon.restart().await;
    wait_healthy(&bench).await;
    let reply = bench.daemon.send(Ask::chat("after the restart")).await;
    assert_eq!((reply.status, reply.header("x-holdfast-route")), (200, "uplink:keyed"));
    assert_eq!(asked(&keyed)[6..], [200], "the restart forgot the refused key");
    // The operator says that it was mended: it is tried at once.
    keyed.set_faults(Faults::default()).await;
    bench.daemon.send(Ask::post("/holdfast/v1/drain", String::new())).await;
    bench.daemon.send(Ask::chat("the trial")).await;
    until("the key to serve again", 10, || async {
        (keyed_status(&bench).await["keys"][0]["state"] == "good").then_some(())
    })
    .await;
}

#[tokio::test]
async fn with_its_last_key_an_uplink_gives_way_to_the_next() {
    let (bench, keyed) = two_keys().await;
    keyed.set_faults(refusing(401)).await;
    for n in 0..3 {
        let reply = bench.daemon.send(Ask::chat(&format!("caller {n}"))).await;
        assert_eq!((reply.status, reply.header("x-holdfast-route")), (200, "uplink:sim"), "{}", reply.text());
    }
    assert_eq!(asked(&keyed), [401, 401], "both keys once");
    assert_eq!(keyed_status(&bench).await["paused"]["reason"], "key");
}

#[tokio::test]
async fn one_unreadable_key_of_two_stops_nothing() {
    let keyed = serve_uplink(UplinkOptions { key: Some("sk-two".to_owned()), ..UplinkOptions::default() }).await;
    let keyed = keyed.unwrap();
    let section = format!(
        "[[uplink]]\nname = \"keyed\"\npriority = 0\nbase_url = \"{}/v1\"\n\
         api_keys = [{{ env = \"KEY_ONE\" }}, {{ env = \"KEY_TWO\" }}]\n\
         probe = {{ interval = \"100ms\", timeout = \"200ms\", fall = 2, rise = 1 }}",
        keyed.base_url()
    );
    let environment = vec![("KEY_TWO", "sk-two".to_owned())];
    let bench = Bench::with(Settings { extra: section, environment, ..Settings::default() }).await;
    wait_healthy(&bench).await;
    let reply = bench.daemon.send(Ask::chat("hello")).await;
    assert_eq!((reply.status, reply.header("x-holdfast-route")), (200, "uplink:keyed"), "{}", reply.text());
}

#[tokio::test]
async fn the_test_of_an_uplink_tries_each_key() {
    let (bench, keyed) = two_keys().await;
    let credential = || async {
        let (code, said) = bench.daemon.tool(&["uplink", "test", "keyed", "--json"]).await;
        let said: Value = serde_json::from_str(&said).unwrap();
        let rungs = said[0]["rungs"].as_array().unwrap();
        let rung = rungs.iter().find(|rung| rung["rung"] == "credential").unwrap();
        (code, rung["detail"].as_str().unwrap().to_owned())
    };
    let fine = "key 1 (env KEY_ONE) may list models; key 2 (env KEY_TWO) may list models";
    assert_eq!(credential().await, (0, fine.to_owned()));
    keyed.set_faults(Faults { only_key: Some("sk-two".to_owned()), ..Faults::status(401) }).await;
    let (code, said) = credential().await;
    assert!(code == 1 && said.starts_with("key 2 (env KEY_TWO) is refused (401): "), "{said}");
}

#[tokio::test]
async fn a_missing_key_is_named_in_the_status_and_in_the_test() {
    let keyed = serve_uplink(UplinkOptions::default()).await.unwrap();
    let section = format!(
        "[[uplink]]\nname = \"keyed\"\nbase_url = \"{}/v1\"\napi_keys = [{{ env = \"KEY_ONE\" }}]",
        keyed.base_url()
    );
    let bench = Bench::with(Settings { extra: section, ..Settings::default() }).await;
    let why = "environment variable KEY_ONE is not set; set it in the service's environment";
    until("the missing key to be told", 10, || async {
        (keyed_status(&bench).await["reason"] == format!("no key: {why}")).then_some(())
    })
    .await;
    let (code, said) = bench.daemon.tool(&["uplink", "test", "keyed"]).await;
    assert!(code == 1 && said.contains(why), "{said}");
    assert!(keyed.log().is_empty(), "something was sent without a key: {:?}", keyed.log());
    let health = bench.daemon.send(Ask::get("/health")).await.text();
    assert!(!health.contains("KEY_ONE"), "everybody is told where keys are: {health}");
}
