//! `holdfast health`: the monitoring plug-ins' one line and exit code (0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN).
//!
//! A disk that takes nothing more and the backlog's thresholds judge: a gateway that is offline and stores is doing its work.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::client::Client;
use super::exit::{CONFIG, Done, Failure, PERMISSION};
use super::out::{Out, count_at, number_at, text_at};

/// A status comes from memory. The Monitoring Plugins' own checks give up after ten seconds (their `-t`); this says why before that.
const PATIENCE: Duration = Duration::from_secs(8);

/// `health`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// WARNING if more requests than this wait
    #[arg(long, value_name = "N")]
    warn: Option<u64>,
    /// CRITICAL if more requests than this wait
    #[arg(long, value_name = "N")]
    crit: Option<u64>,
}

/// Asks and judges.
pub async fn run(args: &Args, client: Result<Client, Failure>, out: &Out) -> Done {
    let status = match client {
        Ok(client) => client.within(PATIENCE, client.call(Method::GET, "/holdfast/v1/status")).await,
        Err(failure) => Err(failure),
    };
    let (code, words) = judge(args, &status);
    if out.json {
        out.json(&in_json(args, status.as_ref().unwrap_or(&Value::Null), code, &words))?;
    } else {
        out.line(&format!("HOLDFAST {words}"))?;
    }
    Ok(code)
}

/// The same for scripts: what the plug-ins' line says, and the figures as the status names them.
fn in_json(args: &Args, status: &Value, code: u8, words: &str) -> Value {
    let (verdict, rest) = words.split_once(" - ").unwrap_or(("", words));
    let message = rest.rsplit_once(" | backlog=").map_or(rest, |(message, _)| message);
    json!({
        "health": verdict.to_ascii_lowercase(),
        "exit_code": code,
        "message": message,
        "state": status.get("state"),
        "storage": status.get("storage"),
        "backlog": status.get("backlog"),
        "warn": args.warn,
        "crit": args.crit,
    })
}

fn judge(args: &Args, status: &Result<Value, Failure>) -> (u8, String) {
    let status = match status {
        Ok(status) if status.get("backlog").is_some() => status,
        Ok(_) => return (3, "UNKNOWN - the daemon's status has no backlog; is it a holdfast?".to_owned()),
        // Whether it runs cannot be seen from outside the door, or without knowing where that is.
        Err(failure) if matches!(failure.code, PERMISSION | CONFIG) => {
            return (3, format!("UNKNOWN - {}", failure.message));
        }
        Err(failure) => return (2, format!("CRITICAL - {}", failure.message)),
    };
    let count = count_at(status, "/backlog/count");
    let above = |limit: Option<u64>| limit.is_some_and(|limit| count > limit);
    let storage = text_at(status, "/storage");
    let (code, verdict) = match (above(args.warn), above(args.crit) || !storage.is_empty()) {
        (_, true) => (2, "CRITICAL"),
        (true, false) => (1, "WARNING"),
        (false, false) => (0, "OK"),
    };
    let limit = |limit: Option<u64>| limit.map(|limit| limit.to_string()).unwrap_or_default();
    let (warn, crit) = (limit(args.warn), limit(args.crit));
    let bytes = count_at(status, "/backlog/bytes");
    let oldest = number_at(status, "/backlog/oldest_age_s").unwrap_or(0.0);
    let state = text_at(status, "/state");
    let metrics = format!("backlog={count};{warn};{crit};0 backlog_bytes={bytes}B oldest_age={oldest}s");
    let storage = if storage.is_empty() { storage } else { format!("; {storage}") };
    (code, format!("{verdict} - {state}, {count} requests wait{storage} | {metrics}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::NO_DAEMON;

    #[test]
    fn thresholds_decide() {
        let status = Ok(json!({ "state": "offline", "backlog": { "count": 12, "bytes": 99, "oldest_age_s": 7 } }));
        let judged = |warn, crit| judge(&Args { warn, crit }, &status);
        let line = "OK - offline, 12 requests wait | backlog=12;;;0 backlog_bytes=99B oldest_age=7s";
        assert_eq!(judged(None, None), (0, line.to_owned()));
        assert_eq!(judged(Some(12), Some(20)).0, 0);
        assert_eq!(judged(Some(11), Some(20)).0, 1);
        let (code, words) = judged(Some(5), Some(11));
        assert!(code == 2 && words.contains("backlog=12;5;11;0"), "{words}");
    }

    #[test]
    fn a_disk_that_takes_nothing_is_critical() {
        let backlog = json!({ "count": 0, "bytes": 0, "oldest_age_s": 0 });
        let full = json!({ "state": "online", "storage": "the disk is full", "backlog": backlog });
        let (code, words) = judge(&Args { warn: Some(1), crit: Some(2) }, &Ok(full));
        assert!(code == 2 && words.starts_with("CRITICAL - online, 0 requests wait; the disk is full |"), "{words}");
    }

    #[test]
    fn scripts_get_the_verdict_the_words_and_the_figures_apart() {
        let args = Args { warn: Some(1), crit: None };
        let shown = |status: &Result<Value, Failure>| {
            let (code, words) = judge(&args, status);
            in_json(&args, status.as_ref().unwrap_or(&Value::Null), code, &words)
        };
        let status = json!({ "state": "offline", "backlog": { "count": 2, "bytes": 9, "oldest_age_s": 7 } });
        let wanted = json!({ "health": "warning", "exit_code": 1, "message": "offline, 2 requests wait", "state": "offline",
            "storage": null, "backlog": status["backlog"], "warn": 1, "crit": null });
        assert_eq!(shown(&Ok(status)), wanted);
        let gone = shown(&Err(Failure::new(NO_DAEMON, "no - daemon | here")));
        assert_eq!((&gone["health"], &gone["message"]), (&json!("critical"), &json!("no - daemon | here")));
        assert_eq!((&gone["exit_code"], &gone["backlog"]), (&json!(2), &Value::Null));
    }

    #[test]
    fn no_daemon_is_critical_and_no_permission_is_unknown() {
        let none = Args { warn: None, crit: None };
        assert_eq!(judge(&none, &Err(Failure::new(NO_DAEMON, "no"))), (2, "CRITICAL - no".to_owned()));
        assert_eq!(judge(&none, &Err(Failure::new(PERMISSION, "no"))).0, 3);
        assert_eq!(judge(&none, &Ok(Value::Null)).0, 3);
    }
}
