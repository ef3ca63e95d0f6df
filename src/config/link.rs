//! `[[link]]`: lines to devices.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::extras::unique;
use super::gateway::{Http, bindable};
use super::units::quoted;
use super::walk::Table;
use crate::control::types::{Policy, words};
use crate::ingress::link::{Dtr, Parity, Place, Protocol, WordOrder};

/// Longest and shortest line of the dialect of lines, in bytes.
const LINE_BYTES: std::ops::RangeInclusive<u32> = 80..=1024;
/// Addresses of an RS-485 bus and units of Modbus.
const ADDRESSES: std::ops::RangeInclusive<u8> = 1..=247;

/// Longest token of a device.
const TOKEN_BYTES_MAX: usize = 64;

/// Whether lines carry a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crc {
    Required,
    Optional,
}
words!(Crc { Required => "required", Optional => "optional" });

/// One `[[link]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// Unique.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// The serial port's speed.
    pub baud: u32,
    /// Its parity bit.
    pub parity: Parity,
    /// Its stop bits.
    pub stop_bits: u32,
    /// What is done with DTR.
    pub dtr: Dtr,
    /// The driver turns an RS-485 transceiver round.
    pub rs485: bool,
    /// Addresses polled on a bus; empty for point to point.
    pub addresses: Vec<u8>,
    /// The file with the secret that a device has to show.
    pub token_file: Option<PathBuf>,
    /// What a request gets while no uplink is available.
    pub offline: Policy,
    /// Lines: whether one without a checksum is taken.
    pub crc_optional: bool,
    /// Lines: whether results are sent without being asked for.
    pub push: bool,
    /// Lines: the longest one, in bytes.
    pub line_max: u32,
    /// Modbus: this gateway's unit.
    pub unit: u32,
    /// Modbus: which half of a 32-bit value stands first.
    pub word_order: WordOrder,
    /// The one device on this line, in hexadecimal digits.
    pub uid: Option<String>,
}

pub(super) fn links(root: &mut Table<'_>, http: &Http) -> Vec<Link> {
    let links: Vec<Link> = root.tables("link", 0, link);
    unique(root, "link", "name", links.iter().map(|link| link.name.clone()));
    for key in ["device", "socket", "address", "listen"] {
        let places = links.iter().map(|link| Some(where_it_is(&link.place)).filter(|(name, _)| *name == key));
        unique(root, "link", key, places.map(|place| place.map_or_else(String::new, |(_, at)| at)));
    }
    for (index, link) in links.iter().enumerate() {
        let taken = match &link.place {
            Place::Socket(path) => *path == http.socket,
            Place::Listen(address) => http.listen.contains(address),
            Place::Device(_) | Place::Address(_) => false,
        };
        if taken {
            let (key, at) = where_it_is(&link.place);
            let message = format!("[http] has {} already; give the link its own", quoted(&at));
            root.member_fault("link", index, key, message);
        }
    }
    links
}

/// The key that says it, and what that says.
fn where_it_is(place: &Place) -> (&'static str, String) {
    match place {
        Place::Device(path) => ("device", path.display().to_string()),
        Place::Socket(path) => ("socket", path.display().to_string()),
        Place::Address(address) => ("address", address.clone()),
        Place::Listen(address) => ("listen", address.to_string()),
    }
}

/// A token as its file holds it: a Hello carries it.
pub fn token(text: &[u8]) -> Result<&[u8], String> {
    let secret = text.trim_ascii();
    let fits = !secret.is_empty() && secret.len() <= TOKEN_BYTES_MAX;
    if fits { Ok(secret) } else { Err(format!("must hold 1 to {TOKEN_BYTES_MAX} bytes")) }
}

