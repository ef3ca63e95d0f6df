//! Lines of text for PLCs that can build nothing else.
//!
//! `line` has the bytes, `message` the verbs, `session` the conversation, `last_name` who spoke
//! last on a port; the rules are those of the link.

mod last_name;
pub mod line;
pub mod message;
mod serve;
pub mod session;
#[cfg(test)]
mod tests;

pub(super) use serve::serve;
