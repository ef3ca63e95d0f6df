//! The dialect of everything with a compiler: frames with a checksum, point to point or on an RS-485 bus.
//!
//! Owns the translation between frames and the core; the rules of requests are the core's. The line's task reads,
//! writes and keeps time; `server` and `session` decide; `job` asks the core.

mod bus;
mod job;
mod push;
mod server;
mod session;
#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use holdfast_wire::Deframer;
use holdfast_wire::frame::{CRC_BYTES, FRAME_DEFAULT, FRAME_MAX, HEADER_BYTES, wire_bytes};
use holdfast_wire::message::{Idle, Message};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};

use super::Link;
use super::port::{Line, time_on_wire};
use super::state::Count;
use crate::clock;
use bus::{Bus, Ended};
use job::Done;
use server::{Now, Server};
use session::Facts;

/// Bytes read at once.
const READ_BYTES: usize = 4096;
/// Jobs of one line that are done and not yet looked at: one for each device.
const DONE_MAX: usize = 256;
/// How often uplink and time are looked at for those who ask.
const FACTS_EVERY: Duration = Duration::from_secs(1);
/// After a commit, results are looked for once in this time: commits of others must not make one read each.
const LOOK_AFTER_MS: u64 = 100;
/// Bytes without a single good frame after which a line is read slowly: it must not take the board's time.
const JUNK_MAX: usize = 64 * 1024;
/// How slowly.
const JUNK_WAIT: Duration = Duration::from_millis(20);
/// systemd's time daemon makes this file once the clock is set right.
const TIME_IS_SYNCED: &str = "/run/systemd/timesync/synchronized";

