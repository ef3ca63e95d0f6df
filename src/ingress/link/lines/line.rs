//! Bytes of a line: where it begins and ends, its checksum, its escapes.
//!
//! Owns the framing of `$VERB,field,…*CCCC` and of JSON lines. What is damaged is counted and dropped without an
//! answer: its sender repeats it. What came as it was sent is told from it: that would come so again, for ever.

use crc::{CRC_16_MODBUS, Crc};

/// Shortest, longest and usual limit of a line, its end included.
pub const LINE_MIN: usize = 80;
/// See [`LINE_MIN`].
pub const LINE_MAX: usize = 1024;
/// See [`LINE_MIN`].
pub const LINE_DEFAULT: usize = 240;
/// What a line has beside its content: `$`, `*CCCC` and its end.
const AROUND_BYTES: usize = 1 + SUM_BYTES + 2;
/// `*CCCC`.
const SUM_BYTES: usize = 5;

/// Stands for the sum where none is demanded.
const NO_CRC: &str = "-";

static CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

/// Modbus' CRC-16: "123456789" gives 4B37.
pub fn crc16(bytes: &[u8]) -> u16 {
    CRC16.checksum(bytes)
}

/// The same of what was summed up to `crc`, and these bytes behind it.
pub fn crc16_on(crc: u16, bytes: &[u8]) -> u16 {
    // The library turns what it begins with, as it does with each byte.
    let mut digest = CRC16.digest_with_initial(crc.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

/// A line whose frame holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// What it says; where it has a fault, as much of it as can be read.
    pub said: Said,
    /// Why it cannot be taken although it came as it was sent.
    pub fault: Option<Fault>,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Verb and fields, escapes resolved.
    Fields(Vec<String>),
    /// JSON as it came.
    Json(String),
}

/// What is wrong with a line whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Something in it has no such form.
    Unreadable,
    /// It is longer than allowed.
    TooLong,
}

/// Collects bytes until a line is whole.
#[derive(Debug)]
pub struct Lines {
    line: Vec<u8>,
    limit: usize,
    needs_crc: bool,
    /// The line is longer than allowed: the rest of it is not kept.
    is_long: bool,
    /// That rest, where the line had begun.
    rest: Option<Rest>,
    /// Lines dropped: damaged, or none.
    pub dropped: u64,
}

impl Lines {
    /// Lines of at most so many bytes, their end included.
    pub fn new(limit: usize, needs_crc: bool) -> Lines {
        let limit = limit.clamp(LINE_MIN, LINE_MAX);
        Lines { line: Vec::with_capacity(limit), limit, needs_crc, is_long: false, rest: None, dropped: 0 }
    }

    /// Takes the next byte; a line where this byte ended one that holds.
    pub fn push(&mut self, byte: u8) -> Option<Content> {
        if byte != b'\n' && byte != b'\r' {
            self.keep(byte);
            return None;
        }
        if self.line.is_empty() {
            return None;
        }
        let content = if std::mem::take(&mut self.is_long) {
            self.rest.take().filter(Rest::holds).map(|_| too_long(&self.line))
        } else {
            parse(&self.line, self.needs_crc)
        };
        self.line.clear();
        self.dropped += u64::from(content.is_none());
        content
    }

    fn keep(&mut self, byte: u8) {
        // Its end may be one byte.
        if self.line.len() + 1 < self.limit {
            self.line.push(byte);
            return;
        }
        if !std::mem::replace(&mut self.is_long, true) {
            self.rest = Rest::behind(&self.line);
        }
        if let Some(rest) = &mut self.rest {
            rest.push(byte);
        }
    }
}

/// The sum of a line's content, followed to its end however far that is.
#[derive(Debug)]
struct Rest {
    /// Of all that came before the last bytes.
    crc: u16,
    last: [u8; SUM_BYTES],
}

impl Rest {
    /// None where no content has begun.
    fn behind(line: &[u8]) -> Option<Rest> {
        let (before, last) = begun(line)?.split_last_chunk()?;
        Some(Rest { crc: crc16(before), last: *last })
    }

    fn push(&mut self, byte: u8) {
        self.crc = crc16_on(self.crc, &self.last[..1]);
        self.last.rotate_left(1);
        self.last[SUM_BYTES - 1] = byte;
    }

