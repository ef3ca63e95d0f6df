//! What a caller may choose for the time of an outage, tickets, and what makes two requests one.

use std::time::Duration;

use holdfast::cli::simulate::{Faults, Mode};
use holdfast::clock;
use serde_json::json;

use crate::support::{Ask, Bench, Reply, Settings, chat_body, refusing, until};

/// A caller that gives up after a second, as it says in the OpenAI SDKs' header.
fn impatient(user: &str) -> Ask {
    Ask::chat(user).offline("queue").header("x-stainless-read-timeout", "1")
}

fn assert_ticket(reply: &Reply) {
    reply.assert_error(503, "request_queued");
    reply.assert_retry_after();
    assert_eq!(reply.header("x-should-retry"), "false");
    assert!(reply.header("location").contains(&reply.id()), "{reply:?}");
}

#[tokio::test]
async fn local_is_answered_and_not_stored() {
    let bench = Bench::offline(Settings::default()).await;
    let reply = bench.daemon.send(Ask::chat("only here").offline("local")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.content(), "local answer to: only here");
    assert_eq!(reply.header("x-holdfast-state"), "");
    assert_eq!(bench.daemon.backlog().await, 0);
}

#[tokio::test]
async fn a_slash_too_many_in_the_path_costs_nobody_his_place_in_the_queue() {
    let bench = Bench::offline(Settings::without_local()).await;
    for path in ["/v1/chat/completions/", "/v1//chat/completions", "//v1/chat/completions"] {
        let ask = Ask::post(path, chat_body(path).to_string()).header("prefer", "respond-async");
        assert_eq!(bench.daemon.send(ask).await.status, 202, "{path}");
    }
    assert_eq!(bench.daemon.backlog().await, 3);
    let lost = bench.daemon.send(Ask::post("/chat/completions", chat_body("lost").to_string())).await;
    lost.assert_error(404, "unknown_path");
    assert!(lost.text().contains("end with /v1"), "{}", lost.text());
}

#[tokio::test]
async fn a_list_says_the_places_that_the_records_say() {
    let bench = Bench::offline(Settings::without_local()).await;
    for (n, priority) in ["normal", "low", "high", "normal"].into_iter().enumerate() {
        let ask = Ask::chat(&format!("number {n}")).header("prefer", "respond-async");
        assert_eq!(bench.daemon.send(ask.header("x-holdfast-priority", priority)).await.status, 202);
    }
    let list = bench.daemon.get("/holdfast/v1/requests?state=queued").await.json();
    let (_, text) = bench.daemon.tool(&["queue", "list", "--json"]).await;
    for page in [list, serde_json::from_str(&text).unwrap()] {
        let records = page["data"].as_array().unwrap();
        let places: Vec<_> = records.iter().map(|record| record["position"].as_u64().unwrap()).collect();
        assert_eq!(places, [1, 3, 0, 2], "{page}");
        for record in records {
            let alone = bench.daemon.record(record["id"].as_str().unwrap()).await;
            assert_eq!(alone["position"], record["position"], "{alone}");
        }
    }
}

#[tokio::test]
async fn fail_is_refused_at_once() {
    let bench = Bench::offline(Settings::default()).await;
    let started = clock::now();
    let reply = bench.daemon.send(Ask::chat("now or never").offline("fail")).await;
    assert!(started.elapsed() < Duration::from_secs(1));
    reply.assert_error(503, "uplink_unavailable");
    reply.assert_retry_after();
    assert_eq!(bench.daemon.backlog().await, 0);
}

/// "Send this again" would be a second bill: whoever can be neither answered nor stored is told what may have happened.
#[tokio::test]
async fn what_was_sent_is_never_said_to_be_sent_again() {
    for (on_unknown, policy) in [("resend", "fail"), ("resend", "local"), ("hold", "both"), ("hold", "queue")] {
        let bench = Bench::with(Settings { on_unknown, ..Settings::without_local() }).await;
        bench.uplink.set_faults(Faults::failing(Mode::Silence)).await;
        let reply = bench.daemon.send(Ask::chat("sent").offline(policy)).await;
        reply.assert_error(504, "upstream_timeout");
        assert_eq!(reply.header("x-should-retry"), "false", "{on_unknown} {policy}");
        assert_eq!(bench.daemon.backlog().await, 0);
    }
}

