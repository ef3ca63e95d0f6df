//! Refusals in a row: whether this request is at fault, or the route for everybody.
//!
//! One refused request is a dead letter. Three different ones refused alike, with no success between, say that the
//! route is at fault; so that none of the three is lost, the first two are set aside until others have told. Owns who
//! is set aside for that; settles nothing.

use std::collections::{BTreeMap, VecDeque};

use super::event::{Fault, UplinkIndex};

/// So many different requests refused alike, or answers that are none, shut a route.
const STRIKES: usize = 3;
/// Routes watched at once; on another one a refusal is taken at its word.
const ROUTES_MAX: usize = 64;
/// Requests remembered as refused by a route that worked for others; a forgotten one is sent once more.
const JUDGED_MAX: usize = 256;
/// Longest time for which a refused request waits for what others are told.
pub const HOLD_MS: u64 = 600_000;

/// What a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// This request is at fault.
    Dead,
    /// It is not known yet: set it aside.
    Hold,
    /// The route is at fault.
    Shut,
}

#[derive(Debug, Default)]
struct Row {
    fault: Option<Fault>,
    seqs: Vec<u64>,
    no_answers: usize,
}

/// What each route refused since its last success.
#[derive(Debug, Default)]
pub struct Strikes {
    routes: BTreeMap<(UplinkIndex, String), Row>,
    judged: VecDeque<u64>,
}

impl Strikes {
    /// A request was refused; `others` says whether more requests wait that could tell.
    pub fn refused(&mut self, uplink: UplinkIndex, model: &str, seq: u64, fault: Fault, others: bool) -> Refused {
        if let Some(place) = self.judged.iter().position(|judged| *judged == seq) {
            self.judged.remove(place);
            return Refused::Dead;
        }
        let Some(row) = self.row(uplink, model) else { return Refused::Dead };
        if row.fault != Some(fault) {
            (row.fault, row.seqs) = (Some(fault), Vec::new());
        }
        if row.seqs.contains(&seq) {
            // It had its time, and no third came.
            return Refused::Dead;
        }
        row.seqs.push(seq);
        if row.seqs.len() >= STRIKES {
            row.seqs.clear();
            return Refused::Shut;
        }
        if others { Refused::Hold } else { Refused::Dead }
    }

    /// An answer that is none; true if it is the third in a row.
    pub fn no_answer(&mut self, uplink: UplinkIndex, model: &str) -> bool {
        let Some(row) = self.row(uplink, model) else { return false };
        row.no_answers += 1;
        let shut = row.no_answers >= STRIKES;
        if shut {
            row.no_answers = 0;
        }
        shut
    }

    /// The route answered somebody: what it refused before is at fault itself.
    pub fn success(&mut self, uplink: UplinkIndex, model: &str) -> Vec<u64> {
        let Some(row) = self.routes.remove(&(uplink, model.to_owned())) else { return Vec::new() };
        for seq in &row.seqs {
            self.judged.push_back(*seq);
        }
        while self.judged.len() > JUDGED_MAX {
            self.judged.pop_front();
        }
        row.seqs
    }

    /// Who of this route waits for what others are told.
    pub fn held(&self, uplink: UplinkIndex, model: &str) -> Vec<u64> {
        self.routes.get(&(uplink, model.to_owned())).map(|row| row.seqs.clone()).unwrap_or_default()
    }

    fn row(&mut self, uplink: UplinkIndex, model: &str) -> Option<&mut Row> {
        let key = (uplink, model.to_owned());
        if self.routes.len() >= ROUTES_MAX && !self.routes.contains_key(&key) {
            return None;
        }
        Some(self.routes.entry(key).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_refused_alone_is_at_fault() {
        let mut strikes = Strikes::default();
        assert_eq!(strikes.refused(0, "m", 1, Fault::Refused, false), Refused::Dead);
    }

    #[test]
    fn a_success_judges_those_set_aside() {
        let mut strikes = Strikes::default();
        assert_eq!(strikes.refused(0, "m", 1, Fault::Refused, true), Refused::Hold);
        assert_eq!(strikes.success(0, "m"), [1]);
        assert_eq!(strikes.refused(0, "m", 1, Fault::Refused, true), Refused::Dead);
    }

    #[test]
    fn only_the_same_code_of_the_same_route_counts() {
        let mut strikes = Strikes::default();
        for (seq, model, fault) in [(1, "m", Fault::Refused), (2, "m", Fault::TooLarge), (3, "n", Fault::TooLarge)] {
            assert_eq!(strikes.refused(0, model, seq, fault, true), Refused::Hold);
        }
        assert_eq!(strikes.refused(0, "m", 4, Fault::TooLarge, true), Refused::Hold);
        assert_eq!(strikes.refused(0, "m", 5, Fault::TooLarge, true), Refused::Shut);
    }

    #[test]
    fn nobody_is_set_aside_twice() {
        let mut strikes = Strikes::default();
        assert_eq!(strikes.refused(0, "m", 1, Fault::Refused, true), Refused::Hold);
        assert_eq!(strikes.refused(0, "m", 1, Fault::Refused, true), Refused::Dead);
    }

    #[test]
    fn the_lists_are_bounded() {
        let mut strikes = Strikes::default();
        for seq in 0..10_000 {
            strikes.refused(0, &format!("m{seq}"), seq, Fault::Refused, true);
            strikes.success(0, &format!("m{seq}"));
        }
        assert!(strikes.judged.len() <= JUDGED_MAX);
        for seq in 0..10_000 {
            strikes.refused(0, &format!("m{seq}"), 20_000 + seq, Fault::Refused, true);
        }
        assert!(strikes.routes.len() <= ROUTES_MAX);
    }
}
