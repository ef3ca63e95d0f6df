//! Devices: what they were told is stored is stored, and each result is handed over once, over cables and restarts.

use std::path::PathBuf;

use holdfast::cli::simulate::{Faults, Mode};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::support::{Ask, Bench, Peer, Request, Settings, Told, until};

const NO_RESULT: u8 = 1;
const LOCAL_ONLY: u8 = 2;
const UPLINK_ONLY: u8 = 4;

fn links(extra: &str) -> Settings {
    let link = "[[link]]\nname = \"cell\"\nsocket = \"@DIR@/cell.sock\"\nprotocol = \"frames\"\n";
    Settings { extra: format!("{link}{extra}"), ..Settings::default() }
}

fn place(bench: &Bench) -> PathBuf {
    bench.daemon.socket().with_file_name("cell.sock")
}

#[tokio::test]
async fn a_device_is_answered_by_the_uplink_once() {
    let bench = Bench::with(links("")).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    device.submit(5, Request::new("is the weld good"));
    device.talk("a result", 20, |d| !d.results(5).is_empty()).await;
    assert_eq!(device.results(5), [(0, 1, "uplink answer to: is the weld good".to_owned())]);
    assert!(matches!(device.told[..], [Told::Online, Told::Stored { key: 5, outcome: 0, .. }, Told::Result { .. }]));
    let status = bench.daemon.status().await;
    let link = &status["links"][0];
    assert_eq!((link["name"].as_str(), link["state"].as_str()), (Some("cell"), Some("open")), "{link}");
    assert_eq!(link["devices"][0]["uid"], "02005e1001");
    assert_eq!(link["counters"]["stored"], 1);
    let metrics = bench.daemon.get("/metrics").await.text();
    assert!(metrics.contains("holdfast_link_frames_total{link=\"cell\",direction=\"in\"}"), "{metrics}");
    let metrics = bench.daemon.send(Ask::get("/metrics").header("accept", "application/openmetrics-text")).await.text();
    assert!(metrics.ends_with("# EOF\n"));
    assert_eq!(bench.answered("is the weld good"), 1);
}

#[tokio::test]
async fn offline_the_local_answer_is_the_one_result_and_the_uplink_completes_the_record() {
    let bench = Bench::offline(links("")).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    device.submit(5, Request::new("both"));
    device.talk("a local result", 20, |d| !d.results(5).is_empty()).await;
    assert_eq!(device.results(5), [(0, 2, "local answer to: both".to_owned())]);
    device.submit(6, Request { flags: LOCAL_ONLY, ..Request::new("only here") });
    device.submit(7, Request { flags: UPLINK_ONLY, ..Request::new("only there") });
    device.talk("the other local result", 20, |d| !d.results(6).is_empty() && d.is_stored(7)).await;
    bench.recover().await;
    device.talk("the uplink's result", 20, |d| !d.results(7).is_empty()).await;
    assert_eq!(device.results(7), [(0, 1, "uplink answer to: only there".to_owned())]);
    assert_eq!((device.results(5).len(), device.results(6).len()), (1, 1));
    assert_eq!((bench.answered("both"), bench.answered("only there"), bench.answered("only here")), (1, 1, 0));
}

#[tokio::test]
async fn a_result_is_offered_until_it_is_taken_also_after_a_restart() {
    let mut bench = Bench::offline(links("")).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    device.submit(5, Request { flags: UPLINK_ONLY, ..Request::new("later") });
    device.talk("the durable acknowledgement", 20, |d| d.is_stored(5)).await;
    device.unplug();
    bench.recover().await;
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    device.talk("the result", 20, |d| !d.results(5).is_empty()).await;
    assert_eq!(device.results(5), [(0, 1, "uplink answer to: later".to_owned())]);
    until("the result to be taken", 10, || async {
        (bench.daemon.status().await["links"][0]["counters"]["results"] == 1).then_some(())
    })
    .await;
    // Whoever asks again is told that it is over, and gets no second one by itself.
    device.reboot(8, &[5]);
    device
        .talk("the word that it is over", 20, |d| {
            d.told.iter().any(|told| matches!(told, Told::Stored { key: 5, outcome: 3, .. }))
        })
        .await;
    assert_eq!(bench.answered("later"), 1);
}

