//! Moves an answer from the model server to whoever asked.
//!
//! Owns the order of reading, time-outs and hand-over; never knows a format: a [`Reading`] does.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::timeout_at;

use super::LocalError;
use super::transport::Source;

/// Events in memory between the model server and a slow reader; a full channel stops reading from the server.
const EVENTS_MAX: usize = 32;

/// Understands an answer as its bytes come in.
pub(super) trait Reading: Send + 'static {
    /// The next bytes.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), LocalError>;
    /// The server ended its answer; an error if more was to come.
    fn close(&mut self) -> Result<(), LocalError>;
    /// Whether the first content is there.
    fn started(&self) -> bool;
    /// Whether nothing more is to come.
    fn finished(&self) -> bool;
}

/// A [`Reading`] that yields server-sent events as it goes.
pub(super) trait Events: Reading {
    /// The events that are ready.
    fn take(&mut self) -> VecDeque<Bytes>;
}

/// Reads to the end.
pub(super) async fn to_end<R: Reading>(source: &mut Source, reading: &mut R) -> Result<(), LocalError> {
    while !reading.finished() {
        advance(source, reading).await?;
    }
    Ok(())
}

/// Reads up to the first content: until then a failure can still be answered in another way.
pub(super) async fn to_content<R: Reading>(source: &mut Source, reading: &mut R) -> Result<(), LocalError> {
    while !reading.started() && !reading.finished() {
        advance(source, reading).await?;
    }
    Ok(())
}

async fn advance<R: Reading>(source: &mut Source, reading: &mut R) -> Result<(), LocalError> {
    match source.next(reading.started()).await? {
        Some(bytes) => reading.feed(&bytes),
        None => reading.close(),
    }
}

/// Hands the events to a channel from a task of its own, which keeps the slot only while the server works.
pub(super) fn pump<E: Events>(mut source: Source, mut events: E, permit: OwnedSemaphorePermit) -> Receiver<Item> {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(async move {
        let end = forward(&mut source, &mut events, &sender).await;
        // Frees the server and the slot before waiting for a slow reader.
        drop(source);
        drop(permit);
        for event in events.take() {
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
        if let Err(error) = end {
            // A reader that has gone needs no error.
            let _gone = sender.send(Err(error)).await;
        }
    });
    receiver
}

/// One event, or why no more follow.
pub(super) type Item = Result<Bytes, LocalError>;

async fn forward<E: Events>(source: &mut Source, events: &mut E, sender: &Sender<Item>) -> Result<(), LocalError> {
    while !events.finished() {
        for event in events.take() {
            let sent = timeout_at(source.limits.total, sender.send(Ok(event))).await;
            if sent.map_err(|_| LocalError::Timeout)?.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            biased;
            () = sender.closed() => return Ok(()),
            step = advance(source, events) => step?,
        }
    }
    Ok(())
}
