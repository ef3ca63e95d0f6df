//! When a simulated model calls a tool, which one, and with what arguments.
//!
//! Owns that decision, made from the request alone; the shape of a call is the answer's.

use serde_json::{Value, json};

use super::openai;

/// The tool that a model would call: one that must be called, one whose name stands in the text, or the first for a text that
/// says "use the tool". A result is answered by words, so no tool is called for it.
pub(super) fn called(body: &Value, user: &str) -> Option<(String, Value)> {
    let choice = &body["tool_choice"];
    if choice == "none" {
        return None;
    }
    let functions = || body["tools"].as_array().into_iter().flatten().map(|tool| &tool["function"]);
    let first = || functions().next();
    let named = |wanted: &str| functions().find(|function| function["name"] == wanted);
    let chosen = match choice["function"]["name"].as_str() {
        Some(wanted) => named(wanted),
        None if choice == "required" || user.contains("use the tool") => first(),
        None => functions().find(|function| function["name"].as_str().is_some_and(|name| user.contains(name))),
    }?;
    let name = chosen["name"].as_str()?;
    Some((name.to_owned(), arguments(&chosen["parameters"], number_in_call(user, name))))
}

/// The smallest arguments that fit, the stated number for each that wants one.
fn arguments(schema: &Value, number: Option<i64>) -> Value {
    let mut arguments = openai::instance(schema);
    if let (Some(number), Some(object)) = (number, arguments.as_object_mut()) {
        for value in object.values_mut().filter(|value| value.is_number()) {
            *value = json!(number);
        }
    }
    arguments
}

/// The 3 of `name(3)`.
fn number_in_call(text: &str, name: &str) -> Option<i64> {
    let after = text.split_once(name)?.1.strip_prefix('(')?;
    after.split_once(')')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(choice: &Value) -> Value {
        let integer = json!({"type": "object", "properties": {"input": {"type": "integer"}}});
        let tools = json!([{"type": "function", "function": {"name": "first", "parameters": integer}},
            {"type": "function", "function": {"name": "second", "parameters": integer}}]);
        json!({"tools": tools, "tool_choice": choice})
    }

    #[test]
    fn a_tool_is_called_where_the_text_or_the_choice_says_so() {
        let call = |choice: Value, user: &str| called(&body(&choice), user).map(|(name, _)| name);
        assert_eq!(call(json!("auto"), "hello"), None);
        assert_eq!(call(json!("auto"), "use the tool").as_deref(), Some("first"));
        assert_eq!(call(json!("auto"), "what is second(3)?").as_deref(), Some("second"));
        assert_eq!(call(json!("required"), "hello").as_deref(), Some("first"));
        assert_eq!(
            call(json!({"type": "function", "function": {"name": "second"}}), "hello").as_deref(),
            Some("second")
        );
        assert_eq!(call(json!("none"), "use the tool"), None);
        assert_eq!(called(&json!({}), "use the tool"), None);
    }

    #[test]
    fn a_number_in_the_text_becomes_the_argument() {
        let argument = |user: &str| called(&body(&json!("required")), user).unwrap().1["input"].clone();
        assert_eq!((argument("first(3)"), argument("first(x)"), argument("hello")), (json!(3), json!(1), json!(1)));
    }
}
