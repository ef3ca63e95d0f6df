//! Which known word was probably meant.

use crate::config::units;
use crate::control::types::UnknownWord;

/// How alike a known word must be to be suggested; below this a guess misleads more than it helps.
const LIKENESS_MIN: f64 = 0.8;

/// A refusal that names every word that would have been understood.
pub(super) fn unknown_word(word: &str, unknown: UnknownWord) -> String {
    let refusal = format!("{} is none of {}", units::quoted(word), unknown.expected.join(", "));
    match nearest(word, unknown.expected) {
        Some(best) => format!("{refusal}; did you mean \"{best}\"?"),
        None => refusal,
    }
}

/// The known word that was probably meant.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_ascii_lowercase();
    // Short words with one slip score low by likeness alone.
    let slip = |known: &str| known.len() > 2 && strsim::osa_distance(&word, known) == 1;
    let likeness = |known: &str| if slip(known) { 1.0 } else { strsim::jaro_winkler(&word, known) };
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= LIKENESS_MIN).then_some(*best)
}
