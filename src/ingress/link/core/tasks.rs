//! The seam to canned prompts: from a task's number to a request, and from an answer to a code, a value and a text.
//!
//! Owns the shapes only; whoever has the tasks fills them in.

use bytes::Bytes;
use holdfast_wire::Code;

use crate::control::types::Policy;

/// A request that is ready to be stored, its pictures' places left open.
#[derive(Debug, Clone)]
pub struct Filled {
    /// The path it is for.
    pub endpoint: &'static str,
    /// The model it asks.
    pub model: String,
    /// Its body, in order.
    pub pieces: Vec<Piece>,
    /// What it gets while no uplink is available; `None` leaves that to the link.
    pub policy: Option<Policy>,
    /// The longest text of its answer in bytes; 0 for the gateway's limit.
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

/// What an answer says.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Whether it is what the task asked for.
    pub fits: bool,
    /// For programs.
    pub code: i32,
    /// A measured or guessed value.
    pub value: f32,
    /// For people.
    pub text: String,
    /// The text is not all of it.
    pub cut: bool,
}

/// Who has the tasks.
pub trait Tasks: Send + Sync {
    /// The request that a task makes of these arguments and media types of pictures.
    fn fill(&self, id: u16, args: &[String], pictures: &[&'static str]) -> Result<Filled, (Code, String)>;

    /// What the words of an answer to a task say; `None` where there is no such task any more.
    fn read(&self, id: u16, answer: &str) -> Option<Reading>;
}

/// A gateway without tasks.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTasks;

impl Tasks for NoTasks {
    fn fill(&self, _: u16, _: &[String], _: &[&'static str]) -> Result<Filled, (Code, String)> {
        Err((Code::UnknownTask, "no such task here".to_owned()))
    }

    fn read(&self, _: u16, _: &str) -> Option<Reading> {
        None
    }
}
