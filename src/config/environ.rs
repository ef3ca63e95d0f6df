//! `HOLDFAST_<SECTION>__<KEY>` in the environment, laid over the tree of the files.
//!
//! Knows no key: a name it cannot place becomes an unknown key of the tree and is reported there.

use super::fault::{Fault, Origin};
use super::node::{Fields, Node, Value, parse_value};

const PREFIX: &str = "HOLDFAST_";

/// Names of ours that are no settings: they say where settings and daemon are.
const NOT_KEYS: &[&str] = if cfg!(feature = "planted") {
    &["HOLDFAST_CONFIG", "HOLDFAST_SOCKET", "HOLDFAST_PLANT"]
} else {
    &["HOLDFAST_CONFIG", "HOLDFAST_SOCKET"]
};

/// The process's own variables that concern us, whatever bytes the others hold.
pub fn environment() -> Vec<(String, String)> {
    let ours = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
    ours.map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())).collect()
}

/// Puts every override in its place; returns those that have none.
pub(super) fn overlay(root: &mut Fields, variables: &[(String, String)]) -> Vec<Fault> {
    let mut overrides: Vec<(Vec<String>, &str, &str)> = Vec::new();
    for (name, text) in variables {
        if let Some(rest) = name.strip_prefix(PREFIX).filter(|_| !NOT_KEYS.contains(&name.as_str())) {
            overrides.push((rest.split("__").map(str::to_ascii_lowercase).collect(), name, text));
        }
    }
    // Parents before members, and array members by number, so that the order of the environment does not matter.
    overrides.sort_by_key(|(path, ..)| path.iter().map(|part| format!("{part:0>8}")).collect::<Vec<_>>());
    overrides.iter().filter_map(|(path, name, text)| place(root, path, name, text).err()).collect()
}

fn place(root: &mut Fields, path: &[String], name: &str, text: &str) -> Result<(), Fault> {
    let origin = Origin::Environment(name.to_owned());
    let fault = |message: String| Fault { origin: origin.clone(), column: None, key: path.join("."), message };
    let Some((last, parents)) = path.split_last().filter(|_| path.iter().all(|part| !part.is_empty())) else {
        return Err(fault("not the name of a key; write HOLDFAST_<SECTION>__<KEY>".to_owned()));
    };
    let mut fields = root;
    let mut parents = parents.iter().peekable();
    while let Some(part) = parents.next() {
        let next_is_number = parents.peek().is_some_and(|next| next.parse::<usize>().is_ok());
        let empty = if next_is_number { Value::Array(Vec::new()) } else { Value::Table(Fields::new()) };
        let new = || (origin.clone(), Node { origin: origin.clone(), value: empty });
        let mut node = &mut fields.entry(part.clone()).or_insert_with(new).1;
        if next_is_number && matches!(node.value, Value::Array(_)) {
            node = member(node, parents.next(), &origin).map_err(&fault)?;
        }
        fields = match &mut node.value {
            Value::Table(inner) => inner,
            other => return Err(fault(format!("{part} is {}, which has no keys of its own", other.kind()))),
        };
    }
    fields.insert(last.clone(), (origin.clone(), Node { value: value(text, &origin), origin: origin.clone() }));
    Ok(())
}

/// An array's member: one that is there, or a new one at the end, so that no holes arise.
fn member<'n>(array: &'n mut Node, number: Option<&String>, origin: &Origin) -> Result<&'n mut Node, String> {
    let Value::Array(members) = &mut array.value else {
        return Err("is no array".to_owned());
    };
    let length = members.len();
    let number = number.and_then(|number| number.parse().ok()).unwrap_or(usize::MAX);
    if number == length {
        members.push(Node { origin: origin.clone(), value: Value::Table(Fields::new()) });
    }
    members.get_mut(number).ok_or_else(|| format!("there is no such member; the next free number is {length}"))
}

/// Arrays and tables are written as in TOML; everything else is text until a key says what it should be.
fn value(text: &str, origin: &Origin) -> Value {
    let structured = text.trim_start().starts_with(['[', '{']).then(|| parse_value(text.trim(), origin)).flatten();
    structured.unwrap_or_else(|| Value::Word(text.to_owned()))
}
