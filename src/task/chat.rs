//! The chat request of a filled task, in pieces: the pictures' places are left open.
//!
//! Owns its JSON. Pictures are put in by whoever has them, so that none is copied here.

use bytes::Bytes;
use serde_json::Value;

use super::schema::Schema;
use super::{Options, Picture};
use crate::control::types::Policy;

/// Where a task's request goes.
const ENDPOINT: &str = "/v1/chat/completions";
/// Fewer would make the request look like somebody's health probe, and cut every answer.
const TOKENS_MIN: u32 = 16;
/// What the names and braces of a JSON answer take beside its text.
const TOKENS_FRAME: u32 = 256;

/// A request ready to be sent or stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled {
    /// The path it is for.
    pub endpoint: &'static str,
    /// The model it asks.
    pub model: String,
    /// Its body, in order.
    pub pieces: Vec<Piece>,
    /// What it gets while no uplink is available, where the task says so.
    pub policy: Option<Policy>,
    /// The longest text handed on, in bytes.
    pub max_answer: u32,
}

/// A part of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Json(Bytes),
    /// The base64 of the picture with this index.
    Picture(usize),
}

/// The body for this prompt.
pub(super) fn body(options: &Options, prompt: &str, schema: Option<&Schema>, pictures: &[Picture]) -> Filled {
    let mut pieces = Vec::new();
    let mut json = format!("{{\"model\":{},\"messages\":[", quoted(&options.model));
    if !options.system.is_empty() {
        json += &format!("{{\"role\":\"system\",\"content\":{}}},", quoted(&options.system));
    }
    json += "{\"role\":\"user\",\"content\":";
    if pictures.is_empty() {
        json += &quoted(prompt);
    } else {
        json += &format!("[{{\"type\":\"text\",\"text\":{}}}", quoted(prompt));
        for (index, picture) in pictures.iter().enumerate() {
            let mime = picture.mime();
            json += &format!(",{{\"type\":\"image_url\",\"image_url\":{{\"url\":\"data:{mime};base64,");
            pieces.push(Piece::Json(std::mem::take(&mut json).into()));
            pieces.push(Piece::Picture(index));
            json += "\"}}";
        }
        json.push(']');
    }
    let frame = if schema.is_some() { TOKENS_FRAME } else { 0 };
    // A token is at least one byte, so an answer that is short enough is never cut by this.
    let tokens = (options.max_answer + frame).max(TOKENS_MIN);
    json += &format!("}}],\"max_tokens\":{tokens}");
    if let Some(schema) = schema {
        json += &format!(
            ",\"response_format\":{{\"type\":\"json_schema\",\"json_schema\":{{\"name\":\"task_{}\",\"strict\":{},\
             \"schema\":{}}}}}",
            options.id, schema.strict, schema.text
        );
    }
    json.push('}');
    pieces.push(Piece::Json(json.into()));
    Filled {
        endpoint: ENDPOINT,
        model: options.model.clone(),
        pieces,
        policy: options.offline,
        max_answer: options.max_answer,
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
