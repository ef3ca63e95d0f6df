//! Events of our own making, for the streams that the local room writes.
//!
//! Framing, both ways, is `uplink::sse`'s; this adds JSON.

use bytes::Bytes;
use serde::Serialize;

use super::LocalError;
pub(super) use crate::uplink::sse::{DONE, Splitter, event};

/// One whole event that carries `value` as JSON.
pub(super) fn json_event<T: Serialize>(value: &T) -> Result<Bytes, LocalError> {
    // Our own shapes always serialise; an error here would be a fault of this program, not of the request.
    serde_json::to_vec(value).map(|data| event(&data)).map_err(|_| LocalError::Failed { status: 200 })
}
