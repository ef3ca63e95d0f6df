//! The arguments of a task: which there are, and whether what came fits them.
//!
//! Refuses at the door, with the argument's name and never its value.

use super::template::{Template, is_name};
use super::{ARGUMENT_BYTES_MAX, ARGUMENTS_MAX, Args, Fault, Options, Wrong};
use crate::control::types::words;

/// What an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A number with a point, not a comma.
    Number,
    /// A number without a fraction.
    Integer,
}
words!(Kind { Text => "text", Number => "number", Integer => "integer" });

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 3] = [Kind::Text, Kind::Number, Kind::Integer];
}

/// One argument as declared.
#[derive(Debug, Clone, PartialEq)]
pub struct Argument {
    /// As it stands in the prompt.
    pub name: String,
    /// What it must be.
    pub kind: Kind,
    /// The smallest number allowed.
    pub min: Option<f64>,
    /// The largest number allowed.
    pub max: Option<f64>,
}

impl Argument {
    /// Any text under this name.
    pub fn text(name: &str) -> Argument {
        Argument { name: name.to_owned(), kind: Kind::Text, min: None, max: None }
    }
}

/// The declared arguments, else the prompt's names.
pub(super) fn declared(options: &Options, template: &Template, wrong: &mut Vec<Wrong>) -> Vec<Argument> {
    let mut fault = |key, message: String| wrong.push(Wrong { key, message });
    let names = template.names();
    let args = match options.args.as_slice() {
        [] => names.iter().map(|name| Argument::text(name)).collect(),
        declared => declared.to_vec(),
    };
    for (index, arg) in args.iter().enumerate() {
        let name = &arg.name;
        if !is_name(name) {
            fault("args", format!("argument {} needs a name of letters, digits and _, a letter first", index + 1));
        } else if args[..index].iter().any(|earlier| earlier.name == *name) {
            fault("args", format!("\"{name}\" stands there twice"));
        }
        if (arg.min.is_some() || arg.max.is_some()) && arg.kind == Kind::Text {
            fault("args", format!("\"{name}\": min and max are for type = \"number\" or \"integer\""));
        }
        if arg.min.zip(arg.max).is_some_and(|(min, max)| min > max) {
            fault("args", format!("\"{name}\": min is above max"));
        }
    }
    for name in names.iter().filter(|name| args.iter().all(|arg| arg.name != **name)) {
        let known: Vec<&str> = args.iter().map(|arg| arg.name.as_str()).collect();
        fault("prompt", format!("{{{name}}} is none of args ({})", known.join(", ")));
    }
    if args.len() > ARGUMENTS_MAX {
        let key = if options.args.is_empty() { "prompt" } else { "args" };
        fault(key, format!("a task has at most {ARGUMENTS_MAX} arguments, this one has {}", args.len()));
    }
    args
}

fn fault(argument: &str, message: String) -> Fault {
    Fault { argument: argument.to_owned(), message }
}

/// The values in the order of the declaration.
pub(super) fn check<'a>(declared: &[Argument], args: Args<'a>) -> Result<Vec<&'a str>, Fault> {
    let mut values = Vec::new();
    match args {
        Args::Positional(given) => {
            if let Some(missing) = declared.get(given.len()) {
                let message = format!("\"{}\" is missing: {}", missing.name, expected(declared));
                return Err(fault(&missing.name, message));
            }
            if given.len() > declared.len() {
                return Err(fault("args", format!("{} arguments are too many: {}", given.len(), expected(declared))));
            }
            values.extend(given.iter().map(String::as_str));
        }
        Args::Named(given) => {
            if let Some(unknown) = given.keys().find(|name| declared.iter().all(|arg| arg.name != **name)) {
                // Only what could be a name is repeated: the rest may be anything.
                let name = if is_name(unknown) { unknown } else { "args" };
                return Err(fault(name, format!("an argument that this task does not have: {}", expected(declared))));
            }
            for arg in declared {
                let missing = || fault(&arg.name, format!("\"{}\" is missing: {}", arg.name, expected(declared)));
                values.push(given.get(&arg.name).ok_or_else(missing)?.as_str());
            }
        }
    }
    declared.iter().zip(&values).try_for_each(|(arg, value)| arg.check(value))?;
    Ok(values)
}

fn expected(declared: &[Argument]) -> String {
    match declared {
        [] => "it takes none".to_owned(),
        _ => format!("it takes {}", declared.iter().map(|arg| arg.name.as_str()).collect::<Vec<_>>().join(", ")),
    }
}

impl Argument {
    fn check(&self, value: &str) -> Result<(), Fault> {
        let name = &self.name;
        if value.len() > ARGUMENT_BYTES_MAX {
            let message = format!("\"{name}\" has {} bytes; at most {ARGUMENT_BYTES_MAX} are taken", value.len());
            return Err(fault(name, message));
        }
        let number = match self.kind {
            Kind::Text => return Ok(()),
            Kind::Number => value.trim().parse::<f64>().ok().filter(|number| number.is_finite()),
            Kind::Integer => value.trim().parse::<i64>().ok().map(|number| number as f64),
        };
        let number = number.ok_or_else(|| fault(name, format!("\"{name}\" must be {}", self.kind.article())))?;
        if self.min.is_some_and(|min| number < min) {
            return Err(fault(name, format!("\"{name}\" is below {}", self.min.unwrap_or_default())));
        }
        if self.max.is_some_and(|max| number > max) {
            return Err(fault(name, format!("\"{name}\" is above {}", self.max.unwrap_or_default())));
        }
        Ok(())
    }
}

impl Kind {
    fn article(self) -> &'static str {
        match self {
            Kind::Text => "a text",
            Kind::Number => "a number such as 23.5",
            Kind::Integer => "a whole number",
        }
    }
}
