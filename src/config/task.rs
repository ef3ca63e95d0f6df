//! `[[task]]`: canned prompts that devices call by number.
//!
//! Owns the keys; what makes a task fit to be used is the room `task`'s to say.

use std::path::{Path, PathBuf};

use super::extras::unique;
use super::walk::Table;
use crate::control::types::Policy;
use crate::task::{ANSWER_BYTES_MAX, Argument, Kind, Options, PICTURES_MAX, Task};

/// What a task is built from.
pub use crate::task::Options as TaskOptions;

/// Bounds of what an argument's range may say.
const NUMBER_MAX: f64 = 1e15;

pub(super) fn tasks(root: &mut Table<'_>) -> Vec<Options> {
    let tasks = root.tables("task", 0, task);
    unique(root, "task", "id", tasks.iter().map(|task| task.id.to_string()));
    unique(root, "task", "name", tasks.iter().map(|task| task.name.clone()));
    tasks
}

fn task(t: &mut Table<'_>) -> Options {
    if !t.given("id") {
        t.fault("id", "missing; write the number devices use, such as id = 3");
    }
    let options = Options {
        id: t.count("id", 0, 0..=65_535) as u16,
        name: t.text("name", ""),
        model: t.text("model", "gpt-4o"),
        system: t.text("system", ""),
        prompt: t.required("prompt", "write what the model is asked"),
        schema_file: t.path("schema_file", "").map(|path| beside(t, &path)),
        offline: t.given("offline").then(|| t.word("offline", Policy::Both)),
        max_answer: t.count("max_answer", 200, 1..=ANSWER_BYTES_MAX),
        args: args(t),
        pictures: t.count("pictures", PICTURES_MAX, 0..=PICTURES_MAX),
        code: t.text("code", ""),
        value: t.text("value", ""),
        text: t.text("text", ""),
        codes: t.numbers("codes"),
    };
    if let Err(wrong) = Task::new(options.clone()) {
        for wrong in wrong {
            t.fault(wrong.key, wrong.message);
        }
    }
    options
}

/// A file that is named without a folder stands beside the configuration that names it.
fn beside(t: &Table<'_>, path: &Path) -> PathBuf {
    match t.file_of("schema_file").as_deref().and_then(|file| Path::new(file).parent()) {
        Some(folder) => folder.join(path),
        None => path.to_owned(),
    }
}

/// Names, or tables where more is said about each.
fn args(t: &mut Table<'_>) -> Vec<Argument> {
    if t.holds_tables("args") {
        t.tables("args", 0, arg)
    } else {
        t.list("args", "temp", |name| Ok(Argument::text(name)))
    }
}

fn arg(t: &mut Table<'_>) -> Argument {
    Argument {
        name: t.required("name", "write the argument's name as it stands in the prompt"),
        kind: t.word("type", Kind::Text),
        min: bound(t, "min"),
        max: bound(t, "max"),
    }
}

fn bound(t: &mut Table<'_>, name: &'static str) -> Option<f64> {
    if t.given(name) {
        return Some(t.number(name, 0.0, -NUMBER_MAX..=NUMBER_MAX));
    }
    t.ask(name);
    None
}
