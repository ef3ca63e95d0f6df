//! The outcome log: one small line for each request that ended, kept apart from the database.
//!
//! Owns the answer to "did this request end already" when the database is lost or an older state of it comes
//! back; asked before anything salvaged is queued again. Never the first to know: a line is written after its
//! commit and before anybody is told. So no line is without its commit; and a commit whose line is missing was
//! told to nobody, which a crash in the middle of a send is as well.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::files;
use super::{Options, SpoolError, codes};
use crate::control::types::State;

/// Bytes of a line: magic 1, state 1, nothing 2, version 4, sequence number 8, powered-on ms 8, the first 12 of
/// SHA-256 of the id, the first 4 of SHA-256 of all these. Fixed, so that a torn line spoils no other.
const LINE: usize = 40;
const MAGIC: u8 = 0xa7;
/// A file of the log is at least this large before the next begins; there are two.
const FILE_BYTES_MIN: u64 = 4 << 20;
/// More ended requests than the limits allow may stand between two sweeps.
const SLACK_LINES: u64 = 16_384;
/// Lines kept in memory while the log cannot be written.
const PENDING_MAX: usize = 65_536;
/// What a row that was taken back before anybody was told counts as.
const TAKEN_BACK: u8 = 0xfe;

/// One line to be.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) seq: u64,
    pub(super) id: String,
    /// `None`: taken back, never acknowledged.
    pub(super) state: Option<State>,
    /// The row's version as it ended; a copy with a higher one was queued again since.
    pub(super) version: u64,
}

/// The log, open for appending.
#[derive(Debug)]
pub(super) struct Outcomes {
    dir: PathBuf,
    file: Option<File>,
    length: u64,
    file_bytes: u64,
    pending: Vec<u8>,
}

impl Outcomes {
    /// Opens the log, making it where there is none. A torn last line will be written over.
    pub(super) fn open(options: &Options) -> Result<Outcomes, SpoolError> {
        // Lines are given up a whole file at a time. With this size, more requests ended since than are kept, so
        // that whatever a line given up belongs to is pruned.
        let lines = options.max_requests.max(super::sweep::FINISHED_MIN).saturating_add(SLACK_LINES);
        let file_bytes = lines.saturating_mul(LINE as u64).max(FILE_BYTES_MIN);
        let mut log =
            Outcomes { dir: options.data_dir.clone(), file: None, length: 0, file_bytes, pending: Vec::new() };
        log.attach()?;
        Ok(log)
    }

    fn attach(&mut self) -> Result<(), SpoolError> {
        let file = files::private().create(true).truncate(false).open(current(&self.dir))?;
        let length = file.metadata()?.len();
        if length == 0 {
            files::sync_dir(&self.dir)?;
        }
        self.length = length - length % LINE as u64;
        self.file = Some(file);
        Ok(())
    }

