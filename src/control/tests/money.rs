//! The purse against a plain model of a service that bills, over random scripts with crashes and days.
//!
//! `HOLDFAST_SEED` and `HOLDFAST_SIMULATIONS` choose the scripts.

use super::*;

const CAP: Nano = 10_000;

fn purse() -> Purse {
    Purse::new(CAP, Escrow { day: 7, ..Escrow::default() }, 0)
}

/// Takes what it is told to take at once, as a disk that works does.
fn granted(money: &mut Purse, need: Nano) -> Fit {
    match money.reserve(need) {
        Fit::Take(taken) => {
            money.took(money.day(), taken);
            money.reserve(need)
        }
        other => other,
    }
}

#[test]
fn amounts_have_two_digits_or_as_many_as_say_something() {
    let amounts = [(0.0, "0.00"), (5.0, "5.00"), (12.345, "12.35"), (0.5, "0.50"), (0.05, "0.05"), (0.015, "0.015")];
    let small = [(0.001, "0.001"), (0.000_042_42, "0.000042"), (0.099_999, "0.10"), (1e-9, "0.000000001")];
    for (usd, text) in amounts.into_iter().chain(small) {
        assert_eq!(amount(usd), text);
    }
}

#[test]
fn what_fits_is_granted_after_the_disk_has_it() {
    let mut money = purse();
    let Fit::Take(taken) = money.reserve(100) else { panic!("nothing is on disk yet") };
    assert_eq!(taken, 100 + CAP / ESCROW_STEPS);
    money.took(7, taken);
    assert_eq!(money.reserve(100), Fit::Granted);
    assert_eq!(money.reserve(156), Fit::Granted, "the rest of the step needs no disk");
    assert!(matches!(money.reserve(1), Fit::Take(_)));
    assert_eq!((money.spent(), money.reserved()), (0, 256));
}

#[test]
fn what_is_under_way_is_waited_for_and_what_is_spent_is_not() {
    let mut money = purse();
    assert_eq!(granted(&mut money, 6_000), Fit::Granted);
    assert_eq!(granted(&mut money, 6_000), Fit::Wait);
    money.settle(6_000, 5_000);
    assert_eq!((granted(&mut money, 6_000), money.short()), (Fit::Short, Some(6_000)));
    assert_eq!(granted(&mut money, 5_000), Fit::Granted, "a cheaper one still fits");
}

#[test]
fn no_cap_counts_and_never_asks_the_disk() {
    let mut money = Purse::new(0, Escrow::default(), 0);
    assert_eq!(money.reserve(u64::MAX), Fit::Granted);
    money.settle(u64::MAX, 5);
    assert_eq!((money.spent(), money.reserved(), money.owes()), (5, 0, None));
    assert!(!money.shrink());
}

#[test]
fn a_new_day_is_a_new_purse_and_an_old_one_never_comes_back() {
    let mut money = purse();
    granted(&mut money, 6_000);
    money.settle(6_000, 6_000);
    granted(&mut money, 3_000);
    assert_eq!(granted(&mut money, 5_000), Fit::Short);
    assert!(!money.turn(7) && !money.turn(3), "a clock set back gives nothing");
    assert_eq!((money.day(), money.spent()), (7, 6_000));
    assert!(money.turn(8));
    assert_eq!((money.spent(), money.reserved(), money.short()), (0, 3_000, None));
    assert_eq!(money.owes(), Some(3_000), "what is under way counts today, too");
    money.took(7, CAP);
    assert!(matches!(money.reserve(1), Fit::Take(_)), "a write of yesterday takes nothing of today");
}

#[test]
fn a_crash_spends_what_was_taken_and_a_raised_cap_frees() {
    let mut money = purse();
    granted(&mut money, 9_900);
    money.settle(9_900, 9_000);
    granted(&mut money, 2_000);
    let mut after = Purse::new(CAP, money.escrow(), 0);
    assert_eq!((after.spent(), after.short()), (CAP, Some(2_000)));
    assert_eq!(after.reserve(1), Fit::Short);
    let raised = Purse::new(2 * CAP, money.escrow(), 0);
    assert_eq!(raised.short(), None);
    let known = Purse::new(CAP, Escrow { day: 7, taken: 10, short: 0 }, 400);
    assert_eq!(known.spent(), 400, "the ledger's word counts, too");
}

