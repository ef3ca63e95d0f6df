//! Who gets the next place when all are taken: sources in turn, each with a queue of its own.
//!
//! A pure value; whoever uses it knows how long it was waited. A source that floods waits behind itself.

use std::collections::{BTreeMap, VecDeque};

/// Requests of one source that wait. Beyond it the source is told to come back: about a second's worth of a busy line.
pub const QUEUE_MAX: usize = 32;
/// Sources that wait at once; each costs its name and its queue.
const SOURCES_MAX: usize = 256;

/// One request that waits.
pub type Ticket = u64;

/// What a request gets when it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A place.
    Place,
    /// It waits until [`Places::leave`] names its ticket.
    Wait(Ticket),
    /// Too many of its source wait already.
    Full,
}

/// All places, and who waits for one.
#[derive(Debug)]
pub struct Places {
    free: usize,
    next: Ticket,
    /// Never an empty queue.
    waiting: BTreeMap<String, VecDeque<Ticket>>,
    /// The sources that wait, the next one first.
    turns: VecDeque<String>,
}

impl Places {
    /// So many, all free.
    pub fn new(places: usize) -> Self {
        Self { free: places, next: 1, waiting: BTreeMap::new(), turns: VecDeque::new() }
    }

    /// A request comes.
    pub fn enter(&mut self, source: &str) -> Entry {
        // Nobody waits while a place is free.
        if self.free > 0 {
            self.free -= 1;
            return Entry::Place;
        }
        if self.waiting.get(source).map_or(self.waiting.len() >= SOURCES_MAX, |queue| queue.len() >= QUEUE_MAX) {
            return Entry::Full;
        }
        let ticket = self.next;
        self.next += 1;
        if !self.waiting.contains_key(source) {
            self.turns.push_back(source.to_owned());
        }
        self.waiting.entry(source.to_owned()).or_default().push_back(ticket);
        Entry::Wait(ticket)
    }

    /// A request is done; the one that is named has its place now.
    pub fn leave(&mut self) -> Option<Ticket> {
        let Some(source) = self.turns.pop_front() else {
            self.free += 1;
            return None;
        };
        let queue = self.waiting.get_mut(&source);
        let ticket = queue.and_then(VecDeque::pop_front);
        self.keep_turn(source);
        ticket
    }

    /// A request waits no longer. False where it has a place already.
    pub fn give_up(&mut self, source: &str, ticket: Ticket) -> bool {
        let Some(queue) = self.waiting.get_mut(source) else { return false };
        let Some(at) = queue.iter().position(|waiting| *waiting == ticket) else { return false };
        queue.remove(at);
        if queue.is_empty() {
            self.waiting.remove(source);
            self.turns.retain(|turn| turn != source);
        }
        true
    }

    /// Behind the others, if more of it wait.
    fn keep_turn(&mut self, source: String) {
        if self.waiting.get(&source).is_some_and(|queue| !queue.is_empty()) {
            self.turns.push_back(source);
        } else {
            self.waiting.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::control::retry::Chance;

    #[test]
    fn a_flood_waits_behind_itself() {
        let mut places = Places::new(2);
        assert_eq!((places.enter("flood"), places.enter("flood")), (Entry::Place, Entry::Place));
        let flood: Vec<_> = (0..=QUEUE_MAX).map(|_| places.enter("flood")).collect();
        assert_eq!(flood[QUEUE_MAX], Entry::Full);
        let Entry::Wait(other) = places.enter("other") else { panic!("it has a queue of its own") };
        let turns = [places.leave(), places.leave()];
        assert_eq!(turns[1], Some(other), "one of the flood goes first at most");
    }

    #[test]
    fn invented_sources_are_bounded() {
        let mut places = Places::new(0);
        let entered = (0..2 * SOURCES_MAX).map(|n| places.enter(&n.to_string()));
        assert_eq!(entered.filter(|entry| *entry == Entry::Full).count(), SOURCES_MAX);
    }

    /// One place after the other to whoever waits, told from plain lists.
    fn is_fair(mut next: impl FnMut(&mut Places) -> Option<Ticket>, seed: u64) -> Result<(), String> {
        let mut chance = Chance::new(seed);
        let most = chance.up_to(4) as usize;
        let mut places = Places::new(most);
        let (mut waiting, mut taken): (Vec<(usize, Ticket)>, usize) = (Vec::new(), 0);
        // Who was served since this source began to wait, or was served itself.
        let mut since = vec![BTreeSet::new(); 4];
        for _ in 0..500 {
            let source = chance.up_to(3) as usize;
            match chance.up_to(3) {
                0 | 1 => match places.enter(&source.to_string()) {
                    Entry::Place => taken += 1,
                    Entry::Wait(ticket) => waiting.push((source, ticket)),
                    Entry::Full => {}
                },
                2 if taken > 0 => match next(&mut places) {
                    None => taken -= 1,
                    Some(ticket) => {
                        let at = waiting.iter().position(|w| w.1 == ticket).ok_or("nobody has this ticket")?;
                        let served = waiting.remove(at).0;
                        if waiting.iter().any(|w| w.0 == served && w.1 < ticket) {
                            return Err(format!("{ticket} went before an older one of its source"));
                        }
                        since[served].clear();
                        let others: BTreeSet<usize> = waiting.iter().map(|w| w.0).filter(|o| *o != served).collect();
                        if let Some(other) = others.into_iter().find(|other| !since[*other].insert(served)) {
                            return Err(format!("{served} was served twice while {other} waited"));
                        }
                    }
                },
                _ => {
                    if let Some(at) = waiting.iter().position(|w| w.0 == source) {
                        let (source, ticket) = waiting.remove(at);
                        if !places.give_up(&source.to_string(), ticket) || places.give_up(&source.to_string(), ticket) {
                            return Err("it was waiting, once".to_owned());
                        }
                        if !waiting.iter().any(|w| w.0 == source) {
                            since[source].clear();
                        }
                    }
                }
            }
            if taken > most || (taken < most && !waiting.is_empty()) {
                return Err(format!("{taken} of {most} places are taken and {} wait", waiting.len()));
            }
        }
        Ok(())
    }

    /// The same without turns: the oldest ticket first.
    fn oldest_first(places: &mut Places) -> Option<Ticket> {
        let oldest = places.waiting.iter().min_by_key(|(_, queue)| queue.front().copied()).map(|(s, _)| s.clone());
        if let Some(source) = oldest {
            places.turns.retain(|turn| *turn != source);
            places.turns.push_front(source);
        }
        places.leave()
    }

    #[test]
    fn sources_are_served_in_turn() {
        for seed in 0..300 {
            is_fair(Places::leave, seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
        assert!((0..300).any(|seed| is_fair(oldest_first, seed).is_err()), "first come, first served is caught");
    }
}
