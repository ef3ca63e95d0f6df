//! The simulated PLC that can only be a Modbus master: one mailbox of the gateway's, over RTU.
//!
//! Owns what a PLC's program would: the doorbell, its repeats, the polling, the acknowledgement of the result.

use std::io;
use std::time::Duration;

use anyhow::bail;

use super::line::Line;
use super::{DeviceOptions, Ended, told};

/// The gateway answers within 100 ms; a slow line and a busy machine get more.
const ANSWER: Duration = Duration::from_secs(1);
/// From one look at the mailbox to the next.
const POLL: Duration = Duration::from_millis(200);
/// The block is rewritten this often until it is stored: every 2 s.
const POLLS_BEFORE_REWRITE: u32 = 10;
const INPUT_BASE: u16 = 1_000;
const RESULT_ACK: u16 = 120;
const TEXT_MAX: usize = 160;

/// CRC-16/MODBUS.
pub(super) fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xA001 } else { crc >> 1 })
    })
}

fn with_crc(mut frame: Vec<u8>) -> Vec<u8> {
    let crc = crc16(&frame);
    frame.extend(crc.to_le_bytes());
    frame
}

fn write_registers(slave: u8, from: u16, registers: &[u16]) -> Vec<u8> {
    let count = registers.len() as u16;
    let mut frame = vec![slave, 16];
    frame.extend(from.to_be_bytes());
    frame.extend(count.to_be_bytes());
    frame.push(count as u8 * 2);
    frame.extend(registers.iter().flat_map(|register| register.to_be_bytes()));
    with_crc(frame)
}

fn read_inputs(slave: u8, from: u16, count: u16) -> Vec<u8> {
    let mut frame = vec![slave, 4];
    frame.extend(from.to_be_bytes());
    frame.extend(count.to_be_bytes());
    with_crc(frame)
}

/// The block of one request: numbers among the arguments as float32, the others as text.
fn block(seq: u16, task: u16, arguments: &[String]) -> Vec<u16> {
    let numbers: Vec<f32> = arguments.iter().map_while(|argument| argument.parse().ok()).take(16).collect();
    let text = arguments.get(numbers.len()..).unwrap_or_default().join(",");
    let text: Vec<u8> = text.into_bytes().into_iter().take(TEXT_MAX).collect();
    let mut registers = vec![seq, task, 2, 0, 0, 0, numbers.len() as u16, text.len() as u16];
    let mut values = numbers.iter().flat_map(|number| {
        let bits = number.to_bits();
        [(bits >> 16) as u16, bits as u16]
    });
    let used = if text.is_empty() { numbers.len() * 2 } else { 32 };
    registers.extend((0..used).map(|_| values.next().unwrap_or(0)));
    registers.extend(text.chunks(2).map(|two| u16::from_be_bytes([two[0], two.get(1).copied().unwrap_or(0)])));
    registers
}

struct Master<'o> {
    options: &'o DeviceOptions,
    line: Line,
}

/// Asks one after the other in mailbox 0.
pub(super) async fn run(options: &DeviceOptions) -> anyhow::Result<Vec<Ended>> {
    let Some((task, arguments)) = options.ask.as_task() else { bail!("a Modbus master can only ask a --task") };
    if options.ask.has_picture() {
        bail!("Modbus carries no picture");
    }
    let mut master = Master { options, line: Line::open(&options.at).await? };
    // After power-up the PLC goes on behind the last number that was stored.
    let mut seq = master.inputs(0, 1).await?.first().copied().unwrap_or(0);
    let mut ended = Vec::new();
    for _ in 0..options.count {
        seq = if seq == u16::MAX { 1 } else { seq + 1 };
        ended.push(master.ask(seq, &block(seq, task, arguments)).await?);
        tokio::time::sleep(Duration::from_millis(options.every_ms)).await;
    }
    Ok(ended)
}

