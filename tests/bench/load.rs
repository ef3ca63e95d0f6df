//! Callers: one keep-alive connection each, one request at a time, until the time is up.
//!
//! Owns timing of requests; knows nothing about what answers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use holdfast::clock;

use crate::stats::Cell;

/// Requests of each caller before the clock starts: connections are open and code is warm.
const WARM_UP: u64 = 20;

/// Where requests go.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What is sent and what must come back.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    /// The n-th request of a run.
    pub(crate) request: fn(u64) -> Request<Full<Bytes>>,
    /// Whether this is the answer it should be.
    pub(crate) is_right: fn(&Response<Incoming>) -> bool,
}

/// One caller's connection.
pub(crate) struct Caller(SendRequest<Full<Bytes>>);

impl Caller {
    pub(crate) async fn connect(target: &Target) -> std::io::Result<Caller> {
        let sender = match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                open(stream).await
            }
            Target::Unix(path) => open(UnixStream::connect(path).await?).await,
        };
        Ok(Caller(sender.map_err(std::io::Error::other)?))
    }

    /// Sends one and reads the answer to its end.
    pub(crate) async fn call(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<(Response<()>, Bytes)> {
        let (parts, body) = self.send(request).await?.into_parts();
        Ok((Response::from_parts(parts, ()), body.collect().await?.to_bytes()))
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.0.ready().await?;
        self.0.send_request(request).await
    }

    async fn timed(&mut self, job: Job, n: u64) -> Duration {
        let request = (job.request)(n);
        let started = clock::now();
        let answer = self.send(request).await.expect("an answer");
        assert!((job.is_right)(&answer), "a wrong answer: {answer:?}");
        answer.into_body().collect().await.expect("a whole answer");
        started.elapsed()
    }
}

async fn open<T>(stream: T) -> hyper::Result<SendRequest<Full<Bytes>>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Lets `callers` call for `long`, all starting together.
pub(crate) async fn run(target: &Target, job: Job, callers: usize, long: Duration) -> Cell {
    let start = Arc::new(Barrier::new(callers + 1));
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let (target, start) = (target.clone(), start.clone());
        tasks.spawn(async move {
            let mut connection = Caller::connect(&target).await.expect("a connection");
            // Numbers of their own, so that no two callers ever send the same bytes.
            let mut n = caller as u64 * 1_000_000_000;
            for _ in 0..WARM_UP {
                connection.timed(job, n).await;
                n += 1;
            }
            start.wait().await;
            let until = clock::now() + long;
            let mut timings = Vec::new();
            while clock::now() < until {
                timings.push(connection.timed(job, n).await);
                n += 1;
            }
            timings
        });
    }
    start.wait().await;
    let started = clock::now();
    let timings = tasks.join_all().await.concat();
    Cell::of(timings, started.elapsed())
}
