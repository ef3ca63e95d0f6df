//! The line in front of the server, and the calls that need no place in it.

use serde_json::json;

use http_body_util::BodyExt;

use super::*;
use crate::uplink::local::slots::WAITING_MAX;

const FIRST: &str = "{\"model\":\"m\",\"message\":{\"content\":\"a\"},\"done\":false}\n";
const LAST: &str = "{\"model\":\"m\",\"message\":{\"content\":\"b\"},\"done\":true}\n";

fn body(stream: bool) -> Value {
    json!({"messages": [{"role": "user", "content": "x"}], "stream": stream})
}

#[tokio::test]
async fn dropping_the_receiver_frees_the_server_and_the_slot() {
    let (mut server, local) = start(Api::Ollama, vec![Script::ok(FIRST).hanging(), Script::ok(LAST)]).await;
    let answer = ask(&local, CHAT, body(true)).await.unwrap();
    assert_eq!(local.load().in_flight, 1);
    server.raw_request().await;
    let Content::Stream(mut receiver) = answer.content else { panic!("no stream") };
    for _ in 0..2 {
        receiver.recv().await.unwrap().unwrap();
    }
    // Nothing is left to be sent: only the closed channel can tell that the reader has gone.
    drop(receiver);
    tokio::time::timeout(Duration::from_secs(5), server.gone()).await.expect("the server was left working");
    whole(ask(&local, CHAT, body(false)).await.unwrap());
    assert_eq!(local.load().in_flight, 0);
}

#[tokio::test]
async fn giving_up_before_the_first_content_frees_the_server_and_the_slot() {
    let (mut server, local) = start(Api::Ollama, vec![Script { pieces: vec![], hang: true }]).await;
    let asking = tokio::spawn({
        let local = local.clone();
        async move { ask(&local, CHAT, body(true)).await.map(|_| ()) }
    });
    server.raw_request().await;
    asking.abort();
    server.gone().await;
    assert_eq!(local.load().in_flight, 0);
}

#[tokio::test]
async fn a_finished_answer_that_nobody_reads_holds_no_slot() {
    let many = FIRST.repeat(20) + LAST;
    let (_server, local) = start(Api::Ollama, vec![Script::ok(&many), Script::ok(LAST)]).await;
    let unread = ask(&local, CHAT, body(true)).await.unwrap();
    whole(ask(&local, CHAT, body(false)).await.unwrap());
    assert_eq!(chunks(&events(unread).await.0).len(), 1 + 21 + 1);
}

#[tokio::test]
async fn an_unread_answer_stops_reading_from_the_server_and_ends_at_the_total() {
    let endless = Script::ok(&FIRST.repeat(200_000));
    let (_server, local) = start(Api::Ollama, vec![endless]).await;
    let unread = ask(&local, CHAT, body(true)).await.unwrap();
    tokio::time::pause();
    while local.load().in_flight > 0 {
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let (events, error) = events(unread).await;
    assert!(events.len() < 10_000, "{} events", events.len());
    assert_eq!(error, Some(LocalError::Timeout));
}

#[tokio::test]
async fn the_line_is_bounded() {
    let (mut server, local) = start(Api::Ollama, vec![Script::ok(FIRST).hanging()]).await;
    let first = ask(&local, CHAT, body(true)).await.unwrap();
    server.raw_request().await;
    let waiters: Vec<_> = (0..WAITING_MAX)
        .map(|_| {
            let local = local.clone();
            tokio::spawn(async move { ask(&local, CHAT, body(false)).await.map(|_| ()) })
        })
        .collect();
    while local.load().waiting < WAITING_MAX {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&local, CHAT, body(false)).await.unwrap_err(), LocalError::Busy);
    let refused = ask(&local, CHAT, json!({"messages": []})).await.unwrap_err();
    assert_eq!(refused.kind(), "invalid", "a bad request is to be refused without waiting");
    for waiter in waiters {
        waiter.abort();
        assert!(waiter.await.unwrap_err().is_cancelled());
    }
    assert_eq!(local.load().waiting, 0);
    drop(first);
}

