//! The budget of second sends: what may have been billed is sent again for one in ten successes.
//!
//! Owns how many may leave and whether any is known to wait; who waits stays in the spool, like everybody else.

/// Second sends a fresh process may make before it saw a success: a crash leaves about as many in flight.
pub const ALLOWANCE: u32 = 5;
/// Most that is saved up, so that a good month does not pay for a bad hour.
const SAVED_MAX: u32 = 10;
/// Successes that earn one second send.
pub const SUCCESSES_EACH: u32 = 10;

/// The budget.
#[derive(Debug)]
pub struct Resends {
    /// In tenths: one success each.
    tenths: u32,
    /// Some were refused, and may still wait in the spool.
    waited_for: bool,
}

impl Default for Resends {
    fn default() -> Self {
        Self { tenths: ALLOWANCE * SUCCESSES_EACH, waited_for: false }
    }
}

impl Resends {
    /// Takes one second send; false where there is none.
    pub fn spend(&mut self) -> bool {
        let granted = self.tenths >= SUCCESSES_EACH;
        if granted {
            self.tenths -= SUCCESSES_EACH;
        } else {
            self.waited_for = true;
        }
        granted
    }

    /// How many that may have been billed are worth leasing now; `None` where nobody is known to wait for the budget.
    pub fn worth_leasing(&self) -> Option<u32> {
        self.waited_for.then_some(self.tenths / SUCCESSES_EACH)
    }

    /// Nothing at all waits in the spool.
    pub fn nobody_waits(&mut self) {
        self.waited_for = false;
    }

    /// A request was answered. True if somebody who waits may leave now.
    pub fn earn(&mut self) -> bool {
        self.add(1)
    }

    /// The second send turned out to cost nothing: it was not one. True if somebody who waits may leave now.
    pub fn refund(&mut self) -> bool {
        self.add(SUCCESSES_EACH)
    }

    fn add(&mut self, tenths: u32) -> bool {
        self.tenths = (self.tenths + tenths).min(SAVED_MAX * SUCCESSES_EACH);
        self.worth_leasing().is_some_and(|some| some > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_sends_are_one_in_ten_successes() {
        let mut resends = Resends::default();
        let mut sent = (0..100).filter(|_| resends.spend()).count() as u32;
        assert_eq!((sent, resends.worth_leasing()), (ALLOWANCE, Some(0)));
        for _ in 0..200 {
            sent += u32::from(resends.earn() && resends.spend());
        }
        assert_eq!((sent, resends.worth_leasing()), (ALLOWANCE + 20, Some(0)));
    }

    #[test]
    fn what_is_saved_up_is_bounded() {
        let mut resends = Resends::default();
        (0..1_000).for_each(|_| assert!(!resends.earn(), "nobody waits"));
        assert_eq!((0..100).filter(|_| resends.spend()).count() as u32, SAVED_MAX);
    }
}
