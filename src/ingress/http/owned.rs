//! Requests with a key that are kept only for as long as their caller waits (`fail`, `local`): whether anybody else counts on one.
//!
//! Owns that mark, from before the request is stored until its caller leaves. What becomes of the request is for `kept` to say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who counts on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Its first caller alone.
    Alone,
    /// Others, too: they were told that it is kept.
    Shared,
    /// Nobody; it is being taken back.
    Leaving,
}

/// All of them, by id; bounded by the callers, who wait for one each.
#[derive(Debug, Default, Clone)]
pub struct Owned(Arc<Mutex<HashMap<String, Mark>>>);

/// The first caller's hold on one; ends when dropped.
#[derive(Debug)]
pub struct Owner {
    owned: Owned,
    id: String,
}

impl Owned {
    /// Before it is stored.
    pub fn begin(&self, id: &str) -> Owner {
        self.lock().insert(id.to_owned(), Mark::Alone);
        Owner { owned: self.clone(), id: id.to_owned() }
    }

    /// Somebody else counts on it from now on; false where it is just being taken back.
    pub fn join(&self, id: &str) -> bool {
        match self.lock().get_mut(id) {
            Some(Mark::Leaving) => false,
            Some(mark) => {
                *mark = Mark::Shared;
                true
            }
            None => true,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Mark>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owner {
    /// Begins to take it back; false where somebody else counts on it.
    pub fn leaves(&self) -> bool {
        self.turn(Mark::Alone, Mark::Leaving)
    }

    /// It could not be taken back.
    pub fn stays(&self) {
        self.turn(Mark::Leaving, Mark::Alone);
    }

    fn turn(&self, from: Mark, to: Mark) -> bool {
        match self.owned.lock().get_mut(&self.id) {
            Some(mark) if *mark == from => {
                *mark = to;
                true
            }
            _ => false,
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.owned.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_count_on_is_not_taken_back_and_what_is_being_taken_back_nobody_counts_on() {
        let owned = Owned::default();
        let owner = owned.begin("a");
        assert!(owner.leaves());
        assert!(!owned.join("a"));
        owner.stays();
        assert!(owned.join("a"));
        assert!(!owner.leaves(), "somebody counts on it");
        drop(owner);
        assert!(owned.join("a") && owned.lock().is_empty(), "as any other that is stored");
    }
}
