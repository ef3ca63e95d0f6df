//! PLCs: lines of text and Modbus, over restarts; what is repeated blindly is done once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast::cli::simulate::Faults;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::support::{Bench, Settings, until, within};

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

/// A master on a line: one question and its answer.
async fn ask(stream: &mut UnixStream, pdu: &[u8]) -> Vec<u8> {
    let mut frame = vec![17];
    frame.extend_from_slice(pdu);
    frame.extend_from_slice(&crc(&frame).to_le_bytes());
    stream.write_all(&frame).await.unwrap();
    let mut answer = vec![0; 300];
    let bytes = within("an answer", 5, stream.read(&mut answer)).await.unwrap();
    answer.truncate(bytes);
    let content = answer.len() - 2;
    assert_eq!(answer[content..], crc(&answer[..content]).to_le_bytes());
    answer[1..content].to_vec()
}

async fn input(stream: &mut UnixStream, from: u16, count: u8) -> Vec<u16> {
    let [high, low] = from.to_be_bytes();
    let answer = ask(stream, &[4, high, low, 0, count]).await;
    assert_eq!(answer[0], 4, "{answer:?}");
    answer[2..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

/// The block of one number, 1500, with this bell.
fn block(seq: u16) -> Vec<u8> {
    let mut pdu = vec![16, 0, 0, 0, 10, 20];
    for register in [seq, 13, 1, 1, 0x5180, 0, 1, 0, 0x44BB, 0x8000] {
        pdu.extend_from_slice(&u16::to_be_bytes(register));
    }
    pdu
}

async fn connect(place: &Path) -> UnixStream {
    let mut stream = until("the line", 10, || async { UnixStream::connect(place).await.ok() }).await;
    // Until what was stored before is known, writing is told to wait.
    while ask(&mut stream, &[6, 0, 120, 0, 0]).await == [0x86, 6] {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stream
}

#[tokio::test]
async fn from_the_bell_to_the_result_over_a_restart() {
    let mut bench = Bench::offline(settings("modbus")).await;
    let place = place(&bench);
    let mut master = connect(&place).await;
    // Noise, another unit's question and its answer before ours: no answer to any of them.
    master.write_all(&[0xFF, 0x00, 0x12, 0x03, 0x00]).await.unwrap();
    assert_eq!(ask(&mut master, &block(6)).await, [16, 0, 0, 0, 10]);
    until_input(&mut master, 1000, 6).await;
    assert_eq!(ask(&mut master, &block(6)).await, [16, 0, 0, 0, 10]);
    assert_eq!(bench.daemon.backlog().await, 1, "written twice, stored once");
    let request = input(&mut master, 1002, 2).await;
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    let mut master = connect(&place).await;
    assert_eq!(input(&mut master, 1000, 4).await, [6, 0, request[0], request[1]]);
    assert_eq!(ask(&mut master, &block(6)).await, [16, 0, 0, 0, 10]);
    bench.uplink.set_faults(Faults::default()).await;
    until_input(&mut master, 1006, 6).await;
    let shown = input(&mut master, 1004, 30).await;
    assert_eq!((shown[0], shown[3], shown[4]), (4, 0, 1), "done, ok, by the uplink: {shown:?}");
    let text: Vec<u8> = shown[10..].iter().flat_map(|register| register.to_be_bytes()).collect();
    let expected = "uplink answer to: Speed 1500";
    assert_eq!((shown[9], &text[..expected.len()]), (expected.len() as u16, expected.as_bytes()));
    assert_eq!(bench.answered("Speed 1500"), 1);
    assert_eq!(ask(&mut master, &[6, 0, 120, 0, 6]).await, [6, 0, 120, 0, 6]);
    until_input(&mut master, 1006, 0).await;
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    let mut master = connect(&place).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let shown = input(&mut master, 1000, 7).await;
    assert_eq!((shown[0], shown[6]), (6, 0), "taken for good");
    assert_eq!(ask(&mut master, &block(7)).await, [16, 0, 0, 0, 10]);
    until_input(&mut master, 1006, 7).await;
    assert_eq!(bench.answered("Speed 1500"), 2);
}

async fn until_input(master: &mut UnixStream, address: u16, value: u16) {
    within("a register", 30, async {
        while input(master, address, 1).await != [value] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
