//! Taking back what devices rely on beside their requests: spent keys, the highest of folded ones, mailboxes.
//!
//! Owns that nothing newer is overwritten: a spent key stays spent, an epoch's highest only rises, a mailbox' turn too.

use rusqlite::{OptionalExtension, params};

use super::adopt::Adopted;
use super::codes::sql;
use super::salvage::{Mark, What};
use super::store::Store;
use super::{SpoolError, device, sources};

/// A key is remembered no longer than this from now on, whatever a damaged clock said: the longest time to live that a
/// request may have.
const KEEP_MAX_MS: u64 = 30 * 24 * 3_600_000;

/// Takes one mark back where the database has none that is as new.
pub(super) fn adopt_mark(store: &mut Store, mark: &Mark) -> Result<Adopted, SpoolError> {
    let source_id = sources::number(store, &mark.source)?;
    let now = store.powered.now_ms();
    let changed = match &mark.what {
        What::Key { key, until_ms } => {
            let until_ms = (*until_ms).min(sql(now.saturating_add(KEEP_MAX_MS)));
            let put = "INSERT OR IGNORE INTO device_key VALUES (?1, ?2, ?3)";
            let put = store.conn.prepare_cached(put)?.execute(params![source_id, key, until_ms])?;
            store.device_keys += put as u64;
            put
        }
        What::Epoch { uid, epoch, highest, at_ms } => {
            let put = "INSERT INTO device_epoch VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE
                SET highest = excluded.highest WHERE excluded.highest > highest";
            let place = params![source_id, uid, epoch, highest, (*at_ms).min(sql(now))];
            store.conn.prepare_cached(put)?.execute(place)?
        }
        What::Mailbox { uid, slot, last, turn, request } => {
            let key = device::mailbox_key(uid, *slot, *turn, *last);
            let text = "SELECT idempotency_key IS ?2 FROM request WHERE seq = ?1";
            let same: Option<bool> =
                store.conn.prepare_cached(text)?.query_row(params![request, key], |r| r.get(0)).optional()?;
            // The number stands for another request, or the mark is damaged: its own row has told by its key.
            if same == Some(false) {
                return Ok(Adopted::Known);
            }
            let put = "INSERT INTO mailbox VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE
                SET last = excluded.last, turn = excluded.turn, request = excluded.request WHERE excluded.turn > turn";
            store.conn.prepare_cached(put)?.execute(params![source_id, uid, slot, last, turn, request])?
        }
    };
    Ok(if changed > 0 { Adopted::Inserted } else { Adopted::Known })
}
