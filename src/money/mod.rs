//! What uplinks are paid: reserved before a request leaves, settled when it ended, written down by day.
//!
//! Owns the files below `money/` in the data folder and the one purse of the process. What fits is decided by
//! `control::money`; what an attempt's end means for its cost is decided by whoever made the attempt. Never sends.

pub mod bound;
mod escrow;
mod handle;
pub mod ledger;
mod reservation;
mod tick;

pub use handle::{Money, News, Options, Order, Refused, View, usd};
pub use reservation::{End, Reservation};
pub use tick::Ticker;
