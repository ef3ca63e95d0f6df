//! Where answers come from: the clients of the cloud endpoints and of the on-site model server.
//!
//! Owns the words spoken to them; never decides which of them is asked.

pub mod local;
