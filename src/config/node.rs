//! TOML text as a tree in which every value knows where it stands.
//!
//! Owns parsing and the merging of layers; knows no key and judges no value.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Origin};

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

/// A table's keys. The key's own position is kept, because that is what an unknown key is reported at.
pub(super) type Fields = BTreeMap<String, (Origin, Node)>;

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    /// Text from the environment, which carries no type of its own.
    Word(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// Something no key takes; the words say what.
    Other(&'static str),
    Array(Vec<Node>),
    Table(Fields),
}

impl Value {
    /// What a person would call it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) | Value::Word(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a number with a fraction",
            Value::Boolean(_) => "true or false",
            Value::Other(words) => words,
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
        }
    }
}

/// Reads one file's text; every syntax error at once.
pub(super) fn parse(file: &Arc<str>, text: &str) -> Result<Fields, Vec<Fault>> {
    let lines = Lines::of(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let locate = |offset| Origin::File { file: Arc::clone(file), line: lines.position(text, offset).0 };
        return Ok(fields(table.get_ref(), &locate));
    }
    let fault = |error: toml::de::Error| {
        let (line, column) = lines.position(text, error.span().map_or(0, |span| span.start));
        let origin = Origin::File { file: Arc::clone(file), line };
        // Only the parser's own words: its long form quotes the line, which may hold a secret.
        Fault { origin, column: Some(column), key: String::new(), message: error.message().to_owned() }
    };
    Err(errors.into_iter().map(fault).collect())
}

/// Reads one value, as an environment variable may hold it; `None` where it is not TOML.
pub(super) fn parse_value(text: &str, origin: &Origin) -> Option<Value> {
    let value = DeValue::parse(text).ok()?;
    Some(node(&value, &|_| origin.clone()).value)
}

/// Lays `over` on `under`: tables key by key, everything else (arrays too) replaced whole.
pub(super) fn merge(under: &mut Fields, over: Fields) {
    for (name, (at, node)) in over {
        match (under.get_mut(&name), node) {
            (Some((_, Node { value: Value::Table(old), .. })), Node { value: Value::Table(new), .. }) => {
                merge(old, new);
            }
            (_, node) => {
                under.insert(name, (at, node));
            }
        }
    }
}

fn fields(table: &DeTable<'_>, locate: &dyn Fn(usize) -> Origin) -> Fields {
    let field = |(name, value): (&Spanned<_>, _)| {
        let name: &Spanned<std::borrow::Cow<'_, str>> = name;
        (name.get_ref().to_string(), (locate(name.span().start), node(value, locate)))
    };
    table.iter().map(field).collect()
}

fn node(value: &Spanned<DeValue<'_>>, locate: &dyn Fn(usize) -> Origin) -> Node {
    let origin = locate(value.span().start);
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("an integer that is too large"), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or(Value::Other("a number that is too large"), Value::Float)
        }
        DeValue::Boolean(yes) => Value::Boolean(*yes),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(array) => Value::Array(array.iter().map(|member| node(member, locate)).collect()),
        DeValue::Table(table) => Value::Table(fields(table, locate)),
    };
    Node { origin, value }
}

/// Byte offsets at which lines begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Lines {
        Lines(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    /// Line and column, both counted from 1.
    fn position(&self, text: &str, offset: usize) -> (usize, usize) {
        let line = self.0.partition_point(|start| *start <= offset);
        let start = self.0.get(line.saturating_sub(1)).copied().unwrap_or(0);
        (line, text.get(start..offset).map_or(0, |before| before.chars().count()) + 1)
    }
}
