//! A model of everything around control: spool, uplinks, callers, in virtual time from one seed.
//!
//! Owns the invariants: they are asserted at the step that would break them.

mod disk;
mod network;

use std::collections::{BTreeMap, BTreeSet};

use super::super::event::Shut;
use super::super::resend::{ALLOWANCE, SUCCESSES_EACH};
use super::super::retry::Chance;
use super::*;
use disk::{DiskOp, Row, RowState};
pub(super) use network::Mode;
use network::{Running, Whose};

/// What happens at an instant.
#[derive(Debug)]
enum Happening {
    Tell(Event),
    /// The next disk operation, in order.
    Disk(DiskOp),
    Mode(UplinkIndex, Mode),
    AskArrives,
    StoredArrives,
    CallerLeaves(AskId),
    /// The process dies; the next one starts at once.
    Kill,
}

impl Happening {
    /// Whether it belongs to the process, and dies with it.
    fn is_inside(&self) -> bool {
        match self {
            Happening::Tell(event) => {
                !matches!(event, Event::Paused(_) | Event::DrainNow | Event::NetworkChanged | Event::Storage(_))
            }
            Happening::Disk(_) | Happening::CallerLeaves(_) => true,
            Happening::Mode(..) | Happening::AskArrives | Happening::StoredArrives | Happening::Kill => false,
        }
    }
}

/// Turns control may take at one instant beyond what happened; more is a busy loop.
const IDLE_TURNS_PER_HOUR: u64 = 20_000;

pub(super) struct World {
    settings: Settings,
    control: Control,
    /// Shut routes as they are on disk.
    kept: Vec<Shut>,
    /// Second sends that were paid for or may be, and how many there may be: tenths, one for each success.
    second_sends: u32,
    earned_tenths: u32,
    pub(super) chance: Chance,
    hold_unknown: bool,
    now_ms: u64,
    happenings: BTreeMap<(u64, u64), Happening>,
    serial: u64,
    disk_free_ms: u64,
    modes: Vec<Mode>,
    rows: BTreeMap<u64, Row>,
    offerable: BTreeSet<u64>,
    /// Leased and waiting to be sent, in the order offered; urgent ones are not in it.
    offered: Vec<u64>,
    running: BTreeMap<AttemptId, Running>,
    /// Asks that wait for an answer.
    asking: BTreeSet<AskId>,
    answered: u64,
    sent: u64,
    probed: u64,
    idle_turns: u64,
    max_in_flight: Vec<u32>,
    /// Good uplinks answer every request.
    faultless: bool,
}

impl World {
    pub(super) fn new(settings: Settings, seed: u64) -> Self {
        let modes = vec![Mode::Good; settings.uplinks.len()];
        let max_in_flight = settings.uplinks.iter().map(|u| u.max_in_flight).collect();
        let hold_unknown = settings.hold_unknown;
        Self {
            hold_unknown,
            control: Control::new(settings.clone(), 0),
            settings,
            kept: Vec::new(),
            second_sends: 0,
            earned_tenths: ALLOWANCE * SUCCESSES_EACH,
            chance: Chance::new(seed),
            now_ms: 0,
            happenings: BTreeMap::new(),
            serial: 0,
            disk_free_ms: 0,
            modes,
            rows: BTreeMap::new(),
            offerable: BTreeSet::new(),
            offered: Vec::new(),
            running: BTreeMap::new(),
            asking: BTreeSet::new(),
            answered: 0,
            sent: 0,
            probed: 0,
            idle_turns: 0,
            max_in_flight,
            faultless: false,
        }
    }

    pub(super) fn faultless(mut self) -> Self {
        self.faultless = true;
        self
    }

    pub(super) fn sends(&self) -> u64 {
        self.sent
    }

    pub(super) fn probes(&self) -> u64 {
        self.probed
    }

    pub(super) fn dead(&self) -> usize {
        self.rows.values().filter(|row| row.dead).count()
    }

    /// Stored requests without an outcome.
    pub(super) fn waiting(&self) -> usize {
        self.rows.values().filter(|row| row.state != RowState::Over).count()
    }

    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    pub(super) fn mode_at(&mut self, at_ms: u64, uplink: UplinkIndex, mode: Mode) {
        self.at(at_ms, Happening::Mode(uplink, mode));
    }

    pub(super) fn ask_at(&mut self, at_ms: u64) {
        self.at(at_ms, Happening::AskArrives);
    }

    pub(super) fn store_at(&mut self, at_ms: u64) {
        self.at(at_ms, Happening::StoredArrives);
    }

    pub(super) fn kill_at(&mut self, at_ms: u64) {
        self.at(at_ms, Happening::Kill);
    }

    pub(super) fn tell_at(&mut self, at_ms: u64, event: Event) {
        self.at(at_ms, Happening::Tell(event));
    }

