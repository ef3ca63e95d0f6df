//! `holdfast ask --task N`: a canned prompt from a shell, to try what a device will get.
//!
//! Standard output carries the text; code and value go to standard error, all of it with `--json`.

use bytes::Bytes;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::super::client::{Answer, Client, encoded, refusal};
use super::super::exit::{Done, FAILED, Failure, STORED, USAGE};
use super::super::out::{Out, text_at};
use super::{Args, about, sent, ticket};

/// Calls the task and prints what came of it.
pub(super) async fn run(task: &str, args: &Args, images: &[String], client: &Client, out: &Out) -> Done {
    let body = json!({ "args": arguments(task, args, client).await?, "images": images }).to_string();
    let path = format!("/holdfast/v1/tasks/{}", encoded(task));
    let answer = sent(client, args, &path, Bytes::from(body)).await?;
    print(&answer.whole().await?, out)
}

/// The named ones, and the text as the first of the others.
async fn arguments(task: &str, args: &Args, client: &Client) -> Result<Value, Failure> {
    let mut named = Map::new();
    for arg in &args.named {
        let (name, value) = arg.split_once('=').ok_or_else(|| {
            Failure::new(USAGE, format!("--arg {arg}: write the argument's name, an equals sign and its value"))
        })?;
        named.insert(name.to_owned(), json!(value));
    }
    match &args.text {
        None => Ok(Value::Object(named)),
        Some(text) if named.is_empty() => Ok(json!([text])),
        Some(text) => {
            let answer = client.stream(Method::GET, "/holdfast/v1/tasks", &[], Bytes::new()).await?.whole().await?;
            let tasks = answer.success()?.json()?;
            // Where no argument is left for the text, the daemon says so.
            let first = first_unnamed(&tasks, task, &named).unwrap_or_else(|| "text".to_owned());
            named.insert(first, json!(text));
            Ok(Value::Object(named))
        }
    }
}

fn first_unnamed(tasks: &Value, which: &str, named: &Map<String, Value>) -> Option<String> {
    let number = which.parse::<u64>().ok();
    let is_it = |task: &&Value| number.map_or(task["name"] == which, |number| task["id"] == number);
    let task = tasks["data"].as_array()?.iter().find(is_it)?;
    let mut all = task["args"].as_array()?.iter().filter_map(|arg| arg["name"].as_str());
    all.find(|name| !named.contains_key(*name)).map(str::to_owned)
}

fn print(answer: &Answer, out: &Out) -> Done {
    let json = answer.json().unwrap_or(Value::Null);
    let stored = answer.status == 202 || text_at(&json, "/error/code") == "request_queued";
    if out.json {
        out.line(&String::from_utf8_lossy(&answer.body))?;
    }
    if stored {
        let ticket = ticket(answer, &json);
        if !out.json {
            out.line(&ticket)?;
        }
        out.note(&format!("stored, no answer yet; look with: holdfast queue show {ticket}"));
        return Ok(STORED);
    }
    if answer.status != 200 {
        return Err(refusal(answer.status, &answer.body));
    }
    if !out.json {
        out.line(&text_at(&json, "/text"))?;
    }
    about(answer.header("x-holdfast-route"), answer.header("x-holdfast-id"), answer.header("x-holdfast-state"), out);
    if text_at(&json, "/status") == "ok" {
        out.note(&format!("code {}, value {}", json["code"], json["value"]));
        return Ok(0);
    }
    Err(Failure::new(FAILED, "twice the answer was not what the task asks for; look at its schema and its prompt"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_first_argument_that_has_no_value() {
        let tasks = json!({"data": [{"id": 7, "name": "weld", "args": [{"name": "temp"}, {"name": "amps"}]}]});
        let named = json!({"temp": "1"}).as_object().unwrap().clone();
        assert_eq!(first_unnamed(&tasks, "weld", &named).as_deref(), Some("amps"));
        assert_eq!(first_unnamed(&tasks, "7", &Map::new()).as_deref(), Some("temp"));
        assert_eq!(first_unnamed(&tasks, "8", &named), None);
    }
}
