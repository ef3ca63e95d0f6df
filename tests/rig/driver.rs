//! The program under the shims: works the library's own spool, and writes down what it was told the moment it was.
//!
//! Owns the workloads and the marks; never judges. `rig --drive <workload>` with RIG_DIR (the spool's folder),
//! RIG_MARKS (the file of marks; with RIG_MARKS_AT a disk and where on it), RIG_ROWS (how much), RIG_FIRST (the first
//! request's number) and RIG_ABRUPT=1 (end as a crash does). A mark is one line and one write: `a? n size` before a request is
//! offered, `a! n` once it was accepted, `ax n` where it was refused; `l` (lease), `s` (settle) and `p` (prune) likewise.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::future::join_all;
use holdfast::control::types::{Policy, Priority, State};
use holdfast::spool::record::{Filter, LastError, Leased, NewRequest, Settlement, UplinkAnswer};
use holdfast::spool::{Options, Spool, SpoolError};

use crate::chance::{self, Chance};
use crate::marks::Marks;

/// Requests offered at the same time, so that they share a commit.
const TOGETHER: u64 = 4;

/// The same where rows are counted by the million: as many as one commit and one lease take, and one sweep prunes, so that
/// a run is not mostly waiting for syncs.
const CROWD: u64 = 256;
/// Turns of such a crowd between two measures.
const MEASURE_EVERY: u64 = 5;

/// What the spool is opened with, here and when its folder is judged.
pub fn options(data_dir: &Path) -> Options {
    Options {
        data_dir: data_dir.to_path_buf(),
        max_bytes: 64 << 20,
        max_requests: 100_000,
        min_disk_free: 0,
        evict_when_full: false,
        per_source_backlog: 100_000,
        keep_results_ms: u64::MAX / 4,
        keep_results_bytes: 64 << 20,
        hold_unknown: false,
    }
}

/// The request of this number.
pub fn request(n: u64, size: usize) -> NewRequest {
    let body = chance::body(n, size);
    NewRequest {
        id: id(n),
        source: format!("uid:{}", n % 3),
        label: None,
        endpoint: "/v1/chat/completions".into(),
        model: "m".into(),
        priority: Priority::Normal,
        policy: Policy::Queue,
        body: Bytes::from(body).into(),
        idempotency_key: n.is_multiple_of(2).then(|| format!("key-{n}")),
        ttl_ms: 1 << 40,
        leased: false,
        maybe_billed: false,
        device: None,
        task: None,
    }
}

/// The id of a request of this number.
pub fn id(n: u64) -> String {
    format!("req_{n:032x}")
}

/// The number that an id was made of.
pub fn number(id: &str) -> Option<u64> {
    u64::from_str_radix(id.strip_prefix("req_")?, 16).ok()
}

/// The answer's bytes to a request of this number.
pub fn answer(n: u64, size: usize) -> Vec<u8> {
    chance::body(n | 1 << 40, size)
}

/// A workload at work.
struct Driver {
    marks: Marks,
    spool: Spool,
    options: Options,
    chance: Chance,
    next: u64,
}