    /// Puts a request on disk.
    pub(super) fn store(&mut self, model: &'static str) -> u64 {
        self.insert(model, false, RowState::Queued)
    }

    /// The same, paid for by a live attempt before.
    pub(super) fn store_labelled(&mut self, model: &'static str) -> u64 {
        self.insert(model, true, RowState::Queued)
    }

    /// Somebody cancels a request that is not being sent.
    pub(super) fn cancel(&mut self, seq: u64) {
        let Some(row) = self.rows.get_mut(&seq) else { panic!("request {seq} is not known") };
        if matches!(row.state, RowState::Queued | RowState::Deferred) {
            row.state = RowState::Over;
            self.offerable.remove(&seq);
            self.tell_count();
        }
    }

    pub(super) fn is_over(&self, seq: u64) -> bool {
        self.rows.get(&seq).is_some_and(|row| row.state == RowState::Over)
    }

    fn insert(&mut self, model: &'static str, maybe_billed: bool, state: RowState) -> u64 {
        let seq = self.rows.len() as u64 + 1;
        let billed = u32::from(maybe_billed);
        let born_billed = maybe_billed;
        let row = Row { state, model, attempts: 0, maybe_billed, billed, born_billed, dead: false, settling: false };
        self.rows.insert(seq, row);
        if state == RowState::Queued {
            self.offerable.insert(seq);
            self.tell_count();
        }
        seq
    }

    fn tell_count(&mut self) {
        let count = self.offerable.len() as u64;
        self.at(self.now_ms, Happening::Tell(Event::Ready(count)));
    }

    fn at(&mut self, at_ms: u64, happening: Happening) {
        self.serial += 1;
        self.happenings.insert((at_ms.max(self.now_ms), self.serial), happening);
    }

    fn after(&mut self, most_ms: u64, happening: Happening) {
        let wait_ms = self.chance.up_to(most_ms);
        self.at(self.now_ms + wait_ms, happening);
    }