/// Speaks frames on one line until it is gone.
pub(super) async fn serve(link: Link, port: Line) {
    let mut talk = Talk::new(&link, port);
    let mut stop = link.stop.clone();
    tokio::select! {
        () = talk.run() => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// One line's conversation.
struct Talk<'l> {
    link: &'l Link,
    port: Line,
    server: Server,
    bus: Option<Bus>,
    to_done: mpsc::Sender<((u8, u64), Done)>,
    done: mpsc::Receiver<((u8, u64), Done)>,
    /// Bytes since the last good frame.
    junk: usize,
    /// When results are to be looked for: something stored has changed.
    look_ms: Option<u64>,
}

impl<'l> Talk<'l> {
    fn new(link: &'l Link, port: Line) -> Talk<'l> {
        let facts = Facts { gw_boot: link.core.boot(), name: link.gateway_name.to_string(), uplink: 0, time_ms: 0 };
        let addresses = link.options.addresses.clone();
        // Behind a serial server the bus is as fast as the configuration says, too.
        let frame_ms = time_on_wire(wire_bytes(FRAME_DEFAULT), link.options.serial.baud).as_millis() as u64;
        let bus = (!addresses.is_empty()).then(|| Bus::new(addresses.clone(), frame_ms));
        let (to_done, done) = mpsc::channel(DONE_MAX);
        let server = Server::new(facts, link.options.token.clone(), addresses);
        Talk { link, port, server, bus, to_done, done, junk: 0, look_ms: None }
    }

    fn now(&self) -> Now {
        Now { ms: self.link.core.gateway().now_ms(), unix_us: clock::unix_ms() * 1000 }
    }

    async fn run(&mut self) {
        let (mut into, mut frame) = (vec![0; READ_BYTES], vec![0; wire_bytes(FRAME_MAX)]);
        let mut deframer = Deframer::new(&mut frame);
        let mut changes = self.link.core.changes();
        let mut facts = interval(FACTS_EVERY);
        facts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.look_at_facts().await;
        // Whatever stood half on the line before ends here.
        if !self.port.write(&[0, 0]).await {
            return;
        }
        loop {
            self.begin_jobs();
            if !self.send().await {
                return;
            }
            self.account();
            let wake = self.wake();
            tokio::select! {
                bytes = self.port.read(&mut into) => {
                    let Some(bytes) = bytes else { return };
                    self.came(&mut deframer, &into[..bytes]);
                    if self.junk > JUNK_MAX {
                        sleep(JUNK_WAIT).await;
                    }
                }
                Some((whose, done)) = self.done.recv() => {
                    let now = self.now();
                    self.server.done(whose, done, now);
                }
                Ok(()) = changes.changed() => {
                    self.look_ms.get_or_insert(self.link.core.gateway().now_ms() + LOOK_AFTER_MS);
                }
                _ = facts.tick() => self.look_at_facts().await,
                () = sleep_until(wake) => self.tick(),
            }
        }
    }

    fn wake(&self) -> tokio::time::Instant {
        let now_ms = self.now().ms;
        // With nothing to do the other branches wake it: a minute is as good as never.
        let due = self.server.deadline_ms().unwrap_or(now_ms + 60_000);
        let due = due.min(self.look_ms.unwrap_or(due));
        let due = self.bus.as_ref().map_or(due, |bus| due.min(bus.deadline_ms()));
        tokio::time::Instant::from_std(clock::now()) + Duration::from_millis(due.saturating_sub(now_ms))
    }

    fn tick(&mut self) {
        let now = self.now();
        if self.look_ms.is_some_and(|at| now.ms >= at) {
            self.look_ms = None;
            self.server.look_for_results();
        }
        self.server.tick(now);
        match self.bus.as_mut().and_then(|bus| bus.tick(now.ms)) {
            Some(Ended::Silent) => self.link.account.add(Count::Silent, 1),
            Some(Ended::Babbled) => self.link.account.add(Count::Babbled, 1),
            None => {}
        }
    }

    fn came(&mut self, deframer: &mut Deframer<'_>, bytes: &[u8]) {
        let now = self.now();
        for byte in bytes {
            self.junk = self.junk.saturating_add(1);
            match deframer.push(*byte) {
                None => {}
                Some(Err(_)) => self.link.account.add(Count::Damaged, 1),
                Some(Ok(frame)) => {
                    self.junk = 0;
                    let (header, is_idle) = (frame.header, frame.header.kind == Message::Idle(Idle {}).kind());
                    if !self.server.frame(header, frame.payload, now) {
                        continue;
                    }
                    let length = wire_bytes(HEADER_BYTES + frame.payload.len() + CRC_BYTES);
                    let answered = self.bus.as_mut().and_then(|bus| bus.heard(header.addr, is_idle, length, now.ms));
                    if let Some(ms) = answered {
                        self.link.account.round_trip(ms);
                    }
                }
            }
        }
    }

    /// Each job is a task: a slow disk keeps neither the line nor another device waiting.
    fn begin_jobs(&mut self) {
        while let Some((whose, uid, job)) = self.server.next_job() {
            let (link, to_done) = (self.link.clone(), self.to_done.clone());
            tokio::spawn(async move {
                // The panic itself is in the journal; a session that waits for its job for ever would be worse.
                let done = AssertUnwindSafe(job::run(&link, &uid, job)).catch_unwind().await;
                let done = done.unwrap_or_else(|_| {
                    link.account.add(Count::Restarts, 1);
                    Done::Broke
                });
                // A line that is gone wants to know nothing more.
                let _ = to_done.send((whose, done)).await;
            });
        }
    }

    /// Sends what there is; on a bus, in the turn of whom it is for. False when the line is gone.
    async fn send(&mut self) -> bool {
        if self.bus.is_none() {
            while let Some(bytes) = self.server.next_out() {
                if !self.port.write(&bytes).await {
                    return false;
                }
            }
            return true;
        }
        let now_ms = self.now().ms;
        let Some(addr) = self.bus.as_mut().and_then(|bus| bus.next(now_ms)) else { return true };
        let mut bytes = self.server.out_for(addr);
        bytes.extend(self.server.poll(addr, bus::CREDIT));
        if !self.port.write(&bytes).await {
            return false;
        }
        // Written is not sent: the line is ours until the last byte has left.
        let out_ms = now_ms + time_on_wire(bytes.len(), self.link.options.serial.baud).as_millis() as u64;
        if let Some(bus) = &mut self.bus {
            bus.asked(addr, out_ms);
        }
        true
    }

    async fn look_at_facts(&mut self) {
        let uplink = self.link.core.uplink().await;
        let is_synced = Path::new(TIME_IS_SYNCED).exists();
        self.server.set_facts(uplink, clock::unix_ms(), u8::from(is_synced));
    }

    fn account(&mut self) {
        for count in self.server.take_counts() {
            self.link.account.add(count, 1);
        }
        for (uid, said) in self.server.take_heard() {
            self.link.account.heard(&uid, clock::unix_ms(), |seen| {
                if let Some((model, fw)) = said {
                    (seen.model, seen.fw) = (model, fw);
                }
            });
        }
    }
}
