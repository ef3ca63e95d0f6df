//! The drain of a backlog into an uplink with a token bucket, and what live callers notice of it.
//!
//! Owns that uplink and its counts. It says 429 as services do; nothing tells the daemon the rate.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use holdfast::clock;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{interval, sleep};

use crate::daemon::Place;
use crate::load::{Caller, Target};
use crate::stats::Cell;
use crate::stored;

/// What the uplink takes in a second, and at once, unless `BENCH_DRAIN_RATE` says so: a machine that is too slow for
/// it never meets the limit.
const RATE: f64 = 250.0;
/// How long its model takes, unless `BENCH_DRAIN_ANSWER_MS` says so: with less, a live caller's time would be the daemon's
/// alone, and a ratio of microseconds.
const ANSWER_TIME: Duration = Duration::from_millis(20);
/// What the daemon may send at once.
const AT_ONCE: u32 = 16;
/// Live callers, and how often each asks: a tenth of what the uplink takes.
const CALLERS: u64 = 5;
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long they are timed with nothing else to do.
const IDLE: Duration = Duration::from_secs(30);
/// Who store the backlog, at once.
const STORERS: u64 = 64;
const LOOK: Duration = Duration::from_millis(200);
const ANSWER: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;
const LIMITED: &str = r#"{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}"#;

/// The uplink's bucket and its books.
struct Bucket {
    rate: f64,
    answer_time: Duration,
    tokens: f64,
    filled: Instant,
    answered: u64,
    limited: u64,
}

impl Bucket {
    fn takes(&mut self) -> bool {
        let now = clock::now();
        self.tokens = (self.tokens + now.duration_since(self.filled).as_secs_f64() * self.rate).min(self.rate);
        self.filled = now;
        let takes = self.tokens >= 1.0;
        if takes {
            self.tokens -= 1.0;
            self.answered += 1;
        } else {
            self.limited += 1;
        }
        takes
    }
}

type Books = Arc<Mutex<Bucket>>;

fn books(of: &Books) -> (u64, u64) {
    let bucket = of.lock().unwrap_or_else(PoisonError::into_inner);
    (bucket.answered, bucket.limited)
}

/// Stores so many requests, lets them go, and prints what the uplink and the live callers saw.
pub(crate) async fn measure(backlog: u64) {
    let given = std::env::var("BENCH_DRAIN_REQUESTS").ok();
    let backlog = given.map_or(backlog, |backlog| backlog.parse().expect("a number"));
    let rate = std::env::var("BENCH_DRAIN_RATE").ok().map_or(RATE, |rate| rate.parse().expect("a number"));
    let answer_ms = std::env::var("BENCH_DRAIN_ANSWER_MS").ok();
    let answer_time = answer_ms.map_or(ANSWER_TIME, |ms| Duration::from_millis(ms.parse().expect("a number")));
    let bucket = Bucket { rate, answer_time, tokens: rate, filled: clock::now(), answered: 0, limited: 0 };
    let bucket: Books = Arc::new(Mutex::new(bucket));
    let place = Place::new("uplink = []\n");
    let address = serve(bucket.clone()).await;
    place.configure(&format!(
        "[[uplink]]\nname = \"bucket\"\nbase_url = \"http://{address}/v1\"\n[cache]\nttl = \"0s\"\n\
         [drain]\nmax_in_flight = {AT_ONCE}\nstart_jitter = \"0s\"\n"
    ));
    let (daemon, _) = place.start().await;
    let target = Target::Unix(place.socket());
    assert_eq!(post(&target, "/holdfast/v1/pause").await, 200);
    let (idle, idle_refused) = live(&target, sleep(IDLE)).await;
    store(&target, backlog).await;
    let before = books(&bucket);
    let started = clock::now();
    assert_eq!(post(&target, "/holdfast/v1/resume").await, 200);
    let (busy, busy_refused) = live(&target, drained(&target)).await;
    let (took, after) = (started.elapsed(), books(&bucket));
    let (answered, limited) = (after.0 - before.0, after.1 - before.1);
    let share = limited as f64 / (answered + limited) as f64 * 100.0;
    println!("\n### The drain of {backlog} requests into a token bucket of {rate}/s\n");
    println!("| live callers while | p50 µs | p99 µs | per second | told 429 |\n| --- | ---: | ---: | ---: | ---: |");
    for (name, cell, refused) in [("idle", idle, idle_refused), ("draining", busy, busy_refused)] {
        println!("| {name} | {:.0} | {:.0} | {:.0} | {refused} |", cell.p50_us, cell.p99_us, cell.per_second);
    }
    println!("\nLive p99 while draining is {:.2} times that of idle.", busy.p99_us / idle.p99_us);
    println!("The uplink answered {answered} and said 429 to {limited}: {share:.2} % of its answers.");
    let (drained, possible) = (backlog as f64 / took.as_secs_f64(), f64::from(AT_ONCE) / answer_time.as_secs_f64());
    println!("Drained {drained:.0} a second of {:.0} that were possible beside nobody.", possible.min(rate));
    println!("The drain took {:.0} s; resident: {} KiB.", took.as_secs_f64(), daemon.resident_kib());
    daemon.stop().await;
}

