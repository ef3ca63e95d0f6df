//! Streams of an uplink that misbehaves: each way to do so, at each event, with another uplink behind or before it.
//!
//! Whoever asks gets a whole answer from somebody, or what came with an honest end; never half an answer as a whole one,
//! and nothing of a try that failed before its first content.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{Ask, Bench, Settings, chat_body, events, stream_text, until};

const WORDS: [&str; 3] = ["one ", "two ", "three"];
/// The role, the words, the finish reason, `[DONE]`.
const EVENTS: usize = WORDS.len() + 3;

/// How often, in all, a case may be tried again because the uplink was just being checked.
const TRIES: usize = 30;

/// What the uplink does after so many whole events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Ends the connection in good order.
    Ends,
    /// Breaks it.
    Resets,
    /// Reports an error as an event.
    Errs,
    /// Breaks off in the middle of an event.
    Tears,
    /// Goes on with a web page.
    Page,
    /// Says nothing more.
    Silent,
    /// Sends what only the sender needs, then goes on to the end.
    Chats,
    /// Goes on to the end byte by byte, with carriage returns.
    Crawls,
    /// Packs its answer, which nobody asked for.
    Packs,
    /// Sends ten thousand headers first.
    Heads,
    /// Calls what it sends a web page, and ends with one.
    Html,
}

/// Each time an uplink is called a page, what it did before shows that it is there.
const WAYS: [Way; 11] = [
    Way::Ends,
    Way::Resets,
    Way::Errs,
    Way::Tears,
    Way::Page,
    Way::Silent,
    Way::Chats,
    Way::Crawls,
    Way::Packs,
    Way::Heads,
    Way::Html,
];

/// Ways in which an uplink refuses without having answered: another may be asked, also where that one is crooked, too.
const REFUSALS: [(Way, usize); 3] = [(Way::Errs, 0), (Way::Html, 0), (Way::Errs, 1)];

/// How the caller's answer ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The crooked uplink's words, all of them.
    Whole,
    /// Another's whole answer.
    Another,
    /// The words that came, then an error.
    Broken,
}

/// What a caller has to get where the crooked uplink is asked first.
fn wanted(way: Way, whole_events: usize) -> End {
    let (has_content, is_finished) = (whole_events >= 2, whole_events == EVENTS - 1);
    match way {
        Way::Chats | Way::Crawls => End::Whole,
        Way::Packs | Way::Heads | Way::Html => End::Another,
        _ if !has_content => End::Another,
        // The model's last word has come: only the line's own end is missing.
        Way::Errs => End::Broken,
        _ if is_finished => End::Whole,
        _ => End::Broken,
    }
}

fn event(at: usize) -> String {
    let choice = match at {
        0 => json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}),
        n if n <= WORDS.len() => json!({"index": 0, "delta": {"content": WORDS[n - 1]}, "finish_reason": null}),
        n if n == EVENTS - 2 => json!({"index": 0, "delta": {}, "finish_reason": "stop"}),
        _ => return "data: [DONE]\n\n".to_owned(),
    };
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]});
    format!("data: {chunk}\n\n")
}

/// An uplink that does as its requests' texts say, each at its place in them; counts what reached its model.
struct Crooked {
    base_url: String,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for Crooked {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Crooked {
    async fn start(place: usize) -> Crooked {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A caller that goes away in the middle is none of its business.
                tokio::spawn(serve(stream, place, Arc::clone(&counter)));
            }
        });
        Crooked { base_url, asked, serving }
    }
}

