//! Callers: one keep-alive connection each, one request at a time, until the time is up; and what they share with others.
//!
//! Owns timing of requests; knows nothing about what answers.

use std::net::SocketAddr;
use std::ops::Range;
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

use crate::daemon::cpu_time;
use crate::stats::Cell;

/// Requests of each caller before the clock starts: connections are open and code is warm.
pub(crate) const WARM_UP: u64 = 20;
/// The same where twenty of each would take too long: of 10 MiB from 64 callers they would be 12 GB.
pub(crate) const WARM_UP_BIG: u64 = 1;

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
    /// What it needs besides, where it goes.
    pub(crate) dressed: fn(Request<Full<Bytes>>) -> Request<Full<Bytes>>,
    /// Whether this is the answer it should be.
    pub(crate) is_right: fn(&Response<Incoming>) -> bool,
    /// What of it is timed.
    pub(crate) timed: Timed,
    /// Requests of each caller before the clock starts.
    pub(crate) warm_up: u64,
}

/// What is timed of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timed {
    /// From its first byte to the last one of its answer.
    Whole,
    /// From its first byte to the first one of the answer's body.
    FirstByte,
    /// Each of the mock's events on its way back.
    Events,
}

/// Nothing besides.
pub(crate) fn as_it_is(request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    request
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

    async fn timed(&mut self, job: Job, n: u64, timings: &mut Vec<Duration>) {
        let request = (job.dressed)((job.request)(n));
        let started = clock::now();
        let answer = self.send(request).await.expect("an answer");
        assert!((job.is_right)(&answer), "a wrong answer: {answer:?}");
        let mut body = answer.into_body();
        let mut first = None;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.expect("a whole answer").into_data() else { continue };
            first.get_or_insert_with(|| started.elapsed());
            if job.timed == Timed::Events {
                timings.extend(on_their_way(&data));
            }
        }
        match job.timed {
            Timed::Whole => timings.push(started.elapsed()),
            Timed::FirstByte => timings.push(first.expect("a body")),
            Timed::Events => {}
        }
    }
}

/// How long the events of this piece were under way: the mock writes into each when it was sent.
fn on_their_way(piece: &[u8]) -> Vec<Duration> {
    let (now, text) = (clock::since_boot(), String::from_utf8_lossy(piece));
    let sent = text.split(r#""content":""#).skip(1).filter_map(|rest| rest.split('"').next()?.parse().ok());
    sent.map(|micros| now.saturating_sub(Duration::from_micros(micros))).collect()
}

async fn open<T>(stream: T) -> hyper::Result<SendRequest<Full<Bytes>>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A caller with its job.
struct Asking {
    caller: Caller,
    job: Job,
    n: u64,
}

impl Again for Asking {
    async fn once(&mut self, timings: &mut Vec<Duration>) {
        self.caller.timed(self.job, self.n, timings).await;
        self.n += 1;
    }
}

/// Lets `callers` call for `long`, all starting together; `through` is the process in between.
pub(crate) async fn run(target: &Target, job: Job, callers: usize, long: Duration, through: Option<u32>) -> Cell {
    let mut asking = Vec::new();
    for n in first_numbers(callers) {
        asking.push(Asking { caller: Caller::connect(target).await.expect("a connection"), job, n });
    }
    together(asking, job.warm_up, long, through).await
}

/// Lets one caller ask for these, one after the other.
pub(crate) async fn one_by_one(target: &Target, job: Job, numbers: Range<u64>) {
    let mut caller = Caller::connect(target).await.expect("a connection");
    for n in numbers {
        caller.timed(job, n, &mut Vec::new()).await;
    }
}

/// For each caller its first: numbers of its own, so that no two ever send the same bytes.
pub(crate) fn first_numbers(callers: usize) -> impl Iterator<Item = u64> {
    (0..callers as u64).map(|caller| caller * 1_000_000_000)
}

/// What a caller does until the time is up.
pub(crate) trait Again: Send + 'static {
    /// Does it once, and adds what is timed of it.
    fn once(&mut self, timings: &mut Vec<Duration>) -> impl Future<Output = ()> + Send;
}

/// Lets all of them go on for `long`, starting together when each has done it `warm_up` times.
pub(crate) async fn together<T: Again>(all: Vec<T>, warm_up: u64, long: Duration, through: Option<u32>) -> Cell {
    let before = all.len() as u64 * warm_up;
    let start = Arc::new(Barrier::new(all.len() + 1));
    let mut tasks = JoinSet::new();
    for mut one in all {
        let start = start.clone();
        tasks.spawn(async move {
            let mut warm = Vec::new();
            for _ in 0..warm_up {
                one.once(&mut warm).await;
            }
            start.wait().await;
            let until = clock::now() + long;
            let mut timings = Vec::new();
            while clock::now() < until {
                one.once(&mut timings).await;
            }
            timings
        });
    }
    tokio::select! {
        _ = start.wait() => {}
        // Before the start a caller ends by a panic only; the others would wait for it for ever.
        Some(ended) = tasks.join_next() => panic!("a caller gave up: {ended:?}"),
    }
    let cpu = || through.map(cpu_time).unwrap_or_default();
    let (started, cpu_before) = (clock::now(), cpu());
    let timings = tasks.join_all().await.concat();
    let (took, cpu) = (started.elapsed(), cpu().saturating_sub(cpu_before));
    let cpu_us = cpu.as_secs_f64() * 1e6 / timings.len() as f64;
    let cell = Cell::of(timings, took);
    Cell { cpu_us, done: cell.done + before, ..cell }
}
