//! What breaks off by a panic is begun anew: a fault in one line must not end it until somebody starts the gateway again.
//!
//! Owns the waits between; the panic itself is one line in the journal already.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

use crate::clock;

/// The first wait before it is begun again.
const WAIT_MIN: Duration = Duration::from_millis(500);
/// The longest: what breaks off at once each time must take neither the board's time nor the journal's room.
const WAIT_MAX: Duration = Duration::from_mins(1);
/// What went well for so long begins with the first wait again.
const GOOD_AFTER: Duration = Duration::from_mins(5);

/// Does `work` until it ends by itself; each time it breaks off, `broke` is told.
pub(super) async fn until_done<F: Future<Output = ()>>(mut work: impl FnMut() -> F, mut broke: impl FnMut()) {
    let mut wait = WAIT_MIN;
    loop {
        let begun = clock::now();
        // Each try has values of its own; what they share is behind locks that look past a panic.
        if AssertUnwindSafe(async { work().await }).catch_unwind().await.is_ok() {
            return;
        }
        broke();
        if clock::now().duration_since(begun) >= GOOD_AFTER {
            wait = WAIT_MIN;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WAIT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn what_breaks_off_is_begun_anew_and_not_at_full_speed() {
        let (tries, told) = (Cell::new(0), Cell::new(0));
        let work = || {
            tries.set(tries.get() + 1);
            let n = tries.get();
            async move { assert!(n > 10, "as planned") }
        };
        let mut working = std::pin::pin!(until_done(work, || told.set(told.get() + 1)));
        // 0, 0.5, 1.5, 3.5 … 63.5, and 123.5 s.
        assert!(tokio::time::timeout(Duration::from_mins(2), &mut working).await.is_err());
        assert_eq!((tries.get(), told.get()), (8, 8));
        working.await;
        assert_eq!((tries.get(), told.get()), (11, 10));
    }
}