    /// Whether the line's last bytes are its sum.
    fn holds(&self) -> bool {
        self.last[0] == b'*' && printable(&self.last[1..]).is_some_and(|crc| is_sum(crc, self.crc))
    }
}

/// What stands behind the first sign of a beginning.
fn begun(line: &[u8]) -> Option<&[u8]> {
    let line = line.trim_ascii_start();
    let at = if line.starts_with(b"{") { 0 } else { line.iter().position(is(b'$'))? + 1 };
    Some(&line[at..])
}

/// The beginning of a line that is too long; what it broke off in is left out.
fn too_long(line: &[u8]) -> Content {
    let content = begun(line).unwrap_or_default();
    let said = if content.starts_with(b"{") {
        Said::Json(shown(content))
    } else {
        Said::Fields(fields(&content[..content.iter().rposition(is(b',')).unwrap_or(0)]).0)
    };
    Content { said, fault: Some(Fault::TooLong) }
}

/// A line without its end.
pub fn parse(line: &[u8], needs_crc: bool) -> Option<Content> {
    let line = line.trim_ascii();
    if line.starts_with(b"{") {
        return json(line, needs_crc);
    }
    let framed = narrow(line).filter(|(content, crc)| holds(content, crc, needs_crc));
    let (content, crc) = framed.or_else(|| wide(line).filter(|(content, crc)| holds(content, crc, true)))?;
    let (fields, are_all) = fields(content);
    checked(Said::Fields(fields), are_all, crc)
}

/// With a sum it came as it was sent, readable or not; without one it may be damaged.
fn checked(said: Said, is_readable: bool, crc: &str) -> Option<Content> {
    let fault = (!is_readable).then_some(Fault::Unreadable);
    (is_readable || crc != NO_CRC).then_some(Content { said, fault })
}

/// Content and sum. What stands before is noise, or a line that broke off: in a field the signs are escaped.
fn narrow(line: &[u8]) -> Option<(&[u8], &str)> {
    let begun = &line[line.iter().rposition(is(b'$'))? + 1..];
    split(begun, begun.iter().position(is(b'*'))?)
}

/// The same where a sign in a field is not escaped.
fn wide(line: &[u8]) -> Option<(&[u8], &str)> {
    let begun = begun(line)?;
    split(begun, begun.iter().rposition(is(b'*'))?)
}

fn split(begun: &[u8], at: usize) -> Option<(&[u8], &str)> {
    Some((&begun[..at], printable(&begun[at + 1..])?))
}

fn is(sign: u8) -> impl Fn(&u8) -> bool {
    move |byte| *byte == sign
}

/// Verb and fields as far as they can be read, and whether that is all.
fn fields(content: &[u8]) -> (Vec<String>, bool) {
    let all = || content.split(is(b','));
    let readable: Vec<String> = all().map_while(|field| printable(field).and_then(unescaped)).collect();
    let are_all = readable.len() == all().count();
    (readable, are_all)
}

fn printable(bytes: &[u8]) -> Option<&str> {
    let is_printable = bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
    str::from_utf8(bytes).ok().filter(|_| is_printable)
}

/// As text; what cannot be read is a question mark.
fn shown(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' }).collect()
}

fn holds(content: &[u8], crc: &str, needs_crc: bool) -> bool {
    if crc == NO_CRC { !needs_crc } else { is_sum(crc, crc16(content)) }
}

fn is_sum(crc: &str, of: u16) -> bool {
    let is_hex = crc.len() == 4 && crc.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex && u16::from_str_radix(crc, 16) == Ok(of)
}

/// JSON may carry the same checksum behind its last brace.
fn json(line: &[u8], needs_crc: bool) -> Option<Content> {
    let (content, rest) = line.split_at(line.iter().rposition(is(b'}'))? + 1);
    let crc = match rest.split_first() {
        None => NO_CRC,
        Some((sign, crc)) => printable(crc).filter(|_| *sign == b'*')?,
    };
    if !holds(content, crc, needs_crc) {
        return None;
    }
    checked(Said::Json(shown(content)), printable(content).is_some(), crc)
}

fn unescaped(field: &str) -> Option<String> {
    if field.contains(['$', '*']) {
        return None;
    }
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        text.push(match rest.get(at..at + 3)? {
            "%2C" | "%2c" => ',',
            "%2A" | "%2a" => '*',
            "%24" => '$',
            "%25" => '%',
            "%0A" | "%0a" => '\n',
            _ => return None,
        });
        rest = &rest[at + 3..];
    }
    text.push_str(rest);
    Some(text)
}

