//! The real program started on damaged databases: each time it must take a new request within seconds.
//!
//! What becomes of the old requests is judged beside the salvage itself; here only the start counts, and how long the
//! slowest takes.

use std::path::Path;
use std::time::Duration;

use holdfast::clock;
use holdfast::spool::record::Settlement;

use crate::case::Outcome;
use crate::parts::{Chance, until};
use crate::{daemon, driver};

/// Bytes of a page of a new spool.
const PAGE: usize = 1024;
/// What is promised of a start.
const START: Duration = Duration::from_secs(5);
/// Requests in the spool that is damaged: some 2000 pages.
const REQUESTS: u64 = 400;
/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:9";

/// The ways in which storage spoils a file.
#[derive(Debug, Clone, Copy)]
enum Kind {
    HeaderWiped,
    PagesZeroed,
    BitFlipped,
    Truncated,
    PagesSwapped,
    Garbage,
}

const KINDS: [Kind; 6] =
    [Kind::HeaderWiped, Kind::PagesZeroed, Kind::BitFlipped, Kind::Truncated, Kind::PagesSwapped, Kind::Garbage];

/// Starts on `count` damaged files of each kind; how many there were, and the slowest.
pub fn check(count: u64, chance: &mut Chance) -> Result<(u64, Duration), Outcome> {
    let sample = sample().map_err(Outcome::Faulty)?;
    let db = std::fs::read(sample.path().join("data/spool.db")).map_err(|e| Outcome::Faulty(e.to_string()))?;
    let (mut starts, mut slowest) = (0, Duration::ZERO);
    for kind in KINDS {
        for n in 0..count {
            let took = start(sample.path(), &damaged(kind, &db, chance));
            let took = took.map_err(|what| Outcome::Broken(format!("a start on {kind:?} {n}: {what}")))?;
            slowest = slowest.max(took);
            starts += 1;
        }
    }
    Ok((starts, slowest))
}

/// A folder with a closed spool: some of its requests are over, some were never handed out.
fn sample() -> Result<tempfile::TempDir, String> {
    let dir = tempfile::Builder::new().prefix("hfrig").tempdir().map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let spool = holdfast::spool::open(driver::options(&dir.path().join("data"))).map_err(|e| e.to_string())?;
        for n in 1..=REQUESTS {
            let size = if n % 40 == 0 { 90 << 10 } else { 200 + (n as usize * 37) % 9_000 };
            spool.accept(driver::request(n, size)).await.map_err(|e| e.to_string())?;
        }
        for one in spool.lease(100).await.map_err(|e| e.to_string())? {
            let how = Settlement::Answered(driver::small(&one));
            spool.settle(one.seq, how).await.map_err(|e| e.to_string())?;
        }
        spool.close().await;
        Ok::<_, String>(())
    })?;
    Ok(dir)
}

fn damaged(kind: Kind, db: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut db = db.to_vec();
    let pages = (db.len() / PAGE) as u64;
    let page = |chance: &mut Chance| chance.below(pages) as usize * PAGE;
    match kind {
        Kind::HeaderWiped => db[..if chance.below(2) == 0 { 100 } else { PAGE }].fill(0),
        Kind::PagesZeroed => {
            for _ in 0..=chance.below(4) {
                let at = page(chance);
                db[at..at + PAGE].fill(0);
            }
        }
        Kind::BitFlipped => {
            let at = chance.below(db.len() as u64) as usize;
            db[at] ^= 1 << chance.below(8);
        }
        Kind::Truncated => db.truncate(db.len() / 4 + chance.below(db.len() as u64 * 3 / 4) as usize),
        Kind::PagesSwapped => {
            let (a, b) = (page(chance), page(chance));
            let first = db[a..a + PAGE].to_vec();
            db.copy_within(b..b + PAGE, a);
            db[b..b + PAGE].copy_from_slice(&first);
        }
        Kind::Garbage => {
            let at = page(chance);
            db[at..at + PAGE].fill_with(|| chance.below(256) as u8);
        }
    }
    db
}

/// From the start of the process to the acknowledgement of a request that was not there before.
fn start(sample: &Path, db: &[u8]) -> Result<Duration, String> {
    let dir = tempfile::Builder::new().prefix("hfrig").tempdir().map_err(|e| e.to_string())?;
    copy(&sample.join("data"), &dir.path().join("data")).map_err(|e| e.to_string())?;
    std::fs::write(dir.path().join("data/spool.db"), db).map_err(|e| e.to_string())?;
    daemon::configure(dir.path(), NOWHERE, "").map_err(|e| e.to_string())?;
    let socket = daemon::socket(dir.path());
    let began = clock::now();
    let mut child = daemon::start(dir.path()).map_err(|e| e.to_string())?;
    let stored = until(4 * START.as_secs(), || {
        let (status, _) = daemon::Line::open(&socket).ok()?.store("first").ok()?;
        (status == 202).then(|| began.elapsed())
    });
    let _ = child.kill();
    let _ = child.wait();
    let log = std::fs::read_to_string(dir.path().join("daemon.log")).unwrap_or_default();
    let last = log.lines().last().unwrap_or_default();
    match stored {
        Some(took) if took <= START => Ok(took),
        Some(took) => Err(format!("the first request was stored after {took:?}")),
        None => Err(format!("no request was stored; the log ends with: {last}")),
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to)?;
        } else {
            std::fs::copy(path, to)?;
        }
    }
    Ok(())
}
