//! Whose turn it is: how many requests each source has unfinished, and which of them are ready.
//!
//! Owns these counts and the order of turns, in memory only: on disk they would be three more pages to write for each
//! commit. They are counted from indexes when the file is opened, and follow every change of a row from then on.

use std::collections::{BTreeMap, HashMap};

use rusqlite::Connection;

use super::SpoolError;

/// The requests of one source and priority: their priority's number, then the source's.
pub(super) type Lane = (i64, i64);

/// What stands in a lane.
#[derive(Debug, Default, Clone, Copy)]
struct Waiting {
    ready: i64,
    /// The turn in which it was served, or came to have work.
    turn: u64,
}

/// One change of the batch that runs, so that it can be taken back.
#[derive(Debug, Clone, Copy)]
struct Change {
    lane: Lane,
    unfinished: i64,
    ready: i64,
}

/// Every source with unfinished requests and every lane with ready ones: no more than requests may be unfinished.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    unfinished: HashMap<i64, i64>,
    waiting: BTreeMap<Lane, Waiting>,
    /// The latest turn given out.
    turn: u64,
    /// Those of the batch that runs, in order: two at most for each row that it moves.
    changes: Vec<Change>,
}

/// By index alone: 100,000 entries are a megabyte.
pub(super) const READY: &str = "SELECT priority, source_id, count(*) FROM request INDEXED BY request_ready
    WHERE state = 0 AND deferred = 0 GROUP BY priority, source_id";
pub(super) const ASIDE: &str = "SELECT source_id, count(*) FROM request INDEXED BY request_aside
    WHERE state = 0 AND deferred > 0 GROUP BY source_id";
/// Few: what is being sent.
pub(super) const ON_THEIR_WAY: &str = "SELECT source_id, count(*) FROM request INDEXED BY request_state
    WHERE state > 0 AND state < 3 GROUP BY source_id";

/// Unfinished requests by source, and ready ones by lane in order.
#[cfg(test)]
pub(super) type Counted = (BTreeMap<i64, i64>, Vec<(Lane, i64)>);

impl Lanes {
    /// Counts what stands in the file.
    pub(super) fn count(conn: &Connection) -> Result<Lanes, SpoolError> {
        let mut counted = Lanes::default();
        let mut ready = conn.prepare_cached(READY)?;
        let mut rows = ready.query([])?;
        while let Some(row) = rows.next()? {
            let (lane, count): (Lane, i64) = ((row.get(0)?, row.get(1)?), row.get(2)?);
            if counted.waiting.insert(lane, Waiting { ready: count, turn: 0 }).is_some() {
                // Groups come in the index's order, each once.
                return Err(SpoolError::Damaged("the index of ready requests is out of order".into()));
            }
            *counted.unfinished.entry(lane.1).or_default() += count;
        }
        for text in [ASIDE, ON_THEIR_WAY] {
            let mut others = conn.prepare_cached(text)?;
            let mut rows = others.query([])?;
            while let Some(row) = rows.next()? {
                *counted.unfinished.entry(row.get(0)?).or_default() += row.get::<_, i64>(1)?;
            }
        }
        Ok(counted)
    }

    /// Turns are not kept: each start begins with the next lane of a priority, or many short lives would serve the first
    /// source alone.
    pub(super) fn begin(&mut self, starts: u64) {
        let mut of_priority: BTreeMap<i64, Vec<&mut Waiting>> = BTreeMap::new();
        for ((priority, _), waiting) in &mut self.waiting {
            of_priority.entry(*priority).or_default().push(waiting);
        }
        for lanes in of_priority.into_values() {
            let count = lanes.len() as u64;
            self.turn = self.turn.max(count);
            for (at, waiting) in (0u64..).zip(lanes) {
                waiting.turn = (at + count - starts % count) % count;
            }
        }
    }

    /// Counts a row in or out. A lane that comes to have work stands at the end of the line, or a source that asks for
    /// one thing at a time would always be first.
    pub(super) fn change(&mut self, lane: Lane, unfinished: i64, ready: i64) {
        if unfinished != 0 || ready != 0 {
            let change = Change { lane, unfinished, ready };
            self.apply(change);
            self.changes.push(change);
        }
    }

    fn apply(&mut self, change: Change) {
        if change.unfinished != 0 {
            *self.unfinished.entry(change.lane.1).or_default() += change.unfinished;
        }
        if change.ready != 0 {
            let turn = &mut self.turn;
            let waiting = self.waiting.entry(change.lane).or_insert_with(|| {
                *turn += 1;
                Waiting { ready: 0, turn: *turn }
            });
            waiting.ready += change.ready;
        }
    }

    /// How many changes the batch has made so far.
    pub(super) fn changes(&self) -> usize {
        self.changes.len()
    }

    /// Takes back all but the first `kept` changes of the batch.
    pub(super) fn take_back(&mut self, kept: usize) {
        let undone = self.changes.split_off(kept.min(self.changes.len()));
        for Change { lane, unfinished, ready } in undone.iter().rev().copied() {
            self.apply(Change { lane, unfinished: -unfinished, ready: -ready });
        }
        self.forget_empty(&undone);
    }

    /// The batch is committed: its changes stand, and what has no work any more is forgotten.
    pub(super) fn stand(&mut self) {
        let stood = std::mem::take(&mut self.changes);
        self.forget_empty(&stood);
    }

    fn forget_empty(&mut self, changes: &[Change]) {
        for Change { lane, .. } in changes {
            if self.waiting.get(lane).is_some_and(|waiting| waiting.ready <= 0) {
                self.waiting.remove(lane);
            }
            if self.unfinished.get(&lane.1).is_some_and(|count| *count <= 0) {
                self.unfinished.remove(&lane.1);
            }
        }
    }

