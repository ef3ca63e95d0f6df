//! What a test of the rig is: a name, what it must catch, and a function that says what it found.

use holdfast::plant::Fault;

/// One test.
pub struct Case {
    /// `T1` to `T21`.
    pub id: &'static str,
    /// What it does, in a few words for the table.
    pub what: &'static str,
    /// Mistakes that it must catch when they are planted.
    pub faults: &'static [Planted],
    /// Does it.
    pub run: fn(&Effort) -> Outcome,
}

/// A mistake: one of the program's own, or one that the test makes in the program's surroundings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// `HOLDFAST_PLANT` names it.
    In(Fault),
    /// The test itself makes it where [`environment`] names it.
    Around(&'static str),
}

impl Planted {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Planted::In(fault) => fault.name(),
            Planted::Around(name) => name,
        }
    }
}

/// The mistake that this run makes in the program's surroundings.
pub fn environment() -> Option<String> {
    std::env::var("HOLDFAST_RIG_AROUND").ok()
}

/// How much is asked of a test.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// The full figures instead of the gate's.
    pub long: bool,
    /// Seed of all chance; printed, and replayed with `--seed`.
    pub seed: u64,
}

impl Effort {
    /// The figure for this run.
    pub fn pick(&self, short: u64, long: u64) -> u64 {
        if self.long { long } else { short }
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing was lost, doubled or wedged.
    Held(Figures),
    /// A promise was broken: which, and how to see it again.
    Broken(String),
    /// The machine lacks something that the test needs: what, and where it comes from.
    Missing(String),
    /// The test itself ended without a result.
    Faulty(String),
}

/// How much was tried.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// How many.
    pub count: u64,
    /// Of what: cycles, states, rows.
    pub unit: String,
    /// What else was counted, for the table.
    pub note: String,
}

impl Outcome {
    /// Nothing was broken in so many tries.
    pub fn held(count: u64, unit: &str, note: impl Into<String>) -> Outcome {
        Outcome::Held(Figures { count, unit: unit.to_owned(), note: note.into() })
    }
}
