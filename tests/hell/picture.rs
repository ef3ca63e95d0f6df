//! A large picture over a slow line that is pulled three times, with a restart of the gateway: whole at the uplink, and
//! only what was missing is sent again.
//!
//! `HOLDFAST_HELL_PICTURE_BYTES=5000000` is the long form.

use std::time::Duration;

use base64::Engine;
use holdfast::clock;

use super::cable::Cable;
use super::chance::Chance;
use super::firmware::{Firmware, jpeg};
use super::run::bench;
use super::support::rounds;

/// 921,600 baud, ten bits a byte.
const RATE: u64 = 92_160;
/// What may be on the line when it is cut: the gateway's credit, twice for pieces that crossed with the cut.
const LOST_PER_CUT: u64 = 2 * 8_192;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_picture_survives_a_pulled_cable() {
    let size = rounds("HOLDFAST_HELL_PICTURE_BYTES", 400_000);
    let picture = jpeg(size, &mut Chance::new(5));
    let mut bench = bench(Vec::new()).await;
    let mut cable = Cable::new(&bench.daemon.folder().join("tty"), 1, 0, RATE);
    let prompt = "Is the weld in this picture whole?".to_owned();
    let mut device = Firmware::new(b"camera-1", 11, None, false, vec![(prompt, picture.clone())]);
    let (started, mut cuts, mut plug_at) = (clock::now(), 0, None);
    while !device.is_done() {
        let now_ms = started.elapsed().as_millis() as u64;
        assert!(now_ms < 60_000 + size as u64, "the picture did not arrive: {} bytes were sent", cable.sent());
        if plug_at.is_none() && cuts < 4 && cable.sent() > size as u64 * (cuts + 1) / 5 {
            cuts += 1;
            if cuts == 3 {
                bench.daemon.kill().await;
                bench.daemon.restart_unready();
            } else {
                cable.pull();
                device.line_lost(now_ms);
                plug_at = Some(now_ms + 300);
            }
        }
        if plug_at.is_some_and(|at| now_ms >= at) {
            plug_at = None;
            cable.plug();
        }
        let bytes = cable.carry(now_ms);
        device.step(&bytes, now_ms, |frame| cable.send(frame, now_ms));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (sent, took) = (cable.sent(), started.elapsed());
    println!(
        "{size} bytes of picture, {sent} bytes on the wire ({:.2} %), {} cuts, {:.1} s",
        sent as f64 * 100.0 / size as f64,
        cuts,
        took.as_secs_f32()
    );
    assert_eq!(cuts, 4, "three pulls and one kill");
    let whole = base64::engine::general_purpose::STANDARD.encode(&picture);
    let body = bench.uplink.latest().to_string();
    assert!(body.contains(&whole), "the picture at the uplink is another");
    // Framing and headers take 3 %, then what was on the line at each cut, and the small messages.
    let most = size as u64 * 103 / 100 + 4 * LOST_PER_CUT + 4_096;
    assert!(sent <= most, "{sent} bytes were sent for a picture of {size}; {most} were to do");
}
