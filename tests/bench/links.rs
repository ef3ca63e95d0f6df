//! How much longer seven devices wait for the gateway's answer while an eighth, on a link of its own, sends garbage.
//!
//! Owns the terminals and the noise. Quiet and noisy rounds follow one another, and a ratio is taken within each pair.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use holdfast::clock;
use holdfast_wire::message::{Hello, Ping};
use holdfast_wire::{Deframer, Header, Message, encode};
use http_body_util::Full;
use hyper::Request;
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;

use crate::Plan;
use crate::daemon::Place;
use crate::load::{Caller, Target};
use crate::stats::{self, Cell};

const DEVICES: usize = 8;
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// What the noisy device writes at once; the terminal takes it as fast as the gateway reads.
const NOISE_BYTES: usize = 1_024;

pub(crate) async fn measure(plan: &Plan) {
    let place = Place::new("uplink = []\n");
    let folder = place.sockets.path().to_owned();
    let link = |n| format!("[[link]]\nname = \"line{n}\"\ndevice = \"{}/tty{n}\"\n", folder.display());
    place.configure(&(0..DEVICES).map(link).collect::<String>());
    let mut ports: Vec<Port> = (0..DEVICES).map(|n| Port::new(&folder.join(format!("tty{n}")))).collect();
    let (daemon, _) = place.start().await;
    until_open(&Target::Unix(place.socket())).await;
    let (rounds, cell) = (plan.rounds, plan.cell);
    let measured = tokio::task::spawn_blocking(move || {
        ports.iter_mut().enumerate().for_each(|(n, port)| port.hello(n));
        let noise = Noise::new(ports.pop().unwrap().master);
        let (mut quiet, mut noisy, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            quiet.push(round(&mut ports, cell));
            let before = noise.start();
            let began = clock::now();
            noisy.push(round(&mut ports, cell));
            rates.push(noise.stop(before) as f64 / began.elapsed().as_secs_f64() / 1e6);
        }
        (quiet, noisy, rates)
    });
    let (quiet, noisy, rates) = measured.await.unwrap();
    println!("\n### Round trips of seven devices, an eighth beside them\n\n{}", stats::HEAD);
    println!("{}", stats::row(DEVICES - 1, "the eighth is quiet", &quiet, None));
    println!("{}", stats::row(DEVICES - 1, "the eighth sends garbage", &noisy, Some(&quiet)));
    println!("\nGarbage: {:.1} MB/s.", stats::median(&rates));
    daemon.stop().await;
}

/// All of them ask at the same time, each as fast as it is answered.
fn round(ports: &mut [Port], cell: Duration) -> Cell {
    let began = clock::now();
    let timings = thread::scope(|scope| {
        let asking: Vec<_> = ports.iter_mut().map(|port| scope.spawn(move || port.ask_for(cell))).collect();
        asking.into_iter().flat_map(|one| one.join().unwrap()).collect()
    });
    Cell::of(timings, began.elapsed())
}

async fn until_open(target: &Target) {
    let started = clock::now();
    loop {
        let mut caller = Caller::connect(target).await.unwrap();
        let request = Request::get("/holdfast/v1/status").header("host", "hf").body(Full::new(Bytes::new())).unwrap();
        let (_, body) = caller.call(request).await.unwrap();
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let links = status["links"].as_array().unwrap();
        if links.len() == DEVICES && links.iter().all(|link| link["state"] == "open") {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "the links do not open: {status}");
        tokio::time::sleep(LOOK).await;
    }
}

/// A device's end of a line.
struct Port {
    master: File,
    /// Kept open, so that reading never finds a terminal without another side.
    _other: std::os::fd::OwnedFd,
}

impl Port {
    fn new(name: &Path) -> Port {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let other = rustix::fs::open(slave.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let mut settings = rustix::termios::tcgetattr(&other).unwrap();
        settings.make_raw();
        rustix::termios::tcsetattr(&other, OptionalActions::Now, &settings).unwrap();
        std::os::unix::fs::symlink(slave.to_str().unwrap(), name).unwrap();
        Port { master: File::from(master), _other: other }
    }

    fn hello(&mut self, n: usize) {
        let uid = format!("device-{n}");
        let hello =
            Hello { proto_min: 1, proto_max: 1, uid: uid.as_bytes(), boot_id: 1, max_frame: 1024, ..Hello::default() };
        self.say(&Message::Hello(hello));
        self.hear(0x02);
    }

    fn ask_for(&mut self, cell: Duration) -> Vec<Duration> {
        let (started, mut took) = (clock::now(), Vec::new());
        while started.elapsed() < cell {
            let began = clock::now();
            self.say(&Message::Ping(Ping { nonce: took.len() as u32 }));
            self.hear(0x51);
            took.push(began.elapsed());
        }
        took
    }

    fn say(&mut self, message: &Message<'_>) {
        let mut out = [0; 200];
        let header = Header { from_gateway: false, repeat: false, addr: 0, kind: 0, session: 1, tag: 1 };
        let length = encode(header, message, &mut out).unwrap();
        self.master.write_all(&out[..length]).unwrap();
    }

    /// Waits for the next frame of this type.
    fn hear(&mut self, kind: u8) {
        let (mut buffer, mut byte) = ([0; 2_000], [0]);
        let mut deframer = Deframer::new(&mut buffer);
        loop {
            self.master.read_exact(&mut byte).unwrap();
            if let Some(Ok(frame)) = deframer.push(byte[0])
                && frame.header.kind == kind
            {
                return;
            }
        }
    }
}

/// The eighth device.
struct Noise {
    on: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    thread: thread::Thread,
}

impl Noise {
    fn new(mut port: File) -> Noise {
        let (on, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_on, written) = (Arc::clone(&on), Arc::clone(&bytes));
        // Ends with the program.
        let thread = thread::spawn(move || {
            let garbage: Vec<u8> = (0..NOISE_BYTES).map(|n| (n * 167 + n / 7) as u8).collect();
            loop {
                if !is_on.load(Ordering::Relaxed) {
                    thread::park();
                } else if port.write_all(&garbage).is_ok() {
                    written.fetch_add(NOISE_BYTES as u64, Ordering::Relaxed);
                }
            }
        });
        Noise { on, bytes, thread: thread.thread().clone() }
    }

    fn start(&self) -> u64 {
        self.on.store(true, Ordering::Relaxed);
        self.thread.unpark();
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes since it began.
    fn stop(&self, before: u64) -> u64 {
        self.on.store(false, Ordering::Relaxed);
        self.bytes.load(Ordering::Relaxed) - before
    }
}
