//! Random scripts against a plain in-memory queue: same order, same states, same counters, over restarts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::control::types::State;
use crate::spool::SpoolError;
use crate::spool::record::Filter;

/// Small enough that the limit is met in most scripts.
const UNFINISHED_MAX: usize = 12;

#[derive(Debug, Clone)]
enum Step {
    Accept { source: u8, priority: u8, born_sending: bool, overdue: bool, key: Option<u8> },
    Lease(u32),
    Settle { pick: usize, how: u8 },
    Release,
    Cancel(usize),
    Retry(usize),
    Sweep,
    Purge(u8),
    Reopen { close: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let accept =
        (0..3u8, 0..4u8, prop::bool::weighted(0.2), prop::bool::weighted(0.1), prop::option::weighted(0.2, 0..3u8))
            .prop_map(|(source, priority, born_sending, overdue, key)| Step::Accept {
                source,
                priority,
                born_sending,
                overdue,
                key,
            });
    prop_oneof![
        8 => accept,
        4 => (1..4u32).prop_map(Step::Lease),
        6 => (any::<usize>(), 0..6u8).prop_map(|(pick, how)| Step::Settle { pick, how }),
        1 => Just(Step::Release),
        1 => any::<usize>().prop_map(Step::Cancel),
        2 => any::<usize>().prop_map(Step::Retry),
        1 => Just(Step::Sweep),
        1 => (3..8u8).prop_map(Step::Purge),
        1 => any::<bool>().prop_map(|close| Step::Reopen { close }),
    ]
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    source: u8,
    priority: u8,
    state: State,
    deferred: bool,
    overdue: bool,
    attempts: u32,
    maybe_billed: bool,
    evicted_body: bool,
    key: Option<u8>,
}

/// What the spool is supposed to be, without a disk.
#[derive(Debug, Default)]
struct Model {
    rows: BTreeMap<u64, Row>,
    next: u64,
    turn: u64,
    starts: usize,
    /// When each lane with ready rows was served, or came to have some.
    turns: BTreeMap<(u8, u8), u64>,
    /// Sources in the order of their first acceptance, which breaks ties among lanes.
    sources: Vec<u8>,
}

impl Model {
    fn unfinished(&self) -> usize {
        self.rows.values().filter(|r| !r.state.is_final()).count()
    }

    fn accept(&mut self, row: Row) -> Result<(u64, bool), SpoolError> {
        let same = self.rows.iter().find(|(_, r)| row.key.is_some() && (r.source, r.key) == (row.source, row.key));
        if let Some((seq, _)) = same {
            return Ok((*seq, true));
        }
        while self.unfinished() >= UNFINISHED_MAX {
            let victim = self
                .rows
                .iter()
                .filter(|(_, r)| r.state == State::Queued && r.priority > row.priority)
                .min_by_key(|(seq, r)| (u8::MAX - r.priority, **seq))
                .map(|(seq, _)| *seq);
            let victim = self.rows.get_mut(&victim.ok_or(SpoolError::QueueFull)?).unwrap();
            (victim.state, victim.deferred, victim.evicted_body) = (State::Evicted, false, true);
        }
        if !self.sources.contains(&row.source) {
            self.sources.push(row.source);
        }
        self.next += 1;
        self.rows.insert(self.next, row);
        Ok((self.next, false))
    }

    /// After each step: lanes that came to have ready rows stand at the end of the line, in the order of their rows.
    fn line_up(&mut self) {
        let ready = self.rows.values().filter(|r| r.state == State::Queued && !r.deferred);
        let lanes: Vec<_> = ready.map(|r| (r.priority, r.source)).collect();
        self.turns.retain(|lane, _| lanes.contains(lane));
        for lane in lanes {
            self.turns.entry(lane).or_insert_with(|| {
                self.turn += 1;
                self.turn
            });
        }
    }

    fn lease(&mut self, max: u32) -> Vec<u64> {
        let mut leased = Vec::new();
        while leased.len() < max as usize {
            let rank = |source: u8| self.sources.iter().position(|s| *s == source);
            let ready = self.rows.iter().filter(|(_, r)| r.state == State::Queued && !r.deferred);
            let next = ready.min_by_key(|(seq, r)| {
                let lane = (r.priority, r.source);
                (r.priority, self.turns.get(&lane).copied().unwrap_or(0), rank(r.source), **seq)
            });
            let Some(seq) = next.map(|(seq, _)| *seq) else { break };
            let row = self.rows.get_mut(&seq).unwrap();
            self.turn += 1;
            self.turns.insert((row.priority, row.source), self.turn);
            row.state = if row.overdue { State::Expired } else { State::Sending };
            if !row.overdue {
                leased.push(seq);
            }
        }
        leased
    }

    fn settle(&mut self, seq: u64, how: u8) {
        let Some(row) = self.rows.get_mut(&seq).filter(|r| r.state == State::Sending) else { return };
        match how {
            0 | 1 => row.state = State::Answered,
            5 => row.state = State::Dead,
            _ => {
                row.state = State::Queued;
                row.attempts += u32::from(how == 2);
                row.deferred = how == 3;
                row.maybe_billed |= how == 4;
            }
        }
    }

    fn retry(&mut self, seq: u64) {
        let full = self.unfinished() >= UNFINISHED_MAX;
        let row = self.rows.get_mut(&seq).unwrap();
        let failed = row.state.is_final() && row.state != State::Answered && !row.evicted_body;
        if failed && !full {
            (row.state, row.attempts) = (State::Queued, 0);
        }
    }