#[test]
fn a_clean_stop_and_a_quiet_minute_give_back() {
    let mut money = purse();
    granted(&mut money, 5_000);
    money.settle(5_000, 10);
    assert!(money.shrink() && !money.shrink());
    assert_eq!(money.escrow().taken, 10 + CAP / ESCROW_STEPS);
    money.close();
    assert_eq!(money.escrow().taken, 10);
    assert!(matches!(money.reserve(1), Fit::Take(_)));
}

/// xorshift: the same script again from the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A service that bills each request when it arrives, and the disk below the purse.
struct World {
    money: Purse,
    disk: Escrow,
    cap: Nano,
    today: u64,
    /// Billed to each day's arrivals.
    billed: Nano,
    /// Need and cost of what is under way.
    under_way: Vec<(Nano, Nano)>,
    crashes: u64,
    granted: u64,
}

impl World {
    fn new(dice: &mut Dice) -> World {
        let cap = 1_000 + dice.below(100_000);
        let disk = Escrow { day: 100, ..Escrow::default() };
        let money = Purse::new(cap, disk, 0);
        World { money, disk, cap, today: 100, billed: 0, under_way: Vec::new(), crashes: 0, granted: 0 }
    }

    fn ask(&mut self, need: Nano, cost: Nano, disk_works: bool) {
        for _ in 0..2 {
            match self.money.reserve(need) {
                Fit::Granted => {
                    // It leaves now: the service bills it, whoever learns of that.
                    self.granted += 1;
                    self.billed += cost;
                    self.under_way.push((need, cost));
                    return;
                }
                Fit::Take(taken) if disk_works => {
                    self.disk = Escrow { taken, ..self.money.escrow() };
                    self.money.took(self.money.day(), taken);
                }
                _ => return,
            }
        }
    }

    /// Some of what is under way ends: known, unknown, or at no cost.
    fn end(&mut self, dice: &mut Dice) {
        if self.under_way.is_empty() {
            return;
        }
        let (need, cost) = self.under_way.swap_remove(dice.below(self.under_way.len() as u64) as usize);
        match dice.below(3) {
            0 => self.money.settle(need, need),
            _ => self.money.settle(need, cost),
        }
    }

    fn crash(&mut self) {
        self.crashes += 1;
        self.under_way.clear();
        self.money = Purse::new(self.cap, self.disk, 0);
        self.money.turn(self.today);
    }

    fn step(&mut self, dice: &mut Dice) {
        match dice.below(20) {
            0..=9 => {
                let need = 1 + dice.below(self.cap / 4);
                let cost = dice.below(need + 1);
                let disk_works = dice.below(10) > 0;
                self.ask(need, cost, disk_works);
            }
            10..=15 => self.end(dice),
            16 => {
                if self.money.shrink() && dice.below(2) == 0 {
                    self.disk = self.money.escrow();
                }
            }
            17 if dice.below(8) == 0 => {
                // Nothing is under way over midnight here: which day its service bills is no question of the purse.
                self.under_way.drain(..).for_each(|(need, cost)| self.money.settle(need, cost));
                self.today += 1;
                assert!(self.money.turn(self.today));
                self.billed = 0;
            }
            // A clock set back or standing still.
            18 => assert!(!self.money.turn(self.today - dice.below(50))),
            _ => self.crash(),
        }
        assert!(self.billed <= self.cap, "{} billed of {} after {} crashes", self.billed, self.cap, self.crashes);
    }
}

#[test]
fn no_script_of_crashes_and_days_spends_more_than_the_cap() {
    let number = |name: &str, other: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(other);
    let (seed, scripts) = (number("HOLDFAST_SEED", 0x5eed), number("HOLDFAST_SIMULATIONS", 200));
    let (mut granted, mut crashes) = (0, 0);
    for script in 0..scripts {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(script) | 1);
        let mut world = World::new(&mut dice);
        for _ in 0..400 {
            world.step(&mut dice);
        }
        granted += world.granted;
        crashes += world.crashes;
    }
    assert!(granted > scripts * 20 && crashes > scripts * 5, "{granted} sends, {crashes} crashes");
}
