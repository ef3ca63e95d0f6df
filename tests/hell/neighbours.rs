//! Eight devices on eight links, one of which sends garbage at full speed: how much longer the others wait.
//!
//! A measure to run by hand, no promise of a number: `cargo test --release --test hell -- --ignored --nocapture`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast::clock;
use holdfast_wire::message::{Hello, Ping};
use holdfast_wire::{Deframer, Header, Message, encode};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;

use super::chance::Chance;
use super::support::{Bench, Settings, until};

const DEVICES: usize = 8;
const PINGS: u32 = 2_000;

fn terminal(name: &std::path::Path) -> File {
    let master: OwnedFd = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let open = rustix::fs::open(slave.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut settings = rustix::termios::tcgetattr(&open).unwrap();
    settings.make_raw();
    rustix::termios::tcsetattr(&open, OptionalActions::Now, &settings).unwrap();
    std::os::unix::fs::symlink(slave.to_str().unwrap(), name).unwrap();
    // Kept open for the life of the test: reading never finds a terminal without another side.
    std::mem::forget(open);
    File::from(master)
}

fn say(port: &mut File, message: &Message<'_>) {
    let mut out = [0; 200];
    let header = Header { from_gateway: false, repeat: false, addr: 0, kind: 0, session: 1, tag: 1 };
    let length = encode(header, message, &mut out).unwrap();
    port.write_all(&out[..length]).unwrap();
}

/// Waits for the next frame of this type.
fn hear(port: &mut File, kind: u8) {
    let (mut buffer, mut byte) = ([0; 2_000], [0]);
    let mut deframer = Deframer::new(&mut buffer);
    loop {
        port.read_exact(&mut byte).unwrap();
        if let Some(Ok(frame)) = deframer.push(byte[0])
            && frame.header.kind == kind
        {
            return;
        }
    }
}

/// Round trips of one device in µs, sorted.
fn round_trips(port: &mut File) -> Vec<u64> {
    let mut took = Vec::new();
    for nonce in 0..PINGS {
        let began = clock::now();
        say(port, &Message::Ping(Ping { nonce }));
        hear(port, 0x51);
        took.push(began.elapsed().as_micros() as u64);
    }
    took.sort_unstable();
    took
}

fn all(ports: Vec<File>) -> (Vec<u64>, Vec<File>) {
    let threads: Vec<_> =
        ports.into_iter().map(|mut port| std::thread::spawn(move || (round_trips(&mut port), port))).collect();
    let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let mut took: Vec<u64> = ended.iter().flat_map(|(took, _)| took.clone()).collect();
    took.sort_unstable();
    (took, ended.into_iter().map(|(_, port)| port).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measure, to be run by hand"]
async fn one_noisy_device_among_eight() {
    let link = |n| format!("[[link]]\nname = \"line{n}\"\ndevice = \"@DIR@/tty{n}\"\nprotocol = \"frames\"\n");
    let extra: String = (0..DEVICES).map(link).collect();
    let bench = Bench::with(Settings { extra, ..Settings::default() }).await;
    let folder = bench.daemon.folder();
    let mut ports: Vec<File> = (0..DEVICES).map(|n| terminal(&folder.join(format!("tty{n}")))).collect();
    until("all links to be open", 30, || async {
        let status = bench.daemon.status().await;
        let links = status["links"].as_array()?.clone();
        (links.len() == DEVICES && links.iter().all(|link| link["state"] == "open")).then_some(())
    })
    .await;
    let measured = tokio::task::spawn_blocking(move || {
        for (n, port) in ports.iter_mut().enumerate() {
            let uid = format!("device-{n}");
            let hello = Hello {
                proto_min: 1,
                proto_max: 1,
                uid: uid.as_bytes(),
                boot_id: 1,
                max_frame: 1024,
                ..Hello::default()
            };
            say(port, &Message::Hello(hello));
            hear(port, 0x02);
        }
        let mut noisy = ports.pop().unwrap();
        let (quiet, ports) = all(ports);
        let (stop, volume) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, written) = (Arc::clone(&stop), Arc::clone(&volume));
        let shouting = std::thread::spawn(move || {
            let mut chance = Chance::new(3);
            while !stopped.load(Ordering::Relaxed) {
                let garbage: Vec<u8> = (0..1_024).map(|_| chance.next() as u8).collect();
                noisy.write_all(&garbage).unwrap();
                written.fetch_add(1_024, Ordering::Relaxed);
            }
        });
        let began = clock::now();
        let (loud, _ports) = all(ports);
        let rate = volume.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64() / 1e6;
        stop.store(true, Ordering::Relaxed);
        shouting.join().unwrap();
        (quiet, loud, rate)
    });
    let (quiet, loud, rate) = measured.await.unwrap();
    let at = |took: &[u64], percent: usize| took[(took.len() - 1) * percent / 100];
    for percent in [50, 90, 99] {
        let (quiet, loud) = (at(&quiet, percent), at(&loud, percent));
        println!("p{percent}: quiet {quiet} µs, noisy {loud} µs, ratio {:.2}", loud as f64 / quiet as f64);
    }
    println!("the noisy one sent {rate:.1} MB/s");
}
