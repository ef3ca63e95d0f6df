//! A serial port: taken for us alone, raw, and never hung up.
//!
//! Owns how it is opened and set. What the driver cannot do is said once and gone on without.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::termios::{ControlModes, OptionalActions, tcgetattr, tcsetattr};
use tokio_serial::{DataBits, ErrorKind, FlowControl, SerialPort, SerialPortBuilderExt, SerialStream, StopBits};

use super::super::{Dtr, Link, Parity, Serial};
use super::Stream;

/// A board that DTR resets is up again after this.
const RESET: Duration = Duration::from_secs(2);

/// Opens it as the link says.
pub(super) async fn open(link: &Link, path: &Path) -> io::Result<(Box<dyn Stream>, u32)> {
    let (path, serial) = (PathBuf::from(path), link.options.serial.clone());
    if serial.rs485 {
        // Setting it takes an ioctl that no safe library offers.
        tracing::info!(
            HOLDFAST_LINK = link.options.name,
            "rs485: the driver is not told; this works where the adapter or the device tree turns the line itself"
        );
    }
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
    keep_up(path)?;
    let name = path.to_str().ok_or_else(|| io::Error::other("its name is not UTF-8"))?;
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
fn keep_up(path: &Path) -> io::Result<()> {
    let flags = OFlags::NOCTTY | OFlags::NONBLOCK;
    let port = OpenOptions::new().read(true).write(true).custom_flags(flags.bits() as i32).open(path)?;
    let mut modes = tcgetattr(&port)?;
    modes.control_modes.remove(ControlModes::HUPCL);
    Ok(tcsetattr(&port, OptionalActions::Now, &modes)?)
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
