//! The model's uplinks: how they behave for a while, and how an attempt fares there.

use super::super::super::event::Block;
use super::super::super::pause::Way;
use super::super::*;
use super::{Happening, RowState, World};

/// How one uplink behaves for the time being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Mode {
    Good,
    /// Connections are refused.
    Refused,
    /// Nothing answers any more.
    Silent,
    Portal,
    /// Probes pass, requests get 503.
    PostBroken,
    /// Probes pass, the answer never comes.
    PostCut,
    Limited,
    BadKey,
    /// Probes are refused too.
    BadKeySeen,
    BadModel(&'static str),
    /// The first of several keys is refused, the second has no money left, or it is told to slow down; the others are
    /// good.
    FirstKeyBad,
    SecondKeySpent,
    FirstKeyLimited,
    /// Every request is refused alike.
    Refusing,
    /// Probes pass, a page answers requests.
    PostPortal,
    /// The certificate is not accepted.
    BadCertificate,
}

impl Mode {
    pub(in super::super) const ALL: [Mode; 16] = [
        Mode::Good,
        Mode::Refused,
        Mode::Silent,
        Mode::Portal,
        Mode::PostBroken,
        Mode::PostCut,
        Mode::Limited,
        Mode::BadKey,
        Mode::BadKeySeen,
        Mode::BadModel("old"),
        Mode::FirstKeyBad,
        Mode::SecondKeySpent,
        Mode::FirstKeyLimited,
        Mode::Refusing,
        Mode::PostPortal,
        Mode::BadCertificate,
    ];
}

#[derive(Debug)]
pub(super) enum Whose {
    Live(AskId),
    /// A stored request, whether it goes before the others, and whether its body is out.
    Stored {
        seq: u64,
        urgent: bool,
        /// Its record says that it may have been paid for already.
        labelled: bool,
        out: bool,
    },
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) whose: Whose,
    pub(super) uplink: UplinkIndex,
    pub(super) key: KeyIndex,
    pub(super) outcome: Outcome,
}

impl World {
    pub(in super::super) fn set_mode(&mut self, uplink: UplinkIndex, mode: Mode) {
        self.modes[uplink] = mode;
        // What is under way when the network breaks is not answered any more.
        if matches!(mode, Mode::Refused | Mode::Silent) {
            for running in self.running.values_mut().filter(|r| r.uplink == uplink) {
                running.outcome = Outcome::Unknown(Fault::Reset);
            }
        }
    }

    pub(super) fn probe(&mut self, (uplink, key): Way) {
        self.probed += 1;
        let (wait_ms, check) = match self.modes[uplink] {
            Mode::Refused => (5, NO_CONNECTION),
            Mode::BadCertificate => (50, Check::Failed(Fault::Tls)),
            Mode::FirstKeyBad if key == 0 => (50, Check::Passed { latency_ms: 10, key_refused: true }),
            Mode::BadKeySeen => (50, Check::Passed { latency_ms: 10, key_refused: true }),
            Mode::Portal => (50, Check::Failed(Fault::Portal)),
            // One probe in eight is lost altogether.
            Mode::Silent if self.chance.up_to(7) == 0 => return,
            Mode::Silent => (1_000, Check::Failed(Fault::Timeout)),
            _ => (self.chance.up_to(60), PASSED),
        };
        self.at(self.now_ms + wait_ms, Happening::Tell(Event::Probed(uplink, key, check)));
    }

    pub(super) fn send(&mut self, attempt: AttemptId, seq: u64, way: Way) {
        let Some(row) = self.rows.get(&seq) else { panic!("request {seq} is not known") };
        assert!(row.state == RowState::Sending && !row.settling, "request {seq} is not leased: {row:?}");
        assert!(row.billed == 0 || row.maybe_billed, "request {seq} is sent again without a label");
        let most = u32::from(!self.hold_unknown || row.born_billed);
        assert!(row.billed <= most, "request {seq} was paid for {} times already", row.billed);
        let (model, labelled) = (row.model, row.maybe_billed);
        self.second_sends += u32::from(labelled);
        let place = self.offered.iter().position(|offered| *offered == seq);
        if let Some(place) = place {
            assert_eq!(place, 0, "request {seq} overtakes {:?}", self.offered);
            self.offered.remove(0);
            let leaving = |r: &Running| matches!(r.whose, Whose::Stored { urgent: false, out: false, .. });
            assert!(!self.running.values().any(leaving), "request {seq} leaves beside another body");
        }
        self.sent += 1;
        let urgent = place.is_none();
        self.start(attempt, Whose::Stored { seq, urgent, labelled, out: false }, way, model);
    }

