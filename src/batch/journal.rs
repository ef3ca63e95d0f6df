//! What came of a batch's lines: one file for what succeeded, one for what did not, a line each.
//!
//! The files are what callers get in the end, and the batch's memory over a crash: which lines are done is read from
//! them, so the two cannot disagree. Owns their form; a torn end is cut off, and its lines are told anew.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::disk;
use crate::body::{Body, PIECE_BYTES};
use crate::durable;

/// As much of a line as its number stands in.
const HEAD_BYTES: usize = 160;
/// What a line has around its body and its `custom_id`, at most.
const LINE_BYTES: u64 = 512;

/// What came of one line.
#[derive(Debug)]
pub(super) enum LineResult {
    /// The uplink's answer.
    Answer { status: u16, request_id: String, body: Body },
    /// A refusal in OpenAI's shape, the uplink's or ours.
    Refusal { status: u16, request_id: String, body: Body },
    /// No answer at all.
    Nothing { code: &'static str, message: String },
}

/// One line that is done.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) number: u32,
    pub(super) custom_id: String,
    pub(super) came: LineResult,
}

impl Done {
    /// About what its line takes.
    fn bytes(&self) -> u64 {
        let came = match &self.came {
            LineResult::Answer { body, .. } | LineResult::Refusal { body, .. } => body.len(),
            LineResult::Nothing { message, .. } => message.len() as u64,
        };
        came + self.custom_id.len() as u64 + LINE_BYTES
    }
}

/// Both files of a batch.
#[derive(Debug)]
pub(super) struct Journal {
    head: String,
    folder: PathBuf,
    min_free: u64,
    output: Side,
    error: Side,
    done: Vec<bool>,
}

#[derive(Debug)]
struct Side {
    file: File,
    /// Whole lines up to here.
    good: u64,
    lines: u32,
}

impl Journal {
    /// Opens or begins both files of a batch of so many lines, on a disk that keeps so many bytes free; blocks.
    pub(super) fn open(batch: &str, total: u32, output: &Path, error: &Path, min_free: u64) -> io::Result<Journal> {
        let head = format!("{{\"id\":\"batch_req_{}_", batch.trim_start_matches("batch_"));
        let mut done = vec![false; total as usize];
        let output_folder = output.parent().unwrap_or(Path::new(".")).to_owned();
        let output = Side::open(output, &head, &mut done)?;
        let error = Side::open(error, &head, &mut done)?;
        let folder = output_folder;
        Ok(Journal { head, folder, min_free, output, error, done })
    }

    /// Whether a line is done.
    pub(super) fn has(&self, number: u32) -> bool {
        self.done.get(number as usize).copied().unwrap_or(false)
    }

    /// Lines that succeeded, lines that did not.
    pub(super) fn counts(&self) -> (u32, u32) {
        (self.output.lines, self.error.lines)
    }

    /// Writes one line, or nothing at all: what the disk is to keep free is not a batch's either. Blocks.
    pub(super) fn append(&mut self, done: &Done) -> io::Result<()> {
        if disk::free_bytes(&self.folder)? < self.min_free.saturating_add(done.bytes()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // The number comes from a file that may have changed since its lines were counted.
        if self.done.get(done.number as usize).is_none() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let side = if matches!(done.came, LineResult::Answer { .. }) { &mut self.output } else { &mut self.error };
        let result = side.append(&self.head, done);
        match &result {
            Ok(()) => self.done[done.number as usize] = true,
            Err(_) => side.cut()?,
        }
        result
    }

    /// Everything written so far is on disk when this returns; blocks.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.output.file.sync_data()?;
        self.error.file.sync_data()
    }
}

impl Side {
    fn open(path: &Path, head: &str, done: &mut [bool]) -> io::Result<Side> {
        let file = disk::open(path)?;
        if let Some(folder) = path.parent() {
            durable::sync_folder(folder)?;
        }
        let (good, lines) = scan(BufReader::new(&file), head, done)?;
        let mut side = Side { file, good, lines };
        side.cut()?;
        Ok(side)
    }

    /// Takes away what is no whole line.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.good)?;
        self.file.seek(SeekFrom::Start(self.good))?;
        Ok(())
    }

    fn append(&mut self, head: &str, done: &Done) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(PIECE_BYTES, &self.file);
        write!(out, "{head}{}\",\"custom_id\":{}", done.number, json!(done.custom_id))?;
        match &done.came {
            LineResult::Answer { status, request_id, body } | LineResult::Refusal { status, request_id, body } => {
                write!(out, ",\"response\":{{\"status_code\":{status},\"request_id\":\"{request_id}\",\"body\":")?;
                copy_json(body, &mut out)?;
                writeln!(out, "}},\"error\":null}}")?;
            }
            LineResult::Nothing { code, message } => {
                writeln!(out, ",\"response\":null,\"error\":{}}}", json!({"code": code, "message": message}))?;
            }
        }
        out.flush()?;
        drop(out);
        self.good = self.file.stream_position()?;
        self.lines += 1;
        Ok(())
    }
}

/// JSON on one line: a line break stands only between values there, never inside a text.
fn copy_json(body: &Body, out: &mut impl Write) -> io::Result<()> {
    let (mut reader, mut piece) = (body.reader(), vec![0; PIECE_BYTES]);
    loop {
        let n = reader.read(&mut piece)?;
        if n == 0 {
            return Ok(());
        }
        piece[..n].iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        out.write_all(&piece[..n])?;
    }
}

