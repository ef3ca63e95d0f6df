//! What devices rely on beside their requests: spent keys, the highest of folded ones, mailboxes.
//!
//! Owns which of these are believed. Their rows have no sums, and a key taken for spent that is not would cost its
//! request: so a key must stand in its table and in the index of times. Never judges what the database has already.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use rusqlite::types::Value;

use super::rows::Worth;

/// Marks of one kind remembered at a time: four times the keys that a spool keeps, and as many requests' own keys.
const MARKS_MAX: usize = 262_144;
/// Longest key with its device's name that any link takes, and some room.
const TEXT_MAX: usize = 128;

/// One mark, under its source's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::spool) struct Mark {
    pub(in crate::spool) source: String,
    pub(in crate::spool) what: What,
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::spool) enum What {
    /// The request of this key is over and pruned; remembered until this many powered-on milliseconds.
    Key { key: String, until_ms: i64 },
    /// All keys of an epoch up to this one are.
    Epoch { uid: String, epoch: i64, highest: i64, at_ms: i64 },
    /// A mailbox was last written with this number, in this turn, for this request.
    Mailbox { uid: String, slot: u8, last: u16, turn: i64, request: i64 },
}

/// Entries of trees that are told apart by their columns alone; no two of the spool's have these.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Of the index of times: source, key, time.
    keys: BTreeSet<(i64, String, i64)>,
    /// Hashes of what may be rows of the table of keys: the index of requests' keys has the same columns.
    rows: HashSet<u64>,
    found: BTreeMap<(i64, String, i64, i64), What>,
    /// Of the index of times: source, device, epoch, time.
    epochs: HashSet<u64>,
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

impl Marks {
    /// Takes in an entry of any index.
    pub(super) fn tell(&mut self, values: &[Value]) {
        use Value::{Integer, Text};
        let names_device = |text: &String| text.len() <= TEXT_MAX && text.contains(':');
        let room = |taken: usize| taken < MARKS_MAX;
        match values {
            [Integer(until), Integer(source), Text(key)] if names_device(key) && room(self.keys.len()) => {
                self.keys.insert((*source, key.clone(), *until));
            }
            [Integer(source), Text(key), Integer(until)] if names_device(key) && room(self.rows.len()) => {
                self.rows.insert(hash((source, key, until)));
            }
            [Integer(at), Integer(source), Text(uid), Integer(epoch)] if room(self.epochs.len()) => {
                self.epochs.insert(hash((source, uid, epoch, at)));
            }
            [Integer(source), Text(uid), Integer(epoch), Integer(highest), Integer(at_ms)] => {
                let sound = u32::try_from(*epoch).is_ok() && u32::try_from(*highest).is_ok();
                let (epoch, highest, at_ms) = (*epoch, *highest, *at_ms);
                let what = What::Epoch { uid: uid.clone(), epoch, highest, at_ms };
                self.find(sound, (*source, uid, epoch, -1), what);
            }
            [Integer(source), Text(uid), Integer(slot), Integer(last), Integer(turn), Integer(request)] => {
                let sound = *turn >= 0 && *request > 0;
                let (Ok(slot), Ok(last)) = (u8::try_from(*slot), u16::try_from(*last)) else { return };
                let what = What::Mailbox { uid: uid.clone(), slot, last, turn: *turn, request: *request };
                self.find(sound, (*source, uid, i64::from(slot), *turn), what);
            }
            _ => {}
        }
    }

    fn find(&mut self, sound: bool, place: (i64, &String, i64, i64), what: What) {
        let (source, uid, number, turn) = place;
        if sound && !uid.is_empty() && uid.len() <= TEXT_MAX && self.found.len() < MARKS_MAX {
            self.found.insert((source, uid.clone(), number, turn), what);
        }
    }

    /// What is to be believed. `is_whole`: every page could be read, so that what stands at one place only is a flipped
    /// bit; else the other place may be on a page that is gone.
    pub(super) fn end(self, sources: &HashMap<i64, (String, Worth)>, is_whole: bool) -> Vec<Mark> {
        let Marks { keys, rows, found, epochs } = self;
        let named = |source: i64, what: What| Some(Mark { source: sources.get(&source)?.0.clone(), what });
        let keys = keys.into_iter().filter(|key| !is_whole || rows.contains(&hash((&key.0, &key.1, &key.2))));
        let keys = keys.filter_map(|(source, key, until_ms)| named(source, What::Key { key, until_ms }));
        let found = found.into_iter().filter(|((source, ..), what)| match what {
            What::Epoch { uid, epoch, at_ms, .. } => !is_whole || epochs.contains(&hash((source, uid, epoch, at_ms))),
            _ => true,
        });
        let found = found.filter_map(|((source, ..), what)| named(source, what));
        keys.chain(found).collect()
    }
}
