//! Reads JSON as it comes, in pieces of any size: is it whole, how deep is it, where do the top-level values stand.
//!
//! Owns the grammar, the limit of depth and the byte positions; keeps nothing but the few short values that decisions
//! need. Memory and file go through the same code, so they cannot disagree.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr2;

/// Deepest nesting of JSON that is taken, from clients and from uplinks: what serde_json takes, far above what any
/// API asks for, and a bound for every parser behind us.
pub const JSON_DEPTH_MAX: usize = 128;
/// Longest kept value: a model's name or `stream_options`; a longer one is marked as such.
const VALUE_BYTES_MAX: usize = 1024;
/// Longest top-level key that can be one of ours: 21 letters, each as a six-byte escape.
const KEY_BYTES_MAX: usize = 21 * 6;

/// The top-level members that decisions look at, and the name that an answer has.
pub const FIELDS: [&str; 15] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "temperature",
    "background",
    "store",
    "id",
    "messages",
    "prompt",
    "input",
];

/// So many of them are read; of the others it matters that they are there.
const FIELDS_READ: usize = 12;

/// One top-level member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where its value stands, in bytes from the start.
    pub at: Range<u64>,
    /// The value's own bytes, up to `VALUE_BYTES_MAX`; of a prompt only the first one.
    pub start: Vec<u8>,
}

impl Member {
    /// Whether `start` is the whole value.
    pub fn is_whole(&self) -> bool {
        self.start.len() as u64 == self.at.end - self.at.start
    }
}

/// What a JSON object looks like from above.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    members: [Option<Member>; FIELDS.len()],
    /// Somewhere in the prompt stands an `image_url`.
    pub has_picture: bool,
}

impl Layout {
    /// A member by its name, where it is there.
    pub fn get(&self, field: &str) -> Option<&Member> {
        let at = FIELDS.iter().position(|name| *name == field)?;
        self.members[at].as_ref()
    }
}