#[tokio::test]
async fn queue_gives_a_ticket_that_becomes_the_answer() {
    let bench = Bench::offline(Settings::default()).await;
    let started = clock::now();
    let ticket = bench.daemon.send(impatient("the ticket")).await;
    assert!(started.elapsed() < Duration::from_secs(1), "0.9 of what the caller waits");
    assert_ticket(&ticket);
    assert_eq!(bench.daemon.backlog().await, 1);
    let again = bench.daemon.send(impatient("the ticket")).await;
    assert_ticket(&again);
    assert_eq!(again.id(), ticket.id(), "the same body again is the same request");
    assert_eq!(bench.daemon.backlog().await, 1);
    let path = format!("/v1/chat/completions/{}", ticket.id());
    let pending = bench.daemon.get(&path).await;
    pending.assert_error(409, "request_pending");
    assert_eq!((pending.header("x-should-retry"), pending.header("retry-after")), ("true", "1"));
    bench.uplink.set_faults(Faults::default()).await;
    let answer = bench.daemon.get(&format!("{path}?wait=20")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.content(), "uplink answer to: the ticket");
    let late = bench.daemon.send(impatient("the ticket")).await;
    assert_eq!((late.status, late.content().as_str()), (200, "uplink answer to: the ticket"));
    assert_eq!(bench.answered("the ticket"), 1);
}

#[tokio::test]
async fn a_held_request_is_answered_when_the_uplink_returns() {
    let bench = Bench::offline(Settings::default()).await;
    let held = bench.daemon.send(Ask::chat("held").offline("queue"));
    let recovery = async {
        until("the request to be stored", 10, || async { (bench.daemon.backlog().await == 1).then_some(()) }).await;
        bench.uplink.set_faults(Faults::default()).await;
    };
    let (reply, ()) = tokio::join!(held, recovery);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.content(), "uplink answer to: held");
    assert_eq!(bench.answered("held"), 1);
}

#[tokio::test]
async fn both_without_a_local_model_is_queue() {
    let bench = Bench::offline(Settings::without_local()).await;
    let ask = Ask::chat("nobody home").header("x-stainless-read-timeout", "1");
    assert_ticket(&bench.daemon.send(ask).await);
    let broken = Bench::offline(Settings::default()).await;
    broken.ollama.set_faults(Faults::failing(Mode::Refuse)).await;
    let ask = Ask::chat("nobody home").header("x-stainless-read-timeout", "1");
    assert_ticket(&broken.daemon.send(ask).await);
    assert_eq!(broken.daemon.backlog().await, 1);
}

fn assert_accepted(reply: &Reply) {
    assert_eq!(reply.status, 202, "{}", reply.text());
    assert_eq!(reply.json()["id"], reply.id());
    assert_eq!(reply.json()["object"], "holdfast.request");
    assert!(reply.header("location").contains(&reply.id()), "{reply:?}");
    assert!(reply.header("preference-applied").contains("respond-async"), "{reply:?}");
    reply.assert_retry_after();
}

#[tokio::test]
async fn respond_async_is_accepted_at_once_online_and_offline() {
    let bench = Bench::start().await;
    let online = bench.daemon.send(Ask::chat("later, online").header("prefer", "respond-async")).await;
    assert_accepted(&online);
    until("the answer", 20, || async {
        (bench.daemon.record(&online.id()).await["state"] == "answered").then_some(())
    })
    .await;
    bench.outage(Faults::failing(Mode::Refuse)).await;
    let offline = bench.daemon.send(Ask::chat("later, offline").header("prefer", "respond-async")).await;
    assert_accepted(&offline);
    assert_eq!(offline.json()["state"], "queued");
    bench.recover().await;
    assert_eq!((bench.answered("later, online"), bench.answered("later, offline")), (1, 1));
}

