//! PLCs: lines of text and Modbus, over restarts; what is repeated blindly is done once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast::cli::simulate::Faults;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

use crate::support::{Bench, Settings, free_port, until, within};

fn settings(protocol: &str) -> Settings {
    let extra = format!(
        "[[task]]\nid = 12\nprompt = \"Seam {{seam}} at {{temp}}\"\n\n[[task]]\nid = 13\nprompt = \"Speed {{rpm}}\"\n\n\
         [[link]]\nname = \"press\"\nsocket = \"@DIR@/plc.sock\"\nprotocol = \"{protocol}\"\noffline = \"queue\"\n"
    );
    Settings { extra, ..Settings::without_local() }
}

fn place(bench: &Bench) -> PathBuf {
    bench.daemon.socket().with_file_name("plc.sock")
}

fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc: u16, _| if crc & 1 == 1 { crc >> 1 ^ 0xA001 } else { crc >> 1 })
    })
}

fn line(content: &str) -> String {
    format!("${content}*{:04X}\r\n", crc(content.as_bytes()))
}

/// What comes back for a line of these bytes before the answer to a Ping behind it.
async fn told(stream: &mut UnixStream, said: &[u8]) -> String {
    stream.write_all(&[said, line("PNG,7").as_bytes()].concat()).await.unwrap();
    let mut text = String::new();
    while !text.ends_with("\r\n") || !text.contains("$PON,7,") {
        let mut buffer = [0; 512];
        let read = within("the answer to a Ping", 10, stream.read(&mut buffer)).await.unwrap();
        assert!(read > 0, "the line is gone: {text}");
        text += str::from_utf8(&buffer[..read]).unwrap();
    }
    text.split_once("$PON,").unwrap().0.to_owned()
}

/// Without an answer a PLC would say it every three seconds for ever.
#[tokio::test]
async fn a_line_that_came_as_it_was_sent_and_cannot_be_taken_is_refused_by_its_name() {
    let bench = Bench::offline(settings("lines")).await;
    let mut stream = UnixStream::connect(place(&bench)).await.unwrap();
    let long = b"x".repeat(300);
    for (argument, code) in
        [(&b"%zz"[..], 1), (b"x%2", 1), (b"\xff", 1), (b"\x01", 1), (b"5 $", 1), (b"2 * 3", 1), (&long, 5)]
    {
        let content = [b"SUB,a-1,1,0,12,", argument].concat();
        let said = |sum: u16| [b"$", &content[..], format!("*{sum:04X}\r\n").as_bytes()].concat();
        let nak = line(&format!("NAK,a-1,{code},0"));
        assert_eq!(told(&mut stream, &said(crc(&content))).await, nak, "{argument:?}");
        assert_eq!(told(&mut stream, &said(!crc(&content))).await, "", "{argument:?}, damaged");
    }
    assert_eq!(bench.daemon.backlog().await, 0);
}

#[tokio::test]
async fn a_task_that_says_nothing_of_an_outage_gets_what_its_link_says_and_one_that_does_its_own() {
    let tasks = "[[task]]\nid = 12\nprompt = \"Seam\"\n[[task]]\nid = 14\nprompt = \"Seam\"\noffline = \"fail\"\n\
                 [[task]]\nid = 15\nprompt = \"Seam\"\noffline = \"both\"\n";
    let link = "[[link]]\nname = \"press\"\nsocket = \"@DIR@/plc.sock\"\nprotocol = \"lines\"\noffline = \"queue\"\n";
    let bench = Bench::offline(Settings { extra: format!("{tasks}{link}"), ..Settings::default() }).await;
    let mut stream = UnixStream::connect(place(&bench)).await.unwrap();
    for (key, task) in [("a-1", 12), ("a-2", 14), ("a-3", 15)] {
        stream.write_all(line(&format!("SUB,{key},1,86400,{task}")).as_bytes()).await.unwrap();
    }
    let mut text = String::new();
    while !(text.contains("$NAK,a-2,6,") && text.contains("$RES,a-3,0,2,")) {
        let mut buffer = [0; 512];
        let read = within("the answers", 20, stream.read(&mut buffer)).await.unwrap();
        text += str::from_utf8(&buffer[..read]).unwrap();
    }
    assert!(text.contains("$ACK,a-1,") && !text.contains("$RES,a-1,"), "{text}");
    let all = bench.daemon.get("/holdfast/v1/requests").await.json();
    let mut policies: Vec<_> =
        all["data"].as_array().unwrap().iter().map(|one| one["policy"].as_str().unwrap()).collect();
    policies.sort_unstable();
    assert_eq!(policies, ["both", "queue"]);
}

