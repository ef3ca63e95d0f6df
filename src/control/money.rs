//! What uplinks may be paid in one UTC day: what was spent, what is reserved, and how much of the cap is taken on disk.
//!
//! A pure value with explicit days; it reserves, settles and says what must be durable first. Writes nothing, reads no
//! clock and knows no prices: every amount is whole billionths of a US dollar ([`Nano`]).

use crate::plant::{self, Fault as Planted};

/// Billionths of a US dollar: one token at five cents a million is fifty of them.
pub type Nano = u64;

/// [`Nano`] in one US dollar.
pub const NANO_PER_USD: f64 = 1e9;

/// US dollars as people write them: cents, and where that says too little, the first two digits.
pub fn amount(usd: f64) -> String {
    // Counted and not by a logarithm: that would be the program's only use of a whole library.
    let first_digit = (0..8).take_while(|place| usd > 0.0 && usd * (10_u64.pow(*place) as f64) < 1.0).count();
    let mut text = format!("{usd:.*}", (first_digit + 1).max(2));
    let cents = text.find('.').map_or(0, |point| point + 3);
    while text.len() > cents && text.ends_with('0') {
        text.pop();
    }
    text
}

/// The escrow is taken in steps of this part of the cap: at most so many writes a day, and about so much of the cap is
/// lost to a crash beside what was under way.
pub const ESCROW_STEPS: u64 = 64;

/// What becomes of a wish to spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It is reserved.
    Granted,
    /// First so much of today's cap must be on disk as taken; then ask again.
    Take(Nano),
    /// It fits if what is under way costs less than it might: ask again when something was settled.
    Wait,
    /// It does not fit today.
    Short,
}

/// What stands on disk: everything taken counts as spent after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Escrow {
    /// The UTC day, in days since 1970.
    pub day: u64,
    /// So much of that day's cap is taken.
    pub taken: Nano,
    /// The smallest wish that did not fit on that day; 0 while everything did.
    pub short: Nano,
}

/// The purse of one day.
#[derive(Debug, Clone, Default)]
pub struct Purse {
    /// 0 is no cap.
    cap: Nano,
    day: u64,
    spent: Nano,
    reserved: Nano,
    /// Never below `spent + reserved` once something was granted today; what is on disk is at least this.
    taken: Nano,
    /// The smallest wish that did not fit today.
    short: Option<Nano>,
}

impl Purse {
    /// After a start: what was taken and not given back counts as spent, and so does what the ledger knows of that day.
    pub fn new(cap: Nano, kept: Escrow, ledger_spent: Nano) -> Purse {
        let spent = kept.taken.max(ledger_spent);
        let short = Some(kept.short).filter(|need| *need > 0 && cap > 0 && spent.saturating_add(*need) > cap);
        Purse { cap, day: kept.day, spent, reserved: 0, taken: spent, short }
    }

    /// The cap of a day; 0 is none.
    pub fn cap(&self) -> Nano {
        self.cap
    }

    /// The day that is counted, in days since 1970.
    pub fn day(&self) -> u64 {
        self.day
    }

    /// Spent today, with what a crash left unclear.
    pub fn spent(&self) -> Nano {
        self.spent
    }

    /// Reserved by what is under way.
    pub fn reserved(&self) -> Nano {
        self.reserved
    }

    /// The smallest wish that does not fit today, if there was one.
    pub fn short(&self) -> Option<Nano> {
        self.short
    }

    /// The clock shows this day. Days never go back, so a clock that is set back gives no new money. What is under way
    /// then counts on both days, because nobody knows on which its service bills it. True if a new day began.
    pub fn turn(&mut self, day: u64) -> bool {
        let is_new = day > self.day;
        if is_new {
            *self = Purse { cap: self.cap, day, reserved: self.reserved, ..Purse::default() };
        }
        is_new
    }

    /// Wants to spend up to so much.
    pub fn reserve(&mut self, need: Nano) -> Fit {
        if self.cap == 0 || need == 0 {
            self.reserved = self.reserved.saturating_add(need);
            return Fit::Granted;
        }
        let total = self.spent.saturating_add(self.reserved).saturating_add(need);
        if total > self.cap {
            return self.refuse(need);
        }
        if total > self.taken && !plant::is(Planted::SpendBeforeEscrow) {
            return Fit::Take(total.saturating_add(self.step()).min(self.cap));
        }
        self.reserved = self.reserved.saturating_add(need);
        Fit::Granted
    }

    fn refuse(&mut self, need: Nano) -> Fit {
        if self.spent.saturating_add(need) <= self.cap {
            return Fit::Wait;
        }
        self.short = Some(self.short.map_or(need, |before| before.min(need)));
        Fit::Short
    }

    /// So much is on disk as taken on that day.
    pub fn took(&mut self, day: u64, taken: Nano) {
        if day == self.day {
            self.taken = self.taken.max(taken);
        }
    }

    /// What was reserved ended and cost this much.
    pub fn settle(&mut self, need: Nano, cost: Nano) {
        self.reserved = self.reserved.saturating_sub(need);
        self.spent = self.spent.saturating_add(cost);
    }

    /// What must be on disk although nobody asks for money: what was carried over midnight, or cost more than it could.
    pub fn owes(&self) -> Option<Nano> {
        let used = self.spent.saturating_add(self.reserved);
        (self.cap > 0 && used > self.taken).then_some(used)
    }

    /// Gives back what is taken far beyond its use; what is on disk may follow later, and never before.
    pub fn shrink(&mut self) -> bool {
        let goal = self.spent.saturating_add(self.reserved).saturating_add(self.step());
        let far = self.cap > 0 && self.taken > goal.saturating_add(self.step());
        if far {
            self.taken = goal;
        }
        far
    }

    /// Gives back everything that is not used: nothing more is granted before it is taken again.
    pub fn close(&mut self) {
        self.taken = self.spent.saturating_add(self.reserved);
    }

    /// As it belongs on disk now.
    pub fn escrow(&self) -> Escrow {
        Escrow { day: self.day, taken: self.taken, short: self.short.unwrap_or(0) }
    }

    fn step(&self) -> Nano {
        (self.cap / ESCROW_STEPS).max(1)
    }
}

#[cfg(test)]
#[path = "tests/money.rs"]
mod tests;
