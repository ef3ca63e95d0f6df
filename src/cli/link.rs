//! `holdfast link list|test`: which ports there are, how the configured links stand, whether a line works.
//!
//! `test` opens a port only where the daemon has none of that name: two programs on one line tear each other's frames.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_wire::frame::{FRAME_MAX, wire_bytes};
use holdfast_wire::{Deframer, Message};
use hyper::Method;
use serde_json::{Value, json};

use super::client::Client;
use super::exit::{Done, FAILED, Failure, IO, NO_DAEMON};
use super::out::{Mood, Out, columns, text_at};
use super::simulate::{Line, LineAt};
use crate::clock;

/// Ports by names that stay the same whichever socket they are plugged into.
const BY_ID: &str = "/dev/serial/by-id";
/// A device without a session says Hello again after 10 s at most.
const LISTEN: Duration = Duration::from_secs(12);
/// Bytes of the loop-back test: every value once.
const PATTERN: usize = 256;

/// `link`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List serial ports and configured links
    List,
    /// Test a line: a loop-back plug, or a device that says Hello
    Test(TestArgs),
}

/// `link test`.
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// A serial port, or the name of a configured link
    device: String,
    /// Bits per second
    #[arg(long, default_value_t = 115_200)]
    baud: u32,
}

/// Does one of them.
pub async fn run(command: Command, client: &Client, out: &Out) -> Done {
    match command {
        Command::List => list(client, out).await,
        Command::Test(args) => test(&args, client, out).await,
    }
}

/// Links as the daemon shows them, or why it does not.
async fn links(client: &Client) -> Result<Vec<Value>, Failure> {
    let status = client.call(Method::GET, "/holdfast/v1/status").await?;
    Ok(status.get("links").and_then(Value::as_array).cloned().unwrap_or_default())
}

async fn list(client: &Client, out: &Out) -> Done {
    let (ports, links) = (ports(Path::new(BY_ID)), links(client).await);
    if out.json {
        let ports: Vec<Value> = ports.iter().map(|(name, at)| json!({"name": name, "port": at})).collect();
        out.json(&json!({"ports": ports, "links": links.as_ref().ok()}))?;
        return Ok(0);
    }
    if ports.is_empty() {
        out.line(&format!("no serial port in {BY_ID}"))?;
    }
    for (name, at) in ports {
        out.line(&format!("port  {}  {}", name.display(), at.display()))?;
    }
    match links {
        // Ports can be listed without a daemon.
        Err(failure) => out.note(&format!("links are not shown: {}", failure.message)),
        Ok(links) if links.is_empty() => out.line("no link is configured: add a [[link]]")?,
        Ok(links) => {
            for line in table(&links, out) {
                out.line(&line)?;
            }
        }
    }
    Ok(0)
}

fn ports(folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut ports: Vec<_> = entries
        .map(|entry| entry.path())
        .map(|name| (name.clone(), std::fs::canonicalize(&name).unwrap_or(name)))
        .collect();
    ports.sort();
    ports
}

fn place(link: &Value) -> String {
    let fields = ["/where", "/device", "/socket", "/address"];
    fields.iter().map(|field| text_at(link, field)).find(|text| !text.is_empty()).unwrap_or_default()
}

fn table(links: &[Value], out: &Out) -> Vec<String> {
    let heading = ["LINK", "PROTOCOL", "STATE", "DEVICES", "WHERE", "NOTE"].map(str::to_owned).to_vec();
    let row = |link: &Value| {
        let devices = link.get("devices").and_then(Value::as_array).map_or(0, Vec::len).to_string();
        let text = |field| text_at(link, field);
        vec![text("/name"), text("/protocol"), text("/state"), devices, place(link), text("/reason")]
    };
    let rows: Vec<_> = std::iter::once(heading).chain(links.iter().map(row)).collect();
    let mood = |n: usize| match n.checked_sub(1).and_then(|n| links.get(n)).map(|link| text_at(link, "/state")) {
        None => Mood::Faint,
        Some(state) if state == "open" => Mood::Good,
        Some(state) if state == "failed" => Mood::Bad,
        Some(_) => Mood::Doubtful,
    };
    columns(&rows).iter().enumerate().map(|(n, line)| out.paint(mood(n), line)).collect()
}

async fn test(args: &TestArgs, client: &Client, out: &Out) -> Done {
    let wanted = std::fs::canonicalize(&args.device).unwrap_or_else(|_| PathBuf::from(&args.device));
    let is_it = |link: &&Value| {
        let at = place(link);
        text_at(link, "/name") == args.device || std::fs::canonicalize(&at).unwrap_or_else(|_| at.into()) == wanted
    };
    let links = match links(client).await {
        Ok(links) => links,
        // Without a daemon the port is nobody's. One that may not be asked may have it.
        Err(failure) if failure.code == NO_DAEMON && args.device.contains('/') => Vec::new(),
        Err(failure) if failure.code == NO_DAEMON => {
            let message =
                format!("{} is no path of a port, and of links nobody tells: {}", args.device, failure.message);
            return Err(Failure::new(NO_DAEMON, message));
        }
        Err(failure) => return Err(failure),
    };
    match links.iter().find(is_it) {
        Some(link) => served(link, out),
        None => port(&args.device, args.baud, out).await,
    }
}

