//! One attempt's share of the purse: held while it is under way, settled once.
//!
//! Whatever way an attempt ends, its reservation is settled: one that is dropped unsaid counts with all of it.

use super::handle::{Money, Order};
use crate::control::price::Usage;

/// How an attempt ended, as far as money goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It certainly cost nothing.
    Nothing,
    /// The answer said what it took, and which model it was where it said that.
    Usage(Option<String>, Usage),
    /// Nobody knows: it counts with all that was reserved.
    Unknown,
}

/// Money set aside for one attempt.
#[derive(Debug)]
pub struct Reservation {
    money: Money,
    /// `None` once it is settled.
    order: Option<Order>,
}

impl Reservation {
    pub(super) fn new(money: Money, order: Order) -> Reservation {
        Reservation { money, order: Some(order) }
    }

    /// Settles it.
    pub fn settle(mut self, end: &End) {
        if let Some(order) = self.order.take() {
            self.money.settle(&order, end);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(order) = self.order.take() {
            self.money.settle(&order, &End::Unknown);
        }
    }
}
