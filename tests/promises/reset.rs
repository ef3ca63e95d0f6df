//! Handing a device on: nothing of its requests is left, its configuration is, and a live gateway is never emptied.

use holdfast::cli::simulate::Faults;

use crate::support::{Ask, Bench, Settings};

#[tokio::test]
async fn a_device_is_emptied_when_it_is_told_so_and_stopped() {
    let settings = Settings { cache: "ttl = \"5m\"".to_owned(), ..Settings::without_local() };
    let mut bench = Bench::offline(settings).await;
    let large = format!("secret {}", "x".repeat(100_000));
    for prompt in ["secret words", large.as_str()] {
        let reply = bench.daemon.send(Ask::chat(prompt).header("prefer", "respond-async")).await;
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
    bench.uplink.set_faults(Faults::default()).await;
    bench.recover().await;
    let ask = Ask::chat("secret, kept").header("x-holdfast-cache", "on");
    assert_eq!(bench.daemon.send(ask).await.status, 200);
    assert!(bench.daemon.tool(&["reset", "--yes"]).await.0 > 1, "beside a live daemon");
    assert_eq!(bench.daemon.backlog().await, 0, "it lives on");
    assert!(bench.daemon.stop().await.success());
    let (code, told) = bench.daemon.tool(&["reset"]).await;
    assert!(code == 1 && told.contains("spool.db") && told.contains("bodies"), "{code} {told}");
    assert!(bench.daemon.data().join("spool.db").exists(), "only told");
    let (code, told) = bench.daemon.tool(&["reset", "--yes"]).await;
    assert!(code == 0 && told.contains("removed"), "{code} {told}");
    let left: Vec<_> = std::fs::read_dir(bench.daemon.data()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["holdfast.lock"]);
    bench.daemon.restart().await;
    let list = bench.daemon.get("/holdfast/v1/requests").await;
    assert!(!list.text().contains("req_"), "{}", list.text());
}
