//! A disk that is really full: no acknowledgement, honest words, work goes on, and it ends by itself.
//!
//! Needs root for a file system of its own; without, it says that it was skipped.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use holdfast::cli::simulate::{Faults, Mode};

use crate::support::{Ask, Bench, Settings, until};

/// A small file system in memory, gone when dropped.
pub struct Disk(tempfile::TempDir);

impl Disk {
    pub fn mount() -> Option<Disk> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=96m", "tmpfs"]).arg(dir.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Disk(dir))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes every free byte.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("filler")).unwrap();
        let block = vec![1u8; 4096];
        while file.write_all(&block).is_ok() {}
    }

    pub fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn stored(user: &str) -> Ask {
    Ask::chat(user).header("prefer", "respond-async")
}

#[tokio::test]
async fn a_full_disk_takes_nothing_finishes_what_is_there_and_recovers() {
    let Some(disk) = Disk::mount() else {
        println!("SKIPPED: no file system of its own could be mounted; run this as root");
        return;
    };
    let settings = Settings {
        data_dir: Some(disk.path().join("data").to_str().unwrap().to_owned()),
        extra: "[queue]\nmin_disk_free = \"16MiB\"\n".to_owned(),
        ..Settings::without_local()
    };
    let bench = Bench::offline(settings).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let reply = bench.daemon.send(stored(&format!("before {n}"))).await;
        assert_eq!(reply.status, 202, "{}", reply.text());
        ids.push(reply.id());
    }
    disk.fill();
    until("health to say it", 20, || async {
        let health = bench.daemon.get("/health").await;
        (health.status == 503 && health.text() == "disk_full\n").then_some(())
    })
    .await;
    bench.daemon.send(stored("offline and full")).await.assert_error(507, "disk_full");
    bench.uplink.set_faults(Faults::default()).await;
    bench.wait_online().await;
    let plain = bench.daemon.send(Ask::chat("online and full")).await;
    assert_eq!((plain.status, plain.content().as_str()), (200, "uplink answer to: online and full"));
    bench.daemon.send(stored("online, stored and full")).await.assert_error(507, "disk_full");
    until("existing work to go on", 60, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(bench.daemon.record(id).await["state"], "answered");
        assert_eq!(bench.answered(&format!("before {n}")), 1);
    }
    disk.free();
    until("health again", 30, || async { (bench.daemon.get("/health").await.status == 200).then_some(()) }).await;
    bench.outage(Faults::failing(Mode::Refuse)).await;
    let reply = bench.daemon.send(stored("after")).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    bench.recover().await;
    assert_eq!(bench.daemon.record(&reply.id()).await["state"], "answered");
    assert_eq!(bench.answered("offline and full") + bench.answered("online, stored and full"), 0);
}

/// Nobody else writes there: kept answers alone use the disk up. Then the drain rests, the next start finds room, and a purge makes more.
#[tokio::test]
async fn answers_that_fill_the_disk_leave_room_for_a_start_and_a_purge() {
    const REQUESTS: usize = 2_000;
    let Some(disk) = Disk::mount() else {
        println!("SKIPPED: no file system of its own could be mounted; run this as root");
        return;
    };
    let settings = Settings {
        data_dir: Some(disk.path().join("data").to_str().unwrap().to_owned()),
        extra: "[queue]\nmin_disk_free = \"16MiB\"\n".to_owned(),
        ..Settings::without_local()
    };
    let mut bench = Bench::offline(settings).await;
    for some in 0..REQUESTS / 50 {
        let asks = (0..50).map(|n| bench.daemon.send(stored(&format!("{some}.{n}"))));
        assert!(futures_util::future::join_all(asks).await.iter().all(|reply| reply.status == 202));
    }
    let text = format!(
        "{{\"object\":\"chat.completion\",\"choices\":[{{\"message\":{{\"content\":\"{}\"}}}}]}}",
        "x".repeat(60_000)
    );
    bench.uplink.set_faults(Faults { answer: Some(text), ..Faults::default() }).await;
    bench.wait_online().await;
    let mut rests = 0;
    while rested(&bench).await > 0 {
        rests += 1;
        bench.daemon.kill().await;
        bench.daemon.restart().await;
        purge(&bench).await;
    }
    assert!(rests > 0, "the disk was large enough for all answers");
    let answered = bench.uplink.log().iter().filter(|entry| entry.status == 200).count();
    assert_eq!(answered, REQUESTS, "each was sent once");
    purge(&bench).await;
    // The database gives back what it does not use.
    until("health again", 30, || async { (bench.daemon.get("/health").await.status == 200).then_some(()) }).await;
    assert_eq!(bench.daemon.send(stored("after")).await.status, 202);
}

async fn purge(bench: &Bench) {
    let (code, said) = bench.daemon.tool(&["queue", "purge", "--state", "answered", "--yes"]).await;
    assert_eq!(code, 0, "{said}");
}

/// What waits when for two seconds nothing went.
async fn rested(bench: &Bench) -> u64 {
    let mut before = u64::MAX;
    loop {
        let now = bench.daemon.backlog().await;
        if now == before {
            return now;
        }
        before = now;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
