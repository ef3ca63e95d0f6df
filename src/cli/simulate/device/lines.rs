//! The simulated PLC that can only build text: `$VERB,field,…*CCCC` lines.
//!
//! Owns what a PLC's program would: a key, repeats every three seconds, an acknowledgement for each result.

use std::io;
use std::time::Duration;

use anyhow::bail;

use super::bad_line::BadLine;
use super::line::Line;
use super::modbus::crc16;
use super::{DeviceOptions, Ended, told};
use crate::clock;

/// What a PLC does where no answer comes.
const REPEAT: Duration = Duration::from_secs(3);
/// Lines are at most 240 bytes by default, 1,024 at most.
const LINE_MAX: usize = 1_024;

/// One whole line with its sum and its end.
fn line(fields: &str) -> String {
    format!("${fields}*{:04X}\r\n", crc16(fields.as_bytes()))
}

/// The fields of a line whose sum is right.
fn fields(line: &str) -> Option<Vec<String>> {
    let (body, sum) = line.trim().strip_prefix('$')?.rsplit_once('*')?;
    let right = sum == "-" || u16::from_str_radix(sum, 16).is_ok_and(|sum| sum == crc16(body.as_bytes()));
    right.then(|| body.split(',').map(unescape).collect())
}

fn escape(text: &str) -> String {
    let wanted = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    let plain: String = text.chars().map(wanted).collect();
    plain.replace('%', "%25").replace(',', "%2C").replace('*', "%2A").replace('$', "%24")
}

fn unescape(text: &str) -> String {
    [("%2C", ","), ("%2A", "*"), ("%24", "$"), ("%0A", "\n"), ("%25", "%")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

struct Plc<'o> {
    options: &'o DeviceOptions,
    line: Line,
    heard: Vec<u8>,
    bad: BadLine,
}

/// Asks one after the other, as a PLC's program does.
pub(super) async fn run(options: &DeviceOptions) -> anyhow::Result<Vec<Ended>> {
    let Some((task, arguments)) = options.ask.as_task() else { bail!("a PLC with text lines can only ask a --task") };
    if options.ask.has_picture() {
        bail!("text lines carry no picture");
    }
    let mut plc = Plc { options, line: Line::open(&options.at).await?, heard: Vec::new(), bad: options.bad };
    let (uid, epoch) = (String::from_utf8_lossy(&options.uid).into_owned(), clock::random_u64() % 100_000);
    plc.say(&format!("HLO,1,{},{epoch}", escape(&uid))).await?;
    let arguments: Vec<String> = arguments.iter().map(|argument| escape(argument)).collect();
    let mut ended = Vec::new();
    for n in 1..=options.count {
        let key = format!("{epoch}-{n}");
        let submit =
            [format!("SUB,{key},2,0,{task}")].into_iter().chain(arguments.clone()).collect::<Vec<_>>().join(",");
        ended.push(plc.ask(&key, &submit, u64::from(n)).await?);
        tokio::time::sleep(Duration::from_millis(options.every_ms)).await;
    }
    Ok(ended)
}

impl Plc<'_> {
    async fn say(&mut self, fields: &str) -> io::Result<()> {
        if self.options.print {
            told::line(format_args!("-> ${fields}"));
        }
        let line = line(fields);
        self.line.write_all(&self.bad.carry(line.as_bytes())).await
    }

    /// One request to its end: repeated until it is stored, then waited for.
    async fn ask(&mut self, key: &str, submit: &str, number: u64) -> anyhow::Result<Ended> {
        let (mut stored, mut parts) = (0, Vec::<String>::new());
        self.say(submit).await?;
        loop {
            let Ok(heard) = tokio::time::timeout(REPEAT, self.next()).await else {
                // Stored ones are asked for: the gateway may be one that does not push.
                let again = if stored == 0 { submit.to_owned() } else { format!("QRY,{key}") };
                self.say(&again).await?;
                continue;
            };
            let fields = heard?;
            let words: Vec<&str> = fields.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["ACK", of, req, ..] if *of == key => stored = req.parse().unwrap_or(0),
                ["NAK", of, code, ..] if *of == key && *code == "8" => stored = 0,
                ["NAK", of, code, retry, ..] if *of == key && *retry == "0" => {
                    let code = code.parse().unwrap_or(0);
                    return Ok(Ended {
                        key: number,
                        req: 0,
                        status: None,
                        source: 0,
                        code,
                        value: 0.0,
                        text: String::new(),
                    });
                }
                ["RES", of, status, source, code, part, text @ ..] => {
                    let (part, of_parts) = part.split_once('/').unwrap_or((part, part));
                    let nth: usize = part.parse().unwrap_or(1);
                    self.say(&format!("RAK,{of},{nth}")).await?;
                    if *of == key && nth == parts.len() + 1 {
                        parts.push(text.join(","));
                    }
                    if *of == key && parts.len().to_string() == of_parts {
                        let (status, code) = (status.parse().ok(), code.parse().unwrap_or(0));
                        let source = source.parse().unwrap_or(0);
                        return Ok(Ended {
                            key: number,
                            req: stored,
                            status,
                            source,
                            code,
                            value: 0.0,
                            text: parts.concat(),
                        });
                    }
                }
                _ => {}
            }
        }
    }

    /// The next line whose sum is right.
    async fn next(&mut self) -> io::Result<Vec<String>> {
        loop {
            while let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                let line = String::from_utf8_lossy(&self.bad.carry(&line)).into_owned();
                if self.options.print {
                    told::line(format_args!("<- {}", line.trim()));
                }
                if let Some(fields) = fields(&line) {
                    return Ok(fields);
                }
            }
            if self.heard.len() > LINE_MAX {
                self.heard.clear();
            }
            let mut bytes = [0; 256];
            let length = self.line.read(&mut bytes).await?;
            self.heard.extend_from_slice(bytes.get(..length).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_they_are_written() {
        assert_eq!(line("SUB,815-5,1,86400,12,Naht 7,23.5"), "$SUB,815-5,1,86400,12,Naht 7,23.5*3682\r\n");
        assert_eq!(line("RAK,815-5,1"), "$RAK,815-5,1*62EA\r\n");
        let heard = fields("$RES,815-5,0,1,-2,1/1,NIO: Pore*E265\r\n").unwrap();
        assert_eq!(heard.last().map(String::as_str), Some("NIO: Pore"));
        assert_eq!(fields("$RES,815-5,0,1,-2,1/1,NIO: Pore*E266\r\n"), None);
        assert_eq!(unescape(&escape("a,b*c$d%e")), "a,b*c$d%e");
    }
}
