//! The open database with its counters, and the few moves every operation is made of.
//!
//! Owns the invariant that counters, lanes and rows change together; never decides which row moves.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::ballast::Ballast;
use super::codes::{self, num, sql, state_code};
use super::lanes::Lanes;
use super::outcomes::{Line, Outcomes};
use super::powered::{Mark, Powered};
use super::{Condition, Options, SpoolError, device, sources, sum};
use crate::control::types::State;

/// Everything that is counted instead of asked; persisted with each commit in the row `service`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) requests: [u64; 8],
    pub(super) ready: u64,
    pub(super) backlog_bytes: u64,
    pub(super) kept_bytes: u64,
    pub(super) answer_bytes: u64,
    pub(super) next_seq: u64,
    /// Counts commits: each has its own.
    pub(super) turn: u64,
    /// How often this spool was opened; names deferrals and files.
    pub(super) starts: u64,
}

impl Counts {
    pub(super) fn unfinished(&self) -> u64 {
        State::ALL.iter().filter(|s| !s.is_final()).map(|s| self.requests[*s as usize]).sum()
    }

    pub(super) fn finished(&self) -> u64 {
        State::ALL.iter().filter(|s| s.is_final()).map(|s| self.requests[*s as usize]).sum()
    }
}

/// What is to be done once the batch is committed, and not at all where it is not.
#[derive(Debug, Default, Clone)]
pub(super) struct Effects {
    /// Body files no row names any more.
    pub(super) unlink: Vec<String>,
    /// Handed out, and not settled.
    pub(super) held: Vec<u64>,
    /// No longer held.
    pub(super) freed: Vec<u64>,
    /// Requests that ended by themselves; told by the next sweep.
    pub(super) notices: Vec<(u64, String, State)>,
    /// For the outcome log.
    pub(super) outcomes: Vec<Line>,
    /// Accepted from a caller who was told nothing yet.
    pub(super) accepted: Vec<Accepted>,
    /// Leases ended by a caller who was told nothing yet.
    pub(super) settled: Vec<u64>,
}

/// One acceptance, and what it took the place of.
#[derive(Debug, Clone)]
pub(super) struct Accepted {
    pub(super) seq: u64,
    /// The mailbox it was written into, and what that held before.
    pub(super) mailbox: Option<device::Before>,
}

impl Effects {
    fn lengths(&self) -> [usize; 7] {
        [
            self.unlink.len(),
            self.held.len(),
            self.freed.len(),
            self.notices.len(),
            self.outcomes.len(),
            self.accepted.len(),
            self.settled.len(),
        ]
    }

    fn truncate(&mut self, to: [usize; 7]) {
        self.unlink.truncate(to[0]);
        self.held.truncate(to[1]);
        self.freed.truncate(to[2]);
        self.notices.truncate(to[3]);
        self.outcomes.truncate(to[4]);
        self.accepted.truncate(to[5]);
        self.settled.truncate(to[6]);
    }
}

/// The part of a row that moves decide by.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) seq: u64,
    pub(super) id: String,
    pub(super) source_id: i64,
    pub(super) priority: i64,
    pub(super) state: State,
    pub(super) deferred: bool,
    pub(super) maybe_billed: bool,
    pub(super) body_bytes: u64,
    pub(super) body_kept: bool,
    pub(super) body_file: Option<String>,
    pub(super) expires_at: u64,
    pub(super) ttl_ms: u64,
    /// A device wants the local model's answer and no other: no uplink is ever to have it.
    pub(super) local_only: bool,
    /// Grows with every change of the row.
    pub(super) version: u64,
}

impl Standing {
    fn place(&self) -> Place {
        Place { source_id: self.source_id, priority: self.priority, body_bytes: self.body_bytes }
    }
}

/// What a row counts for, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) source_id: i64,
    pub(super) priority: i64,
    pub(super) body_bytes: u64,
}

/// Why a request was set aside whose stored bytes are not what was written.
pub(super) const DAMAGED: &str = "damaged";

