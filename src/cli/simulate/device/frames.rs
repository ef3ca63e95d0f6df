//! The simulated device that speaks frames: the state machine that firmware uses, on a line of this machine.
//!
//! Owns its time, its keys and what it prints; opens its line again when it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use holdfast_wire::device::{Device, Event, Identity};
use holdfast_wire::frame::wire_bytes;

use super::bad_line::BadLine;
use super::line::Line;
use super::{DeviceOptions, Ended, LineAt, told};
use crate::clock;

/// The usual frame of 1,024 bytes.
const FRAME: usize = 1_024;
const CHUNK: usize = 960;
/// As many requests at once as small firmware has.
const OPEN: usize = 4;
/// The longest wait in one go, for requests that become due.
const TURN_MS: u64 = 50;
/// A line that is gone is opened again after this.
const AGAIN: Duration = Duration::from_millis(500);

struct Run<'o> {
    options: &'o DeviceOptions,
    started: Instant,
    boot_id: u32,
    begun: u32,
    text: BTreeMap<u64, Vec<u8>>,
    open: BTreeSet<u64>,
    ended: Vec<Ended>,
    bad: BadLine,
}

/// Asks everything and waits for every end.
pub(super) async fn run(options: &DeviceOptions) -> anyhow::Result<Vec<Ended>> {
    let boot_id = clock::random_u64() as u32;
    let (mut incoming, mut piece) = ([0; wire_bytes(FRAME)], [0; CHUNK]);
    let mut device = Device::<OPEN>::new(identity(options, boot_id), &mut incoming, &mut piece, 0);
    let (text, open, ended) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    let mut run = Run { options, started: clock::now(), boot_id, begun: 0, text, open, ended, bad: options.bad };
    while !run.is_done() {
        let gone = match Line::open(&options.at).await {
            Ok(line) => match run.talk(&line, &mut device).await {
                Ok(()) => break,
                Err(error) => error,
            },
            Err(error) => error,
        };
        if options.print {
            told::line(format_args!("no line: {gone}"));
        }
        tokio::time::sleep(AGAIN).await;
        device.line_lost(run.now_ms());
    }
    Ok(run.ended)
}

fn identity(options: &DeviceOptions, boot_id: u32) -> Identity<'_> {
    // 8N1: ten bits for a byte. A socket takes next to no time.
    let frame_ms = match options.at {
        LineAt::Port { baud, .. } => (FRAME as u32 * 10_000) / baud.max(1),
        LineAt::Socket(_) | LineAt::Address(_) => 1,
    };
    Identity {
        uid: &options.uid,
        boot_id,
        model: "simulated device",
        fw: env!("CARGO_PKG_VERSION"),
        caps: 0,
        token: None,
        addr: 0,
        max_frame: FRAME as u16,
        rx_credit: 4_096,
        frame_ms,
        polled: false,
    }
}

impl Run<'_> {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn is_done(&self) -> bool {
        self.ended.len() >= self.options.count as usize
    }

    async fn talk(&mut self, line: &Line, device: &mut Device<'_, OPEN>) -> io::Result<()> {
        line.write_all(&[0, 0]).await?;
        let (mut out, mut bytes, mut frame) = ([0; wire_bytes(FRAME)], [0; 1_024], Vec::new());
        loop {
            self.begin(device);
            loop {
                let length = device.poll(&self.options.ask, self.now_ms(), &mut out);
                let said = out.get(..length).unwrap_or_default();
                if said.is_empty() {
                    break;
                }
                if self.options.print {
                    told::frame(said, true);
                }
                line.write_all(&self.bad.carry(said)).await?;
            }
            if self.is_done() {
                return Ok(());
            }
            let wait_ms = device.deadline_ms().saturating_sub(self.now_ms()).clamp(1, TURN_MS);
            let reading = tokio::time::timeout(Duration::from_millis(wait_ms), line.read(&mut bytes));
            let Ok(read) = reading.await else { continue };
            for byte in bytes.get(..read?).unwrap_or_default() {
                frame.push(*byte);
                // A frame ends with a zero; without one it is no frame, however long.
                if *byte == 0 || frame.len() >= out.len() {
                    self.hear(device, &std::mem::take(&mut frame));
                }
            }
        }
    }

    /// Hands over what is due and finds a place.
    fn begin(&mut self, device: &mut Device<'_, OPEN>) {
        let now_ms = self.now_ms();
        while self.begun < self.options.count && u64::from(self.begun) * self.options.every_ms <= now_ms {
            let key = u64::from(self.boot_id) << 32 | u64::from(self.begun + 1);
            if device.submit(key, true, now_ms).is_err() {
                return;
            }
            self.open.insert(key);
            self.begun += 1;
        }
    }

    fn hear(&mut self, device: &mut Device<'_, OPEN>, frame: &[u8]) {
        let now_ms = self.now_ms();
        if self.options.print && frame.len() > 1 {
            told::frame(frame, false);
        }
        for byte in self.bad.carry(frame) {
            if let Some(event) = device.receive(byte, now_ms) {
                self.happened(event);
            }
        }
    }

    fn happened(&mut self, event: Event<'_>) {
        match event {
            Event::Answer { part, last } => {
                let text = self.text.entry(part.key).or_default();
                text.extend_from_slice(part.text);
                if last {
                    let text = String::from_utf8_lossy(&self.text.remove(&part.key).unwrap_or_default()).into_owned();
                    let (req, status, source) = (part.req, Some(part.status), part.source);
                    self.end(Ended { key: part.key, req, status, source, code: part.code, value: part.value, text });
                }
            }
            Event::Refused(no) if no.key != 0 => {
                let (code, text) = (i32::from(no.code), no.detail.to_owned());
                self.end(Ended { key: no.key, req: 0, status: None, source: 0, code, value: 0.0, text });
            }
            Event::Gone { key } => {
                let text = "finished, the result is not kept any more".to_owned();
                self.end(Ended { key, req: 0, status: None, source: 0, code: 0, value: 0.0, text });
            }
            _ => {}
        }
    }

    fn end(&mut self, ended: Ended) {
        self.open.remove(&ended.key);
        if self.options.print {
            let how = ended.status.map_or("no result".to_owned(), |status| format!("status {status}"));
            told::line(format_args!("   {:x} ended: {how}, code {}: {}", ended.key, ended.code, ended.text));
        }
        self.ended.push(ended);
    }
}
