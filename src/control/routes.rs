//! What ends of attempts and probes tell about routes: shut, tried again, open; and who may be sent twice.
//!
//! Owns the way from an outcome to a pause; the schedule is the pause's own, the verdict on a request the backlog's.

use super::event::{Block, Check, Effect, Fault, Notice, Outcome, UplinkIndex};
use super::pause::{News, Way};
use super::{Control, Item};

/// So many requests in a row answered by something else, with a green probe after, shut an uplink: one may have met
/// the very end of an outage.
const PORTALS_TO_WALL: u32 = 2;

/// Why the budget of second sends grew.
#[derive(Debug, Clone, Copy)]
pub(super) enum Grant {
    /// A request was answered.
    Earned,
    /// A second send cost nothing.
    Refunded,
}

/// Live requests that are refused for money in a row before the uplink is shut for everybody.
const UNPAID_MAX: u32 = 3;

impl Control {
    /// An uplink whose requests meet a page or a redirect is down for everybody until a trial is due.
    pub(super) fn see_walls(&mut self, now_ms: u64) {
        for (index, uplink) in self.uplinks.iter_mut().enumerate() {
            uplink.walled = self.pauses.is_walled(index, now_ms);
        }
    }

    pub(super) fn told_storage(&mut self, works: bool, effects: &mut Vec<Effect>) {
        if self.storage_works != works {
            self.storage_works = works;
            effects.push(Effect::Notice(Notice::Storage { works }));
        }
    }

    /// Probes that are the trial of a shut route are due now.
    pub(super) fn probe_shut(&mut self, now_ms: u64) {
        for index in 0..self.uplinks.len() {
            if self.pauses.probe_at_ms(index, now_ms).is_some() {
                self.uplinks[index].health.check_by(now_ms);
            }
        }
    }

    /// What a probe tells about key and certificate, and when the next one is due.
    pub(super) fn learn_probe(
        &mut self,
        way: Way,
        check: Check,
        was_down: bool,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let i = way.0;
        match check {
            Check::Passed { key_refused, .. } => {
                self.probe_passed(way, key_refused, was_down, now_ms, effects);
            }
            Check::Failed(Fault::Tls) => self.tls_failed(i, Block::Tls, now_ms, effects),
            Check::Failed(Fault::Clock | Fault::WaitingForTime) => self.tls_failed(i, Block::Clock, now_ms, effects),
            Check::Failed(_) => {}
        }
        if matches!(check, Check::Failed(_)) {
            // The probe meets it too: an ordinary outage.
            self.uplinks[i].portals = 0;
        }
        // Waiting for the time costs nothing: it is looked at as often as ever.
        let asks = matches!(check, Check::Passed { key_refused: true, .. } | Check::Failed(Fault::Tls | Fault::Clock));
        if let Some(at_ms) = self.pauses.probe_at_ms(i, now_ms).filter(|_| asks) {
            self.uplinks[i].health.postpone(at_ms);
        }
    }

    fn probe_passed(&mut self, way: Way, key_refused: bool, was_down: bool, now_ms: u64, effects: &mut Vec<Effect>) {
        let i = way.0;
        if self.pauses.open_block(i, Block::Tls) || self.pauses.open_block(i, Block::Clock) {
            self.resumed(i, now_ms, effects);
        }
        if was_down {
            self.pauses.hurry_wall(i, now_ms);
        }
        if self.uplinks[i].portals >= PORTALS_TO_WALL {
            self.uplinks[i].portals = 0;
            let wait = self.pauses.shut(way, "", Block::Portal, now_ms);
            alarm(i, Block::Portal, wait, effects);
        }
        match self.pauses.key_probed(way, key_refused, now_ms) {
            News::None => {}
            News::Shut(wait_ms) => self.key_alarm(way, Block::Key, Some(wait_ms), effects),
            News::Opened => self.key_resumed(way, now_ms, effects),
        }
    }

    fn tls_failed(&mut self, i: UplinkIndex, block: Block, now_ms: u64, effects: &mut Vec<Effect>) {
        if let News::Shut(wait_ms) = self.pauses.tls_probed(i, block, now_ms) {
            alarm(i, block, Some(wait_ms), effects);
        }
    }