    fn reopen(&mut self) {
        for row in self.rows.values_mut() {
            row.deferred = false;
            if row.state == State::Sending {
                row.state = if row.maybe_billed { State::Dead } else { State::Queued };
                row.maybe_billed = true;
            }
        }
        // A start knows no turns, and begins with the next source.
        self.starts += 1;
        let rank = |source: u8| self.sources.iter().position(|s| *s == source);
        let ready = self.rows.values().filter(|r| r.state == State::Queued);
        let lanes: BTreeMap<_, _> = ready.map(|r| ((r.priority, rank(r.source)), r.source)).collect();
        self.turns.clear();
        for priority in 0..4 {
            let sources: Vec<u8> = lanes.iter().filter(|(lane, _)| lane.0 == priority).map(|(_, s)| *s).collect();
            let count = sources.len();
            for (at, source) in sources.into_iter().enumerate() {
                let turn = (at + count - self.starts % count) % count;
                self.turns.insert((priority, source), turn as u64);
            }
        }
        self.turn += lanes.len() as u64;
    }
}

fn id(n: u64) -> String {
    format!("r{n}")
}

fn how_of(how: u8) -> Settlement {
    match how {
        0 => answered("small"),
        1 => answered(vec![1; 70_000]),
        5 => dead(),
        _ => requeue(how == 2, how == 3, how == 4),
    }
}

async fn accept(spool: &Spool, model: &mut Model, row: Row, made: &mut u64) {
    *made += 1;
    // A key's body must be the same each time, or the key counts as reused.
    let body = request(&row.key.map_or_else(|| id(*made), |k| format!("k{k}")));
    let new = NewRequest {
        id: id(*made),
        source: format!("s{}", row.source),
        priority: Priority::from_rank(row.priority).unwrap(),
        leased: row.state == State::Sending,
        ttl_ms: if row.overdue { 0 } else { HOUR },
        idempotency_key: row.key.map(|k| format!("k{k}")),
        ..body
    };
    let real = spool.accept(new).await.map(|a| (a.seq, a.existing));
    assert_eq!(real, model.accept(row));
}

async fn play(script: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    (options.max_requests, options.evict_when_full) = (UNFINISHED_MAX as u64, true);
    let mut spool = open(options.clone()).unwrap();
    let (mut model, mut made) = (Model { starts: 1, ..Model::default() }, 0);
    for step in script {
        let known: Vec<u64> = model.rows.keys().copied().collect();
        let pick = |n: usize| (!known.is_empty()).then(|| known[n % known.len()]);
        match step {
            Step::Accept { source, priority, born_sending, overdue, key } => {
                let state = if born_sending { State::Sending } else { State::Queued };
                let (attempts, deferred, maybe_billed, evicted_body) = (0, false, false, false);
                let row = Row { source, priority, state, deferred, overdue, attempts, maybe_billed, evicted_body, key };
                accept(&spool, &mut model, row, &mut made).await;
            }
            Step::Lease(max) => {
                let real: Vec<u64> = spool.lease(max).await.unwrap().iter().map(|l| l.seq).collect();
                assert_eq!(real, model.lease(max));
            }
            Step::Settle { pick: n, how } => {
                let Some(seq) = pick(n) else { continue };
                spool.settle(seq, how_of(how)).await.unwrap();
                model.settle(seq, how);
            }
            Step::Release => {
                spool.release(known.clone()).await.unwrap();
                model.rows.values_mut().for_each(|r| r.deferred = false);
            }
            Step::Cancel(n) => {
                let Some(seq) = pick(n) else { continue };
                let name = name_of(&spool, seq).await;
                spool.cancel(name).await.unwrap();
                let row = model.rows.get_mut(&seq).unwrap();
                if row.state == State::Queued {
                    (row.state, row.deferred) = (State::Cancelled, false);
                }
            }
            Step::Retry(n) => {
                let Some(seq) = pick(n) else { continue };
                let _ = spool.retry(name_of(&spool, seq).await).await;
                model.retry(seq);
            }
            Step::Sweep => {
                spool.sweep().await.unwrap();
                let due = model.rows.values_mut().filter(|r| r.overdue && r.state == State::Queued);
                due.for_each(|r| (r.state, r.deferred) = (State::Expired, false));
            }
            Step::Purge(state) => {
                let state = State::ALL[usize::from(state)];
                spool.purge(state).await.unwrap();
                model.rows.retain(|_, r| r.state != state);
            }
            Step::Reopen { close } => {
                if close {
                    spool.close().await;
                }
                drop(spool);
                spool = open(options.clone()).unwrap();
                model.reopen();
                assert_counted(&spool).await;
            }
        }
        model.line_up();
        same(&spool, &model).await;
    }
    assert_counted(&spool).await;
}

async fn name_of(spool: &Spool, seq: u64) -> String {
    spool.list(Filter { after: seq - 1, limit: 1, ..Filter::default() }).await.unwrap().remove(0).id
}

async fn same(spool: &Spool, model: &Model) {
    let real = spool.list(Filter { limit: 1_000, ..Filter::default() }).await.unwrap();
    let real: Vec<_> = real.iter().map(|r| (r.seq, r.state, r.attempts, r.maybe_billed)).collect();
    let want: Vec<_> = model.rows.iter().map(|(seq, r)| (*seq, r.state, r.attempts, r.maybe_billed)).collect();
    assert_eq!(real, want);
    let tally = spool.tally();
    for state in State::ALL {
        let count = model.rows.values().filter(|r| r.state == state).count() as u64;
        assert_eq!(tally.in_state(state), count, "{state}");
    }
    let ready = model.rows.values().filter(|r| r.state == State::Queued && !r.deferred).count() as u64;
    assert_eq!(tally.ready, ready);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_script_ends_as_the_model_says(script in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(play(script));
    }
}
