//! A bad cable between the device in this process and a pseudo-terminal that the daemon opens as its serial port.
//!
//! Owns the pseudo-terminal, its name in the daemon's folder, what happens to frames, how fast bytes travel, and how
//! many did.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;

use super::chance::Chance;

/// One way of the cable.
#[derive(Default)]
struct Way {
    on_wire: Vec<(u64, Vec<u8>)>,
    /// The wire is busy until then, in µs.
    busy_until_us: u64,
    pub bytes: u64,
}

pub struct Cable {
    name: PathBuf,
    master: Option<OwnedFd>,
    up: Way,
    down: Way,
    /// A frame that the daemon has not ended yet.
    half: Vec<u8>,
    /// Bytes that the terminal's buffer did not take yet.
    waiting: Vec<u8>,
    chance: Chance,
    /// Percent of the frames that meet something.
    pub bad: u64,
    /// Bytes per second; 0 for no limit.
    rate: u64,
}

impl Cable {
    /// Plugged in, under this name.
    pub fn new(name: &Path, seed: u64, bad: u64, rate: u64) -> Cable {
        let mut cable = Cable {
            name: name.to_owned(),
            master: None,
            up: Way::default(),
            down: Way::default(),
            half: Vec::new(),
            waiting: Vec::new(),
            chance: Chance::new(seed),
            bad,
            rate,
        };
        cable.plug();
        cable
    }

    /// A new terminal under the same name, as an adapter comes back.
    pub fn plug(&mut self) {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = rustix::fs::open(slave.as_c_str(), flags, Mode::empty()).unwrap();
        let mut settings = rustix::termios::tcgetattr(&terminal).unwrap();
        settings.make_raw();
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &settings).unwrap();
        rustix::io::ioctl_fionbio(&master, true).unwrap();
        let _ = std::fs::remove_file(&self.name);
        std::os::unix::fs::symlink(slave.to_str().unwrap(), &self.name).unwrap();
        self.master = Some(master);
    }

    /// Pulled: whatever was on it is gone.
    pub fn pull(&mut self) {
        self.master = None;
        let _ = std::fs::remove_file(&self.name);
        self.lose();
    }

    /// One of the sides was switched off.
    pub fn lose(&mut self) {
        self.up.on_wire.clear();
        self.down.on_wire.clear();
        self.half.clear();
        self.waiting.clear();
    }

    /// The device sends one frame.
    pub fn send(&mut self, frame: &[u8], now_ms: u64) {
        self.up.send(frame, now_ms, self.bad, self.rate, &mut self.chance);
    }

    /// Bytes that the device has put on the wire.
    pub fn sent(&self) -> u64 {
        self.up.bytes
    }

    /// Moves what is due; returns what arrives at the device.
    pub fn carry(&mut self, now_ms: u64) -> Vec<u8> {
        self.waiting.extend(self.up.arrived(now_ms));
        let Some(master) = &self.master else { return Vec::new() };
        if !self.waiting.is_empty() {
            match rustix::io::write(master, &self.waiting) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(Errno::AGAIN) => {}
                // Nobody has opened the port: a wire that leads nowhere.
                Err(_) => self.waiting.clear(),
            }
        }
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = rustix::io::read(master, &mut bytes) {
            for byte in &bytes[..length] {
                self.half.push(*byte);
                if *byte == 0 && self.half.len() > 1 {
                    let frame = std::mem::take(&mut self.half);
                    self.down.send(&frame, now_ms, self.bad, self.rate, &mut self.chance);
                }
            }
        }
        self.down.arrived(now_ms)
    }
}

impl Way {
    fn send(&mut self, frame: &[u8], now_ms: u64, bad: u64, rate: u64, chance: &mut Chance) {
        self.bytes += frame.len() as u64;
        self.busy_until_us = self.busy_until_us.max(now_ms * 1_000);
        self.busy_until_us += (frame.len() as u64 * 1_000_000).checked_div(rate).unwrap_or(0);
        let (mut arrive_ms, mut frame) = (self.busy_until_us / 1_000 + 1, frame.to_vec());
        if chance.percent(bad) {
            match chance.below(5) {
                0 => return,
                1 => self.on_wire.push((arrive_ms + chance.below(3_000), frame.clone())),
                2 => arrive_ms += chance.below(1_000),
                3 => {
                    let at = chance.below(frame.len() as u64) as usize;
                    frame[at] ^= 1 << chance.below(8);
                }
                _ => {
                    let rest = frame.split_off(chance.below(frame.len() as u64) as usize);
                    self.on_wire.push((arrive_ms + chance.below(200), rest));
                }
            }
        }
        self.on_wire.push((arrive_ms, frame));
    }

    fn arrived(&mut self, now_ms: u64) -> Vec<u8> {
        let (here, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.on_wire).into_iter().partition(|(at, _)| *at <= now_ms);
        self.on_wire = later;
        here.into_iter().flat_map(|(_, bytes)| bytes).collect()
    }
}
