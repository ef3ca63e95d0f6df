//! `holdfast config check` and `config show`: needs no daemon.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::Global;
use super::exit::{CONFIG, Done, Failure};
use super::out::{Mood, Out, clean};
use crate::config::{self, Fault, Faults, Loaded, Origin, Shown};

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Report every fault, each with file, line and key
    Check {
        /// The file to check; without it the one that would be used
        file: Option<PathBuf>,
    },
    /// Print the effective configuration and where each value came from
    Show,
}

/// Checks or shows.
pub fn run(command: &Command, global: &Global, out: &Out) -> Done {
    let named = match command {
        Command::Check { file } => file.as_deref().or(global.config()),
        Command::Show => global.config(),
    };
    match config::load(named, config::environment()) {
        Err(faults) => refuse(&faults, out),
        Ok(loaded) if matches!(command, Command::Show) => show(&loaded, out),
        Ok(loaded) => {
            let (hidden, missing): (Vec<_>, Vec<_>) =
                loaded.unusable_files().into_iter().partition(|(_, why)| *why == ErrorKind::PermissionDenied);
            if !missing.is_empty() {
                return refuse(&Faults(missing.into_iter().map(|(fault, _)| fault).collect()), out);
            }
            // The service's own user may read what this one may not.
            for (fault, _) in &hidden {
                out.note(&format!("note: {}", clean(&fault.to_string())));
            }
            approve(&loaded, out)
        }
    }
}

fn refuse(faults: &Faults, out: &Out) -> Done {
    if out.json {
        out.json(&json!({ "ok": false, "faults": faults.0.iter().map(fault_json).collect::<Vec<_>>() }))?;
        return Err(Failure::new(CONFIG, ""));
    }
    for fault in &faults.0 {
        out.fault(&fault.to_string());
    }
    let count = faults.0.len();
    Err(Failure::new(CONFIG, format!("the configuration has {count} fault{}", if count == 1 { "" } else { "s" })))
}

fn approve(loaded: &Loaded, out: &Out) -> Done {
    for model in loaded.models_without_price() {
        out.note(&format!(
            "note: nobody knows the price of {}: under [budget] it counts as 15 USD a million tokens in and 75 out; \
             give its own in [[model]]",
            clean(&model)
        ));
    }
    for (uplink, why) in loaded.files_without_key() {
        out.note(&format!("note: uplink {}: {}; with no other key nothing is sent there", clean(&uplink), clean(&why)));
    }
    if out.json {
        out.json(&json!({ "ok": true, "files": loaded.files }))?;
    }
    let files: Vec<String> = loaded.files.iter().map(|file: &PathBuf| Path::display(file).to_string()).collect();
    let files = if files.is_empty() { "built-in defaults".to_owned() } else { files.join(", ") };
    out.note(&format!("{files}: the configuration holds"));
    Ok(0)
}

fn show(loaded: &Loaded, out: &Out) -> Done {
    if out.json {
        let entries = loaded.origins.iter();
        let entry =
            |shown: &Shown| json!({ "key": shown.key, "value": shown.value, "origin": shown.origin.to_string() });
        out.json(&Value::Array(entries.map(entry).collect()))?;
        return Ok(0);
    }
    let mut text = String::new();
    for shown in &loaded.origins {
        let origin = format!("# {}", shown.origin);
        let mood = if shown.origin == Origin::Default { Mood::Faint } else { Mood::Good };
        let setting = format!("{} = {}", clean(&shown.key), clean(&toml(&shown.value)));
        let _ = writeln!(text, "{setting:<50}  {}", out.paint(mood, &origin));
    }
    out.raw(&text)?;
    Ok(0)
}

/// A value as a file would spell it.
fn toml(value: &Value) -> String {
    match value {
        Value::Array(members) => format!("[{}]", members.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| format!("{} = {}", json!(name), toml(value));
            format!("{{ {} }}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        plain => plain.to_string(),
    }
}

fn fault_json(fault: &Fault) -> Value {
    let (file, line) = match &fault.origin {
        Origin::File { file, line } => (Some(file.to_string()), Some(*line).filter(|line| *line > 0)),
        _ => (None, None),
    };
    let environment = match &fault.origin {
        Origin::Environment(name) => Some(name),
        _ => None,
    };
    json!({ "file": file, "line": line, "column": fault.column, "environment": environment,
            "key": fault.key, "message": fault.message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_spelled_as_in_a_file() {
        assert_eq!(toml(&json!("a \"b\"")), r#""a \"b\"""#);
        assert_eq!(toml(&json!(["a", 1])), r#"["a", 1]"#);
        assert_eq!(toml(&json!({ "gpt-4o": "x" })), r#"{ "gpt-4o" = "x" }"#);
        assert_eq!((toml(&json!({})), toml(&json!(0.2))), ("{}".to_owned(), "0.2".to_owned()));
    }

    #[test]
    fn a_fault_is_machine_readable_too() {
        let origin = Origin::File { file: "a.toml".into(), line: 3 };
        let fault = Fault { origin, column: None, key: "queue.ttl".to_owned(), message: "no".to_owned() };
        let json = fault_json(&fault);
        assert_eq!((&json["file"], &json["line"], &json["key"]), (&json!("a.toml"), &json!(3), &json!("queue.ttl")));
    }
}
