//! Where work comes in. Translates, and decides nothing.

pub mod http;
pub mod link;
