//! What Prometheus reads: its own text format, every metric of the dashboard, sane to `promtool` where that is installed.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Ask, Bench, Daemon, Settings, until};

const DASHBOARD: &str = include_str!("../../docs/grafana.json");

/// Shows with the first thing it counts: its labels are what was asked and who answered.
const LATER: [&str; 1] = ["holdfast_agreement_total"];

/// Families that the dashboard shows, by the names of their samples.
fn shown() -> BTreeSet<&'static str> {
    let begins = DASHBOARD.match_indices("holdfast_").map(|(at, _)| &DASHBOARD[at..]);
    let name =
        |text: &'static str| &text[..text.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(text.len())];
    begins.map(name).map(|name| name.strip_suffix("_bucket").unwrap_or(name)).collect()
}

/// What promtool says of it; nothing where there is no promtool (Debian: apt-get install prometheus).
fn promtool(text: &str) -> Option<String> {
    let mut tool = Command::new("promtool");
    tool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = tool.spawn().ok()?;
    running.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&said).into_owned() + if output.status.success() { "" } else { "failed" })
}

#[tokio::test]
async fn health_is_a_line_for_plug_ins_and_an_object_for_scripts() {
    let mut bench = Bench::offline(Settings::without_local()).await;
    bench.daemon.send(Ask::chat("waits").header("prefer", "respond-async")).await;
    let (code, line) = bench.daemon.tool(&["health", "--warn", "0"]).await;
    assert!(code == 1 && line.starts_with("HOLDFAST WARNING - offline, 1 requests wait | backlog=1;0;;0"), "{line}");
    let object = async |daemon: &Daemon| {
        let (code, text) = daemon.tool(&["--json", "health", "--warn", "0"]).await;
        (code, serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error} in {text}")))
    };
    let (code, health) = object(&bench.daemon).await;
    assert_eq!((code, &health["health"], &health["exit_code"]), (1, &json!("warning"), &json!(1)), "{health}");
    assert_eq!((&health["state"], &health["backlog"]["count"]), (&json!("offline"), &json!(1)), "{health}");
    assert_eq!((&health["warn"], &health["crit"]), (&json!(0), &Value::Null), "{health}");
    assert!(bench.daemon.stop().await.success());
    let (code, health) = object(&bench.daemon).await;
    assert_eq!((code, &health["health"], &health["state"]), (2, &json!("critical"), &Value::Null), "{health}");
}

