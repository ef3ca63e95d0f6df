//! The words the whole house shares about a request: priority, policy, state.
//!
//! Plain values only; no I/O, no clock. Other rooms translate to and from these.

/// How urgent a request is; lower sorts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Before everything else.
    Critical,
    /// Before ordinary work.
    High,
    /// What a request gets that says nothing.
    #[default]
    Normal,
    /// After everything else.
    Low,
}

impl Priority {
    /// All priorities, most urgent first.
    pub const ALL: [Priority; 4] = [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];

    /// The number on disk and on the link: 0 (critical) to 3 (low).
    pub fn rank(self) -> u8 {
        self as u8
    }

    /// The inverse of [`Priority::rank`]; `None` above 3.
    pub fn from_rank(rank: u8) -> Option<Priority> {
        Priority::ALL.get(usize::from(rank)).copied()
    }
}

/// What a request gets while no uplink is available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// Stored, and answered by the local model meanwhile.
    #[default]
    Both,
    /// Answered by the local model; nothing is stored.
    Local,
    /// Stored; the caller waits, then gets a ticket.
    Queue,
    /// Refused at once.
    Fail,
}

impl Policy {
    /// All policies.
    pub const ALL: [Policy; 4] = [Policy::Both, Policy::Local, Policy::Queue, Policy::Fail];
}

/// Where a stored request stands. The last five are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Waits for an uplink.
    Queued,
    /// Handed out for one attempt; the mark is on disk before the first byte leaves.
    Sending,
    /// Sent, no answer seen; it may have been billed.
    Unknown,
    /// An uplink's answer is recorded.
    Answered,
    /// Its time to live ended first.
    Expired,
    /// Somebody cancelled it.
    Cancelled,
    /// Removed to make room for more urgent work.
    Evicted,
    /// Set aside with a reason.
    Dead,
}

impl State {
    /// All states, in the order of a request's life.
    pub const ALL: [State; 8] = [
        State::Queued,
        State::Sending,
        State::Unknown,
        State::Answered,
        State::Expired,
        State::Cancelled,
        State::Evicted,
        State::Dead,
    ];

    /// True for the five states nothing leaves by itself.
    pub fn is_final(self) -> bool {
        !matches!(self, State::Queued | State::Sending | State::Unknown)
    }
}

/// Implements `as_str`, `Display` and `FromStr` from one table, so a word is written once.
macro_rules! words {
    ($type:ty { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $type {
            /// The word used in configuration, headers, JSON, logs and on disk.
            pub fn as_str(self) -> &'static str {
                match self { $(<$type>::$variant => $word),+ }
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl std::str::FromStr for $type {
            type Err = $crate::control::types::UnknownWord;
            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($word => Ok(<$type>::$variant),)+
                    _ => Err($crate::control::types::UnknownWord { expected: &[$($word),+] }),
                }
            }
        }
    };
}
pub(crate) use words;

/// A word that is none of the expected ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownWord {
    /// Every word that would have been understood.
    pub expected: &'static [&'static str],
}

impl std::fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "expected one of: {}", self.expected.join(", "))
    }
}

impl std::error::Error for UnknownWord {}

words!(Priority { Critical => "critical", High => "high", Normal => "normal", Low => "low" });
words!(Policy { Both => "both", Local => "local", Queue => "queue", Fail => "fail" });
words!(State {
    Queued => "queued",
    Sending => "sending",
    Unknown => "unknown",
    Answered => "answered",
    Expired => "expired",
    Cancelled => "cancelled",
    Evicted => "evicted",
    Dead => "dead",
});
