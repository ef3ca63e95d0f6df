//! Questions of a master and the link's rules, joined: one task has the registers, so an answer waits for no disk.
//!
//! Owns the translation between mailboxes and requests, for a serial line and for TCP connections alike.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use holdfast_wire::message::state;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::frame::{Framer, SILENCE_MS, rtu};
use super::unit::{Deed, Order, RESULT_TEXT_MAX, Shown, Unit};
use crate::clock;
use crate::ingress::link::core::{Answer, Core, How, Op, Outcome, Refusal, Submission};
use crate::ingress::link::port::Line;
use crate::ingress::link::state::Count;
use crate::ingress::link::{Link, fixed_uid, restart};
use crate::spool::record::DeviceKey;

/// Questions that wait for the registers: each connection has one at a time.
const QUESTIONS_MAX: usize = 64;
/// How often the gateway's own registers are brought up to date.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// Bytes read from the line at once: a frame.
const READ_BYTES: usize = 256;
/// What could not be looked up is looked up again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// Results looked at together: a mailbox shows one, the rest wait in the spool.
const RESULTS_MAX: usize = 64;
/// That a result was taken is noted down after so many tries, or stays shown.
const NOTE_TRIES: u32 = 10;

/// Bytes without a single frame after which a line is read slowly: it must not take the board's time.
const JUNK_MAX: u64 = 64 * 1024;
/// How slowly: 12 KiB in a second are still more than the usual speeds bring.
const JUNK_WAIT: Duration = Duration::from_millis(20);

type Question = (Vec<u8>, oneshot::Sender<Vec<u8>>);

/// The registers of one link; clones ask the same ones.
#[derive(Clone)]
pub struct Registers {
    ask: mpsc::Sender<Question>,
}

impl Registers {
    /// Starts the task that has them; it ends with the last clone.
    pub fn start(link: Link) -> Registers {
        let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
        tokio::spawn(async move {
            // The questions outlive a panic: a new keeper answers them.
            let questions = Mutex::new(questions);
            let broke = || link.account.add(Count::Restarts, 1);
            restart::until_done(|| keep(link.clone(), &questions), broke).await;
        });
        Registers { ask }
    }

    /// Function and data in, function and data out; `None` when the process ends.
    pub async fn ask(&self, pdu: Vec<u8>) -> Option<Vec<u8>> {
        let (reply, answer) = oneshot::channel();
        self.ask.send((pdu, reply)).await.ok()?;
        answer.await.ok()
    }
}

/// Answers a master on a serial line until the line is gone.
pub(in crate::ingress::link) async fn serve(link: Link, mut line: Line) {
    let registers = Registers::start(link.clone());
    let (mut framer, mut buffer) = (Framer::default(), [0; READ_BYTES]);
    let (mut echo, mut junk) = (Echo::default(), 0);
    loop {
        let before = framer.dropped;
        let frames = if framer.waits() {
            match timeout(Duration::from_millis(SILENCE_MS), line.read(&mut buffer)).await {
                Ok(Some(bytes)) => framer.receive(&buffer[..bytes]),
                Ok(None) => return,
                Err(_) => framer.silent(),
            }
        } else {
            let Some(bytes) = line.read(&mut buffer).await else { return };
            framer.receive(&buffer[..bytes])
        };
        let dropped = framer.dropped - before;
        link.account.add(Count::Damaged, dropped);
        junk = if frames.is_empty() { junk + dropped } else { 0 };
        if junk > JUNK_MAX {
            sleep(JUNK_WAIT).await;
        }
        for frame in frames {
            link.account.add(Count::FramesIn, 1);
            let whole = rtu(frame.unit, &frame.pdu);
            if frame.unit != link.options.unit || echo.is_ours(&whole, frame.is_reply, clock::now()) || frame.is_reply {
                continue;
            }
            let Some(answer) = registers.ask(frame.pdu).await else { return };
            let answer = rtu(frame.unit, &answer);
            if !line.write(&answer).await {
                return;
            }
            link.account.add(Count::FramesOut, 1);
            echo.sent(answer, clock::now());
        }
    }
}

/// An echo is there within this, an adapter's buffer included.
const AT_ONCE: Duration = Duration::from_millis(50);
/// No master writes the same so many times in a row without asking for anything.
const SAME_MAX: u32 = 16;

/// Whether the line brings back what is sent on it. That of a single written register looks like the question itself,
/// so it is believed to be one only where others were seen to come back, or where it comes back at once again and again.
#[derive(Default)]
struct Echo {
    is_seen: bool,
    /// The latest answer came back at once so many times in a row.
    same: u32,
    latest: Option<Instant>,
    /// The latest answers that may come back.
    sent: VecDeque<Vec<u8>>,
}

