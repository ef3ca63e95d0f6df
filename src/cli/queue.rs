//! `holdfast queue`: the backlog and the dead letters, through the daemon; `offline.rs` has what needs none.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use hyper::Method;
use serde_json::Value;

use super::Global;
use super::client::{Client, encoded};
use super::exit::{Done, Failure, IO, USAGE};
use super::offline::{self, Sink};
use super::out::{Out, age, clean, columns, count_at, number_at, text_at};
use crate::clock;
use crate::control::types::State;

const REQUESTS: &str = "/holdfast/v1/requests";

/// Records per page of an export: few enough to be quick, many enough that paging costs nothing.
const PAGE: u32 = 100;

/// What to do with stored requests.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List stored requests
    List(Filter),
    /// Show one request with its answers
    Show {
        /// The request's id
        id: String,
    },
    /// Put a request that ended without an answer (dead, cancelled, expired, evicted) back into the queue
    Retry {
        /// The request's id
        id: String,
    },
    /// Cancel a request that is not finished
    Cancel {
        /// The request's id
        id: String,
    },
    /// Delete finished requests of one state: the dead ones, if no other is named
    Purge {
        /// Which ones
        #[arg(long, default_value = "dead")]
        state: State,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Print every record with its answers, one JSON object per line
    Export {
        /// Read the data folder of a stopped daemon, a damaged one too; changes nothing
        #[arg(long)]
        offline: bool,
        /// Add each request's body in base64
        #[arg(long, requires = "offline")]
        bodies: bool,
        /// Write to this file instead of standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check the data folder of a stopped daemon; exit 1 where something is not in order
    Fsck {
        /// Set damaged files aside, save what can be read, and check again
        #[arg(long)]
        repair: bool,
    },
}

/// Which requests to list.
#[derive(Debug, Default, clap::Args)]
pub struct Filter {
    /// Only those in this state
    #[arg(long)]
    state: Option<State>,
    /// Only those of this source, e.g. uid:1000 or link:plc1
    #[arg(long)]
    source: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = PAGE)]
    limit: u32,
    /// Continue after this mark, which the page before named
    #[arg(long, value_name = "SEQ")]
    after: Option<String>,
}

/// Does what was asked.
pub async fn run(command: Command, global: &Global, client: &Client, out: &Out) -> Done {
    match command {
        Command::List(filter) => list(&filter, client, out).await,
        Command::Show { id } => show(&id, client, out).await,
        Command::Retry { id } => change(Method::POST, &id, "/retry", client, out).await,
        Command::Cancel { id } => change(Method::DELETE, &id, "", client, out).await,
        Command::Purge { state, yes } => purge(state, yes, client, out).await,
        Command::Export { offline: false, output, .. } => export(output.as_deref(), client, out).await,
        Command::Export { bodies, output, .. } => offline::export(bodies, output.as_deref(), global, out),
        Command::Fsck { repair } => offline::fsck(repair, global, out).await,
    }
}

async fn list(filter: &Filter, client: &Client, out: &Out) -> Done {
    let page = client.call(Method::GET, &query(filter)).await?;
    if out.json {
        out.json(&page)?;
        return Ok(0);
    }
    for line in table(&page, clock::unix_ms()) {
        out.line(&line)?;
    }
    if let Some(next) = next(&page) {
        out.note(&format!("there are more; continue with --after {next}"));
    }
    Ok(0)
}

fn query(filter: &Filter) -> String {
    let state = filter.state.map(|state| format!("&state={state}")).unwrap_or_default();
    let source = filter.source.as_deref().map(|source| format!("&source={}", encoded(source))).unwrap_or_default();
    let after = filter.after.as_deref().map(|after| format!("&after={}", encoded(after))).unwrap_or_default();
    format!("{REQUESTS}?limit={}{state}{source}{after}", filter.limit)
}

/// Heading and one line per request.
fn table(page: &Value, now_ms: u64) -> Vec<String> {
    let heading = ["ID", "STATE", "PRIORITY", "AGE", "TRIES", "SOURCE", "MODEL", "NOTE"].map(str::to_owned).to_vec();
    let row = |request: &Value| {
        let texts = |fields: [&str; 2]| fields.map(|field| text_at(request, field));
        let ([id, state], [source, model]) = (texts(["/id", "/state"]), texts(["/source", "/model"]));
        let created = number_at(request, "/created_at");
        let age = created.map_or("-".to_owned(), |created| age(now_ms as f64 / 1000.0 - created));
        let tries = count_at(request, "/attempts").to_string();
        let [reason, error] = texts(["/reason", "/last_error/message"]);
        let note = if reason.is_empty() { error } else { reason };
        vec![id, state, text_at(request, "/priority"), age, tries, source, model, note]
    };
    let rows: Vec<_> = std::iter::once(heading).chain(data(page).iter().map(row)).collect();
    columns(&rows)
}

async fn show(id: &str, client: &Client, out: &Out) -> Done {
    let text = record(id, client).await?;
    let request = serde_json::from_str(&text).ok().filter(|_| !out.json);
    let Some(request) = request else {
        out.line(&text)?;
        return Ok(0);
    };
    let mut lines = Vec::new();
    flatten("", &request, &mut lines);
    for line in lines {
        out.line(&line)?;
    }
    Ok(0)
}

/// A record as it came, on one line: an answer in it may be JSON that not every reader takes (half a surrogate pair, 1e400).
async fn record(id: &str, client: &Client) -> Result<String, Failure> {
    let answer = client.answer(Method::GET, &path(id)?).await?;
    Ok(String::from_utf8_lossy(&answer.body).replace(['\r', '\n'], " "))
}

