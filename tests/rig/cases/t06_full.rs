//! T6: a disk without one free byte: nothing accepted is lost, an outcome is recorded, a start succeeds, and it recovers.
//! A disk that takes no change at all is `read_only.rs`.

use std::path::Path;

use holdfast::plant::Fault;
use holdfast::spool::record::{Leased, Settlement, UplinkAnswer};
use holdfast::spool::{Options, Spool, SpoolError};

use crate::case::{Case, Effort, Outcome, Planted};
use crate::ledger::Ledger;
use crate::mount::Mount;
use crate::{driver, old, shim};

/// What is offered before a full disk must have shown; far more than any of the disks takes.
const OFFERS_MAX: u64 = 20_000;
/// How often a caller with an answer in its hands comes back to a full disk.
const TRIES: u32 = 10;
/// Of these answers one at least must find room.
const ANSWER: usize = 300;

pub const CASE: Case = Case {
    id: "T6",
    what: "full disk: tmpfs, ext4, the page cap, an upgrade; a read-only one",
    faults: &[Planted::In(Fault::NoBallast)],
    run,
};

fn run(effort: &Effort) -> Outcome {
    let folder = shim::memory_folder();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (rounds, mut notes, mut accepted) = (effort.pick(2, 20), Vec::new(), 0);
    for round in 0..rounds {
        let mounts = [
            ("tmpfs", Mount::tmpfs(folder.path().join(format!("tmpfs{round}")), 3 << 20)),
            ("ext4", Mount::ext4(folder.path().join(format!("ext4{round}")), &folder.path().join("image"), 16 << 20)),
        ];
        for (name, mount) in mounts {
            let mount = match mount {
                Ok(mount) => mount,
                Err(outcome) => return outcome,
            };
            match runtime.block_on(full(&mount, effort.seed + round)) {
                Ok(disk) => {
                    accepted += disk.ledger.accepted;
                    notes.push(format!("{name}: {} outcomes at 0 bytes free", disk.outcomes));
                }
                Err(fault) => return Outcome::Broken(format!("{name}: {fault} (seed {})", effort.seed)),
            }
        }
        if let Err(fault) = runtime.block_on(capped(&folder.path().join(format!("cap{round}")))) {
            return Outcome::Broken(format!("page cap: {fault} (seed {})", effort.seed));
        }
    }
    for version in old::VERSIONS {
        // With the smallest a copy of the older file would leave no room for the step itself.
        for reserve in [1 << 20, 256 << 10, 192 << 10] {
            let at = folder.path().join(format!("old{version}-{reserve}"));
            let mount = match Mount::tmpfs(at, 32 << 20) {
                Ok(mount) => mount,
                Err(outcome) => return outcome,
            };
            if let Err(fault) = runtime.block_on(older(&mount, version, reserve)) {
                return Outcome::Broken(format!("version {version} and {reserve} bytes: {fault}"));
            }
        }
    }
    if let Err(outcome) = super::read_only::check(folder.path()) {
        return outcome;
    }
    notes.truncate(2);
    Outcome::held(
        rounds * 3 + 1 + 3 * old::VERSIONS.len() as u64,
        "disks",
        format!("{accepted} accepted; {}; read-only and back", notes.join(", ")),
    )
}

/// One spool on one disk and what it promised.
struct Disk {
    spool: Spool,
    ledger: Ledger,
    next: u64,
    outcomes: u64,
}

/// What new requests leave free; somebody else's file takes that, too.
const LEFT: u64 = 512 << 10;

/// Fill, record the outcome of what is on its way, start, all without a free byte; then make room and go on.
async fn full(mount: &Mount, seed: u64) -> Result<Disk, String> {
    let data = mount.path().join("data");
    let options = || Options { min_disk_free: LEFT, ..driver::options(&data) };
    let mut disk = Disk::open(options())?;
    disk.offer(700).await.map_err(|e| format!("an empty disk takes nothing: {e}"))?;
    let sent = disk.lease(1).await.map_err(|e| format!("an empty disk hands nothing out: {e}"))?;
    disk.fill(seed).await?;
    mount.fill();
    for one in &sent {
        disk.answer(one).await?;
    }
    disk.drain_a_little().await?;
    if disk.outcomes == 0 {
        return Err("nothing was on its way when the disk was full".into());
    }
    // With room again the reserve is set aside anew; then somebody fills the disk while the gateway is down.
    mount.make_room();
    let _ = disk.spool.sweep().await;
    disk.spool.close().await;
    let Disk { spool, ledger, next, outcomes } = disk;
    drop(spool);
    mount.fill();
    let reserve = std::fs::metadata(data.join("ballast")).map_or(0, |m| m.len());
    let opened = holdfast::spool::open(options());
    let spool = opened.map_err(|e| format!("no start on the full disk, with a reserve of {reserve} bytes: {e}"))?;
    let mut disk = Disk { spool, ledger, next, outcomes };
    mount.make_room();
    disk.go_on().await?;
    disk.spool.close().await;
    let Disk { spool, ledger, next, outcomes } = disk;
    drop(spool);
    let spool = holdfast::spool::open(options()).map_err(|e| format!("no start with room again: {e}"))?;
    ledger.judge(&spool).await?;
    Ok(Disk { spool, ledger, next, outcomes })
}

