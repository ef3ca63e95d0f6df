//! What control hears and what it asks for: events, effects, outcomes, reasons.
//!
//! Plain values; the driver turns them into I/O and log lines. Nothing here holds a prompt or an answer.

use super::types::words;

/// One live request's thread of questions to control.
pub type AskId = u64;
/// One try at one uplink.
pub type AttemptId = u64;
/// Index of an uplink in the configuration's order.
pub type UplinkIndex = usize;
/// Index of a key among those of its uplink that could be read; 0 where it needs none.
pub type KeyIndex = usize;

/// How an attempt ended, as far as decisions need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A complete answer.
    Delivered,
    /// Nothing was sent: name, route, connection, TLS, captive portal. Costs no attempt.
    Unreachable(Fault),
    /// Refused or broken in a way worth trying again; not billed.
    Transient(Fault),
    /// The same, and the service says when to come again.
    Later {
        /// What went wrong.
        fault: Fault,
        /// `Retry-After`, in milliseconds.
        wait_ms: u64,
    },
    /// 429; wait at least this long where the uplink said so.
    RateLimited {
        /// `Retry-After`, in milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// The route is shut for a reason that is not this request's: key, quota, model.
    Blocked(Block),
    /// This request will never be accepted.
    Permanent(Fault),
    /// Sent, no answer seen: it may have been billed.
    Unknown(Fault),
    /// 200 with a body that is no answer.
    NoAnswer,
    /// A whole answer that is not what its task asks for.
    Misfit,
    /// The caller went away or control took the attempt back before the body left.
    GivenUp,
    /// Nothing was sent: it may cost more than is left of today's budget.
    Unaffordable,
}

/// What went wrong, as a stable word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The name could not be resolved.
    Dns,
    /// No connection: refused, no route, time-out while connecting.
    Connect,
    /// TLS would not come up: unknown issuer, wrong name, expired.
    Tls,
    /// The certificate is not valid yet: this machine's clock is behind.
    Clock,
    /// The clock stands before the floor; nothing was tried.
    WaitingForTime,
    /// Something between answered in the uplink's place.
    Portal,
    /// The uplink answered 3xx; keys are never carried along.
    Redirect,
    /// The connection broke before the request was out.
    Write,
    /// The connection broke before an answer.
    Reset,
    /// No answer in time.
    Timeout,
    /// The answer ended early.
    Truncated,
    /// 5xx of the service itself.
    ServerError,
    /// 5xx from something between.
    BadGateway,
    /// 408, 425.
    TryAgain,
    /// 400 and other refusals of this request.
    Refused,
    /// 413.
    TooLarge,
    /// 415.
    Unsupported,
    /// 422.
    Unprocessable,
    /// A key is configured but cannot be read; nothing is sent.
    NoKey,
    /// The uplink was found to be down while this attempt waited.
    Outage,
    /// The gateway itself broke off in the middle of the attempt: a panic.
    Internal,
}

words!(Fault {
    Dns => "dns",
    Connect => "connect",
    Tls => "tls",
    Clock => "clock",
    WaitingForTime => "waiting_for_time",
    Portal => "portal",
    Redirect => "redirect",
    Write => "write",
    Reset => "reset",
    Timeout => "timeout",
    Truncated => "upstream_truncated",
    ServerError => "server_error",
    BadGateway => "bad_gateway",
    TryAgain => "try_again",
    Refused => "refused",
    TooLarge => "too_large",
    Unsupported => "unsupported",
    Unprocessable => "unprocessable",
    NoKey => "no_key",
    Outage => "outage",
    Internal => "internal",
});

/// Why a route is shut although the line works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Block {
    /// 401: the key is not accepted.
    Key,
    /// 402, or a spent quota.
    Quota,
    /// 403 or 404 for a model, or three requests in a row that were refused alike.
    Configuration,
    /// The uplink's certificate is not accepted.
    Tls,
    /// This machine's clock is behind.
    Clock,
    /// Probes pass, but a web page or a redirect answers requests.
    Portal,
}

words!(Block {
    Key => "key",
    Quota => "quota",
    Configuration => "configuration",
    Tls => "tls",
    Clock => "clock",
    Portal => "portal",
});

impl Block {
    /// What is wrong and what to do, in one plain sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Block::Key => "the uplink refuses the key: check api_keys, then restart",
            Block::Quota => "the quota is spent: top up the account or raise its limit",
            Block::Configuration => {
                "the uplink refuses the model or every request: check base_url, models and the key's rights"
            }
            Block::Tls => {
                "no trusted TLS connection can be made: check that base_url's port speaks https, ca_file, and whether something \
                 inspects the traffic"
            }
            Block::Clock => "the clock is behind, so no certificate can be checked: set the time",
            Block::Portal => {
                "probes pass, but a web page or a redirect answers requests: check base_url, or log in to the network"
            }
        }
    }
}