/// `key: value` for every field that holds something; of an answer only its text.
fn flatten(key: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Null => {}
        Value::Object(fields) if key.ends_with("response") => {
            let answer = value.pointer("/choices/0/message/content").and_then(Value::as_str);
            let answer = answer.map_or_else(|| Value::Object(fields.clone()).to_string(), str::to_owned);
            lines.push(format!("{key}: {answer}"));
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&key, value, lines);
            }
        }
        Value::String(text) => lines.push(format!("{key}: {text}")),
        plain => lines.push(format!("{key}: {plain}")),
    }
}

async fn change(method: Method, id: &str, verb: &str, client: &Client, out: &Out) -> Done {
    let request = client.call(method, &format!("{}{verb}", path(id)?)).await?;
    if out.json {
        out.json(&request)?;
    }
    let state = text_at(&request, "/state");
    out.note(&if state.is_empty() { format!("{id}: done") } else { format!("{id}: {state}") });
    Ok(0)
}

async fn purge(state: State, yes: bool, client: &Client, out: &Out) -> Done {
    if !yes && !confirmed(state)? {
        out.note("nothing was deleted");
        return Ok(0);
    }
    let answer = client.call(Method::DELETE, &format!("{REQUESTS}?state={state}")).await?;
    if out.json {
        out.json(&answer)?;
    }
    out.note(&format!("{} deleted", count_at(&answer, "/purged")));
    Ok(0)
}

fn confirmed(state: State) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(USAGE, "purge deletes for good; add --yes where nobody can be asked"));
    }
    eprint!("Delete every request in state \"{state}\" with its answers? [y/N] ");
    let mut reply = String::new();
    let unreadable = |error| Failure::new(IO, format!("cannot read the reply: {error}"));
    std::io::stdin().read_line(&mut reply).map_err(unreadable)?;
    Ok(matches!(reply.trim(), "y" | "Y" | "yes"))
}

async fn export(file: Option<&Path>, client: &Client, out: &Out) -> Done {
    let mut sink = Sink::open(file)?;
    let mut filter = Filter { limit: PAGE, ..Filter::default() };
    loop {
        let page = client.call(Method::GET, &query(&filter)).await?;
        for request in data(&page) {
            let id = text_at(request, "/id");
            match record(&id, client).await {
                Ok(record) => sink.line(&record, out)?,
                // Results age out while the export runs; what is gone is said, and the rest still comes.
                Err(failure) if failure.message.contains("status 404") => out.note(&format!("{id}: no longer kept")),
                Err(failure) => return Err(failure),
            }
        }
        // A mark that does not move would never end.
        match next(&page) {
            Some(next) if filter.after.as_ref() != Some(&next) => filter.after = Some(next),
            _ => break,
        }
    }
    sink.finish()?;
    Ok(0)
}

fn data(page: &Value) -> &[Value] {
    page.get("data").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The mark behind which the next page begins.
fn next(page: &Value) -> Option<String> {
    let more = page.get("has_more").and_then(Value::as_bool) == Some(true);
    match page.get("next").filter(|_| more)? {
        Value::String(mark) => Some(clean(mark).into_owned()),
        Value::Number(mark) => Some(mark.to_string()),
        _ => None,
    }
}

fn path(id: &str) -> Result<String, Failure> {
    let fits = !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let refusal = || Failure::new(USAGE, format!("{id:?} is no request's id; \"holdfast queue list\" names them"));
    fits.then(|| format!("{REQUESTS}/{id}")).ok_or_else(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn filters_become_a_query() {
        let filter = Filter {
            state: Some(State::Dead),
            source: Some("link:a b".to_owned()),
            limit: 5,
            after: Some("17".to_owned()),
        };
        assert_eq!(query(&filter), "/holdfast/v1/requests?limit=5&state=dead&source=link%3Aa%20b&after=17");
    }

    #[test]
    fn a_page_becomes_a_table() {
        let page = json!({ "data": [
            { "id": "req_1", "state": "queued", "priority": "high", "created_at": 940, "attempts": 2,
              "source": "uid:0", "model": "gpt-4o", "last_error": { "message": "no\nroute" } },
            { "id": "req_2" },
        ]});
        let expected = [
            "ID     STATE   PRIORITY  AGE  TRIES  SOURCE  MODEL   NOTE",
            "req_1  queued  high      60s  2      uid:0   gpt-4o  no route",
            "req_2                    -    0",
        ];
        assert_eq!(table(&page, 1_000_000), expected);
    }

    #[test]
    fn a_record_is_flattened_to_what_it_holds() {
        let record = json!({ "id": "req_1", "reason": null, "attempts": 1,
            "uplink": { "name": "a", "response": { "choices": [{ "message": { "content": "hi" } }] } } });
        let mut lines = Vec::new();
        flatten("", &record, &mut lines);
        assert_eq!(lines, ["attempts: 1", "id: req_1", "uplink.name: a", "uplink.response: hi"]);
    }

    #[test]
    fn the_next_page_is_named_only_if_there_is_one() {
        assert_eq!(next(&json!({ "has_more": true, "next": "9" })), Some("9".to_owned()));
        assert_eq!(next(&json!({ "has_more": true, "next": 9 })), Some("9".to_owned()));
        assert_eq!(next(&json!({ "has_more": false, "next": "9" })), None);
    }

    #[test]
    fn an_id_cannot_leave_its_path() {
        assert_eq!(path("req_1").unwrap(), "/holdfast/v1/requests/req_1");
        for bad in ["", "../drain", "a?b", "a b"] {
            assert_eq!(path(bad).unwrap_err().code, USAGE);
        }
    }
}
