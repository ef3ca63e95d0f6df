//! A body that comes again after its answer was not had makes no second request; a caller who left holds no place.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::support::{Ask, Bench, Settings, chat_body, until};

/// Asks, and breaks the connection after so many milliseconds.
async fn break_off(bench: &Bench, user: &str, after_ms: u64) {
    let body = chat_body(user).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: hf\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
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
