//! Repeated warnings: a place in the program that complains again and again is heard so often, then only counted.
//!
//! Owns the bound and the count. Never holds back a line that tells a request's story, nor one that is no complaint: those
//! are bounded by the requests themselves.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::clock;

/// Lines that one place may write in [`WINDOW`]: enough to see what is wrong, too few to push a week out of a small journal.
pub const LINES_MAX: u32 = 30;
/// The time that [`LINES_MAX`] is for.
pub const WINDOW: Duration = Duration::from_mins(1);
/// A line with this field belongs to a request.
const OF_A_REQUEST: &str = "HOLDFAST_REQUEST_ID";

/// Every place that has complained; as many as the program has at most.
#[derive(Default)]
pub struct Limit {
    places: Mutex<HashMap<Identifier, Place>>,
}

struct Place {
    began: Instant,
    lines: u32,
    left_out: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Write,
    /// The first line after so many that were left out.
    WriteAfter(u32),
    LeaveOut,
}

impl Place {
    fn new(now: Instant) -> Place {
        Place { began: now, lines: 0, left_out: 0 }
    }

    fn judge(&mut self, now: Instant) -> Verdict {
        let mut left_out = 0;
        if now.duration_since(self.began) >= WINDOW {
            left_out = self.left_out;
            *self = Place::new(now);
        }
        if self.lines >= LINES_MAX {
            self.left_out = self.left_out.saturating_add(1);
            return Verdict::LeaveOut;
        }
        self.lines += 1;
        if left_out > 0 { Verdict::WriteAfter(left_out) } else { Verdict::Write }
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let about = event.metadata();
        let is_complaint = matches!(*about.level(), Level::ERROR | Level::WARN);
        if !is_complaint || about.fields().field(OF_A_REQUEST).is_some() || about.target() == module_path!() {
            return true;
        }
        let now = clock::now();
        let verdict = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.entry(about.callsite()).or_insert_with(|| Place::new(now)).judge(now)
        };
        if let Verdict::WriteAfter(count) = verdict {
            tracing::warn!(HOLDFAST_REASON = "log_limit", "{count} lines like the next one were left out before it");
        }
        verdict != Verdict::LeaveOut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_heard_so_often_and_then_counted() {
        let start = clock::now();
        let mut place = Place::new(start);
        for _ in 0..LINES_MAX {
            assert_eq!(place.judge(start), Verdict::Write);
        }
        for _ in 0..7 {
            assert_eq!(place.judge(start + WINDOW / 2), Verdict::LeaveOut);
        }
        assert_eq!(place.judge(start + WINDOW), Verdict::WriteAfter(7));
        assert_eq!(place.judge(start + WINDOW), Verdict::Write);
    }
}
