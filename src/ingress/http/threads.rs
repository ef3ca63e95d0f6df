//! Threads that serve connections: one for a few callers, a second one for many.
//!
//! Owns the second thread, which begins with the first connection that needs it, and who is served where. A request stays on
//! its connection's thread, the way to its uplink included: a hop to another core costs more than most of what is done there.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// So many connections are served on the first thread before there is a second: fewer callers do not fill one, and wait longer
/// where some of them are on another core than control.
const FEW: usize = 4;
/// Threads for what would hold up the second one, as many as the first has: a hanging disk takes four that write bodies and four
/// that read the cache, and look-ups of names that nobody answers hang for half a minute.
const SECOND_BLOCKING_THREADS_MAX: usize = 16;

/// Both threads.
#[derive(Default)]
pub struct Threads {
    second: OnceLock<Option<Second>>,
    /// Connections on each.
    open: [AtomicUsize; 2],
}

/// The second one, which ends when this is dropped.
struct Second {
    handle: Handle,
    _until: oneshot::Sender<()>,
}

/// A connection's place on a thread, until it is dropped.
pub struct OnThread {
    threads: Arc<Threads>,
    second: Option<Handle>,
}

impl Threads {
    /// The thread for a new connection.
    pub fn enter(self: &Arc<Self>) -> OnThread {
        let [first, second] = self.open.each_ref().map(|open| open.load(Ordering::Relaxed));
        let wants_second = first >= FEW && second < first;
        if wants_second {
            self.second.get_or_init(begin);
        }
        let second = self.second().filter(|_| wants_second);
        let place = OnThread { threads: self.clone(), second };
        place.open().fetch_add(1, Ordering::Relaxed);
        place
    }

    /// The second one, where it has begun.
    pub fn second(&self) -> Option<Handle> {
        self.second.get()?.as_ref().map(|second| second.handle.clone())
    }
}

impl OnThread {
    /// The thread's runtime, where it is not the one that accepted the connection.
    pub fn elsewhere(&self) -> Option<&Handle> {
        self.second.as_ref()
    }

    fn open(&self) -> &AtomicUsize {
        &self.threads.open[usize::from(self.second.is_some())]
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        self.open().fetch_sub(1, Ordering::Relaxed);
    }
}

/// `None` where there is but one core, or no thread is to be had: then the first one serves all.
fn begin() -> Option<Second> {
    available_parallelism().ok().filter(|cores| cores.get() > 1)?;
    let ((until, end), (tell, told)) = (oneshot::channel(), mpsc::channel());
    let thread = std::thread::Builder::new().name("serve-2".to_owned()).spawn(move || serve(end, &tell));
    let begun = thread.and_then(|_| told.recv().unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into())));
    match begun {
        Ok(handle) => Some(Second { handle, _until: until }),
        Err(error) => {
            tracing::warn!("connections are served on one thread only: {error}");
            None
        }
    }
}

/// The second thread: tells its runtime, and runs it until nobody holds the other side of `end` any more.
fn serve(end: oneshot::Receiver<()>, tell: &mpsc::Sender<io::Result<Handle>>) {
    let built = Builder::new_current_thread().max_blocking_threads(SECOND_BLOCKING_THREADS_MAX).enable_all().build();
    match built {
        Err(error) => drop(tell.send(Err(error))),
        Ok(runtime) => {
            let _ = tell.send(Ok(runtime.handle().clone()));
            let _ = runtime.block_on(end);
            // What a disk or a name keeps must not keep the process.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_share_the_first_thread_and_many_are_spread_over_both() {
        let threads = Arc::new(Threads::default());
        let mut open: Vec<OnThread> = (0..FEW).map(|_| threads.enter()).collect();
        assert!(open.iter().all(|place| place.elsewhere().is_none()) && threads.second().is_none());
        open.extend((0..FEW * 3).map(|_| threads.enter()));
        let cores = available_parallelism().unwrap().get();
        let on_second = open.iter().filter(|place| place.elsewhere().is_some()).count();
        assert_eq!(on_second, if cores > 1 { FEW * 2 } else { 0 });
        drop(open);
        assert!(threads.open.iter().all(|open| open.load(Ordering::Relaxed) == 0));
        assert!(threads.enter().elsewhere().is_none());
    }
}