/// A PLC that knows nothing but its table: it says every open request again and again, and takes every result.
#[derive(Default)]
struct Plc {
    open: BTreeMap<String, String>,
    acked: BTreeMap<String, u32>,
    results: BTreeMap<String, Vec<String>>,
}

impl Plc {
    fn wants(&mut self, key: &str, rest: &str) {
        self.open.insert(key.to_owned(), line(&format!("SUB,{key},1,86400,{rest}")));
    }

    /// One connection, for so long or until all results are there.
    async fn talk(&mut self, place: &Path, ms: u64) {
        let Ok(mut stream) = UnixStream::connect(place).await else {
            return tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let talking = async {
            let mut text = String::new();
            loop {
                for said in self.open.values() {
                    stream.write_all(said.as_bytes()).await.ok()?;
                }
                let mut buffer = [0; 4096];
                while let Ok(read) = timeout(Duration::from_millis(100), stream.read(&mut buffer)).await {
                    let bytes = read.ok().filter(|bytes| *bytes > 0)?;
                    text += str::from_utf8(&buffer[..bytes]).unwrap();
                    while let Some((whole, rest)) = text.split_once("\r\n") {
                        let (whole, rest) = (whole.to_owned(), rest.to_owned());
                        text = rest;
                        if let Some(said) = self.hears(&whole) {
                            stream.write_all(said.as_bytes()).await.ok()?;
                        }
                    }
                }
            }
        };
        let _: Result<Option<()>, _> = timeout(Duration::from_millis(ms), talking).await;
    }

    fn hears(&mut self, whole: &str) -> Option<String> {
        let (content, sum) = whole.strip_prefix('$').unwrap().split_once('*').unwrap();
        assert_eq!(format!("{:04X}", crc(content.as_bytes())), sum, "{whole}");
        let fields: Vec<&str> = content.split(',').collect();
        match fields[..] {
            ["ACK", key, ..] => {
                *self.acked.entry(key.to_owned()).or_default() += 1;
                // It goes on all the same: a PLC may have been off when the answer came.
                None
            }
            ["RES", key, status, source, _, part, text] => {
                assert_eq!((status, source, part), ("0", "1", "1/1"), "{whole}");
                self.open.remove(key);
                let all = self.results.entry(key.to_owned()).or_default();
                all.push(text.to_owned());
                Some(line(&format!("RAK,{key},1")))
            }
            _ => panic!("{whole}"),
        }
    }
}

#[tokio::test]
async fn a_plc_that_repeats_blindly_gets_each_result_of_one_send() {
    let mut bench = Bench::offline(settings("lines")).await;
    let place = place(&bench);
    let mut plc = Plc::default();
    for n in 0..5 {
        plc.wants(&format!("815-{n}"), &format!("12,Naht {n},23.5"));
    }
    while plc.acked.len() < 5 || plc.acked.values().any(|times| *times < 2) {
        plc.talk(&place, 400).await;
    }
    assert_eq!(bench.daemon.backlog().await, 5, "what is repeated is one request");
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    bench.uplink.set_faults(Faults::default()).await;
    within("all results", 60, async {
        while plc.results.len() < 5 {
            plc.talk(&place, 400).await;
        }
    })
    .await;
    for n in 0..5 {
        let text = format!("Seam Naht {n} at 23.5");
        assert_eq!(plc.results[&format!("815-{n}")][0], format!("uplink answer to: {text}"));
        assert_eq!(bench.answered(&text), 1, "{text}");
    }
    // What was taken is not offered again, also not after a restart.
    plc.talk(&place, 1_000).await;
    let taken = plc.results.clone();
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    plc.talk(&place, 1_000).await;
    assert_eq!(plc.results, taken);
}

/// A serial server with a PLC behind it: the gateway connects, and comes back after each of its starts.
struct SerialBox {
    listener: TcpListener,
    line: Option<TcpStream>,
    text: String,
}

impl SerialBox {
    async fn new() -> SerialBox {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SerialBox { listener, line: None, text: String::new() }
    }

