//! How each link stands, for `status`, the metrics and whoever looks for a fault.
//!
//! Owns the counters and the list of devices; a pure account of what others report. Never a word of a request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{Options, Place, Protocol};

/// Devices shown per link; the one heard of least recently goes first.
const DEVICES_MAX: usize = 256;

/// Whether a link can be spoken on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It can.
    Open,
    /// Nobody is there: unplugged, not connected yet. It is tried again by itself.
    Waiting(String),
    /// Somebody has to do something; it is tried again by itself all the same.
    Failed(String),
}

impl State {
    /// One word.
    pub fn as_str(&self) -> &'static str {
        match self {
            State::Open => "open",
            State::Waiting(_) => "waiting",
            State::Failed(_) => "failed",
        }
    }

    /// Why, where it is not open.
    pub fn reason(&self) -> Option<&str> {
        match self {
            State::Open => None,
            State::Waiting(why) | State::Failed(why) => Some(why),
        }
    }
}

/// One device as it was last heard of.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// What it says it is; empty where it does not.
    pub model: String,
    /// Its firmware.
    pub fw: String,
    /// Unix milliseconds of its latest frame.
    pub last_unix_ms: u64,
    /// Its requests whose result it has not taken yet.
    pub open: u64,
}

/// What is counted of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Whole frames or lines that came.
    FramesIn,
    /// Frames or lines sent.
    FramesOut,
    /// Bytes that came.
    BytesIn,
    /// Bytes sent.
    BytesOut,
    /// Frames dropped because they were damaged, or bytes that were none.
    Damaged,
    /// Messages that were repeats.
    Repeats,
    /// Times the gateway said no.
    Nacks,
    /// Uploads that arrived whole.
    Uploads,
    /// Requests stored.
    Stored,
    /// Results that a device took.
    Results,
    /// Times the line was lost.
    Lost,
    /// Devices that did not answer their poll.
    Silent,
    /// Turns on a bus that were ended because a device went on and on.
    Babbled,
    /// Times something of the link broke off by a panic and was begun anew.
    Restarts,
}

impl Count {
    /// All of them, with the names under which they are shown.
    pub const ALL: [(Count, &'static str); 14] = [
        (Count::FramesIn, "frames_in"),
        (Count::FramesOut, "frames_out"),
        (Count::BytesIn, "bytes_in"),
        (Count::BytesOut, "bytes_out"),
        (Count::Damaged, "damaged"),
        (Count::Repeats, "repeats"),
        (Count::Nacks, "nacks"),
        (Count::Uploads, "uploads"),
        (Count::Stored, "stored"),
        (Count::Results, "results"),
        (Count::Lost, "lost"),
        (Count::Silent, "silent"),
        (Count::Babbled, "babbled"),
        (Count::Restarts, "restarts"),
    ];
}

/// A link's account; the link and its dialect write, others read.
#[derive(Debug)]
pub struct Account {
    name: String,
    protocol: Protocol,
    place: String,
    counts: [AtomicU64; Count::ALL.len()],
    round_trip_ms: AtomicU64,
    state: Mutex<State>,
    devices: Mutex<BTreeMap<String, Seen>>,
}

/// One link as it stands.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// What is spoken on it.
    pub protocol: &'static str,
    /// The port, socket or address.
    pub place: String,
    /// Whether it can be spoken on.
    pub state: State,
    /// The latest time from a poll or ping to its answer, milliseconds; 0 while unknown.
    pub round_trip_ms: u64,
    /// In the order of [`Count::ALL`].
    pub counts: Vec<(&'static str, u64)>,
    /// By uid.
    pub devices: Vec<(String, Seen)>,
}

impl Account {
    /// Nothing has happened yet.
    pub fn new(options: &Options) -> Account {
        let place = match &options.place {
            Place::Device(path) | Place::Socket(path) => path.display().to_string(),
            Place::Address(address) => address.clone(),
            Place::Listen(address) => address.to_string(),
        };
        Account {
            name: options.name.clone(),
            protocol: options.protocol,
            place,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            round_trip_ms: AtomicU64::new(0),
            state: Mutex::new(State::Waiting("not opened yet".to_owned())),
            devices: Mutex::default(),
        }
    }

    /// Counts.
    pub fn add(&self, what: Count, n: u64) {
        self.counts[what as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Says how the link stands; true where that is news.
    pub fn set(&self, state: State) -> bool {
        let mut now = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *now != state;
        *now = state;
        is_news
    }

    /// A poll or ping was answered after so long.
    pub fn round_trip(&self, ms: u64) {
        self.round_trip_ms.store(ms, Ordering::Relaxed);
    }

    /// A device was heard of; `change` writes down what is new.
    pub fn heard(&self, uid: &str, unix_ms: u64, change: impl FnOnce(&mut Seen)) {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.len() >= DEVICES_MAX && !devices.contains_key(uid) {
            let oldest = devices.iter().min_by_key(|(_, seen)| seen.last_unix_ms).map(|(uid, _)| uid.clone());
            oldest.and_then(|uid| devices.remove(&uid));
        }
        let seen = devices.entry(uid.to_owned()).or_default();
        seen.last_unix_ms = unix_ms;
        change(seen);
    }

    /// How many requests of a device wait for their result.
    pub fn open(&self, uid: &str, open: u64) {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = devices.get_mut(uid) {
            seen.open = open;
        }
    }

    /// The link as it stands.
    pub fn shown(&self) -> Shown {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        Shown {
            name: self.name.clone(),
            protocol: self.protocol.as_str(),
            place: self.place.clone(),
            state: self.state.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            round_trip_ms: self.round_trip_ms.load(Ordering::Relaxed),
            counts: Count::ALL
                .iter()
                .map(|(what, name)| (*name, self.counts[*what as usize].load(Ordering::Relaxed)))
                .collect(),
            devices: devices.iter().map(|(uid, seen)| (uid.clone(), seen.clone())).collect(),
        }
    }
}