    /// Unfinished requests of a source.
    pub(super) fn unfinished_of(&self, source_id: i64) -> u64 {
        self.unfinished.get(&source_id).map_or(0, |count| u64::try_from(*count).unwrap_or(0))
    }

    /// Sources with unfinished requests.
    pub(super) fn sources(&self) -> impl Iterator<Item = i64> {
        self.unfinished.keys().copied()
    }

    /// Ready requests of this priority and the more urgent ones.
    pub(super) fn ready_through(&self, priority: i64) -> u64 {
        let ready = self.waiting.range(..=(priority, i64::MAX)).map(|(_, waiting)| waiting.ready.max(0));
        u64::try_from(ready.sum::<i64>()).unwrap_or(0)
    }

    /// Lanes with work in the order of their turns: the most urgent first, then the one that waited longest.
    pub(super) fn in_turn(&self) -> Vec<Lane> {
        let mut lanes: Vec<_> = self.with_work().map(|(lane, turn)| (lane.0, turn, lane.1)).collect();
        lanes.sort_unstable();
        lanes.into_iter().map(|(priority, _, source_id)| (priority, source_id)).collect()
    }

    /// The first of them.
    pub(super) fn next(&self) -> Option<Lane> {
        let urgent = self.with_work().next()?.0.0;
        let its = self.with_work().take_while(|(lane, _)| lane.0 == urgent);
        its.min_by_key(|(lane, turn)| (*turn, lane.1)).map(|(lane, _)| lane)
    }

    fn with_work(&self) -> impl Iterator<Item = (Lane, u64)> {
        self.waiting.iter().filter(|(_, waiting)| waiting.ready > 0).map(|(lane, waiting)| (*lane, waiting.turn))
    }

    /// It was this lane's turn.
    pub(super) fn served(&mut self, lane: Lane) {
        self.turn += 1;
        if let Some(waiting) = self.waiting.get_mut(&lane) {
            waiting.turn = self.turn;
        }
    }

    /// What is counted, without what is nought.
    #[cfg(test)]
    pub(super) fn counts(&self) -> Counted {
        let unfinished = self.unfinished.iter().filter(|(_, count)| **count != 0).map(|(id, count)| (*id, *count));
        let ready = self.waiting.iter().filter(|(_, waiting)| waiting.ready != 0);
        (unfinished.collect(), ready.map(|(lane, waiting)| (*lane, waiting.ready)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URGENT: Lane = (0, 7);
    const A: Lane = (2, 1);
    const B: Lane = (2, 2);

    fn with(ready: &[(Lane, i64)]) -> Lanes {
        let mut lanes = Lanes::default();
        for (lane, count) in ready {
            lanes.change(*lane, *count, *count);
        }
        lanes.stand();
        lanes
    }

    /// Hands out one request of the lane whose turn it is.
    fn hand_out(lanes: &mut Lanes) -> Option<Lane> {
        let lane = lanes.next()?;
        lanes.served(lane);
        lanes.change(lane, 0, -1);
        lanes.stand();
        Some(lane)
    }

    #[test]
    fn the_most_urgent_first_then_sources_in_turn() {
        let mut lanes = with(&[(A, 2), (B, 3), (URGENT, 1)]);
        assert_eq!(lanes.in_turn(), [URGENT, A, B]);
        let order: Vec<Lane> = std::iter::from_fn(|| hand_out(&mut lanes)).collect();
        assert_eq!(order, [URGENT, A, B, A, B, B]);
    }

    #[test]
    fn a_source_that_asks_for_one_thing_at_a_time_waits_its_turn() {
        let mut lanes = with(&[(A, 4), (B, 4), ((2, 3), 1)]);
        let mut order = Vec::new();
        for _ in 0..9 {
            let lane = hand_out(&mut lanes).unwrap();
            if lane == (2, 3) {
                lanes.change(lane, 0, 1);
                lanes.stand();
            }
            order.push(lane.1);
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn what_is_taken_back_was_never_counted() {
        let mut lanes = with(&[(A, 2)]);
        let before = lanes.counts();
        lanes.change(A, 1, 1);
        let kept = lanes.changes();
        lanes.change(A, -3, -3);
        lanes.change(B, 1, 1);
        lanes.take_back(kept);
        assert_eq!((lanes.unfinished_of(1), lanes.unfinished_of(2), lanes.next()), (3, 0, Some(A)));
        lanes.take_back(0);
        assert_eq!(lanes.counts(), before);
        // A lane that never was has no old turn.
        lanes.change(B, 1, 1);
        lanes.served(A);
        lanes.take_back(0);
        lanes.change(B, 1, 1);
        assert_eq!(lanes.next(), Some(A));
    }

    #[test]
    fn each_start_begins_with_another_source() {
        let first = |starts: u64| {
            let mut lanes = with(&[(A, 9), (B, 1), ((2, 3), 1), (URGENT, 1)]);
            lanes.begin(starts);
            let order: Vec<Lane> = std::iter::from_fn(|| hand_out(&mut lanes)).take(4).collect();
            assert_eq!(order[0], URGENT);
            order[1..].iter().map(|lane| lane.1).collect::<Vec<_>>()
        };
        assert_eq!([first(1), first(2), first(3)], [[2, 3, 1], [3, 1, 2], [1, 2, 3]]);
    }

    #[test]
    fn what_is_ready_is_told_by_priority() {
        let lanes = with(&[(A, 1), (B, 1), (URGENT, 3)]);
        assert_eq!((lanes.ready_through(0), lanes.ready_through(1), lanes.ready_through(2)), (3, 3, 5));
    }
}