impl Echo {
    fn sent(&mut self, answer: Vec<u8>, now: Instant) {
        self.latest = Some(now);
        if self.sent.len() >= 4 {
            self.sent.pop_front();
        }
        self.sent.push_back(answer);
    }

    fn is_ours(&mut self, frame: &[u8], is_reply: bool, now: Instant) -> bool {
        let is_at_once = self.latest.is_some_and(|latest| now.duration_since(latest) < AT_ONCE);
        let is_latest = self.sent.back().is_some_and(|sent| sent == frame);
        self.same = if is_at_once && is_latest { self.same + 1 } else { 0 };
        let Some(at) = self.sent.iter().position(|sent| sent == frame) else { return false };
        self.is_seen |= is_reply || self.same >= SAME_MAX;
        if self.is_seen {
            self.sent.remove(at);
        }
        self.is_seen
    }
}

/// What came of something that took its time.
enum Done {
    Stored(u8, u16, Result<(u64, bool), Refusal>),
    /// With whether some could not be looked up.
    Found(Vec<(u8, u64, u8, u64)>, Vec<(u8, Shown)>, bool),
    Status(u8),
    Restored(Vec<(u8, u16, u64)>),
    Taken(u64, bool),
}

struct Keeper {
    unit: Unit,
    link: Link,
    uid: String,
    doing: FuturesUnordered<BoxFuture<'static, Done>>,
    /// A look at what is open is under way; something changed meanwhile.
    looking: bool,
    look_again: bool,
    /// Something could not be looked up: to be looked for with the next status.
    look_later: bool,
}

async fn keep(link: Link, questions: &Mutex<mpsc::Receiver<Question>>) {
    let mut questions = questions.lock().await;
    let unit = Unit::new(link.options.word_order);
    let uid = fixed_uid(&link.options);
    let mut changes = link.core.changes();
    let mut keeper = Keeper {
        unit,
        link,
        uid,
        doing: FuturesUnordered::new(),
        looking: false,
        look_again: false,
        look_later: false,
    };
    keeper.doing.push(restored(keeper.link.core.clone(), keeper.uid.clone()));
    let mut status = interval(STATUS_EVERY);
    status.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            question = questions.recv() => match question {
                None => break,
                Some((pdu, reply)) => {
                    // Whoever asked may be gone.
                    let _ = reply.send(keeper.ask(&pdu));
                }
            },
            Some(done) = keeper.doing.next() => keeper.done(done),
            Ok(()) = changes.changed() => keeper.look(),
            _ = status.tick() => {
                if std::mem::take(&mut keeper.look_later) {
                    keeper.look();
                }
                let core = keeper.link.core.clone();
                keeper.doing.push(Box::pin(async move { Done::Status(core.uplink().await) }));
            }
        }
    }
    // What a master wrote and was told to have been received goes on without the line.
    let rest = keeper.doing;
    tokio::spawn(rest.for_each(|_| std::future::ready(())));
}

fn restored(core: Core, uid: String) -> BoxFuture<'static, Done> {
    Box::pin(async move {
        loop {
            if let Ok(all) = core.mailboxes().await {
                let ours = all.into_iter().filter(|mailbox| mailbox.uid == uid);
                return Done::Restored(ours.map(|m| (m.slot, m.seq, m.request)).collect());
            }
            tokio::time::sleep(AGAIN).await;
        }
    })
}

impl Keeper {
    fn ask(&mut self, pdu: &[u8]) -> Vec<u8> {
        self.link.account.heard(&self.uid, clock::unix_ms(), |_| {});
        let mut deeds = Vec::new();
        let answer = self.unit.ask(pdu, &mut deeds);
        for deed in deeds {
            self.doing.push(begin(deed, self.link.core.clone(), self.uid.clone()));
        }
        answer
    }

    fn look(&mut self) {
        if self.looking {
            self.look_again = true;
            return;
        }
        self.looking = true;
        self.doing.push(Box::pin(found(self.link.core.clone(), self.uid.clone(), self.unit.open())));
    }

