//! Whether two answers to one request say the same: the local model's, given while offline, and the uplink's later.
//!
//! Owns the rules, of which one is used and named: equal codes, equal JSON, else how alike the texts are.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Task, answer};
use crate::control::types::words;

/// What a comparison came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Agreement {
    /// They say the same.
    Same,
    /// They do not.
    Differs,
    /// It cannot be told.
    Unknown,
}
words!(Agreement { Same => "same", Differs => "differs", Unknown => "unknown" });

/// What it was told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The task's codes.
    Code,
    /// JSON, whatever the order of its fields.
    Json,
    /// The words.
    Text,
}
words!(Rule { Code => "code", Json => "json", Text => "text" });

/// Up to so many words each must be the same: between "OK" and "not OK" there is no likeness to measure.
const SHORT_WORDS: usize = 8;
/// Longer texts with at least this share of words in common say the same (Sørensen and Dice's coefficient).
const ALIKE: f64 = 0.9;
/// With less than this they do not. In between nobody can tell: two models word one thing in two ways.
const UNLIKE: f64 = 0.3;
/// One of these, or a number, in one text alone turns its meaning round however much else is shared.
const TURNING: [&str; 12] =
    ["not", "no", "nok", "never", "none", "without", "nicht", "kein", "keine", "nie", "ohne", "nein"];
/// As much of a text is looked at.
const COMPARED_BYTES_MAX: usize = 64 * 1024;

/// Compares the words of two answers.
pub(super) fn compare(local: &str, uplink: &str, task: Option<&Task>) -> (Agreement, Rule) {
    if let Some(codes) = task.and_then(|task| codes(task, local, uplink)) {
        return (same(codes.0 == codes.1), Rule::Code);
    }
    if let (Some(local), Some(uplink)) = (structured(local), structured(uplink)) {
        return (same(local == uplink), Rule::Json);
    }
    (texts(start(local), start(uplink)), Rule::Text)
}

fn same(equal: bool) -> Agreement {
    if equal { Agreement::Same } else { Agreement::Differs }
}

/// Both codes, where the task makes codes and both answers have one.
fn codes(task: &Task, local: &str, uplink: &str) -> Option<(i32, i32)> {
    let code = |text: &str| {
        let reading = task.read(text);
        let is_made =
            !task.options().codes.is_empty() || reading.json.as_ref().is_some_and(|json| has_code(task, json));
        (reading.fits && is_made).then_some(reading.code)
    };
    Some((code(local)?, code(uplink)?))
}

fn has_code(task: &Task, json: &Value) -> bool {
    answer::find(json, &task.options().code, "code").is_some_and(|code| !code.is_null())
}

/// Numbers and single words are texts here: as JSON, 1 and 1.0 would differ.
fn structured(text: &str) -> Option<Value> {
    answer::parse(text).filter(|json| json.is_object() || json.is_array())
}

fn start(text: &str) -> &str {
    &text[..text.floor_char_boundary(COMPARED_BYTES_MAX)]
}

fn texts(local: &str, uplink: &str) -> Agreement {
    let (local, uplink) = (counted(local), counted(uplink));
    let of = |words: &BTreeMap<String, usize>| words.values().sum::<usize>();
    let (few, many) = (of(&local).min(of(&uplink)), of(&local).max(of(&uplink)));
    if few == 0 {
        return Agreement::Unknown;
    }
    if many <= SHORT_WORDS {
        return same(local == uplink);
    }
    let shared: usize = local.iter().map(|(word, count)| (*count).min(uplink.get(word).copied().unwrap_or(0))).sum();
    let likeness = 2.0 * shared as f64 / (few + many) as f64;
    match likeness {
        alike if alike >= ALIKE && turning(&local) == turning(&uplink) => Agreement::Same,
        unlike if unlike < UNLIKE => Agreement::Differs,
        _ => Agreement::Unknown,
    }
}

/// The words that decide: negations and numbers.
fn turning(words: &BTreeMap<String, usize>) -> Vec<(&String, &usize)> {
    let turns = |word: &str| TURNING.contains(&word) || word.contains(|c: char| c.is_ascii_digit());
    words.iter().filter(|(word, _)| turns(word)).collect()
}

/// How often each word stands there, whatever its case and the signs around it.
fn counted(text: &str) -> BTreeMap<String, usize> {
    let mut words = BTreeMap::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *words.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::tests::options;
    use Agreement::{Differs, Same, Unknown};

    #[test]
    fn short_texts_must_be_the_same_words() {
        for (local, uplink, wanted) in [
            ("OK", "ok.", Same),
            ("OK", "not OK", Differs),
            ("23.5", "23.5 ", Same),
            ("23.5", "23.6", Differs),
            ("yes, it is", "Yes it is!", Same),
            ("", "anything", Unknown),
            ("…", "—", Unknown),
        ] {
            assert_eq!(compare(local, uplink, None), (wanted, Rule::Text), "{local:?} and {uplink:?}");
        }
    }

    #[test]
    fn longer_texts_are_told_apart_by_their_words_or_not_at_all() {
        let text = "The seam shows pores on the left side and should be ground out before the next pass";
        let nearly = "The seam shows pores on the left side, and should be ground before the next pass.";
        let other = "No fault can be seen; proceed with painting after cleaning all surfaces";
        let reworded = "Pores are visible on the left of the seam: grind them out, then weld the next pass again";
        assert_eq!(compare(text, nearly, None).0, Same);
        assert_eq!(compare(text, other, None).0, Differs);
        assert_eq!(compare(text, reworded, None).0, Unknown);
        assert_eq!(compare(reworded, text, None).0, Unknown, "it goes both ways");
        let turned = "The seam shows no pores on the left side and should be ground out before the next pass";
        assert_eq!(compare(text, turned, None).0, Unknown, "one word turns it round");
    }

    #[test]
    fn json_is_compared_as_such() {
        let fenced = "```json\n{\"b\": [1, 2], \"a\": \"x\"}\n```";
        assert_eq!(compare("{\"a\":\"x\",\"b\":[1,2]}", fenced, None), (Same, Rule::Json));
        assert_eq!(compare("{\"a\":\"x\",\"b\":[2,1]}", fenced, None), (Differs, Rule::Json));
    }

    #[test]
    fn a_task_goes_by_its_code_whatever_else_is_said() {
        let mut options = options("look");
        options.codes = BTreeMap::from([("OK".to_owned(), 0), ("NOK".to_owned(), 1)]);
        let task = Task::new(options).unwrap();
        assert_eq!(compare("ok.", "OK", Some(&task)), (Same, Rule::Code));
        assert_eq!(compare("NOK", "OK", Some(&task)), (Differs, Rule::Code));
        assert_eq!(compare("perhaps", "OK", Some(&task)), (Differs, Rule::Text), "no code, so its words");
    }
}
