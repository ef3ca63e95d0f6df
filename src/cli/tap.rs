//! `holdfast tap`: events as they happen, one line each; bodies only where somebody asks for them.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use super::client::{Client, PATIENCE, refusal};
use super::exit::{Done, Failure, NO_DAEMON};
use super::out::{Out, clean};

/// The daemon says something every fifteen seconds, and be it a comment. Longer silence: it hangs.
const SILENCE_MAX: Duration = Duration::from_mins(1);

/// `tap`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show the beginnings of requests and answers, too (4 KiB each, no pictures); local socket only
    #[arg(long)]
    pub bodies: bool,
}

/// Follows until the daemon ends or somebody interrupts.
pub async fn run(args: &Args, client: &Client, out: &Out) -> Done {
    let wish = [("accept", "text/event-stream".to_owned())];
    if args.bodies {
        out.note(
            "warning: this shows what is asked and answered; take care where it is kept, and end it when you are done",
        );
    }
    let path = if args.bodies { "/holdfast/v1/events?bodies=1" } else { "/holdfast/v1/events" };
    let mut stream = client.within(PATIENCE, client.stream(Method::GET, path, &wish, Bytes::new())).await?;
    if stream.status != 200 {
        let answer = stream.whole().await?;
        return Err(refusal(answer.status, &answer.body));
    }
    let mut kind = String::new();
    while let Some(line) = client.within(SILENCE_MAX, stream.line()).await? {
        if let Some(name) = line.strip_prefix("event:") {
            name.trim().clone_into(&mut kind);
        } else if let Some(data) = line.strip_prefix("data:").map(str::trim) {
            out.line(&if out.json { data.to_owned() } else { readable(&kind, data) })?;
        } else if line.is_empty() {
            kind.clear();
        }
    }
    Err(Failure::new(NO_DAEMON, "the daemon ended the events; it was stopped or restarted"))
}

/// `kind key=value key=value`.
fn readable(kind: &str, data: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(data) else {
        return format!("{kind} {data}").trim().to_owned();
    };
    let field = |(name, value): (&String, &Value)| match value {
        Value::Null => None,
        Value::String(text) if !text.is_empty() && !text.contains(char::is_whitespace) => {
            Some(format!("{name}={text}"))
        }
        other => Some(format!("{name}={other}")),
    };
    let words =
        Some(kind.to_owned()).filter(|kind| !kind.is_empty()).into_iter().chain(fields.iter().filter_map(field));
    clean(&words.collect::<Vec<_>>().join(" ")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let data = r#"{"id":"req_1","state":"queued","reason":null,"note":"two\nlines","n":3}"#;
        assert_eq!(readable("request", data), r#"request id=req_1 n=3 note="two\nlines" state=queued"#);
        assert_eq!(readable("", "plain"), "plain");
    }

    /// Time goes on by itself while nothing else does.
    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_hangs_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("hung.sock");
        let _hung = tokio::net::UnixListener::bind(&socket).unwrap();
        let ended =
            run(&Args { bodies: false }, &Client::new(socket), &Out::plain()).await.expect_err("nobody answers");
        assert_eq!((ended.code, ended.message.contains("does not answer")), (NO_DAEMON, true), "{}", ended.message);
    }
}
