//! The second pass: one request at a time, with its body and answers, each proven by its hash.
//!
//! Owns what is given out; never gives bytes whose hash does not hold.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rusqlite::types::Value;
use sha2::{Digest, Sha256};

use super::images::{Image, Images};
use super::index::{self, Index, Place, VIEWS};
use super::report::{Lost, Report};
use super::rows::{self, Worth};
use super::{pages, record};
use crate::control::types::State;
use crate::spool::adopt::is_about_an_answer;
use crate::spool::store::DAMAGED;
use crate::spool::{codes, files};

/// Copies of one body or answer that are tried.
const COPIES_MAX: usize = 16;

/// Where a request's body is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::spool) enum Body {
    /// The request is over and its body was dropped.
    NotKept,
    /// The bytes; their hash holds.
    Inline(Vec<u8>),
    /// The name of the file in `bodies/`; its hash holds.
    File(String),
    /// It should be there and is not, or not as it was accepted; why.
    Lost(&'static str),
}

/// One answer; its hash holds.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::spool) struct Answer {
    /// The columns of `answer` before `sum`, bytes included.
    pub(in crate::spool) values: Vec<Value>,
}

impl Answer {
    /// The local model's.
    pub(in crate::spool) fn is_local(&self) -> bool {
        rows::integer(&self.values, 1) == Some(1)
    }
}

/// One request as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::spool) struct Found {
    /// The columns of `request` before `version`, in the table's order.
    pub(in crate::spool) values: Vec<Value>,
    /// How often it was changed.
    pub(in crate::spool) version: i64,
    /// Its sum holds; else it is from before there were sums and makes sense.
    pub(in crate::spool) verified: bool,
    /// A newer image of it is damaged: where it stands may be behind.
    pub(in crate::spool) superseded: bool,
    /// SQLite drops the frame of the log in which it stands.
    pub(in crate::spool) is_dropped: bool,
    /// It stands on a torn frame: its page may be one of long ago.
    pub(in crate::spool) is_doubtful: bool,
    /// Its source's name, where that is left.
    pub(in crate::spool) source: Option<String>,
    /// Its body.
    pub(in crate::spool) body: Body,
    /// Its answers, those that are whole.
    pub(in crate::spool) answers: Vec<Answer>,
}

impl Found {
    /// Its sequence number.
    pub(in crate::spool) fn seq(&self) -> u64 {
        rows::integer(&self.values, 0).and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
    }

    /// Its id.
    pub(in crate::spool) fn id(&self) -> &str {
        rows::text(&self.values, rows::ID).unwrap_or_default()
    }

    /// Damage of it was found before and stands in its record.
    fn is_told(&self) -> bool {
        rows::text(&self.values, rows::REASON) == Some(DAMAGED)
    }

    /// Whether it ended with an answer and an earlier send may have brought one that was kept: labelled ones had such a
    /// send, and one that was queued again by hand has its last error still.
    fn may_have_had_others(&self) -> bool {
        let reason = rows::text(&self.values, rows::REASON);
        let answered = self.state_code() == codes::state_code(State::Answered);
        let ended_with_it = answered || reason.is_some_and(is_about_an_answer);
        let was_sent_before = rows::integer(&self.values, rows::MAYBE_BILLED) != Some(0);
        ended_with_it && (was_sent_before || rows::text(&self.values, rows::ERROR_KIND).is_some())
    }

    /// The code of its state.
    pub(in crate::spool) fn state_code(&self) -> i64 {
        rows::integer(&self.values, rows::STATE).unwrap_or(0)
    }

    /// The number of its source.
    pub(in crate::spool) fn source_id(&self) -> i64 {
        rows::integer(&self.values, rows::SOURCE_ID).unwrap_or(0)
    }

