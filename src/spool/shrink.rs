//! Gives room back to the file system where its reserve is short: the log's, and what the database holds free, which never shrinks by
//! itself.
//!
//! Owns when that is worth it: elsewhere the next outage takes the same room again. Deletes nothing.

use super::codes::num;
use super::store::Store;
use super::{SpoolError, files, open};

/// Less free within it is not worth a copy.
const FREE_MIN: u64 = 4 << 20;
/// What stays free beside the copy: a power cut in the middle may leave a log that is kept apart.
const LEFT: u64 = 1 << 20;
/// The copy of what is in use is made in memory (`temp_store`), or prompts would stand in a temporary folder; and a slow card writes it
/// twice within the watchdog's time.
const USED_MAX: u64 = 8 << 20;

/// Folds the log in, then copies what is in use into a new file of its size, where the reserve is short and that helps.
pub(super) fn step(store: &mut Store) -> Result<(), SpoolError> {
    let free = || files::free_bytes(&store.options.data_dir);
    if free()? >= store.options.min_disk_free || !store.rescue.behind.is_empty() {
        return Ok(());
    }
    if files::wal(&store.options.data_dir).metadata().is_ok_and(|log| log.len() > 0) {
        open::checkpoint(&store.conn)?;
    }
    let number = |pragma| store.conn.query_row(pragma, [], |r| r.get(0).map(num));
    let page_size = number("PRAGMA page_size")?;
    let (all, within) = (number("PRAGMA page_count")? * page_size, number("PRAGMA freelist_count")? * page_size);
    let used = all.saturating_sub(within);
    if within < FREE_MIN || used > USED_MAX || free()? < 2 * used + LEFT {
        return Ok(());
    }
    store.conn.execute_batch("VACUUM")?;
    open::checkpoint(&store.conn)?;
    tracing::info!("the spool's file gave {} MiB back to the file system", within >> 20);
    Ok(())
}
