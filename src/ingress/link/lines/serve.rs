//! One line and the link's rules, joined: deeds of the session are carried out, what came of them goes back.
//!
//! Owns nothing but the translation. A commit is not waited for here: the PLC may ask other things meanwhile.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::sleep;

use super::last_name::LastName;
use super::session::{Deed, Found, OFFERS_MAX, Offer, Options, Session};
use crate::clock;
use crate::ingress::link::core::{Answer, Cancelled, Core, How, Op, Outcome, Refusal, Submission};
use crate::ingress::link::port::Line;
use crate::ingress::link::state::Count;
use crate::ingress::link::{Link, digits, fixed_uid};
use crate::spool::record::DeviceKey;
use holdfast_wire::Code;

/// Bytes read from the port at once: a line.
const READ_BYTES: usize = 1024;
/// Work under way before another piece of the line is read, so that nobody fills the memory with questions.
const DOING_MAX: usize = 32;
/// With nothing to say the session is looked at this often.
const IDLE: Duration = Duration::from_hours(1);
/// A look for results that failed is made again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What came of a deed.
enum Done {
    Stored(String, Result<(u64, bool), Refusal>),
    Found(String, Option<u32>, Result<Found, Refusal>),
    Cancelled(String, Result<u8, Refusal>),
    Greeted(Option<u32>, u8),
    Taken(u64, Result<(), Refusal>),
    /// With whether some could not be looked up.
    Looked(Vec<Offer>, bool),
    /// Time to look again.
    Again,
}

/// Speaks lines until the line is gone.
pub(in crate::ingress::link) async fn serve(link: Link, mut line: Line) {
    let options = Options {
        line_max: link.options.line_max.into(),
        needs_crc: !link.options.crc_optional,
        push: link.options.push,
    };
    let last_name = LastName::of(&link);
    let session = Session::new(options, last_name.last().await);
    let mut spoken = Spoken { session, link, last_name, doing: FuturesUnordered::new(), dropped: 0, nacks: 0 };
    let mut changes = spoken.link.core.changes();
    let mut buffer = [0; READ_BYTES];
    let first = spoken.session.changed();
    if !spoken.carry_out(first, &mut line).await {
        return;
    }
    loop {
        let now_ms = spoken.now_ms();
        let wait = spoken.session.deadline_ms().map_or(IDLE, |at| Duration::from_millis(at.saturating_sub(now_ms) + 1));
        let deeds = tokio::select! {
            read = line.read(&mut buffer), if spoken.doing.len() < DOING_MAX => {
                let Some(bytes) = read else { return };
                // Byte by byte: what one device asked is carried out before the next says its name.
                for byte in &buffer[..bytes] {
                    let deeds = spoken.receive(*byte);
                    if !spoken.carry_out(deeds, &mut line).await {
                        return;
                    }
                }
                Vec::new()
            }
            Some((generation, done)) = spoken.doing.next() => spoken.done(generation, done),
            Ok(()) = changes.changed() => spoken.session.changed(),
            () = sleep(wait) => {
                let now_ms = spoken.now_ms();
                spoken.session.tick(now_ms)
            }
        };
        if !spoken.carry_out(deeds, &mut line).await {
            return;
        }
    }
}

struct Spoken {
    session: Session,
    link: Link,
    last_name: LastName,
    /// Bounded by the session: so many requests being stored, one look, and one answer for each line that came. Each
    /// with the device for which it was begun.
    doing: FuturesUnordered<BoxFuture<'static, (u64, Done)>>,
    dropped: u64,
    /// The same of its refusals.
    nacks: u64,
}

impl Spoken {
    fn now_ms(&self) -> u64 {
        self.link.core.gateway().now_ms()
    }

    /// Who speaks, as the link knows devices: in hexadecimal digits.
    fn uid(&self) -> String {
        match self.session.uid() {
            "" => fixed_uid(&self.link.options),
            said => digits(said),
        }
    }

    fn receive(&mut self, byte: u8) -> Vec<Deed> {
        let now_ms = self.now_ms();
        let deeds = self.session.receive(&[byte], now_ms);
        let account = &self.link.account;
        account.add(Count::Damaged, self.session.dropped() - self.dropped);
        self.dropped = self.session.dropped();
        if !deeds.is_empty() {
            account.add(Count::FramesIn, 1);
            account.heard(&self.uid(), clock::unix_ms(), |_| {});
        }
        deeds
    }

    /// False when the line is gone.
    async fn carry_out(&mut self, deeds: Vec<Deed>, line: &mut Line) -> bool {
        if deeds.is_empty() {
            return true;
        }
        self.link.account.add(Count::Nacks, self.session.nacks() - self.nacks);
        self.nacks = self.session.nacks();
        let (uid, generation) = (self.uid(), self.session.generation());
        for deed in deeds {
            if let Deed::Send(bytes) = deed {
                if !line.write(&bytes).await {
                    return false;
                }
                self.link.account.add(Count::FramesOut, 1);
                continue;
            }
            let naming = self.last_name.clone().note(self.session.uid().to_owned());
            let doing = begin(deed, self.link.core.clone(), uid.clone(), naming);
            self.doing.push(Box::pin(doing.map(move |done| (generation, done))));
        }
        true
    }

