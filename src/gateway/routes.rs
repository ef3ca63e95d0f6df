//! Shut routes between control and the spool: an index and a deadline here, a name and powered-on time there.
//!
//! Owns the word under which a pause is kept: its block and the uplink's fingerprint. Another key or address has
//! another fingerprint, and what was shut under the old one is tried at once.

use std::sync::Arc;

use crate::control::event::{Block, Shut};
use crate::spool::SavedPause;
use crate::uplink::cloud::Cloud;

/// Between an uplink's name and its key's fingerprint; no name has it.
const KEY_MARK: char = '#';

/// As it is kept; `now_ms` and `powered_ms` are the same instant.
pub(super) fn save(shut: &Shut, uplinks: &[Arc<Cloud>], now_ms: u64, powered_ms: u64) -> Option<SavedPause> {
    let cloud = uplinks.get(shut.uplink)?;
    let (uplink, fingerprint) = match shut.key {
        None => (cloud.name().to_owned(), cloud.fingerprint()),
        // Its fingerprint is its name there: a key may move to another place in the configuration.
        Some(key) => {
            let fingerprint = cloud.key_fingerprint(key)?;
            (format!("{}{KEY_MARK}{fingerprint}", cloud.name()), fingerprint)
        }
    };
    Some(SavedPause {
        uplink,
        model: shut.model.clone(),
        block: format!("{}:{fingerprint}", shut.block),
        step: shut.step,
        until_ms: powered_ms + shut.until_ms.saturating_sub(now_ms),
    })
}

/// As control knows it at its time 0; `None` where the uplink is gone or configured anew.
pub(super) fn restore(saved: &SavedPause, uplinks: &[Arc<Cloud>], powered_ms: u64) -> Option<Shut> {
    let (name, keyed) = match saved.uplink.split_once(KEY_MARK) {
        Some((name, fingerprint)) => (name, Some(fingerprint)),
        None => (saved.uplink.as_str(), None),
    };
    let uplink = uplinks.iter().position(|cloud| cloud.name() == name)?;
    let cloud = &uplinks[uplink];
    let (block, fingerprint) = saved.block.split_once(':')?;
    let block: Block = block.parse().ok()?;
    let until_ms = saved.until_ms.saturating_sub(powered_ms);
    let key = match keyed {
        None if cloud.fingerprint() == fingerprint => None,
        // The only key that is left is the uplink.
        Some(_) if cloud.keys().len() < 2 => return None,
        Some(keyed) => Some((0..cloud.keys().len()).find(|key| cloud.key_fingerprint(*key).as_deref() == Some(keyed))?),
        None => return None,
    };
    Some(Shut { uplink, key, model: saved.model.clone(), block, step: saved.step, until_ms })
}