    /// Whether the uplink itself answered, whoever asked.
    pub(super) fn learn_portal(&mut self, way: Way, outcome: Outcome, now_ms: u64, effects: &mut Vec<Effect>) {
        let i = way.0;
        match outcome {
            Outcome::Unreachable(Fault::Portal | Fault::Redirect) => {
                self.uplinks[i].portals = self.uplinks[i].portals.saturating_add(1);
                if self.pauses.block_of(i) == Some(Block::Portal) {
                    self.pauses.shut(way, "", Block::Portal, now_ms);
                }
            }
            Outcome::Unreachable(_)
            | Outcome::Transient(Fault::Write)
            | Outcome::Unknown(_)
            | Outcome::GivenUp
            | Outcome::Unaffordable => {
                if self.pauses.block_of(i) == Some(Block::Portal) {
                    self.pauses.trial_undecided(way, "");
                }
            }
            _ => {
                self.uplinks[i].portals = 0;
                if self.pauses.open_block(i, Block::Portal) {
                    self.resumed(i, now_ms, effects);
                }
            }
        }
    }

    /// A stored request's end, as far as its route is concerned.
    pub(super) fn learn_route(
        &mut self,
        way: Way,
        item: &Item,
        outcome: Outcome,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let i = way.0;
        match outcome {
            Outcome::Blocked(block) => self.shut(way, &item.model, block, now_ms, effects),
            Outcome::Unreachable(Fault::Tls) => self.shut(way, "", Block::Tls, now_ms, effects),
            Outcome::Unreachable(Fault::Clock | Fault::WaitingForTime) => {
                self.shut(way, "", Block::Clock, now_ms, effects);
            }
            Outcome::Permanent(_) if self.pauses.is_struck(i, &item.model) => {
                let wait = self.pauses.strike(way, &item.model, now_ms);
                alarm(i, Block::Configuration, wait, effects);
            }
            Outcome::NoAnswer if self.strikes.no_answer(i, &item.model) || self.pauses.is_struck(i, &item.model) => {
                let wait = self.pauses.strike(way, &item.model, now_ms);
                alarm(i, Block::Configuration, wait, effects);
            }
            Outcome::Delivered | Outcome::Misfit => self.route_works(way, &item.model, now_ms, effects),
            Outcome::Permanent(_) | Outcome::NoAnswer | Outcome::RateLimited { .. } => {
                self.open(way, &item.model, now_ms, effects);
            }
            _ => {}
        }
        // Whatever came of it, this request tries nothing any more.
        self.pauses.trial_undecided(way, &item.model);
    }

    /// A live request's end, as far as its uplink is concerned. Models are not judged by it: a caller may ask for any.
    pub(super) fn learn_live(&mut self, way: Way, outcome: Outcome, now_ms: u64, effects: &mut Vec<Effect>) {
        match outcome {
            Outcome::Delivered => {
                self.unpaid(way, |_| 0);
                self.route_works(way, "", now_ms, effects);
            }
            Outcome::Blocked(Block::Key) => self.shut(way, "", Block::Key, now_ms, effects),
            Outcome::Blocked(Block::Quota) => {
                // Some services refuse one request that may become too dear, and answer the next.
                let known = self.pauses.of_key(way).is_some();
                if self.unpaid(way, |count| count.saturating_add(1)) >= UNPAID_MAX || known {
                    self.shut(way, "", Block::Quota, now_ms, effects);
                }
            }
            // One of several keys was tried; that it was told to slow down shows that it is a good one.
            Outcome::RateLimited { .. } if self.pauses.of_key(way).is_some() => self.open(way, "", now_ms, effects),
            _ => {}
        }
        if self.pauses.of_key(way).is_some() {
            self.pauses.trial_undecided(way, "");
        }
    }

    fn unpaid(&mut self, (uplink, key): Way, change: impl Fn(u32) -> u32) -> u32 {
        self.uplinks[uplink].keys.get_mut(key).map_or(0, |load| {
            load.unpaid = change(load.unpaid);
            load.unpaid
        })
    }

