//! The least that making bytes durable can cost: an append and fdatasync, alone or in groups.
//!
//! Owns the file it appends to; keeps no index, no state and no promise beyond the flush.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast::clock;
use tokio::sync::{Barrier, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::stats::Cell;

/// Most appends of one group; more callers than that are never measured.
const GROUP_MAX: usize = 256;

/// One caller: write, flush, next.
pub(crate) fn alone(folder: &Path, body: &Bytes, long: Duration) -> Cell {
    let mut file = open(folder);
    let started = clock::now();
    let mut timings = Vec::new();
    while started.elapsed() < long {
        let one = clock::now();
        file.write_all(body).unwrap();
        file.sync_data().unwrap();
        timings.push(one.elapsed());
    }
    Cell::of(timings, started.elapsed())
}

type Append = (Bytes, oneshot::Sender<()>);

/// Many callers: a thread takes what they queued, writes it and flushes once for all of them.
pub(crate) async fn grouped(folder: &Path, body: &Bytes, callers: usize, long: Duration) -> Cell {
    let (queue, queued) = mpsc::channel::<Append>(GROUP_MAX);
    let file = open(folder);
    let writer = std::thread::spawn(move || commit(file, queued));
    let start = Arc::new(Barrier::new(callers + 1));
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (queue, body, start) = (queue.clone(), body.clone(), start.clone());
        tasks.spawn(async move {
            start.wait().await;
            let until = clock::now() + long;
            let mut timings = Vec::new();
            while clock::now() < until {
                let one = clock::now();
                let (done, flushed) = oneshot::channel();
                queue.send((body.clone(), done)).await.unwrap();
                flushed.await.unwrap();
                timings.push(one.elapsed());
            }
            timings
        });
    }
    start.wait().await;
    let started = clock::now();
    let timings = tasks.join_all().await.concat();
    let took = started.elapsed();
    drop(queue);
    writer.join().unwrap();
    Cell::of(timings, took)
}

fn commit(mut file: File, mut queued: mpsc::Receiver<Append>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while queued.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
        for (body, _) in &group {
            file.write_all(body).unwrap();
        }
        file.sync_data().unwrap();
        for (_, done) in group.drain(..) {
            let _ = done.send(());
        }
    }
}

fn open(folder: &Path) -> File {
    File::options().append(true).create(true).open(folder.join("appended")).unwrap()
}
