//! The slow look at every row: damage is found before somebody needs the row.
//!
//! Owns the pace; reads only, and hands what does not hold to whoever may write.

use rusqlite::params;

use super::codes::{num, sql};
use super::store::{DAMAGED, Store};
use super::{SpoolError, sources, sum};
use crate::control::types::State;

/// Rows per sweep: about a millisecond each second.
const STEP: u32 = 128;
/// One pass a day: flash forgets slowly.
const PASS_EVERY_MS: u64 = 86_400_000;

/// How far the pass has come.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    after: u64,
    /// Powered-on milliseconds before which no new pass begins.
    not_before_ms: u64,
}

/// What does not hold.
#[derive(Debug, Default)]
pub(super) struct Wrong {
    /// Requests, by sequence number.
    pub(super) seqs: Vec<u64>,
    /// Any source.
    pub(super) sources: bool,
}

/// Looks at the next few rows, and at the sources once a pass.
pub(super) fn step(store: &mut Store) -> Result<Wrong, SpoolError> {
    let now = store.powered.now_ms();
    if now < store.scrub.not_before_ms {
        return Ok(Wrong::default());
    }
    let sources = store.scrub.after == 0 && sources::is_wrong(&store.conn)?;
    let seqs = next(store)?;
    match seqs.last() {
        Some(last) => store.scrub.after = *last,
        None => store.scrub = Scrub { after: 0, not_before_ms: now.saturating_add(PASS_EVERY_MS) },
    }
    let mut wrong = Vec::new();
    for seq in seqs {
        let row = store.by_seq(seq)?;
        let found = row.map(|row| store.by_id(&row.id)).transpose()?.flatten();
        if found.is_none_or(|row| row.seq != seq) {
            return Err(SpoolError::Damaged("a request is not where its table or its index says".into()));
        }
        if !sum::holds(&store.conn, seq)? || !sum::answers_hold(&store.conn, seq)? {
            wrong.push(seq);
        }
    }
    Ok(Wrong { seqs: wrong, sources })
}

fn next(store: &Store) -> Result<Vec<u64>, SpoolError> {
    let mut statement = store.conn.prepare_cached("SELECT seq FROM request WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
    let rows = statement.query_map([sql(store.scrub.after), i64::from(STEP)], |r| r.get(0).map(num))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Sets requests aside whose sum still does not hold, and mends sources. A request that is being sent is left to its
/// attempt's end.
pub(super) fn set_right(store: &mut Store, wrong: &Wrong) -> Result<(), SpoolError> {
    if wrong.sources {
        store.mend_sources()?;
    }
    // Of what is behind a better copy may be on its way.
    for seq in &wrong.seqs {
        let row = store.by_seq(*seq)?.filter(|row| row.state != State::Sending && !store.rescue.behind.has(row.seq));
        let Some(row) = row else { continue };
        if !sum::holds(&store.conn, *seq)? || !sum::answers_hold(&store.conn, *seq)? {
            store.set_aside(&row)?;
            let text = "UPDATE answer SET size = size WHERE seq = ?1";
            store.conn.prepare_cached(text)?.execute([sql(*seq)])?;
        }
    }
    Ok(())
}

/// Marks a request that is over as damaged, because bytes of an answer of it are lost; one that waits gets another answer.
pub(super) fn tell_unreadable(store: &mut Store, seq: u64) -> Result<(), SpoolError> {
    store.rescue.behind.check(seq)?;
    let text = "UPDATE request SET reason = ?2 WHERE seq = ?1 AND state >= 3 AND reason IS NOT ?2";
    if store.conn.prepare_cached(text)?.execute(params![sql(seq), DAMAGED])? > 0 {
        tracing::error!(
            seq,
            HOLDFAST_REASON = DAMAGED,
            "an answer of a stored request is damaged: it is left out from now on"
        );
    }
    Ok(())
}
