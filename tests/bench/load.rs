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

use crate::daemon::cpu_time;
use crate::stats::Cell;

/// Requests of each caller before the clock starts: connections are open and code is warm.
pub(crate) const WARM_UP: u64 = 20;
/// The same for big bodies: twenty of 10 MiB from each of 64 callers would be 12 GB before anything is timed.
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
    /// Whether this is the answer it should be.
    pub(crate) is_right: fn(&Response<Incoming>) -> bool,
    /// What of it is timed.
    pub(crate) timed: Timed,
    /// Requests of each caller before the clock starts.
    pub(crate) warm_up: u64,
}

impl Job {
    /// Bytes that a run of so many callers sent, with those before the clock, if each body has so many.
    pub(crate) fn sent_bytes(&self, cell: &Cell, callers: usize, body_bytes: usize) -> f64 {
        (cell.count as u64 + self.warm_up * callers as u64) as f64 * body_bytes as f64
    }
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
        let request = (job.request)(n);
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

/// Lets `callers` call for `long`, all starting together; `through` is the process in between.
pub(crate) async fn run(target: &Target, job: Job, callers: usize, long: Duration, through: Option<u32>) -> Cell {
    let start = Arc::new(Barrier::new(callers + 1));
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let (target, start) = (target.clone(), start.clone());
        tasks.spawn(async move {
            let mut connection = Caller::connect(&target).await.expect("a connection");
            // Numbers of their own, so that no two callers ever send the same bytes.
            let mut n = caller as u64 * 1_000_000_000;
            let mut warm = Vec::new();
            for _ in 0..job.warm_up {
                connection.timed(job, n, &mut warm).await;
                n += 1;
            }
            start.wait().await;
            let until = clock::now() + long;
            let mut timings = Vec::new();
            while clock::now() < until {
                connection.timed(job, n, &mut timings).await;
                n += 1;
            }
            timings
        });
    }
    start.wait().await;
    let cpu = || through.map(cpu_time).unwrap_or_default();
    let (started, cpu_before) = (clock::now(), cpu());
    let timings = tasks.join_all().await.concat();
    let (took, cpu) = (started.elapsed(), cpu().saturating_sub(cpu_before));
    let cpu_us = cpu.as_secs_f64() * 1e6 / timings.len() as f64;
    Cell { cpu_us, ..Cell::of(timings, took) }
}
