//! What the driver was told, and whether a spool that is opened later keeps it.
//!
//! Owns the invariants: what was accepted is there byte for byte or has its outcome; an outcome that was recorded stays; what
//! had been handed out is never offered again without its label. Never touches a folder.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use holdfast::body::Body;
use holdfast::control::types::State;
use holdfast::spool::record::{Filter, Record, Settlement};
use holdfast::spool::{Spool, SpoolError};

use crate::driver;

/// What is known of one request.
#[derive(Debug, Clone, Default)]
struct Known {
    size: usize,
    accepted: bool,
    /// Handed out at least once, and not certainly given back since.
    handed: bool,
    /// A send that may have been billed was put on record.
    labelled: bool,
    /// An end that was asked for and not confirmed.
    asked: Option<End>,
    /// The end on record.
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Answered(usize),
    Queued,
    Labelled,
    Dead,
}

/// What was told so far.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    known: BTreeMap<u64, Known>,
    /// A lease was asked for and not yet answered: it may be on disk.
    leasing: bool,
    /// Finished requests may be gone.
    pruning: bool,
    /// Requests acknowledged.
    pub accepted: u64,
    /// The driver came to its end, and was served there.
    pub alive: bool,
    /// The driver came to its end.
    pub ended: bool,
    /// The spool opened.
    pub opened: bool,
}

impl Ledger {
    /// Everything that a file of marks tells.
    pub fn read(text: &str) -> Ledger {
        let mut ledger = Ledger::default();
        text.lines().for_each(|line| ledger.take(line));
        ledger
    }

    /// One mark.
    pub fn take(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let what = words.next().unwrap_or_default();
        let n: u64 = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
        let rest = words.next().unwrap_or_default();
        match what {
            "l?" | "lx" => self.leasing = true,
            "le" => self.leasing = false,
            "p?" => self.pruning = true,
            "open" => self.opened = true,
            "alive" => self.alive = true,
            "end" => self.ended = true,
            "a?" | "a!" | "ax" | "l!" | "s?" | "s!" | "sx" => self.of_one(what, n, rest),
            _ => {}
        }
    }

    fn of_one(&mut self, what: &str, n: u64, rest: &str) {
        let known = self.known.entry(n).or_default();
        match what {
            "a?" => known.size = rest.parse().unwrap_or(0),
            "a!" => {
                known.accepted = true;
                self.accepted += 1;
            }
            // Offered anew: an end that was asked for before is not on record.
            "l!" => (known.handed, known.asked) = (true, None),
            "s?" => known.asked = End::of(rest),
            "s!" => known.settled(),
            _ => {}
        }
    }

    /// Looks at an open spool; the fault it finds, if any. Leases what there is to lease.
    pub async fn judge(&self, spool: &Spool) -> Result<(), String> {
        let records = all(spool).await?;
        for (n, known) in &self.known {
            match records.get(n) {
                Some(record) => self.one(*n, known, record, spool).await?,
                None => self.absent(*n, known)?,
            }
        }
        if let Some((_, record)) = records.iter().find(|(n, _)| !self.known.contains_key(n)) {
            let (id, state) = (&record.id, record.state);
            return Err(format!("{id} is there, {state:?}, and was never offered"));
        }
        let seen = self.offered_again(spool).await?;
        for (n, record) in records.iter().filter(|(n, r)| r.state == State::Queued && !seen.contains(n)) {
            self.whole(*n, &self.known[n], record, spool).await?;
            // Not handed out because it is put off, and not because it was found unfit.
            let now = spool.get(record.id.clone()).await.map_err(|e| format!("request {n}: {e}"))?;
            if now.as_ref().is_none_or(|now| now.state != State::Queued) {
                return Err(format!("request {n} waited and was not handed out: {now:?}"));
            }
        }
        Ok(())
    }

    fn absent(&self, n: u64, known: &Known) -> Result<(), String> {
        let ended = |end: Option<End>| matches!(end, Some(End::Answered(_)));
        let pruned = self.pruning && (ended(known.end) || ended(known.asked));
        if known.accepted && !pruned { Err(format!("request {n} was accepted and is gone: {known:?}")) } else { Ok(()) }
    }

    async fn one(&self, n: u64, known: &Known, record: &Record, spool: &Spool) -> Result<(), String> {
        let said = || said(n, known, record);
        if !known.accepted && record.state == State::Dead {
            // Nobody was told that it was taken; what the salvage found of it is set aside.
            return Ok(());
        }
        if !self.may_stand(known, record) {
            return Err(said());
        }
        if record.state == State::Answered {
            let size = [known.end, known.asked].into_iter().flatten().find_map(End::answer);
            let wanted = size.map(|size| driver::answer(n, size));
            let kept = spool.get(record.id.clone()).await.map_err(|e| format!("{}: {e}", said()))?;
            let bytes = kept.and_then(|r| r.uplink).map(|(answer, _)| bytes(&answer.body)).transpose();
            return if bytes.is_ok_and(|bytes| bytes == wanted) {
                Ok(())
            } else {
                Err(format!("another answer: {}", said()))
            };
        }
        // What waits is compared as it is handed out.
        if record.state == State::Queued { Ok(()) } else { self.whole(n, known, record, spool).await }
    }

