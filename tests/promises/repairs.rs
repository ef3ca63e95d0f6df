//! A damaged data folder in the hands of somebody at the device: look, take out what is left, mend.

use holdfast::cli::simulate::Faults;
use serde_json::Value;

use crate::support::{Ask, Bench, Settings, until};

/// A stopped daemon whose data folder holds `count` requests that wait.
async fn stopped(count: usize) -> (Bench, Vec<String>) {
    let mut bench = Bench::offline(Settings::default()).await;
    let mut ids = Vec::new();
    for n in 0..count {
        let ask = Ask::chat(&format!("stored {n}")).offline("queue").header("prefer", "respond-async");
        let reply = bench.daemon.send(ask).await;
        assert_eq!(reply.status, 202, "{}", reply.text());
        ids.push(reply.id());
    }
    assert!(bench.daemon.stop().await.success());
    (bench, ids)
}

/// What `export --offline` tells: exit code and each request's line.
async fn exported(bench: &Bench) -> (i32, Vec<Value>) {
    let (code, text) = bench.daemon.tool(&["queue", "export", "--offline", "--bodies"]).await;
    (code, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[tokio::test]
async fn a_sound_folder_is_in_order_and_a_live_daemon_is_left_alone() {
    let (mut bench, ids) = stopped(3).await;
    assert_eq!(bench.daemon.tool(&["queue", "fsck"]).await.0, 0);
    let (code, lines) = exported(&bench).await;
    assert_eq!((code, lines.len()), (0, ids.len()));
    assert!(lines.iter().all(|line| line["body_base64"].is_string()));
    bench.daemon.restart().await;
    for arguments in [&["queue", "fsck"][..], &["queue", "fsck", "--repair"], &["queue", "export", "--offline"]] {
        assert!(bench.daemon.tool(arguments).await.0 > 1, "{arguments:?} beside a live daemon");
    }
    assert_eq!(bench.daemon.backlog().await, ids.len() as u64);
}

#[tokio::test]
async fn a_damaged_folder_is_told_exported_and_mended() {
    let (mut bench, ids) = stopped(12).await;
    let path = bench.daemon.data().join("spool.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // One bit of one prompt, which nothing but the body's own hash can see, and the file's header.
    let at = bytes.windows(8).rposition(|window| window == b"stored 7").unwrap();
    bytes[at] ^= 1;
    bytes[..100].fill(0);
    std::fs::write(&path, &bytes).unwrap();

    let (code, text) = bench.daemon.tool(&["queue", "fsck"]).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&ids[7]) && text.contains("structure"), "{text}");
    let (code, lines) = exported(&bench).await;
    assert_eq!((code, lines.len()), (1, ids.len()), "what is left is told, what is lost as well");
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "looking changes nothing");

    let (code, text) = bench.daemon.tool(&["queue", "fsck", "--repair"]).await;
    assert_eq!(code, 0, "{text}");
    assert_eq!(bench.daemon.tool(&["queue", "fsck"]).await.0, 0);
    assert_eq!(
        std::fs::read(bench.daemon.data().join("quarantine/1/spool.db")).unwrap(),
        bytes,
        "nothing is thrown away"
    );

    bench.daemon.restart().await;
    assert_eq!(bench.daemon.backlog().await, ids.len() as u64 - 1);
    for id in &ids {
        let record = bench.daemon.record(id).await;
        let damaged = (&record["state"], &record["reason"]) == (&"dead".into(), &"damaged".into());
        assert_eq!(damaged, *id == ids[7], "{record}");
    }
    bench.recover().await;
    for (n, id) in ids.iter().enumerate().filter(|(n, _)| *n != 7) {
        crate::support::until("the answer", 30, || async {
            (bench.daemon.record(id).await["state"] == "answered").then_some(())
        })
        .await;
        assert_eq!(bench.answered(&format!("stored {n}")), 1);
    }
}

/// Grammar allows it, and a server that cuts an answer in the middle of an emoji may write it.
#[tokio::test]
async fn an_answer_that_not_every_reader_takes_is_shown_and_exported() {
    let bench = Bench::offline(Settings::default()).await;
    let strange = bench.daemon.send(Ask::chat("an emoji").header("prefer", "respond-async")).await.id();
    let answer = "{\"id\":\"c\",\n\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"half \\ud83d\"}}]}";
    bench.uplink.set_faults(Faults { answer: Some(answer.to_owned()), ..Faults::default() }).await;
    until("the answer", 30, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    bench.uplink.set_faults(Faults::default()).await;
    let other = bench.daemon.send(Ask::chat("hello").header("prefer", "respond-async, wait=20")).await.id();
    for arguments in [&["queue", "export"][..], &["queue", "show", &strange], &["--json", "queue", "show", &strange]] {
        let (code, text) = bench.daemon.tool(arguments).await;
        assert!(code == 0 && text.contains("half \\ud83d"), "{arguments:?}: {text}");
        let lines = if arguments.len() == 2 { 2 } else { 1 };
        assert!(text.lines().count() == lines && text.contains(&other) == (lines == 2), "{arguments:?}: {text}");
    }
}
