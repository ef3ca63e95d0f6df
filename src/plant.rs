//! Mistakes that a test can switch on, to be seen catching them: a test that never failed proves nothing.
//!
//! Only with the cargo feature `planted`, which no released binary has: without it every question here is answered
//! "no" by the compiler. Owns the list of mistakes and the one that is on; the mistake itself stands where it is made.

/// One mistake, as somebody might really make it. `HOLDFAST_PLANT=<name>` switches it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A caller is told "accepted" before the commit.
    AckBeforeCommit,
    /// The database does not sync each commit.
    SynchronousNormal,
    /// A request leaves before its `sending` mark is on disk.
    SendingNotSynced,
    /// A failed fsync is asked once more.
    FsyncRetriedAfterEio,
    /// Nothing is set aside for outcomes on a full disk.
    NoBallast,
    /// Rows are believed without their own checksums.
    TrustIntegrityCheck,
    /// A time-out after the body was out counts as "not sent".
    RetryOnTimeout,
    /// A refused key makes dead letters.
    DeadLetterOn401,
    /// What may have been billed is sent again as often as it fails.
    ResendWithoutLimit,
    /// Time to live is counted by the wall clock.
    WallClockTimers,
    /// A read transaction is never closed.
    ReaderLeftOpen,
    /// A length read from a damaged file is believed one byte too far.
    OffByOneInALength,
    /// Slow clients are waited for without end.
    NoTimers,
    /// Any certificate is believed.
    VerifierSwitchedOff,
    /// A debug line shows the headers of a request.
    HeadersInADebugLog,
    /// No mistake to be caught, but one to be lived with: every attempt panics, in words that quote its request.
    PanicInAnAttempt,
    /// The same, and what a panic says is shown.
    PanicWordsShown,
    /// Nor this one: a line breaks off at each Cancel.
    PanicInALink,
    /// The socket gets its mode after it listens.
    ChmodAfterListen,
    /// A change of the schema is made step by step, each on its own.
    MigrateWithoutTransaction,
    /// A device is told "stored" before the commit.
    LinkAckBeforeCommit,
    /// A device's key is not looked up.
    LinkNoUniqueKey,
    /// A later answer takes the place of the result that a device was offered.
    LinkResultNotDeduplicated,
    /// Money is spent before the disk knows that it is taken.
    SpendBeforeEscrow,
    /// What one source asked is another's hit.
    CacheForgetsSource,
    /// A kept answer is fresh for ever.
    CacheNeverAges,
    /// What was kept last leaves first.
    CacheEvictsNewest,
    /// A kept answer is not looked at before it is given.
    CacheBelievesDamage,
    /// Identical requests are all sent.
    CacheSendsEach,
    /// The task that decides stands still from the next "drain now" on.
    ControlHangs,
    /// The spool's thread stands still from the next acceptance on.
    SpoolHangs,
    /// The second thread that serves stands still from its first connection on.
    SecondThreadHangs,
}

impl Fault {
    /// Every mistake there is.
    pub const ALL: [Fault; 32] = [
        Fault::AckBeforeCommit,
        Fault::SynchronousNormal,
        Fault::SendingNotSynced,
        Fault::FsyncRetriedAfterEio,
        Fault::NoBallast,
        Fault::TrustIntegrityCheck,
        Fault::RetryOnTimeout,
        Fault::DeadLetterOn401,
        Fault::ResendWithoutLimit,
        Fault::WallClockTimers,
        Fault::ReaderLeftOpen,
        Fault::OffByOneInALength,
        Fault::NoTimers,
        Fault::VerifierSwitchedOff,
        Fault::HeadersInADebugLog,
        Fault::PanicInAnAttempt,
        Fault::PanicWordsShown,
        Fault::PanicInALink,
        Fault::ChmodAfterListen,
        Fault::MigrateWithoutTransaction,
        Fault::LinkAckBeforeCommit,
        Fault::LinkNoUniqueKey,
        Fault::LinkResultNotDeduplicated,
        Fault::SpendBeforeEscrow,
        Fault::CacheForgetsSource,
        Fault::CacheNeverAges,
        Fault::CacheEvictsNewest,
        Fault::CacheBelievesDamage,
        Fault::CacheSendsEach,
        Fault::ControlHangs,
        Fault::SpoolHangs,
        Fault::SecondThreadHangs,
    ];

    /// The name by which it is switched on.
    pub const fn name(self) -> &'static str {
        match self {
            Fault::AckBeforeCommit => "ack-before-commit",
            Fault::SynchronousNormal => "synchronous-normal",
            Fault::SendingNotSynced => "sending-not-synced",
            Fault::FsyncRetriedAfterEio => "fsync-retried-after-eio",
            Fault::NoBallast => "no-ballast",
            Fault::TrustIntegrityCheck => "trust-integrity-check",
            Fault::RetryOnTimeout => "retry-on-timeout",
            Fault::DeadLetterOn401 => "dead-letter-on-401",
            Fault::ResendWithoutLimit => "resend-without-limit",
            Fault::WallClockTimers => "wall-clock-timers",
            Fault::ReaderLeftOpen => "reader-left-open",
            Fault::OffByOneInALength => "off-by-one-in-a-length",
            Fault::NoTimers => "no-timers",
            Fault::VerifierSwitchedOff => "verifier-switched-off",
            Fault::HeadersInADebugLog => "headers-in-a-debug-log",
            Fault::PanicInAnAttempt => "panic-in-an-attempt",
            Fault::PanicWordsShown => "panic-words-shown",
            Fault::PanicInALink => "panic-in-a-link",
            Fault::ChmodAfterListen => "chmod-after-listen",
            Fault::MigrateWithoutTransaction => "migrate-without-transaction",
            Fault::LinkAckBeforeCommit => "link-ack-before-commit",
            Fault::LinkNoUniqueKey => "link-no-unique-key",
            Fault::LinkResultNotDeduplicated => "link-result-not-deduplicated",
            Fault::SpendBeforeEscrow => "spend-before-escrow",
            Fault::CacheForgetsSource => "cache-forgets-source",
            Fault::CacheNeverAges => "cache-never-ages",
            Fault::CacheEvictsNewest => "cache-evicts-newest",
            Fault::CacheBelievesDamage => "cache-believes-damage",
            Fault::CacheSendsEach => "cache-sends-each",
            Fault::ControlHangs => "control-hangs",
            Fault::SpoolHangs => "spool-hangs",
            Fault::SecondThreadHangs => "second-thread-hangs",
        }
    }
}

/// Stands still for ever, where a mistake that hangs is planted.
pub fn hang() {
    loop {
        std::thread::park();
    }
}

/// Whether this mistake is switched on. Always no in a released binary.
#[cfg(not(feature = "planted"))]
pub const fn is(_: Fault) -> bool {
    false
}

/// Whether this mistake is switched on.
#[cfg(feature = "planted")]
pub fn is(fault: Fault) -> bool {
    use std::sync::OnceLock;
    static ON: OnceLock<Option<String>> = OnceLock::new();
    ON.get_or_init(|| std::env::var("HOLDFAST_PLANT").ok()).as_deref() == Some(fault.name())
}
