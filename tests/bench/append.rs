//! The least that making bytes durable can cost: an append and fdatasync, alone or in groups.
//!
//! Owns the file it appends to and removes it; keeps no index, no state and no promise beyond the flush.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use holdfast::clock;
use tokio::sync::{mpsc, oneshot};

use crate::load::Again;
use crate::stats::Cell;
use crate::{flush, load};

/// Most appends of one group; more callers than that are never measured.
const GROUP_MAX: usize = 256;
const NAME: &str = "appended";

/// One caller: write, flush, next.
pub(crate) async fn alone(folder: &Path, body: Bytes, long: Duration) -> Cell {
    let path = folder.join(NAME);
    let mut file = open(&path);
    let appended = tokio::task::spawn_blocking(move || {
        let started = clock::now();
        let mut timings = Vec::new();
        while started.elapsed() < long {
            let one = clock::now();
            file.write_all(&body).unwrap();
            flush::data(&file);
            timings.push(one.elapsed());
        }
        Cell::of(timings, started.elapsed())
    });
    let cell = appended.await.unwrap();
    std::fs::remove_file(path).unwrap();
    cell
}

type Append = (Bytes, oneshot::Sender<()>);

/// One of many callers.
struct Appending {
    queue: mpsc::Sender<Append>,
    body: Bytes,
}

impl Again for Appending {
    async fn once(&mut self, timings: &mut Vec<Duration>) {
        let one = clock::now();
        let (done, flushed) = oneshot::channel();
        self.queue.send((self.body.clone(), done)).await.unwrap();
        flushed.await.unwrap();
        timings.push(one.elapsed());
    }
}

/// Many callers: a thread takes what they queued, writes it and flushes once for all of them.
pub(crate) async fn grouped(folder: &Path, body: Bytes, callers: usize, long: Duration) -> Cell {
    let path = folder.join(NAME);
    let (queue, queued) = mpsc::channel::<Append>(GROUP_MAX);
    let file = open(&path);
    let writer = std::thread::spawn(move || commit(file, queued));
    let all = (0..callers).map(|_| Appending { queue: queue.clone(), body: body.clone() }).collect();
    drop(queue);
    let cell = load::together(all, 0, long, None).await;
    writer.join().unwrap();
    std::fs::remove_file(path).unwrap();
    cell
}

fn commit(mut file: File, mut queued: mpsc::Receiver<Append>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while queued.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
        for (body, _) in &group {
            file.write_all(body).unwrap();
        }
        flush::data(&file);
        for (_, done) in group.drain(..) {
            let _ = done.send(());
        }
    }
}

fn open(path: &Path) -> File {
    File::options().append(true).create(true).open(path).unwrap()
}
