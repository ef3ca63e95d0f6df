//! The device link: PLCs, sensors, cameras and microcontrollers on serial lines and sockets.
//!
//! Owns the lines and what is spoken on them. `core` has the rules, which are the same for every dialect; `port` opens
//! lines and opens them again; `frames` is a dialect. A link that is unplugged is a state, never a reason to stop.

pub mod core;
pub mod frames;
pub mod lines;
pub mod modbus;
pub mod port;
mod restart;
pub mod state;
mod tasks;
mod token;
pub mod upload;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::core::Core;
use self::core::tasks::Tasks;
use crate::control::types::{Policy, words};
use crate::gateway::Gateway;
use state::{Account, Count, Shown, State};
pub use token::Token;
use upload::Uploads;

/// What is spoken on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Frames with a checksum.
    Frames,
    /// Lines of text.
    Lines,
    /// Modbus RTU, or Modbus TCP on a socket.
    Modbus,
}
words!(Protocol { Frames => "frames", Lines => "lines", Modbus => "modbus" });

/// Where a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A serial port; name it by `/dev/serial/by-id/`.
    Device(PathBuf),
    /// A UNIX stream socket to listen on.
    Socket(PathBuf),
    /// The host and port of a raw TCP serial server.
    Address(String),
    /// An address to listen on for Modbus TCP.
    Listen(SocketAddr),
}

/// The parity bit of a serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parity {
    /// None.
    None,
    /// Even.
    Even,
    /// Odd.
    Odd,
}
words!(Parity { None => "none", Even => "even", Odd => "odd" });

/// The line that resets many boards when a port is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtr {
    /// As the driver has it.
    Keep,
    /// Set; then two seconds for a board that this resets.
    On,
    /// Not set.
    Off,
}
words!(Dtr { Keep => "keep", On => "on", Off => "off" });

/// How a serial port is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serial {
    /// Bits per second.
    pub baud: u32,
    /// The parity bit.
    pub parity: Parity,
    /// 1 or 2.
    pub stop_bits: u8,
    /// DTR after opening.
    pub dtr: Dtr,
    /// The driver turns an RS-485 transceiver round.
    pub rs485: bool,
}

/// Which half of a 32-bit value stands in the first register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WordOrder {
    /// The upper one.
    HighFirst,
    /// The lower one.
    LowFirst,
}
words!(WordOrder { HighFirst => "high_first", LowFirst => "low_first" });

/// What one link is configured with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Unique.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// How its serial port is set.
    pub serial: Serial,
    /// Addresses polled on an RS-485 bus, 1 to 247; empty for point to point.
    pub addresses: Vec<u8>,
    /// The secret that a device has to show.
    pub token: Option<Token>,
    /// What a request gets while no uplink is available.
    pub offline: Policy,
    /// Lines: whether a line without a checksum is taken.
    pub crc_optional: bool,
    /// Lines: whether results are sent without being asked for.
    pub push: bool,
    /// Lines: longest line in bytes.
    pub line_max: u16,
    /// Modbus: this gateway's unit.
    pub unit: u8,
    /// Modbus: which half of a 32-bit value stands first.
    pub word_order: WordOrder,
    /// The one device on this line, in hexadecimal digits, where it does not say its name.
    pub uid: Option<String>,
}

/// Bytes of a device's name.
const UID_BYTES_MAX: usize = 16;

/// A name in the hexadecimal digits by which the link knows devices.
fn digits(name: &str) -> String {
    name.bytes().take(UID_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// The device of a line on which nobody says a name.
fn fixed_uid(options: &Options) -> String {
    options.uid.clone().unwrap_or_else(|| digits(&options.name))
}

/// What all links share.
#[derive(Clone)]
pub struct Common {
    /// Told to devices.
    pub gateway_name: String,
    /// Time to live of a request that names none.
    pub ttl: Duration,
    /// The model of a question that names none.
    pub model: String,
    /// Half uploads are kept in a folder in here.
    pub data_dir: PathBuf,
    /// Bytes the file system must have left for an upload.
    pub min_disk_free: u64,
    /// Canned prompts.
    pub tasks: Arc<dyn Tasks>,
}

/// One link: what a dialect is given.
#[derive(Clone)]
pub struct Link {
    /// The rules.
    pub core: Core,
    /// Its configuration.
    pub options: Arc<Options>,
    /// Where half uploads are.
    pub uploads: Uploads,
    /// What is shown of it.
    pub account: Arc<Account>,
    /// What has to outlive a restart and is no request is kept in here.
    pub data_dir: Arc<Path>,
    /// Told to devices.
    pub gateway_name: Arc<str>,
    /// True when the process ends.
    pub stop: watch::Receiver<bool>,
}

impl Link {
    /// Speaks the link's dialect on one line until the line is gone or the process ends.
    pub async fn serve(&self, line: port::Line) {
        match self.options.protocol {
            Protocol::Frames => frames::serve(self.clone(), line).await,
            Protocol::Lines => lines::serve(self.clone(), line).await,
            Protocol::Modbus => modbus::serve(self.clone(), line).await,
        }
    }
}

/// Keeps a link open until the process ends, whatever breaks off in it.
async fn keep(link: Link) {
    let broke = || {
        link.account.add(Count::Restarts, 1);
        port::tell(&link, State::Failed("it broke off by a fault of the gateway; please report it".to_owned()));
    };
    restart::until_done(|| port::keep(link.clone()), broke).await;
}

/// All links, running.
#[derive(Clone, Default)]
pub struct Links {
    accounts: Arc<Vec<Arc<Account>>>,
}

impl Links {
    /// Starts every link; each has a task of its own, so none disturbs another. They end with `stop`.
    pub fn start(
        gateway: &Gateway,
        all: Vec<Options>,
        common: &Common,
        stop: &watch::Receiver<bool>,
    ) -> (Links, Vec<JoinHandle<()>>) {
        let uploads = Uploads::open(&common.data_dir, common.min_disk_free);
        if !all.is_empty() {
            tokio::spawn(upload::tidy(uploads.clone()));
        }
        let mut accounts = Vec::new();
        let mut tasks = Vec::new();
        for options in all {
            let core = Core::start(
                gateway.clone(),
                self::core::Options {
                    link: options.name.clone(),
                    offline: options.offline,
                    ttl: common.ttl,
                    model: common.model.clone(),
                    tasks: common.tasks.clone(),
                },
            );
            let account = Arc::new(Account::new(&options));
            accounts.push(account.clone());
            let link = Link {
                core,
                options: Arc::new(options),
                uploads: uploads.clone(),
                account,
                data_dir: common.data_dir.as_path().into(),
                gateway_name: common.gateway_name.as_str().into(),
                stop: stop.clone(),
            };
            tasks.push(tokio::spawn(keep(link)));
        }
        (Links { accounts: Arc::new(accounts) }, tasks)
    }

    /// How each link stands.
    pub fn shown(&self) -> Vec<Shown> {
        self.accounts.iter().map(|account| account.shown()).collect()
    }
}