/// One character as it may stand in a field; anything that is no printable ASCII is a space.
pub fn escaped(c: char) -> &'static str {
    const PRINTABLE: &str =
        " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~";
    match c {
        ',' => "%2C",
        '*' => "%2A",
        '$' => "%24",
        '%' => "%25",
        '\n' => "%0A",
        ' '..='~' => {
            let at = c as usize - ' ' as usize;
            &PRINTABLE[at..=at]
        }
        _ => " ",
    }
}

/// A whole line of this content, which is escaped already.
pub fn framed(content: &str, is_json: bool) -> Vec<u8> {
    let start = if is_json { "" } else { "$" };
    format!("{start}{content}*{:04X}\r\n", crc16(content.as_bytes())).into_bytes()
}

/// Bytes of content that a line of this limit holds.
pub fn room(limit: usize) -> usize {
    limit.clamp(LINE_MIN, LINE_MAX) - AROUND_BYTES
}

/// Text that any PLC can show: German letters as Germans write them without umlauts, all others by their sound.
pub fn ascii(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'ä' => plain.push_str("ae"),
            'ö' => plain.push_str("oe"),
            'ü' => plain.push_str("ue"),
            'Ä' => plain.push_str("Ae"),
            'Ö' => plain.push_str("Oe"),
            'Ü' => plain.push_str("Ue"),
            '\n' | ' '..='~' => plain.push(c),
            '\r' => {}
            c if c.is_ascii() => plain.push(' '),
            c => plain.push_str(deunicode::deunicode_char(c).unwrap_or("?")),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(line: &str) -> Option<Vec<String>> {
        match parse(line.as_bytes(), true)? {
            Content { said: Said::Fields(fields), fault: None } => Some(fields),
            _ => None,
        }
    }

    #[test]
    fn what_came_as_it_was_sent_and_cannot_be_read_is_told_from_what_was_damaged() {
        for fault in [&b"%zz"[..], b"x%2", b"\xff", b"\x01", b"N\xc3\xa4", b"2 * 3"] {
            let content = [b"SUB,a-1,1,0,12,", fault].concat();
            let line = |crc: &str| [b"$", &content[..], b"*", crc.as_bytes()].concat();
            let said = Said::Fields(["SUB", "a-1", "1", "0", "12"].map(str::to_owned).into());
            let whole = line(&format!("{:04X}", crc16(&content)));
            assert_eq!(parse(&whole, true), Some(Content { said, fault: Some(Fault::Unreadable) }));
            assert_eq!((parse(&line("0000"), true), parse(&line("-"), false)), (None, None));
        }
    }

    #[test]
    fn a_sign_that_is_not_escaped_is_a_fault_of_its_field() {
        let said = || Said::Fields(["SUB", "a-1", "1", "0", "12"].map(str::to_owned).into());
        for fault in ["5 $", "$5", "2 * 3", "$5 * 3,4"] {
            let line = framed(&format!("SUB,a-1,1,0,12,{fault}"), false);
            assert_eq!(parse(&line, true), Some(Content { said: said(), fault: Some(Fault::Unreadable) }));
        }
    }

    #[test]
    fn json_with_a_letter_that_no_line_has_is_no_damage() {
        let content = r#"{"QRY":{"key":"ä"}}"#;
        let said = Said::Json(r#"{"QRY":{"key":"??"}}"#.to_owned());
        let line = |crc: &str| format!("{content}*{crc}");
        let whole = line(&format!("{:04X}", crc16(content.as_bytes())));
        assert_eq!(parse(whole.as_bytes(), true), Some(Content { said, fault: Some(Fault::Unreadable) }));
        for damaged in [line("0000"), line("-"), content.to_owned()] {
            assert_eq!(parse(damaged.as_bytes(), false), None);
        }
    }

    #[test]
    fn noise_before_a_line_and_lines_that_broke_off_are_left_out() {
        assert_eq!(crc16(b"123456789"), 0x4B37);
        assert_eq!(crc16_on(crc16(b"1234"), b"56789"), 0x4B37);
        let expected = Some(vec!["QRY".to_owned(), "815-5".to_owned()]);
        assert_eq!(fields("$QRY,815-5*5FD3"), expected);
        assert_eq!(fields("x~$QRY,81$QRY,815-5*5FD3"), expected);
        assert_eq!(fields("$QRY,815-5*5FD4"), None);
        assert_eq!(fields("$QRY,815-5*-"), None);
        assert_eq!(fields("$QRY,815-5"), None);
        assert!(parse(b"$QRY,815-5*-", false).is_some());
    }

    #[test]
    fn a_line_that_is_too_long_spoils_no_other() {
        let mut lines = Lines::new(LINE_MIN, true);
        let long = format!("$SUB,{}\r\n$QRY,815-5*5FD3\r\n", "x".repeat(200));
        let found: Vec<Content> = long.bytes().filter_map(|byte| lines.push(byte)).collect();
        assert_eq!((found.len(), lines.dropped), (1, 1));
    }

    #[test]
    fn a_line_of_all_its_bytes_may_end_in_one_byte_or_two() {
        for end in ["\n", "\r", "\r\n"] {
            let room = LINE_MIN - end.len() - "$SUB,a-1,1,0,*0000".len();
            let framed = framed(&format!("SUB,a-1,1,0,{}", "x".repeat(room)), false);
            let line = [framed.trim_ascii_end(), end.as_bytes()].concat();
            assert_eq!(line.len(), LINE_MIN);
            let mut lines = Lines::new(LINE_MIN, true);
            let found: Vec<Content> = line.iter().filter_map(|byte| lines.push(*byte)).collect();
            assert_eq!((found.len(), found[0].fault), (1, None), "{end:?}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_told_from_a_damaged_one_however_long() {
        let said = || Said::Fields(["SUB", "a-1", "1", "0"].map(str::to_owned).into());
        for bytes in [60, 300, 100_000] {
            let content = format!("SUB,a-1,1,0,{}", "x".repeat(bytes));
            let whole = [b"noise", &framed(&content, false)[..]].concat();
            let mut lines = Lines::new(LINE_MIN, true);
            let found: Vec<Content> = whole.iter().filter_map(|byte| lines.push(*byte)).collect();
            assert_eq!((found, lines.dropped), (vec![Content { said: said(), fault: Some(Fault::TooLong) }], 0));
            let damaged = whole.iter().map(|byte| if *byte == b',' { b';' } else { *byte });
            assert_eq!((damaged.filter_map(|byte| lines.push(byte)).count(), lines.dropped), (0, 1));
            assert!(lines.line.capacity() <= LINE_MIN);
        }
        // Where the beginning is lost nobody is named, and nothing holds.
        let mut lines = Lines::new(LINE_MIN, true);
        let late = [&b"n".repeat(76)[..], &framed("QRY,815-5", false)].concat();
        assert_eq!((late.iter().filter_map(|byte| lines.push(*byte)).count(), lines.dropped), (0, 1));
    }

    #[test]
    fn json_carries_the_same_checksum_where_one_is_demanded() {
        let framed = framed("{\"QRY\":{\"key\":\"a\"}}", true);
        assert!(parse(framed.trim_ascii_end(), true).is_some());
        assert!(parse(b"{\"QRY\":{\"key\":\"a\"}}", true).is_none());
        assert!(parse(b"{\"QRY\":{\"key\":\"a\"}}", false).is_some());
    }

    #[test]
    fn letters_that_a_plc_lacks_are_written_out() {
        assert_eq!(ascii("Größe 5 µm – Übermaß\t23 °C"), "Groesse 5 um - Uebermass 23 degC");
        assert!(ascii("错误 Ошибка 🙂").is_ascii());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(all in proptest::collection::vec("[ -~\n]{0,30}", 1..8)) {
            let all: Vec<String> = all;
            let content: Vec<String> = all.iter().map(|field| field.chars().map(escaped).collect()).collect();
            let line = framed(&content.join(","), false);
            let content = Content { said: Said::Fields(all), fault: None };
            prop_assert_eq!(parse(line.trim_ascii_end(), true), Some(content));
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut lines = Lines::new(LINE_DEFAULT, false);
            let _ = bytes.iter().filter_map(|byte| lines.push(*byte)).count();
            prop_assert!(lines.line.len() <= LINE_DEFAULT);
        }

        #[test]
        fn any_text_becomes_ascii(text in "\\PC{0,60}") {
            prop_assert!(ascii(&text).chars().all(|c| c == '\n' || (' '..='~').contains(&c)));
        }
    }
}
