//! The answer cache: what comes from it, what never does, and one send for identical requests.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use holdfast::cli::simulate::{Faults, Mode};
use serde_json::{Value, json};

use crate::support::{Ask, Bench, Reply, Settings, chat_body, events, listening, refusing, stream_text, until, within};

fn cached(lines: &str) -> Settings {
    Settings { cache: lines.to_owned(), ..Settings::default() }
}

async fn bench() -> Bench {
    Bench::with(cached("ttl = \"5m\"")).await
}

/// The same where the uplink takes its time, and its probe's too.
async fn slow_bench() -> Bench {
    Bench::with(Settings { patient: true, ..cached("ttl = \"5m\"") }).await
}

/// A chat whose answer is always the same.
fn exact(user: &str) -> Value {
    let mut body = chat_body(user);
    body["temperature"] = json!(0);
    body
}

fn ask(body: &Value) -> Ask {
    Ask::post("/v1/chat/completions", body.to_string())
}

fn how(reply: &Reply) -> (u16, &str, &str) {
    (reply.status, reply.header("x-cache"), reply.header("x-holdfast-route"))
}

const HIT: (u16, &str, &str) = (200, "HIT", "cache");
const MISS: (u16, &str, &str) = (200, "MISS", "uplink:sim");
const NEITHER: (u16, &str, &str) = (200, "", "uplink:sim");

async fn metric(bench: &Bench, name: &str) -> u64 {
    let text = bench.daemon.get("/metrics").await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or(0)
}

