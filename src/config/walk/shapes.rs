//! Getters of what holds other values: lists, maps, sections and arrays of sections.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::json;

use super::{NO_FIELDS, Table, text, visit};
use crate::config::fault::Origin;
use crate::config::node::{Fields, Node, Value};

impl Table<'_> {
    /// An array of texts that `parse` understands; empty by default. Each bad member is reported by its number.
    pub(in crate::config) fn list<T>(
        &mut self,
        name: &'static str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let expected = || format!("expected an array of strings, such as [{example:?}]");
        let members: Vec<Result<String, String>> = match self.take(name).map(|node| &node.value) {
            None => Vec::new(),
            Some(Value::Array(members)) => {
                members.iter().map(|member| text(&member.value, "a string in quotes").map(str::to_owned)).collect()
            }
            Some(Value::Word(words)) => words
                .split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty())
                .map(|word| Ok(word.to_owned()))
                .collect(),
            Some(other) => vec![Err(format!("{}, got {}", expected(), other.kind()))],
        };
        self.show(name, members.iter().filter_map(|member| member.as_ref().ok()).cloned().collect());
        let mut list = Vec::new();
        for (index, member) in members.into_iter().enumerate() {
            match member.and_then(|text| parse(&text)) {
                Ok(value) => list.push(value),
                Err(message) => {
                    self.fault(name, message);
                    if let Some(fault) = self.sink.faults.last_mut() {
                        fault.key = format!("{}[{index}]", fault.key);
                    }
                }
            }
        }
        list
    }

    /// An array of whole numbers within `range`, each once; empty by default.
    pub(in crate::config) fn counts(&mut self, name: &'static str, range: &RangeInclusive<u8>) -> Vec<u8> {
        self.read(name, (Vec::new(), json!([])), |value| {
            let wrong = || format!("expected numbers from {} to {}, such as [1, 2]", range.start(), range.end());
            let Value::Array(members) = value else { return Err(wrong()) };
            let mut counts = Vec::new();
            for member in members {
                let Value::Integer(number) = member.value else { return Err(wrong()) };
                let count = u8::try_from(number).ok().filter(|count| range.contains(count)).ok_or_else(wrong)?;
                if counts.contains(&count) {
                    return Err(format!("{count} stands there twice"));
                }
                counts.push(count);
            }
            let json = json!(counts);
            Ok((counts, json))
        })
    }

    /// A table from any text to any text; empty by default.
    pub(in crate::config) fn map(&mut self, name: &'static str) -> BTreeMap<String, String> {
        self.read(name, (BTreeMap::new(), json!({})), |value| {
            let Value::Table(fields) = value else {
                return Err(format!("expected a table such as {{ \"from\" = \"to\" }}, got {}", value.kind()));
            };
            let mut map = BTreeMap::new();
            for (from, (_, to)) in fields {
                let to = text(&to.value, "a string in quotes").map_err(|message| format!("{from:?}: {message}"))?;
                map.insert(from.clone(), to.to_owned());
            }
            let json = json!(map);
            Ok((map, json))
        })
    }

    /// A table from any text to a whole number; empty by default.
    pub(in crate::config) fn numbers(&mut self, name: &'static str) -> BTreeMap<String, i32> {
        self.read(name, (BTreeMap::new(), json!({})), |value| {
            let Value::Table(fields) = value else {
                return Err(format!("expected a table such as {{ \"OK\" = 0 }}, got {}", value.kind()));
            };
            let mut map = BTreeMap::new();
            for (word, (_, number)) in fields {
                let Value::Integer(number) = number.value else {
                    return Err(format!("{word:?}: expected a whole number, got {}", number.value.kind()));
                };
                let number = i32::try_from(number).map_err(|_| format!("{word:?}: {number} has more than 32 bits"))?;
                map.insert(word.clone(), number);
            }
            let json = json!(map);
            Ok((map, json))
        })
    }

    /// Whether a key holds an array that begins with a table.
    pub(in crate::config) fn holds_tables(&self, name: &str) -> bool {
        let Some((_, Node { value: Value::Array(members), .. })) = self.fields.get(name) else { return false };
        members.first().is_some_and(|member| matches!(member.value, Value::Table(_)))
    }

    /// Whether a key holds text, or an array that begins with text.
    pub(in crate::config) fn holds_text(&self, name: &str) -> bool {
        match self.fields.get(name) {
            Some((_, Node { value: Value::Text(_), .. })) => true,
            Some((_, Node { value: Value::Array(members), .. })) => {
                members.first().is_some_and(|member| matches!(member.value, Value::Text(_)))
            }
            _ => false,
        }
    }

    /// A section; one that is not there is read as an empty one.
    pub(in crate::config) fn table<T>(&mut self, name: &'static str, f: impl FnOnce(&mut Table<'_>) -> T) -> T {
        self.asked.push(name);
        let path = self.key(name);
        let (origin, fields) = match self.fields.get(name) {
            None => (self.origin.clone(), &NO_FIELDS),
            Some((_, Node { origin, value: Value::Table(fields) })) => (origin.clone(), fields),
            Some((_, node)) => {
                self.fault(name, format!("expected a table, got {}", node.value.kind()));
                (node.origin.clone(), &NO_FIELDS)
            }
        };
        visit(self.sink, path, origin, fields, f)
    }

    /// An array of tables; one that is not there is read as `absent` empty ones.
    pub(in crate::config) fn tables<T>(
        &mut self,
        name: &'static str,
        absent: usize,
        f: impl Fn(&mut Table<'_>) -> T,
    ) -> Vec<T> {
        self.asked.push(name);
        let path = self.key(name);
        let mut members: Vec<(Origin, &Fields)> = Vec::new();
        match self.fields.get(name) {
            None => members.resize_with(absent, || (self.origin.clone(), &NO_FIELDS)),
            Some((_, Node { value: Value::Array(array), .. })) => {
                for member in array {
                    match &member.value {
                        Value::Table(fields) => members.push((member.origin.clone(), fields)),
                        other => self.fault(name, format!("expected tables in this array, got {}", other.kind())),
                    }
                }
            }
            Some((_, Node { origin, value: Value::Table(fields) })) => {
                self.fault(name, format!("there may be several of these; write [[{path}]] with two brackets"));
                members.push((origin.clone(), fields));
            }
            Some((_, node)) => self.fault(name, format!("expected an array of tables, got {}", node.value.kind())),
        }
        if members.is_empty() {
            self.show(name, json!([]));
        }
        let read = |(index, (origin, fields))| visit(self.sink, format!("{path}[{index}]"), origin, fields, &f);
        members.into_iter().enumerate().map(read).collect()
    }
}
