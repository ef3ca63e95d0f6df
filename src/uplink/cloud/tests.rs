//! The cloud client's time-outs and what it takes back, against sockets that say little. Decides nothing.

use http_body_util::BodyExt;
use std::future::pending;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::*;

/// Waits for an answer that never comes, while the line does this.
async fn until_given_up(progress: &Progress, times: Timeouts, line: impl Future<Output = ()>) {
    tokio::select! {
        answer = in_time(pending::<()>(), progress, times, clock::now()) => assert!(answer.is_err()),
        () = line => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_waited_for_and_a_silent_uplink_is_not() {
    let second = Duration::from_secs;
    let times = Timeouts { connect: second(2), first_byte: second(30), idle: second(30), total: second(3600) };
    let (mut body, progress) = Outgoing::new(Body::from(vec![0; 320 * 1024]).into(), None);
    let slow_line = async {
        for _ in 0..5 {
            tokio::time::sleep(second(25)).await;
            body.frame().await;
        }
        pending::<()>().await;
    };
    until_given_up(&progress, times, slow_line).await;
    assert!(progress.is_out(), "it was given up while it still moved");
}

/// The time for a body that does not move is shorter than the one for an answer, and counts from its latest move.
#[tokio::test(start_paused = true)]
async fn a_body_that_stops_moving_is_given_up_in_its_own_time() {
    let second = Duration::from_secs;
    let times = Timeouts { connect: second(2), first_byte: second(60), idle: second(5), total: second(3600) };
    let (mut body, progress) = Outgoing::new(Body::from(vec![0; 320 * 1024]).into(), None);
    let began = clock::timers_now();
    let moves_once = async {
        tokio::time::sleep(second(1)).await;
        body.frame().await;
        pending::<()>().await;
    };
    until_given_up(&progress, times, moves_once).await;
    assert_eq!((clock::timers_now() - began).as_secs(), 6);
}

/// An uplink at this address, behind TLS where `scheme` says so.
fn cloud(scheme: &str, listener: &TcpListener) -> Cloud {
    let long = Duration::from_mins(1);
    let options = Options {
        name: "u".to_owned(),
        base_url: format!("{scheme}://127.0.0.1:{}/v1", listener.local_addr().unwrap().port()),
        keys: Keys::None,
        auth: Auth::Bearer,
        models: BTreeMap::new(),
        ca_file: None,
        probe_path: "/models".to_owned(),
        probe_timeout: long,
        timeouts: Timeouts { connect: long, first_byte: long, idle: long, total: long },
        floor: Arc::new(Floor::new(0)),
    };
    Cloud::new(options).unwrap()
}

fn call(bytes: usize) -> Call {
    let body = Body::from(vec![b'a'; bytes]).into();
    Call { method: Method::POST, path: "/v1/x".to_owned(), headers: HeaderMap::new(), body, on_out: None }
}

/// Sends so many bytes; takes the request back when the other side has read so many of what came.
async fn taken_back(scheme: &str, sent: usize, after: usize) -> (Outcome, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cloud = cloud(scheme, &listener);
    let (told, tells) = oneshot::channel();
    let reader = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut read, mut buffer, mut told) = (0, vec![0; 16 * 1024], Some(told));
        // To the end of the connection: nothing may follow.
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            read += count;
            if read >= after
                && let Some(told) = told.take()
            {
                told.send(()).unwrap();
            }
        }
        read
    });
    let error = cloud.send_unless(call(sent), 0, tells).await.unwrap_err();
    cloud.reset();
    (error.outcome, reader.await.unwrap())
}

#[tokio::test]
async fn what_waits_for_tls_is_taken_back_at_no_cost() {
    let (outcome, _) = taken_back("https", 1_000, 1).await;
    assert_eq!(outcome, Outcome::GivenUp);
}

#[tokio::test]
async fn an_upload_that_is_taken_back_never_comes_whole() {
    const BYTES: usize = 64 * 1024 * 1024;
    let (outcome, read) = taken_back("http", BYTES, 1_000_000).await;
    assert_eq!(outcome, Outcome::GivenUp);
    assert!((1_000_000..BYTES).contains(&read), "{read}");
}

#[tokio::test]
async fn what_has_left_cannot_be_taken_back() {
    let (outcome, read) = taken_back("http", 1_000, 1_000).await;
    assert_eq!(outcome, Outcome::Unknown(Fault::Outage));
    assert!(read > 1_000);
}

#[tokio::test]
async fn a_request_without_a_body_is_not_taken_for_unsent() {
    let (outcome, read) = taken_back("http", 0, 10).await;
    assert_eq!(outcome, Outcome::Unknown(Fault::Outage));
    assert!(read > 10);
}