/// The daemon has the line: what it knows is the test.
fn served(link: &Value, out: &Out) -> Done {
    let (name, state) = (text_at(link, "/name"), text_at(link, "/state"));
    let devices = link.get("devices").and_then(Value::as_array).cloned().unwrap_or_default();
    if out.json {
        out.json(link)?;
    } else {
        out.line(&format!("link {name}: {state} {}", text_at(link, "/reason")))?;
        for device in &devices {
            let text = |field| text_at(device, field);
            out.line(&format!("   device {} {} {}", text("/uid"), text("/model"), text("/fw")))?;
        }
        if devices.is_empty() {
            out.line("   no device was heard of: is it switched on, TX to RX, GND to GND, the same baud rate?")?;
        }
    }
    Ok(if state == "open" && !devices.is_empty() { 0 } else { FAILED })
}

/// What a line did.
#[derive(Debug, PartialEq)]
enum Heard {
    /// What was sent came back.
    LoopBack,
    /// A device without a session.
    Device(String),
    /// So many bytes that are neither.
    Noise(usize),
}

async fn port(device: &str, baud: u32, out: &Out) -> Done {
    let at = LineAt::Port { path: device.into(), baud, even_parity: false };
    let failed = |error: std::io::Error| Failure::new(IO, format!("{device}: {error}"));
    let line = Line::open(&at).await.map_err(failed)?;
    out.note(&format!("listening on {device} at {baud} baud for up to {} s", LISTEN.as_secs()));
    let pattern = pattern();
    line.write_all(&pattern).await.map_err(failed)?;
    let mut bytes = Vec::new();
    let listening = async {
        let mut piece = [0; 512];
        loop {
            let length = line.read(&mut piece).await?;
            bytes.extend_from_slice(piece.get(..length).unwrap_or_default());
            bytes.drain(..bytes.len().saturating_sub(2 * FRAME_MAX));
            if !matches!(heard(&bytes, &pattern), Heard::Noise(_)) {
                return Ok::<(), std::io::Error>(());
            }
        }
    };
    if let Ok(ended) = tokio::time::timeout(LISTEN, listening).await {
        ended.map_err(failed)?;
    }
    let (code, words) = match heard(&bytes, &pattern) {
        Heard::LoopBack => (0, format!("loop-back: {PATTERN} bytes came back whole")),
        Heard::Device(who) => (0, format!("a device says Hello: {who}")),
        Heard::Noise(0) => (FAILED, "nothing came: is it switched on, TX to RX, GND to GND?".to_owned()),
        Heard::Noise(n) => (FAILED, format!("{n} bytes came, and no frame among them: is the baud rate right?")),
    };
    if out.json {
        out.json(&json!({"device": device, "ok": code == 0, "message": words}))?;
    } else {
        out.line(&words)?;
    }
    Ok(code)
}

/// Every value once, from a random one on, between two zeros: no device takes it for a frame.
fn pattern() -> Vec<u8> {
    let first = clock::random_u64() as u8;
    let all = (0..=u8::MAX).map(|n| n.wrapping_add(first)).filter(|byte| *byte != 0);
    [0].into_iter().chain(all).chain([0]).collect()
}

fn heard(bytes: &[u8], pattern: &[u8]) -> Heard {
    if bytes.windows(pattern.len()).any(|window| window == pattern) {
        return Heard::LoopBack;
    }
    let mut buffer = [0; wire_bytes(FRAME_MAX)];
    let mut deframer = Deframer::new(&mut buffer);
    for byte in bytes {
        let Some(Ok(frame)) = deframer.push(*byte) else { continue };
        if let (false, Ok(Message::Hello(hello))) =
            (frame.header.from_gateway, Message::read(frame.header.kind, frame.payload))
        {
            let uid = hello.uid.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
            return Heard::Device(format!("{uid} {} {}", hello.model, hello.fw));
        }
    }
    Heard::Noise(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::message::Hello;
    use holdfast_wire::{Header, encode};

    #[test]
    fn a_loop_back_a_device_and_noise_are_told_apart() {
        let pattern = pattern();
        assert_eq!(heard(&[b"noise", &pattern[..]].concat(), &pattern), Heard::LoopBack);
        assert_eq!(heard(&pattern[..100], &pattern), Heard::Noise(100));
        let hello = Hello { uid: b"abcd", model: "cam", fw: "2", ..Hello::default() };
        let header = Header { from_gateway: false, repeat: false, addr: 0, kind: 0, session: 1, tag: 1 };
        let mut out = [0; 100];
        let length = encode(header, &Message::Hello(hello), &mut out).unwrap();
        let heard = heard(&[&pattern[..50], &out[..length]].concat(), &pattern);
        assert_eq!(heard, Heard::Device("61626364 cam 2".to_owned()));
    }

    #[tokio::test]
    async fn without_a_daemon_a_name_is_nothing_and_a_path_is_tried() {
        let client = Client::new("/nowhere/hf.sock".into());
        let tried = async |device: &str| {
            let args = TestArgs { device: device.to_owned(), baud: 9600 };
            test(&args, &client, &Out::plain()).await.expect_err("there is no such port")
        };
        let (name, path) = (tried("plc1").await, tried("/nowhere/ttyS9").await);
        assert!(name.code == NO_DAEMON && name.message.starts_with("plc1 is no path"), "{}", name.message);
        assert!(path.code == IO && path.message.starts_with("/nowhere/ttyS9: "), "{}", path.message);
    }

    #[test]
    fn links_are_a_table() {
        let links = [json!({"name": "plc1", "protocol": "frames", "state": "waiting", "where": "/dev/ttyS9",
            "reason": "no such port", "devices": []})];
        let shown = table(&links, &Out::plain());
        assert!(shown[1].contains("plc1") && shown[1].contains("/dev/ttyS9") && shown[1].contains("no such port"));
    }
}
