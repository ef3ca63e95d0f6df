//! What HTTP demands of a request's head, to the letter, and where each request ends.
//!
//! Owns the refusals of heads that two readers could understand in two ways (RFC 9112): the HTTP library behind it is
//! more lenient. Reads bytes, answers verdicts; never touches a socket.

/// Longest head: request line and headers.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Longest request line.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Most headers of one request. It is hyper's own limit: told another one, hyper takes its list of them from the heap.
const HEADERS_MAX: usize = 100;

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadFault {
    /// HTTP status.
    pub status: u16,
    /// Stable word.
    pub code: &'static str,
    /// What is wrong.
    pub message: &'static str,
}

const fn bad(message: &'static str) -> HeadFault {
    HeadFault { status: 400, code: "invalid_http", message }
}

/// The head did not come in time.
pub const TOO_SLOW: HeadFault =
    HeadFault { status: 408, code: "request_timeout", message: "the request's head came too slowly" };
/// The head is too long.
pub const TOO_LONG: HeadFault =
    HeadFault { status: 431, code: "headers_too_large", message: "the request's head is longer than 32 KiB" };
const TOO_MANY: HeadFault =
    HeadFault { status: 431, code: "headers_too_large", message: "the request has more than 100 headers" };
const URI_TOO_LONG: HeadFault =
    HeadFault { status: 414, code: "uri_too_long", message: "the request line is longer than 8 KiB" };
const VERSION: HeadFault =
    HeadFault { status: 505, code: "http_version", message: "speak HTTP/1.1 here, without a preface of HTTP/2" };
const CODING: HeadFault =
    HeadFault { status: 501, code: "transfer_encoding", message: "the only Transfer-Encoding understood is chunked" };

/// How the body after a head is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes; none is common.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// The end of a head in `bytes`: behind its empty line. Line feeds alone end it too, so that they can be refused.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    let first = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'))?;
    let mut line_empty = false;
    for (at, byte) in bytes.iter().enumerate().skip(first) {
        match byte {
            b'\n' if line_empty => return Some(at + 1),
            b'\n' => line_empty = true,
            b'\r' => {}
            _ => line_empty = false,
        }
    }
    None
}

/// Judges a whole head, its empty line included.
pub fn judge(head: &[u8]) -> Result<Framing, HeadFault> {
    let mut before = 0;
    for byte in head {
        match (before, *byte) {
            (b'\r', b'\n') => {}
            (_, b'\n') | (b'\r', _) => return Err(bad("lines of a head end with CR and LF")),
            (_, b'\r' | b'\t' | 0x20..=0x7e | 0x80..=0xff) => {}
            _ => return Err(bad("a head has no control characters")),
        }
        before = *byte;
    }
    let text = &head[..head.len().saturating_sub(4)];
    let text = &text[text.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(text.len())..];
    let mut lines = text.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let minor = request_line(lines.next().unwrap_or_default())?;
    headers(lines, minor)
}

fn is_token(bytes: &[u8]) -> bool {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    !bytes.is_empty() && bytes.iter().all(allowed)
}

/// The minor version.
fn request_line(line: &[u8]) -> Result<u8, HeadFault> {
    if line.len() > LINE_BYTES_MAX {
        return Err(URI_TOO_LONG);
    }
    let words: Vec<&[u8]> = line.splitn(4, |b| *b == b' ').collect();
    let [method, target, version] = words[..] else {
        return Err(bad("a request line is a method, a path and HTTP/1.1, with one blank between"));
    };
    if !is_token(method) {
        return Err(bad("the method is not one word"));
    }
    let minor = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" => 0,
        _ if version.starts_with(b"HTTP/") => return Err(VERSION),
        _ => return Err(bad("the request line does not end with HTTP/1.1")),
    };
    let absolute = target.starts_with(b"http://") || target.starts_with(b"https://");
    if !(target.starts_with(b"/") || absolute || (target == b"*" && method == b"OPTIONS")) {
        return Err(bad("the request's target is not a path"));
    }
    Ok(minor)
}

fn headers<'a>(lines: impl Iterator<Item = &'a [u8]>, minor: u8) -> Result<Framing, HeadFault> {
    let (mut hosts, mut length, mut chunked, mut count) = (0, None, false, 0);
    for line in lines {
        count += 1;
        if count > HEADERS_MAX {
            return Err(TOO_MANY);
        }
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(bad("a header may not be folded over lines"));
        }
        let colon = line.iter().position(|b| *b == b':').ok_or(bad("a header line has no colon"))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if !is_token(name) {
            return Err(bad("a header's name is not one word right before its colon"));
        }
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
            if value.iter().any(|b| !b.is_ascii_alphanumeric() && !b"-._~%:[]".contains(b)) {
                return Err(bad("Host is not the name of a host"));
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let number = std::str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
            let number = number.and_then(|v| v.parse::<u64>().ok()).ok_or(bad("Content-Length is not one number"))?;
            if length.replace(number).is_some() {
                return Err(bad("Content-Length is given twice"));
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked {
                return Err(bad("Transfer-Encoding is given twice"));
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(CODING);
            }
            chunked = true;
        }
    }
    match (hosts, minor) {
        (1, _) | (0, 0) => {}
        (0, _) => return Err(bad("Host is missing")),
        _ => return Err(bad("Host is given twice")),
    }
    match (chunked, length) {
        (true, Some(_)) => Err(bad("Content-Length and Transfer-Encoding exclude each other")),
        (true, None) if minor == 0 => Err(bad("HTTP/1.0 knows no Transfer-Encoding")),
        (true, None) => Ok(Framing::Chunked),
        (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
    }
}

/// Follows a chunked body to its end, exactly as the reader behind does: where the two disagreed about the end, what
/// follows would reach that reader without being judged. What is wrong in a body is for its reader to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks {
    /// The first digit of a size must come.
    Start,
    /// In a size; the size so far.
    Size(u64),
    /// Behind the size, before an extension or the line's end.
    Blank(u64),
    /// In an extension, up to the line's end.
    Extension(u64),
    /// The line feed behind a size must come.
    SizeFeed(u64),
    /// So many bytes of data are left.
    Data(u64),
    /// The line end behind data must come.
    DataEnd,
    /// Its line feed must come.
    DataFeed,
    /// At the start of a trailer's line; an empty one ends the body.
    Line,
    /// In a trailer.
    Trailer,
    /// The line feed behind a trailer must come.
    TrailerFeed,
    /// The very last line feed must come.
    LastFeed,
}

