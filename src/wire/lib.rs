//! The holdfast device link, version 1: frames, messages and the device's side of the rules.
//!
//! For firmware and for the gateway. No standard library, no heap, no panic: everything works on slices that the
//! caller owns. Owns the bytes on the wire; reads no clock and touches no port.
//!
//! ```text
//! port bytes -> Deframer -> Frame { header, payload } -> Message
//! Message -> encode -> 00 | COBS(header, payload, crc) | 00 -> port
//! Device: submit, received bytes and the time in; bytes to send and events out
//! ```
#![no_std]

pub mod code;
pub mod device;
pub mod frame;
pub mod message;

pub use code::Code;
pub use frame::{Deframer, Frame, Header, encode};
pub use message::Message;