impl Master<'_> {
    async fn ask(&mut self, seq: u16, block: &[u16]) -> anyhow::Result<Ended> {
        let (mut stored, mut polls) = (false, 0);
        loop {
            if !stored && polls % POLLS_BEFORE_REWRITE == 0 {
                self.say("block", &write_registers(self.options.slave, 0, block), 8).await?;
            }
            polls += 1;
            tokio::time::sleep(POLL).await;
            let seen = self.inputs(0, 14).await?;
            let at = |n: usize| seen.get(n).copied().unwrap_or(0);
            let long = |n: usize| u32::from(at(n)) << 16 | u32::from(at(n + 1));
            if at(1) != 0 && at(0) != seq && !stored {
                let code = i32::from(at(1));
                return Ok(Ended {
                    key: seq.into(),
                    req: 0,
                    status: None,
                    source: 0,
                    code,
                    value: 0.0,
                    text: String::new(),
                });
            }
            if at(0) == seq && !stored {
                stored = true;
                self.tell(format_args!("   {seq} is on disk as request {}", long(2)));
            }
            if stored && at(6) == seq {
                let text = self.text(at(13)).await?;
                self.say("result taken", &write_registers(self.options.slave, RESULT_ACK, &[seq]), 8).await?;
                let (req, status, code) = (u64::from(long(2)), u8::try_from(at(7)).ok(), long(9).cast_signed());
                return Ok(Ended {
                    key: seq.into(),
                    req,
                    status,
                    source: at(8) as u8,
                    code,
                    value: f32::from_bits(long(11)),
                    text,
                });
            }
        }
    }

    async fn text(&mut self, length: u16) -> anyhow::Result<String> {
        let registers = if length == 0 { Vec::new() } else { self.inputs(14, length.min(220).div_ceil(2)).await? };
        let mut bytes: Vec<u8> = registers.into_iter().flat_map(u16::to_be_bytes).collect();
        bytes.truncate(length.into());
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn inputs(&mut self, offset: u16, count: u16) -> anyhow::Result<Vec<u16>> {
        let question = read_inputs(self.options.slave, INPUT_BASE + offset, count);
        let answer = self.say("mailbox", &question, 5 + 2 * usize::from(count)).await?;
        let data = answer.get(3..answer.len().saturating_sub(2)).unwrap_or_default();
        Ok(data.chunks_exact(2).map(|two| u16::from_be_bytes([two[0], two[1]])).collect())
    }

    fn tell(&self, words: std::fmt::Arguments<'_>) {
        if self.options.print {
            told::line(words);
        }
    }

    /// One question until it is answered whole.
    async fn say(&mut self, what: &str, question: &[u8], length: usize) -> anyhow::Result<Vec<u8>> {
        let mut bad = self.options.bad;
        for _ in 0..5 {
            self.tell(format_args!("-> {what} {}", hex(question)));
            self.line.write_all(&bad.carry(question)).await?;
            let answer = tokio::time::timeout(ANSWER, self.answer(length)).await;
            let Ok(answer) = answer else { continue };
            let answer = answer?;
            self.tell(format_args!("<- {}", hex(&answer)));
            // Busy: the PLC asks again.
            if answer.get(1).is_some_and(|function| function & 0x80 == 0) {
                return Ok(answer);
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("no answer from slave {}", self.options.slave)
    }

    async fn answer(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut heard = Vec::new();
        loop {
            let mut bytes = [0; 256];
            let got = self.line.read(&mut bytes).await?;
            heard.extend_from_slice(bytes.get(..got).unwrap_or_default());
            let wanted = if heard.get(1).is_some_and(|function| function & 0x80 != 0) { 5 } else { length };
            if heard.len() >= wanted {
                heard.truncate(wanted);
                // A right frame's sum over itself and its own sum is 0.
                return if crc16(&heard) == 0 { Ok(heard) } else { Err(io::Error::other("a damaged answer")) };
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_as_they_are_written() {
        assert_eq!(hex(&read_inputs(17, 1000, 14)), "11 04 03 E8 00 0E F3 2E");
        let block = block(6, 12, &["23.5".to_owned()]);
        assert_eq!(&block[..8], &[6, 12, 2, 0, 0, 0, 1, 0]);
        assert_eq!(&block[8..], &[0x41BC, 0]);
        let answer = [0x11, 0x10, 0x00, 0x00, 0x00, 0x0C, 0xC2, 0x9C];
        assert_eq!(crc16(&answer), 0);
    }
}
