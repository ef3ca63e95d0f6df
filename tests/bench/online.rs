//! What the gateway adds to a request while its uplink is there.
//!
//! Owns the three ways to the same mock: over TCP, over a UNIX socket, and through the daemon.

use std::time::Duration;

use bytes::Bytes;
use holdfast::clock;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};

use crate::daemon::Place;
use crate::load::{self, Caller, Job, Target};
use crate::stats::{self, Cell};
use crate::{Plan, mock};

const CALLERS: [usize; 3] = [1, 16, 64];
/// Between two looks whether the daemon has found its uplink.
const LOOK: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn measure(plan: &Plan) {
    let place = Place::new("uplink = []\n");
    let socket = place.sockets.path().join("mock.sock");
    let address = mock::start(&socket).await;
    place.configure(&format!(
        "[[uplink]]\nname = \"mock\"\nbase_url = \"http://{address}/v1\"\nmax_in_flight = 256\n[cache]\nttl = \"0s\"\n"
    ));
    let (daemon, _) = place.start().await;
    let through = Target::Unix(place.socket());
    until_online(&through).await;
    let paths = [
        ("mock over TCP", Target::Tcp(address), is_ok as fn(&Response<Incoming>) -> bool),
        ("mock over UNIX socket", Target::Unix(socket), is_ok),
        ("holdfast, then mock over TCP", through, is_uplinks),
    ];
    println!("\n### Added latency: a chat request and its 600-byte answer\n\n{}", stats::HEAD);
    for callers in CALLERS {
        let mut cells: [Vec<Cell>; 3] = Default::default();
        for _ in 0..plan.rounds {
            for ((_, target, is_right), cells) in paths.iter().zip(&mut cells) {
                let job = Job { request: chat, is_right: *is_right };
                cells.push(load::run(target, job, callers, plan.cell).await);
            }
        }
        for (index, (name, _, _)) in paths.iter().enumerate() {
            println!("{}", stats::row(callers, name, &cells[index], (index > 0).then_some(&cells[0])));
        }
    }
    println!("\nResident after this load: {} KiB.", daemon.resident_kib());
    daemon.stop().await;
}

fn chat(n: u64) -> Request<Full<Bytes>> {
    let text = "Line 3: temperature 71 degrees, current 12 amperes, no fault. Is the weld in order?";
    let body = format!(r#"{{"model":"bench","messages":[{{"role":"user","content":"{text} {n}"}}]}}"#);
    let request = Request::post("/v1/chat/completions").header("host", "hf").header("content-type", "application/json");
    request.body(Full::new(Bytes::from(body))).unwrap()
}

fn is_ok(answer: &Response<Incoming>) -> bool {
    answer.status() == StatusCode::OK
}

/// Neither a stored nor a local answer would measure this path.
fn is_uplinks(answer: &Response<Incoming>) -> bool {
    is_ok(answer) && answer.headers().get("x-holdfast-route").is_some_and(|route| route == "uplink:mock")
}

/// The first probe takes its time.
async fn until_online(target: &Target) {
    let started = clock::now();
    loop {
        let mut caller = Caller::connect(target).await.unwrap();
        let request = Request::get("/holdfast/v1/status").header("host", "hf").body(Full::new(Bytes::new())).unwrap();
        let (_, body) = caller.call(request).await.unwrap();
        if String::from_utf8_lossy(&body).contains("healthy\"") && caller.call(chat(0)).await.unwrap().0.status() == 200
        {
            return;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "the daemon does not find its uplink: {}",
            String::from_utf8_lossy(&body)
        );
        tokio::time::sleep(LOOK).await;
    }
}