/// Deferred in a start that never comes: a request that no uplink may have is not handed out for one.
pub(super) const FOR_EVER: i64 = i64::MAX;

const STANDING: &str = "SELECT seq, id, source_id, priority, state, deferred, maybe_billed, body_bytes, body_kept,
    body_file, expires_at, ttl_ms, version, content IS NOT NULL AND policy = 1 FROM request";

/// What was asked of the database once for many acceptances. Emptied when the file is opened anew and when anything is
/// rolled back, because a source may go with it.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Numbers of sources, by name; emptied when it is full, and when a name was mended.
    pub(super) sources: HashMap<String, i64>,
    /// The cap on the file's pages, and the bytes of one.
    pub(super) page_cap: Option<(u64, u64)>,
    /// Bytes that this batch may still take below the cap, without those that are kept for outcomes.
    pub(super) room: Option<u64>,
}

/// The connection and what belongs to it.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) conn: Connection,
    pub(super) options: Arc<Options>,
    pub(super) powered: Powered,
    pub(super) counts: Counts,
    pub(super) effects: Effects,
    /// Leases of this process; after a failed commit they tell a real lease from a mark nobody saw.
    pub(super) held: HashSet<u64>,
    /// Held leases whose end stands although its caller was told an error: until it is told again, the request is handed
    /// out to nobody, or that would end the newer lease.
    pub(super) unheard: HashSet<u64>,
    /// Endings nobody asked for, until the next sweep tells them.
    pub(super) told: Vec<(u64, String, State)>,
    pub(super) free: super::accept::FreeSpace,
    pub(super) asked: Asked,
    pub(super) lanes: Lanes,
    /// An unguarded operation failed after it had written something: its batch cannot stand.
    pub(super) is_half_written: bool,
    /// The unguarded operation that runs has written something.
    pub(super) has_written: bool,
    pub(super) orphans: super::sweep::Orphans,
    pub(super) outcomes: Outcomes,
    pub(super) ballast: Ballast,
    pub(super) scrub: super::scrub::Scrub,
    pub(super) rescue: super::rescue::Rescue,
    /// Keys in `device_key`, about: counted once, then kept up.
    pub(super) device_keys: u64,
    /// Something read was not what was written: the file is to be set aside.
    pub(super) hurt: bool,
    pub(super) condition: Condition,
    #[cfg(test)]
    pub(super) faults: Faults,
}

/// What goes wrong next, once each.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// A commit lands and reports an error.
    pub(super) commit_lies: bool,
    /// The file cannot be opened again.
    pub(super) stays_shut: bool,
}

impl Store {
    /// Before each transaction.
    pub(super) fn begin_batch(&mut self) {
        (self.asked.room, self.is_half_written) = (None, false);
    }

    /// After a transaction that was undone, and before the file is opened anew.
    pub(super) fn forget_batch(&mut self) {
        self.lanes.take_back(0);
        (self.asked, self.is_half_written) = (Asked::default(), false);
    }

    /// Gives the reserve up. An older reading of the free space must not let a new request have it.
    pub(super) fn give_up_ballast(&mut self) -> bool {
        self.free = super::accept::FreeSpace::default();
        self.ballast.give_up()
    }