#[tokio::test]
async fn waiting_in_line_counts_to_the_total_alone() {
    let mut server = Server::start(vec![Script::ok(FIRST).hanging(), Script::ok(LAST)]).await;
    let mut options = options(&server.url, Api::Ollama);
    // The first request falls silent for longer than the second may wait for its own first token.
    options.timeouts.first_token = Duration::from_secs(5);
    let local = Local::new(options).unwrap();
    let first = ask(&local, CHAT, body(true)).await.unwrap();
    server.raw_request().await;
    let Content::Stream(mut receiver) = first.content else { panic!("no stream") };
    let waiter = tokio::spawn({
        let local = local.clone();
        async move { ask(&local, CHAT, body(false)).await.map(whole) }
    });
    while local.load().waiting == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    while receiver.recv().await.unwrap().is_ok() {}
    tokio::time::resume();
    assert!(waiter.await.unwrap().is_ok());
}

#[tokio::test]
async fn models_are_listed() {
    let tags = r#"{"models":[{"name":"a:latest","model":"a:latest","size":1},{"name":"b"}]}"#;
    let (mut server, local) = start(Api::Ollama, vec![Script::ok(tags)]).await;
    assert_eq!(local.probe().await.unwrap(), ["a:latest", "b"]);
    assert!(server.raw_request().await.0.starts_with("GET /api/tags "));
    assert_eq!(local.probe().await.unwrap_err(), LocalError::Unreachable);
    let list = r#"{"object":"list","data":[{"id":"tiny","object":"model"}]}"#;
    let both = r#"{"models":[{"name":"tiny","model":"tiny"}],"object":"list","data":[{"id":"tiny","name":"Tiny"}]}"#;
    let (mut server, local) = start(Api::OpenAi, vec![Script::ok(list), Script::ok(both)]).await;
    for _ in 0..2 {
        assert_eq!(local.probe().await.unwrap(), ["tiny"]);
        assert!(server.raw_request().await.0.starts_with("GET /v1/models "));
    }
}

#[tokio::test]
async fn the_proxy_passes_on_what_is_not_the_connections_own() {
    let (mut server, local) = start(Api::Ollama, vec![Script::new("418 I'm a teapot", "short")]).await;
    let request = hyper::Request::post("/api/show?x=1")
        .header("host", "hf")
        .header("cookie", "c")
        .header("authorization", "Bearer key")
        .header("x-mine", "1")
        .body(
            crate::uplink::outgoing::Outgoing::new(
                crate::body::Body::from(Bytes::from_static(b"{\"model\":\"m\"}")).into(),
                None,
            )
            .0,
        )
        .unwrap();
    let answer = local.proxy(request).await.unwrap();
    assert_eq!(answer.status(), 418);
    let (head, body) = server.raw_request().await;
    assert!(head.starts_with("POST /api/show?x=1 HTTP/1.1\r\n"), "{head}");
    let head = head.to_ascii_lowercase();
    assert!(head.contains("x-mine: 1") && head.contains("host: 127.0.0.1"), "{head}");
    assert!(!head.contains("cookie") && !head.contains("authorization"), "{head}");
    assert_eq!(body, "{\"model\":\"m\"}");
}

#[tokio::test]
async fn what_the_proxy_passes_on_ends_when_it_stands_still() {
    let (_server, local) = start(Api::Ollama, vec![Script::ok("{}\n").hanging()]).await;
    let (outgoing, _) = crate::uplink::outgoing::Outgoing::new(crate::body::Body::default().into(), None);
    let mut answer =
        Box::pin(local.proxy(hyper::Request::post("/api/pull").body(outgoing).unwrap()).await.unwrap().into_body());
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "{}\n");
    tokio::time::pause();
    assert!(answer.frame().await.unwrap().is_err(), "nothing came for the whole time of an answer");
}

#[tokio::test]
async fn switched_off_it_says_so() {
    let mut options = options("", Api::Ollama);
    options.base_url = None;
    let local = Local::new(options).unwrap();
    assert!(!local.is_enabled());
    assert_eq!(ask(&local, CHAT, body(false)).await.unwrap_err(), LocalError::Off);
    assert_eq!(local.probe().await.unwrap_err(), LocalError::Off);
}
