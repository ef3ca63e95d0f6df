//! What the service knows of shut routes, of the operator's own pause and of the time, kept over restarts.
//!
//! Owns the table `pause` and the column `unix_floor`; never judges them: control and the clock do.

use rusqlite::params;

use super::SpoolError;
use super::codes::{num, sql};
use super::handle::Spool;
use super::store::Store;

/// Shut routes kept; control knows no more than these.
const PAUSES_MAX: usize = 256;

/// One shut route, as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedPause {
    /// The uplink's name.
    pub uplink: String,
    /// The model; empty for all of them.
    pub model: String,
    /// Why, and under which configuration, as one word that only its writer reads.
    pub block: String,
    /// How many trials failed.
    pub step: u32,
    /// When the next trial is due, in powered-on milliseconds.
    pub until_ms: u64,
}

impl Spool {
    /// Replaces all that is known of shut routes.
    pub async fn save_pauses(&self, pauses: Vec<SavedPause>) -> Result<(), SpoolError> {
        self.write(move |store| save(store, &pauses)).await
    }

    /// What an earlier process knew of shut routes.
    pub async fn load_pauses(&self) -> Result<Vec<SavedPause>, SpoolError> {
        self.read_at_start(load).await
    }

    /// Whether the operator holds the backlog back.
    pub async fn save_held(&self, held: bool) -> Result<(), SpoolError> {
        self.write(move |store| {
            let text = if held {
                "INSERT OR REPLACE INTO pause (uplink, model, block, step, until_ms) VALUES ('', '', 'operator', 0, 0)"
            } else {
                "DELETE FROM pause WHERE uplink = ''"
            };
            store.conn.prepare_cached(text)?.execute([])?;
            Ok(())
        })
        .await
    }

    /// Whether the operator held the backlog back when an earlier process ended.
    pub async fn load_held(&self) -> Result<bool, SpoolError> {
        self.read_at_start(|store| {
            let text = "SELECT EXISTS (SELECT 1 FROM pause WHERE uplink = '')";
            Ok(store.conn.query_row(text, [], |r| r.get(0))?)
        })
        .await
    }

    /// The latest wall time that could be believed, in milliseconds; it never goes back.
    pub async fn save_floor(&self, unix_ms: u64) -> Result<(), SpoolError> {
        self.write(move |store| {
            let text = "UPDATE service SET unix_floor = max(unix_floor, ?1)";
            store.conn.prepare_cached(text)?.execute([sql(unix_ms)])?;
            Ok(())
        })
        .await
    }

    /// The latest wall time that an earlier process could believe; 0 where there was none.
    pub async fn load_floor(&self) -> Result<u64, SpoolError> {
        self.read_at_start(|store| {
            Ok(store.conn.query_row("SELECT unix_floor FROM service", [], |r| r.get(0).map(num))?)
        })
        .await
    }

    /// A start must not end where damage is met here first: the second time, another file is in its place.
    async fn read_at_start<T: Send + 'static>(
        &self,
        work: fn(&Store) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        match self.read(move |store| work(store)).await {
            Err(SpoolError::Damaged(_)) => self.read(move |store| work(store)).await,
            done => done,
        }
    }
}

fn save(store: &mut Store, pauses: &[SavedPause]) -> Result<(), SpoolError> {
    store.conn.prepare_cached("DELETE FROM pause WHERE uplink <> ''")?.execute([])?;
    let text = "INSERT OR REPLACE INTO pause (uplink, model, block, step, until_ms) VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut insert = store.conn.prepare_cached(text)?;
    for pause in pauses.iter().take(PAUSES_MAX) {
        insert.execute(params![pause.uplink, pause.model, pause.block, pause.step, sql(pause.until_ms)])?;
    }
    Ok(())
}

fn load(store: &Store) -> Result<Vec<SavedPause>, SpoolError> {
    let text = "SELECT uplink, model, block, step, until_ms FROM pause WHERE uplink <> ''
        ORDER BY uplink, model LIMIT ?1";
    let mut select = store.conn.prepare_cached(text)?;
    let rows = select.query_map([PAUSES_MAX as i64], |r| {
        Ok(SavedPause {
            uplink: r.get(0)?,
            model: r.get(1)?,
            block: r.get(2)?,
            step: r.get(3)?,
            until_ms: num(r.get(4)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