    fn done(&mut self, generation: u64, done: Done) -> Vec<Deed> {
        let now_ms = self.now_ms();
        let account = self.link.account.clone();
        if generation != self.session.generation() {
            // Another device speaks now: it is told nothing of this. What it was remains on record.
            account.add(Count::Stored, u64::from(matches!(done, Done::Stored(_, Ok((_, false))))));
            account.add(Count::Results, u64::from(matches!(done, Done::Taken(_, Ok(())))));
            return Vec::new();
        }
        match done {
            Done::Stored(key, outcome) => {
                if let Ok((_, again)) = &outcome {
                    account.add(if *again { Count::Repeats } else { Count::Stored }, 1);
                }
                self.session.stored(&key, outcome.map_err(|refusal| said(&refusal)))
            }
            Done::Found(key, part, Ok(found)) => self.session.found(&key, part, found),
            Done::Cancelled(key, Ok(outcome)) => self.session.cancelled(&key, outcome),
            // The PLC asks again.
            Done::Found(key, _, Err(refusal)) | Done::Cancelled(key, Err(refusal)) => {
                self.session.stored(&key, Err(said(&refusal)))
            }
            Done::Greeted(nonce, uplink) => {
                self.session.greet(nonce, self.link.core.boot(), uplink, clock::unix_ms() / 1000)
            }
            Done::Taken(request, outcome) => {
                account.add(Count::Results, u64::from(outcome.is_ok()));
                self.session.taken(request, outcome.is_ok(), now_ms)
            }
            Done::Looked(offers, again) => {
                if again {
                    self.doing.push(Box::pin(sleep(LOOK_AGAIN).map(move |()| (generation, Done::Again))));
                }
                self.session.offer(offers, now_ms)
            }
            Done::Again => self.session.changed(),
        }
    }
}

/// What a deed needs of the link; `naming` notes down who speaks.
fn begin(
    deed: Deed,
    core: Core,
    uid: String,
    naming: impl Future<Output = bool> + Send + 'static,
) -> BoxFuture<'static, Done> {
    Box::pin(async move {
        let is_named = match &deed {
            Deed::Store { .. } | Deed::Greet(_) => naming.await,
            _ => true,
        };
        match deed {
            // Nothing is stored under a name that a restart would forget: who repeats it would be somebody else.
            Deed::Store { key, .. } if !is_named => {
                Done::Stored(key, Err(Refusal::for_now(Code::StorageFull, 30_000, "the name cannot be noted down")))
            }
            Deed::Store { key, prio, ttl_s, task, args } => {
                let op = Op::Task { id: task, args, pictures: Vec::new() };
                let named = DeviceKey::Text(key.clone());
                let submission = Submission { uid, key: named, prio, ttl_s, flags: 0, max_reply: 0, op };
                let stored = core.submit(submission).await;
                Done::Stored(key, stored.map(|stored| (stored.request, stored.how != How::New)))
            }
            Deed::Find(key, part) => {
                let answer = core.query(&uid, DeviceKey::Text(key.clone())).await;
                Done::Found(key, part, answer.map(found))
            }
            Deed::Cancel(key) => {
                let cancelled = core.cancel(&uid, DeviceKey::Text(key.clone())).await;
                let number = |cancelled| match cancelled {
                    Cancelled::Yes => 0,
                    Cancelled::TooLate => 1,
                    Cancelled::Unknown => 2,
                };
                Done::Cancelled(key, cancelled.map(number))
            }
            Deed::Taken(request) => Done::Taken(request, core.acked(&uid, request).await),
            // Where its name could not be noted down, that is tried again before anything is stored.
            Deed::Greet(nonce) => Done::Greeted(nonce, core.uplink().await),
            Deed::Look => {
                let results = core.results(&uid, OFFERS_MAX, &[]).await;
                Done::Looked(results.outcomes.into_iter().filter_map(offer).collect(), results.again)
            }
            // Sent by whoever has the line.
            Deed::Send(_) => Done::Looked(Vec::new(), false),
        }
    })
}

fn said(refusal: &Refusal) -> (Code, u32) {
    (refusal.code, refusal.retry_ms.div_ceil(1000))
}

fn found(answer: Answer) -> Found {
    match answer {
        Answer::Unknown => Found::Unknown,
        Answer::Progress(progress) => Found::Waits(progress.state, progress.position, progress.eta_s),
        Answer::Result(outcome) => offer(outcome).map_or(Found::Unknown, Found::Result),
    }
}

/// Only what was asked for in lines has a key that a line can say.
fn offer(outcome: Outcome) -> Option<Offer> {
    let DeviceKey::Text(key) = outcome.key else { return None };
    Some(Offer {
        request: outcome.request,
        key,
        about: (outcome.status, outcome.source, outcome.code),
        text: String::from_utf8_lossy(&outcome.text).into_owned(),
    })
}