async fn serve(mut stream: TcpStream, place: usize, asked: Arc<AtomicUsize>) -> std::io::Result<()> {
    let request = read_request(&mut stream).await?;
    let Some((_, body)) = request.split_once("\r\n\r\n").filter(|_| request.starts_with("POST")) else {
        let models = r#"{"object":"list","data":[{"id":"gpt-4o","object":"model","created":1,"owned_by":"x"}]}"#;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length:";
        return stream.write_all(format!("{head} {}\r\n\r\n{models}", models.len()).as_bytes()).await;
    };
    asked.fetch_add(1, Ordering::SeqCst);
    let body: Value = serde_json::from_str(body).unwrap();
    let text = body["messages"][0]["content"].as_str().unwrap().to_owned();
    let (way, at) = text.split(", ").nth(place).unwrap().split_once(' ').unwrap();
    let way = *WAYS.iter().find(|known| format!("{known:?}") == way).unwrap();
    misbehave(&mut stream, way, at.parse().unwrap()).await
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<String> {
    let (mut bytes, mut buffer) = (Vec::new(), [0u8; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.to_ascii_lowercase().lines().find_map(|line| {
                line.strip_prefix("content-length:").and_then(|length| length.trim().parse::<usize>().ok())
            });
            if body.len() >= length.unwrap_or(0) {
                return Ok(text);
            }
        }
        match stream.read(&mut buffer).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

async fn misbehave(stream: &mut TcpStream, way: Way, at: usize) -> std::io::Result<()> {
    let kind = if way == Way::Html { "text/html; charset=utf-8" } else { "text/event-stream" };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n");
    if way == Way::Heads {
        let headers = "x-more: 1\r\n".repeat(10_000);
        return stream.write_all(format!("{head}{headers}\r\n").as_bytes()).await;
    }
    if way == Way::Packs {
        stream.write_all(format!("{head}content-encoding: gzip\r\n\r\n").as_bytes()).await?;
        return stream.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8]).await;
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    let (before, after): (String, String) = ((0..at).map(event).collect(), (at..EVENTS).map(event).collect());
    stream.write_all(before.as_bytes()).await?;
    match way {
        Way::Errs => {
            stream.write_all(b"data: {\"error\":{\"message\":\"it broke\",\"code\":\"server_error\"}}\n\n").await
        }
        Way::Tears => stream.write_all(b"data: {\"id\":\"c\",\"choi").await,
        Way::Page | Way::Html => stream.write_all(b"<html><body>Bad gateway</body></html>\n\n").await,
        Way::Chats => {
            let own = "id: 7\nretry: 1\nevent: message\n: a comment\n\n\n:\n\n";
            stream.write_all(format!("{own}{after}").as_bytes()).await
        }
        Way::Crawls => {
            stream.set_nodelay(true)?;
            for byte in after.replace('\n', "\r\n").bytes() {
                stream.write_all(&[byte]).await?;
            }
            Ok(())
        }
        Way::Silent => {
            // Until the other side has had enough.
            stream.read(&mut [0u8; 1]).await.map(|_| ())
        }
        Way::Resets => stream.set_zero_linger(),
        _ => Ok(()),
    }
}

/// What is wrong with a stream that ended as it should; its form is the same whatever happened.
fn faults_of(body: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let data = events(body);
    for line in body.lines().filter(|line| !line.is_empty() && !line.starts_with("data: ") && *line != ": hf") {
        faults.push(format!("the line {line:?}"));
    }
    if data.last().map(String::as_str) != Some("[DONE]") || data.iter().filter(|data| *data == "[DONE]").count() != 1 {
        faults.push("not one [DONE] at its end".to_owned());
    }
    for event in data.iter().filter(|data| *data != "[DONE]") {
        if serde_json::from_str::<Value>(event).is_err() {
            faults.push(format!("an event that is no JSON: {event:?}"));
        }
    }
    let error = data.iter().position(|event| event.contains("\"error\":{"));
    if error.is_some_and(|at| at + 2 != data.len()) {
        faults.push("something after the error".to_owned());
    }
    faults
}

fn end_of(body: &str, words: &str) -> Option<End> {
    let (text, broken) = (stream_text(body), body.contains("\"error\":{"));
    let finished = body.contains("\"finish_reason\":\"stop\"");
    match (text == WORDS.concat() && finished, broken) {
        (true, false) => Some(End::Whole),
        (_, true) if text == words => Some(End::Broken),
        (false, false) if finished && text.contains(" answer to: ") && !text.contains("one ") => Some(End::Another),
        _ => None,
    }
}

/// Where the uplink stands whose ways are gone through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a good one.
    First,
    /// Behind a good one.
    Last,
    /// Between one that refuses crookedly and a good one.
    Between,
}

fn section(name: &str, priority: u32, crooked: &Crooked) -> String {
    format!(
        "[[uplink]]\nname = \"{name}\"\npriority = {priority}\nbase_url = \"{}\"\napi_keys = []\n\
         probe = {{ interval = \"100ms\", timeout = \"2s\", fall = 2, rise = 1 }}\n\
         breaker = {{ failures = 1000, open_for = \"100ms\" }}\n\
         timeouts = {{ connect = \"1s\", first_byte = \"1s\", idle = \"500ms\", total = \"20s\" }}\n",
        crooked.base_url
    )
}

/// Every case with the uplink at this place; what was wrong.
async fn matrix(place: Place) -> Vec<String> {
    let (crooked, refusing) = (Crooked::start(0).await, Crooked::start(1).await);
    let mut extra = section("crooked", if place == Place::Last { 9 } else { 0 }, &crooked);
    if place == Place::Between {
        // The configuration's order decides among equals.
        extra = section("refusing", 0, &refusing) + &extra;
    }
    let bench = Bench::with(Settings { extra, ..Settings::default() }).await;
    let mut wrong = Vec::new();
    let mut again = TRIES;
    let cases = (0..EVENTS).flat_map(|at| WAYS.into_iter().map(move |way| (way, at)));
    let mut cases = cases.zip(REFUSALS.into_iter().cycle()).peekable();
    while let Some(((way, at), (refusal, early))) = cases.peek().copied() {
        until("all uplinks to be seen", 20, || async {
            let uplinks = bench.daemon.status().await["uplinks"].clone();
            uplinks.as_array().unwrap().iter().all(|uplink| uplink["available"] == true).then_some(())
        })
        .await;
        let count = |uplink: &Crooked| uplink.asked.load(Ordering::SeqCst);
        let before = (count(&crooked), count(&refusing), bench.uplink.requests_total());
        let mut body = chat_body(&format!("{way:?} {at}, {refusal:?} {early}"));
        body["stream"] = true.into();
        let reply = bench.daemon.send(Ask::post("/v1/chat/completions", body.to_string())).await;
        let (asked, refused) = (count(&crooked) - before.0, count(&refusing) - before.1);
        let others = bench.uplink.requests_total() - before.2;
        let due = (usize::from(place != Place::Last), usize::from(place == Place::Between));
        if (asked < due.0 || refused < due.1) && again > 0 {
            // It was doubted at that moment because of the case before.
            again -= 1;
            continue;
        }
        cases.next();
        let text = reply.text();
        let mut faults = faults_of(&text);
        let end = if place == Place::Last { End::Another } else { wanted(way, at) };
        let words: String = WORDS.iter().take(at.saturating_sub(1)).copied().collect();
        if reply.status != 200 || end_of(&text, &words).as_ref() != Some(&end) {
            faults.push(format!("it should end {end:?}"));
        }
        let truncated = !matches!(way, Way::Errs | Way::Silent);
        if end == End::Broken && truncated && !text.contains("upstream_truncated") {
            faults.push("it does not say upstream_truncated".to_owned());
        }
        if (asked, refused) != due || others > 1 || (end != End::Another && others > 0) {
            faults.push(format!("{asked} sent to it, {refused} to the one before and {others} to the good one"));
        }
        if !faults.is_empty() {
            let route = reply.header("x-holdfast-route").to_owned();
            wrong.push(format!("{way:?} after {at}, {route} {}: {}\n{text}", reply.status, faults.join("; ")));
        }
    }
    wrong
}

#[tokio::test]
async fn a_crooked_stream_is_replaced_or_ends_honestly_at_every_event() {
    let wrong = matrix(Place::First).await;
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), WAYS.len() * EVENTS, wrong.join("\n"));
}

#[tokio::test]
async fn a_crooked_uplink_behind_a_good_one_is_not_asked() {
    let wrong = matrix(Place::Last).await;
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), WAYS.len() * EVENTS, wrong.join("\n"));
}

#[tokio::test]
async fn two_crooked_uplinks_in_a_row_are_no_worse_than_one() {
    let wrong = matrix(Place::Between).await;
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), WAYS.len() * EVENTS, wrong.join("\n"));
}
