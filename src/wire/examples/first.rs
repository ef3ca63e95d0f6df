//! A first device: one question over a serial port, its answer on the screen. It keeps its request in RAM.
//!
//! `stty -F /dev/ttyUSB0 115200 raw -echo min 0 time 1 && cargo run -p holdfast-wire --example first -- /dev/ttyUSB0 "…"`
#![allow(clippy::disallowed_methods, reason = "a program of its own reads its own clock")]

use std::io::{Read, Write};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use holdfast_wire::device::{Device, Event, Identity, Keeper};
use holdfast_wire::frame::wire_bytes;
use holdfast_wire::message::{List, Op, Submit};

/// The one request; firmware that must survive a power cut keeps it in flash.
struct Question(String);

impl Keeper for Question {
    fn request(&self, key: u64) -> Option<Submit<'_>> {
        let op = Op::Chat { model: "", system: "", user: &self.0, max_tokens: 0, blobs: List::new() };
        Some(Submit { key, prio: 2, op, ..Submit::default() })
    }

    fn picture(&self, _key: u64, _blob: u32, _off: u32, _into: &mut [u8]) -> usize {
        0
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(port), Some(text)) = (arguments.next(), arguments.next()) else { return Err("PORT QUESTION".into()) };
    let mut port = std::fs::File::options().read(true).write(true).open(port)?;
    let (question, began) = (Question(text), Instant::now());
    // Another number after each start; here also the upper half of the key, so that no key is ever used twice.
    let boot_id = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let boot_id = u32::try_from(boot_id & u64::from(u32::MAX))?;
    #[rustfmt::skip]
    let me = Identity { uid: b"first-rs", boot_id, model: "example", fw: "1", caps: 0, token: None, addr: 0,
                        max_frame: 1024, rx_credit: 2048, frame_ms: 90, polled: false };
    let (mut incoming, mut piece, mut out) = ([0; wire_bytes(1024)], [0; 960], [0; wire_bytes(1024)]);
    let mut device = Device::<4>::new(me, &mut incoming, &mut piece, 0);
    device.submit(u64::from(boot_id) << 32 | 1, true, 0).map_err(|_| "no place")?;
    let mut done = false;
    loop {
        let now_ms = u64::try_from(began.elapsed().as_millis())?;
        loop {
            let length = device.poll(&question, now_ms, &mut out);
            if length == 0 {
                break;
            }
            port.write_all(out.get(..length).unwrap_or_default())?;
        }
        if done {
            println!();
            return Ok(());
        }
        let mut bytes = [0; 256];
        let got = port.read(&mut bytes)?;
        for byte in bytes.iter().take(got) {
            match device.receive(*byte, now_ms) {
                Some(Event::Stored(ack)) => eprintln!("on the gateway's disk as request {}", ack.req),
                Some(Event::Refused(no)) => return Err(format!("refused, code {}: {}", no.code, no.detail).into()),
                Some(Event::Gone { .. }) => return Err("finished, the result is not kept any more".into()),
                Some(Event::Answer { part, last }) => {
                    print!("{}", String::from_utf8_lossy(part.text));
                    done = last;
                }
                _ => {}
            }
        }
    }
}
