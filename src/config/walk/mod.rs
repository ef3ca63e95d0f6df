//! The one pass over the tree: typed getters that note what was asked for, what was found and what is wrong.
//!
//! A table's known keys are exactly those that were asked for, so no list of keys exists beside the code that
//! reads them. Getters never fail: they push a fault and return the default, so that one pass finds everything.

mod nearest;
mod shapes;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nearest::{nearest, unknown_word};
use serde_json::{Value as Json, json};

use super::fault::{Fault, Origin};
use super::node::{Fields, Node, Value};
use super::units;
use crate::control::types::UnknownWord;

/// One key of the effective configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// The dotted key, e.g. `uplink[0].breaker.failures`.
    pub key: String,
    /// The value as a file would spell it.
    pub value: Json,
    /// Who set it.
    pub origin: Origin,
}

/// What the pass yields besides the settings.
#[derive(Default)]
pub(super) struct Sink {
    pub(super) faults: Vec<Fault>,
    pub(super) shown: Vec<Shown>,
}

/// A table being read.
pub(super) struct Table<'a> {
    sink: &'a mut Sink,
    path: String,
    origin: Origin,
    fields: &'a Fields,
    asked: Vec<&'static str>,
}

/// A value and how it is shown.
type Read<T> = Result<(T, Json), String>;

static NO_FIELDS: Fields = Fields::new();