    /// The names of the files it has.
    pub(super) fn files(&self) -> impl Iterator<Item = String> + '_ {
        let answers = self.answers.iter().filter_map(|a| rows::text(&a.values, rows::ANSWER_FILE));
        rows::text(&self.values, rows::BODY_FILE).into_iter().chain(answers).map(str::to_owned)
    }

    /// Says that a part of it is lost.
    pub(super) fn loss(&self, what: &'static str, why: &'static str) -> Lost {
        Lost {
            seq: Some(self.seq()),
            id: Some(self.id().to_owned()),
            state: Some(self.state_code()),
            what,
            why,
            is_doubtful: false,
        }
    }

    /// Bytes it brings along.
    pub(super) fn bytes(&self) -> usize {
        let body = if let Body::Inline(bytes) = &self.body { bytes.len() } else { 0 };
        let answers = self.answers.iter().filter_map(|a| rows::blob(&a.values, rows::ANSWER_BYTES)).map(<[u8]>::len);
        body + answers.sum::<usize>()
    }
}

/// Reads rows at the places the index knows.
pub(super) struct Reader<'a> {
    pub(super) images: &'a Images,
    pub(super) index: &'a Index,
    pub(super) budget: &'a mut u64,
}

impl Reader<'_> {
    /// One request with all that belongs to it.
    pub(super) fn read(
        &mut self,
        place: &Place,
        superseded: bool,
        bodies: &Path,
        report: &mut Report,
    ) -> Option<Found> {
        let good = |values| Some(rows::request(values, place.seq)).filter(|r| r.worth == place.worth);
        let row = self.first(place, good)?;
        let source = rows::integer(&row.values, rows::SOURCE_ID).and_then(|id| self.index.sources.get(&id));
        let mut found = Found {
            version: row.version,
            verified: row.worth == Worth::Proven,
            superseded,
            is_dropped: self.images.is_dropped(place.image),
            is_doubtful: self.images.is_torn(place.image),
            source: source.map(|(name, _)| name.clone()),
            body: Body::NotKept,
            answers: Vec::new(),
            values: row.values,
        };
        found.body = self.body(&found, bodies);
        self.answers(&mut found, place.image, bodies, report);
        if found.source.is_none() {
            report.lose(found.loss("source", "its source's name is gone"));
        }
        // Of an excerpt, what has no trace here stands in the database.
        let stands = self.index.is_excerpt && index::copies(&self.index.bodies, found.seq() as i64).is_empty();
        if let Body::Lost(why) = found.body
            && !(found.is_told() || stands)
        {
            report.lose(found.loss("body", why));
        }
        Some(found)
    }

    /// The first reading of a cell that `good` accepts, with the log laid over its pages in every way.
    fn first<T>(&mut self, place: &Place, good: impl Fn(Vec<Value>) -> Option<T>) -> Option<T> {
        let mut page = self.images.buffer();
        if !self.images.read(place.image, &mut page) {
            return None;
        }
        let leaf = pages::leaf(&page, self.images.page_of(place.image))?;
        let cell = leaf.cells.get(usize::from(place.cell))?.as_ref()?;
        let mut read = |view| {
            let payload = index::payload(self.images, &page, cell, view, self.budget)?;
            good(record::decode(&payload)?)
        };
        let views = if cell.overflow.is_some() { &VIEWS[..] } else { &VIEWS[..1] };
        views.iter().find_map(|view| read(*view))
    }

    fn body(&mut self, found: &Found, bodies: &Path) -> Body {
        if rows::integer(&found.values, rows::BODY_KEPT) != Some(1) {
            return Body::NotKept;
        }
        let hash = rows::blob(&found.values, rows::BODY_HASH).unwrap_or_default();
        if let Some(name) = rows::text(&found.values, rows::BODY_FILE) {
            return match file(bodies, name, hash) {
                Ok(()) => Body::File(name.to_owned()),
                Err(why) => Body::Lost(why),
            };
        }
        let copies = index::copies(&self.index.bodies, found.seq() as i64);
        for place in copies.iter().rev().take(COPIES_MAX) {
            let same = |values: Vec<Value>| match values.into_iter().nth(1) {
                Some(Value::Blob(bytes)) if files::hash(&bytes)[..] == *hash => Some(bytes),
                _ => None,
            };
            if let Some(bytes) = self.first(place, same) {
                return Body::Inline(bytes);
            }
        }
        Body::Lost(if copies.is_empty() { "its body is gone" } else { "its body is damaged" })
    }

    fn answers(&mut self, found: &mut Found, row: Image, bodies: &Path, report: &mut Report) {
        let copies = index::copies(&self.index.answers, found.seq() as i64);
        let (mut damaged, mut is_local_damaged) = (false, false);
        for place in copies.iter().rev().take(COPIES_MAX) {
            let is_sure = !found.may_have_had_others() || self.is_newest(place, row);
            match self.first(place, |values| whole_answer(values, bodies).filter(|a| is_sure || a.is_local())) {
                // The newest copy of each kind.
                Some(answer) if !found.answers.iter().any(|a| a.is_local() == answer.is_local()) => {
                    found.answers.push(answer);
                }
                Some(_) => {}
                None => {
                    damaged = true;
                    // A copy that does not even say its kind may be of either.
                    let kind = self.first(place, |values| rows::integer(&values, rows::ANSWER_LOCAL));
                    is_local_damaged |= kind != Some(0);
                }
            }
        }
        for local in [false, true] {
            let there = found.answers.iter().any(|a| a.is_local() == local);
            let stands = self.index.is_excerpt && copies.is_empty();
            // The index of answers is not followed in an excerpt: there its damaged copy is what names a local one.
            let wanted = self.is_wanted(found, local) || (self.index.is_excerpt && local && is_local_damaged);
            if !there && !stands && !found.is_told() && wanted {
                report.lose(found.loss("answer", if damaged { "its answer is damaged" } else { "its answer is gone" }));
            }
        }
    }

    /// Whether a copy is the newest there was when the row's image was written.
    fn is_newest(&self, place: &Place, row: Image) -> bool {
        place.depth.0 == 0 && !self.images.is_torn_between(place.image, row)
    }

    /// Whether a request should have an answer of this kind, as far as anything says so.
    fn is_wanted(&self, found: &Found, local: bool) -> bool {
        let answered = found.state_code() == codes::state_code(State::Answered);
        let key = index::answer_key(found.seq() as i64, local);
        let listed = self.index.answers_wanted.as_ref().is_some_and(|all| all.binary_search(&key).is_ok());
        listed || (answered && !local)
    }
}