/// A folder of an older version on a disk without a free byte but the reserve: the step to the newest takes that.
async fn older(mount: &Mount, version: u32, reserve: usize) -> Result<(), String> {
    old::make(mount.path(), version).map_err(|e| format!("no old folder: {e}"))?;
    let data = mount.path().join("root/data");
    std::fs::write(data.join("ballast"), vec![0; reserve]).map_err(|e| e.to_string())?;
    let marks = std::fs::read_to_string(mount.path().join("marks")).map_err(|e| e.to_string())?;
    mount.fill();
    let spool = holdfast::spool::open(driver::options(&data)).map_err(|e| format!("no start: {e}"))?;
    mount.make_room();
    Ledger::read(&marks).judge(&spool).await
}

/// The same against the spool's own cap, on a disk with room: refused in words, drained, accepted again.
async fn capped(data: &Path) -> Result<(), String> {
    let options = Options { max_bytes: 1 << 20, ..driver::options(data) };
    let mut disk = Disk::open(options)?;
    disk.fill(1).await?;
    disk.drain_a_little().await?;
    disk.go_on().await?;
    disk.spool.close().await;
    drop(disk.spool);
    // What was answered may have made room.
    disk.ledger.take("p?");
    let spool = holdfast::spool::open(driver::options(data)).map_err(|e| format!("does not open: {e}"))?;
    disk.ledger.judge(&spool).await
}

impl Disk {
    fn open(options: Options) -> Result<Disk, String> {
        let spool = holdfast::spool::open(options).map_err(|e| format!("does not open: {e}"))?;
        Ok(Disk { spool, ledger: Ledger::default(), next: 1, outcomes: 0 })
    }

    async fn offer(&mut self, size: usize) -> Result<(), SpoolError> {
        let n = self.next;
        self.next += 1;
        self.ledger.take(&format!("a? {n} {size}"));
        let told = self.spool.accept(driver::request(n, size)).await;
        if told.is_ok() {
            self.ledger.take(&format!("a! {n}"));
        }
        told.map(drop)
    }

    /// Until nothing more is taken: large ones first, then small ones into what is left.
    async fn fill(&mut self, seed: u64) -> Result<(), String> {
        for size in [100 << 10, 20 << 10, 1_000 + (seed % 1_000) as usize, 10] {
            let mut offers = 0;
            loop {
                match self.offer(size).await {
                    Ok(()) => offers += 1,
                    Err(SpoolError::DiskFull | SpoolError::QueueFull) => break,
                    Err(error) => return Err(format!("a full disk was called {error}")),
                }
                if offers > OFFERS_MAX {
                    return Err("the disk never was full".into());
                }
            }
        }
        if self.ledger.accepted == 0 { Err("nothing fitted".into()) } else { Ok(()) }
    }

    async fn lease(&mut self, max: u32) -> Result<Vec<Leased>, SpoolError> {
        self.ledger.take("l?");
        let leased = self.spool.lease(max).await?;
        self.ledger.take("le");
        for one in &leased {
            self.ledger.take(&format!("l! {}", driver::number(&one.id).unwrap_or(0)));
        }
        Ok(leased)
    }

    /// As many attempts as are still given out; each of them must find room for its outcome.
    async fn drain_a_little(&mut self) -> Result<(), String> {
        for _ in 0..20 {
            let Ok(leased) = self.lease(1).await else { return Ok(()) };
            for one in &leased {
                self.answer(one).await?;
            }
        }
        Ok(())
    }

    async fn answer(&mut self, one: &Leased) -> Result<(), String> {
        let n = driver::number(&one.id).unwrap_or(0);
        self.ledger.take(&format!("s? {n} A{ANSWER}"));
        let mut last = None;
        for _ in 0..TRIES {
            let answer = UplinkAnswer {
                uplink: "u".into(),
                model: "m".into(),
                status: 200,
                content_type: "application/json".into(),
                latency_ms: 1,
                usage: None,
                body: driver::answer(n, ANSWER).into(),
            };
            match self.spool.settle(one.seq, Settlement::Answered(answer)).await {
                Ok(()) => {
                    self.ledger.take(&format!("s! {n}"));
                    self.outcomes += 1;
                    return Ok(());
                }
                Err(error) => last = Some(error),
            }
        }
        Err(format!("request {n} was sent and its outcome found no room: {last:?}"))
    }

    /// With room again everything drains and new requests are taken.
    async fn go_on(&mut self) -> Result<(), String> {
        for _ in 0..OFFERS_MAX {
            let leased = self.lease(8).await;
            let leased = leased.map_err(|e| format!("nothing is handed out though there is room again: {e}"))?;
            if leased.is_empty() {
                break;
            }
            for one in &leased {
                self.answer(one).await?;
            }
        }
        self.offer(500).await.map_err(|e| format!("nothing is taken though there is room again: {e}"))
    }
}