    /// Writes and syncs the lines. What cannot be written now is written with the next; after a failed sync the
    /// file is opened anew and its last lines are written once more, never synced once more.
    pub(super) fn append(&mut self, lines: &[Line], powered_ms: u64) -> Result<(), SpoolError> {
        for line in lines {
            if self.pending.len() < PENDING_MAX * LINE {
                self.pending.extend(encode(line, powered_ms));
            }
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let done = self.flush();
        if done.is_err() {
            self.file = None;
        }
        done
    }

    fn flush(&mut self) -> Result<(), SpoolError> {
        if self.file.is_none() {
            self.attach()?;
        }
        if self.length >= self.file_bytes {
            self.turn_over()?;
        }
        let Some(file) = &self.file else { return Ok(()) };
        file.write_all_at(&self.pending, self.length)?;
        file.sync_data()?;
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn turn_over(&mut self) -> Result<(), SpoolError> {
        self.file = None;
        std::fs::rename(current(&self.dir), older(&self.dir))?;
        self.attach()
    }
}

/// Whether requests have ended in this folder.
pub(super) fn tell_of_some(dir: &Path) -> bool {
    [current(dir), older(dir)].iter().any(|file| file.metadata().is_ok_and(|log| log.len() > 0))
}

fn current(dir: &Path) -> PathBuf {
    dir.join("outcomes.log")
}

fn older(dir: &Path) -> PathBuf {
    dir.join("outcomes.log.1")
}

fn encode(line: &Line, powered_ms: u64) -> [u8; LINE] {
    let mut bytes = [0; LINE];
    bytes[0] = MAGIC;
    bytes[1] = line.state.map_or(TAKEN_BACK, |state| codes::state_code(state) as u8);
    bytes[4..8].copy_from_slice(&u32::try_from(line.version).unwrap_or(u32::MAX).to_le_bytes());
    bytes[8..16].copy_from_slice(&line.seq.to_le_bytes());
    bytes[16..24].copy_from_slice(&powered_ms.to_le_bytes());
    bytes[24..36].copy_from_slice(&name(&line.id));
    let sum = Sha256::digest(&bytes[..36]);
    bytes[36..].copy_from_slice(&sum[..4]);
    bytes
}

fn name(id: &str) -> [u8; 12] {
    let mut name = [0; 12];
    name.copy_from_slice(&Sha256::digest(id)[..12]);
    name
}

/// What the log says; in memory only while something is being salvaged.
#[derive(Debug, Default)]
pub(super) struct Known {
    ended: HashMap<[u8; 12], (u8, u32)>,
    seqs: HashSet<u64>,
    /// The highest sequence number that ended.
    pub(super) highest_seq: u64,
    /// The service clock at the latest end, in powered-on milliseconds.
    pub(super) powered_ms: u64,
    /// Lines that are torn or damaged; they are skipped.
    pub(super) damaged: u64,
}

impl Known {
    /// The state a request ended in, if known, and the version of its row then.
    pub(super) fn ended(&self, id: &str) -> Option<(Option<State>, u64)> {
        let (code, version) = self.ended.get(&name(id))?;
        Some((codes::state(i64::from(*code)).ok(), u64::from(*version)))
    }

    /// Whether a request of this number ended, under whatever id.
    pub(super) fn has_ended(&self, seq: u64) -> bool {
        self.seqs.contains(&seq)
    }

    /// Adds lines written since the log was read.
    pub(super) fn learn(&mut self, lines: &[Line]) {
        for line in lines {
            self.take(&encode(line, 0));
        }
    }

    fn take(&mut self, line: &[u8; LINE]) {
        if !is_whole(line) {
            self.damaged += 1;
            return;
        }
        let eight = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| line[at + n]));
        let version = u32::from_le_bytes(std::array::from_fn(|n| line[4 + n]));
        self.highest_seq = self.highest_seq.max(eight(8));
        self.seqs.insert(eight(8));
        self.powered_ms = self.powered_ms.max(eight(16));
        // Lines stand in the order of the ends: the last one counts.
        self.ended.insert(std::array::from_fn(|n| line[24 + n]), (line[1], version));
    }
}

/// Reads both files of the log, older first; what cannot be read is as if it were not there.
pub(super) fn read(dir: &Path) -> Known {
    let mut known = Known::default();
    for path in [older(dir), current(dir)] {
        let Ok(bytes) = std::fs::read(path) else { continue };
        let (lines, torn) = bytes.as_chunks::<LINE>();
        for line in lines {
            known.take(line);
        }
        known.damaged += u64::from(!torn.is_empty());
    }
    if known.damaged > 0 {
        tracing::warn!(lines = known.damaged, "the outcome log has damaged lines; they are skipped");
    }
    known
}

