//! What lines say: the verbs of a PLC and of the gateway, as fields or as JSON.
//!
//! Owns the fields of each verb and which of them is wrong. Knows no rule of when a verb is said.

use holdfast_wire::Code;
use holdfast_wire::message::{ARG_BYTES_MAX, ARGS_MAX};
use serde_json::{Map, Value, json};

use super::line::{self, Content, Fault, Said, ascii, escaped};

/// Longest key.
pub const KEY_BYTES_MAX: usize = 20;
/// Longest name of a device.
pub const UID_BYTES_MAX: usize = 16;
/// Digits reserved for a part's number and for how many there are.
const PART_DIGITS: usize = 7;
/// The version that is spoken.
pub const VERSION: u32 = 1;

/// What a PLC says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Who it is.
    Hello {
        /// Its name for ever.
        uid: String,
    },
    /// A task to be done.
    Submit {
        /// What it calls the request.
        key: String,
        /// 0 critical to 3 low.
        prio: u8,
        /// Seconds; 0 for the default.
        ttl_s: u32,
        /// The task's number.
        task: u16,
        /// Its arguments.
        args: Vec<String>,
    },
    /// It has a result up to this part.
    ResultAck {
        /// Of which request.
        key: String,
        /// The highest part it has.
        part: u32,
    },
    /// Where a request stands.
    Query {
        /// Which.
        key: String,
    },
    /// Not wanted any more.
    Cancel {
        /// Which.
        key: String,
    },
    /// Is anybody there?
    Ping {
        /// To be sent back.
        nonce: u32,
    },
}

/// Why a line that came whole is refused; the key where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// What it calls the request; may be empty.
    pub key: String,
    /// Why.
    pub code: Code,
}

/// Verbs that only the gateway says.
const OWN: [&str; 7] = ["HLA", "ACK", "NAK", "RES", "STA", "CNA", "PON"];

/// Whether the gateway said it: a two-wire adapter or a terminal sends everything back, and so it would do with an answer.
pub fn is_own(content: &Content) -> bool {
    match &content.said {
        Said::Fields(fields) => fields.first().is_some_and(|verb| OWN.contains(&verb.as_str())),
        Said::Json(json) => fields_of(json).is_some_and(|fields| OWN.contains(&fields[0].as_str())),
    }
}

/// Reads a line's content.
pub fn read(content: &Content) -> Result<Asked, Wrong> {
    let fields = match &content.said {
        Said::Fields(fields) => fields,
        // What is no JSON has no verb.
        Said::Json(json) => &fields_of(json).unwrap_or_default(),
    };
    match content.fault {
        None => read_fields(fields),
        Some(Fault::Unreadable) => Err(Wrong { key: named(fields), code: Code::BadPayload }),
        Some(Fault::TooLong) => Err(Wrong { key: named(fields), code: Code::TooLarge }),
    }
}

/// The key of verb and fields, where they have one.
fn named(fields: &[String]) -> String {
    match fields {
        [verb, key, ..] if is_keyed(verb) && is_key(key) => key.clone(),
        _ => String::new(),
    }
}

fn is_keyed(verb: &str) -> bool {
    matches!(verb, "SUB" | "RAK" | "QRY" | "CAN")
}

fn read_fields(all: &[String]) -> Result<Asked, Wrong> {
    let key = named(all);
    let wrong = |code| Wrong { key: named(all), code };
    let bad = || wrong(Code::BadPayload);
    let (verb, fields) = all.split_first().ok_or_else(bad)?;
    if is_keyed(verb) && key.is_empty() {
        return Err(bad());
    }
    match (verb.as_str(), fields) {
        ("HLO", [version, uid, _epoch]) => {
            if number::<u32>(version) != Some(VERSION) {
                return Err(wrong(Code::Version));
            }
            is_uid(uid).then(|| Asked::Hello { uid: uid.clone() }).ok_or_else(bad)
        }
        ("SUB", [_, prio, ttl, task, args @ ..]) => {
            if args.len() > ARGS_MAX || args.iter().any(|arg| arg.len() > ARG_BYTES_MAX) {
                return Err(wrong(Code::TooLarge));
            }
            let prio = number(prio).ok_or_else(bad)?;
            let ttl_s = number(ttl).ok_or_else(bad)?;
            let task = number(task).ok_or_else(bad)?;
            Ok(Asked::Submit { key, prio, ttl_s, task, args: args.to_vec() })
        }
        ("RAK", [_, part]) => Ok(Asked::ResultAck { key, part: number(part).ok_or_else(bad)? }),
        ("QRY", [_]) => Ok(Asked::Query { key }),
        ("CAN", [_]) => Ok(Asked::Cancel { key }),
        ("PNG", [nonce]) => Ok(Asked::Ping { nonce: number(nonce).ok_or_else(bad)? }),
        ("HLO" | "SUB" | "RAK" | "QRY" | "CAN" | "PNG", _) => Err(bad()),
        _ => Err(wrong(Code::Unknown)),
    }
}

/// `{"VERB":{…}}`: verb and fields in their order.
fn fields_of(json: &str) -> Option<Vec<String>> {
    let value: Map<String, Value> = serde_json::from_str(json).ok()?;
    let (verb, said) = value.iter().next().filter(|_| value.len() == 1)?;
    let said = said.as_object()?;
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let field = |name: &str, default: &str| said.get(name).map_or_else(|| default.to_owned(), text);
    let mut fields = match verb.as_str() {
        "HLO" => vec![field("version", "1"), field("uid", ""), field("epoch", "0")],
        "SUB" => vec![field("key", ""), field("prio", "2"), field("ttl", "0"), field("task", "")],
        "RAK" => vec![field("key", ""), field("part", "1")],
        "QRY" | "CAN" => vec![field("key", "")],
        "PNG" => vec![field("nonce", "0")],
        _ => Vec::new(),
    };
    if verb == "SUB" {
        fields.extend(said.get("args").and_then(Value::as_array).into_iter().flatten().map(text));
    }
    fields.insert(0, verb.clone());
    Some(fields)
}