/// The value of one sample; 0 where it is not there.
async fn count(bench: &Bench, sample: &str) -> u64 {
    let text = bench.daemon.get("/metrics").await.text();
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn who_is_turned_away_before_being_read_is_counted_once() {
    let bench = Bench::start().await;
    let turned = async |code: &str| {
        count(&bench, &format!("holdfast_requests_total{{route=\"none\",outcome=\"{code}\"}}")).await
    };
    for (ask, status, code) in [
        (Ask::post("/v1/chat/completions", "{"), 400, "invalid_json"),
        (Ask::form("/v1/chat/completions", "{}", "image/png"), 415, "unsupported_media_type"),
        (Ask::post("/nowhere", "{}"), 404, "unknown_path"),
        (Ask::post("/health", "{}"), 405, "method_not_allowed"),
        (Ask::post("/holdfast/v1/requests/%ff/retry", "{}"), 400, "invalid_path"),
        (Ask::chat("hello").header("x-holdfast-ttl", "soon"), 400, "invalid_header"),
    ] {
        let before = turned(code).await;
        bench.daemon.send(ask).await.assert_error(status, code);
        assert_eq!(turned(code).await, before + 1, "{code}");
    }
    // Whoever looks and finds nothing asked for no answer.
    bench.daemon.get("/holdfast/v1/requests/req_none").await.assert_error(404, "request_not_found");
    assert_eq!(turned("request_not_found").await, 0);
    // The local model's own paths are requests, too.
    let local = "holdfast_requests_total{route=\"local\",outcome=\"ok\"}";
    assert_eq!(count(&bench, local).await, 0);
    bench.daemon.get("/api/tags").await;
    assert_eq!(count(&bench, local).await, 1);
}

#[tokio::test]
async fn a_backlog_that_nothing_sends_has_no_time_to_drain() {
    let bench = Bench::offline(Settings::without_local()).await;
    let seconds = async || bench.daemon.status().await["backlog"]["seconds_to_drain"].clone();
    assert_eq!(seconds().await, json!(0), "nothing waits");
    for number in 0..3 {
        bench.daemon.send(Ask::chat(&format!("waits {number}")).header("prefer", "respond-async")).await;
    }
    assert_eq!(seconds().await, Value::Null);
    // A pace was seen once: it says nothing of the time after it.
    bench.recover().await;
    until("the backlog to drain", 30, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    let paused = bench.daemon.send(Ask::post("/holdfast/v1/pause", "")).await;
    assert_eq!(paused.json()["paused"], true);
    bench.daemon.send(Ask::chat("waits too").header("prefer", "respond-async")).await;
    assert_eq!(seconds().await, Value::Null);
    let told = bench.daemon.send(Ask::post("/holdfast/v1/drain", "")).await.json();
    assert_eq!((&told["draining"], &told["waiting"]), (&json!(false), &json!(1)), "{told}");
    let (code, said) = bench.daemon.tool(&["drain"]).await;
    assert!(code == 0 && !said.contains("draining"), "{said}");
}

#[tokio::test]
async fn a_page_that_holds_the_last_ones_says_so() {
    let bench = Bench::offline(Settings::without_local()).await;
    for number in 0..4 {
        bench.daemon.send(Ask::chat(&format!("waits {number}")).header("prefer", "respond-async")).await;
    }
    for (limit, shown, more) in [(3, 3, true), (4, 4, false), (5, 4, false), (0, 0, false)] {
        let page = bench.daemon.get(&format!("/holdfast/v1/requests?limit={limit}")).await.json();
        assert_eq!(page["data"].as_array().unwrap().len(), shown, "{limit}");
        assert_eq!((page["has_more"] == true, page["next"].is_string()), (more, more), "{limit}");
    }
}

#[tokio::test]
async fn metrics_are_sound_and_the_dashboard_shows_what_there_is() {
    let link = "[[link]]\nname = \"cell\"\nsocket = \"@DIR@/cell.sock\"\nprotocol = \"frames\"\n".to_owned();
    let bench = Bench::with(Settings { extra: link, ..Settings::default() }).await;
    bench.daemon.send(Ask::chat("hello")).await;
    let reply = bench.daemon.get("/metrics").await;
    assert!(reply.header("content-type").starts_with("text/plain; version=0.0.4"), "{}", reply.header("content-type"));
    let text = reply.text();
    assert!(
        !text.contains("# EOF") && text.contains("holdfast_requests_total{route=\"uplink\",outcome=\"ok\"} 1"),
        "{text}"
    );
    assert!(text.contains("holdfast_uplink_health{uplink=\"sim\",health=\"healthy\"} 1"), "{text}");
    let names = shown();
    assert!(names.len() > 12, "{names:?}");
    for name in names.into_iter().filter(|name| !LATER.contains(name)) {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} is on the dashboard and not measured:\n{text}");
    }
    let sum =
        text.lines().find_map(|line| line.strip_prefix("holdfast_request_duration_seconds_sum{route=\"uplink\"} "));
    let sum: f64 = sum.unwrap().parse().unwrap();
    assert!(sum > 0.0 && (sum * 1e3).fract() != 0.0, "cut to milliseconds: {sum}");
    if let Some(said) = promtool(&text) {
        // The one name that is not ours to choose.
        let unit = "ai_gateway_latency_ms metric names should not contain abbreviated units";
        let rest: Vec<&str> = said.trim_end_matches("failed").lines().filter(|line| *line != unit).collect();
        assert!(rest.is_empty(), "{rest:?}");
    }
}