    fn done(&mut self, done: Done) {
        let account = self.link.account.clone();
        match done {
            Done::Restored(latest) => {
                self.unit.restore(&latest);
                self.look();
            }
            Done::Stored(slot, seq, outcome) => {
                match &outcome {
                    Ok((_, again)) => account.add(if *again { Count::Repeats } else { Count::Stored }, 1),
                    Err(_) => account.add(Count::Nacks, 1),
                }
                let outcome = outcome.map(|(request, _)| request).map_err(|refusal| refusal.code.number());
                self.unit.stored(slot, seq, outcome);
                self.look();
            }
            Done::Found(found, waiting, again) => {
                (self.looking, self.look_later) = (false, again);
                for (slot, request, state, position) in found {
                    self.unit.progress(slot, request, state, position);
                }
                self.unit.results(waiting);
                for request in self.unit.taken() {
                    self.doing.push(begin(Deed::Taken(request), self.link.core.clone(), self.uid.clone()));
                }
                if std::mem::take(&mut self.look_again) {
                    self.look();
                }
            }
            Done::Status(uplink) => {
                let core = &self.link.core;
                self.unit.status(uplink, core.backlog(), core.boot(), clock::unix_ms() / 1000);
            }
            Done::Taken(request, noted) => {
                account.add(Count::Results, u64::from(noted));
                self.unit.noted(request, noted);
                self.look();
            }
        }
    }
}

/// Where the latest requests stand, and which results wait. What cannot be read now is looked at again in a while.
async fn found(core: Core, uid: String, open: Vec<(u8, u64)>) -> Done {
    let (mut states, mut again) = (Vec::new(), false);
    for (slot, request) in open {
        match core.by_number(&uid, request).await {
            Ok(Answer::Progress(progress)) => states.push((slot, request, progress.state, progress.position)),
            Ok(Answer::Result(outcome)) => states.push((slot, request, over(outcome.status), 0)),
            Ok(Answer::Unknown) => {}
            Err(_) => again = true,
        }
    }
    let waiting = core.results(&uid, RESULTS_MAX, &[]).await;
    Done::Found(states, waiting.outcomes.iter().filter_map(shown).collect(), again || waiting.again)
}

/// A result's status as a state of Progress.
fn over(status: u8) -> u8 {
    match status {
        0 | 4 => state::DONE,
        2 => state::EXPIRED,
        3 => state::CANCELLED,
        _ => state::FAILED,
    }
}

/// Only what was asked for by a mailbox has one to be shown in.
fn shown(outcome: &Outcome) -> Option<(u8, Shown)> {
    let DeviceKey::Mailbox { slot, seq } = outcome.key else { return None };
    let text = String::from_utf8_lossy(&outcome.text).into_owned();
    let Outcome { request, status, source, code, value, .. } = *outcome;
    Some((slot, Shown { seq, request, status, source, code, value, text }))
}

fn begin(deed: Deed, core: Core, uid: String) -> BoxFuture<'static, Done> {
    Box::pin(async move {
        match deed {
            Deed::Store(Order { slot, seq, task, prio, ttl_s, flags, args }) => {
                let op = Op::Task { id: task, args, pictures: Vec::new() };
                let key = DeviceKey::Mailbox { slot, seq };
                let submission = Submission { uid, key, prio, ttl_s, flags, max_reply: RESULT_TEXT_MAX as u16, op };
                let stored = core.submit(submission).await;
                Done::Stored(slot, seq, stored.map(|stored| (stored.request, stored.how != How::New)))
            }
            Deed::Taken(request) => {
                for _ in 0..NOTE_TRIES {
                    if core.acked(&uid, request).await.is_ok() {
                        return Done::Taken(request, true);
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                Done::Taken(request, false)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_that_brings_everything_back_is_known_for_one_soon() {
        let (mut echo, mut now, written) = (Echo::default(), clock::now(), [1, 2, 3]);
        let mut answered = 0;
        while !echo.is_ours(&written, false, now) {
            answered += 1;
            assert!(answered <= SAME_MAX, "each answer brings the next question");
            echo.sent(written.to_vec(), now);
            now += Duration::from_millis(5);
        }
        assert_eq!(answered, SAME_MAX);
    }

    #[test]
    fn a_master_that_writes_the_same_again_is_answered() {
        let (mut echo, mut now) = (Echo::default(), clock::now());
        for turn in 0..100 {
            assert!(!echo.is_ours(&[1, 2, 3], false, now), "{turn}");
            echo.sent(vec![1, 2, 3], now);
            now += AT_ONCE;
        }
        for turn in 0..100 {
            assert!(!echo.is_ours(&[1, 2, 3], false, now), "{turn}");
            echo.sent(vec![1, 2, 3], now);
            assert!(!echo.is_ours(&[4], false, now));
            echo.sent(vec![4, 5], now);
        }
    }
}