    /// Runs one operation so that its failure undoes itself and nothing else.
    pub(super) fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Store) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        let (counts, effects, changes) = (self.counts, self.effects.lengths(), self.lanes.changes());
        self.conn.prepare_cached("SAVEPOINT one")?.execute([])?;
        let done = work(self).and_then(|value| {
            self.conn.prepare_cached("RELEASE one")?.execute([])?;
            Ok(value)
        });
        self.note(&done);
        if done.is_err() {
            self.counts = counts;
            self.lanes.take_back(changes);
            self.effects.truncate(effects);
            self.asked = Asked::default();
            self.has_written = false;
            // Where SQLite has ended the whole transaction by itself, the batch sees that and fails as a whole.
            if !self.conn.is_autocommit() {
                self.conn.execute_batch("ROLLBACK TO one; RELEASE one")?;
            }
        }
        done
    }

    /// Runs one operation without a savepoint, which would copy every page that it touches. It must know that it fits before
    /// it writes; where it fails after [`Store::wrote`], the whole batch is undone.
    pub(super) fn unguarded<T>(
        &mut self,
        work: impl FnOnce(&mut Store) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        self.has_written = false;
        let done = work(self);
        self.note(&done);
        self.is_half_written |= done.is_err() && self.has_written;
        done
    }

    /// Said by an unguarded operation: a failure from here on leaves half of it.
    pub(super) fn wrote(&mut self) {
        self.has_written = true;
    }

    /// [`Store::guarded`] inside an operation: one part of it undoes itself alone.
    pub(super) fn nested<T>(
        &mut self,
        work: impl FnOnce(&mut Store) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        let hurt = self.hurt;
        let done = self.guarded(work);
        // Damage that is brought from elsewhere says nothing about this file.
        self.hurt = hurt;
        done
    }

    /// Gives damaged sources their names back. A number that is remembered may be another's then.
    pub(super) fn mend_sources(&mut self) -> Result<(), SpoolError> {
        self.asked.sources.clear();
        sources::mend(&self.conn)
    }

    /// Remembers that the file is damaged, whoever met it.
    pub(super) fn note<T>(&mut self, done: &Result<T, SpoolError>) {
        self.hurt |= matches!(done, Err(SpoolError::Damaged(_)));
    }

    pub(super) fn by_seq(&self, seq: u64) -> Result<Option<Standing>, SpoolError> {
        let mut statement = self.conn.prepare_cached(&format!("{STANDING} WHERE seq = ?1"))?;
        statement.query_row([sql(seq)], standing).optional()?.transpose()
    }

    pub(super) fn by_id(&self, id: &str) -> Result<Option<Standing>, SpoolError> {
        let mut statement = self.conn.prepare_cached(&format!("{STANDING} WHERE id = ?1"))?;
        statement.query_row([id], standing).optional()?.transpose()
    }

    /// Moves a row to another state and keeps every counter true. The only place that writes `state`.
    pub(super) fn shift(&mut self, row: &Standing, to: State, deferred: bool) -> Result<(), SpoolError> {
        let was_ready = row.state == State::Queued && !row.deferred;
        let is_ready = to == State::Queued && !deferred && !row.local_only;
        let mark = match (to == State::Queued && row.local_only, deferred) {
            (true, _) => FOR_EVER,
            (false, true) => sql(self.counts.starts),
            (false, false) => 0,
        };
        let ended = if to.is_final() { sql(self.powered.now_ms()) } else { 0 };
        self.conn
            .prepare_cached("UPDATE request SET state = ?2, deferred = ?3, ended_at = ?4 WHERE seq = ?1")?
            .execute(params![sql(row.seq), state_code(to), mark, ended])?;
        self.leave(row, was_ready && !is_ready);
        self.enter(&row.place(), to, is_ready && !was_ready);
        if row.state == State::Sending && to != State::Sending {
            self.effects.freed.push(row.seq);
        }
        if to.is_final() {
            self.log_end(row, Some(to));
        }
        Ok(())
    }

    /// A lease's end that is found to stand already: it landed and nobody was told.
    pub(super) fn end_stands(&mut self, row: &Standing) {
        let line = Line { seq: row.seq, id: row.id.clone(), state: Some(row.state), version: row.version };
        self.effects.outcomes.push(line);
    }

    fn log_end(&mut self, row: &Standing, state: Option<State>) {
        self.effects.outcomes.push(Line { seq: row.seq, id: row.id.clone(), state, version: row.version + 1 });
    }

    fn leave(&mut self, row: &Standing, stops_ready: bool) {
        lower(&mut self.counts.requests[row.state as usize], 1);
        if !row.state.is_final() {
            lower(&mut self.counts.backlog_bytes, row.body_bytes);
        }
        if stops_ready {
            lower(&mut self.counts.ready, 1);
        }
        let (unfinished, ready) = (i64::from(!row.state.is_final()), i64::from(stops_ready));
        self.lanes.change((row.priority, row.source_id), -unfinished, -ready);
    }

    /// Counts a row in as it comes to stand in `to`.
    pub(super) fn enter(&mut self, row: &Place, to: State, gets_ready: bool) {
        self.counts.requests[to as usize] += 1;
        if !to.is_final() {
            self.counts.backlog_bytes += row.body_bytes;
        }
        if gets_ready {
            self.counts.ready += 1;
        }
        self.lanes.change((row.priority, row.source_id), i64::from(!to.is_final()), i64::from(gets_ready));
    }

    /// Ends a row with a reason; an expired or cancelled one keeps its body for `retry`.
    pub(super) fn end(&mut self, row: &Standing, to: State, reason: Option<&str>) -> Result<(), SpoolError> {
        self.shift(row, to, false)?;
        self.conn
            .prepare_cached("UPDATE request SET reason = ?2 WHERE seq = ?1")?
            .execute(params![sql(row.seq), reason])?;
        Ok(())
    }

    /// Ends a row that nobody asked to end: the next sweep tells.
    pub(super) fn end_untold(&mut self, row: &Standing, to: State, reason: &str) -> Result<(), SpoolError> {
        self.end(row, to, Some(reason))?;
        self.effects.notices.push((row.seq, row.id.clone(), to));
        Ok(())
    }

    /// A row or a body that is not as it was written: never sent, kept for whoever wants to look. Of a finished
    /// request the end stays as it is, since nothing says which part is wrong.
    pub(super) fn set_aside(&mut self, row: &Standing) -> Result<(), SpoolError> {
        tracing::error!(seq = row.seq, "a stored request is damaged: it is set aside and will not be sent");
        // What a damaged row says of its source or its lane may fit nowhere: then the file goes as a whole, or the
        // same row would stop every lease.
        let done = self.put_aside(row).and_then(|()| sum::renew(&self.conn, row.seq));
        done.map_err(|error| match error {
            SpoolError::Storage(what) => SpoolError::Damaged(what),
            other => other,
        })
    }

    fn put_aside(&mut self, row: &Standing) -> Result<(), SpoolError> {
        if !row.state.is_final() {
            return self.end_untold(row, State::Dead, DAMAGED);
        }
        self.conn
            .prepare_cached("UPDATE request SET reason = ?2 WHERE seq = ?1")?
            .execute(params![sql(row.seq), DAMAGED])?;
        Ok(())
    }

    /// Frees the bytes of a request's body; the row must already be final, so that no backlog counts them.
    pub(super) fn drop_body(&mut self, row: &Standing) -> Result<(), SpoolError> {
        if !row.body_kept {
            return Ok(());
        }
        self.conn.prepare_cached("DELETE FROM body WHERE seq = ?1")?.execute([sql(row.seq)])?;
        self.conn
            .prepare_cached("UPDATE request SET body_kept = 0, body_file = NULL WHERE seq = ?1")?
            .execute([sql(row.seq)])?;
        self.effects.unlink.extend(row.body_file.clone());
        lower(&mut self.counts.kept_bytes, row.body_bytes);
        Ok(())
    }

    /// Deletes a row with everything that belongs to it.
    pub(super) fn remove(&mut self, row: &Standing) -> Result<(), SpoolError> {
        self.drop_body(row)?;
        for local in [false, true] {
            self.drop_answer(row.seq, local)?;
        }
        self.leave(row, row.state == State::Queued && !row.deferred);
        if !row.state.is_final() {
            self.log_end(row, None);
        }
        self.conn.prepare_cached("DELETE FROM request WHERE seq = ?1")?.execute([sql(row.seq)])?;
        Ok(())
    }

    pub(super) fn drop_answer(&mut self, seq: u64, local: bool) -> Result<(), SpoolError> {
        let text = "DELETE FROM answer WHERE seq = ?1 AND local = ?2 RETURNING size, file";
        let gone = self
            .conn
            .prepare_cached(text)?
            .query_row(params![sql(seq), local], |r| Ok((num(r.get(0)?), r.get::<_, Option<String>>(1)?)))
            .optional()?;
        if let Some((size, file)) = gone {
            lower(&mut self.counts.kept_bytes, size);
            lower(&mut self.counts.answer_bytes, size);
            self.effects.unlink.extend(file);
        }
        Ok(())
    }

    /// Writes clock and counters; part of every transaction that changes anything.
    pub(super) fn save(&mut self) -> Result<(), SpoolError> {
        let (c, mark) = (&self.counts, self.powered.mark());
        let r = c.requests.map(sql);
        self.conn.prepare_cached(SAVE)?.execute(params![
            mark.boot_id,
            sql(mark.boot_ms),
            sql(mark.powered_ms),
            sql(c.starts),
            sql(c.next_seq),
            sql(c.turn),
            r[0],
            r[1],
            r[2],
            r[3],
            r[4],
            r[5],
            r[6],
            r[7],
            sql(c.ready),
            sql(c.backlog_bytes),
            sql(c.kept_bytes),
            sql(c.answer_bytes),
        ])?;
        Ok(())
    }
}

