//! A serial port: taken for us alone, raw, and never hung up.
//!
//! Owns how it is opened and set. What the driver cannot do is said once and gone on without.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::termios::{ControlModes, OptionalActions, tcgetattr, tcsetattr};
use serial2::SerialPort;
use serial2::rs4xx::{Rs485Config, TransceiverMode};
use tokio_serial::{DataBits, ErrorKind, FlowControl, SerialPort as _, SerialPortBuilderExt, SerialStream, StopBits};

use super::super::{Dtr, Link, Parity, Serial};
use super::Stream;

/// What is left where the driver does not turn the line.
const ELSEWHERE: &str = "this works where the adapter turns it itself";
/// A board that DTR resets is up again after this.
const RESET: Duration = Duration::from_secs(2);

/// Opens it as the link says.
pub(super) async fn open(link: &Link, path: &Path) -> io::Result<(Box<dyn Stream>, u32)> {
    let (path, serial) = (PathBuf::from(path), link.options.serial.clone());
    let baud = serial.baud;
    let dtr = serial.dtr;
    let opened = tokio::task::spawn_blocking(move || take(&path, &serial)).await;
    let stream = opened.map_err(io::Error::other)??;
    if dtr == Dtr::On {
        tokio::time::sleep(RESET).await;
    }
    Ok((Box::new(stream), baud))
}

fn take(path: &Path, serial: &Serial) -> io::Result<SerialStream> {
    let name = path.to_str().ok_or_else(|| io::Error::other("its name is not UTF-8"))?;
    let port = keep_up(path)?;
    if serial.rs485 {
        turn(name, port);
    }
    // Exclusive by flock and TIOCEXCL, raw, CLOCAL, without flow control, drained: all of it is the library's default.
    let mut stream = tokio_serial::new(name, serial.baud)
        .data_bits(DataBits::Eight)
        .parity(match serial.parity {
            Parity::None => tokio_serial::Parity::None,
            Parity::Even => tokio_serial::Parity::Even,
            Parity::Odd => tokio_serial::Parity::Odd,
        })
        .stop_bits(if serial.stop_bits == 2 { StopBits::Two } else { StopBits::One })
        .flow_control(FlowControl::None)
        .open_native_async()
        .map_err(plain)?;
    let set = match serial.dtr {
        Dtr::Keep => Ok(()),
        Dtr::On => stream.write_data_terminal_ready(true),
        Dtr::Off => stream.write_data_terminal_ready(false),
    };
    if let Err(error) = set {
        tracing::info!("DTR of {name} stays as it is: {error}");
    }
    Ok(stream)
}

/// The line is not hung up when the last program closes it: that resets many boards.
fn keep_up(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOCTTY | OFlags::NONBLOCK;
    let port = OpenOptions::new().read(true).write(true).custom_flags(flags.bits() as i32).open(path)?;
    let mut modes = tcgetattr(&port)?;
    modes.control_modes.remove(ControlModes::HUPCL);
    tcsetattr(&port, OptionalActions::Now, &modes)?;
    Ok(port)
}

/// Tells the driver to turn a half-duplex line for each transmission (TIOCSRS485), and says what it made of that. A driver
/// that cannot is no fault: most adapters turn the line themselves.
fn turn(name: &str, port: File) {
    let port = SerialPort::from(OwnedFd::from(port));
    let kept = port.set_rs4xx_mode(Rs485Config::new()).and_then(|()| port.get_rs4xx_mode());
    match kept {
        Ok(TransceiverMode::Rs485(kept)) => {
            let (before, after) = (kept.get_delay_before_send(), kept.get_delay_after_send());
            tracing::info!(?before, ?after, "rs485: the driver of {name} turns the line");
        }
        Ok(_) => tracing::warn!("rs485: the driver of {name} took the setting and did not keep it: {ELSEWHERE}"),
        Err(error) => tracing::info!(%error, "rs485: the driver of {name} cannot turn the line: {ELSEWHERE}"),
    }
}

fn plain(error: tokio_serial::Error) -> io::Error {
    let kind = match error.kind() {
        ErrorKind::NoDevice => io::ErrorKind::NotFound,
        ErrorKind::Io(kind) => kind,
        ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
        ErrorKind::Unknown => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.description)
}
