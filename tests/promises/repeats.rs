//! A body that comes again after its answer was not had makes no second request; a caller who left holds no place.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use holdfast::cli::simulate::Faults;

use crate::support::{Ask, Bench, Settings, chat_body, until};

/// Asks, and breaks the connection after so many milliseconds.
async fn break_off(bench: &Bench, user: &str, after_ms: u64) {
    break_off_with(bench, user, "", after_ms).await;
}

/// The same with more header lines, each with its end.
async fn break_off_with(bench: &Bench, user: &str, lines: &str, after_ms: u64) {
    let body = chat_body(user).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{lines}\r\n",
        body.len()
    );
    let mut stream = UnixStream::connect(bench.daemon.socket()).await.unwrap();
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
}

/// Descriptors of a daemon that nobody talks to: the least of some looks, since a check of its own may be under way.
async fn at_rest(bench: &Bench) -> usize {
    let mut least = bench.daemon.descriptors();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        least = least.min(bench.daemon.descriptors());
    }
    least
}

#[tokio::test]
async fn two_callers_with_one_body_repeat_into_the_two_requests_they_have() {
    let bench = Bench::offline(Settings::without_local()).await;
    let ask = || Ask::chat("the same").header("x-stainless-timeout", "1");
    for round in 0..3 {
        let (a, b) = tokio::join!(bench.daemon.send(ask()), bench.daemon.send(ask()));
        a.assert_error(503, "request_queued");
        b.assert_error(503, "request_queued");
        assert_ne!(a.id(), b.id());
        assert_eq!(bench.daemon.backlog().await, 2, "round {round}");
    }
}

#[tokio::test]
async fn a_repeat_right_after_a_broken_connection_makes_no_second_request() {
    const CALLERS: u64 = 40;
    let bench = Bench::offline(Settings::without_local()).await;
    let descriptors = at_rest(&bench).await;
    for n in 0..CALLERS {
        let user = format!("broken {n}");
        for after_ms in [n % 10, 2, 40] {
            break_off(&bench, &user, after_ms).await;
            // On a loaded machine the daemon may look at the broken connection late; the promise begins there. Connections
            // are taken in order, so a later one's answer tells that this one was taken.
            bench.daemon.get("/health").await;
            until("the break to be noticed", 10, || async {
                (bench.daemon.descriptors() <= descriptors).then_some(())
            })
            .await;
        }
    }
    until("every request to be stored", 10, || async { (bench.daemon.backlog().await >= CALLERS).then_some(()) }).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(bench.daemon.backlog().await, CALLERS);
}

#[tokio::test]
async fn callers_who_leave_at_any_moment_hold_no_place_at_the_uplink() {
    let bench = Bench::start().await;
    for n in 0..600 {
        break_off(&bench, &format!("leaving {n}"), n % 3).await;
    }
    until("the uplink to be free", 10, || async {
        (bench.daemon.status().await["uplinks"][0]["in_flight"] == 0).then_some(())
    })
    .await;
    assert_eq!(bench.daemon.send(Ask::chat("still here")).await.status, 200);
}

/// Whoever takes tickets finds the one that his broken connection kept from him; with his ticket an equal body is his next request.
#[tokio::test]
async fn a_ticket_that_never_came_makes_no_second_request() {
    let bench = Bench::offline(Settings::without_local()).await;
    let descriptors = at_rest(&bench).await;
    break_off_with(&bench, "for later", "prefer: respond-async, wait=20\r\n", 100).await;
    until("the break to be noticed", 10, || async { (bench.daemon.descriptors() <= descriptors).then_some(()) }).await;
    let again = || Ask::chat("for later").header("prefer", "respond-async");
    let first = bench.daemon.send(again()).await;
    assert_eq!((first.status, bench.daemon.backlog().await), (202, 1));
    let next = bench.daemon.send(again()).await;
    assert_eq!((next.status, bench.daemon.backlog().await), (202, 2));
    assert_ne!(first.id(), next.id());
}

/// Nothing on disk says who got his answer: after a restart an equal body must not get an old one.
#[tokio::test]
async fn after_a_restart_an_old_answer_is_nobodys() {
    let mut bench = Bench::with(Settings::without_local()).await;
    let keyed = Ask::chat("how many?").header("idempotency-key", "k");
    assert_eq!(bench.daemon.send(keyed).await.status, 200);
    let id = bench.daemon.send(Ask::chat("how many?").header("prefer", "respond-async")).await.id();
    bench.daemon.history(&id).await;
    assert!(bench.daemon.stop().await.success());
    bench.daemon.restart().await;
    bench.wait_online().await;
    assert_eq!(bench.daemon.send(Ask::chat("how many?")).await.status, 200);
    assert_eq!(bench.answered("how many?"), 3, "the third was sent");
}

/// They are on disk and merely wait, so they take nothing from those who can be served.
#[tokio::test]
async fn callers_who_are_held_shut_the_door_for_nobody() {
    let places = vec![("HOLDFAST_HTTP__MAX_IN_FLIGHT", "4".to_owned())];
    let bench = Bench::offline(Settings { environment: places, ..Settings::without_local() }).await;
    let held: Vec<_> = (0..12)
        .map(|n| {
            let ask = Ask::chat(&format!("held {n}")).header("x-stainless-timeout", "60");
            tokio::spawn(ask.send_to_owned(bench.daemon.socket()))
        })
        .collect();
    until("all of them to be stored", 10, || async { (bench.daemon.backlog().await == 12).then_some(()) }).await;
    let urgent = Ask::chat("urgent").header("prefer", "respond-async").header("x-holdfast-priority", "critical");
    assert_eq!(bench.daemon.send(urgent).await.status, 202);
    bench.recover().await;
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().status, 200);
    }
}

/// Neither does a request whose caller has his ticket, nor one who merely asks whether an answer is there.
#[tokio::test]
async fn what_goes_on_without_its_caller_shuts_the_door_for_nobody() {
    let places = vec![("HOLDFAST_HTTP__MAX_IN_FLIGHT", "1".to_owned())];
    let bench = Bench::with(Settings { environment: places, patient: true, ..Settings::without_local() }).await;
    bench.uplink.set_faults(Faults { delay_ms: 30_000, ..Faults::default() }).await;
    let ticket = bench.daemon.send(Ask::chat("slow").header("x-stainless-read-timeout", "1")).await;
    ticket.assert_error(503, "request_queued");
    let poll = Ask::get(&format!("/v1/chat/completions/{}?wait=30", ticket.id()));
    let poll = tokio::spawn(poll.send_to_owned(bench.daemon.socket()));
    bench.daemon.get("/health").await;
    let next = bench.daemon.send(Ask::chat("next").header("prefer", "respond-async")).await;
    assert_eq!(next.status, 202, "{}", next.text());
    poll.abort();
}