/// What a worn flash does to one row, while nobody has the database open.
pub fn damage(bench: &Bench, text: &str) {
    let database = rusqlite::Connection::open(bench.daemon.data().join("spool.db")).unwrap();
    assert_eq!(database.execute(text, []).unwrap(), 1, "{text}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_told_so_and_holds_up_no_other() {
    let mut bench = Bench::offline(links("")).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    for key in [5, 6] {
        device.submit(key, Request { flags: UPLINK_ONLY, ..Request::new(&format!("kept {key}")) });
    }
    device.talk("both acknowledgements", 20, |d| d.is_stored(5) && d.is_stored(6)).await;
    device.unplug();
    bench.recover().await;
    bench.daemon.kill().await;
    damage(&bench, "UPDATE answer SET bytes = x'00' WHERE seq = (SELECT min(seq) FROM answer)");
    bench.daemon.restart().await;
    device.talk("both results", 20, |d| !d.results(5).is_empty() && !d.results(6).is_empty()).await;
    assert_eq!(device.results(5), [(1, 0, "the answer cannot be read".to_owned())]);
    assert_eq!(device.results(6), [(0, 1, "uplink answer to: kept 6".to_owned())]);
}

#[tokio::test]
async fn a_body_that_cannot_be_read_ends_its_request_and_holds_up_no_other() {
    let mut bench = Bench::offline(links("")).await;
    bench.ollama.set_faults(Faults::failing(Mode::Refuse)).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    for key in [5, 6] {
        device.submit(key, Request { flags: LOCAL_ONLY, ..Request::new(&format!("here {key}")) });
    }
    device.talk("both acknowledgements", 20, |d| d.is_stored(5) && d.is_stored(6)).await;
    bench.daemon.kill().await;
    damage(&bench, "UPDATE body SET bytes = x'00' WHERE seq = (SELECT min(seq) FROM body)");
    bench.ollama.set_faults(Faults::default()).await;
    device.unplug();
    bench.daemon.restart().await;
    device.talk("both results", 20, |d| !d.results(5).is_empty() && !d.results(6).is_empty()).await;
    assert_eq!(device.results(5), [(1, 0, "unreadable".to_owned())]);
    assert_eq!(device.results(6), [(0, 2, "local answer to: here 6".to_owned())]);
}

#[tokio::test]
async fn a_device_is_told_that_its_request_is_on_its_way() {
    let bench = Bench::with(links("")).await;
    let slow = Faults { delay_ms: 1_500, ..Faults::default() };
    bench.uplink.set_faults(slow).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    device.submit(5, Request { flags: UPLINK_ONLY, ..Request::new("slowly") });
    device.talk("the result", 20, |d| !d.results(5).is_empty()).await;
    assert_eq!(device.states, [(5, 3)], "once, and without having asked");
}

#[tokio::test]
async fn what_nobody_would_ever_do_is_refused() {
    let bench = Bench::with(links("offline = \"local\"\n")).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    device.submit(5, Request { flags: NO_RESULT, ..Request::new("for nobody") });
    device.talk("the refusal", 20, |d| d.told.iter().any(|told| matches!(told, Told::Refused { key: 5, .. }))).await;
    assert!(device.told.contains(&Told::Refused { key: 5, code: 10 }), "{:?}", device.told);
    assert_eq!(bench.daemon.backlog().await, 0);
}

#[tokio::test]
async fn a_key_with_other_content_is_refused() {
    let bench = Bench::with(links("")).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    device.submit(5, Request::new("first"));
    device.talk("the first result", 20, |d| !d.results(5).is_empty()).await;
    until("the result to be taken", 10, || async {
        (bench.daemon.status().await["links"][0]["counters"]["results"] == 1).then_some(())
    })
    .await;
    let mut other = Peer::new(&place(&bench), 8, 0);
    other.submit(5, Request::new("second"));
    other.talk("the refusal", 20, |d| d.told.contains(&Told::Refused { key: 5, code: 11 })).await;
    assert_eq!(bench.answered("second"), 0);
}

#[tokio::test]
async fn a_half_upload_goes_on_after_the_cable_and_after_a_restart() {
    const BYTES: usize = 300_000;
    let mut bench = Bench::with(links("")).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    device.submit(9, Request::with_picture("look at this", BYTES));
    device.talk("a third of the picture", 20, |d| d.sent() > BYTES / 3).await;
    device.unplug();
    device.talk("two thirds of it", 20, |d| d.sent() > BYTES * 2 / 3).await;
    bench.daemon.kill().await;
    device.unplug();
    bench.daemon.restart().await;
    device.talk("the result", 30, |d| !d.results(9).is_empty()).await;
    assert_eq!(device.results(9)[0].2, "uplink answer to: look at this (1 images)");
    let again = device.sent() - BYTES;
    assert!(again < 4 * 4 * 960, "{again} bytes were sent a second time");
    let left = std::fs::read_dir(bench.daemon.data().join("uploads")).unwrap().count();
    assert_eq!(left, 0, "what became a request is no upload any more");
}

#[tokio::test]
async fn garbage_at_full_speed_on_one_line_does_not_disturb_another() {
    let other = "[[link]]\nname = \"noise\"\nsocket = \"@DIR@/noise.sock\"\n";
    let bench = Bench::with(links(other)).await;
    let noise = bench.daemon.socket().with_file_name("noise.sock");
    let mut line = UnixStream::connect(&noise).await.unwrap();
    let shouting = tokio::spawn(async move {
        let junk: Vec<u8> = (0..65_536u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        while line.write_all(&junk).await.is_ok() {}
    });
    let mut device = Peer::new(&place(&bench), 7, 0);
    for key in 1..=10 {
        device.submit(key, Request::new(&format!("quiet {key}")));
    }
    device.talk("ten results beside the noise", 30, |d| (1..=10).all(|key| !d.results(key).is_empty())).await;
    let status = bench.daemon.status().await;
    assert!(status["links"][1]["counters"]["damaged"].as_u64().unwrap() > 10, "{status}");
    shouting.abort();
}

#[tokio::test]
async fn what_waits_can_be_cancelled_and_is_told_so() {
    let bench = Bench::offline(links("")).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    device.submit(5, Request { flags: UPLINK_ONLY, ..Request::new("never mind") });
    device.talk("the acknowledgement", 20, |d| d.is_stored(5)).await;
    device.cancel(5);
    device.talk("the end", 20, |d| !d.results(5).is_empty()).await;
    assert_eq!(device.results(5), [(3, 0, "cancelled".to_owned())]);
    assert!(device.told.contains(&Told::Cancelled { key: 5, outcome: 0 }));
    bench.uplink.set_faults(Faults::default()).await;
    until("the backlog to be empty", 10, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    assert_eq!(bench.answered("never mind"), 0);
}

#[tokio::test]
async fn a_device_that_comes_back_after_its_result_was_kept_is_told_so() {
    let bench = Bench::with(links("[queue]\nkeep_results = \"1s\"\n")).await;
    bench.uplink.set_faults(Faults { delay_ms: 300, ..Faults::default() }).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    device.submit(5, Request::new("too late"));
    device.talk("the acknowledgement", 20, |d| d.is_stored(5)).await;
    device.unplug();
    let kept = async || bench.daemon.get("/holdfast/v1/requests").await.json();
    until("the answer", 20, || async { (bench.answered("too late") == 1).then_some(()) }).await;
    until("the result to be given up", 20, || async { kept().await["data"].as_array()?.is_empty().then_some(()) })
        .await;
    device.talk("the end", 20, |d| d.told.contains(&Told::Gone { key: 5 })).await;
    assert!(device.told.contains(&Told::Stored { key: 5, outcome: 3, request: 0 }), "{:?}", device.told);
    assert_eq!((device.results(5), bench.answered("too late")), (Vec::new(), 1));
}

#[tokio::test]
async fn stored_and_unanswered_survives_a_kill_at_any_time() {
    let mut bench = Bench::offline(links("")).await;
    bench.uplink.set_faults(Faults::failing(Mode::Refuse)).await;
    let mut device = Peer::new(&place(&bench), 7, 0);
    for key in 1..=20 {
        device.submit(key, Request { flags: UPLINK_ONLY, ..Request::new(&format!("kept {key}")) });
    }
    for kept in [3, 9, 15] {
        device.talk("acknowledgements", 30, |d| (1..=20).filter(|key| d.is_stored(*key)).count() >= kept).await;
        bench.daemon.kill().await;
        device.unplug();
        bench.daemon.restart().await;
    }
    device.talk("all acknowledgements", 30, |d| (1..=20).all(|key| d.is_stored(key))).await;
    bench.recover().await;
    device.talk("all results", 60, |d| (1..=20).all(|key| d.results(key).len() == 1)).await;
    for key in 1..=20 {
        assert_eq!(bench.answered(&format!("kept {key}")), 1);
    }
}
