//! From an answer's words to a code, a value and a short text.
//!
//! Owns what fits. Models wrap JSON in fences whatever they are told; that is tolerated, anything else is not.

use std::io::{self, BufReader};

use serde::Deserialize;
use serde_json::Value;

use super::Options;
use super::schema::Schema;

/// What an answer says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// Whether it is what the task asked for.
    pub fits: bool,
    /// For programs.
    pub code: i32,
    /// A measured or guessed value, as it came; it fits into 32 bits.
    pub value: f64,
    /// For people, or as much of it as may be handed on; of an answer that does not fit, the words that came.
    pub text: String,
    /// The text is not all of it.
    pub cut: bool,
    /// The answer as JSON, where it is some that fits.
    pub json: Option<Value>,
    /// Why it does not fit, without a word of it.
    pub why: Option<String>,
}

/// Reads an answer's text.
pub(super) fn read(options: &Options, schema: Option<&Schema>, text: &str) -> Reading {
    let read = match schema {
        Some(schema) => fields(options, schema, text),
        None => plain(options, text),
    };
    let (fits, (code, value, said, json), why) = match read {
        Ok(read) => (true, read, None),
        Err(why) => (false, (0, 0.0, text.trim().to_owned(), None), Some(why)),
    };
    let (text, cut) = shortened(said, options.max_answer as usize);
    Reading { fits, code, value, text, cut, json, why }
}

type Read = (i32, f64, String, Option<Value>);

fn plain(options: &Options, text: &str) -> Result<Read, String> {
    let text = text.trim();
    if options.codes.is_empty() {
        return Ok((0, 0.0, text.to_owned(), None));
    }
    // One word was asked for; models like to end it with a full stop.
    let code = word(options, text.trim_end_matches(['.', '!'])).ok_or("the answer is none of the words in codes")?;
    Ok((code, 0.0, text.to_owned(), None))
}

fn word(options: &Options, word: &str) -> Option<i32> {
    let exact = options.codes.get(word);
    exact.or_else(|| options.codes.iter().find(|(known, _)| known.eq_ignore_ascii_case(word)).map(|(_, c)| c)).copied()
}

fn fields(options: &Options, schema: &Schema, text: &str) -> Result<Read, String> {
    let json = parse(text).ok_or("the answer is no JSON")?;
    if let Some(why) = schema.misfit(&json) {
        return Err(why);
    }
    let code = find(&json, &options.code, "code").map_or(Ok(0), |found| code(options, found))?;
    let value = find(&json, &options.value, "value").map_or(Ok(0.0), value)?;
    let said = match find(&json, &options.text, "text") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
        None => json.to_string(),
    };
    Ok((code, value, said, Some(json)))
}

/// The answer as JSON, out of its fence if it has one.
pub(super) fn parse(text: &str) -> Option<Value> {
    let text = text.trim().trim_start_matches('\u{feff}');
    if let Ok(json) = serde_json::from_str(text) {
        return Some(json);
    }
    let fenced = text.split_once("```")?.1;
    let fenced = fenced.split_once("```").map_or(fenced, |(inside, _)| inside);
    let fenced = fenced.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    serde_json::from_str(fenced.trim()).ok()
}

pub(super) fn find<'j>(json: &'j Value, given: &str, default: &str) -> Option<&'j Value> {
    let key = if given.is_empty() { default } else { given };
    if key.starts_with('/') { json.pointer(key) } else { json.get(key) }
}

fn code(options: &Options, found: &Value) -> Result<i32, String> {
    let code = match found {
        Value::String(said) => word(options, said).ok_or("the answer's code is none of the words in codes")?,
        Value::Bool(yes) => i32::from(*yes),
        Value::Null => 0,
        Value::Number(number) => whole(number).ok_or("the answer's code is no whole number of 32 bits")?,
        Value::Array(_) | Value::Object(_) => return Err("the answer's code is no number".to_owned()),
    };
    Ok(code)
}

/// Models write 2.0 where 2 is meant.
fn whole(number: &serde_json::Number) -> Option<i32> {
    if let Some(number) = number.as_i64() {
        return i32::try_from(number).ok();
    }
    let number = number.as_f64().filter(|n| n.fract() == 0.0)?;
    (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number).then_some(number as i32)
}

fn value(found: &Value) -> Result<f64, String> {
    let number = match found {
        Value::Number(number) => number.as_f64(),
        Value::Bool(yes) => Some(f64::from(u8::from(*yes))),
        Value::Null => Some(0.0),
        _ => None,
    };
    number.filter(|n| (*n as f32).is_finite()).ok_or_else(|| "the answer's value is no number of 32 bits".to_owned())
}

/// No more than so many bytes, whole characters only.
fn shortened(mut text: String, bytes: usize) -> (String, bool) {
    if text.len() <= bytes {
        return (text, false);
    }
    text.truncate(text.floor_char_boundary(bytes));
    (text, true)
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Message>,
    /// Where the older completions have their words.
    text: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Content>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

/// The words of a chat's or a completion's answer; `None` where it has none. Blocks where `body` is a file.
pub fn said(body: impl io::Read) -> Option<String> {
    let completion: Completion = serde_json::from_reader(BufReader::new(body)).ok()?;
    let first = completion.choices.into_iter().next()?;
    let Some(message) = first.message else { return first.text };
    match message.content {
        Some(Content::Text(text)) => Some(text),
        Some(Content::Parts(parts)) => Some(parts.into_iter().map(|part| part.text).collect()),
        None => message.refusal,
    }
}