impl Chunks {
    /// Before the first chunk.
    pub const START: Chunks = Chunks::Start;

    /// Takes bytes in; says how many of them belong to the body once it has ended. `Err` where it is no such body.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<usize>, ()> {
        let mut at = 0;
        while at < bytes.len() {
            if let Chunks::Data(left) = *self {
                let now = left.min((bytes.len() - at) as u64);
                at += now as usize;
                *self = if left == now { Chunks::DataEnd } else { Chunks::Data(left - now) };
            } else {
                at += 1;
                if (*self, bytes[at - 1]) == (Chunks::LastFeed, b'\n') {
                    return Ok(Some(at));
                }
                *self = self.after(bytes[at - 1]).ok_or(())?;
            }
        }
        Ok(None)
    }

    /// The next state outside of data.
    fn after(self, byte: u8) -> Option<Chunks> {
        use Chunks::{
            Blank, DataEnd, DataFeed, Extension, LastFeed, Line, Size, SizeFeed, Start, Trailer, TrailerFeed,
        };
        let digit = char::from(byte).to_digit(16).map(u64::from);
        Some(match (self, byte) {
            (Start, _) => Size(digit?),
            (Size(size), _) if digit.is_some() => Size(size.checked_mul(16)?.checked_add(digit?)?),
            (Size(size) | Blank(size), b' ' | b'\t') => Blank(size),
            (Size(size) | Blank(size), b';') => Extension(size),
            (Size(size) | Blank(size) | Extension(size), b'\r') => SizeFeed(size),
            (Extension(size), _) if byte != b'\n' => Extension(size),
            (SizeFeed(0) | TrailerFeed, b'\n') => Line,
            (SizeFeed(size), b'\n') => Chunks::Data(size),
            (DataEnd, b'\r') => DataFeed,
            (DataFeed, b'\n') => Start,
            (Line, b'\r') => LastFeed,
            (Trailer, b'\r') => TrailerFeed,
            (Line | Trailer, _) => Trailer,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(head: &str) -> Result<Framing, u16> {
        judge(head.as_bytes()).map_err(|fault| fault.status)
    }

    #[test]
    fn a_head_is_found_and_judged() {
        let head = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        assert_eq!(head_end(head), Some(head.len() - 4));
        assert_eq!(judge(&head[..head.len() - 4]), Ok(Framing::Length(0)));
        assert_eq!(head_end(b"GET / HTTP/1.1\r\nHost: a\r\n\r"), None);
        assert_eq!(head_end(b"GET / HTTP/1.1\nHost: a\n\nx"), Some(24));
        assert_eq!(verdict("POST /x HTTP/1.1\r\nhost: a\r\nContent-Length: 7\r\n\r\n"), Ok(Framing::Length(7)));
        assert_eq!(verdict("POST /x HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"), Ok(Framing::Chunked));
        assert_eq!(verdict("GET http://a/x HTTP/1.1\r\nhost: a\r\n\r\n"), Ok(Framing::Length(0)));
        assert_eq!(verdict("GET / HTTP/1.0\r\n\r\n"), Ok(Framing::Length(0)));
    }

    #[test]
    fn two_meanings_are_none() {
        for (head, status) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET / HTTP/1.1\nHost: a\n\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nx: \0\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n y\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            ("GET /\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("PRI * HTTP/2.0\r\n\r\n", 505),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ] {
            assert_eq!(verdict(head), Err(status), "{head:?}");
        }
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: 1\r\n".repeat(HEADERS_MAX));
        assert_eq!(verdict(&many), Err(431));
        assert_eq!(verdict(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(LINE_BYTES_MAX))), Err(414));
    }

    /// The HTTP library takes a line feed alone for the beginning of a trailer: whoever takes it for the end judges what
    /// follows as a head, and what follows that not at all.
    #[test]
    fn a_line_feed_alone_ends_no_chunked_body() {
        let body = b"0\r\n\nGET / HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!({ Chunks::START }.feed(body), Ok(Some(body.len())));
        assert_eq!({ Chunks::START }.feed(b"0\r\nx: y\n\nGET"), Ok(None));
    }

    #[test]
    fn a_chunked_body_ends_where_it_ends() {
        let body = b"5;a=b\r\nhello\r\n1\r\nx\r\n0\r\nTrailer: 1\r\n\r\nGET";
        for piece in [1, 2, 7, 100] {
            let (mut chunks, mut at) = (Chunks::START, 0);
            let end = body.chunks(piece).find_map(|part| {
                let end = chunks.feed(part).unwrap().map(|end| at + end);
                at += part.len();
                end
            });
            assert_eq!(end, Some(body.len() - 3));
        }
        for wrong in
            [&b"0x5\r\n"[..], b"fffffffffffffffff\r\n", b"-1\r\n", b"\r\n", b"5\nhello", b"5;a\nhello", b"1\r\nxy\r\n"]
        {
            let mut chunks = Chunks::START;
            assert_eq!(chunks.feed(wrong), Err(()));
        }
    }
}
