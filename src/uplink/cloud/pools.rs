//! The connections to one uplink, pooled: how many bytes each holds back, and when an idle one is closed.
//!
//! Owns which thread's requests share connections. Sends nothing by itself.

use std::time::Duration;

use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::runtime;

use super::Options;
use crate::uplink::bundle::Bundled;
use crate::uplink::dial::Dial;
use crate::uplink::tls::{TlsError, client_config};

/// Idle connections are closed before the middleboxes of mobile networks forget them.
const POOL_IDLE: Duration = Duration::from_secs(45);
/// What one connection holds back of a body on its way out, and of an answer on its way in: enough to fill the line,
/// little enough for 64 of them.
const BUFFER_BYTES: usize = 64 * 1024;
const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// HTTP/2 pings on an idle connection, and how long one may go unanswered.
const H2_PING_INTERVAL: Duration = Duration::from_secs(20);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Threads that send: the first one and the second one that serves. What more came would share the first's.
const RUNTIMES_MAX: usize = 2;

pub(super) type Pool = Client<Dial, Bundled>;

/// Connections, a pool for each runtime that sends: one of another thread's would cost two hops between cores for each
/// request.
pub(super) struct Pools {
    dial: Dial,
    /// At most [`RUNTIMES_MAX`].
    by_runtime: Vec<(runtime::Id, Pool)>,
}

impl Pools {
    /// None yet; the certificates are read.
    pub(super) fn new(options: &Options) -> Result<Pools, TlsError> {
        let tls = client_config(options.ca_file.as_deref())?;
        let over_tls = options.base_url.starts_with("https:");
        let floor = over_tls.then(|| options.floor.clone());
        let dial = Dial::over_tls(tls, options.timeouts.connect, options.timeouts.total, floor);
        Ok(Pools { dial, by_runtime: Vec::new() })
    }

    /// That of this runtime, where it has begun.
    pub(super) fn of(&self, runtime: runtime::Id) -> Option<Pool> {
        self.by_runtime.iter().find(|(id, _)| *id == runtime).map(|(_, pool)| pool.clone())
    }

    /// That of this runtime, which may have begun meanwhile.
    pub(super) fn begin(&mut self, runtime: runtime::Id) -> Pool {
        if let Some(pool) = self.of(runtime) {
            return pool;
        }
        if self.by_runtime.len() == RUNTIMES_MAX {
            return self.by_runtime[0].1.clone();
        }
        let pool = new_pool(self.dial.clone());
        self.by_runtime.push((runtime, pool.clone()));
        pool
    }
}

fn new_pool(dial: Dial) -> Pool {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .http1_max_buf_size(BUFFER_BYTES)
        .http2_max_send_buf_size(BUFFER_BYTES)
        .http2_initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(H2_PING_INTERVAL)
        .http2_keep_alive_timeout(H2_PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .build(dial)
}
