//! Canned prompts that small devices call by number: from arguments to a chat request, from an answer to a code, a
//! value and a short text.
//!
//! Owns templates, arguments and what an answer must look like. Pure but for reading schema files when it is built;
//! never sends, stores or logs anything, and no message of it repeats an argument or an answer.

mod agreement;
mod answer;
mod argument;
mod chat;
mod schema;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use crate::control::types::Policy;
pub use agreement::{Agreement, Rule};
pub use answer::{Reading, said};
pub use argument::{Argument, Kind};
pub use chat::{Filled, Piece};
use schema::Schema;
use template::Template;

/// Arguments of one task: what a device's frame holds.
pub const ARGUMENTS_MAX: usize = 16;
/// Bytes of one argument: what a device's frame holds.
pub const ARGUMENT_BYTES_MAX: usize = 240;
/// Pictures of one request: more would not fit a small model's context.
pub const PICTURES_MAX: u32 = 4;
/// Bytes of an answer's text: what a device's buffer is asked to hold at most.
pub const ANSWER_BYTES_MAX: u32 = 8 * 1024;
/// An uplink's whole answer to a task may be this long; a longer one does not fit.
pub const WHOLE_BYTES_MAX: u64 = 256 * 1024;

/// One task as the configuration has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The number devices use.
    pub id: u16,
    /// For people; may be empty.
    pub name: String,
    /// The model asked.
    pub model: String,
    /// The system prompt, as it is; may be empty.
    pub system: String,
    /// The prompt, with `{names}` for the arguments.
    pub prompt: String,
    /// A JSON Schema for the answer.
    pub schema_file: Option<PathBuf>,
    /// What a request gets while no uplink is available; where nothing is said, what every request of its door gets.
    pub offline: Option<Policy>,
    /// The longest text that is handed on, in bytes.
    pub max_answer: u32,
    /// The arguments in order; none: the prompt's names in the order in which they first stand there.
    pub args: Vec<Argument>,
    /// How many pictures may come along.
    pub pictures: u32,
    /// Field or JSON pointer of the answer that becomes the code; empty: `code`, where the schema has it.
    pub code: String,
    /// The same for the value.
    pub value: String,
    /// The same for the text.
    pub text: String,
    /// Codes of answers that are words.
    pub codes: BTreeMap<String, i32>,
}

/// What is wrong with a task's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The key it stands under.
    pub key: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// Why a call of a task is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The argument's name; `args` or `images` where it is their number.
    pub argument: String,
    /// What is wrong and what to do; never the value itself.
    pub message: String,
}

/// Arguments as they came.
#[derive(Debug, Clone, Copy)]
pub enum Args<'a> {
    /// In the task's order.
    Positional(&'a [String]),
    /// By name.
    Named(&'a BTreeMap<String, String>),
}

/// What kind of picture comes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picture {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    Webp,
    /// GIF.
    Gif,
}

impl Picture {
    /// Its media type.
    pub fn mime(self) -> &'static str {
        match self {
            Picture::Jpeg => "image/jpeg",
            Picture::Png => "image/png",
            Picture::Webp => "image/webp",
            Picture::Gif => "image/gif",
        }
    }

    /// The kind with this media type.
    pub fn of_mime(mime: &str) -> Option<Picture> {
        let all = [Picture::Jpeg, Picture::Png, Picture::Webp, Picture::Gif];
        all.into_iter().find(|picture| picture.mime().eq_ignore_ascii_case(mime))
    }
}

/// A task that holds.
#[derive(Debug)]
pub struct Task {
    options: Options,
    template: Template,
    args: Vec<Argument>,
    schema: Option<Schema>,
}

impl Task {
    /// Checks a task; every fault at once. Reads its schema file.
    pub fn new(options: Options) -> Result<Task, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let template = Template::parse(&options.prompt).unwrap_or_else(|message| {
            wrong.push(Wrong { key: "prompt", message });
            Template::default()
        });
        let args = argument::declared(&options, &template, &mut wrong);
        let schema = schema::load(&options, &mut wrong);
        if !options.name.is_empty() && options.name.bytes().all(|b| b.is_ascii_digit()) {
            let message = "a name of digits alone would be taken for a number; add a letter".to_owned();
            wrong.push(Wrong { key: "name", message });
        }
        if wrong.is_empty() { Ok(Task { options, template, args, schema }) } else { Err(wrong) }
    }

    /// The number devices use.
    pub fn id(&self) -> u16 {
        self.options.id
    }

    /// As it was configured.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Its arguments in order.
    pub fn args(&self) -> &[Argument] {
        &self.args
    }

    /// Whether its answers must fit a schema.
    pub fn has_schema(&self) -> bool {
        self.schema.is_some()
    }

    /// The chat request for these arguments and pictures.
    pub fn fill(&self, args: Args<'_>, pictures: &[Picture]) -> Result<Filled, Fault> {
        let values = argument::check(&self.args, args)?;
        let allowed = self.options.pictures as usize;
        if pictures.len() > allowed {
            let message = format!("task {} takes at most {allowed} pictures, got {}", self.id(), pictures.len());
            return Err(Fault { argument: "images".to_owned(), message });
        }
        let named: BTreeMap<&str, &str> =
            self.args.iter().map(|a| a.name.as_str()).zip(values.iter().copied()).collect();
        Ok(chat::body(&self.options, &self.template.fill(&named), self.schema.as_ref(), pictures))
    }

    /// What an answer's text says.
    pub fn read(&self, text: &str) -> Reading {
        answer::read(&self.options, self.schema.as_ref(), text)
    }
}

/// All tasks.
#[derive(Debug, Default)]
pub struct Book {
    tasks: Vec<Task>,
}

impl Book {
    /// Checks all tasks; the faults with the number of their task.
    pub fn new(all: Vec<Options>) -> Result<Book, Vec<(u16, Wrong)>> {
        let (mut tasks, mut wrong) = (Vec::new(), Vec::new());
        for options in all {
            let id = options.id;
            match Task::new(options) {
                Ok(task) => tasks.push(task),
                Err(faults) => wrong.extend(faults.into_iter().map(|fault| (id, fault))),
            }
        }
        if wrong.is_empty() { Ok(Book { tasks }) } else { Err(wrong) }
    }

    /// All tasks in the order of the configuration.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The task with this number.
    pub fn get(&self, id: u16) -> Option<&Task> {
        self.tasks.iter().find(|task| task.id() == id)
    }

    /// Whether two answers to a request (made from this task) say the same, and what that was told by. Blocks where
    /// one is a file.
    pub fn compare(&self, task: Option<u16>, local: impl io::Read, uplink: impl io::Read) -> (Agreement, Option<Rule>) {
        let (Some(local), Some(uplink)) = (said(local), said(uplink)) else { return (Agreement::Unknown, None) };
        let (agreement, rule) = agreement::compare(&local, &uplink, task.and_then(|task| self.get(task)));
        (agreement, Some(rule))
    }

    /// The task with this number or name.
    pub fn find(&self, which: &str) -> Option<&Task> {
        match which.parse() {
            Ok(id) => self.get(id),
            Err(_) => self.tasks.iter().find(|task| !which.is_empty() && task.options.name == which),
        }
    }
}