fn kept_files(bench: &Bench) -> Vec<PathBuf> {
    let files = std::fs::read_dir(bench.daemon.data().join("cache")).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

/// Waits until so many answers are on the disk: a file is there before what is in it.
async fn on_disk(bench: &Bench, files: usize) {
    let is_written = |file: &PathBuf| std::fs::metadata(file).is_ok_and(|about| about.len() > 0);
    until("answers on the disk", 10, || async {
        let kept = kept_files(bench);
        (kept.len() == files && kept.iter().all(is_written)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_same_question_is_sent_and_paid_once() {
    let bench = bench().await;
    let first = bench.daemon.send(ask(&exact("same"))).await;
    assert_eq!(how(&first), MISS);
    let spent = metric(&bench, "holdfast_tokens_total{uplink=\"sim\",direction=\"in\"}").await;
    assert!(spent > 0);
    let second = bench.daemon.send(ask(&exact("same"))).await;
    assert_eq!(how(&second), HIT);
    assert_eq!(second.body, first.body);
    assert_eq!(second.header("content-type"), "application/json");
    assert!(second.header("age").parse::<u64>().is_ok());
    let laid_out = " {\n \"temperature\" : 0 , \"messages\":[{\"content\":\"same\", \"role\":\"user\"}],\t\"model\":\"gpt-4o\"}\r\n";
    assert_eq!(how(&bench.daemon.send(Ask::post("/v1/chat/completions", laid_out)).await), HIT);
    assert_eq!(how(&bench.daemon.send(ask(&exact("another"))).await), MISS);
    assert_eq!(bench.answered("same"), 1);
    let other = metric(&bench, "holdfast_tokens_total{uplink=\"sim\",direction=\"in\"}").await;
    assert!(other > spent && other < 3 * spent, "a hit was counted as tokens: {spent} {other}");
    assert_eq!(metric(&bench, "holdfast_cache_total{result=\"hit\"}").await, 2);
    assert_eq!(metric(&bench, "holdfast_cache_total{result=\"miss\"}").await, 2);
    assert_eq!(metric(&bench, "holdfast_requests_total{route=\"cache\",outcome=\"ok\"}").await, 2);
    let status = bench.daemon.status().await;
    assert_eq!(status["cache"], json!({"enabled": true, "entries": 2, "bytes": 8192}));
    assert_eq!(metric(&bench, "holdfast_cache_entries").await, 2);
    assert_eq!(metric(&bench, "holdfast_cache_bytes").await, 8192);
}

#[tokio::test]
async fn switched_off_nothing_is_kept_or_shared() {
    let bench = Bench::start().await;
    for _ in 0..2 {
        assert_eq!(how(&bench.daemon.send(ask(&exact("off"))).await), NEITHER);
    }
    assert_eq!(bench.answered("off"), 2);
    assert!(!bench.daemon.data().join("cache").exists());
}

#[tokio::test]
async fn only_what_is_answered_the_same_comes_from_it() {
    let bench = bench().await;
    let twice = async |ask: Ask, expected: [(u16, &str, &str); 2]| {
        for expected in expected {
            assert_eq!(how(&bench.daemon.send(ask.clone()).await), expected, "{ask:?}");
        }
    };
    twice(Ask::chat("no temperature"), [NEITHER; 2]).await;
    let warm = json!({"model": "gpt-4o", "temperature": 0.7, "messages": [{"role": "user", "content": "warm"}]});
    twice(ask(&warm), [NEITHER; 2]).await;
    twice(ask(&warm).header("x-holdfast-cache", "on"), [MISS, HIT]).await;
    twice(ask(&exact("refused")).header("x-holdfast-cache", "off"), [NEITHER; 2]).await;
    twice(ask(&exact("not stored")).header("cache-control", "no-store"), [NEITHER; 2]).await;
    twice(ask(&exact("anew")).header("cache-control", "no-cache"), [MISS; 2]).await;
    twice(ask(&exact("anew")), [HIT; 2]).await;
    let embeddings = json!({"model": "e", "input": "words"}).to_string();
    twice(Ask::post("/v1/embeddings", embeddings), [MISS, HIT]).await;
    let legacy = json!({"model": "gpt-4o", "prompt": "legacy", "temperature": 0.0}).to_string();
    twice(Ask::post("/v1/completions", legacy), [MISS, HIT]).await;
    let mut several = exact("several");
    several["n"] = json!(2);
    twice(ask(&several), [MISS, HIT]).await;
    let wrong = bench.daemon.send(ask(&exact("x")).header("x-holdfast-cache", "maybe")).await;
    wrong.assert_error(400, "invalid_header");
}

#[tokio::test]
async fn answers_that_are_cut_call_tools_or_fail_are_not_kept() {
    let bench = bench().await;
    let mut cut = exact("a text that is cut after two words");
    cut["max_tokens"] = json!(2);
    let mut tools = exact("please use the tool");
    tools["tools"] = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    for mut body in [cut, tools] {
        for stream in [false, true] {
            body["stream"] = json!(stream);
            for _ in 0..2 {
                assert_eq!(how(&bench.daemon.send(ask(&body)).await), MISS, "{body}");
            }
        }
    }
    let filtered = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": ""},
        "finish_reason": "content_filter"}]});
    bench.uplink.set_faults(Faults { answer: Some(filtered.to_string()), ..Faults::default() }).await;
    for _ in 0..2 {
        assert_eq!(how(&bench.daemon.send(ask(&exact("filtered"))).await), MISS);
    }
    bench.uplink.set_faults(refusing(400)).await;
    let refused = bench.daemon.send(ask(&exact("refused"))).await;
    assert_eq!((refused.status, refused.header("x-cache")), (400, "MISS"));
    bench.uplink.set_faults(Faults::default()).await;
    assert_eq!(how(&bench.daemon.send(ask(&exact("refused"))).await), MISS);
    assert_eq!(bench.daemon.status().await["cache"]["entries"], 1);
}

#[tokio::test]
async fn a_picture_is_part_of_the_question() {
    let bench = bench().await;
    let picture = |last: &str| {
        let url = format!("data:image/png;base64,{}{last}", "A".repeat(1_500_000));
        let parts = json!([{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": url}}]);
        json!({"model": "gpt-4o", "temperature": 0, "messages": [{"role": "user", "content": parts}]})
    };
    assert_eq!(how(&bench.daemon.send(ask(&picture("B"))).await), MISS);
    assert_eq!(how(&bench.daemon.send(ask(&picture("C"))).await), MISS);
    assert_eq!(how(&bench.daemon.send(ask(&picture("B"))).await), HIT);
    assert_eq!(bench.uplink.requests_total(), 2);
}

#[tokio::test]
async fn a_stream_is_kept_as_a_stream() {
    let bench = bench().await;
    let mut body = exact("streamed words");
    body["stream"] = json!(true);
    let first = bench.daemon.send(ask(&body)).await;
    assert_eq!(how(&first), MISS);
    let second = bench.daemon.send(ask(&body)).await;
    assert_eq!(how(&second), HIT);
    assert!(second.header("content-type").starts_with("text/event-stream"));
    assert_eq!(second.text(), first.text());
    assert_eq!(stream_text(&second.text()), "uplink answer to: streamed words");
    assert_eq!(events(&second.text()).last().map(String::as_str), Some("[DONE]"));
    assert_eq!(bench.answered("streamed words"), 1);
}

async fn across_sources(lines: &str, expected: (u16, &str, &str)) {
    let (http, address) = listening();
    let bench = Bench::with(Settings { http, ..cached(lines) }).await;
    let body = exact("whose");
    assert_eq!(how(&bench.daemon.send(ask(&body)).await), MISS);
    assert_eq!(how(&ask(&body).send_to_tcp(&address).await), expected);
    assert_eq!(how(&ask(&body).send_to_tcp(&address).await), HIT);
    assert_eq!(how(&bench.daemon.send(ask(&body)).await), HIT);
}

#[tokio::test]
async fn what_one_source_asked_is_not_anothers() {
    across_sources("ttl = \"5m\"", MISS).await;
}

#[tokio::test]
async fn sources_share_where_it_is_switched_on() {
    across_sources("ttl = \"5m\"\nshared = true", HIT).await;
}

#[tokio::test]
async fn a_restart_keeps_it_and_another_configuration_does_not_find_it() {
    let mut bench = bench().await;
    assert_eq!(how(&bench.daemon.send(ask(&exact("kept"))).await), MISS);
    on_disk(&bench, 1).await;
    bench.daemon.kill().await;
    bench.daemon.restart().await;
    assert_eq!(how(&bench.daemon.send(ask(&exact("kept"))).await), HIT);
    assert!(bench.daemon.stop().await.success());
    let config = bench.daemon.folder().join("holdfast.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("deepseek-v3.2", "deepseek-v4");
    std::fs::write(config, text).unwrap();
    bench.daemon.restart().await;
    bench.wait_online().await;
    assert_eq!(how(&bench.daemon.send(ask(&exact("kept"))).await), MISS);
}

#[tokio::test]
async fn a_damaged_answer_is_a_miss_and_goes() {
    let bench = bench().await;
    let first = bench.daemon.send(ask(&exact("damaged"))).await;
    on_disk(&bench, 1).await;
    let file = kept_files(&bench).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(how(&bench.daemon.send(ask(&exact("damaged"))).await), MISS);
    let again = bench.daemon.send(ask(&exact("damaged"))).await;
    assert_eq!((how(&again), again.content()), (HIT, first.content()));
    until("the damaged file to go", 10, || async { (!file.exists()).then_some(()) }).await;
}

#[tokio::test]
async fn offline_an_older_answer_is_given_and_its_age_said() {
    let bench = Bench::with(cached("ttl = \"1s\"\noffline_stale = \"1h\"")).await;
    let mut streamed = exact("old");
    streamed["stream"] = json!(true);
    for body in [&exact("old"), &streamed] {
        assert_eq!(how(&bench.daemon.send(ask(body)).await), MISS);
    }
    until("the answers to grow old", 10, || async {
        (how(&bench.daemon.send(ask(&exact("old"))).await) != HIT).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let sent = bench.uplink.requests_total();
    bench.outage(Faults::failing(Mode::Refuse)).await;
    for policy in ["both", "local", "queue"] {
        for body in [&exact("old"), &streamed] {
            let stale = bench.daemon.send(ask(body).offline(policy)).await;
            assert_eq!(how(&stale), (200, "STALE", "cache-stale"), "{policy}");
            assert!(stale.header("age").parse::<u64>().is_ok_and(|age| (1..60).contains(&age)), "{stale:?}");
            assert!(stale.text().contains("uplink answer to") || stream_text(&stale.text()).contains("uplink answer"));
            assert_eq!(stale.header("x-holdfast-id"), "");
        }
    }
    assert_eq!(bench.daemon.backlog().await, 0, "what has an answer is not stored");
    bench.daemon.send(ask(&exact("old")).offline("fail")).await.assert_error(503, "uplink_unavailable");
    let local = bench.daemon.send(ask(&exact("old")).header("cache-control", "no-cache")).await;
    assert!(local.header("x-holdfast-route").starts_with("local:"), "{local:?}");
    assert_eq!((local.header("x-cache"), bench.daemon.backlog().await), ("MISS", 1));
    assert_eq!(bench.uplink.requests_total(), sent);
    assert_eq!(metric(&bench, "holdfast_cache_total{result=\"stale\"}").await, 6);
    bench.recover().await;
}

#[tokio::test]
async fn a_local_answer_is_never_kept() {
    let bench = Bench::with(cached("ttl = \"5m\"")).await;
    bench.outage(Faults::failing(Mode::Refuse)).await;
    for _ in 0..2 {
        let local = bench.daemon.send(ask(&exact("local")).offline("local")).await;
        assert_eq!((local.status, local.header("x-cache")), (200, "MISS"));
        assert!(local.header("x-holdfast-route").starts_with("local:"));
    }
    assert_eq!(bench.daemon.status().await["cache"]["entries"], 0);
}

#[tokio::test]
async fn a_full_disk_keeps_nothing_and_disturbs_nobody() {
    let extra = "[queue]\nmin_disk_free = \"1000TiB\"\n".to_owned();
    let bench = Bench::at_once(Settings { extra, patient: true, ..cached("ttl = \"5m\"") }).await;
    until("the uplink", 10, || async {
        let reply = bench.daemon.send(Ask::chat("is it there")).await;
        (reply.status == 200 && reply.header("x-holdfast-route") == "uplink:sim").then_some(())
    })
    .await;
    for n in 0..5 {
        let reply = bench.daemon.send(ask(&exact(&format!("full {n}")))).await;
        assert_eq!(how(&reply), MISS);
    }
    assert!(kept_files(&bench).is_empty());
    let log = std::fs::read_to_string(bench.daemon.folder().join("daemon.log")).unwrap();
    assert_eq!(log.matches("keeps no new answers").count(), 1, "{log}");
}

#[tokio::test]
async fn it_can_be_emptied_and_nobody_else_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let bench = bench().await;
    bench.daemon.send(ask(&exact("gone"))).await;
    on_disk(&bench, 1).await;
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(bench.daemon.data().join("cache")), mode(kept_files(&bench).remove(0))), (0o700, 0o600));
    let (code, said) = bench.daemon.tool(&["cache", "purge", "--json"]).await;
    assert_eq!((code, said.contains("\"purged\": 1") || said.contains("\"purged\":1")), (0, true), "{said}");
    assert!(kept_files(&bench).is_empty());
    assert_eq!(how(&bench.daemon.send(ask(&exact("gone"))).await), MISS);
}

#[tokio::test]
async fn a_hundred_at_once_are_one_send() {
    let bench = slow_bench().await;
    for stream in [false, true] {
        bench.uplink.set_faults(Faults { delay_ms: 700, ..Faults::default() }).await;
        let user = format!("hundred {stream}");
        let mut body = exact(&user);
        body["stream"] = json!(stream);
        let replies = join_all((0..100).map(|_| bench.daemon.send(ask(&body)))).await;
        assert_eq!(bench.answered(&user), 1);
        assert!(replies.iter().all(|reply| reply.status == 200 && reply.body == replies[0].body));
        let misses = replies.iter().filter(|reply| how(reply) == MISS).count();
        let hits = replies.iter().filter(|reply| how(reply) == HIT).count();
        assert_eq!((misses, hits), (1, 99));
        assert_eq!(bench.uplink.requests_total(), 1 + u64::from(stream));
    }
    let coalesced = metric(&bench, "holdfast_cache_total{result=\"coalesced\"}").await;
    let hit = metric(&bench, "holdfast_cache_total{result=\"hit\"}").await;
    assert_eq!(coalesced + hit, 198);
    assert!(coalesced > 100, "{coalesced} {hit}");
}

#[tokio::test]
async fn a_failure_is_everybodys_and_makes_no_stampede() {
    let bench = slow_bench().await;
    bench.uplink.set_faults(Faults { delay_ms: 500, ..refusing(400) }).await;
    let replies = join_all((0..50).map(|_| bench.daemon.send(ask(&exact("bad"))))).await;
    assert!(replies.iter().all(|reply| reply.status == 400), "{:?}", replies[0]);
    assert_eq!(bench.uplink.requests_total(), 1);
}

#[tokio::test]
async fn an_outage_in_the_middle_stores_each_of_them() {
    let bench = bench().await;
    bench.uplink.set_faults(Faults { delay_ms: 400, ..Faults::failing(Mode::Reset) }).await;
    let asking = join_all((0..10).map(|_| bench.daemon.send(ask(&exact("cut off")))));
    let breaking = async {
        until("the send", 10, || async { (bench.uplink.requests_total() > 0).then_some(()) }).await;
        bench.uplink.set_faults(Faults::failing(Mode::Refuse)).await;
    };
    let (replies, ()) = tokio::join!(asking, breaking);
    let ids: std::collections::HashSet<String> = replies.iter().map(Reply::id).collect();
    assert!(replies.iter().all(|reply| reply.header("x-holdfast-route").starts_with("local:")), "{replies:?}");
    assert_eq!(ids.len(), 10, "each is stored by itself");
}

#[tokio::test]
async fn a_leader_who_leaves_hurts_nobody_and_nobody_left_ends_the_send() {
    let bench = slow_bench().await;
    bench.uplink.set_faults(Faults { delay_ms: 1000, ..Faults::default() }).await;
    let leader = tokio::spawn(ask(&exact("left")).send_to_owned(bench.daemon.socket()));
    until("the send", 10, || async { (bench.uplink.requests_total() == 1).then_some(()) }).await;
    let followers = join_all((0..5).map(|_| bench.daemon.send(ask(&exact("left")))));
    let leaving = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        leader.abort();
    };
    let (replies, ()) = tokio::join!(followers, leaving);
    assert!(replies.iter().all(|reply| how(reply) == HIT), "{replies:?}");
    assert_eq!(bench.uplink.requests_total(), 1);
    let lonely = tokio::spawn(ask(&exact("lonely")).send_to_owned(bench.daemon.socket()));
    until("the send", 10, || async { (bench.uplink.requests_total() == 2).then_some(()) }).await;
    lonely.abort();
    until("the send to be given up", 10, || async {
        let status = bench.daemon.status().await;
        (status["uplinks"][0]["in_flight"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_followers_own_time_counts() {
    let bench = slow_bench().await;
    bench.uplink.set_faults(Faults { delay_ms: 2500, ..Faults::default() }).await;
    let leader = tokio::spawn(ask(&exact("slow")).send_to_owned(bench.daemon.socket()));
    until("the send", 10, || async { (bench.uplink.requests_total() == 1).then_some(()) }).await;
    let hasty = bench.daemon.send(ask(&exact("slow")).header("x-stainless-read-timeout", "1")).await;
    hasty.assert_error(504, "upstream_timeout");
    assert!(!leader.is_finished(), "it waited as long as the leader");
    assert_eq!(how(&leader.await.unwrap().unwrap()), MISS);
    assert_eq!(bench.uplink.requests_total(), 1);
}

/// The leader holds on for its own caller; the others get what they would get by themselves, each in its own time.
#[tokio::test]
async fn in_an_outage_nobody_waits_for_the_leaders_hold() {
    let bench = Bench::with(Settings { cache: "ttl = \"5m\"".to_owned(), ..Settings::without_local() }).await;
    bench.uplink.set_faults(Faults { delay_ms: 400, ..Faults::failing(Mode::Reset) }).await;
    let patient = ask(&exact("held")).header("x-stainless-read-timeout", "100");
    let leader = tokio::spawn(patient.send_to_owned(bench.daemon.socket()));
    until("the send", 10, || async { (bench.uplink.requests_total() > 0).then_some(()) }).await;
    let hasty = || ask(&exact("held")).header("x-stainless-read-timeout", "4");
    let mut streamed = exact("held");
    streamed["stream"] = json!(true);
    let asking = join_all(
        [hasty(), hasty(), ask(&streamed).header("x-stainless-read-timeout", "4")].map(|ask| bench.daemon.send(ask)),
    );
    let breaking = bench.uplink.set_faults(Faults::failing(Mode::Refuse));
    let (replies, ()) = tokio::join!(asking, breaking);
    for reply in &replies {
        reply.assert_error(503, "request_queued");
    }
    assert!(!leader.is_finished(), "the leader's caller said that it waits");
    bench.uplink.set_faults(Faults::default()).await;
    assert_eq!(leader.await.unwrap().unwrap().status, 200);
}

/// What is too long to be shared is sent for each, at once: nobody waits until its first caller has read it.
#[tokio::test]
async fn who_asks_the_same_waits_for_nobody_who_reads_a_long_answer() {
    let bench = slow_bench().await;
    let answer = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "usage": null,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x".repeat(8_000_000)}}]});
    bench.uplink.set_faults(Faults { answer: Some(answer.to_string()), delay_ms: 500, ..Faults::default() }).await;
    let socket = bench.daemon.socket();
    let unread = tokio::spawn(async move { ask(&exact("long")).open(&socket).await.unwrap() });
    until("the send", 10, || async { (bench.answered("long") == 1).then_some(()) }).await;
    let reply = within("an answer of its own", 10, bench.daemon.send(ask(&exact("long")))).await;
    assert_eq!((reply.status, reply.content().len()), (200, 8_000_000));
    drop(unread.await.unwrap());
}