const SAVE: &str = "UPDATE service SET boot_id = ?1, boot_ms = ?2, powered_ms = ?3, starts = ?4, next_seq = ?5,
    turn = ?6, queued = ?7, sending = ?8, unknown = ?9, answered = ?10, expired = ?11, cancelled = ?12,
    evicted = ?13, dead = ?14, ready = ?15, backlog_bytes = ?16, kept_bytes = ?17, answer_bytes = ?18 WHERE one = 1";

const LOAD: &str = "SELECT boot_id, boot_ms, powered_ms, starts, next_seq, turn, queued, sending, unknown, answered,
    expired, cancelled, evicted, dead, ready, backlog_bytes, kept_bytes, answer_bytes FROM service WHERE one = 1";

/// Reads clock and counters as the latest commit left them.
pub(super) fn load(conn: &Connection) -> Result<(Mark, Counts), SpoolError> {
    let row = conn.query_row(LOAD, [], |r| {
        let n = |at: usize| r.get(at).map(num);
        let mut requests = [0; 8];
        for (at, count) in requests.iter_mut().enumerate() {
            *count = n(6 + at)?;
        }
        let mark = Mark { boot_id: r.get(0)?, boot_ms: n(1)?, powered_ms: n(2)? };
        let counts = Counts {
            requests,
            ready: n(14)?,
            backlog_bytes: n(15)?,
            kept_bytes: n(16)?,
            answer_bytes: n(17)?,
            next_seq: n(4)?,
            turn: n(5)?,
            starts: n(3)?,
        };
        Ok((mark, counts))
    });
    // A database without it is not one that can be served from.
    row.optional()?.ok_or_else(|| SpoolError::Damaged("the row of counters is gone".into()))
}

fn standing(row: &Row<'_>) -> rusqlite::Result<Result<Standing, SpoolError>> {
    let state = match codes::state(row.get(4)?) {
        Ok(state) => state,
        Err(e) => return Ok(Err(e)),
    };
    Ok(Ok(Standing {
        seq: num(row.get(0)?),
        id: row.get(1)?,
        source_id: row.get(2)?,
        priority: row.get(3)?,
        state,
        deferred: row.get::<_, i64>(5)? != 0,
        maybe_billed: row.get(6)?,
        body_bytes: num(row.get(7)?),
        body_kept: row.get(8)?,
        body_file: row.get(9)?,
        expires_at: num(row.get(10)?),
        ttl_ms: num(row.get(11)?),
        version: num(row.get(12)?),
        local_only: row.get(13)?,
    }))
}

/// Counters never go below zero, whatever a damaged row claims.
pub(super) fn lower(counter: &mut u64, by: u64) {
    *counter = counter.saturating_sub(by);
}