    async fn whole(&self, n: u64, known: &Known, record: &Record, spool: &Spool) -> Result<(), String> {
        let said = || said(n, known, record);
        match spool.body(record.id.clone()).await {
            Ok(Some(bytes)) if bytes[..] == crate::chance::body(n, known.size)[..] => Ok(()),
            Ok(Some(_)) => Err(format!("another body: {}", said())),
            Ok(None) if known.end == Some(End::Dead) || known.asked == Some(End::Dead) => Ok(()),
            Ok(None) => Err(format!("no body: {}", said())),
            Err(error) => Err(format!("{error}: {}", said())),
        }
    }

    fn may_stand(&self, known: &Known, record: &Record) -> bool {
        let unsure = record.state == State::Unknown
            || record.state == State::Dead && record.reason.as_deref() == Some("unknown") && record.maybe_billed;
        let queued = record.state == State::Queued;
        let of = |end: Option<End>| match end {
            Some(End::Answered(_)) => record.state == State::Answered,
            Some(End::Dead) => record.state == State::Dead && record.reason.as_deref() == Some("refused"),
            Some(End::Queued) => queued && (record.maybe_billed || !known.labelled),
            Some(End::Labelled) => queued && record.maybe_billed,
            None => false,
        };
        match known.end {
            Some(_) => of(known.end),
            None if known.handed => queued && record.maybe_billed || unsure || of(known.asked),
            // A log that is torn behind a labelled row may have held the mark of its second send: there is no third.
            None => queued && (record.maybe_billed || !known.labelled) || (self.leasing || known.labelled) && unsure,
        }
    }

    /// What is offered again after the crash says that it may have been sent.
    async fn offered_again(&self, spool: &Spool) -> Result<BTreeSet<u64>, String> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<u64> = Vec::new();
        loop {
            let leased = match spool.lease(256).await {
                // There is room for no more answers than the disk holds: those that were seen make some.
                Err(SpoolError::DiskFull) if !open.is_empty() => {
                    put_off(spool, std::mem::take(&mut open)).await?;
                    continue;
                }
                done => done.map_err(|e| format!("nothing can be leased: {e}"))?,
            };
            if leased.is_empty() {
                return Ok(seen);
            }
            for one in leased {
                open.push(one.seq);
                let n = driver::number(&one.id).unwrap_or(0);
                let known = self.known.get(&n).cloned().unwrap_or_default();
                let maybe_given_back = matches!(known.asked, Some(End::Queued | End::Labelled));
                if (known.handed || known.labelled) && !one.maybe_billed && !maybe_given_back {
                    return Err(format!("request {n} is sent once more without a label: {known:?}"));
                }
                if known.end.is_some() {
                    return Err(format!("request {n} is sent once more after its end: {known:?}"));
                }
                if bytes(&one.body).map_err(|e| e.to_string())? != crate::chance::body(n, known.size) {
                    return Err(format!("request {n} is sent with another body: {known:?}"));
                }
                if !seen.insert(n) {
                    return Err(format!("request {n} is handed out twice"));
                }
            }
        }
    }
}

/// Ends these leases without an end for their requests, which are not handed out again.
async fn put_off(spool: &Spool, open: Vec<u64>) -> Result<(), String> {
    let later = Settlement::Requeue { counted: false, deferred: true, maybe_billed: false, error: None, came: None };
    let done = join_all(open.into_iter().map(|seq| spool.settle(seq, later.clone()))).await;
    done.into_iter().collect::<Result<(), _>>().map_err(|e| format!("a lease does not end: {e}"))
}

impl Known {
    fn settled(&mut self) {
        match self.asked.take() {
            Some(End::Queued) => self.handed = false,
            Some(End::Labelled) => (self.handed, self.labelled) = (false, true),
            end => self.end = end,
        }
    }
}

impl End {
    fn of(word: &str) -> Option<End> {
        match word {
            "Q" => Some(End::Queued),
            "M" => Some(End::Labelled),
            "D" => Some(End::Dead),
            answered => answered.strip_prefix('A')?.parse().ok().map(End::Answered),
        }
    }

    fn answer(self) -> Option<usize> {
        if let End::Answered(size) = self { Some(size) } else { None }
    }
}

fn said(n: u64, known: &Known, record: &Record) -> String {
    format!("request {n} stands as {:?}, maybe_billed {}: {known:?}", record.state, record.maybe_billed)
}

async fn all(spool: &Spool) -> Result<BTreeMap<u64, Record>, String> {
    let (mut found, mut after) = (BTreeMap::new(), 0);
    loop {
        let filter = Filter { after, limit: 1_000, ..Filter::default() };
        let step = spool.list(filter).await.map_err(|e| format!("nothing can be listed: {e}"))?;
        let Some(last) = step.last() else { return Ok(found) };
        after = last.seq;
        for record in step {
            let n = driver::number(&record.id).unwrap_or(0);
            if found.insert(n, record).is_some() {
                return Err(format!("request {n} is there twice"));
            }
        }
    }
}

/// A body's bytes, from memory or its file.
pub fn bytes(body: &Body) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < body.len() {
        bytes.extend(body.read(bytes.len() as u64, body.len())?);
    }
    Ok(bytes)
}
