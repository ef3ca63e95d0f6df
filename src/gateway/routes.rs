//! Shut routes between control and the spool: an index and a deadline here, a name and powered-on time there.
//!
//! Owns the word under which a pause is kept: its block and the uplink's fingerprint. Another key or address has
//! another fingerprint, and what was shut under the old one is tried at once.

use std::sync::Arc;

use crate::control::event::{Block, Shut};
use crate::spool::SavedPause;
use crate::uplink::cloud::Cloud;

/// As it is kept; `now_ms` and `powered_ms` are the same instant.
pub(super) fn save(shut: &Shut, uplinks: &[Arc<Cloud>], now_ms: u64, powered_ms: u64) -> Option<SavedPause> {
    let cloud = uplinks.get(shut.uplink)?;
    Some(SavedPause {
        uplink: cloud.name().to_owned(),
        model: shut.model.clone(),
        block: format!("{}:{}", shut.block, cloud.fingerprint()),
        step: shut.step,
        until_ms: powered_ms + shut.until_ms.saturating_sub(now_ms),
    })
}

/// As control knows it at its time 0; `None` where the uplink is gone or configured anew.
pub(super) fn restore(saved: &SavedPause, uplinks: &[Arc<Cloud>], powered_ms: u64) -> Option<Shut> {
    let uplink = uplinks.iter().position(|cloud| cloud.name() == saved.uplink)?;
    let (block, fingerprint) = saved.block.split_once(':')?;
    let block: Block = block.parse().ok()?;
    let until_ms = saved.until_ms.saturating_sub(powered_ms);
    let same = uplinks[uplink].fingerprint() == fingerprint;
    same.then(|| Shut { uplink, model: saved.model.clone(), block, step: saved.step, until_ms })
}