fn whole_answer(mut values: Vec<Value>, bodies: &Path) -> Option<Answer> {
    if rows::answer(&values) == Worth::Damaged {
        return None;
    }
    let hash = rows::blob(&values, rows::ANSWER_HASH)?;
    let whole = match rows::text(&values, rows::ANSWER_FILE) {
        Some(name) => file(bodies, name, hash).is_ok(),
        None => files::hash(rows::blob(&values, rows::ANSWER_BYTES)?)[..] == *hash,
    };
    values.truncate(rows::ANSWER_COLUMNS);
    whole.then_some(Answer { values })
}

/// Whether a body file has the hash its row says; read in pieces, so that its size costs no memory.
fn file(bodies: &Path, name: &str, hash: &[u8]) -> Result<(), &'static str> {
    // Names are made of digits and a dash; a damaged one must not lead elsewhere.
    if files::start_of(name).is_none() || name.contains('/') {
        return Err("its file's name is damaged");
    }
    let mut file = File::open(bodies.join(name)).map_err(|_| "its file is gone")?;
    let mut digest = Sha256::new();
    let mut piece = [0u8; 16 * 1024];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => digest.update(&piece[..n]),
            Err(_) => return Err("its file cannot be read"),
        }
    }
    if digest.finalize()[..] == *hash { Ok(()) } else { Err("its file is damaged") }
}
