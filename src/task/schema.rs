//! The schema of a task's answers: read and compiled once.
//!
//! Owns what makes a schema fit to be used; nothing outside the file is ever fetched.

use std::io::Read;
use std::path::Path;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

use super::{Options, Wrong};

/// A schema is written by hand; a larger file is something else.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Deeper ones would not pass the gateway's own bound of 128 once they stand in a request.
const DEPTH_MAX: usize = 64;

/// A compiled schema.
#[derive(Debug)]
pub(super) struct Schema {
    /// As it stands in the file: models heed the order of its fields.
    pub(super) text: String,
    /// Whether it is as closed as OpenAI's strict mode demands.
    pub(super) strict: bool,
    validator: Validator,
    /// The fields it names, where it names them.
    fields: Option<Vec<String>>,
}

impl Schema {
    /// Why an answer does not fit, as the keyword and its place in the schema; `None` where it does.
    pub(super) fn misfit(&self, answer: &Value) -> Option<String> {
        // The library's own words quote the answer.
        let error = self.validator.validate(answer).err()?;
        Some(format!("the answer does not fit {} of the schema", error.schema_path().as_str()))
    }

    /// Whether answers may have this field; unknown counts as yes.
    pub(super) fn has(&self, field: &str) -> bool {
        self.fields.as_ref().is_none_or(|fields| fields.iter().any(|known| known == field))
    }
}

/// Reads a task's schema and checks what points into it.
pub(super) fn load(options: &Options, wrong: &mut Vec<Wrong>) -> Option<Schema> {
    let Some(path) = &options.schema_file else {
        for (key, given) in [("code", &options.code), ("value", &options.value), ("text", &options.text)] {
            if !given.is_empty() {
                wrong.push(Wrong { key, message: "without schema_file an answer has no fields".to_owned() });
            }
        }
        return None;
    };
    match read(path) {
        Err(message) => {
            wrong.push(Wrong { key: "schema_file", message });
            None
        }
        Ok(schema) => {
            check_fields(options, &schema, wrong);
            Some(schema)
        }
    }
}

fn read(path: &Path) -> Result<Schema, String> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| format!("{shown} cannot be read: {error}");
    let about = std::fs::metadata(path).map_err(unreadable)?;
    if !about.is_file() {
        return Err(format!("{shown} is no file"));
    }
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{shown} is longer than {FILE_BYTES_MAX} bytes; a schema is written by hand"));
    }
    compile(&text).map_err(|message| format!("{shown} {message}"))
}

/// A schema from its text.
fn compile(text: &str) -> Result<Schema, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))?;
    if !value.is_object() {
        return Err("is no JSON Schema: it must be an object".to_owned());
    }
    if depth(&value) > DEPTH_MAX {
        return Err(format!("is nested more than {DEPTH_MAX} deep"));
    }
    // Patterns run over what a model wrote: only an engine that never backtracks.
    let options = jsonschema::options().with_pattern_options(PatternOptions::regex());
    let validator = options.build(&value).map_err(|error| format!("is no JSON Schema: {error}"))?;
    let fields = value["properties"].as_object().map(|fields| fields.keys().cloned().collect());
    Ok(Schema { text: text.trim().to_owned(), strict: is_closed(&value), validator, fields })
}

fn depth(value: &Value) -> usize {
    1 + match value {
        Value::Array(members) => members.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// OpenAI's strict mode refuses schemas whose objects leave anything open.
fn is_closed(value: &Value) -> bool {
    match value {
        Value::Array(members) => members.iter().all(is_closed),
        Value::Object(fields) => {
            let required = |name: &String| {
                fields.get("required").and_then(Value::as_array).is_some_and(|all| all.iter().any(|one| one == name))
            };
            let closed = match fields.get("properties").and_then(Value::as_object) {
                Some(own) => {
                    fields.get("additionalProperties") == Some(&Value::Bool(false)) && own.keys().all(required)
                }
                None => fields.get("type").is_none_or(|kind| kind != "object"),
            };
            closed && fields.values().all(is_closed)
        }
        _ => true,
    }
}

fn check_fields(options: &Options, schema: &Schema, wrong: &mut Vec<Wrong>) {
    for (key, given) in [("code", &options.code), ("value", &options.value), ("text", &options.text)] {
        let first = first_field(given);
        if !first.is_empty() && !schema.has(&first) {
            let known = schema.fields.as_deref().unwrap_or_default().join(", ");
            wrong.push(Wrong { key, message: format!("the schema has no field \"{first}\"; it has {known}") });
        }
    }
}

/// The first field of a pointer or a plain name.
fn first_field(given: &str) -> String {
    match given.strip_prefix('/') {
        None => given.to_owned(),
        Some(pointer) => pointer.split('/').next().unwrap_or_default().replace("~1", "/").replace("~0", "~"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_strict_only_where_nothing_is_left_open() {
        let strict = |text: &str| compile(text).unwrap().strict;
        assert!(strict(
            r#"{"type":"object","properties":{"a":{"type":"string"}},"required":["a"],"additionalProperties":false}"#
        ));
        assert!(!strict(r#"{"type":"object","properties":{"a":{"type":"string"}},"required":["a"]}"#));
        assert!(!strict(r#"{"type":"object","properties":{"a":{}},"additionalProperties":false}"#));
        assert!(!strict(r#"{"type":"object"}"#));
    }

    #[test]
    fn what_is_no_schema_is_said() {
        let said = |text: &str| compile(text).unwrap_err();
        assert!(said("{").contains("is no JSON:"));
        assert!(said("[]").contains("must be an object"));
        assert!(said(r#"{"type":"strnig"}"#).contains("is no JSON Schema"));
        assert!(said(r#"{"$ref":"https://example.com/x.json"}"#).contains("is no JSON Schema"));
        let deep = format!("{}{}{}", r#"{"not":"#.repeat(90), "{}", "}".repeat(90));
        assert!(said(&deep).contains("deep"));
    }

    #[test]
    fn a_misfit_names_the_place_and_not_the_answer() {
        let schema = compile(r#"{"properties":{"code":{"type":"integer"}}}"#).unwrap();
        assert_eq!(schema.misfit(&serde_json::json!({"code": 1})), None);
        let why = schema.misfit(&serde_json::json!({"code": "secret"})).unwrap();
        assert!(why.contains("/properties/code/type") && !why.contains("secret"), "{why}");
    }
}