impl Block {
    /// The same where one of several keys meets it.
    pub fn key_sentence(self) -> &'static str {
        match self {
            Block::Key => "the uplink refuses it: replace it, then restart",
            Block::Quota => "its quota is spent: top up its account or raise its limit",
            Block::Configuration => "it may not use the model: check its rights",
            Block::Tls | Block::Clock | Block::Portal => self.sentence(),
        }
    }
}

impl Outcome {
    /// A stable word for logs, records and metric labels.
    pub fn kind(self) -> &'static str {
        match self {
            Outcome::Delivered => "delivered",
            Outcome::Unreachable(f) | Outcome::Permanent(f) | Outcome::Unknown(f) => f.as_str(),
            Outcome::Transient(fault) | Outcome::Later { fault, .. } => fault.as_str(),
            Outcome::RateLimited { .. } => "rate_limited",
            Outcome::Blocked(b) => b.as_str(),
            Outcome::NoAnswer => "no_answer",
            Outcome::Misfit => "misfit",
            Outcome::GivenUp => "given_up",
            Outcome::Unaffordable => "budget_spent",
        }
    }

    /// Whether it is the service's own word about the key, the pace or the moment: it reaches the caller where no other target takes
    /// the request.
    pub fn is_refusal(self) -> bool {
        matches!(self, Outcome::RateLimited { .. } | Outcome::Blocked(_)) || self.says_try_again()
    }

    /// How long the service wants to be left alone with this request, in milliseconds; 0 where it did not say.
    pub fn wait_ms(self) -> u64 {
        match self {
            Outcome::Later { wait_ms, .. } => wait_ms,
            _ => 0,
        }
    }

    /// Whether the service asks for this one request again.
    pub fn says_try_again(self) -> bool {
        matches!(self, Outcome::Transient(Fault::TryAgain) | Outcome::Later { fault: Fault::TryAgain, .. })
    }

    /// The class of the outcome, as a metric label.
    pub fn class(self) -> &'static str {
        match self {
            Outcome::Delivered | Outcome::Misfit => "delivered",
            Outcome::Unreachable(_) => "unreachable",
            Outcome::Transient(_) | Outcome::Later { .. } => "transient",
            Outcome::RateLimited { .. } => "rate_limited",
            Outcome::Blocked(_) => "blocked",
            Outcome::Permanent(_) | Outcome::NoAnswer => "permanent",
            Outcome::Unknown(_) => "unknown",
            Outcome::GivenUp => "given_up",
            Outcome::Unaffordable => "budget_spent",
        }
    }
}

/// What a health check or a half-open trial found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// The uplink itself answered, this fast.
    Passed {
        /// Milliseconds to the answer.
        latency_ms: u64,
        /// The answer was 401 or 403: it is there, but the key is not accepted.
        key_refused: bool,
    },
    /// It did not.
    Failed(Fault),
}

/// A stored request in control's hands: just what decisions need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its sequence number.
    pub seq: u64,
    /// The model it asks for: part of the route.
    pub model: String,
    /// Attempts that counted so far.
    pub attempts: u32,
    /// An earlier send may have been billed.
    pub maybe_billed: bool,
    /// A caller is waiting for it: sent before the backlog and outside the drain's window.
    pub urgent: bool,
}

/// A shut route, as it is kept over a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shut {
    /// Which uplink.
    pub uplink: UplinkIndex,
    /// Which of several keys; `None` for all of them.
    pub key: Option<KeyIndex>,
    /// Which model; empty for all of them.
    pub model: String,
    /// Why.
    pub block: Block,
    /// How many trials failed.
    pub step: u32,
    /// When the next trial is due, in control's own time.
    pub until_ms: u64,
}

/// What control is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A live request wants a target.
    ///
    /// The number is chosen by the driver and unique.
    Asked(AskId),
    /// The same, where the caller said until when it waits: no other try begins that cannot end by then.
    AskedUntil(AskId, u64),
    /// The same, for a path that nobody here knows: what comes of it tells whether the uplink is there, and nothing of
    /// keys, quotas and money.
    AskedAside(AskId),
    /// The caller of a live request went away before its target was named.
    Withdrawn(AskId),
    /// The answer has begun and more of it is to come: the attempt is no longer taken back.
    Answering(AttemptId),
    /// A stored request's body has left entirely; the next in order may follow.
    BodyOut(AttemptId),
    /// An attempt ended.
    Ended {
        /// Which.
        attempt: AttemptId,
        /// How.
        outcome: Outcome,
        /// From start to end or first byte.
        latency_ms: u64,
        /// A live caller wants the next target.
        next: bool,
    },
    /// A probe ended that was made with this key.
    Probed(UplinkIndex, KeyIndex, Check),
    /// The system says that links or routes changed.
    NetworkChanged,
    /// How many stored requests could be leased now.
    Ready(u64),
    /// The spool handed these out.
    Leased(Vec<Item>),
    /// A stored request, already marked `sending`, whose caller waits: it goes before the backlog.
    Adopted(Item),
    /// The request of a live attempt, whose caller's own time is up, is stored and marked `sending`: the attempt is its own now.
    HandedOver(AttemptId, Item),
    /// The spool could not hand anything out.
    LeaseFailed,
    /// The operator stops or resumes sending the backlog.
    Paused(bool),
    /// Whether outcomes can be recorded. While not, nothing more is sent that would have to be.
    Storage(bool),
    /// What an earlier process knew of shut routes, in the time of `now`.
    Restored(Vec<Shut>),
    /// There may be money for what was too dear: a new day, or what was under way cost less than it might.
    Funds,
    /// The operator wants the backlog sent now: no jitter, pauses tried at once.
    DrainNow,
    /// The process is ending: nothing new is started.
    Stopping,
    /// A deadline passed.
    Tick,
}