fn number<T: std::str::FromStr>(field: &str) -> Option<T> {
    // A sign is no digit, although Rust reads "+5".
    field.bytes().all(|b| b.is_ascii_digit()).then(|| field.parse().ok())?
}

/// Whether a key may be so.
pub fn is_key(key: &str) -> bool {
    (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Whether a device's name may be so.
pub fn is_uid(uid: &str) -> bool {
    (1..=UID_BYTES_MAX).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_graphic())
}

/// A result in the parts that fit into lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parted {
    key: String,
    status: u8,
    source: u8,
    code: i32,
    /// Escaped already.
    parts: Vec<String>,
    is_json: bool,
}

impl Parted {
    /// Splits a text so that each line has at most `limit` bytes.
    pub fn new(key: &str, (status, source, code): (u8, u8, i32), text: &str, limit: usize, is_json: bool) -> Parted {
        let mut parted = Parted { key: key.to_owned(), status, source, code, parts: Vec::new(), is_json };
        let frame = parted.content(1, 1, "").len() - "1/1".len() + PART_DIGITS;
        // The shortest line that can be configured holds the longest key and some text.
        let room = line::room(limit).saturating_sub(frame).max(1);
        let mut part = String::new();
        for c in ascii(text).chars() {
            let c = if is_json { json_escaped(c) } else { escaped(c) };
            if part.len() + c.len() > room && !part.is_empty() {
                parted.parts.push(std::mem::take(&mut part));
            }
            part.push_str(c);
        }
        parted.parts.push(part);
        parted
    }

    /// How many there are; at least one.
    pub fn parts(&self) -> u32 {
        self.parts.len() as u32
    }

    /// The line of one part, counted from 1; the last one where there are fewer.
    pub fn line(&self, part: u32) -> Vec<u8> {
        let part = part.clamp(1, self.parts());
        let text = self.parts.get(part as usize - 1).map_or("", String::as_str);
        line::framed(&self.content(part, self.parts(), text), self.is_json)
    }

    fn content(&self, part: u32, parts: u32, text: &str) -> String {
        let Parted { key, status, source, code, .. } = self;
        if self.is_json {
            return format!(
                "{{\"RES\":{{\"key\":\"{key}\",\"status\":{status},\"source\":{source},\"code\":{code},\
                 \"part\":\"{part}/{parts}\",\"text\":\"{text}\"}}}}"
            );
        }
        format!("RES,{key},{status},{source},{code},{part}/{parts},{text}")
    }
}

fn json_escaped(c: char) -> &'static str {
    match c {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\n' => "\\n",
        // All others stand in JSON as they are.
        ',' => ",",
        '*' => "*",
        '$' => "$",
        '%' => "%",
        c => escaped(c),
    }
}

/// What the gateway says beside results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// To a Hello: our boot, the uplinks, Unix seconds.
    Hello(u32, u8, u64),
    /// Stored: key, request, whether it was before.
    Ack(String, u64, bool),
    /// Refused: key, code, seconds until it makes sense again.
    Nak(String, Code, u32),
    /// Where it stands: key, state, position, seconds.
    State(String, u8, u64, u64),
    /// What became of a Cancel: key, outcome.
    Cancelled(String, u8),
    /// To a Ping: nonce, our boot, the uplinks, Unix seconds.
    Pong(u32, u32, u8, u64),
}

impl Told {
    /// As a whole line.
    pub fn line(&self, is_json: bool) -> Vec<u8> {
        let content = if is_json { self.json().to_string() } else { self.fields() };
        line::framed(&content, is_json)
    }

    fn fields(&self) -> String {
        match self {
            Told::Hello(boot, uplink, unix_s) => format!("HLA,{VERSION},{boot},{uplink},{unix_s}"),
            Told::Ack(key, request, again) => format!("ACK,{key},{request},{}", u8::from(*again)),
            Told::Nak(key, code, retry_s) => format!("NAK,{key},{},{retry_s}", code.number()),
            Told::State(key, state, position, eta_s) => format!("STA,{key},{state},{position},{eta_s}"),
            Told::Cancelled(key, outcome) => format!("CNA,{key},{outcome}"),
            Told::Pong(nonce, boot, uplink, unix_s) => format!("PON,{nonce},{boot},{uplink},{unix_s}"),
        }
    }

    fn json(&self) -> Value {
        match self {
            Told::Hello(boot, uplink, unix_s) => {
                json!({"HLA": {"version": VERSION, "boot": boot, "uplink": uplink, "time": unix_s}})
            }
            Told::Ack(key, request, again) => {
                json!({"ACK": {"key": key, "request": request, "again": u8::from(*again)}})
            }
            Told::Nak(key, code, retry_s) => json!({"NAK": {"key": key, "code": code.number(), "retry": retry_s}}),
            Told::State(key, state, position, eta_s) => {
                json!({"STA": {"key": key, "state": state, "position": position, "eta": eta_s}})
            }
            Told::Cancelled(key, outcome) => json!({"CNA": {"key": key, "outcome": outcome}}),
            Told::Pong(nonce, boot, uplink, unix_s) => {
                json!({"PON": {"nonce": nonce, "boot": boot, "uplink": uplink, "time": unix_s}})
            }
        }
    }
}
