//! The handle's calls for devices: what their keys name, what they are still to be told, what only the local model
//! may answer.
//!
//! Owns no rule of its own: `device.rs` and `settle.rs` have them.

use super::record::{Asked, DeviceKey, DeviceRequest, LocalAnswer, Mailbox, Settlement};
use super::{Spool, SpoolError, device, settle};

impl Spool {
    /// Requests whose result a device is to be told, oldest first: finished ones, and those with a local answer.
    pub async fn undelivered(&self, source: &str, uid: &str, limit: u32) -> Result<Vec<DeviceRequest>, SpoolError> {
        let (source, uid) = (source.to_owned(), uid.to_owned());
        self.read(move |store| device::undelivered(store, &source, &uid, limit)).await
    }

    /// Requests that a device waits for and that are not over, oldest first.
    pub async fn unfinished(&self, source: &str, uid: &str, limit: u32) -> Result<Vec<DeviceRequest>, SpoolError> {
        let (source, uid) = (source.to_owned(), uid.to_owned());
        self.read(move |store| device::unfinished(store, &source, &uid, limit)).await
    }

    /// How many requests of a device wait for their result to be handed over, finished or not.
    pub async fn device_open(&self, source: &str, uid: &str) -> Result<u64, SpoolError> {
        let (source, uid) = (source.to_owned(), uid.to_owned());
        self.read(move |store| device::open(store, &source, &uid)).await
    }

    /// What a device's key names.
    pub async fn device_key(&self, source: &str, uid: &str, key: DeviceKey) -> Result<Asked, SpoolError> {
        let (source, uid) = (source.to_owned(), uid.to_owned());
        self.read(move |store| device::by_key(store, &source, &uid, &key)).await
    }

    /// A device's request by its number; nobody else's.
    pub async fn device_request(&self, source: &str, uid: &str, seq: u64) -> Result<Option<DeviceRequest>, SpoolError> {
        let (source, uid) = (source.to_owned(), uid.to_owned());
        self.read(move |store| device::by_seq(store, &source, &uid, seq)).await
    }

    /// What the mailboxes of a source were last written with.
    pub async fn mailboxes(&self, source: &str) -> Result<Vec<Mailbox>, SpoolError> {
        let source = source.to_owned();
        self.read(move |store| device::mailboxes(store, &source)).await
    }

    /// The next unfinished request after this device and number that the local model may answer and has not;
    /// `only_local` leaves out those that an uplink may answer too.
    pub async fn local_work(
        &self,
        source: &str,
        after: (String, u64),
        only_local: bool,
    ) -> Result<Option<DeviceRequest>, SpoolError> {
        let source = source.to_owned();
        self.read(move |store| device::local_work(store, &source, &after, only_local)).await
    }

    /// The device has the whole result. [`SpoolError::Salvaging`] while the request is behind: to be tried again.
    pub async fn handed_over(&self, source: &str, uid: &str, seq: u64) -> Result<(), SpoolError> {
        self.with_ballast(|| {
            let (source, uid) = (source.to_owned(), uid.to_owned());
            self.write(move |store| device::handed_over(store, &source, &uid, seq))
        })
        .await
    }

    /// Keeps the local answer as a device's one result, unless the request ended before; says whether it did.
    /// [`SpoolError::Salvaging`] while the request is behind.
    pub async fn record_local_first(&self, seq: u64, answer: LocalAnswer) -> Result<bool, SpoolError> {
        self.with_ballast(|| async {
            let (answer, file) = (answer.clone(), self.stage(&answer.body.clone().into()).await?);
            self.write(move |store| settle::record_local_first(store, seq, &answer, file)).await
        })
        .await
    }

    /// Ends a request that only the local model may answer, `Answered` or `Dead`; says whether it was waiting.
    /// [`SpoolError::Salvaging`] while the request is behind.
    pub async fn settle_here(&self, seq: u64, how: Settlement) -> Result<bool, SpoolError> {
        self.with_ballast(|| async {
            let how = how.clone();
            let file = match &how {
                Settlement::Answered(answer) => self.stage(&answer.body).await?,
                _ => None,
            };
            self.write(move |store| settle::settle_here(store, seq, &how, file)).await
        })
        .await
    }
}