/// Reads the whole tree; `f` asks for the sections.
pub(super) fn walk<T>(sink: &mut Sink, fields: &Fields, f: impl FnOnce(&mut Table<'_>) -> T) -> T {
    visit(sink, String::new(), Origin::Default, fields, f)
}

fn visit<T>(sink: &mut Sink, path: String, origin: Origin, fields: &Fields, f: impl FnOnce(&mut Table<'_>) -> T) -> T {
    let mut table = Table { sink, path, origin, fields, asked: Vec::new() };
    let result = f(&mut table);
    table.report_unknown();
    result
}

impl Table<'_> {
    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn take(&mut self, name: &'static str) -> Option<&Node> {
        self.asked.push(name);
        self.fields.get(name).map(|(_, node)| node)
    }

    /// True where somebody set this key.
    pub(super) fn given(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// Reports what is wrong with a key, at the place where it (or else its table) stands.
    pub(super) fn fault(&mut self, name: &str, message: impl Into<String>) {
        let origin = self.fields.get(name).map_or_else(|| self.origin.clone(), |(_, node)| node.origin.clone());
        let (key, message) = (self.key(name), message.into());
        self.sink.faults.push(Fault { origin, column: None, key, message });
    }

    /// Reports what is wrong with this table as a whole.
    pub(super) fn fault_here(&mut self, message: String) {
        self.sink.faults.push(Fault { origin: self.origin.clone(), column: None, key: self.path.clone(), message });
    }

    /// Reports what is wrong with one key of an array's member, seen only once all members are read.
    pub(super) fn member_fault(&mut self, array: &str, index: usize, name: &str, message: String) {
        let member = match self.fields.get(array).map(|(_, node)| &node.value) {
            Some(Value::Array(members)) => members.get(index),
            _ => None,
        };
        let field = match member.map(|member| &member.value) {
            Some(Value::Table(fields)) => fields.get(name).map(|(_, node)| node),
            _ => None,
        };
        let origin = field.or(member).map_or(Origin::Default, |node| node.origin.clone());
        let key = self.key(&format!("{array}[{index}].{name}"));
        self.sink.faults.push(Fault { origin, column: None, key, message });
    }

    /// The configuration file in which this key stands.
    pub(super) fn file_of(&self, name: &str) -> Option<std::sync::Arc<str>> {
        match self.fields.get(name).map(|(_, node)| &node.origin) {
            Some(Origin::File { file, .. }) => Some(file.clone()),
            _ => None,
        }
    }

    /// Makes a key known without reading it.
    pub(super) fn ask(&mut self, name: &'static str) {
        self.asked.push(name);
    }

    /// Adds a line to the effective configuration.
    pub(super) fn show(&mut self, name: &str, value: Json) {
        let origin = self.fields.get(name).map_or(Origin::Default, |(_, node)| node.origin.clone());
        let key = self.key(name);
        self.sink.shown.push(Shown { key, value, origin });
    }

    fn read<T>(&mut self, name: &'static str, default: (T, Json), parse: impl FnOnce(&Value) -> Read<T>) -> T {
        let (value, json) = match self.take(name).map(|node| parse(&node.value)) {
            None => default,
            Some(Ok(read)) => read,
            Some(Err(message)) => {
                self.fault(name, message);
                default
            }
        };
        self.show(name, json);
        value
    }

    /// A text that `parse` understands. `expected` completes "expected …, got an integer".
    pub(super) fn parsed<T>(
        &mut self,
        name: &'static str,
        default: &str,
        expected: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let initial = (parse(default).ok(), json!(default));
        self.read(name, initial, |value| {
            let text = text(value, expected)?;
            Ok((Some(parse(text)?), json!(text)))
        })
    }

    /// A text without a default; shown only where it is given.
    pub(super) fn optional<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let node = self.take(name)?;
        let read = text(&node.value, "a string in quotes").and_then(|text| Ok((parse(text)?, json!(text))));
        match read {
            Ok((value, json)) => {
                self.show(name, json);
                Some(value)
            }
            Err(message) => {
                self.fault(name, message);
                None
            }
        }
    }

    /// Any text.
    pub(super) fn text(&mut self, name: &'static str, default: &str) -> String {
        self.parsed(name, default, "a string in quotes", |text| Ok(text.to_owned())).unwrap_or_default()
    }

    /// A text that may not be empty.
    pub(super) fn required(&mut self, name: &'static str, hint: &str) -> String {
        let text = self.text(name, "");
        // A value of the wrong type has been reported as that already.
        let reported = self.given(name) && !matches!(self.fields.get(name), Some((_, node)) if is_text(&node.value));
        if text.is_empty() && !reported {
            self.fault(name, format!("missing; {hint}"));
        }
        text
    }

    /// A file's name; the empty text is none.
    pub(super) fn path(&mut self, name: &'static str, default: &str) -> Option<PathBuf> {
        Some(self.text(name, default)).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// One word of a fixed set.
    pub(super) fn word<T>(&mut self, name: &'static str, default: T) -> T
    where
        T: FromStr<Err = UnknownWord> + Display + Copy,
    {
        let parse = |word: &str| word.parse().map_err(|unknown| unknown_word(word, unknown));
        self.parsed(name, &default.to_string(), "a word in quotes", parse).unwrap_or(default)
    }

    /// A duration with its unit, from `at_least` to ten years.
    pub(super) fn duration(&mut self, name: &'static str, default: &str, at_least: &str) -> Duration {
        let least = units::duration(at_least).unwrap_or_default();
        let parse = |text: &str| match units::duration(text)? {
            short if short < least => Err(format!("must be at least {at_least}, got {text}")),
            long if long > units::LONGEST => Err(format!("must be at most 3650d, got {text}")),
            duration => Ok(duration),
        };
        self.parsed(name, default, "a duration in quotes, such as \"2s\"", parse).unwrap_or_default()
    }

    /// A size with its unit, or a plain number of bytes; at least `least` bytes.
    pub(super) fn size(&mut self, name: &'static str, default: &str, least: u64) -> u64 {
        let initial = (units::size(default).unwrap_or_default(), json!(default));
        self.read(name, initial, |value| {
            let (bytes, json) = match value {
                Value::Integer(number) => (u64::try_from(*number).map_err(|_| at_least(least, number))?, json!(number)),
                other => {
                    let text = text(other, "a size in quotes, such as \"16MiB\"")?;
                    (units::size(text)?, json!(text))
                }
            };
            if bytes < least { Err(at_least(least, bytes)) } else { Ok((bytes, json)) }
        })
    }

    /// A whole number within `range`.
    pub(super) fn count(&mut self, name: &'static str, default: u32, range: RangeInclusive<u32>) -> u32 {
        self.read(name, (default, json!(default)), |value| {
            let number = match value {
                Value::Integer(number) => *number,
                Value::Word(word) => {
                    word.trim().parse().map_err(|_| format!("expected a whole number, got {}", units::quoted(word)))?
                }
                other => return Err(format!("expected a whole number, got {}", other.kind())),
            };
            let count = u32::try_from(number).ok().filter(|count| range.contains(count));
            count.map(|count| (count, json!(count))).ok_or_else(|| between(&range, number))
        })
    }

    /// A number, whole or not, within `range`.
    pub(super) fn number(&mut self, name: &'static str, default: f64, range: RangeInclusive<f64>) -> f64 {
        self.read(name, (default, json!(default)), |value| {
            let number = match value {
                Value::Integer(number) => *number as f64,
                Value::Float(number) => *number,
                Value::Word(word) => {
                    word.trim().parse().map_err(|_| format!("expected a number, got {}", units::quoted(word)))?
                }
                other => return Err(format!("expected a number, got {}", other.kind())),
            };
            if range.contains(&number) { Ok((number, json!(number))) } else { Err(between(&range, number)) }
        })
    }

    /// Yes or no.
    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> bool {
        self.read(name, (default, json!(default)), |value| {
            let yes = match value {
                Value::Boolean(yes) => *yes,
                Value::Word(word) if word.trim() == "true" => true,
                Value::Word(word) if word.trim() == "false" => false,
                other => return Err(format!("expected true or false, got {}", other.kind())),
            };
            Ok((yes, json!(yes)))
        })
    }

    fn report_unknown(&mut self) {
        let unknown: Vec<_> = self.fields.iter().filter(|(name, _)| !self.asked.contains(&name.as_str())).collect();
        for (name, (origin, _)) in unknown {
            let message = format!("unknown key; {}", self.suggestion(name));
            let key = self.key(&printable(name));
            self.sink.faults.push(Fault { origin: origin.clone(), column: None, key, message });
        }
    }

    fn suggestion(&self, name: &str) -> String {
        match nearest(name, &self.asked) {
            Some(best) => format!("did you mean \"{best}\"?"),
            None => format!("known here: {}", self.asked.join(", ")),
        }
    }
}

fn is_text(value: &Value) -> bool {
    matches!(value, Value::Text(_) | Value::Word(_))
}

fn text<'v>(value: &'v Value, expected: &str) -> Result<&'v str, String> {
    match value {
        Value::Text(text) | Value::Word(text) => Ok(text),
        other => Err(format!("expected {expected}, got {}", other.kind())),
    }
}

/// A key may hold anything in quotes; a fault is one line of text.
fn printable(name: &str) -> String {
    if name.chars().any(char::is_control) { units::quoted(name) } else { name.to_owned() }
}

fn at_least(least: u64, got: impl Display) -> String {
    format!("must be at least {least} bytes, got {got}")
}

fn between<N: Display>(range: &RangeInclusive<N>, got: impl Display) -> String {
    format!("must be between {} and {}, got {got}", range.start(), range.end())
}