    /// A request was answered: nothing of its route is shut, and who was refused there is at fault.
    pub(super) fn route_works(&mut self, way: Way, model: &str, now_ms: u64, effects: &mut Vec<Effect>) {
        let judged = self.strikes.success(way.0, model);
        self.hurry(&judged, now_ms);
        self.open(way, model, now_ms, effects);
    }

    fn open(&mut self, way: Way, model: &str, now_ms: u64, effects: &mut Vec<Effect>) {
        let opened = self.pauses.open(way, model);
        if opened.key {
            self.key_resumed(way, now_ms, effects);
        }
        if opened.route {
            self.resumed(way.0, now_ms, effects);
        }
    }

    fn shut(&mut self, way: Way, model: &str, block: Block, now_ms: u64, effects: &mut Vec<Effect>) {
        let wait = self.pauses.shut(way, model, block, now_ms);
        if let Some(due_ms) = self.pauses.probe_due_ms(way.0) {
            // From now on a probe is the trial: the one planned for while a request was it may be far away.
            self.uplinks[way.0].health.check_by(due_ms.max(now_ms));
        }
        match block {
            Block::Key | Block::Quota | Block::Configuration => self.key_alarm(way, block, wait, effects),
            Block::Tls | Block::Clock | Block::Portal => alarm(way.0, block, wait, effects),
        }
    }

    /// Different requests were refused alike: the route is shut, and who was set aside goes back.
    pub(super) fn strike(&mut self, way: Way, item: &Item, held: &[u64], now_ms: u64, effects: &mut Vec<Effect>) {
        let wait = self.pauses.strike(way, &item.model, now_ms);
        alarm(way.0, Block::Configuration, wait, effects);
        self.hurry(held, now_ms);
    }

    /// What is wrong with the one key of an uplink is wrong with the uplink.
    fn key_alarm(&self, way: Way, block: Block, wait_ms: Option<u64>, effects: &mut Vec<Effect>) {
        let (keys, (uplink, key)) = (&self.uplinks[way.0].keys, way);
        if !keys.are_several() {
            return alarm(uplink, block, wait_ms, effects);
        }
        let Some(wait_ms) = wait_ms else { return };
        let good = |key: &usize| self.pauses.of_key((uplink, *key)).is_none();
        let left = (0..keys.iter().count()).filter(good).count();
        let retry_in_s = wait_ms / 1000;
        effects.push(Effect::Notice(Notice::KeyPaused { uplink, key, block, retry_in_s, left }));
    }

    fn key_resumed(&mut self, (uplink, key): Way, now_ms: u64, effects: &mut Vec<Effect>) {
        if !self.uplinks[uplink].keys.are_several() {
            return self.resumed(uplink, now_ms, effects);
        }
        self.hurry_deferred(now_ms);
        effects.push(Effect::Notice(Notice::KeyResumed { uplink, key }));
    }

    fn resumed(&mut self, i: UplinkIndex, now_ms: u64, effects: &mut Vec<Effect>) {
        self.hurry_deferred(now_ms);
        self.uplinks[i].health.hasten(now_ms);
        effects.push(Effect::Notice(Notice::RouteResumed { uplink: i }));
    }

    /// Whoever waits in the spool for the budget is worth a lease as soon as there is one.
    pub(super) fn grant_resends(&mut self, why: Grant) {
        let some_may_leave = match why {
            Grant::Earned => self.resends.earn(),
            Grant::Refunded => self.resends.refund(),
        };
        if some_may_leave {
            (self.nothing_around, self.lease_after_ms, self.leasing_around) = (None, 0, false);
        }
    }
}

fn alarm(uplink: UplinkIndex, block: Block, wait_ms: Option<u64>, effects: &mut Vec<Effect>) {
    if let Some(wait_ms) = wait_ms {
        effects.push(Effect::Notice(Notice::RoutePaused { uplink, block, retry_in_s: wait_ms / 1000 }));
    }
}
