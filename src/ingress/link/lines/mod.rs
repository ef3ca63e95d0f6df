//! Lines of text for PLCs that can build nothing else.
//!
//! `line` has the bytes, `message` the verbs, `session` the conversation, `names` who spoke last on a port; the rules are those of the link.

pub mod line;
pub mod message;
mod names;
mod serve;
pub mod session;
#[cfg(test)]
mod tests;

pub(super) use serve::serve;