fn link(t: &mut Table<'_>) -> Link {
    let name = t.required("name", "write the link's name, such as name = \"plc1\"");
    if !name.is_empty() && !is_name(&name) {
        t.fault("name", "must be 1 to 64 letters, digits, \"-\", \"_\" or \".\"");
    }
    let place = place(t);
    let protocol = t.word("protocol", Protocol::Frames);
    let is_modbus = protocol == Protocol::Modbus;
    let link = Link {
        name,
        baud: t.count("baud", if is_modbus { 19_200 } else { 115_200 }, 50..=4_000_000),
        parity: t.word("parity", if is_modbus { Parity::Even } else { Parity::None }),
        stop_bits: t.count("stop_bits", 1, 1..=2),
        dtr: t.word("dtr", Dtr::Keep),
        rs485: t.flag("rs485", false),
        addresses: t.counts("addresses", &ADDRESSES),
        token_file: t.path("token_file", ""),
        offline: t.word("offline", Policy::Both),
        crc_optional: t.word("crc", Crc::Required) == Crc::Optional,
        push: t.flag("push", true),
        line_max: t.count("line_max", 240, LINE_BYTES),
        unit: t.count("unit", 17, u32::from(*ADDRESSES.start())..=u32::from(*ADDRESSES.end())),
        word_order: t.word("word_order", WordOrder::HighFirst),
        uid: t.optional("uid", uid),
        place,
        protocol,
    };
    if link.offline == Policy::Fail {
        t.fault("offline", "write both, local or queue: what a device was told is stored is never refused");
    }
    if !link.addresses.is_empty() && (protocol != Protocol::Frames || matches!(link.place, Place::Socket(_))) {
        t.fault("addresses", "only a serial line that speaks frames is polled; remove them");
    }
    if let Place::Socket(path) = &link.place
        && let Err(message) = bindable(path)
    {
        t.fault("socket", message);
    }
    if matches!(link.place, Place::Listen(_)) && protocol != Protocol::Modbus {
        t.fault("listen", "only modbus listens for TCP; write socket or device, or protocol = \"modbus\"");
    }
    if link.token_file.is_some() && protocol != Protocol::Frames {
        t.fault("token_file", "only frames carry a token; remove it");
    }
    link
}

fn place(t: &mut Table<'_>) -> Place {
    let places = [
        t.path("device", "").map(Place::Device),
        t.path("socket", "").map(Place::Socket),
        t.optional("address", address).map(Place::Address),
        t.optional("listen", listen).map(Place::Listen),
    ];
    let mut given = places.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(place), None) => place,
        (place, _) => {
            // One that was given and is wrong has been reported as that already.
            if !(t.given("address") || t.given("listen")) || place.is_some() {
                let hint = "write exactly one of device (a serial port), socket (a UNIX socket), address (host:port) \
                            and listen (ip:port, modbus)";
                t.fault("device", hint);
            }
            Place::Device(PathBuf::new())
        }
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The host and port of a serial server.
fn address(text: &str) -> Result<String, String> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(1..) => Ok(text.to_owned()),
        _ => Err(format!("{} is not host:port, such as \"192.0.2.7:4001\"", quoted(text))),
    }
}

/// Where Modbus TCP is listened for: an address of this machine, never a name that may change.
fn listen(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() > 0 => Ok(address),
        _ => Err(format!("{} is not ip:port, such as \"192.0.2.1:502\"", quoted(text))),
    }
}

/// A device's own name: 4 to 16 bytes in hexadecimal digits.
fn uid(text: &str) -> Result<String, String> {
    let fits =
        text.len().is_multiple_of(2) && (8..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if fits {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("{} is not 8 to 32 hexadecimal digits, two for each byte", quoted(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_uids_are_judged() {
        assert!(listen("127.0.0.1:502").is_ok() && listen("[::]:502").is_ok());
        assert!(["plc:502", "127.0.0.1", "127.0.0.1:0", ":502"].iter().all(|text| listen(text).is_err()));
        assert!(address("box:4001").is_ok() && address("[::1]:4001").is_ok());
        assert!(["box", "box:0", ":4001", "box:port"].iter().all(|text| address(text).is_err()));
        assert_eq!(uid("02005E10").unwrap(), "02005e10");
        assert!(["0200", "02005E1", "02005E1G"].iter().all(|text| uid(text).is_err()));
    }
}