/// Where a live request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To this uplink, as this attempt.
    Uplink {
        /// The attempt's number, to report its end with.
        attempt: AttemptId,
        /// Which uplink.
        uplink: UplinkIndex,
        /// Which of its keys.
        key: KeyIndex,
    },
    /// No uplink is available: what the policy says.
    Offline {
        /// Why.
        reason: Reason,
        /// An earlier attempt of this very request may have been billed.
        maybe_billed: bool,
    },
    /// The uplink is there, but this request was sent and not answered: no second paid send.
    Unsure,
    /// Every target was tried; the last uplink's own answer is the answer.
    LastAnswer,
    /// The process is ending.
    Stopping,
}

/// Why a request goes where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No uplink is configured.
    NoUplink,
    /// Every uplink is unhealthy.
    Unhealthy,
    /// Every circuit breaker that matters is open.
    BreakerOpen,
    /// Every uplink was tried for this request.
    AllTried,
    /// It may cost more than is left of today's budget.
    BudgetSpent,
}

words!(Reason {
    NoUplink => "no_uplink",
    Unhealthy => "unhealthy",
    BreakerOpen => "breaker_open",
    AllTried => "all_tried",
    BudgetSpent => "budget_spent",
});

/// What becomes of a stored request after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is its outcome.
    Answered,
    /// Back into the queue.
    Requeue {
        /// The attempt counts against the limit.
        counted: bool,
        /// Set aside until control releases it.
        deferred: bool,
        /// The send may have been billed.
        maybe_billed: bool,
    },
    /// A dead letter, with a stable word.
    Dead(&'static str),
}

/// What control wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell the live caller.
    Answer(AskId, Route),
    /// Take a live attempt back: its uplink is down.
    Abandon(AttemptId),
    /// Check this uplink, with this key.
    Probe(UplinkIndex, KeyIndex),
    /// Drop this uplink's pooled connections: they belong to a network that is gone.
    Reset(UplinkIndex),
    /// Lease stored requests.
    Lease {
        /// At most so many.
        max: u32,
        /// None for these models: their routes are shut.
        except: Vec<String>,
        /// At most so many that may have been billed; `None` where their number does not matter.
        labelled: Option<u32>,
    },
    /// Shut routes changed: keep all of them over a restart.
    Keep(Vec<Shut>),
    /// Send a leased request.
    Send {
        /// The attempt's number.
        attempt: AttemptId,
        /// Which stored request.
        seq: u64,
        /// Where.
        uplink: UplinkIndex,
        /// With which of its keys.
        key: KeyIndex,
    },
    /// End a lease.
    Settle {
        /// Which stored request.
        seq: u64,
        /// The attempt that ended, where one was made.
        attempt: Option<AttemptId>,
        /// What becomes of it.
        verdict: Verdict,
    },
    /// Make deferred requests offerable again.
    Release(Vec<u64>),
    /// Something an operator wants to know.
    Notice(Notice),
}

/// State changes worth one line in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// An uplink's health changed.
    Health {
        /// Which.
        uplink: UplinkIndex,
        /// What it is now.
        health: super::health::Health,
        /// Why, where it failed.
        fault: Option<Fault>,
    },
    /// A circuit breaker changed.
    Breaker {
        /// Which.
        uplink: UplinkIndex,
        /// What it is now.
        state: super::breaker::BreakerState,
    },
    /// A route is shut until the next trial.
    RoutePaused {
        /// Which uplink.
        uplink: UplinkIndex,
        /// Why.
        block: Block,
        /// Seconds to the next trial.
        retry_in_s: u64,
    },
    /// One of several keys is set aside until its next trial.
    KeyPaused {
        /// Whose.
        uplink: UplinkIndex,
        /// Which.
        key: KeyIndex,
        /// Why.
        block: Block,
        /// Seconds to the next trial.
        retry_in_s: u64,
        /// Good keys that are left.
        left: usize,
    },
    /// A key that was set aside works again.
    KeyResumed {
        /// Whose.
        uplink: UplinkIndex,
        /// Which.
        key: KeyIndex,
    },
    /// Outcomes cannot be recorded, or can be again.
    Storage {
        /// Whether they can.
        works: bool,
    },
    /// A paused route works again.
    RouteResumed {
        /// Which uplink.
        uplink: UplinkIndex,
    },
    /// The drain starts after this delay.
    DrainScheduled {
        /// Milliseconds of start jitter.
        delay_ms: u64,
    },
}