/// Runs the workload of this name; what it learns is in the marks.
pub fn drive(workload: &str) {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let data_dir = PathBuf::from(variable("RIG_DIR")).join("data");
    let rows: u64 = variable("RIG_ROWS").parse().unwrap_or(100);
    let marks =
        Marks::open(Path::new(&variable("RIG_MARKS")), variable("RIG_MARKS_AT").parse().ok()).expect("the marks");
    let mut options = options(&data_dir);
    if workload == "prune" {
        (options.max_bytes, options.keep_results_bytes) = (1 << 20, 400 << 10);
    }
    if workload == "bounds" {
        (options.keep_results_bytes, options.max_requests) = (4 << 20, 2_000);
    }
    if workload == "cap" {
        options.max_bytes = variable("RIG_CAP").parse().unwrap_or(16 << 20);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // Only what already stands there is a promise: a spool that does not open has made none.
    let Ok(spool) = holdfast::spool::open(options.clone()) else { return };
    let next = variable("RIG_FIRST").parse().unwrap_or(1);
    let mut driver = Driver { marks, spool, options, chance: Chance::new(next), next };
    driver.mark("open");
    runtime.block_on(async {
        match workload {
            "accept" => driver.accept(rows).await,
            "drain" => driver.drain(rows).await,
            "prune" => driver.prune(rows).await,
            "mixed" => driver.mixed(rows).await,
            "upgrade" => {} // Opening was all.
            "bounds" => driver.bounds(rows).await,
            "cap" => driver.cap(rows).await,
            other => panic!("no workload {other}"),
        }
        if workload != "upgrade" {
            driver.last_words().await;
        }
        driver.mark("end");
    });
    if variable("RIG_ABRUPT") == "1" {
        // Without the spool's own end: the log stays as the last commit left it.
        std::process::exit(0);
    }
}

impl Driver {
    fn mark(&mut self, text: &str) {
        self.marks.write(text).expect("a mark");
    }

    async fn offer(&mut self, sizes: &[usize]) {
        let first = self.next;
        self.next += sizes.len() as u64;
        for (n, size) in (first..).zip(sizes) {
            self.mark(&format!("a? {n} {size}"));
        }
        let spool = self.spool.clone();
        let told = join_all((first..).zip(sizes).map(|(n, size)| spool.accept(request(n, *size)))).await;
        for (n, told) in (first..).zip(told) {
            match told {
                Ok(_) => self.mark(&format!("a! {n}")),
                Err(error) => self.mark(&format!("ax {n} {}", error.kind())),
            }
        }
    }

    /// Small bodies, and now and then one that becomes a file of its own.
    async fn accept(&mut self, rows: u64) {
        for turn in 0..rows / TOGETHER {
            let mut sizes: Vec<usize> = (0..TOGETHER).map(|_| 40 + self.chance.below(5_000) as usize).collect();
            if turn % 6 == 0 {
                sizes[1] = 200 << 10;
            }
            self.offer(&sizes).await;
        }
    }

    async fn lease(&mut self, max: u32) -> Vec<Leased> {
        self.mark("l?");
        let Ok(leased) = self.spool.lease(max).await else {
            self.mark("lx");
            return Vec::new();
        };
        for one in &leased {
            self.mark(&format!("l! {}", number(&one.id).unwrap_or(0)));
        }
        self.mark("le");
        leased
    }

    async fn settle(&mut self, one: &Leased, kind: &str, how: Settlement) {
        let n = number(&one.id).unwrap_or(0);
        self.mark(&format!("s? {n} {kind}"));
        match self.spool.settle(one.seq, how).await {
            Ok(()) => self.mark(&format!("s! {n}")),
            Err(_) => self.mark(&format!("sx {n}")),
        }
    }

    /// Every way in which a lease ends, each as often as it is likely.
    async fn end(&mut self, one: &Leased) {
        let n = number(&one.id).unwrap_or(0);
        let requeue = |maybe_billed| Settlement::Requeue {
            counted: true,
            deferred: false,
            maybe_billed,
            error: Some(failed("timeout")),
            came: None,
        };
        match self.chance.below(8) {
            0 => self.settle(one, "Q", requeue(false)).await,
            1 if !one.maybe_billed => self.settle(one, "M", requeue(true)).await,
            2 => {
                let dead = Settlement::Dead { reason: "refused".into(), error: failed("refused"), answer: None };
                self.settle(one, "D", dead).await;
            }
            3 => {} // Stays handed out: the crash finds it on its way.
            4 => self.answered(one, n, 100 << 10).await,
            _ => self.answered(one, n, 300).await,
        }
    }

    async fn answered(&mut self, one: &Leased, n: u64, size: usize) {
        let answer = UplinkAnswer { body: Bytes::from(answer(n, size)).into(), ..small(one) };
        self.settle(one, &format!("A{size}"), Settlement::Answered(answer)).await;
    }

    async fn drain(&mut self, rows: u64) {
        for _ in 0..rows / TOGETHER {
            let sizes: Vec<usize> = (0..TOGETHER).map(|_| 40 + self.chance.below(2_000) as usize).collect();
            self.offer(&sizes).await;
            for one in self.lease(3).await {
                self.end(&one).await;
            }
        }
    }

    /// Results that make room for new requests, the log folded in, the spool closed and opened anew.
    async fn prune(&mut self, rows: u64) {
        self.mark("p?");
        for turn in 0..rows / 2 {
            let sizes = [40 << 10, if turn % 5 == 0 { 120 << 10 } else { 4_000 }];
            self.offer(&sizes).await;
            for one in self.lease(2).await {
                self.answered(&one, number(&one.id).unwrap_or(0), 9_000).await;
            }
            let _ = self.spool.sweep().await;
            if turn % 16 == 9 {
                let _ = self.spool.purge(State::Answered).await;
            }
            if turn % 16 == 15 && !self.reopen().await {
                return;
            }
        }
    }

    /// A little of everything, with a body of its own file in every other turn.
    async fn mixed(&mut self, rows: u64) {
        for turn in 0..rows / TOGETHER {
            let large = if turn % 2 == 0 { 70 << 10 } else { 900 };
            self.offer(&[300, large, 2_000, 60]).await;
            for one in self.lease(2).await {
                self.end(&one).await;
            }
            let _ = self.spool.sweep().await;
            if turn == 3 && !self.reopen().await {
                return;
            }
        }
    }

    /// Accept, answer, prune, as fast as it goes; how much it takes is marked again and again.
    async fn bounds(&mut self, rows: u64) {
        for turn in 0..rows / CROWD {
            let first = self.next;
            self.next += CROWD;
            let spool = self.spool.clone();
            let told = join_all((first..self.next).map(|n| spool.accept(request(n, 1_500)))).await;
            assert!(told.iter().all(Result::is_ok), "a row was refused below every cap");
            let leased = self.spool.lease(CROWD as u32).await.expect("leases");
            join_all(leased.iter().map(|one| spool.settle(one.seq, Settlement::Answered(small(one))))).await;
            let _ = self.spool.sweep().await;
            if turn % MEASURE_EVERY == 0 {
                let _ = self.spool.list(Filter { limit: 10, ..Filter::default() }).await;
                self.measure();
            }
        }
        self.measure();
    }

    /// Offers until long after the cap is reached: most are refused, and that must cost nothing.
    async fn cap(&mut self, rows: u64) {
        for turn in 0..rows / CROWD {
            let first = self.next;
            self.next += CROWD;
            let spool = self.spool.clone();
            join_all((first..self.next).map(|n| spool.accept(request(n, 4_000)))).await;
            if turn % MEASURE_EVERY == 0 {
                self.measure();
            }
        }
        self.measure();
    }

    /// Resident memory, the log and the folder in KiB, and open descriptors.
    fn measure(&mut self) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        let data = &self.options.data_dir;
        let log = std::fs::metadata(data.join("spool.db-wal")).map_or(0, |m| m.len() >> 10);
        let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let text = format!("b {resident} {log} {} {descriptors}", size_of_folder(data) >> 10);
        self.mark(&text);
    }

    async fn reopen(&mut self) -> bool {
        self.spool.close().await;
        self.mark("reopen");
        match holdfast::spool::open(self.options.clone()) {
            Ok(spool) => self.spool = spool,
            // A supervisor would start it again.
            Err(_) => match holdfast::spool::open(self.options.clone()) {
                Ok(spool) => self.spool = spool,
                Err(_) => return false,
            },
        }
        true
    }

    /// After a fault that happened once the spool must take requests again; some tries are allowed it.
    async fn last_words(&mut self) {
        for _ in 0..5 {
            let (n, size) = (self.next, 64);
            self.next += 1;
            self.mark(&format!("a? {n} {size}"));
            let told: Result<_, SpoolError> = self.spool.accept(request(n, size)).await;
            if told.is_ok() {
                self.mark(&format!("a! {n}"));
                self.mark("alive");
                break;
            }
            self.mark(&format!("ax {n} late"));
        }
    }
}

fn failed(kind: &str) -> LastError {
    LastError { kind: kind.into(), message: kind.into() }
}

/// A short answer.
pub fn small(one: &Leased) -> UplinkAnswer {
    UplinkAnswer {
        uplink: "u".into(),
        model: one.model.clone(),
        status: 200,
        content_type: "application/json".into(),
        latency_ms: 1,
        usage: None,
        body: Bytes::from_static(b"{\"choices\":[{\"message\":{\"content\":\"yes\"}}]}").into(),
    }
}

fn size_of_folder(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_of_folder(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