    pub(super) fn start(&mut self, attempt: AttemptId, whose: Whose, (uplink, key): Way, model: &str) {
        let (out_ms, end_ms, outcome) = self.fate((uplink, key), model);
        self.running.insert(attempt, Running { whose, uplink, key, outcome });
        if let Some(out_ms) = out_ms {
            self.at(self.now_ms + out_ms, Happening::Tell(Event::BodyOut(attempt)));
        }
        self.at(self.now_ms + end_ms, ended(attempt));
    }

    /// When the body is out, when it ends and how.
    pub(super) fn fate(&mut self, (uplink, key): Way, model: &str) -> (Option<u64>, u64, Outcome) {
        let quick = 1 + self.chance.up_to(200);
        let slow = quick + self.chance.up_to(1_500);
        match self.modes[uplink] {
            Mode::Refused => (None, 5, Outcome::Unreachable(Fault::Connect)),
            Mode::Silent if quick.is_multiple_of(2) => (None, 2_000, Outcome::Unreachable(Fault::Connect)),
            Mode::Silent => (Some(quick), 30_000, Outcome::Unknown(Fault::Timeout)),
            Mode::BadCertificate => (None, quick, Outcome::Unreachable(Fault::Tls)),
            Mode::Refusing => (Some(quick), slow, Outcome::Permanent(Fault::Unprocessable)),
            Mode::Portal | Mode::PostPortal => (None, quick, Outcome::Unreachable(Fault::Portal)),
            Mode::PostBroken => (Some(quick), slow, Outcome::Transient(Fault::ServerError)),
            Mode::PostCut => (Some(quick), slow, Outcome::Unknown(Fault::Reset)),
            Mode::Limited => {
                let retry_after_ms = (quick.is_multiple_of(2)).then(|| slow * 20);
                (Some(quick), slow, Outcome::RateLimited { retry_after_ms })
            }
            Mode::BadKey | Mode::BadKeySeen => (Some(quick), slow, Outcome::Blocked(Block::Key)),
            Mode::BadModel(bad) if bad == model => (Some(quick), slow, Outcome::Blocked(Block::Configuration)),
            Mode::FirstKeyBad if key == 0 => (Some(quick), slow, Outcome::Blocked(Block::Key)),
            Mode::SecondKeySpent if key == 1 => (Some(quick), slow, Outcome::Blocked(Block::Quota)),
            Mode::FirstKeyLimited if key == 0 => {
                (Some(quick), slow, Outcome::RateLimited { retry_after_ms: Some(slow * 20) })
            }
            Mode::Good | Mode::BadModel(_) | Mode::FirstKeyBad | Mode::SecondKeySpent | Mode::FirstKeyLimited => {
                (Some(quick), slow, self.good_end())
            }
        }
    }

    pub(super) fn good_end(&mut self) -> Outcome {
        match self.chance.up_to(400) {
            _ if self.faultless => Outcome::Delivered,
            0 => Outcome::Permanent(Fault::Refused),
            1 => Outcome::NoAnswer,
            2 => Outcome::Transient(Fault::TryAgain),
            3 => Outcome::GivenUp,
            _ => Outcome::Delivered,
        }
    }

    /// The truth about money, which control cannot know.
    pub(super) fn count_paid(&mut self, running: &Running) {
        let Whose::Stored { seq, labelled, .. } = running.whose else { return };
        let paid = matches!(running.outcome, Outcome::Delivered | Outcome::NoAnswer | Outcome::Unknown(_));
        let Some(row) = self.rows.get_mut(&seq) else { panic!("request {seq} is not known") };
        row.billed += u32::from(paid);
        self.second_sends -= u32::from(labelled && !paid);
    }

    pub(super) fn end(&mut self, attempt: AttemptId, latency_ms: u64) -> Event {
        let Some(running) = self.running.remove(&attempt) else { panic!("attempt {attempt} ended twice") };
        let outcome = running.outcome;
        self.earned_tenths += u32::from(outcome == Outcome::Delivered);
        self.count_paid(&running);
        let next = match running.whose {
            Whose::Live(ask) => {
                let next = !matches!(outcome, Outcome::Delivered | Outcome::Permanent(_) | Outcome::NoAnswer)
                    && self.chance.up_to(20) > 0;
                if next {
                    self.asking.insert(ask);
                }
                next
            }
            Whose::Stored { .. } => false,
        };
        Event::Ended { attempt, outcome, latency_ms, next }
    }
}

/// How it ends is known to the world; the event says only that it does.
pub(super) fn ended(attempt: AttemptId) -> Happening {
    Happening::Tell(Event::Ended { attempt, outcome: Outcome::GivenUp, latency_ms: 20, next: false })
}