/// Reads whole lines and marks their numbers; stops at the first that is none: its end never came to the disk.
fn scan(mut file: impl BufRead, head: &str, done: &mut [bool]) -> io::Result<(u64, u32)> {
    let (mut good, mut lines) = (0, 0);
    let mut line = Seen::default();
    loop {
        let buffer = file.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        line.add(part);
        let (used, at_end) = (part.len() + usize::from(end.is_some()), buffer.is_empty());
        file.consume(used);
        if at_end {
            return Ok((good, lines));
        }
        if end.is_some() {
            let number = line.number(head).and_then(|number| done.get_mut(number));
            let Some(place) = number.filter(|place| !**place) else { return Ok((good, lines)) };
            *place = true;
            good += line.bytes + 1;
            lines += 1;
            line = Seen::default();
        }
    }
}

/// What has been seen of a line.
#[derive(Debug, Default)]
struct Seen {
    head: Vec<u8>,
    last: u8,
    bytes: u64,
    /// A block that was never written reads as zeros; no JSON has one.
    has_zero: bool,
}

impl Seen {
    fn add(&mut self, part: &[u8]) {
        let room = HEAD_BYTES.saturating_sub(self.head.len());
        self.head.extend_from_slice(&part[..part.len().min(room)]);
        self.last = part.last().copied().unwrap_or(self.last);
        self.bytes += part.len() as u64;
        self.has_zero |= part.contains(&0);
    }

    fn number(&self, head: &str) -> Option<usize> {
        let rest = self.head.strip_prefix(head.as_bytes())?;
        let digits = rest.split(|byte| *byte == b'"').next()?;
        let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
        (self.last == b'}' && !self.has_zero).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(number: u32, came: LineResult) -> Done {
        Done { number, custom_id: format!("c\"{number}"), came }
    }

    fn answer(text: &str) -> LineResult {
        LineResult::Answer { status: 200, request_id: "req_1".to_owned(), body: text.as_bytes().to_vec().into() }
    }

    #[test]
    fn lines_are_json_on_one_line_and_are_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let (output, error) = (dir.path().join("o"), dir.path().join("e"));
        let mut journal = Journal::open("batch_hf_1", 4, &output, &error, 0).unwrap();
        journal.append(&done(2, answer("{\n \"a\": \"b\\n\"\r\n}"))).unwrap();
        journal.append(&done(0, LineResult::Nothing { code: "batch_expired", message: "late".to_owned() })).unwrap();
        journal.sync().unwrap();
        let text = std::fs::read_to_string(&output).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((text.lines().count(), &value["response"]["body"]["a"]), (1, &json!("b\n")));
        assert_eq!((&value["id"], &value["custom_id"]), (&json!("batch_req_hf_1_2"), &json!("c\"2")));
        let again = Journal::open("batch_hf_1", 4, &output, &error, 0).unwrap();
        assert_eq!((again.counts(), again.done), ((1, 1), vec![true, false, true, false]));
    }

    #[test]
    fn what_the_disk_keeps_free_is_not_written_into() {
        let dir = tempfile::tempdir().unwrap();
        let (output, error) = (dir.path().join("o"), dir.path().join("e"));
        let mut journal = Journal::open("batch_hf_1", 1, &output, &error, u64::MAX / 2).unwrap();
        let refused = journal.append(&done(0, answer("{}"))).unwrap_err();
        assert_eq!((refused.kind(), journal.has(0)), (io::ErrorKind::StorageFull, false));
        assert_eq!(std::fs::metadata(&output).unwrap().len(), 0);
    }

    #[test]
    fn a_line_that_was_never_counted_is_no_line() {
        let dir = tempfile::tempdir().unwrap();
        let (output, error) = (dir.path().join("o"), dir.path().join("e"));
        let mut journal = Journal::open("batch_hf_1", 2, &output, &error, 0).unwrap();
        assert_eq!(journal.append(&done(2, answer("{}"))).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!((journal.counts(), std::fs::metadata(&output).unwrap().len()), ((0, 0), 0));
    }

    #[test]
    fn a_torn_end_is_cut_off_wherever_it_was_torn() {
        let dir = tempfile::tempdir().unwrap();
        let (output, error) = (dir.path().join("o"), dir.path().join("e"));
        let mut journal = Journal::open("batch_hf_1", 2, &output, &error, 0).unwrap();
        journal.append(&done(0, answer("{}"))).unwrap();
        let first = std::fs::metadata(&output).unwrap().len() as usize;
        journal.append(&done(1, answer("{\"x\":\"yyyyyyyyyyyyyyyyyyyyy\"}"))).unwrap();
        let whole = std::fs::read(&output).unwrap();
        for cut in first..whole.len() {
            std::fs::write(&output, &whole[..cut]).unwrap();
            let mut journal = Journal::open("batch_hf_1", 2, &output, &error, 0).unwrap();
            assert_eq!((journal.counts().0, journal.has(0), journal.has(1)), (1, true, false), "{cut}");
            journal.append(&done(1, answer("{\"x\":\"yyyyyyyyyyyyyyyyyyyyy\"}"))).unwrap();
            assert_eq!(std::fs::read(&output).unwrap(), whole);
        }
        let mut holed = whole;
        let at = first + 20;
        holed[at..at + 8].fill(0);
        std::fs::write(&output, holed).unwrap();
        assert!(!Journal::open("batch_hf_1", 2, &output, &error, 0).unwrap().has(1));
    }
}
