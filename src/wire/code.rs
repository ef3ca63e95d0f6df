//! The numbers by which the gateway says no.

/// Why something was refused: in a Nack, in a line's `NAK` and in Modbus' `ACK_CODE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// The payload cannot be read.
    BadPayload = 1,
    /// No common version of the protocol.
    Version = 2,
    /// A type or an enumerated value that this gateway does not know.
    Unknown = 3,
    /// No session: say Hello first.
    NoSession = 4,
    /// More than a limit allows.
    TooLarge = 5,
    /// Too much under way: come back after `retry_ms`.
    Busy = 6,
    /// The spool takes nothing more.
    StorageFull = 7,
    /// The gateway knows no such key: submit again.
    UnknownKey = 8,
    /// No such task in the configuration.
    UnknownTask = 9,
    /// The arguments do not fit the task.
    BadArguments = 10,
    /// The key was used with other content.
    KeyReused = 11,
    /// The time to live is over.
    Expired = 12,
    /// Too many requests in a short time.
    RateLimited = 13,
    /// This device may not.
    Forbidden = 14,
    /// The picture's checksum does not match its bytes.
    BlobChecksum = 15,
    /// The gateway's own fault.
    Internal = 16,
}

impl Code {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}
