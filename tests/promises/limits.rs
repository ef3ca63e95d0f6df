//! What one source may ask for: a rate, a burst, and nothing taken from others or from those who only look.

use std::time::Duration;

use holdfast::cli::simulate::Faults;

use crate::support::{Ask, Bench, Settings, listening, until};

const BURST: u32 = 6;

async fn limited() -> Bench {
    Bench::with(Settings { rate: (1, BURST), ..Settings::default() }).await
}

#[tokio::test]
async fn a_flood_gets_its_burst_and_then_a_second_each() {
    let bench = limited().await;
    let (started, mut served, mut refused) = (holdfast::clock::now(), 0, 0);
    for n in 0..4 * BURST {
        let reply = bench.daemon.send(Ask::chat(&format!("flood {n}"))).await;
        match reply.status {
            200 => served += 1,
            429 => {
                refused += 1;
                assert_eq!(reply.json()["error"]["code"], "rate_limit_exceeded");
                assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
                assert_eq!(reply.header("retry-after"), "1");
            }
            other => panic!("{other}: {}", reply.text()),
        }
    }
    let earned = started.elapsed().as_secs() as u32 + 1;
    assert!((BURST..=BURST + earned).contains(&served), "{served} served in less than {earned} s");
    assert_eq!(bench.uplink.log().len(), served as usize, "what was refused was sent");
    let metrics = bench.daemon.get("/metrics").await.text();
    assert!(metrics.contains(&format!("holdfast_limited_requests_total {refused}\n")), "{metrics}");
}

#[tokio::test]
async fn who_comes_back_when_told_is_served() {
    let bench = limited().await;
    let refused = until("a refusal", 10, || async {
        let reply = bench.daemon.send(Ask::chat("again")).await;
        (reply.status == 429).then_some(reply)
    });
    let wait = refused.await.header("retry-after").parse().unwrap();
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(bench.daemon.send(Ask::chat("now")).await.status, 200);
}

#[tokio::test]
async fn looking_costs_nothing_and_an_outage_is_limited_too() {
    let bench = Bench::offline(Settings { rate: (1, BURST), ..Settings::default() }).await;
    let replies =
        futures_util::future::join_all((0..BURST + 20).map(|n| bench.daemon.send(Ask::chat(&n.to_string())))).await;
    let stored = replies.iter().filter(|reply| reply.status == 200).count();
    let refused = replies.iter().filter(|reply| reply.status == 429).count();
    assert_eq!(stored + refused, replies.len(), "{:?}", replies.iter().map(|r| r.status).collect::<Vec<_>>());
    assert!(refused > 0);
    for path in ["/v1/models", "/holdfast/v1/status", "/holdfast/v1/requests", "/health"] {
        for _ in 0..2 * BURST {
            assert_eq!(bench.daemon.get(path).await.status, 200, "{path}");
        }
    }
    assert_eq!(bench.daemon.backlog().await, stored as u64, "what was refused was stored");
}

#[tokio::test]
async fn a_flood_that_takes_every_place_holds_up_no_other_source() {
    let (listen, address) = listening();
    let http = format!("{listen}\nmax_in_flight = 2");
    let bench = Bench::with(Settings { http, ..Settings::default() }).await;
    // The first two are held, so that all others wait for a place.
    bench.uplink.set_faults(Faults { delay_ms: 3_000, ..Faults::default() }).await;
    let asks = || bench.uplink.log().into_iter().filter(|seen| seen.path.ends_with("/completions"));
    let prompts: Vec<String> = (0..60).map(|n| format!("flood {n}")).collect();
    let flood = futures_util::future::join_all(prompts.iter().map(|prompt| bench.daemon.send(Ask::chat(prompt))));
    let other = async {
        until("the places to be taken", 10, || async { (asks().count() == 2).then_some(()) }).await;
        bench.uplink.set_faults(Faults::default()).await;
        Ask::chat("other").send_to_tcp(&address).await
    };
    let (flood, other) = tokio::join!(flood, other);
    assert_eq!(other.status, 200, "{}", other.text());
    let place = asks().position(|seen| seen.user == "other").unwrap();
    // It is the next to get a place; until its thread has woken, some go through the other one. In one line it would be the 34th.
    assert!(place <= 16, "{place} went before the other source");
    let refused: Vec<_> = flood.iter().filter(|reply| reply.status == 429).collect();
    assert!(flood.iter().all(|reply| matches!(reply.status, 200 | 429)));
    // Two are served, 32 wait, the others are told to come back.
    assert!(!refused.is_empty() && refused.iter().all(|reply| reply.header("retry-after") == "1"));
    assert!(flood.len() - refused.len() >= 32, "{} refused", refused.len());
}
