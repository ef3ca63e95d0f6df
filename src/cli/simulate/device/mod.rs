//! `holdfast simulate device`: a device on a serial line, a UNIX socket or TCP, with faults to switch on.
//!
//! Owns its command line, what it asks and what it prints. It speaks as firmware does, through the same state machine;
//! it keeps its requests in memory only, so one that is stopped has forgotten them.

mod ask;
mod bad_line;
mod frames;
mod line;
mod lines;
mod modbus;
mod told;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, ValueEnum};

use super::text;
use crate::clock;
pub use ask::{Ask, Ended};
use bad_line::BadLine;
pub(in crate::cli) use line::Line;
pub use line::LineAt;

/// What a device speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// For anything with a compiler
    Frames,
    /// For a PLC that can only build text
    Lines,
    /// For a PLC that can only be a Modbus master
    Modbus,
}

/// How to run a simulated device.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// Its line.
    pub at: LineAt,
    /// What it speaks.
    pub protocol: Protocol,
    /// Its own name, 4 to 16 bytes.
    pub uid: Vec<u8>,
    /// What it asks, again and again.
    pub ask: Ask,
    /// How often.
    pub count: u32,
    /// From one request to the next.
    pub every_ms: u64,
    /// It gives up then.
    pub wait_ms: u64,
    /// What its line does to frames.
    pub bad: BadLine,
    /// Modbus: the gateway's id on the bus.
    pub slave: u8,
    /// Says on standard output what it sends and gets.
    pub print: bool,
}

impl DeviceOptions {
    /// One question on this line.
    pub fn new(at: LineAt, uid: &str, ask: Ask) -> DeviceOptions {
        DeviceOptions {
            at,
            protocol: Protocol::Frames,
            uid: uid.as_bytes().to_vec(),
            ask,
            count: 1,
            every_ms: 0,
            wait_ms: 60_000,
            bad: BadLine::default(),
            slave: 17,
            print: false,
        }
    }
}

/// Runs a simulated device until everything it asked has ended, or it gives up.
pub async fn run_device(options: &DeviceOptions) -> anyhow::Result<Vec<Ended>> {
    let work = async {
        match options.protocol {
            Protocol::Frames => frames::run(options).await,
            Protocol::Lines => lines::run(options).await,
            Protocol::Modbus => modbus::run(options).await,
        }
    };
    let limit = Duration::from_millis(options.wait_ms);
    tokio::time::timeout(limit, work).await.with_context(|| format!("not everything was answered within {limit:?}"))?
}

/// Arguments of `holdfast simulate device`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["task", "chat"])))]
pub struct DeviceArgs {
    /// A serial port, such as /dev/ttyUSB0; or --socket, the UNIX socket of the gateway's link
    #[arg(long)]
    port: Option<PathBuf>,
    /// IP:PORT to listen on, as a serial server does: a gateway's link with this `address` connects to it
    #[arg(long, conflicts_with = "port")]
    address: Option<String>,
    /// Bits per second of a serial port
    #[arg(long, default_value_t = 115_200)]
    baud: u32,
    /// A parity bit, as Modbus devices often have
    #[arg(long)]
    even_parity: bool,
    /// What it speaks
    #[arg(long, value_enum, default_value = "frames")]
    protocol: Protocol,
    /// Its own name, 4 to 16 characters
    #[arg(long, default_value = "simulator")]
    uid: String,
    /// Modbus: the gateway's id on the bus
    #[arg(long, default_value_t = 17)]
    slave: u8,
    /// Ask this task of the gateway's configuration
    #[arg(long, value_name = "N")]
    task: Option<u16>,
    /// An argument of the task; may be given several times
    #[arg(long = "arg", value_name = "TEXT", requires = "task")]
    arguments: Vec<String>,
    /// Ask this prompt
    #[arg(long, value_name = "TEXT")]
    chat: Option<String>,
    /// A JPEG, PNG or WebP to go with each request
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// How many requests
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// From one request to the next, such as 500ms or 10s
    #[arg(long, value_parser = text::duration_ms, default_value = "0ms")]
    every: u64,
    /// Give up after this long
    #[arg(long, value_parser = text::duration_ms, default_value = "60s")]
    wait: u64,
    /// Percent of the frames that are lost, each way
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=90))]
    loss: u8,
    /// Percent of the frames in which a bit is flipped
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=90))]
    flip: u8,
    /// Percent of the frames that come twice
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=90))]
    duplicate: u8,
}

impl DeviceArgs {
    fn options(self, socket: Option<PathBuf>) -> anyhow::Result<DeviceOptions> {
        let at = match (self.port, self.address, socket) {
            (Some(path), _, _) => LineAt::Port { path, baud: self.baud, even_parity: self.even_parity },
            (_, Some(address), _) => LineAt::Address(address),
            (_, _, Some(path)) => LineAt::Socket(path),
            _ => bail!("which line? --port /dev/ttyUSB0, --socket PATH or --address IP:PORT"),
        };
        if !(4..=16).contains(&self.uid.len()) {
            bail!("--uid has 4 to 16 characters");
        }
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
        let picture = self.picture.as_ref().map(read).transpose()?;
        let ask = match self.chat {
            Some(text) => Ask::chat(&text, picture),
            None => Ask::task(self.task.unwrap_or_default(), self.arguments, picture),
        };
        Ok(DeviceOptions {
            at,
            protocol: self.protocol,
            uid: self.uid.into_bytes(),
            ask,
            count: self.count,
            every_ms: self.every,
            wait_ms: self.wait,
            bad: BadLine::new(self.loss, self.flip, self.duplicate, clock::random_u64()),
            slave: self.slave,
            print: true,
        })
    }
}

/// Runs one simulated device from the command line; an error where a request did not end well.
pub(super) async fn run(args: DeviceArgs, socket: Option<PathBuf>) -> anyhow::Result<()> {
    let options = args.options(socket)?;
    told::line(format_args!("simulated device on {}", options.at));
    let work = run_device(&options);
    let ended = tokio::select! {
        ended = work => ended?,
        interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
    };
    let good = ended.iter().filter(|one| one.is_good()).count();
    told::line(format_args!("{good} of {} answered", options.count));
    if good < options.count as usize {
        bail!("{} requests did not end well", options.count as usize - good);
    }
    Ok(())
}