/// Why it is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not JSON, not UTF-8, or not an object.
    #[error("the body is not a JSON object (line {line}, column {column}); send valid JSON")]
    Syntax {
        /// Line of the fault, from 1.
        line: u64,
        /// Column of the fault in bytes, from 1.
        column: u64,
    },
    /// Nested too deeply.
    #[error("the body's JSON is nested more than {JSON_DEPTH_MAX} deep")]
    Deep,
    /// One of [`FIELDS`] stands there twice: who reads the first and who reads the last would disagree.
    #[error("\"{0}\" is given twice")]
    Twice(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A value must come.
    Value,
    /// A value or the end of the list.
    FirstItem,
    /// A key or the end of the object.
    FirstKey,
    /// A key must come.
    Key,
    Colon,
    /// A comma or the end of what is open.
    Next,
    Text,
    Escape,
    /// So many hexadecimal digits are left.
    Hex(u8),
    /// Rest of `true`, `false`, `null`.
    Word(&'static [u8]),
    Number(Digits),
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Digits {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

/// The state between two pieces.
#[derive(Debug)]
pub struct Scan {
    step: Step,
    /// One bit per open container: is it an object.
    open: [bool; JSON_DEPTH_MAX],
    depth: usize,
    at: u64,
    line: u64,
    line_start: u64,
    /// The text being read is a key of the whole object.
    in_key: bool,
    /// The text being read is a key further inside.
    in_inner_key: bool,
    /// The value that comes is a picture.
    picture_next: bool,
    key: Vec<u8>,
    key_too_long: bool,
    /// The member whose value is being read.
    field: Option<usize>,
    value_start: u64,
    value: Vec<u8>,
    /// The beginning of a character that ended a piece.
    partial: Vec<u8>,
    layout: Layout,
    fault: Option<Fault>,
}

impl Default for Scan {
    fn default() -> Self {
        Scan {
            step: Step::Value,
            open: [false; JSON_DEPTH_MAX],
            depth: 0,
            at: 0,
            line: 1,
            line_start: 0,
            in_key: false,
            in_inner_key: false,
            picture_next: false,
            key: Vec::new(),
            key_too_long: false,
            field: None,
            value_start: 0,
            value: Vec::new(),
            partial: Vec::new(),
            layout: Layout::default(),
            fault: None,
        }
    }
}

impl Scan {
    /// The next piece; after a fault nothing more is looked at.
    pub fn feed(&mut self, piece: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        let begin = self.at;
        let is_plain = self.partial.is_empty() && is_plain(piece);
        let wrong_at = if is_plain { None } else { self.characters(piece).err() };
        // What is wrong before it comes first, however the bytes were cut.
        let good = wrong_at.map_or(piece.len(), |at| at.saturating_sub(begin) as usize);
        self.grammar(&piece[..good], is_plain);
        if let Some(at) = wrong_at.filter(|_| self.fault.is_none()) {
            self.at = at;
            self.fault = Some(self.syntax());
        }
    }

    fn grammar(&mut self, mut rest: &[u8], is_plain: bool) {
        while let Some(byte) = rest.first() {
            let taken = if self.step == Step::Text { ordinary_text(rest, is_plain) } else { 0 };
            if taken > 0 {
                self.keep(&rest[..taken]);
                self.at += taken as u64;
                rest = &rest[taken..];
                continue;
            }
            if let Err(fault) = self.byte(*byte) {
                self.fault = Some(fault);
                return;
            }
            rest = &rest[1..];
        }
    }

    /// Whether what has been fed is the beginning of an object, and not all of it.
    pub fn is_cut(&self) -> bool {
        self.fault.is_none() && (self.step != Step::End || self.depth > 0)
    }

    /// Whether it is nested more than [`JSON_DEPTH_MAX`] deep.
    pub fn is_deep(&self) -> bool {
        self.fault == Some(Fault::Deep)
    }

    /// What it was, once everything has been fed.
    pub fn finish(mut self) -> Result<Layout, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.step != Step::End || self.depth > 0 || !self.partial.is_empty() {
            return Err(self.syntax());
        }
        Ok(std::mem::take(&mut self.layout))
    }

    fn syntax(&self) -> Fault {
        Fault::Syntax { line: self.line, column: self.at.saturating_sub(self.line_start) + 1 }
    }

    /// Checks UTF-8 over the seams of the pieces; an error is where the character begins that is none.
    fn characters(&mut self, piece: &[u8]) -> Result<(), u64> {
        let mut begin = 0;
        while !self.partial.is_empty() && begin < piece.len() {
            self.partial.push(piece[begin]);
            begin += 1;
            match std::str::from_utf8(&self.partial) {
                Ok(_) => self.partial.clear(),
                Err(e) if e.error_len().is_some() => {
                    return Err(self.at + begin as u64 - self.partial.len() as u64);
                }
                Err(_) => {}
            }
        }
        match std::str::from_utf8(&piece[begin..]) {
            Ok(_) => Ok(()),
            Err(e) if e.error_len().is_some() => Err(self.at + (begin + e.valid_up_to()) as u64),
            Err(e) => {
                self.partial.extend_from_slice(&piece[begin + e.valid_up_to()..]);
                Ok(())
            }
        }
    }

    /// Keeps the bytes of a key, and of a value that is wanted, within their bounds.
    fn keep(&mut self, bytes: &[u8]) {
        let in_prompt = self.field.is_some_and(|field| field >= FIELDS_READ);
        if self.in_key || (self.in_inner_key && in_prompt) {
            let room = KEY_BYTES_MAX.saturating_sub(self.key.len());
            self.key_too_long |= bytes.len() > room;
            self.key.extend_from_slice(&bytes[..bytes.len().min(room)]);
        } else if let Some(field) = self.field {
            // Of a prompt no more is kept than tells its kind.
            let limit = if field < FIELDS_READ { VALUE_BYTES_MAX } else { 1 };
            let room = limit.saturating_sub(self.value.len());
            self.value.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    fn byte(&mut self, b: u8) -> Result<(), Fault> {
        let blank = matches!(b, b' ' | b'\t' | b'\n' | b'\r');
        match self.step {
            Step::Number(digits) => self.number(digits, b),
            Step::Text => self.text(b),
            Step::Escape | Step::Hex(_) => self.escape(b),
            Step::Word(rest) => self.word(rest, b),
            _ if blank => {
                self.blank(b);
                Ok(())
            }
            Step::FirstItem if b == b']' => self.close(b),
            Step::Value | Step::FirstItem => self.value(b),
            Step::FirstKey if b == b'}' => self.close(b),
            Step::FirstKey | Step::Key if b == b'"' => self.begin_key(),
            Step::Colon if b == b':' => {
                self.keep_inside(b":");
                self.go(Step::Value)
            }
            Step::Next => self.next(b),
            Step::FirstKey | Step::Key | Step::Colon | Step::End => Err(self.syntax()),
        }
    }

    /// A number ends with the first byte that is none of it.
    fn number(&mut self, digits: Digits, b: u8) -> Result<(), Fault> {
        match next_digits(digits, b) {
            Some(next) => {
                self.keep(&[b]);
                self.go(Step::Number(next))
            }
            None if is_number_end(digits) => {
                self.value_done()?;
                self.byte(b)
            }
            None => Err(self.syntax()),
        }
    }

    /// Blanks inside a wanted list or object belong to its bytes.
    fn blank(&mut self, b: u8) {
        self.keep_inside(&[b]);
        self.at += 1;
        if b == b'\n' {
            (self.line, self.line_start) = (self.line + 1, self.at);
        }
    }

    fn begin_key(&mut self) -> Result<(), Fault> {
        self.keep_inside(b"\"");
        self.in_key = self.depth == 1;
        self.in_inner_key = !self.in_key;
        self.key.clear();
        self.key_too_long = false;
        self.go(Step::Text)
    }

    fn escape(&mut self, b: u8) -> Result<(), Fault> {
        let next = match (self.step, b) {
            (Step::Escape, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Step::Text,
            (Step::Escape, b'u') => Step::Hex(4),
            (Step::Hex(1), _) if b.is_ascii_hexdigit() => Step::Text,
            (Step::Hex(left), _) if b.is_ascii_hexdigit() => Step::Hex(left - 1),
            _ => return Err(self.syntax()),
        };
        self.keep(&[b]);
        self.go(next)
    }

    fn word(&mut self, rest: &'static [u8], b: u8) -> Result<(), Fault> {
        if rest.first() != Some(&b) {
            return Err(self.syntax());
        }
        self.keep(&[b]);
        if rest.len() > 1 {
            return self.go(Step::Word(&rest[1..]));
        }
        self.at += 1;
        self.value_done()
    }

    #[allow(clippy::unnecessary_wraps, reason = "the last step of many that can fail")]
    fn go(&mut self, step: Step) -> Result<(), Fault> {
        self.step = step;
        self.at += 1;
        Ok(())
    }

    /// Bytes between values, where they are part of a wanted one.
    fn keep_inside(&mut self, bytes: &[u8]) {
        if self.depth > 1 && !self.in_key {
            self.keep(bytes);
        }
    }

    /// The first byte of a value.
    fn value(&mut self, b: u8) -> Result<(), Fault> {
        if std::mem::take(&mut self.picture_next) {
            // Some clients write out what is not there.
            self.layout.has_picture |= b != b'n';
        }
        if self.depth == 0 && b != b'{' {
            return Err(self.syntax());
        }
        if self.depth == 1 {
            self.value_start = self.at;
            self.value.clear();
        }
        match b {
            b'{' | b'[' => {
                if self.depth == JSON_DEPTH_MAX {
                    return Err(Fault::Deep);
                }
                if self.depth > 0 {
                    self.keep(&[b]);
                }
                self.open[self.depth] = b == b'{';
                self.depth += 1;
                return self.go(if b == b'{' { Step::FirstKey } else { Step::FirstItem });
            }
            _ => self.keep(&[b]),
        }
        match b {
            b'"' => self.go(Step::Text),
            b't' => self.go(Step::Word(b"rue")),
            b'f' => self.go(Step::Word(b"alse")),
            b'n' => self.go(Step::Word(b"ull")),
            b'-' => self.go(Step::Number(Digits::Minus)),
            b'0' => self.go(Step::Number(Digits::Zero)),
            b'1'..=b'9' => self.go(Step::Number(Digits::Whole)),
            _ => Err(self.syntax()),
        }
    }

    fn text(&mut self, b: u8) -> Result<(), Fault> {
        match b {
            b'"' if self.in_key => {
                self.in_key = false;
                self.field = self.known_field()?;
                self.go(Step::Colon)
            }
            b'"' => {
                self.picture_next = self.in_inner_key && self.is_picture_key();
                self.keep(b"\"");
                if std::mem::take(&mut self.in_inner_key) {
                    return self.go(Step::Colon);
                }
                self.at += 1;
                self.value_done()
            }
            b'\\' => {
                self.keep(b"\\");
                self.go(Step::Escape)
            }
            _ => Err(self.syntax()),
        }
    }

    fn next(&mut self, b: u8) -> Result<(), Fault> {
        if self.depth == 0 {
            return Err(self.syntax());
        }
        match (b, self.open[self.depth - 1]) {
            (b',', true) => {
                self.keep_inside(b",");
                self.go(Step::Key)
            }
            (b',', false) => {
                self.keep_inside(b",");
                self.go(Step::Value)
            }
            (b'}', true) | (b']', false) => self.close(b),
            _ => Err(self.syntax()),
        }
    }

    fn close(&mut self, b: u8) -> Result<(), Fault> {
        self.depth -= 1;
        if self.depth > 0 {
            self.keep(&[b]);
        }
        self.at += 1;
        self.value_done()
    }

    /// A value has ended just before `at`.
    #[allow(clippy::unnecessary_wraps, reason = "the last step of many that can fail")]
    fn value_done(&mut self) -> Result<(), Fault> {
        if self.depth == 1
            && let Some(field) = self.field.take()
        {
            let start = std::mem::take(&mut self.value);
            self.layout.members[field] = Some(Member { at: self.value_start..self.at, start });
        }
        self.step = if self.depth == 0 { Step::End } else { Step::Next };
        Ok(())
    }

    /// The key as it is meant. Most hold no escape and are read where they stand.
    fn key_meant(&self) -> Option<Cow<'_, [u8]>> {
        if !self.key.contains(&b'\\') {
            return Some(Cow::Borrowed(&self.key));
        }
        let key: String = serde_json::from_slice(&[b"\"", &self.key[..], b"\""].concat()).ok()?;
        Some(Cow::Owned(key.into_bytes()))
    }

    /// Outside a prompt no inner key is kept.
    fn is_picture_key(&self) -> bool {
        self.key_meant().is_some_and(|key| *key == *b"image_url")
    }

    fn known_field(&self) -> Result<Option<usize>, Fault> {
        if self.key_too_long {
            return Ok(None);
        }
        let known = self.key_meant().and_then(|key| FIELDS.iter().position(|name| name.as_bytes() == &*key));
        let Some(field) = known else { return Ok(None) };
        // Nothing is decided by a name: the last one stands, as with other readers.
        let decides = FIELDS[field] != "id";
        if decides && self.layout.members[field].is_some() { Err(Fault::Twice(FIELDS[field])) } else { Ok(Some(field)) }
    }
}

/// How many bytes from here are ordinary text: no quote, no escape, no control character. Pictures are megabytes of this.
fn ordinary_text(bytes: &[u8], is_plain: bool) -> usize {
    let end = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
    if is_plain { end } else { first_control(&bytes[..end]).unwrap_or(end) }
}

// Bytes are looked at eight at a time, and there is one branch for 64.
const ONES: u64 = u64::MAX / 255;
const HIGHS: u64 = ONES << 7;
const BLOCK: usize = 64;

/// Whether all of it is ASCII without control characters, as pictures are: then nothing else need be asked of its characters.
fn is_plain(bytes: &[u8]) -> bool {
    // Written out: built for size, a loop over the eight takes half as long again.
    let is_plain_block = |block: &[u8; BLOCK]| {
        let eights = block.as_chunks().0;
        // The high bit of a byte says that it is none; behind one below 0x20 a borrow may mark others, which changes nothing.
        let others = |n: usize| {
            let word = u64::from_le_bytes(eights[n]);
            word | word.wrapping_sub(ONES * 0x20)
        };
        let found = others(0) | others(1) | others(2) | others(3) | others(4) | others(5) | others(6) | others(7);
        found & HIGHS == 0
    };
    let (blocks, rest) = bytes.as_chunks();
    blocks.iter().all(is_plain_block) && rest.iter().all(|byte| (0x20..0x80).contains(byte))
}

/// Where the first control character stands.
fn first_control(bytes: &[u8]) -> Option<usize> {
    // Exact up to the first byte below 0x20; behind it a borrow may mark others, which changes nothing.
    let controls = |eight: &[u8; 8]| {
        let word = u64::from_le_bytes(*eight);
        word.wrapping_sub(ONES * 0x20) & !word & HIGHS
    };
    let is_clean =
        |block: &&[u8; BLOCK]| block.as_chunks().0.iter().fold(0, |found, eight| found | controls(eight)) == 0;
    let clean = bytes.as_chunks().0.iter().take_while(is_clean).count() * BLOCK;
    bytes[clean..].iter().position(|byte| *byte < 0x20).map(|at| clean + at)
}

fn next_digits(now: Digits, b: u8) -> Option<Digits> {
    use Digits::{E, Exponent, Fraction, Minus, Point, Sign, Whole, Zero};
    Some(match (now, b) {
        (Minus, b'0') => Zero,
        (Minus, b'1'..=b'9') | (Whole, b'0'..=b'9') => Whole,
        (Zero | Whole, b'.') => Point,
        (Zero | Whole | Fraction, b'e' | b'E') => E,
        (Point | Fraction, b'0'..=b'9') => Fraction,
        (E, b'+' | b'-') => Sign,
        (E | Sign | Exponent, b'0'..=b'9') => Exponent,
        _ => return None,
    })
}

fn is_number_end(digits: Digits) -> bool {
    matches!(digits, Digits::Zero | Digits::Whole | Digits::Fraction | Digits::Exponent)
}