/// Serves until the runtime ends.
async fn serve(bucket: Books) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            stream.set_nodelay(true).unwrap();
            let bucket = bucket.clone();
            let service = service_fn(move |request| answer(request, bucket.clone()));
            tokio::spawn(async move { Builder::new().serve_connection(TokioIo::new(stream), service).await });
        }
    });
    address
}

async fn answer(request: Request<Incoming>, bucket: Books) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_paid = request.method() == Method::POST;
    let _ = request.into_body().collect().await;
    let answer = Response::builder().header("content-type", "application/json");
    if !is_paid {
        return Ok(answer.body(Full::from(r#"{"object":"list","data":[]}"#)).unwrap());
    }
    let (takes, answer_time) = {
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        (bucket.takes(), bucket.answer_time)
    };
    if !takes {
        return Ok(answer.status(429).header("retry-after", "1").body(Full::from(LIMITED)).unwrap());
    }
    sleep(answer_time).await;
    Ok(answer.body(Full::from(ANSWER)).unwrap())
}

async fn post(target: &Target, path: &str) -> u16 {
    let request = Request::post(path).header("host", "hf").body(Full::default()).unwrap();
    Caller::connect(target).await.unwrap().call(request).await.unwrap().0.status().as_u16()
}

fn chat(n: u64, is_stored: bool) -> Request<Full<Bytes>> {
    let request = Request::post("/v1/chat/completions").header("host", "hf").header("content-type", "application/json");
    let prefer = if is_stored { "respond-async" } else { "wait=20" };
    request.header("prefer", prefer).body(Full::new(stored::body(n))).unwrap()
}

async fn store(target: &Target, backlog: u64) {
    let storing = (0..STORERS).map(|storer| async move {
        let mut caller = Caller::connect(target).await.unwrap();
        for n in (storer..backlog).step_by(STORERS as usize) {
            let (answer, _) = caller.call(chat(n, true)).await.unwrap();
            assert_eq!(answer.status(), 202);
        }
    });
    join_all(storing).await;
}

/// Until nothing waits any more.
async fn drained(target: &Target) {
    let mut caller = Caller::connect(target).await.unwrap();
    loop {
        let request = Request::get("/holdfast/v1/status").header("host", "hf").body(Full::default()).unwrap();
        let (_, text) = caller.call(request).await.unwrap();
        let status: serde_json::Value = serde_json::from_slice(&text).unwrap();
        if status["backlog"]["count"] == 0 {
            return;
        }
        sleep(LOOK).await;
    }
}

/// Live callers for as long as that takes; their times, and how many were told 429.
async fn live(target: &Target, while_so: impl Future<Output = ()>) -> (Cell, u64) {
    let (over, is_over) = watch::channel(false);
    let calling = join_all((0..CALLERS).map(|caller| calls(target, caller, is_over.clone())));
    let started = clock::now();
    let (all, ()) = tokio::join!(calling, async {
        while_so.await;
        let _ = over.send(true);
    });
    let took = started.elapsed();
    let refused = all.iter().map(|(_, refused)| refused).sum();
    (Cell::of(all.into_iter().flat_map(|(times, _)| times).collect(), took), refused)
}

async fn calls(target: &Target, caller: u64, is_over: watch::Receiver<bool>) -> (Vec<Duration>, u64) {
    let mut connection = Caller::connect(target).await.unwrap();
    sleep(ASK_EVERY / CALLERS as u32 * caller as u32).await;
    let (mut ticks, mut times, mut refused) = (interval(ASK_EVERY), Vec::new(), 0);
    let mut n = (caller + 1) * 1_000_000_000;
    while !*is_over.borrow() {
        ticks.tick().await;
        let started = clock::now();
        let (answer, _) = connection.call(chat(n, false)).await.unwrap();
        match answer.status().as_u16() {
            200 => times.push(started.elapsed()),
            429 => refused += 1,
            other => panic!("a live caller got {other}"),
        }
        n += 1;
    }
    (times, refused)
}
