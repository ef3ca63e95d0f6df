//! A disk without room: nothing is acknowledged, everybody is told, and what needs no disk goes on.

use crate::support::{Ask, Bench, Settings, until};

/// More than any disk has left: for the gateway every disk is full.
const NO_ROOM: &str = "[queue]\nmin_disk_free = \"1000TiB\"\n";

#[tokio::test]
async fn a_full_disk_is_said_and_live_requests_go_on() {
    let settings = Settings { extra: NO_ROOM.to_owned(), patient: true, ..Settings::default() };
    let bench = Bench::at_once(settings).await;
    let health = bench.daemon.get("/health").await;
    assert_eq!((health.status, health.text().as_str()), (503, "disk_full\n"));
    let json = bench.daemon.send(Ask::get("/health").header("accept", "application/json")).await;
    assert_eq!((json.status, json.json()["reason"].as_str()), (503, Some("disk_full")));
    assert_eq!(bench.daemon.get("/livez").await.status, 200);
    let status = bench.daemon.status().await;
    assert_eq!(status["reason"], "disk_full");
    assert!(status["storage"].as_str().unwrap().contains("make room"), "{status}");
    let online = until("an answer while the disk is full", 10, || async {
        let reply = bench.daemon.send(Ask::chat("no disk needed")).await;
        (reply.status == 200 && reply.header("x-holdfast-route") == "uplink:sim").then_some(reply)
    })
    .await;
    assert!(!online.content().is_empty());
    let picture = "A".repeat(1 << 20);
    assert_eq!(bench.daemon.send(Ask::chat(&picture)).await.status, 200, "a picture needs no disk either");
    let later = bench.daemon.send(Ask::chat("to be stored").header("prefer", "respond-async")).await;
    later.assert_error(507, "disk_full");
    later.assert_retry_after();
    let keyed = bench.daemon.send(Ask::chat("keyed").header("idempotency-key", "k")).await;
    keyed.assert_error(507, "disk_full");
    assert_eq!(bench.daemon.backlog().await, 0);
}
