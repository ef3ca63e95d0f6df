//! Bytes of a line: where it begins and ends, its checksum, its escapes.
//!
//! Owns the framing of `$VERB,field,…*CCCC` and of JSON lines. What is damaged is counted and dropped without an
//! answer: its sender repeats it.

use crc::{CRC_16_MODBUS, Crc};

/// Shortest, longest and usual limit of a line, its end included.
pub const LINE_MIN: usize = 80;
/// See [`LINE_MIN`].
pub const LINE_MAX: usize = 1024;
/// See [`LINE_MIN`].
pub const LINE_DEFAULT: usize = 240;
/// What a line has beside its content: `$`, `*CCCC` and its end.
const AROUND_BYTES: usize = 1 + 5 + 2;

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

/// Content of a line whose frame holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Verb and fields, escapes resolved.
    Fields(Vec<String>),
    /// JSON as it came.
    Json(String),
    /// It came as it was sent, but a field has no such form; verb and fields before that one.
    Unreadable(Vec<String>),
}

/// Collects bytes until a line is whole.
#[derive(Debug)]
pub struct Lines {
    line: Vec<u8>,
    limit: usize,
    needs_crc: bool,
    /// The line is longer than allowed: the rest of it goes too.
    is_long: bool,
    /// Lines dropped: damaged, too long, or none.
    pub dropped: u64,
}

impl Lines {
    /// Lines of at most so many bytes, their end included.
    pub fn new(limit: usize, needs_crc: bool) -> Lines {
        let limit = limit.clamp(LINE_MIN, LINE_MAX);
        Lines { line: Vec::with_capacity(limit), limit, needs_crc, is_long: false, dropped: 0 }
    }

    /// Takes the next byte; a line where this byte ended one that holds.
    pub fn push(&mut self, byte: u8) -> Option<Content> {
        if byte != b'\n' && byte != b'\r' {
            if self.line.len() + 2 < self.limit {
                self.line.push(byte);
            } else {
                self.is_long = true;
            }
            return None;
        }
        let line = std::mem::take(&mut self.line);
        let was_long = std::mem::take(&mut self.is_long);
        if line.is_empty() && !was_long {
            return None;
        }
        let content = if was_long { None } else { parse(&line, self.needs_crc) };
        self.line = line;
        self.line.clear();
        self.dropped += u64::from(content.is_none());
        content
    }
}

/// A line without its end.
pub fn parse(line: &[u8], needs_crc: bool) -> Option<Content> {
    let line = line.trim_ascii();
    if line.starts_with(b"{") {
        return json(printable(line)?, needs_crc);
    }
    // What stands before is noise, or a line that broke off: in a field the sign is escaped.
    let content = &line[line.iter().rposition(|byte| *byte == b'$')? + 1..];
    let (content, crc) = content.split_at(content.iter().position(|byte| *byte == b'*')?);
    let crc = printable(&crc[1..])?;
    if !holds(content, crc, needs_crc) {
        return None;
    }
    let fields = || content.split(|byte| *byte == b',').map(|field| printable(field).and_then(unescaped));
    match fields().collect() {
        Some(fields) => Some(Content::Fields(fields)),
        // With a sum it came as it was sent, and would come so again.
        None if crc != NO_CRC => Some(Content::Unreadable(fields().map_while(|field| field).collect())),
        None => None,
    }
}

fn printable(bytes: &[u8]) -> Option<&str> {
    let is_printable = bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
    str::from_utf8(bytes).ok().filter(|_| is_printable)
}

fn holds(content: &[u8], crc: &str, needs_crc: bool) -> bool {
    if crc == NO_CRC {
        return !needs_crc;
    }
    let is_hex = crc.len() == 4 && crc.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex && u16::from_str_radix(crc, 16) == Ok(crc16(content))
}

/// JSON may carry the same checksum behind its last brace.
fn json(text: &str, needs_crc: bool) -> Option<Content> {
    let end = text.rfind('}')? + 1;
    let (content, rest) = text.split_at(end);
    let fits = match rest.strip_prefix('*') {
        Some(crc) => holds(content.as_bytes(), crc, needs_crc),
        None => rest.is_empty() && !needs_crc,
    };
    fits.then(|| Content::Json(content.to_owned()))
}

fn unescaped(field: &str) -> Option<String> {
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
            Content::Fields(fields) => Some(fields),
            Content::Json(_) | Content::Unreadable(_) => None,
        }
    }

    #[test]
    fn what_came_as_it_was_sent_and_cannot_be_read_is_told_from_what_was_damaged() {
        for content in
            [&b"SUB,a-1,1,0,12,%zz"[..], b"SUB,a-1,1,0,12,x%2", b"SUB,a-1,1,0,12,\xff", b"SUB,a-1,1,0,12,\x01"]
        {
            let line = |crc: &str| [b"$", content, b"*", crc.as_bytes()].concat();
            let read: Vec<String> = ["SUB", "a-1", "1", "0", "12"].map(str::to_owned).into();
            let whole = line(&format!("{:04X}", crc16(content)));
            assert_eq!(parse(&whole, true), Some(Content::Unreadable(read)));
            assert_eq!((parse(&line("0000"), true), parse(&line("-"), false)), (None, None));
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
            prop_assert_eq!(parse(line.trim_ascii_end(), true), Some(Content::Fields(all)));
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