    fn settings(&self) -> Settings {
        let address = self.listener.local_addr().unwrap();
        let plain = settings("lines");
        Settings {
            extra: plain.extra.replace("socket = \"@DIR@/plc.sock\"", &format!("address = \"{address}\"")),
            ..plain
        }
    }

    /// Says all of it at once, again and again, until a line begins so; gives that line.
    async fn says(&mut self, all: &[&str], wanted: &str) -> String {
        let said: String = all.iter().map(|content| line(content)).collect();
        within(wanted, 20, async {
            loop {
                if self.line.is_none() {
                    (self.line, self.text) = (Some(self.listener.accept().await.unwrap().0), String::new());
                }
                match self.round(&said, wanted).await {
                    Some(Some(found)) => return found,
                    Some(None) => {}
                    None => self.line = None,
                }
            }
        })
        .await
    }

    /// None when the line is gone.
    async fn round(&mut self, said: &str, wanted: &str) -> Option<Option<String>> {
        let stream = self.line.as_mut()?;
        stream.write_all(said.as_bytes()).await.ok()?;
        let mut buffer = [0; 4096];
        while let Ok(read) = timeout(Duration::from_millis(500), stream.read(&mut buffer)).await {
            let bytes = read.ok().filter(|bytes| *bytes > 0)?;
            self.text.extend(buffer[..bytes].iter().filter(|byte| **byte != 0).map(|byte| char::from(*byte)));
            while let Some((whole, rest)) = self.text.split_once("\r\n") {
                let (whole, rest) = (whole.to_owned(), rest.to_owned());
                self.text = rest;
                if whole.starts_with(wanted) {
                    return Some(Some(whole));
                }
            }
        }
        Some(None)
    }
}

#[tokio::test]
async fn a_name_that_was_said_once_is_known_after_a_restart() {
    let mut plc = SerialBox::new().await;
    let mut bench = Bench::offline(plc.settings()).await;
    plc.says(&["HLO,1,S7-03,815"], "$HLA,1,").await;
    plc.says(&["SUB,815-1,1,86400,12,Naht 1,23.5"], "$ACK,815-1,1,").await;
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    // It does not know of the restart: no Hello.
    let told = plc.says(&["QRY,815-1"], "$").await;
    assert!(told.starts_with("$STA,815-1,2,"), "{told}");
    plc.says(&["SUB,815-1,1,86400,12,Naht 1,23.5"], "$ACK,815-1,1,1*").await;
    assert_eq!(bench.daemon.backlog().await, 1);
    bench.uplink.set_faults(Faults::default()).await;
    plc.says(&[], "$RES,815-1,0,1,").await;
    plc.says(&["HLO,1,another,1", "QRY,815-1"], "$NAK,815-1,8,").await;
    assert_eq!(bench.answered("Seam Naht 1 at 23.5"), 1);
}

#[tokio::test]
async fn what_one_device_asked_is_not_told_to_the_next_on_its_line() {
    let mut plc = SerialBox::new().await;
    let bench = Bench::offline(plc.settings()).await;
    plc.says(&["HLO,1,first,1"], "$HLA,1,").await;
    let told = plc.says(&["SUB,815-1,1,86400,12,Naht 1,23.5", "HLO,1,second,1", "PNG,5"], "$").await;
    assert!(!told.starts_with("$ACK,"), "{told}");
    plc.says(&["PNG,6"], "$PON,6,").await;
    // On a slow machine all of it was said twice, and the answers to that come first.
    let mut told = String::new();
    while !told.contains("815-1") {
        told = plc.says(&["QRY,815-1"], "$").await;
    }
    assert!(told.starts_with("$NAK,815-1,8,"), "it is the first one's: {told}");
    plc.says(&["HLO,1,first,1", "QRY,815-1"], "$STA,815-1,2,").await;
    assert_eq!(bench.daemon.backlog().await, 1);
}

#[cfg(feature = "planted")]
#[tokio::test]
async fn a_line_that_breaks_off_by_a_fault_of_ours_is_opened_again() {
    let mut plc = SerialBox::new().await;
    let bench = Bench::offline(Settings {
        environment: vec![("HOLDFAST_PLANT", "panic-in-a-link".to_owned())],
        ..plc.settings()
    })
    .await;
    for restarts in 1..=2 {
        plc.says(&["SUB,815-1,1,86400,12,Naht 1,23.5"], "$ACK,815-1,1,").await;
        assert!(plc.round(&line("CAN,815-1"), "$CNA").await.is_none(), "the line is gone");
        plc.line = None;
        let told = plc.says(&["QRY,815-1"], "$").await;
        assert!(told.starts_with("$STA,815-1,2,"), "{told}");
        let status = bench.daemon.status().await;
        assert_eq!(status["links"][0]["counters"]["restarts"], restarts, "{status}");
        assert_eq!(status["links"][0]["state"], "open", "{status}");
    }
}

/// A master on a line: one question and its answer.
struct Master {
    stream: Box<dyn Stream>,
    is_tcp: bool,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Master {
    async fn ask(&mut self, pdu: &[u8]) -> Vec<u8> {
        if self.is_tcp {
            return self.ask_tcp(pdu).await;
        }
        let mut frame = vec![17];
        frame.extend_from_slice(pdu);
        frame.extend_from_slice(&crc(&frame).to_le_bytes());
        self.stream.write_all(&frame).await.unwrap();
        let mut answer = vec![0; 300];
        let bytes = within("an answer", 5, self.stream.read(&mut answer)).await.unwrap();
        answer.truncate(bytes);
        let content = answer.len() - 2;
        assert_eq!(answer[content..], crc(&answer[..content]).to_le_bytes());
        answer[1..content].to_vec()
    }

    async fn ask_tcp(&mut self, pdu: &[u8]) -> Vec<u8> {
        let mut frame = vec![7, pdu[0], 0, 0, 0, pdu.len() as u8 + 1, 17];
        frame.extend_from_slice(pdu);
        self.stream.write_all(&frame).await.unwrap();
        let mut header = [0; 7];
        within("an answer", 5, self.stream.read_exact(&mut header)).await.unwrap();
        assert_eq!((&header[..4], header[6]), (&frame[..4], 17), "the same transaction and unit");
        let mut answer = vec![0; usize::from(u16::from_be_bytes([header[4], header[5]])) - 1];
        within("the rest of it", 5, self.stream.read_exact(&mut answer)).await.unwrap();
        answer
    }

    async fn input(&mut self, from: u16, count: u8) -> Vec<u16> {
        let [high, low] = from.to_be_bytes();
        let answer = self.ask(&[4, high, low, 0, count]).await;
        assert_eq!(answer[0], 4, "{answer:?}");
        answer[2..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    }

    async fn until_input(&mut self, address: u16, value: u16) {
        within("a register", 30, async {
            while self.input(address, 1).await != [value] {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

/// The block of one number, 1500, with this bell.
fn block(seq: u16) -> Vec<u8> {
    let mut pdu = vec![16, 0, 0, 0, 10, 20];
    for register in [seq, 13, 1, 1, 0x5180, 0, 1, 0, 0x44BB, 0x8000] {
        pdu.extend_from_slice(&u16::to_be_bytes(register));
    }
    pdu
}

/// Where a master finds the gateway.
enum At {
    Line(PathBuf),
    Network(SocketAddr),
}

async fn connect(at: &At) -> Master {
    let stream = until("the line", 10, || async {
        match at {
            At::Line(place) => Some(Box::new(UnixStream::connect(place).await.ok()?) as Box<dyn Stream>),
            At::Network(address) => Some(Box::new(TcpStream::connect(address).await.ok()?) as Box<dyn Stream>),
        }
    });
    let mut master = Master { stream: stream.await, is_tcp: matches!(at, At::Network(_)) };
    // Until what was stored before is known, writing is told to wait.
    while master.ask(&[6, 0, 120, 0, 0]).await == [0x86, 6] {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    master
}

#[tokio::test]
async fn from_the_bell_to_the_result_over_a_restart() {
    let bench = Bench::offline(settings("modbus")).await;
    let at = At::Line(place(&bench));
    let mut master = connect(&at).await;
    // Noise, another unit's question and its answer before ours: no answer to any of them.
    master.stream.write_all(&[0xFF, 0x00, 0x12, 0x03, 0x00]).await.unwrap();
    from_bell_to_result(bench, at, master).await;
}

#[tokio::test]
async fn from_the_bell_to_the_result_over_modbus_tcp() {
    let free = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut settings = settings("modbus");
    settings.extra = settings.extra.replace("socket = \"@DIR@/plc.sock\"", &format!("listen = \"{free}\""));
    let bench = Bench::offline(settings).await;
    let at = At::Network(free);
    let master = connect(&at).await;
    // Who says what is no Modbus is hung up on, and disturbs nobody.
    let mut stranger = TcpStream::connect(free).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut nothing = Vec::new();
    let _ = within("the end", 5, stranger.read_to_end(&mut nothing)).await;
    assert!(nothing.is_empty());
    let (code, shown) = bench.daemon.tool(&["link", "list"]).await;
    assert!(code == 0 && shown.contains(&free.to_string()) && shown.contains("open"), "{shown}");
    from_bell_to_result(bench, at, master).await;
}

async fn from_bell_to_result(mut bench: Bench, at: At, mut master: Master) {
    assert_eq!(master.ask(&block(6)).await, [16, 0, 0, 0, 10]);
    master.until_input(1000, 6).await;
    assert_eq!(master.ask(&block(6)).await, [16, 0, 0, 0, 10]);
    assert_eq!(bench.daemon.backlog().await, 1, "written twice, stored once");
    let request = master.input(1002, 2).await;
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    let mut master = connect(&at).await;
    assert_eq!(master.input(1000, 4).await, [6, 0, request[0], request[1]]);
    assert_eq!(master.ask(&block(6)).await, [16, 0, 0, 0, 10]);
    bench.uplink.set_faults(Faults::default()).await;
    master.until_input(1006, 6).await;
    let shown = master.input(1004, 30).await;
    assert_eq!((shown[0], shown[3], shown[4]), (4, 0, 1), "done, ok, by the uplink: {shown:?}");
    let text: Vec<u8> = shown[10..].iter().flat_map(|register| register.to_be_bytes()).collect();
    let expected = "uplink answer to: Speed 1500";
    assert_eq!((shown[9], &text[..expected.len()]), (expected.len() as u16, expected.as_bytes()));
    assert_eq!(bench.answered("Speed 1500"), 1);
    assert_eq!(master.ask(&[6, 0, 120, 0, 6]).await, [6, 0, 120, 0, 6]);
    master.until_input(1006, 0).await;
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    let mut master = connect(&at).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let shown = master.input(1000, 7).await;
    assert_eq!((shown[0], shown[6]), (6, 0), "taken for good");
    assert_eq!(master.ask(&block(7)).await, [16, 0, 0, 0, 10]);
    master.until_input(1006, 7).await;
    assert_eq!(bench.answered("Speed 1500"), 2);
}

#[tokio::test]
async fn a_plc_that_takes_no_results_is_told_to_before_it_fills_the_queue() {
    let bench = Bench::offline(settings("modbus")).await;
    let mut master = connect(&At::Line(place(&bench))).await;
    for seq in 1..=32 {
        assert_eq!(master.ask(&block(seq)).await[0], 16);
        master.until_input(1000, seq).await;
    }
    assert_eq!(master.ask(&block(33)).await[0], 16);
    within("the refusal", 10, async {
        while master.input(1000, 2).await == [32, 0] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(master.input(1000, 2).await, [32, 6], "busy: results wait to be taken");
    assert_eq!(bench.daemon.backlog().await, 32);
}