/// Leaves damaged lines out of the log's files; each damaged file is kept beside as `<name>.damaged`.
pub(super) fn mend(dir: &Path) -> Result<(), SpoolError> {
    for path in [older(dir), current(dir)] {
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let (lines, torn) = bytes.as_chunks::<LINE>();
        let whole: Vec<u8> = lines.iter().filter(|line| is_whole(line)).flatten().copied().collect();
        if whole.len() + torn.len() == bytes.len() && torn.is_empty() {
            continue;
        }
        let (kept, new) = (beside(&path, ".damaged"), beside(&path, ".new"));
        let file = files::private().create(true).truncate(true).open(&new)?;
        file.write_all_at(&whole, 0)?;
        file.sync_all()?;
        std::fs::copy(&path, &kept)?;
        File::open(&kept)?.sync_all()?;
        std::fs::rename(&new, &path)?;
        files::sync_dir(dir)?;
    }
    Ok(())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn is_whole(line: &[u8; LINE]) -> bool {
    line[0] == MAGIC && Sha256::digest(&line[..36])[..4] == line[36..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64, state: Option<State>, version: u64) -> Line {
        Line { seq, id: format!("r{seq}"), state, version }
    }

    fn log(dir: &Path) -> Outcomes {
        let mut options = super::super::tests::options(dir);
        options.max_requests = 1;
        Outcomes::open(&options).unwrap()
    }

    #[test]
    fn what_was_written_is_known_and_the_last_word_counts() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path()).append(&[line(1, Some(State::Dead), 4), line(2, None, 1)], 70).unwrap();
        log(dir.path()).append(&[line(1, Some(State::Answered), 9)], 80).unwrap();
        let known = read(dir.path());
        assert_eq!(known.ended("r1"), Some((Some(State::Answered), 9)));
        assert_eq!(known.ended("r2"), Some((None, 1)));
        assert_eq!(known.ended("r3"), None);
        assert_eq!((known.highest_seq, known.powered_ms, known.damaged), (2, 80, 0));
    }

    #[test]
    fn torn_and_flipped_lines_are_skipped_and_written_over() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path()).append(&[line(1, Some(State::Dead), 1), line(2, Some(State::Dead), 1)], 1).unwrap();
        let path = current(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] ^= 4;
        bytes.extend([MAGIC; 17]);
        std::fs::write(&path, bytes).unwrap();
        log(dir.path()).append(&[line(3, Some(State::Dead), 1)], 1).unwrap();
        let known = read(dir.path());
        assert_eq!(known.damaged, 1, "the torn line is gone");
        assert!(known.ended("r1").is_none() && known.ended("r2").is_some() && known.ended("r3").is_some());
    }

    #[test]
    fn mending_leaves_the_damaged_lines_out_and_keeps_them_beside() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path()).append(&[line(1, Some(State::Dead), 1), line(2, Some(State::Dead), 1)], 1).unwrap();
        let path = current(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] ^= 4;
        bytes.extend([MAGIC; 17]);
        std::fs::write(&path, &bytes).unwrap();
        mend(dir.path()).unwrap();
        assert_eq!(read(dir.path()).damaged, 0);
        assert!(read(dir.path()).ended("r1").is_none() && read(dir.path()).ended("r2").is_some());
        assert_eq!(std::fs::read(beside(&path, ".damaged")).unwrap(), bytes);
    }

    #[test]
    fn the_log_stays_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        let each = 20_000;
        for start in (0..300_000).step_by(each) {
            let lines: Vec<Line> =
                (start..start + each).map(|seq| line(seq as u64, Some(State::Answered), 1)).collect();
            log.append(&lines, 1).unwrap();
        }
        let size = |path| std::fs::metadata(path).unwrap().len();
        let bytes = size(current(dir.path())) + size(older(dir.path()));
        assert!(bytes <= 2 * (log.file_bytes + (each * LINE) as u64), "{bytes}");
        let known = read(dir.path());
        assert!(known.ended("r299999").is_some() && known.ended("r200000").is_some());
        assert!(known.ended("r0").is_none());
    }
}
