//! `holdfast queue fsck` and `holdfast queue export --offline`: the data folder of a stopped daemon.
//!
//! Owns what people read of it. Refuses beside a live daemon, and changes nothing unless `--repair` says so.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::json;

use super::Global;
use super::exit::{CONFIG, Done, FAILED, Failure, IO, PERMISSION};
use super::out::Out;
use crate::config::{self, Settings};
use crate::supervisor::SupervisorError;
use crate::supervisor::offline::{self, Finding};

/// Checks, and with `repair` mends and checks again.
pub async fn fsck(repair: bool, global: &Global, out: &Out) -> Done {
    let settings = settings(global)?;
    let (mut findings, mut whole) = offline::check(&settings).map_err(failure)?;
    if repair && !findings.is_empty() {
        tell(&findings, out)?;
        offline::repair(&settings).await.map_err(failure)?;
        out.note("repaired; checking again");
        (findings, whole) = offline::check(&settings).map_err(failure)?;
    }
    tell(&findings, out)?;
    let faults = findings.len();
    if out.json {
        out.json(&json!({ "summary": true, "requests_whole": whole, "faults": faults }))?;
    } else {
        let word = if faults == 0 { "in order".to_owned() } else { format!("{faults} not in order") };
        out.line(&format!("{whole} requests can be read; {word}"))?;
    }
    Ok(if faults == 0 { 0 } else { FAILED })
}

fn tell(findings: &[Finding], out: &Out) -> io::Result<()> {
    for finding in findings {
        if out.json {
            let (id, seq) = (&finding.id, finding.seq);
            out.json(&json!({ "id": id, "seq": seq, "what": finding.what, "why": finding.why }))?;
        } else {
            out.line(&words(finding))?;
        }
    }
    Ok(())
}

fn words(finding: &Finding) -> String {
    let who = match (&finding.id, finding.seq) {
        (Some(id), _) => format!("{id}: "),
        (None, Some(seq)) => format!("request {seq}, its id is lost: "),
        (None, None) => String::new(),
    };
    format!("{who}{}: {}", finding.what, finding.why)
}

/// Prints every request that is left, one JSON object a line; 1 where something is lost.
pub fn export(bodies: bool, file: Option<&Path>, global: &Global, out: &Out) -> Done {
    let settings = settings(global)?;
    let mut sink = Sink::open(file)?;
    let mut written = Ok(());
    let lost = offline::export(&settings, bodies, &mut |line| {
        written = sink.line(line, out);
        written.is_ok()
    });
    written.and_then(|()| sink.finish())?;
    let lost = lost.map_err(failure)?;
    for finding in &lost {
        out.note(&words(finding));
    }
    Ok(if lost.is_empty() { 0 } else { FAILED })
}

/// Where exported lines go: standard output, or a file that is private from its first byte.
pub struct Sink(Option<BufWriter<std::fs::File>>);

impl Sink {
    /// Opens the file, where one is named; an older one of that name is replaced.
    pub fn open(file: Option<&Path>) -> Result<Sink, Failure> {
        let open = |path: &Path| {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
            file.map_err(|error| Failure::new(IO, format!("cannot write {}: {error}", path.display())))
        };
        Ok(Sink(file.map(open).transpose()?.map(BufWriter::new)))
    }

    /// One record.
    pub fn line(&mut self, text: &str, out: &Out) -> io::Result<()> {
        match &mut self.0 {
            Some(file) => writeln!(file, "{text}"),
            None => out.line(text),
        }
    }

    /// Everything is on its way to the disk.
    pub fn finish(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), Write::flush)
    }
}

pub(super) fn settings(global: &Global) -> Result<Settings, Failure> {
    let loaded = config::load(global.config(), config::environment());
    Ok(loaded.map_err(|faults| Failure::new(CONFIG, faults.to_string()))?.settings)
}

/// A running daemon is no fault of the folder: the code is not 1, which says that something is not in order.
#[allow(clippy::needless_pass_by_value, reason = "a step of `map_err`")]
pub(super) fn failure(error: SupervisorError) -> Failure {
    let code = match error {
        SupervisorError::Configuration(_) => CONFIG,
        SupervisorError::Permission(_) => PERMISSION,
        SupervisorError::Io(_) | SupervisorError::Spool(_) | SupervisorError::Folder { .. } => IO,
    };
    Failure::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_what_it_can() {
        let finding = |id: Option<&str>, seq| Finding {
            id: id.map(str::to_owned),
            seq,
            what: "body",
            why: "its body is damaged".into(),
        };
        assert_eq!(words(&finding(Some("req_1"), Some(4))), "req_1: body: its body is damaged");
        assert_eq!(words(&finding(None, Some(4))), "request 4, its id is lost: body: its body is damaged");
        assert_eq!(words(&finding(None, None)), "body: its body is damaged");
    }
}