    /// Next happening or control's own deadline, whichever is first, until then.
    pub(super) fn run_until(&mut self, end_ms: u64) {
        let (begin_ms, idle_before) = (self.now_ms, self.idle_turns);
        if begin_ms == 0 {
            self.tell(Event::Tick);
        }
        loop {
            let happening = self.happenings.first_key_value().map(|(key, _)| *key);
            let wake_ms = self.control.deadline_ms().map(|due| due.max(self.now_ms + 1));
            let idle = wake_ms.is_some_and(|wake| happening.is_none_or(|(at, _)| wake < at));
            let next_ms = if idle { wake_ms } else { happening.map(|(at, _)| at) };
            let Some(next_ms) = next_ms.filter(|at| *at <= end_ms) else { break };
            self.now_ms = next_ms;
            if idle {
                self.idle_turns += 1;
                self.tell(Event::Tick);
            } else if let Some((_, happening)) = self.happenings.pop_first() {
                self.happen(happening);
            }
        }
        self.now_ms = end_ms;
        let (hours, turns) = ((end_ms - begin_ms) / 3_600_000 + 1, self.idle_turns - idle_before);
        assert!(turns <= hours * IDLE_TURNS_PER_HOUR, "{turns} idle turns in {hours} h");
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tell(event) => self.tell(event),
            Happening::Disk(op) => self.disk_done(op),
            Happening::Mode(uplink, mode) => self.set_mode(uplink, mode),
            Happening::AskArrives => {
                self.serial += 1;
                let ask = self.serial;
                self.asking.insert(ask);
                if self.chance.up_to(20) == 0 {
                    self.after(3_000, Happening::CallerLeaves(ask));
                }
                self.tell(Event::Asked(ask));
            }
            Happening::StoredArrives => {
                let model = if self.chance.up_to(3) == 0 { "old" } else { "m" };
                if self.chance.up_to(9) == 0 {
                    self.adopt(model, false);
                } else {
                    self.store(model);
                }
            }
            Happening::Kill => self.kill(),
            Happening::CallerLeaves(ask) => {
                if self.asking.remove(&ask) {
                    self.tell(Event::Withdrawn(ask));
                }
            }
        }
    }

    /// Whoever was being sent may have been paid for; what the disk had not taken is not there.
    fn kill(&mut self) {
        self.happenings.retain(|_, happening| !happening.is_inside());
        self.asking.clear();
        for (_, running) in std::mem::take(&mut self.running) {
            self.count_paid(&running);
        }
        let hold = self.hold_unknown;
        self.rows.values_mut().filter(|row| row.state != RowState::Over).for_each(|row| row.orphaned(hold));
        self.offered.clear();
        self.offerable =
            self.rows.iter().filter(|(_, row)| row.state == RowState::Queued).map(|(seq, _)| *seq).collect();
        self.disk_free_ms = self.now_ms;
        self.earned_tenths += ALLOWANCE * SUCCESSES_EACH;
        self.control = Control::new(self.settings.clone(), self.now_ms);
        let kept = self.kept.clone();
        self.tell(Event::Restored(kept));
        self.tell_count();
    }

    fn adopt(&mut self, model: &'static str, maybe_billed: bool) {
        let seq = self.insert(model, maybe_billed, RowState::Sending);
        let item = Item { seq, model: model.to_owned(), attempts: 0, maybe_billed, urgent: true };
        self.tell(Event::Adopted(item));
    }

    fn tell(&mut self, event: Event) {
        if let Event::Ended { attempt, .. } = event
            && !self.running.contains_key(&attempt)
        {
            return;
        }
        let event = self.before(event);
        let mut effects = Vec::new();
        self.control.handle(event, self.now_ms, &mut effects);
        for effect in effects {
            self.perform(effect);
        }
        self.check();
    }

    /// What the world itself knows from an event.
    fn before(&mut self, event: Event) -> Event {
        match event {
            Event::BodyOut(attempt) => {
                if let Some(Running { whose: Whose::Stored { out, .. }, .. }) = self.running.get_mut(&attempt) {
                    *out = true;
                }
                event
            }
            Event::Ended { attempt, latency_ms, .. } => self.end(attempt, latency_ms),
            event => event,
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Answer(ask, route) => self.answer(ask, route),
            Effect::Abandon(attempt) => {
                let Some(running) = self.running.get_mut(&attempt) else { panic!("{attempt} is not running") };
                assert!(matches!(running.whose, Whose::Live(_)), "only live attempts are taken back");
                running.outcome = Outcome::Unknown(Fault::Outage);
                self.at(self.now_ms, network::ended(attempt));
            }
            Effect::Probe(uplink, key) => self.probe((uplink, key)),
            Effect::Lease { max, except, labelled } => self.disk(DiskOp::Lease(max, except, labelled)),
            Effect::Send { attempt, seq, uplink, key } => self.send(attempt, seq, (uplink, key)),
            Effect::Settle { seq, verdict, .. } => self.settle(seq, verdict),
            Effect::Release(seqs) => self.disk(DiskOp::Release(seqs)),
            Effect::Keep(shut) => self.kept = shut,
            Effect::Reset(_) | Effect::Notice(_) => {}
        }
    }

    fn answer(&mut self, ask: AskId, route: Route) {
        assert!(self.asking.remove(&ask), "ask {ask} is answered, but does not wait");
        self.answered += 1;
        match route {
            Route::Uplink { attempt, uplink, key } => self.start(attempt, Whose::Live(ask), (uplink, key), "m"),
            Route::Offline { maybe_billed, .. } if self.chance.up_to(1) == 0 => {
                if self.chance.up_to(3) == 0 {
                    // Stored with a caller waiting; control hears of it when the disk is done.
                    let seq = self.insert("m", maybe_billed, RowState::Sending);
                    let item = Item { seq, model: "m".to_owned(), attempts: 0, maybe_billed, urgent: true };
                    self.after(20, Happening::Tell(Event::Adopted(item)));
                } else {
                    self.insert("m", maybe_billed, RowState::Queued);
                }
            }
            _ => {}
        }
    }

    /// Control's count of what is in flight is the truth, and within its bounds.
    fn check(&self) {
        for (index, uplink) in self.control.uplinks.iter().enumerate() {
            let running = self.running.values().filter(|r| r.uplink == index).count() as u32;
            assert_eq!(uplink.in_flight, running, "uplink {index}");
            assert!(running <= self.max_in_flight[index], "uplink {index} is overfull");
            for (key, load) in uplink.keys.iter().enumerate() {
                let running = self.running.values().filter(|r| (r.uplink, r.key) == (index, key)).count() as u32;
                assert_eq!(load.in_flight, running, "key {key} of uplink {index}");
                let bound = self.settings.uplinks[index].keys.get(key).map_or(u32::MAX, |key| key.max_in_flight);
                assert!(running <= bound, "key {key} of uplink {index} is overfull");
            }
        }
        let (second, tenths) = (self.second_sends, self.earned_tenths);
        assert!(second * SUCCESSES_EACH <= tenths, "{second} second sends for {tenths} tenths");
        let aside = self.control.set_aside();
        assert!(aside <= super::super::DEFERRED_MAX && self.control.leased.len() <= 1_000, "a list without a bound");
    }

    /// After a long good time nothing waits for anything.
    pub(super) fn assert_settled(&self) {
        assert_eq!(self.waiting(), 0, "{:?}", self.rows.iter().find(|(_, row)| row.state != RowState::Over));
        assert!(self.asking.is_empty(), "asks without an answer: {:?}", self.asking);
        assert!(self.running.is_empty(), "still in flight: {:?}", self.running);
        assert!(self.rows.values().all(|row| row.billed <= 2));
    }
}
