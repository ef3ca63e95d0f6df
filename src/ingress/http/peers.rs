//! How many connections each peer has: one that opens them without end leaves room for the others.
//!
//! Owns the counts and nothing else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Connections at once; each costs about 12 KiB.
pub const CONNECTIONS_MAX: usize = 1536;
/// Connections of one peer: a quarter is left for everybody else.
pub const PEER_CONNECTIONS_MAX: usize = CONNECTIONS_MAX / 4 * 3;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerKey {
    /// A user of the UNIX socket; `None` where the kernel does not say.
    User(Option<u32>),
    /// An address on TCP.
    Address(IpAddr),
}

/// The counts; at most [`CONNECTIONS_MAX`] of them.
#[derive(Debug, Default, Clone)]
pub struct Peers(Arc<Mutex<HashMap<PeerKey, usize>>>);

/// One connection's place.
#[derive(Debug)]
pub struct Place {
    peers: Peers,
    key: PeerKey,
}

impl Peers {
    /// A place for one more, where there is one.
    pub fn enter(&self, key: PeerKey) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let own = counts.entry(key).or_insert(0);
        if all >= CONNECTIONS_MAX || *own >= PEER_CONNECTIONS_MAX {
            if *own == 0 {
                counts.remove(&key);
            }
            return None;
        }
        *own += 1;
        Some(Place { peers: self.clone(), key })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_leaves_room_for_others() {
        let peers = Peers::default();
        let (greedy, other) = (PeerKey::User(Some(1)), PeerKey::User(Some(2)));
        let mut places: Vec<Place> = std::iter::from_fn(|| peers.enter(greedy)).collect();
        assert_eq!(places.len(), PEER_CONNECTIONS_MAX);
        assert!(peers.enter(other).is_some());
        places.pop();
        assert!(peers.enter(greedy).is_some());
        drop(places);
        assert!(peers.0.lock().unwrap().is_empty());
    }
}