#[tokio::test]
async fn prefer_wait_bounds_the_wait() {
    let bench = Bench::start().await;
    let quick = bench.daemon.send(Ask::chat("quick").header("prefer", "respond-async, wait=10")).await;
    assert_eq!((quick.status, quick.content().as_str()), (200, "uplink answer to: quick"));
    bench.outage(Faults::failing(Mode::Refuse)).await;
    let started = clock::now();
    let ask = Ask::chat("slow").offline("queue").header("prefer", "respond-async, wait=1");
    assert_accepted(&bench.daemon.send(ask).await);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn an_idempotency_key_makes_two_requests_one() {
    let bench = Bench::start().await;
    let ask = Ask::chat("only once").header("idempotency-key", "k-1");
    let first = bench.daemon.send(ask.clone()).await;
    let second = bench.daemon.send(ask).await;
    assert_eq!((first.status, second.status), (200, 200), "{} {}", first.text(), second.text());
    assert_eq!(first.content(), second.content());
    assert_eq!(second.header("idempotent-replayed"), "true");
    assert_eq!(bench.answered("only once"), 1);
    let other = bench.daemon.send(Ask::chat("another body").header("idempotency-key", "k-1")).await;
    other.assert_error(422, "idempotency_key_reused");
    assert_eq!(bench.answered("another body"), 0);
}

/// "Send this again later" must be true of its key, too.
#[tokio::test]
async fn a_key_whose_request_was_refused_and_not_kept_may_come_again() {
    for policy in ["fail", "local"] {
        let bench = Bench::with(Settings::without_local()).await;
        bench.uplink.set_faults(refusing(503)).await;
        let ask =
            || Ask::chat("once").offline(policy).header("idempotency-key", "k").header("x-stainless-timeout", "60");
        bench.daemon.send(ask()).await.assert_error(503, "uplink_unavailable");
        bench.uplink.set_faults(Faults::default()).await;
        until("the breaker to let it through", 40, || async {
            let reply = bench.daemon.send(ask()).await;
            assert!([200, 503].contains(&reply.status), "{policy}: {}", reply.text());
            (reply.status == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_same_key_in_flight_is_attached() {
    let bench = Bench::start().await;
    bench.uplink.set_faults(Faults { delay_ms: 500, ..Faults::default() }).await;
    let ask = || bench.daemon.send(Ask::chat("in flight").header("idempotency-key", "k-2"));
    let (left, right) = tokio::join!(ask(), ask());
    assert_eq!((left.status, right.status), (200, 200), "{} {}", left.text(), right.text());
    assert_eq!(left.content(), right.content());
    assert_eq!(bench.answered("in flight"), 1);
}

#[tokio::test]
async fn a_key_used_offline_names_the_stored_request() {
    let bench = Bench::offline(Settings::default()).await;
    let ask = Ask::chat("keyed").header("idempotency-key", "k-3").header("prefer", "respond-async");
    let (first, second) = (bench.daemon.send(ask.clone()).await, bench.daemon.send(ask).await);
    assert_eq!(first.id(), second.id());
    assert_eq!(bench.daemon.backlog().await, 1);
    bench.recover().await;
    let sent = bench.uplink.log();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].idempotency_key.as_deref(), Some("k-3"), "sent with the client's own key");
}

#[tokio::test]
async fn a_health_probe_is_never_stored() {
    let bench = Bench::offline(Settings::default()).await;
    for policy in ["both", "queue"] {
        let mut body = chat_body("are you there");
        body["max_tokens"] = json!(1);
        let ask = Ask::post("/v1/chat/completions", body.to_string()).offline(policy);
        let reply = bench.daemon.send(ask.header("x-stainless-read-timeout", "1")).await;
        assert_ne!(reply.header("x-holdfast-state"), "queued", "{reply:?}");
        assert_eq!(bench.daemon.backlog().await, 0, "{policy}");
    }
}

#[tokio::test]
async fn a_stored_request_can_be_cancelled() {
    let bench = Bench::offline(Settings::default()).await;
    let id = bench.daemon.send(Ask::chat("never mind").header("prefer", "respond-async")).await.id();
    let cancel = Ask::new(hyper::Method::DELETE, &format!("/holdfast/v1/requests/{id}"));
    assert!(bench.daemon.send(cancel).await.status < 300);
    bench.recover().await;
    assert_eq!(bench.daemon.record(&id).await["state"], "cancelled");
    assert_eq!(bench.uplink.requests_total(), 0);
}

#[tokio::test]
async fn a_repeat_that_wants_nothing_stored_is_not_attached() {
    let bench = Bench::offline(Settings::without_local()).await;
    let ask = |policy| {
        Ask::chat("twice, differently").header("x-stainless-timeout", "1").header("x-holdfast-offline", policy)
    };
    bench.daemon.send(ask("queue")).await.assert_error(503, "request_queued");
    bench.daemon.send(ask("fail")).await.assert_error(503, "uplink_unavailable");
    bench.daemon.send(ask("local")).await.assert_error(503, "uplink_unavailable");
    assert_eq!(bench.daemon.backlog().await, 1);
}

#[tokio::test]
async fn an_answered_request_cannot_be_cancelled_but_deleted() {
    let bench = Bench::start().await;
    let accepted = bench.daemon.send(Ask::chat("once").header("prefer", "respond-async")).await;
    let path = format!("/holdfast/v1/requests/{}", accepted.id());
    until("the answer", 10, || async { (bench.daemon.get(&path).await.json()["state"] == "answered").then_some(()) })
        .await;
    for more in ["state=answered&source=uid:1", "source=uid:1", "state=queued", ""] {
        let purge = Ask::new(hyper::Method::DELETE, &format!("/holdfast/v1/requests?{more}"));
        bench.daemon.send(purge).await.assert_error(400, "invalid_query");
    }
    assert_eq!(bench.daemon.get(&path).await.status, 200, "a purge that was refused deleted it");
    bench.daemon.send(Ask::new(hyper::Method::DELETE, &path)).await.assert_error(409, "not_cancellable");
    let answer = format!("/v1/chat/completions/{}", accepted.id());
    assert_eq!(bench.daemon.get(&answer).await.status, 200);
    let deleted = bench.daemon.send(Ask::new(hyper::Method::DELETE, &answer)).await;
    assert_eq!((deleted.status, &deleted.json()["deleted"]), (200, &true.into()));
    bench.daemon.get(&answer).await.assert_error(404, "request_not_found");
    bench.daemon.send(Ask::new(hyper::Method::DELETE, &answer)).await.assert_error(404, "request_not_found");
}

/// Its caller still wants an answer, and the one it would be attached to will never have one.
#[tokio::test]
async fn a_repeat_of_what_was_cancelled_is_a_new_request() {
    let bench = Bench::offline(Settings::without_local()).await;
    let ask = || Ask::chat("once more").header("x-stainless-timeout", "1");
    let ticket = bench.daemon.send(ask()).await;
    ticket.assert_error(503, "request_queued");
    let cancel = Ask::new(hyper::Method::DELETE, &format!("/holdfast/v1/requests/{}", ticket.id()));
    assert!(bench.daemon.send(cancel).await.status < 300);
    bench.recover().await;
    let reply = bench.daemon.send(ask()).await;
    assert_eq!((reply.status, reply.content().as_str()), (200, "uplink answer to: once more"));
}

/// Its first caller was told that it is kept; what a repeat wants for itself changes nothing about that.
#[tokio::test]
async fn a_repeat_under_another_policy_finds_its_key_and_takes_nothing_back() {
    for policy in ["fail", "local"] {
        let bench = Bench::with(Settings::without_local()).await;
        let keyed =
            |user: &str, key: &str| Ask::chat(user).header("idempotency-key", key).header("x-stainless-timeout", "2");
        assert_eq!(bench.daemon.send(keyed("done", "k1")).await.status, 200);
        bench.outage(Faults::failing(Mode::Refuse)).await;
        let id = bench.daemon.send(keyed("waits", "k2")).await.id();
        let reply = bench.daemon.send(keyed("done", "k1").offline(policy)).await;
        assert_eq!((reply.status, reply.content().as_str()), (200, "uplink answer to: done"), "{policy}");
        bench.daemon.send(keyed("other", "k1").offline(policy)).await.assert_error(422, "idempotency_key_reused");
        let reply = bench.daemon.send(keyed("waits", "k2").offline(policy)).await;
        reply.assert_error(503, "request_queued");
        assert_eq!(reply.id(), id);
        let new = bench.daemon.send(keyed("new", "k3").offline(policy)).await;
        assert_eq!((new.status, new.json()["error"]["code"] != "request_queued"), (503, true), "{}", new.text());
        bench.recover().await;
        until("the stored one", 20, || async { (bench.daemon.record(&id).await["state"] == "answered").then_some(()) })
            .await;
    }
}

/// What one caller's policy takes back is promised to nobody else, whoever of them comes and goes first.
#[tokio::test]
async fn a_ticket_for_a_shared_key_is_for_a_request_that_is_there() {
    const CALLERS: usize = 4;
    let bench = Bench::with(Settings { patient: true, ..Settings::without_local() }).await;
    bench.uplink.set_faults(Faults { delay_ms: 20_000, ..Faults::default() }).await;
    let keyed = |key: usize| {
        let ask = Ask::chat("shared").header("idempotency-key", &format!("k{key}")).offline("fail");
        tokio::spawn(ask.header("x-stainless-timeout", "60").send_to_owned(bench.daemon.socket()))
    };
    let asks: Vec<_> = (0..5).flat_map(|key| (0..CALLERS).map(move |_| key)).map(keyed).collect();
    until("the sends", 10, || async { (bench.answered("shared") == 5).then_some(()) }).await;
    bench.outage(Faults::failing(Mode::Refuse)).await;
    for ask in asks {
        let reply = ask.await.unwrap().unwrap();
        assert_eq!(reply.status, 503, "{}", reply.text());
        if reply.json()["error"]["code"] == "request_queued" {
            assert_eq!(bench.daemon.record(&reply.id()).await["id"], reply.id());
        }
    }
}
